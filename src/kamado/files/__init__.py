"""Model files: opened in place, checked, described. `open_checkpoint` is the way in.

Here: bytes on disk that nobody vouches for, layouts of numbers, and files of ours written whole or not at all. Not
here: what the numbers mean to a model (models), nor where models come from (library).
"""

from __future__ import annotations

from pathlib import Path

from ..errors import CorruptFileError, ModelNotFoundError, UnsupportedError
from .types import Checkpoint, Layout, TensorRef, TokenizerSource

__all__ = ["Checkpoint", "Layout", "TensorRef", "TokenizerSource", "open_checkpoint"]


def open_checkpoint(path: Path | str) -> Checkpoint:
    """Open a GGUF file (any shard of a split one) or a safetensors directory or file. Reads headers, no weights.

    Raises ModelNotFoundError when nothing is there, a CheckpointError naming file and key for what cannot be used.
    """
    path = Path(path).absolute()
    if path.is_dir():
        return _open_directory(path)
    if not path.exists():
        raise ModelNotFoundError(f"{path}: no such file or directory")
    if not path.is_file():
        raise UnsupportedError(f"{path}: neither a regular file nor a directory")
    if path.suffix == ".safetensors" or path.name.endswith(".safetensors.index.json"):
        return _open_directory(path.parent)
    from .gguf import open_gguf

    return open_gguf(path)


def _open_directory(path: Path) -> Checkpoint:
    """A safetensors directory, or one that holds exactly one GGUF model (as a store entry does)."""
    if (path / "config.json").is_file():
        from .safetensors import open_safetensors

        return open_safetensors(path)
    from .gguf import first_shards, open_gguf

    models = first_shards(path)
    if len(models) == 1:
        return open_gguf(models[0])
    if models:
        names = ", ".join(model.name for model in models)
        raise UnsupportedError(f"{path}: holds several GGUF models ({names}): name one of them")
    raise CorruptFileError(f"{path}: holds neither config.json with safetensors weights nor a GGUF file")
