"""Fuzz the tokenizers: metadata, `tokenizer.json`, text and ids. Only KamadoError may escape, and no byte is lost.

The first byte of an input says which; the rest is the data. Run as a script for a bounded time, or call `fuzz_one`.
"""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

from kamado.errors import KamadoError
from kamado.files.types import TokenizerSource
from kamado.text.tokenizer import Tokenizer, load_tokenizer
from kamado.text.tokenizer.pieces import byte_alphabet

_PATH = Path("fuzz.gguf")
_TEXT = "hello </s> 日本語\n\n  <|im_end|> 12 \u0301\x00"


def fuzz_one(data: bytes) -> None:
    """One input. Raises only for a fault of ours."""
    kind, rest = data[:1], data[1:]
    if kind == b"m":
        _metadata(rest)
    elif kind == b"j":
        _tokenizer_json(rest)
    elif kind == b"i":
        _ids(rest)
    else:
        _text(rest)


def _metadata(data: bytes) -> None:
    try:
        change = json.loads(data)
    except (ValueError, RecursionError):
        return
    if not isinstance(change, dict):
        return
    for base in _all_keys():
        keys = {f"tokenizer.ggml.{key}": value for key, value in (base | change).items()}
        try:
            tokenizer = load_tokenizer(TokenizerSource("gguf", keys, _PATH))
            for special in (False, True):
                tokenizer.decode(tokenizer.encode(_TEXT, special=special))
        except KamadoError:
            pass


def _tokenizer_json(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        path.write_bytes(data)
        try:
            tokenizer = load_tokenizer(TokenizerSource("hf", {}, path))
            tokenizer.decode(tokenizer.encode(_TEXT))
        except KamadoError:
            pass


def _text(data: bytes) -> None:
    for tokenizer in _tokenizers():
        for special in (False, True):
            ids = tokenizer.encode(data, special=special, add_bos=False)
            said = b"".join(map(tokenizer.token_bytes, ids))
            # SentencePiece's mark for a space, written in a text, reads back as a space.
            assert said == data or said == data.replace("\u2581".encode(), b" ")
        assert not tokenizer.special_ids & set(tokenizer.encode(data, add_bos=False))


def _ids(data: bytes) -> None:
    for tokenizer in _tokenizers():
        ids = [int.from_bytes(data[i : i + 2], "little") % (tokenizer.vocab_size + 2) for i in range(0, len(data), 2)]
        stream = tokenizer.stream()
        assert "".join([stream.push(i) for i in ids]) + stream.flush() == tokenizer.decode(ids)


def _bpe_keys() -> dict[str, Any]:
    tokens = [*byte_alphabet().values(), "he", "ll", "hell", "Ġh", "<|im_start|>", "<|im_end|>", "<tool>"]
    return {
        "model": "gpt2",
        "pre": "llama-bpe",
        "tokens": tokens,
        "token_type": [1] * (len(tokens) - 3) + [3, 3, 4],
        "merges": ["h e", "l l", "he ll", "Ġ h"],
        "bos_token_id": len(tokens) - 3,
        "eos_token_id": len(tokens) - 2,
    }


def _spm_keys() -> dict[str, Any]:
    words = ["\u2581", *"helo", "he", "ll", "\u2581he", "llo", "日本"]
    return {
        "model": "llama",
        "tokens": ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words],
        "scores": [0.0] * 259 + [-float(i % 4) for i in range(len(words))],
        "token_type": [2, 3, 3, *[6] * 256, *[1] * len(words)],
        "add_space_prefix": False,
    }


def _plamo_keys() -> dict[str, Any]:
    return _spm_keys() | {"model": "plamo2"}


def _marked_keys() -> dict[str, Any]:
    return _spm_keys() | {"model": "gemma4", "merges": ["h e", "l l", "\u2581 he", "ll o"]}


def _all_keys() -> tuple[dict[str, Any], ...]:
    return _bpe_keys(), _spm_keys(), _plamo_keys(), _marked_keys()


@functools.cache
def _tokenizers() -> tuple[Tokenizer, ...]:
    sources = [{f"tokenizer.ggml.{k}": v for k, v in keys.items()} for keys in _all_keys()]
    return tuple(load_tokenizer(TokenizerSource("gguf", source, _PATH)) for source in sources)


if __name__ == "__main__":
    from _loop import run

    fragments = (
        b'"tokens":',
        b"[",
        b"]",
        b"null",
        b'"pre":"qwen2"',
        b'"model":"bert"',
        b'"model":"t5"',
        b"1e999",
        b"-1",
    )
    run(
        "tokenizer",
        fuzz_one,
        (*fragments, b"</s>", b"<|im_end|>", b"\xff", b"\xf0\x9f", "\u2581".encode(), b'{"type":'),
    )
