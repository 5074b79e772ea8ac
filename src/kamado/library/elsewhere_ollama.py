"""Ollama's store: manifests that name blobs by their digest.

    manifests/HOST/NAMESPACE/NAME/TAG    JSON: layers with mediaType, digest and size
    blobs/sha256-HEX                     content; the layer of the model is a GGUF file

Its templates and parameters are other layers and are not read: the GGUF file has its own template.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from .folders import MAX_MODELS, Found, Looker

MAX_MANIFEST_BYTES = 1 << 20
MAX_LAYERS = 1000
MODEL_LAYER = "application/vnd.ollama.image.model"
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")
_PART = re.compile(r"[A-Za-z0-9][\w.-]{0,127}", re.ASCII)
_OWN_HOST, _OWN_NAMESPACE = "registry.ollama.ai", "library"


def ollama_models(root: Path, look: Looker) -> Iterator[Found]:
    """The models of the store at `root` that are one GGUF file, all of it there."""
    count = 0
    for host in look.folders(root / "manifests"):
        for namespace in look.folders(host):
            for model in look.folders(namespace):
                for tag in look.entries(model):
                    count += 1
                    if count > MAX_MODELS:
                        return
                    parts = (host.name, namespace.name, model.name, tag.name)
                    if not all(_PART.fullmatch(part) for part in parts):
                        continue
                    layer = read_manifest(Path(tag.path))
                    if layer is None:
                        continue
                    digest, nbytes = layer
                    blob = root / "blobs" / f"sha256-{digest}"
                    if look.size(blob) != nbytes:  # half fetched, or no file of its own
                        continue
                    name = _shown(*parts)
                    repo = f"{namespace.name}/{model.name}" if host.name in ("hf.co", "huggingface.co") else ""
                    yield Found(f"ollama:{name}", "Ollama", blob, nbytes, f"ollama rm {name}", repo=repo)


def _shown(host: str, namespace: str, model: str, tag: str) -> str:
    """The name as Ollama shows it."""
    if host != _OWN_HOST:
        return f"{host}/{namespace}/{model}:{tag}"
    return f"{model}:{tag}" if namespace == _OWN_NAMESPACE else f"{namespace}/{model}:{tag}"


def read_manifest(path: Path) -> tuple[str, int] | None:
    """(digest, bytes) of the one layer that is the model; None for a file that is no such manifest."""
    try:
        # neither a link nor a pipe that would wait for a writer
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return None
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_MANIFEST_BYTES:
            return None
        data = os.read(fd, MAX_MANIFEST_BYTES + 1)
    except OSError:
        return None
    finally:
        os.close(fd)
    return parse_manifest(data)


def parse_manifest(data: bytes) -> tuple[str, int] | None:
    """The same of a manifest's bytes."""
    if len(data) > MAX_MANIFEST_BYTES:
        return None
    try:
        layers = json.loads(data)["layers"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if not isinstance(layers, list) or len(layers) > MAX_LAYERS:
        return None
    found = []
    for layer in layers:
        if not isinstance(layer, dict) or layer.get("mediaType") != MODEL_LAYER:
            continue
        digest, size = layer.get("digest"), layer.get("size")
        match = _DIGEST.fullmatch(digest) if isinstance(digest, str) else None
        if match is None or type(size) is not int or not 0 < size < 1 << 50:
            return None
        found.append((match[1], size))
    return found[0] if len(found) == 1 else None
