"""Byte-level BPE from GGUF metadata gives the ids of the `tokenizers` package, which made the vocabulary."""

from __future__ import annotations

import functools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kamado.errors import UnsupportedError, UsageError
from kamado.text.tokenizer import Tokenizer
from kamado.text.tokenizer import rust as rust_module
from kamado.text.tokenizer.pretokenizers import PRE_TOKENIZERS

from .corpus import DECOMPOSED, INVALID_BYTES, TEXTS
from .models import bpe_as_gguf, gguf, tiny_bpe, trained_bpe

_ALL = TEXTS | DECOMPOSED
# One of each way of cutting words.
_WAYS = ["default", "gpt-2", "olmo", "smollm", "llama-bpe", "dbrx", "qwen2", "qwen35", "tekken", "gpt-4o", "falcon"]
_WAYS += ["command-r", "deepseek-llm", "deepseek-coder", "deepseek-v3"]


@functools.cache
def _pair(pre: str) -> tuple[Tokenizer, object]:
    rust = trained_bpe(pre)
    return gguf(**bpe_as_gguf(rust, pre)), rust


@pytest.mark.parametrize("pre", _WAYS)
def test_ids_are_those_of_the_trained_tokenizer(pre: str) -> None:
    ours, rust = _pair(pre)
    rust.encode_special_tokens = True
    for name, text in _ALL.items():
        assert ours.encode(text) == rust.encode(text).ids, name
    rust.encode_special_tokens = False
    for name, text in _ALL.items():
        assert ours.encode(text, special=True) == rust.encode(text).ids, name


@given(
    text=st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60),
    pre=st.sampled_from(["llama-bpe", "smollm"]),
)
@settings(deadline=None, max_examples=150)
def test_any_text_survives_and_matches(text: str, pre: str) -> None:
    ours, rust = _pair(pre)
    rust.encode_special_tokens = True
    ids = ours.encode(text)
    assert ids == rust.encode(text).ids
    assert ours.decode(ids, skip_special=False) == text


@given(st.binary(max_size=40))
def test_any_bytes_survive(data: bytes) -> None:
    tokenizer = _pair("llama-bpe")[0]
    assert b"".join(tokenizer.token_bytes(i) for i in tokenizer.encode(data)) == data


@pytest.mark.parametrize("name", INVALID_BYTES)
def test_invalid_utf8_is_kept_byte_by_byte(name: str) -> None:
    tokenizer = gguf(**tiny_bpe())
    data = INVALID_BYTES[name]
    ids = tokenizer.encode(data)
    assert b"".join(map(tokenizer.token_bytes, ids)) == data
    assert tokenizer.decode(ids) == data.decode("utf-8", "replace")
    assert tokenizer.encode(data.decode("utf-8", "surrogateescape")) == ids


def test_lone_surrogates_in_text() -> None:
    tokenizer = gguf(**tiny_bpe())
    assert tokenizer.decode(tokenizer.encode("a\ud83d\ude00b")) == "a😀b"  # a pair means its character
    assert tokenizer.decode(tokenizer.encode("a\ud83db")) == "a\ufffdb"  # half a pair means nothing


def test_special_tokens_are_text_unless_asked_for() -> None:
    tokenizer = gguf(**tiny_bpe())
    start, end = tokenizer.bos_id, tokenizer.eos_id
    text = "<|im_start|>hello<|im_end|>"
    plain = tokenizer.encode(text)
    assert not {start, end} & set(plain)
    assert tokenizer.decode(plain) == text
    assert tokenizer.encode(text, special=True) == [start, tokenizer.token_to_id("hello"), end]
    assert tokenizer.decode([start, *tokenizer.encode("hello"), end]) == "hello"
    assert tokenizer.decode([start], skip_special=False) == "<|im_start|>"


def test_user_defined_tokens_are_always_matched_the_longest_first() -> None:
    keys = tiny_bpe()
    keys["tokens"] = [*keys["tokens"], "<tool>s"]
    keys["token_type"] = [*keys["token_type"], 4]
    tokenizer = gguf(**keys)
    assert tokenizer.encode("<tool><tool>s") == [tokenizer.token_to_id("<tool>"), tokenizer.token_to_id("<tool>s")]


def test_a_whole_word_that_spells_a_control_token_stays_text() -> None:
    keys = tiny_bpe(pre="llama-bpe", add_bos_token=False)  # whole words are looked up first here
    keys["tokens"] = [*keys["tokens"], "secret"]
    keys["token_type"] = [*keys["token_type"], 3]
    tokenizer = gguf(**keys)
    secret = tokenizer.token_to_id("secret")
    assert secret in tokenizer.special_ids
    assert secret not in tokenizer.encode("secret")
    assert tokenizer.encode("secret", special=True) == [secret]


def test_end_of_turn_tokens_are_control_whatever_the_file_says() -> None:
    keys = tiny_bpe()
    keys["token_type"] = [1] * len(keys["tokens"])
    tokenizer = gguf(**keys)
    end = tokenizer.token_to_id("<|im_end|>")
    assert end in tokenizer.stop_ids
    assert end in tokenizer.special_ids
    assert end not in tokenizer.encode("<|im_end|>")


def test_bos_and_eos_rules() -> None:
    tokenizer = gguf(**tiny_bpe())
    bos, eos = tokenizer.bos_id, tokenizer.eos_id
    hello = tokenizer.encode("hello")
    assert not tokenizer.add_bos
    assert tokenizer.encode("hello", add_bos=True, add_eos=True) == [bos, *hello, eos]
    adding = gguf(**tiny_bpe(add_bos_token=True, add_eos_token=True))
    assert adding.add_bos
    assert adding.encode("hello") == [bos, *hello, eos]
    assert adding.encode("") == [bos, eos]
    assert adding.encode("<|im_start|>hello", special=True) == [bos, *hello, eos]  # not doubled
    assert adding.encode("<|im_start|>hello", special=True, add_bos=True) == [bos, bos, *hello, eos]  # asked for
    assert adding.encode("hello", add_bos=False, add_eos=False) == hello
    without = tiny_bpe()
    del without["bos_token_id"]
    assert gguf(**without).bos_id is None
    with pytest.raises(UsageError, match="no BOS"):
        gguf(**without).encode("hello", add_bos=True)


def test_defaults_follow_the_pre_tokenizer() -> None:
    assert gguf(**tiny_bpe(pre="llama-bpe")).add_bos
    assert gguf(**tiny_bpe(pre="tekken")).add_bos
    assert not gguf(**tiny_bpe(pre="qwen2")).add_bos


def test_unknown_pre_tokenizer_is_named() -> None:
    with pytest.raises(UnsupportedError, match=r"'brand-new' \(tokenizer\.ggml\.pre\)"):
        gguf(**tiny_bpe(pre="brand-new"))


@pytest.mark.parametrize("pre", sorted(PRE_TOKENIZERS))
def test_every_listed_pre_tokenizer_builds_and_keeps_text(pre: str) -> None:
    tokenizer = gguf(**tiny_bpe(pre=pre, add_bos_token=False))
    text = "Hello, wörld! 12345  x\n\n日本語 'll"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_end_token_lists() -> None:
    keys = tiny_bpe()
    keys["tokens"] = [*keys["tokens"], "</s>", "<|end|>", "<|return|>", "<|call|>", "<|eom_id|>", "<EOT>"]
    keys["token_type"] = [*keys["token_type"], 1, 3, 3, 3, 3, 3]
    keys["eot_token_id"] = keys["tokens"].index("hello")
    tokenizer = gguf(**keys)
    names = {keys["tokens"][i] for i in tokenizer.stop_ids}
    # "</s>" is an ordinary token here; "<|end|>" closes a message, not the turn, where "<|return|>" exists.
    assert names == {"<|im_end|>", "hello", "<|return|>", "<|call|>", "<|eom_id|>", "<EOT>"}


def test_chunks_cut_only_where_no_word_reaches_across() -> None:
    line = "for (int i = 0; i < n; ++i) { a[i] += b[i]; }\n"
    text = (line + "\n\n  " + line + "\t" + line) * 1500
    parts = list(rust_module.chunks(text))
    assert "".join(parts) == text
    assert len(parts) > 2
    for pre in ("llama-bpe", "smollm", "default"):
        ours, rust = _pair(pre)
        assert ours.encode(text) == rust.encode(text).ids


def test_a_long_line_is_cut_at_last() -> None:
    text = "A" * (2_500_000)
    parts = list(rust_module.chunks(text))
    assert "".join(parts) == text
    assert max(map(len, parts)) <= 1 << 20


@pytest.mark.slow
def test_one_word_of_a_million_letters() -> None:
    tokenizer = _pair("tekken")[0]
    for text in ("x" * 1_000_000, " " * 1_000_000, "\n" * 1_000_000, "\u0301" * 300_000, "A" * 3_000_000):
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("asks", [True, False])
def test_an_end_is_appended_as_the_file_asks_unless_told_otherwise(asks: bool) -> None:
    tokenizer = gguf(**tiny_bpe(add_eos_token=asks))
    end = [tokenizer.eos_id] if asks else []
    assert tokenizer.encode("hello") == [*tokenizer.encode("hello", add_eos=False), *end]
