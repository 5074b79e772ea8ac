"""What a model file says of itself, without loading it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from ...errors import CheckpointError
from ...files import open_checkpoint
from ...files.layouts import FILE_TYPES
from ...files.types import Checkpoint
from ...measure import program_of
from ...program import Program
from .contract import Capability, ModelInfo

_MAX_TEXT, _MAX_DETAILS = 300, 200
_MAX_TEMPLATE = 100_000
_MAX_LICENSE = 100_000


def describe(
    name: str, path: Path, *, digest: str, created: int, nbytes: int | None, allow_unknown: Collection[str] = ()
) -> ModelInfo:
    """Reads the header. Raises CheckpointError for a file that is damaged."""
    checkpoint = open_checkpoint(path)
    metadata = checkpoint.metadata
    template = checkpoint.chat_template or ""
    program = _program(checkpoint, allow_unknown)
    prefix = checkpoint.architecture if checkpoint.format == "gguf" else ""
    return ModelInfo(
        name=name,
        created=created,
        nbytes=checkpoint.weight_bytes if nbytes is None else nbytes,
        digest=digest,
        format=checkpoint.format,
        architecture=checkpoint.architecture,
        parameter_count=sum(tensor.num_values for tensor in checkpoint.tensors.values()),
        quantization=_quantization(checkpoint),
        # What the file's rope scaling stretches it to; for what cannot be run, what the file says.
        max_context=program.context_length
        if program
        else _number(metadata, f"{prefix}.context_length", "max_position_embeddings"),
        embedding_length=_number(metadata, f"{prefix}.embedding_length", "hidden_size"),
        capabilities=_capabilities(program, template),
        template=template[:_MAX_TEMPLATE],
        license=_short(metadata.get("general.license", metadata.get("license", "")), _MAX_LICENSE),
        parameters=dict(checkpoint.sampling),
        details=_details(metadata),
    )


def _program(checkpoint: Checkpoint, allow_unknown: Collection[str]) -> Program | None:
    """The forward pass, None for a file that cannot be run."""
    try:
        return program_of(checkpoint, allow_unknown)
    except CheckpointError:
        return None


def _capabilities(program: Program | None, template: str) -> frozenset[Capability]:
    """What the forward pass is for, and a guess by the template, which loading proves; none for what cannot be loaded.

    A generating model embeds when its file says how the rows of a text become a vector (`pooling_type`,
    `1_Pooling/config.json`): it was trained for it then.
    """
    if program is None:
        return frozenset()
    if program.is_encoder:
        return frozenset({"embedding"})
    signs: dict[Capability, bool] = {
        "completion": True,
        "embedding": program.pooling is not None,
        "chat": bool(template),
        "tools": "tools" in template,
        "thinking": "<think>" in template or "enable_thinking" in template,
    }
    return frozenset(name for name, is_seen in signs.items() if is_seen)


def _quantization(checkpoint: Checkpoint) -> str:
    kind = checkpoint.metadata.get("general.file_type")
    if isinstance(kind, int) and kind in FILE_TYPES:
        return FILE_TYPES[kind]
    values: Counter[str] = Counter()
    for tensor in checkpoint.tensors.values():
        values[tensor.layout.name] += tensor.num_values
    return values.most_common(1)[0][0] if values else ""


def _number(metadata: Mapping[str, Any], *keys: str) -> int:
    values = (metadata.get(key) for key in keys)
    return next((n for n in values if isinstance(n, int) and not isinstance(n, bool) and 0 < n < 1 << 40), 0)


def _details(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Single values only: a vocabulary has no place in an answer."""
    single = (
        (key, value)
        for key, value in metadata.items()
        if isinstance(value, (bool, int, float)) or (isinstance(value, str) and len(value) <= _MAX_TEXT)
    )
    return dict(islice(single, _MAX_DETAILS))


def _short(value: object, limit: int) -> str:
    return value[:limit] if isinstance(value, str) else ""
