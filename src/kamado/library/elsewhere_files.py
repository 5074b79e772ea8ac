"""Folders of model files: LM Studio's, and the cache that huggingface_hub keeps.

PUBLISHER/REPO/FILE.gguf                                        LM Studio
models--OWNER--REPO/refs/main, snapshots/COMMIT/FILE → blobs    the cache; a safetensors model is a whole snapshot
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from .folders import MAX_MODELS, Found, Looker
from .names import REPO, SHARD

_MAX_DEPTH = 3  # folders below a repository in which a GGUF file may lie
_COMMIT = re.compile(r"[0-9a-f]{40,64}")
_NO_MODEL = re.compile(r"mmproj|imatrix", re.IGNORECASE)
_FILE = re.compile(r"[\w.()+@ -]{1,200}\.gguf")
_WEIGHTS = re.compile(r"model(-\d{5}-of-(?P<count>\d{5}))?\.safetensors", re.ASCII)


def lmstudio_models(root: Path, look: Looker) -> Iterator[Found]:
    """GGUF files of PUBLISHER/REPO folders; safetensors directories in MLX's form are none that run here."""
    for publisher in look.folders(root):
        for folder in look.folders(publisher):
            repo = f"{publisher.name}/{folder.name}"
            if REPO.fullmatch(repo) is None:
                continue
            for file, path, nbytes in gguf_files(folder, look):
                yield Found(f"lmstudio:{repo}/{file}", "LM Studio", path, nbytes, "LM Studio itself", repo, file)


def hub_cache_models(root: Path, look: Looker) -> Iterator[Found]:
    """GGUF files and safetensors snapshots of the newest commit that `main` was seen at."""
    remove = "hf cache rm"
    for folder in look.folders(root):
        repo = folder.name.removeprefix("models--").replace("--", "/", 1)
        if not folder.name.startswith("models--") or REPO.fullmatch(repo) is None:
            continue
        snapshot = _snapshot(folder, look)
        if snapshot is None:
            continue
        for file, path, nbytes in gguf_files(snapshot, look):
            yield Found(f"hfcache:{repo}/{file}", "Hugging Face's cache", path, nbytes, remove, repo, file)
        total = _safetensors_bytes(snapshot, look)
        if total:
            yield Found(f"hfcache:{repo}", "Hugging Face's cache", snapshot, total, remove, repo)


def gguf_files(folder: Path, look: Looker) -> Iterator[tuple[str, Path, int]]:
    """(path below `folder`, place, bytes) of each GGUF model; of a split one the first shard, when all are there."""
    sizes: dict[str, int] = {}
    _gather(folder, "", 0, look, sizes)
    for file, nbytes in sizes.items():
        match = SHARD.fullmatch(file.removesuffix(".gguf"))
        if match is None:
            yield file, folder / file, nbytes
        elif int(match["number"]) == 1:
            count = int(match["count"])
            if count > MAX_MODELS:
                continue
            shards = [sizes.get(f"{match['stem']}-{i:05d}-of-{match['count']}.gguf") for i in range(1, count + 1)]
            known = [size for size in shards if size is not None]
            if len(known) == count:
                yield file, folder / file, sum(known)


def _gather(folder: Path, below: str, depth: int, look: Looker, sizes: dict[str, int]) -> None:
    for entry in look.entries(folder):
        if len(sizes) >= MAX_MODELS:
            return
        if _FILE.fullmatch(entry.name) and not _NO_MODEL.search(entry.name):
            nbytes = look.size(Path(entry.path))
            if nbytes:
                sizes[below + entry.name] = nbytes
        elif depth < _MAX_DEPTH and Looker.is_folder(entry):
            _gather(Path(entry.path), f"{below}{entry.name}/", depth + 1, look, sizes)


def _snapshot(folder: Path, look: Looker) -> Path | None:
    """The folder of the commit that `main` was last seen at, else of the only one."""
    snapshots = {one.name: one for one in look.folders(folder / "snapshots") if _COMMIT.fullmatch(one.name)}
    main = folder / "refs" / "main"
    if look.size(main) is not None:
        try:
            with open(main, "rb") as file:
                commit = file.read(100).decode("ascii", "replace").strip()
        except OSError:
            commit = ""
        if commit in snapshots:
            return snapshots[commit]
    return next(iter(snapshots.values())) if len(snapshots) == 1 else None


def _safetensors_bytes(snapshot: Path, look: Looker) -> int:
    """Bytes of a safetensors model that is all there, else 0."""
    if look.size(snapshot / "config.json") is None:
        return 0
    total, numbers, count = 0, 0, 0
    for entry in look.entries(snapshot):
        match = _WEIGHTS.fullmatch(entry.name)
        nbytes = look.size(Path(entry.path)) if match else None
        if match is None or nbytes is None:
            continue
        if match["count"] is None:
            return nbytes
        total, numbers, count = total + nbytes, numbers + 1, int(match["count"])
    return total if numbers and numbers == count else 0
