"""Stores of other programs, as small as they can be: Ollama's, LM Studio's, the hub's cache."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

MODEL_LAYER = "application/vnd.ollama.image.model"


def put_ollama(root: Path, name: str, content: bytes, **changed: Any) -> Path:
    """A model of Ollama's store at `root`, HOST/NAMESPACE/NAME/TAG; `changed`: of its model layer."""
    digest = hashlib.sha256(content).hexdigest()
    blob = root / "blobs" / f"sha256-{digest}"
    blob.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(content)
    layer = {"mediaType": MODEL_LAYER, "digest": f"sha256:{digest}", "size": len(content), **changed}
    other = {"mediaType": "application/vnd.ollama.image.template", "digest": f"sha256:{'0' * 64}", "size": 3}
    put_manifest(root, name, json.dumps({"schemaVersion": 2, "config": {}, "layers": [other, layer]}).encode())
    return blob


def put_manifest(root: Path, name: str, data: bytes) -> Path:
    path = root / "manifests" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def put_file(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def put_hub_cache(root: Path, repo: str, files: dict[str, bytes], commit: str = "1" * 40) -> Path:
    """A repository in huggingface_hub's cache: blobs, and a snapshot of links to them. Returns the snapshot."""
    folder = root / f"models--{repo.replace('/', '--')}"
    snapshot = folder / "snapshots" / commit
    for name, content in files.items():
        blob = put_file(folder / "blobs" / hashlib.sha256(content).hexdigest(), content)
        link = snapshot / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    put_file(folder / "refs" / "main", commit.encode())
    return snapshot
