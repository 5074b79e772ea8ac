"""Only regular files are opened, at once and by what they are; a byte order mark before JSON is no fault."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kamado.errors import CorruptFileError, KamadoError, TokenizerError
from kamado.files import open_checkpoint
from kamado.files.gguf import open_gguf
from kamado.files.plain_file import open_regular, parse_json_object, read_limited, read_text
from kamado.files.types import TokenizerSource
from kamado.text.tokenizer import load_tokenizer

from .builders import f32_entry, safetensors_bytes, write_hf

BOM = b"\xef\xbb\xbf"


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's name must be short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


KINDS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "fifo": (_fifo, "a FIFO|cannot be read"),
    "socket": (_socket, "a socket|cannot be read"),
    "directory": (Path.mkdir, "a directory|cannot be read"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "a device|cannot be read"),
    "dangling link": (lambda path: path.symlink_to("nowhere"), "cannot be read: No such file"),
}


def _within(seconds: float, work: Callable[[], Any]) -> BaseException | None:
    """What `work` raises; it must end in time."""
    raised: list[BaseException | None] = []

    def run() -> None:
        try:
            work()
            raised.append(None)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert raised, "it waits for something"
    return raised[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors", "odd.safetensors", "config.json", "generation_config.json", "tokenizer_config.json",
        "special_tokens_map.json", "added_tokens.json", "tokenizer.json", "chat_template.jinja", "chat_template.json",
        "additional_chat_templates/rag.jinja", "1_Pooling/config.json", "model.safetensors.index.json",
    ],
)  # fmt: skip
def test_every_file_of_a_directory(tmp_path: Path, name: str, kind: str) -> None:
    weights = safetensors_bytes({"a": f32_entry([1], 0, 4)}, bytes(4))
    write_hf(tmp_path, {"config.json": {"model_type": "llama"}, "model.safetensors": weights})
    (tmp_path / "model.safetensors").unlink() if name.endswith(".safetensors") else None
    (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    KINDS[kind][0](tmp_path / name)

    def work() -> None:
        checkpoint = open_checkpoint(tmp_path)
        assert checkpoint.tokenizer is not None
        load_tokenizer(checkpoint.tokenizer)

    error = _within(20, work)
    assert isinstance(error, KamadoError)
    assert str(tmp_path) in str(error)


@pytest.mark.parametrize("kind", KINDS)
def test_a_gguf_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "m.gguf"
    KINDS[kind][0](path)
    for opened in (lambda: open_checkpoint(path), lambda: open_gguf(path), lambda: open_regular(path).close()):
        assert isinstance(_within(20, opened), KamadoError | OSError)
    assert isinstance(_within(20, lambda: open_gguf(path)), CorruptFileError)


def test_a_tokenizer_alone(tmp_path: Path) -> None:
    _fifo(tmp_path / "tokenizer.json")
    source = TokenizerSource("hf", {}, tmp_path / "tokenizer.json")
    assert isinstance(_within(20, lambda: load_tokenizer(source)), TokenizerError)


def test_the_native_executor_does_not_wait_either(tmp_path: Path) -> None:
    from native_programs import dense

    from kamado.lower import build_executor

    program = dense(tmp_path / "weights.bin", layers=1)
    (tmp_path / "weights.bin").unlink()
    _fifo(tmp_path / "weights.bin")
    error = _within(
        20,
        lambda: build_executor(
            program, num_threads=1, max_rows=8, max_logit_rows=8, max_kv_tokens=128, max_sequences=1, kv="f16"
        ),
    )
    assert "not a regular file" in str(error)


def test_limits_are_asked_before_anything_is_read(tmp_path: Path) -> None:
    path = tmp_path / "big.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(CorruptFileError, match="larger than the limit of 64 bytes"):
        read_limited(path, 64)


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    names = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json")
    contents: dict[str, Any] = {
        "config.json": {"model_type": "llama"},
        "generation_config.json": {"temperature": 0.5},
        "tokenizer_config.json": {"chat_template": "x"},
        "special_tokens_map.json": {"eos_token": "</s>"},
        "added_tokens.json": {"</s>": 0},
        "chat_template.json": {"chat_template": "from json"},
        "1_Pooling/config.json": {"pooling_mode_cls_token": True},
        "model.safetensors.index.json": {"weight_map": {"a": "a.safetensors"}},
    }
    files: dict[str, Any] = {name: BOM + json.dumps(value).encode() for name, value in contents.items()}
    files["chat_template.jinja"] = BOM + b"from jinja"
    files["a.safetensors"] = safetensors_bytes({"a": f32_entry([1], 0, 4)}, bytes(4))
    checkpoint = open_checkpoint(write_hf(tmp_path, files))
    assert checkpoint.sampling == {"temperature": 0.5}
    assert checkpoint.chat_template == "from jinja"
    assert all(name in files for name in names)
    assert read_text(tmp_path / "chat_template.jinja", 99) == "from jinja"
    with pytest.raises(CorruptFileError, match="not valid JSON"):
        parse_json_object(BOM + BOM + b"{}", tmp_path)


def test_a_tokenizer_with_a_byte_order_mark(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    path = tmp_path / "tokenizer.json"
    path.write_bytes(BOM + Tokenizer(models.WordLevel({"one": 0, "?": 1}, unk_token="?")).to_str().encode())
    assert load_tokenizer(TokenizerSource("hf", {}, path)).encode("one") == [0]
