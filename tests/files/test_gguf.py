"""GGUF files: what a well-formed one becomes, single and split, and what the reference reader makes of it."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kamado.errors import (
    CorruptFileError,
    KamadoError,
    MetadataError,
    MissingTensorError,
    ModelNotFoundError,
    UnsupportedError,
)
from kamado.files import open_checkpoint
from kamado.files.gguf_writer import GgufWriter
from kamado.files.types import Layout

from .builders import ARCHITECTURE, gguf_bytes, key_value, tensor_info, text, tokenizer_metadata, write_gguf


def test_tensors_lie_where_the_file_has_them(tmp_path: Path) -> None:
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.full((2, 1, 4), 7, np.float32)}
    checkpoint = open_checkpoint(write_gguf(tmp_path / "m.gguf", {"llama.block_count": 1}, arrays))
    assert checkpoint.architecture == "llama"
    assert checkpoint.format == "gguf"
    assert checkpoint.metadata["llama.block_count"] == 1
    assert checkpoint.weight_bytes == 24 + 32
    for name, array in arrays.items():
        ref = checkpoint.tensor(name, array.shape)
        assert ref.layout is Layout.F32
        assert np.array_equal(
            np.fromfile(ref.file, np.float32, array.size, offset=ref.offset).reshape(ref.shape), array
        )
    with pytest.raises(MissingTensorError, match=r"'b' has shape \(2, 1, 4\), the model needs \(2, any, 5\)"):
        checkpoint.tensor("b", (2, None, 5))
    assert not checkpoint.has("c")


def test_every_value_type_is_read(tmp_path: Path) -> None:
    values = {
        "u8": (0, b"\xff", 255), "i8": (1, b"\xff", -1), "u16": (2, b"\xff\xff", 65535), "i16": (3, b"\xfe\xff", -2),
        "u32": (4, struct.pack("<I", 2**32 - 1), 2**32 - 1), "i32": (5, struct.pack("<i", -5), -5),
        "f32": (6, struct.pack("<f", 0.5), 0.5), "bool": (7, b"\x01", True), "string": (8, text("ü"), "ü"),
        "u64": (10, struct.pack("<Q", 2**63), 2**63), "i64": (11, struct.pack("<q", -1), -1),
        "f64": (12, struct.pack("<d", 0.1), 0.1),
        "numbers": (9, struct.pack("<IQ3h", 3, 3, 1, -2, 3), [1, -2, 3]),
        "flags": (9, struct.pack("<IQ", 7, 2) + b"\x00\x01", [False, True]),
        "nested": (9, struct.pack("<IQ", 9, 2) + 2 * struct.pack("<IQ2B", 0, 2, 4, 5), [[4, 5], [4, 5]]),
        "words": (9, struct.pack("<IQ", 8, 2) + text("a") + text(""), ["a", ""]),
    }  # fmt: skip
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes([ARCHITECTURE, *(key_value(k, kind, raw) for k, (kind, raw, _) in values.items())]))
    metadata = open_checkpoint(path).metadata
    for key, (_, _, expected) in values.items():
        assert metadata[key] == expected, key
        assert type(metadata[key]) is type(expected), key


def test_pieces_of_characters_in_a_vocabulary_survive(tmp_path: Path) -> None:
    raw = struct.pack("<IQ", 8, 2) + text(b"\xe3\x81") + text("か")
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes([ARCHITECTURE, key_value("tokenizer.ggml.tokens", 9, raw)]))
    tokens = open_checkpoint(path).metadata["tokenizer.ggml.tokens"]
    assert [token.encode("utf-8", "surrogateescape") for token in tokens] == [b"\xe3\x81", "か".encode()]


def test_header_longer_than_one_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kamado.files.gguf_header._FIRST_READ_BYTES", 40)
    words = [f"word {i}" * (i % 5) for i in range(300)]
    path = write_gguf(tmp_path / "m.gguf", {"words": words, "numbers": list(range(99)), "long": "x" * 5000})
    metadata = open_checkpoint(path).metadata
    assert (metadata["words"], metadata["numbers"], len(metadata["long"])) == (words, list(range(99)), 5000)


def test_tokenizer_templates_sampling_and_name(tmp_path: Path) -> None:
    metadata = tokenizer_metadata() | {
        "general.name": "Tiny", "general.sampling.temp": 0.5, "general.sampling.top_k": 20,
        "general.sampling.penalty_repeat": 1.25, "tokenizer.chat_template": "{{ x }}",
        "tokenizer.chat_template.tool_use": "{{ y }}",
    }  # fmt: skip
    checkpoint = open_checkpoint(write_gguf(tmp_path / "m.gguf", metadata))
    assert checkpoint.tokenizer is not None
    assert checkpoint.tokenizer.kind == "gguf"
    assert checkpoint.tokenizer.data["tokenizer.ggml.bos_token_id"] == 1
    assert checkpoint.chat_template == "{{ x }}"
    assert checkpoint.chat_templates == {"tool_use": "{{ y }}"}
    assert checkpoint.sampling == {"temperature": 0.5, "top_k": 20, "repetition_penalty": 1.25}
    assert checkpoint.name == "Tiny"
    assert open_checkpoint(write_gguf(tmp_path / "bare.gguf")).tokenizer is None


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("general.sampling.temp", "hot", "'general.sampling.temp' must be a number, it is 'hot'"),
        ("general.sampling.top_p", float("nan"), "'general.sampling.top_p' must be a number, it is nan"),
        ("tokenizer.chat_template", 3, "'tokenizer.chat_template' must be text, it is 3"),
        ("general.architecture", 5, "'general.architecture' must be text, it is 5"),
        ("general.alignment", 48, "'general.alignment' is 48; it must be a power of two"),
        ("split.count", "two", "'split.count' must be an integer"),
    ],
)
def test_wrong_metadata_names_key_and_file(tmp_path: Path, key: str, value: object, message: str) -> None:
    path = write_gguf(tmp_path / "m.gguf", {key: value})
    with pytest.raises(MetadataError, match=message) as caught:
        open_checkpoint(path)
    assert str(path) in str(caught.value)


def test_unsupported_layouts_are_refused_when_asked_for(tmp_path: Path) -> None:
    infos = [tensor_info("a", (2,)), tensor_info("ids", (4,), type_id=26, offset=32)]
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes(tensors=infos, data=bytes(64)))
    checkpoint = open_checkpoint(path)
    assert list(checkpoint.tensors) == ["a"]
    for ask in (checkpoint.tensor, checkpoint.has):
        with pytest.raises(UnsupportedError, match="'ids' is stored as I32, which this version cannot run"):
            ask("ids")


def split_model(directory: Path, count: int = 3) -> list[Path]:
    """Shards with one tensor each."""
    paths = []
    for i in range(count):
        metadata = {"split.no": i, "split.count": count, "split.tensors.count": count}
        path = directory / f"m-{i + 1:05d}-of-{count:05d}.gguf"
        paths.append(write_gguf(path, metadata, {f"t{i}": np.full((2, 2), i, np.float32)}))
    return paths


def test_split_model_opens_by_any_shard(tmp_path: Path) -> None:
    paths = split_model(tmp_path)
    for named in (*paths, tmp_path):
        checkpoint = open_checkpoint(named)
        assert checkpoint.files == tuple(paths)
        assert {name: ref.file for name, ref in checkpoint.tensors.items()} == {f"t{i}": p for i, p in enumerate(paths)}


def test_split_model_faults(tmp_path: Path) -> None:
    paths = split_model(tmp_path)
    paths[1].rename(tmp_path / "away")
    with pytest.raises(CorruptFileError, match=r"m-00002-of-00003\.gguf: shard 2 of 3 is missing"):
        open_checkpoint(paths[0])
    paths[1].write_bytes(paths[2].read_bytes())
    with pytest.raises(CorruptFileError, match="its metadata says shard 3 of 3, its name says 2 of 3"):
        open_checkpoint(paths[0])
    write_gguf(paths[1], {"split.no": 1, "split.count": 3}, {"t0": np.zeros((1, 1), np.float32)})
    with pytest.raises(CorruptFileError, match="'t0' is in an earlier shard too"):
        open_checkpoint(paths[2])
    write_gguf(paths[1], {"split.no": 1, "split.count": 3}, {})
    with pytest.raises(CorruptFileError, match=r"the shards hold 2 tensors, 'split\.tensors\.count' says 3"):
        open_checkpoint(paths[2])
    lone = paths[0].rename(tmp_path / "renamed.gguf")
    with pytest.raises(CorruptFileError, match="this is one of 3 shards, so its name must end in"):
        open_checkpoint(lone)


def test_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no such file"):
        open_checkpoint(tmp_path / "none.gguf")
    with pytest.raises(CorruptFileError, match="neither config.json"):
        open_checkpoint(tmp_path)
    write_gguf(tmp_path / "a.gguf")
    assert open_checkpoint(tmp_path).files == (tmp_path / "a.gguf",)
    write_gguf(tmp_path / "b.gguf")
    with pytest.raises(UnsupportedError, match=r"several GGUF models \(a\.gguf, b\.gguf\)"):
        open_checkpoint(tmp_path)


def test_every_truncation_is_one_clear_error(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "m.gguf", {"words": ["a", "bc"], "on": True}).read_bytes()
    path = tmp_path / "cut.gguf"
    for length in range(len(whole) - 8):  # the last 8 bytes are padding
        path.write_bytes(whole[:length])
        with pytest.raises(KamadoError, match=r"cut\.gguf: "):
            open_checkpoint(path)


def test_writer_and_reference_reader_agree(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    metadata = tokenizer_metadata() | {"i": -3, "f": 2.5, "big": 2**40, "flags": [True, False], "empty": "", "u": "竈"}
    path = write_gguf(tmp_path / "m.gguf", metadata, {"x": np.ones((3, 5), np.float32), "y": np.zeros(7, np.float32)})
    assert_like_reference(gguf, path)


def test_reference_writer_and_reader_agree(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_sampling_temp(0.25)
    writer.add_chat_template([{"name": "default", "template": "d"}, {"name": "rag", "template": "r"}])
    writer.add_tensor("w", np.arange(64, dtype=np.float16).reshape(2, 32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert_like_reference(gguf, path)
    checkpoint = open_checkpoint(path)
    assert checkpoint.sampling == {"temperature": 0.25}
    assert (checkpoint.chat_template, dict(checkpoint.chat_templates)) == ("d", {"rag": "r"})


@pytest.mark.real
@pytest.mark.parametrize("name", ["smollm2:135m", "gemma3:270m", "qwen2.5-coder:1.5b"])
def test_real_files_read_like_the_reference(name: str, real_model: Callable[[str], Path]) -> None:
    assert_like_reference(pytest.importorskip("gguf"), real_model(name))


def assert_like_reference(gguf: object, path: Path) -> None:
    """All keys and tensors as the gguf package has them."""
    reader = gguf.GGUFReader(path)  # type: ignore[attr-defined]
    checkpoint = open_checkpoint(path)
    theirs = {name: f.contents() for name, f in reader.fields.items() if not name.startswith("GGUF.")}
    assert dict(checkpoint.metadata) == theirs
    assert [(t.name, t.shape, int(t.layout), t.offset, t.nbytes) for t in checkpoint.tensors.values()] == [
        (t.name, tuple(int(d) for d in t.shape[::-1]), int(t.tensor_type), int(t.data_offset), int(t.n_bytes))
        for t in reader.tensors
    ]


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    writer = GgufWriter("llama")
    writer.add_tensor("a", (2, 2), Layout.F32)
    with pytest.raises(RuntimeError, match="stop"), writer.open(tmp_path / "m.gguf") as sink:
        sink.write("a", np.zeros(2, np.float32))
        raise RuntimeError("stop")
    with pytest.raises(AssertionError, match="1 tensors were not written"), writer.open(tmp_path / "m.gguf"):
        pass
    assert list(tmp_path.iterdir()) == []
