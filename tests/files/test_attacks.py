"""Hostile headers, each with the one sentence it must get, and none with memory that its bytes do not justify."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import pytest

from kamado.errors import KamadoError
from kamado.files import open_checkpoint

from .builders import ARCHITECTURE, f32_entry, gguf_bytes, key_value, safetensors_bytes, tensor_info, text, write_hf

HUGE = 1 << 60
_ARRAY = struct.Struct("<IQ")


def _array(item_type: int, count: int, raw: bytes = b"") -> bytes:
    return key_value("k", 9, _ARRAY.pack(item_type, count) + raw)


def _nested(depth: int) -> bytes:
    return key_value("k", 9, _ARRAY.pack(9, 1) * depth + _ARRAY.pack(0, 0))


GGUF_ATTACKS = {
    "empty": (b"", "not a GGUF file"),
    "other magic": (b"GGML" + bytes(40), "not a GGUF file: it begins with b'GGML'"),
    "only magic": (b"GGUF", "the header would end at byte 8"),
    "version 1": (gguf_bytes(version=1), "GGUF version 1; this version of Kamado reads 2 and 3"),
    "big-endian": (gguf_bytes(version=0x03000000), "this GGUF file is big-endian"),
    "2^60 tensors": (gguf_bytes(num_tensors=HUGE), "the header claims 1152921504606846976 tensors"),
    "2^60 keys": (gguf_bytes(num_key_values=HUGE), "the header claims 1152921504606846976 keys"),
    "keys not there": (gguf_bytes(num_key_values=9), "metadata key 1 is empty"),
    "2^60 byte key": (gguf_bytes([struct.pack("<Q", HUGE)]), "metadata key 0 claims 1152921504606846976 bytes"),
    "key no UTF-8": (gguf_bytes([text(b"\xff") + struct.pack("<IB", 0, 0)]), "metadata key 0 is not valid UTF-8"),
    "key twice": (gguf_bytes([ARCHITECTURE, ARCHITECTURE]), "metadata key 'general.architecture' appears twice"),
    "value type 13": (gguf_bytes([key_value("k", 13, b"")]), "metadata key 'k' has value type 13"),
    "bool of 2": (gguf_bytes([key_value("k", 7, b"\2")]), "metadata key 'k' is a bool of value 2"),
    "2^60 byte text": (gguf_bytes([key_value("k", 8, struct.pack("<Q", HUGE))]), "'k' claims 11529215046068469"),
    "text past the end": (gguf_bytes([key_value("k", 8, struct.pack("<Q", 999))]), "'k' would end at byte"),
    "2^60 numbers": (gguf_bytes([_array(6, HUGE)]), "'k' claims 1152921504606846976 items"),
    "numbers past the end": (gguf_bytes([_array(6, 1 << 22)]), "'k' would end at byte"),
    "2^60 words": (gguf_bytes([_array(8, HUGE)]), "'k' claims 1152921504606846976 items"),
    "words past the end": (gguf_bytes([_array(8, 1 << 22)]), "'k' would end at byte"),
    "a word past the end": (gguf_bytes([_array(8, 2, text("a") + struct.pack("<Q", HUGE))]), "'k' would end at byte"),
    "arrays in arrays": (gguf_bytes([_nested(4)]), "'k' nests arrays deeper than 3"),
    "many empty arrays": (gguf_bytes([_array(9, 4096)]), "'k' would end at byte"),
    "two million empty arrays, all there": (
        gguf_bytes([_array(9, 2_000_000, _ARRAY.pack(0, 0) * 2_000_000)]), "'k' claims 2000000 arrays in an array"
    ),
    "empty arrays in arrays": (
        gguf_bytes([_array(9, 1000, (_ARRAY.pack(9, 1000) + _ARRAY.pack(0, 0) * 1000) * 1000)]), "arrays in an array"
    ),
    "a bool of 7 among many": (gguf_bytes([_array(7, 3, bytes((0, 1, 7)))]), "'k' is a bool of value 7"),
    "items of all arrays": (
        gguf_bytes([key_value(f"k{i}", 9, _ARRAY.pack(0, 1 << 22) + bytes(1 << 22)) for i in range(3)]),
        "'k2' claims 4194304 items",
    ),
    "no architecture": (gguf_bytes([]), "metadata key 'general.architecture' is missing"),
    "alignment 0": (gguf_bytes([key_value("general.alignment", 4, bytes(4))]), "'general.alignment' is 0"),
    "alignment 2^31": (
        gguf_bytes([key_value("general.alignment", 4, struct.pack("<I", 1 << 31))]),
        "'general.alignment' is 2147483648",
    ),
    "0 dimensions": (gguf_bytes(tensors=[tensor_info("t", ())]), "tensor 't' has 0 dimensions"),
    "2^31 dimensions": (gguf_bytes(tensors=[tensor_info("t", (), num_dims=1 << 31)]), "has 2147483648 dimensions"),
    "dimension of 0": (gguf_bytes(tensors=[tensor_info("t", (4, 0))]), "tensor 't' has the impossible shape (0, 4)"),
    "product wraps to 0": (gguf_bytes(tensors=[tensor_info("t", (1 << 32, 1 << 32))]), "the impossible shape"),
    "product wraps to 4": (gguf_bytes(tensors=[tensor_info("t", ((1 << 62) + 1, 4))]), "the impossible shape"),
    "unknown type": (gguf_bytes(tensors=[tensor_info("t", (4,), type_id=77)]), "'t' is stored as type 77"),
    "part of a block": (gguf_bytes(tensors=[tensor_info("t", (48,), type_id=8)]), "rows of 48 values, not a whole"),
    "tensor past the end": (gguf_bytes(tensors=[tensor_info("t", (8,))]), "tensor 't' would end at byte"),
    "offset wraps": (
        gguf_bytes(tensors=[tensor_info("t", (8,), offset=(1 << 64) - 32)], data=bytes(64)),
        "tensor 't' would end at byte 184467440737095",
    ),
    "offset askew": (gguf_bytes(tensors=[tensor_info("t", (8,), offset=4)], data=bytes(64)), "lies at offset 4"),
    "overlap": (
        gguf_bytes(tensors=[tensor_info("t", (16,)), tensor_info("u", (8,), offset=32)], data=bytes(96)),
        "tensors 't' and 'u' overlap",
    ),
    "tensor twice": (
        gguf_bytes(tensors=[tensor_info("t", (8,)), tensor_info("t", (8,), offset=32)], data=bytes(64)),
        "tensor 't' appears twice",
    ),
    "2^60 byte name": (
        gguf_bytes(tensors=[struct.pack("<Q", HUGE)]), "the name of tensor 0 claims 1152921504606846976 bytes"
    ),
    "2^31 shards": (
        gguf_bytes([ARCHITECTURE, key_value("split.count", 4, struct.pack("<I", 1 << 31))]),
        "'split.count' is 2147483648, more than the limit",
    ),
}  # fmt: skip

SAFETENSORS_ATTACKS = {
    "empty": (b"", "0 bytes are too few"),
    "2^60 byte header": (safetensors_bytes({}, header_bytes=HUGE), "the header claims 11529215046068469"),
    "header past the end": (safetensors_bytes({}, header_bytes=99), "the header claims 99 bytes, the file has 10"),
    "no JSON": (safetensors_bytes(b"{nope"), "not valid JSON"),
    "no UTF-8": (safetensors_bytes(b'{"\xff": 1}'), "not valid JSON"),
    "a list": (safetensors_bytes([]), "must hold a JSON object"),
    "deep JSON": (safetensors_bytes(b'{"a":' + b"[" * 100_000), "not valid JSON"),
    "huge number": (safetensors_bytes(b'{"a":' + b"9" * 10_000 + b"}"), "not valid JSON"),
    "key twice": (safetensors_bytes(b'{"a": 1, "a": 2}'), "key 'a' appears twice"),
    "extra field": (safetensors_bytes({"a": f32_entry([1], 0, 4) | {"x": 1}}, bytes(4)), "must have exactly dtype"),
    "unknown dtype": (safetensors_bytes({"a": f32_entry([1], 0, 4, "F31")}, bytes(4)), "the unknown dtype 'F31'"),
    "negative size": (safetensors_bytes({"a": f32_entry([-1, -1], 0, 4)}, bytes(4)), "the impossible shape [-1, -1]"),
    "fractional size": (safetensors_bytes({"a": f32_entry([1.0], 0, 4)}, bytes(4)), "the impossible shape [1.0]"),
    "true as size": (safetensors_bytes({"a": f32_entry([True], 0, 4)}, bytes(4)), "the impossible shape [True]"),
    "product overflows": (safetensors_bytes({"a": f32_entry([HUGE, 16], 0, 0)}), "the impossible shape"),
    "many dimensions": (safetensors_bytes({"a": f32_entry([1] * 9, 0, 4)}, bytes(4)), "the impossible shape"),
    "size and shape differ": (safetensors_bytes({"a": f32_entry([2], 0, 4)}, bytes(4)), "0:4 do not fit shape [2]"),
    "backwards": (safetensors_bytes({"a": f32_entry([1], 8, 4)}, bytes(8)), "8:4 do not fit"),
    "past the end": (safetensors_bytes({"a": f32_entry([4], 0, 16)}, bytes(8)), "'a' would end at byte"),
    "overlap": (
        safetensors_bytes({"a": f32_entry([2], 0, 8), "b": f32_entry([1], 4, 8)}, bytes(8)),
        "'b' begins at 4 and overlaps the one before it",
    ),
    "hole": (
        safetensors_bytes({"a": f32_entry([1], 0, 4), "b": f32_entry([1], 8, 12)}, bytes(12)),
        "'b' begins at 8 and leaves a hole of 4 bytes",
    ),
    "bytes behind": (safetensors_bytes({"a": f32_entry([1], 0, 4)}, bytes(9)), "5 bytes after the last tensor"),
    "no dictionary": (safetensors_bytes({"a": [1, 2]}), "must have exactly dtype"),
}  # fmt: skip


def _refused(path: Path, message: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(KamadoError) as caught:
            open_checkpoint(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert peak < max(4 << 20, 10 * path.stat().st_size)  # a byte may become a reference of eight


@pytest.mark.parametrize("attack", GGUF_ATTACKS)
def test_hostile_gguf(tmp_path: Path, attack: str) -> None:
    data, message = GGUF_ATTACKS[attack]
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    _refused(path, message)


@pytest.mark.parametrize("attack", SAFETENSORS_ATTACKS)
def test_hostile_safetensors(tmp_path: Path, attack: str) -> None:
    data, message = SAFETENSORS_ATTACKS[attack]
    _refused(write_hf(tmp_path, {"config.json": {"model_type": "llama"}, "model.safetensors": data}), message)


INDEX = "model.safetensors.index.json"
DIRECTORY_ATTACKS = {
    "leaves the directory": ({INDEX: {"weight_map": {"a": "../x.safetensors"}}}, "not in a plain file name"),
    "absolute path": ({INDEX: {"weight_map": {"a": "/etc/x.safetensors"}}}, "not in a plain file name"),
    "backslash": ({INDEX: {"weight_map": {"a": "..\\x.safetensors"}}}, "not in a plain file name"),
    "a pickle": ({INDEX: {"weight_map": {"a": "x.bin"}}}, "not in a plain file name"),
    "no name": ({INDEX: {"weight_map": {"a": 5}}}, "not in a plain file name"),
    "no map": ({INDEX: {"weight_map": []}}, "'weight_map' is missing or empty"),
    "shard missing": ({INDEX: {"weight_map": {"a": "x.safetensors"}}}, "x.safetensors: this shard is missing"),
    "tensor missing": (
        {INDEX: {"weight_map": {"a": "x.safetensors"}}, "x.safetensors": safetensors_bytes({})},
        "tensor 'a' is missing",
    ),
    "tensor elsewhere": (
        {INDEX: {"weight_map": {"b": "x.safetensors"}},
         "x.safetensors": safetensors_bytes({"a": f32_entry([1], 0, 4)}, bytes(4))},
        "tensor 'a' is not where",
    ),
    "only pickles": ({"pytorch_model.bin": b"\x80"}, "weights in .bin or .pth files are never opened"),
    "no model type": ({"config.json": {}, "model.safetensors": safetensors_bytes({})}, "'model_type' is missing"),
    "config no JSON": ({"config.json": "{", "model.safetensors": safetensors_bytes({})}, "not valid JSON"),
    "sampling no number": (
        {"generation_config.json": {"temperature": "hot"}, "model.safetensors": safetensors_bytes({})},
        "key 'temperature' must be a number",
    ),
    "template no text": (
        {"tokenizer_config.json": {"chat_template": 5}, "model.safetensors": safetensors_bytes({})},
        "key 'chat_template' must be text",
    ),
}  # fmt: skip


@pytest.mark.parametrize("attack", DIRECTORY_ATTACKS)
def test_hostile_directory(tmp_path: Path, attack: str) -> None:
    files, message = DIRECTORY_ATTACKS[attack]
    _refused(write_hf(tmp_path / "m", {"config.json": {"model_type": "llama"}, **files}), message)
