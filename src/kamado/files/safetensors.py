"""Safetensors directories as the hubs publish them: config.json, weights in one file or shards, tokenizer files.

The header parser is our own: caps first, then every offset against the file, tensors contiguous and without holes
(the format asks for that, and it leaves no bytes in which anything could hide). Paths in an index never leave the
directory. Layouts other than BF16, F16 and F32 are refused when a program asks for the tensor, but for MXFP4, whose
blocks and scales are tensors of their own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CorruptFileError, MetadataError, ModelNotFoundError
from .hf_settings import chat_templates, default_end, is_there, json_object, sampling, suppressed
from .plain_file import open_regular, parse_json_object
from .tensor_map import TensorMap
from .types import Checkpoint, Layout, TensorRef, TokenizerSource

MAX_HEADER_BYTES = 100_000_000  # the reference implementation's limit
MAX_TENSORS = 262_144
MAX_SHARDS = 1024
MAX_DIMS = 8
MAX_TENSOR_VALUES = 1 << 48

_LAYOUTS = {"F32": Layout.F32, "F16": Layout.F16, "BF16": Layout.BF16}
# bits a value of every dtype of the format, so that sizes are checked for those we cannot run as well
_DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32,
    "F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip
_MAX_NAME_BYTES = 255  # of a file, on every file system we know
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
POOLING_KEY = "sentence_transformers_pooling"  # where a checkpoint's metadata has that file
_TOKENIZER_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "generation_config.json")


def open_safetensors(path: Path) -> Checkpoint:
    """The model in directory `path`. Raises CorruptFileError or MetadataError naming the file and the key."""
    config = json_object(path / "config.json")
    architecture = config.get("model_type")
    if not isinstance(architecture, str) or not architecture:
        raise MetadataError(f"{path / 'config.json'}: key 'model_type' is missing or no text")
    files, where = _weight_files(path)
    tensors: dict[str, TensorRef] = {}
    unsupported: dict[str, str] = {}
    bytes_of: dict[str, _Bytes] = {}  # tensors of plain bytes
    for file in files:
        for name, (dtype, shape, offset, nbytes) in read_header(file).items():
            if where is not None and where.get(name) != file.name:
                raise CorruptFileError(f"{file}: tensor {name!r} is not where {_INDEX} says it is")
            if name in tensors or name in unsupported:
                raise CorruptFileError(f"{file}: tensor {name!r} is in another shard too")
            if dtype in _LAYOUTS:
                tensors[name] = TensorRef(name, file, offset, nbytes, shape, _LAYOUTS[dtype])
            else:
                unsupported[name] = dtype
                if dtype == "U8":
                    bytes_of[name] = _Bytes(file, offset, nbytes, shape)
    listed = {*tensors, *unsupported}
    tensors |= _joined_mxfp4(path, config, tensors, unsupported, bytes_of)
    if where is not None and (lost := where.keys() - listed):
        name = min(lost)
        raise CorruptFileError(f"{path / where[name]}: tensor {name!r} is missing, though {_INDEX} lists it")
    extra = {name: json_object(path / name) for name in _TOKENIZER_FILES if is_there(path / name)}
    generation = extra.get("generation_config.json")
    extra["config.json"] = default_end(config)
    template, named = chat_templates(path, extra.get("tokenizer_config.json", {}))
    tokenizer_file = path / "tokenizer.json"
    return Checkpoint(
        path=path,
        files=tuple(files),
        format="safetensors",
        architecture=architecture,
        metadata=_with_pooling(path, config),
        tensors=TensorMap(path, tensors, unsupported),
        tokenizer=TokenizerSource("hf", extra, tokenizer_file) if is_there(tokenizer_file) else None,
        chat_template=template,
        chat_templates=named,
        sampling=sampling(path, generation, config),
        name=_name(path, config),
        suppressed=suppressed(path, generation, config),
    )


@dataclass(frozen=True, slots=True)
class _Bytes:
    """Where a tensor of U8 lies."""

    file: Path
    offset: int
    nbytes: int
    shape: tuple[int, ...]


def _joined_mxfp4(
    path: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, TensorRef],
    unsupported: dict[str, str],
    bytes_of: Mapping[str, _Bytes],
) -> dict[str, TensorRef]:
    """Matrices whose codes are in NAME_blocks and whose scales are in NAME_scales, as NAME.

    Only where config.json says that the model is quantised so. Both halves are then no tensors of their own any more.
    """
    quantised = config.get("quantization_config")
    if not isinstance(quantised, Mapping) or quantised.get("quant_method") != "mxfp4":
        return {}
    codes = Layout.MXFP4.block_bytes - 1
    found: dict[str, TensorRef] = {}
    for name in sorted(bytes_of):
        stem = name.removesuffix("_blocks")
        if stem == name:
            continue
        blocks, scales = bytes_of[name], bytes_of.get(f"{stem}_scales")
        if scales is None:
            raise CorruptFileError(f"{path}: tensor {name!r} has no {stem + '_scales'!r} of U8 beside it")
        if len(blocks.shape) < 3 or blocks.shape != (*scales.shape, codes) or scales.nbytes * codes != blocks.nbytes:
            raise CorruptFileError(
                f"{path}: tensor {name!r} has shape {blocks.shape}, its scales {scales.shape}: "
                f"MXFP4 has {codes} bytes for each scale"
            )
        if stem in tensors or stem in unsupported:
            raise CorruptFileError(f"{path}: tensor {stem!r} is there, and {name!r} too")
        shape = (*scales.shape[:-1], scales.shape[-1] * Layout.MXFP4.block_values)
        found[stem] = TensorRef(
            stem, blocks.file, blocks.offset, blocks.nbytes, shape, Layout.MXFP4, scales=(scales.file, scales.offset)
        )
    for stem in found:
        del unsupported[f"{stem}_blocks"], unsupported[f"{stem}_scales"]
    return found


def read_header(path: Path) -> dict[str, tuple[str, tuple[int, ...], int, int]]:
    """Tensor name -> (dtype, shape, offset from the file's start, bytes), all checked.

    Raises CorruptFileError naming the tensor for anything the format forbids.
    """
    try:
        with open_regular(path) as file:
            file_bytes = os.fstat(file.fileno()).st_size
            head = file.read(8)
            if len(head) < 8:
                raise CorruptFileError(f"{path}: {file_bytes} bytes are too few for a safetensors file")
            header_bytes = int.from_bytes(head, "little")
            if header_bytes > MAX_HEADER_BYTES:
                raise CorruptFileError(f"{path}: the header claims {header_bytes} bytes, limit {MAX_HEADER_BYTES}")
            if 8 + header_bytes > file_bytes:
                raise CorruptFileError(f"{path}: the header claims {header_bytes} bytes, the file has {file_bytes}")
            raw = file.read(header_bytes)
    except OSError as error:
        raise CorruptFileError(f"{path}: cannot be read: {error.strerror or error}") from error
    return _check_header(path, parse_json_object(raw, path), 8 + header_bytes, file_bytes)


def _check_header(
    path: Path, header: dict[str, Any], data_offset: int, file_bytes: int
) -> dict[str, tuple[str, tuple[int, ...], int, int]]:
    header.pop("__metadata__", None)
    if len(header) > MAX_TENSORS:
        raise CorruptFileError(f"{path}: the header lists {len(header)} tensors, the limit is {MAX_TENSORS}")
    spans = [(*_check_tensor(path, name, info), name) for name, info in header.items()]
    out: dict[str, tuple[str, tuple[int, ...], int, int]] = {}
    position = 0
    for begin, end, dtype, shape, name in sorted(spans):
        if begin != position:
            fault = "overlaps the one before it" if begin < position else f"leaves a hole of {begin - position} bytes"
            raise CorruptFileError(f"{path}: tensor {name!r} begins at {begin} and {fault}")
        if data_offset + end > file_bytes:
            raise CorruptFileError(
                f"{path}: tensor {name!r} would end at byte {data_offset + end}, but the file has {file_bytes}: "
                "it is truncated or damaged; fetch it again"
            )
        out[name] = (dtype, shape, data_offset + begin, end - begin)
        position = end
    if data_offset + position != file_bytes:
        raise CorruptFileError(f"{path}: {file_bytes - data_offset - position} bytes after the last tensor")
    return out


def _check_tensor(path: Path, name: str, info: Any) -> tuple[int, int, str, tuple[int, ...]]:
    what = f"{path}: tensor {name!r}"
    if not isinstance(info, dict) or info.keys() != {"dtype", "shape", "data_offsets"}:
        raise CorruptFileError(f"{what}: its entry must have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = info["dtype"], info["shape"], info["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPE_BITS:
        raise CorruptFileError(f"{what} has the unknown dtype {str(dtype)[:40]!r}")
    if not isinstance(shape, list) or len(shape) > MAX_DIMS or not all(_is_size(dim) for dim in shape):
        raise CorruptFileError(f"{what} has the impossible shape {str(shape)[:80]}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_size(at) for at in offsets):
        raise CorruptFileError(f"{what} has impossible data_offsets {str(offsets)[:80]}")
    num_values = 1
    for dim in shape:
        num_values *= dim
        if num_values > MAX_TENSOR_VALUES:
            raise CorruptFileError(f"{what} has the impossible shape {str(shape)[:80]}")
    begin, end = offsets
    if begin > end or (end - begin) * 8 != num_values * _DTYPE_BITS[dtype]:
        raise CorruptFileError(f"{what}: data_offsets {begin}:{end} do not fit shape {shape} of {dtype}")
    return begin, end, dtype, tuple(shape)


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value <= 1 << 62


def _weight_files(path: Path) -> tuple[list[Path], dict[str, str] | None]:
    """The files in name order, and the index (tensor name -> file name) when there is one."""
    index_file = path / _INDEX
    if not is_there(index_file):
        if (path / _SINGLE).is_file():
            return [path / _SINGLE], None
        found = sorted(path.glob("*.safetensors"))
        if len(found) == 1:
            return found, None
        raise ModelNotFoundError(
            f"{path}: neither {_SINGLE} nor {_INDEX} is there"
            + ("; weights in .bin or .pth files are never opened" if any(path.glob("*.bin")) else "")
        )
    where = json_object(index_file).get("weight_map")
    if not isinstance(where, dict) or not where:
        raise MetadataError(f"{index_file}: key 'weight_map' is missing or empty")
    for name, shard in where.items():
        plain = isinstance(shard, str) and shard not in ("", ".", "..") and not any(c in shard for c in "/\\:\0")
        # The file system answers a longer name with an OSError.
        if not plain or not shard.endswith(".safetensors") or len(shard.encode("utf-8", "replace")) > _MAX_NAME_BYTES:
            raise CorruptFileError(
                f"{index_file}: tensor {name!r} lies in {str(shard)[:80]!r}, not in a plain file name"
            )
    shards = sorted(set(where.values()))
    if len(shards) > MAX_SHARDS:
        raise CorruptFileError(f"{index_file}: {len(shards)} shards, the limit is {MAX_SHARDS}")
    for shard in shards:
        if not (path / shard).is_file():
            raise CorruptFileError(f"{path / shard}: this shard is missing, though {_INDEX} lists it")
    return [path / shard for shard in shards], where


def _with_pooling(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """`config` with the settings that the sentence-transformers library puts beside a model."""
    pooling = path / "1_Pooling" / "config.json"
    return {**config, POOLING_KEY: json_object(pooling)} if is_there(pooling) else config


def _name(path: Path, config: Mapping[str, Any]) -> str:
    published = config.get("_name_or_path")
    return published if isinstance(published, str) and published else path.name
