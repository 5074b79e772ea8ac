"""Streaming: whole characters only, and the pieces joined are the decoded text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kamado.errors import TokenizerError
from kamado.text.tokenizer import Tokenizer

from .corpus import DECOMPOSED, TEXTS
from .models import gguf, tiny_bpe, tiny_spm

_TOKENIZERS = {
    "bpe": gguf(**tiny_bpe()),
    "spm": gguf(**tiny_spm()),
    "spm_bare": gguf(**tiny_spm(add_space_prefix=False)),
}


def _streamed(tokenizer: Tokenizer, ids: list[int], *, skip_special: bool = True) -> str:
    stream = tokenizer.stream(skip_special=skip_special)
    return "".join([stream.push(i) for i in ids]) + stream.flush()


@pytest.mark.parametrize("kind", _TOKENIZERS)
@given(data=st.data(), skip_special=st.booleans())
@settings(deadline=None)
def test_any_ids_joined_are_the_decoded_text(kind: str, data: st.DataObject, skip_special: bool) -> None:
    tokenizer = _TOKENIZERS[kind]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 3), max_size=30))
    assert _streamed(tokenizer, ids, skip_special=skip_special) == tokenizer.decode(ids, skip_special=skip_special)


@pytest.mark.parametrize("kind", _TOKENIZERS)
def test_no_half_characters(kind: str) -> None:
    tokenizer = _TOKENIZERS[kind]
    for name, text in (TEXTS | DECOMPOSED).items():
        if "\ufffd" in text or "\u2581" in text:
            continue
        stream = tokenizer.stream()
        pieces = [stream.push(i) for i in tokenizer.encode(text)]
        assert not any("\ufffd" in piece for piece in pieces), name
        assert "".join(pieces) == text, name
        assert stream.flush() == "", name


def test_a_character_comes_with_its_last_byte() -> None:
    tokenizer = _TOKENIZERS["spm_bare"]
    stream = tokenizer.stream()
    ids = tokenizer.encode("日😀", add_bos=False)
    assert [stream.push(i) for i in ids] == ["", "", "日", "", "", "", "😀"]


def test_bytes_that_cannot_be_completed() -> None:
    tokenizer = _TOKENIZERS["spm_bare"]
    byte = {value: tokenizer.token_to_id(f"<0x{value:02X}>") for value in range(256)}
    stream = tokenizer.stream()
    assert stream.push(byte[0xE6]) == ""
    assert stream.push(byte[0x97]) == ""
    assert stream.push(byte[0x41]) == "\ufffdA"  # now certain
    assert stream.push(byte[0xFF]) == "\ufffd"  # never valid
    assert stream.push(byte[0xF0]) == ""
    assert stream.flush() == "\ufffd"


def test_token_bytes_and_ids_outside_the_vocabulary() -> None:
    tokenizer = _TOKENIZERS["bpe"]
    assert tokenizer.token_bytes(tokenizer.token_to_id("Ġhello")) == b" hello"
    assert tokenizer.token_bytes(tokenizer.vocab_size) == b""  # a row that pads the embedding
    assert tokenizer.token_to_id("no such token") is None
    with pytest.raises(TokenizerError, match="negative"):
        tokenizer.decode([-1])


def test_unused_tokens_say_nothing() -> None:
    keys = tiny_bpe()
    keys["tokens"] = [*keys["tokens"], "[PAD262]"]
    keys["token_type"] = [*keys["token_type"], 5]
    tokenizer = gguf(**keys)
    assert tokenizer.token_bytes(tokenizer.vocab_size - 1) == b""
