"""Model families: each file turns a checkpoint's settings and tensor names into a `Program`.

A family is found by the file's own name for it: `general.architecture` in GGUF, `model_type` in config.json. Adding
one that needs no new operation is a file here, a line in the table below, and a line in `tests/models/model_cases.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

from ..checkpoint.types import Checkpoint
from ..errors import UnsupportedError
from ..program import Head, Pool, Program, validate
from . import bert, gemma3, granitemoe, llama, mistral, mixtral, olmoe, qwen2, qwen3, qwen3moe
from .common import has_no_head
from .config import Config
from .pooling import read_pooling

_FAMILIES: dict[tuple[str, str], Callable[[Config], Program]] = {
    ("gguf", "bert"): bert.build,
    ("gguf", "llama"): llama.build,
    ("gguf", "qwen2"): qwen2.build,
    ("gguf", "qwen3"): qwen3.build,
    ("gguf", "qwen3moe"): qwen3moe.build,
    ("gguf", "gemma3"): gemma3.build,
    ("gguf", "olmoe"): olmoe.build,
    ("gguf", "granitemoe"): granitemoe.build,
    ("safetensors", "bert"): bert.build,
    ("safetensors", "llama"): llama.build,
    ("safetensors", "mistral"): mistral.build,
    ("safetensors", "mixtral"): mixtral.build,
    ("safetensors", "qwen2"): qwen2.build,
    ("safetensors", "qwen3"): qwen3.build,
    ("safetensors", "qwen3_moe"): qwen3moe.build,
    ("safetensors", "gemma3"): gemma3.build,
    ("safetensors", "gemma3_text"): gemma3.build,
    ("safetensors", "olmoe"): olmoe.build,
    ("safetensors", "granitemoe"): granitemoe.build,
}


def build_program(checkpoint: Checkpoint, allow_unknown: Collection[str] = ()) -> Program:
    """The forward pass of `checkpoint`. Reads settings and names only, no weights but rope factors.

    `allow_unknown`: settings, as the file writes their names, that need not be read; what that let pass is in the
    program's `overridden`. Raises UnsupportedError (unknown architecture, or a setting this version cannot honour),
    MetadataError or MissingTensorError; each names the key or tensor and the file.
    """
    family = _FAMILIES.get((checkpoint.format, checkpoint.architecture))
    if family is None:
        known = sorted(name for kind, name in _FAMILIES if kind == checkpoint.format)
        raise UnsupportedError(
            f"{checkpoint.path}: architecture {checkpoint.architecture!r} is not supported; "
            f"{checkpoint.format} files may be {', '.join(known)}"
        )
    c = Config.of(checkpoint, allow_unknown)
    pooling = read_pooling(c)
    program = family(c)
    c.refuse_unread()
    program = replace(program, pooling=program.pooling or pooling, overridden=tuple(c.overridden()))
    last = program.ops[-1]
    if isinstance(last, Head) and has_no_head(checkpoint) and not _is_tied(checkpoint):
        # Vectors of decoders are those of their last row, unless the file says otherwise (E5-Mistral, GTE-Qwen2).
        pooling = program.pooling or "last"
        program = replace(program, ops=[*program.ops[:-1], Pool(last.x, pooling)], pooling=pooling)
    validate(program)
    return program


def _is_tied(checkpoint: Checkpoint) -> bool:
    tied = checkpoint.metadata.get("tie_word_embeddings")
    return checkpoint.architecture.startswith("gemma") if tied is None else tied is True


def supported_architectures() -> tuple[str, ...]:
    """Every architecture name that `build_program` knows, of both formats, sorted."""
    return tuple(sorted({name for _, name in _FAMILIES}))
