"""GGUF files, single or split, as Checkpoints. Reads headers only; weights stay where they lie.

A tensor type that ggml defines but Kamado cannot run is refused when the tensor is asked for, not when the file is
opened, so that `show` and `plan` work on any file. A type id that we cannot even size is refused at once, because
nothing behind it could be checked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import CorruptFileError, MetadataError
from .gguf_header import GGML_TYPES, Header, read_header
from .hf_settings import is_finite_number, shown, token_ids
from .tensor_map import TensorMap
from .types import Checkpoint, Layout, TensorRef, TokenizerSource

_SHARD_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
MAX_SHARDS = 1024
_SUPPRESSED = "tokenizer.ggml.suppress_tokens"

# general.sampling.* as llama.cpp's converter writes them -> our names, those of generate()'s arguments.
_SAMPLING_KEYS = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
    "penalty_last_n": "penalty_last_n",
    "xtc_probability": "xtc_probability",
    "xtc_threshold": "xtc_threshold",
    "mirostat": "mirostat",
    "mirostat_tau": "mirostat_tau",
    "mirostat_eta": "mirostat_eta",
}


def open_gguf(path: Path) -> Checkpoint:
    """The model that `path` belongs to. `path` may be any shard of a split model; metadata comes from the first.

    Raises CorruptFileError, MetadataError or UnsupportedError; each names the file and the key or tensor.
    """
    headers = _read_shards(path)
    first = headers[0]
    metadata = first.metadata
    architecture = _string(first, "general.architecture", required=True)
    assert architecture is not None  # required
    tensors: dict[str, TensorRef] = {}
    unsupported: dict[str, str] = {}
    for header in headers:
        for info in header.tensors.values():
            if info.name in tensors or info.name in unsupported:
                raise CorruptFileError(f"{header.path}: tensor {info.name!r} is in an earlier shard too")
            try:
                layout = Layout(info.type_id)
            except ValueError:
                unsupported[info.name] = GGML_TYPES[info.type_id][0]
                continue
            tensors[info.name] = TensorRef(info.name, header.path, info.offset, info.nbytes, info.shape, layout)
    tokenizer_data = {key: value for key, value in metadata.items() if key.startswith("tokenizer.")}
    chat_template = _string(first, "tokenizer.chat_template")
    return Checkpoint(
        path=path,
        files=tuple(header.path for header in headers),
        format="gguf",
        architecture=architecture,
        metadata=metadata,
        tensors=TensorMap(path, tensors, unsupported),
        tokenizer=TokenizerSource("gguf", tokenizer_data, first.path)
        if "tokenizer.ggml.model" in tokenizer_data
        else None,
        chat_template=chat_template,
        chat_templates=_named_templates(first),
        sampling=_sampling(first),
        name=_string(first, "general.name"),
        suppressed=token_ids(metadata.get(_SUPPRESSED), f"{first.path}: metadata key {_SUPPRESSED!r}"),
    )


def _read_shards(path: Path) -> list[Header]:
    """Headers of all shards in order; one for a file that is whole."""
    named = read_header(path)
    count = _integer(named, "split.count", default=0)
    if count <= 1:
        return [named]
    if count > MAX_SHARDS:
        raise MetadataError(f"{path}: metadata key 'split.count' is {count}, more than the limit of {MAX_SHARDS}")
    match = _SHARD_NAME.fullmatch(path.name)
    if match is None or int(match["count"]) != count:
        raise CorruptFileError(
            f"{path}: this is one of {count} shards, so its name must end in '-00001-of-{count:05d}.gguf' "
            "for the others to be found: give the files back the names they were published under"
        )
    headers = []
    for i in range(count):
        shard = path.with_name(f"{match['stem']}-{i + 1:05d}-of-{count:05d}.gguf")
        if not shard.is_file():
            raise CorruptFileError(
                f"{shard}: shard {i + 1} of {count} is missing; all shards must lie in one directory"
            )
        header = named if shard == path else read_header(shard)
        if _integer(header, "split.count", default=0) != count or _integer(header, "split.no", default=-1) != i:
            raise CorruptFileError(
                f"{shard}: its metadata says shard {_integer(header, 'split.no', default=-1) + 1} of "
                f"{_integer(header, 'split.count', default=0)}, its name says {i + 1} of {count}"
            )
        headers.append(header)
    stated = _integer(headers[0], "split.tensors.count", default=-1)
    found = sum(len(header.tensors) for header in headers)
    if stated not in (-1, found):
        raise CorruptFileError(f"{path}: the shards hold {found} tensors, 'split.tensors.count' says {stated}")
    return headers


def _string(header: Header, key: str, *, required: bool = False) -> str | None:
    value = header.metadata.get(key)
    if value is None:
        if required:
            raise MetadataError(f"{header.path}: metadata key {key!r} is missing")
        return None
    if not isinstance(value, str) or (required and not value):
        raise MetadataError(f"{header.path}: metadata key {key!r} must be text, it is {shown(value)}")
    return value


def _integer(header: Header, key: str, *, default: int) -> int:
    value = header.metadata.get(key, default)
    if type(value) is not int:
        raise MetadataError(f"{header.path}: metadata key {key!r} must be an integer, it is {shown(value)}")
    return value


def _named_templates(header: Header) -> Mapping[str, str]:
    prefix = "tokenizer.chat_template."
    named = {}
    for key in header.metadata:
        if key.startswith(prefix) and (template := _string(header, key)) is not None:
            named[key.removeprefix(prefix)] = template
    return named


def _sampling(header: Header) -> Mapping[str, float]:
    out: dict[str, float] = {}
    for theirs, ours in _SAMPLING_KEYS.items():
        value: Any = header.metadata.get(f"general.sampling.{theirs}")
        if value is None:
            continue
        if not is_finite_number(value):
            raise MetadataError(
                f"{header.path}: metadata key 'general.sampling.{theirs}' must be a number, it is {shown(value)}"
            )
        out[ours] = value
    return out


def first_shards(directory: Path) -> list[Path]:
    """GGUF models in `directory`, sorted, each by its only file or first shard. Projectors (mmproj) are left out."""
    out = []
    for path in sorted(directory.glob("*.gguf")):
        match = _SHARD_NAME.fullmatch(path.name)
        if (match is None or int(match["number"]) == 1) and not path.name.startswith("mmproj"):
            out.append(path)
    return out
