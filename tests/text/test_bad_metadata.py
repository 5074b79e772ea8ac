"""Tokenizer data that is missing, contradictory or hostile: one error that names file and key, and no harm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kamado.errors import KamadoError, TokenizerError, UnsupportedError
from kamado.files.types import TokenizerSource
from kamado.text.tokenizer import load_tokenizer
from kamado.text.tokenizer.special import SpecialMatcher

from .models import gguf, gguf_source, tiny_bpe, tiny_marked, tiny_plamo, tiny_spm

_N = len(tiny_bpe()["tokens"])


@pytest.mark.parametrize(
    ("base", "change", "key", "what"),
    [
        (tiny_bpe, {"tokens": None}, "tokens", "is missing"),
        (tiny_bpe, {"tokens": []}, "tokens", "empty"),
        (tiny_bpe, {"tokens": "abc"}, "tokens", "not an array"),
        (tiny_bpe, {"tokens": [1, 2]}, "tokens", "int where strings"),
        (tiny_bpe, {"tokens": ["a", "b", "a"]}, "tokens", "'a' twice, as token 0 and 2"),
        (tiny_bpe, {"tokens": ["a", "\udcff"]}, "tokens", "not valid UTF-8"),
        (tiny_bpe, {"tokens": ["a" * 40_000]}, "tokens", "more than"),
        (tiny_bpe, {"token_type": [1, 1]}, "token_type", f"2 entries for {_N} tokens"),
        (tiny_bpe, {"token_type": [9] * _N}, "token_type", "unknown token type 9"),
        (tiny_bpe, {"token_type": ["x"] * _N}, "token_type", "whole numbers"),
        (tiny_bpe, {"token_type": 3}, "token_type", "not an array"),
        (tiny_bpe, {"merges": None}, "merges", "is missing"),
        (tiny_bpe, {"merges": ["h e", "nospace"]}, "merges", "entry 1, 'nospace'"),
        (tiny_bpe, {"merges": ["h zz"]}, "merges", "out of vocabulary"),
        (tiny_bpe, {"merges": ["h l"]}, "merges", "out of vocabulary"),
        (tiny_bpe, {"merges": [3]}, "merges", "int where strings"),
        (tiny_bpe, {"eos_token_id": _N}, "eos_token_id", f"is {_N}, outside"),
        (tiny_bpe, {"bos_token_id": -7}, "bos_token_id", "outside"),
        (tiny_bpe, {"bos_token_id": "1"}, "bos_token_id", "not a token id"),
        (tiny_bpe, {"eot_token_id": 1 << 40}, "eot_token_id", "outside"),
        (tiny_bpe, {"add_bos_token": 1}, "add_bos_token", "not a boolean"),
        (tiny_bpe, {"pre": 4}, "pre", "not a string"),
        (tiny_bpe, {"model": None}, "model", "is missing"),
        (tiny_spm, {"scores": None}, "scores", "is missing"),
        (tiny_spm, {"scores": [0.0]}, "scores", "1 entries for"),
        (tiny_spm, {"scores": [float("nan")] * len(tiny_spm()["tokens"])}, "scores", "no finite number"),
        (tiny_spm, {"scores": ["a"] * len(tiny_spm()["tokens"])}, "scores", "other than numbers"),
        (tiny_spm, {"add_space_prefix": "no"}, "add_space_prefix", "not a boolean"),
        (tiny_plamo, {"scores": None}, "scores", "is missing"),
        (tiny_plamo, {"token_type": [3] * 10 + tiny_plamo()["token_type"][10:]}, "tokens", "no byte token <0x00>"),
        (tiny_plamo, {"tokens": [*tiny_plamo()["tokens"][:-1], "x" * 1025]}, "tokens", "a token of 1025 characters"),
        (tiny_plamo, {"scores": [-1.0] * 265 + [214749.0]}, "scores", "214749 for token 265"),
        (tiny_marked, {"merges": None}, "merges", "is missing"),
        (tiny_marked, {"merges": ["h l"]}, "merges", "out of vocabulary"),
        (tiny_marked, {"bos_token_id": 1 << 20}, "bos_token_id", "outside"),
    ],
)  # fmt: skip
def test_the_key_is_named(base: Any, change: dict[str, Any], key: str, what: str) -> None:
    with pytest.raises(TokenizerError) as caught:
        gguf(**(base() | change))
    assert str(caught.value).startswith("model.gguf: ")
    assert f"tokenizer.ggml.{key}" in str(caught.value)
    assert what in str(caught.value)


def test_unknown_model_is_named() -> None:
    with pytest.raises(UnsupportedError, match=r"'rwkv' \(tokenizer\.ggml\.model\)"):
        gguf(**tiny_bpe(model="rwkv"))


def test_enormous_arrays_are_refused_before_they_are_read() -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer\.ggml\.tokens' has 5000000 entries"):
        gguf(**tiny_bpe(tokens=range(5_000_000)))


def test_arrays_may_be_numpy_and_metadata_stays_untouched() -> None:
    keys = tiny_spm()
    kinds = [1] * len(keys["tokens"])
    source = gguf_source(**keys | {"token_type": kinds, "scores": np.array(keys["scores"], np.float32)})
    load_tokenizer(source)
    load_tokenizer(gguf_source(**keys | {"token_type": np.array(keys["token_type"], np.int32)}))
    bpe = tiny_bpe(token_type=[1] * _N)
    load_tokenizer(gguf_source(**bpe))
    assert bpe["token_type"] == [1] * _N  # although "<|im_end|>" became a control token


def test_absent_ids_may_be_written_as_minus_one() -> None:
    assert gguf(**tiny_bpe(bos_token_id=0xFFFFFFFF)).bos_id is None
    assert gguf(**tiny_bpe(bos_token_id=-1)).bos_id is None


def test_empty_tokens_keep_their_place() -> None:
    keys = tiny_bpe()
    keys["tokens"] = [*keys["tokens"], ""]
    keys["token_type"] = [*keys["token_type"], 1]
    tokenizer = gguf(**keys)
    assert tokenizer.vocab_size == _N + 1
    assert tokenizer.decode(tokenizer.encode("hello")) == "hello"


_VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 300), st.floats(), st.text(max_size=4),
    st.lists(st.one_of(st.text(max_size=3), st.integers(-1, 8), st.floats()), max_size=6),
)  # fmt: skip
_KEYS = ["model", "pre", "tokens", "token_type", "scores", "merges", "bos_token_id", "eos_token_id", "add_bos_token"]
_KEYS += ["add_space_prefix", "unknown_token_id", "precompiled_charsmap", "remove_extra_whitespaces"]


@given(
    base=st.sampled_from([tiny_bpe, tiny_spm, tiny_plamo, tiny_marked]),
    model=st.sampled_from(["gpt2", "llama", "bert", "t5", "plamo2", "gemma4"]),
    change=st.dictionaries(st.sampled_from(_KEYS), _VALUES, max_size=3),
)
@settings(deadline=None, max_examples=300)
def test_only_our_errors_escape(base: Any, model: str, change: dict[str, Any]) -> None:
    try:
        tokenizer = gguf(**(base() | {"model": model} | change))
        tokenizer.decode(tokenizer.encode("hello </s> 日本 \x00", special=True))
    except KamadoError:
        pass


def test_special_matcher_takes_the_leftmost_and_longest() -> None:
    matcher = SpecialMatcher({"ab": 1, "abc": 2, "bcd": 3, "x": 4, "xx": 5})
    assert matcher.split("abcd") == [2, "d"]
    assert matcher.split("aab-bcd") == ["a", 1, "-", 3]
    assert matcher.split("xxx") == [5, 4]
    assert matcher.split("") == []
    assert SpecialMatcher({}).split("abc") == ["abc"]


@given(
    tokens=st.lists(st.text("ab.", min_size=1, max_size=4), min_size=1, max_size=6, unique=True),
    text=st.text("ab.", max_size=20),
)
def test_special_matcher_loses_nothing(tokens: list[str], text: str) -> None:
    pieces = SpecialMatcher({token: i for i, token in enumerate(tokens)}).split(text)
    assert "".join(piece if isinstance(piece, str) else tokens[piece] for piece in pieces) == text
    assert all(piece for piece in pieces if isinstance(piece, str))
    assert not any(token in piece for piece in pieces if isinstance(piece, str) for token in tokens)


def test_source_of_an_unknown_file(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer\.ggml\.model' is missing"):
        load_tokenizer(TokenizerSource("gguf", {}, tmp_path / "x.gguf"))
