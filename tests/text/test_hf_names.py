"""The small files beside `tokenizer.json`: which of them counts, and tokens that only they have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models, pre_tokenizers

from kamado.errors import KamadoError, TokenizerError
from kamado.files.types import TokenizerSource
from kamado.text.tokenizer import Tokenizer, load_tokenizer

_SIZE = 300  # ids below are tokens


def _load(folder: Path, **files: Any) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*alphabet, *(f"<{i}>" for i in range(_SIZE - len(alphabet)))])}
    rust = RustTokenizer(models.BPE(vocab, []))
    rust.pre_tokenizer, rust.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    rust.add_special_tokens(["<0>", "<1>"])
    rust.add_tokens(["<2>"])
    path = folder / "tokenizer.json"
    rust.save(str(path))
    return load_tokenizer(TokenizerSource("hf", {f"{name}.json": data for name, data in files.items()}, path))


@pytest.mark.parametrize(
    ("files", "stops"),
    [
        ({"config": {"eos_token_id": [1, 34]}}, {1, 34}),  # mlx-lm#1414, mlx-vlm#309
        ({"config": {"eos_token_id": 34}}, {34}),
        ({"config": {"eos_token_id": [1, 34]}, "generation_config": {"eos_token_id": 5}}, {5}),
        ({"config": {"eos_token_id": [1, 34]}, "generation_config": {"temperature": 1.0}}, {1, 34}),
        ({"config": {"eos_token_id": 1}, "generation_config": {"eos_token_id": None}}, {1}),
        ({"generation_config": {"eos_token_id": [5, 6]}}, {5, 6}),
        ({"generation_config": {"eos_token_id": -1}}, set()),
        ({"config": {"eos_token_id": [1, 10**9, -1]}}, {1}),
        ({}, set()),
    ],
)
def test_ends_by_id(tmp_path: Path, files: dict[str, Any], stops: set[int]) -> None:
    assert _load(tmp_path, **files).stop_ids == stops


@pytest.mark.parametrize("value", [True, "1", 1.0, {}, [[1]], [None], ["a"]])
@pytest.mark.parametrize("name", ["config", "generation_config"])
def test_ends_that_are_no_ids(tmp_path: Path, name: str, value: Any) -> None:
    if value == {}:
        value = [{}]
    with pytest.raises(TokenizerError, match=rf"/{name}\.json: key 'eos_token_id'"):
        _load(tmp_path, **{name: {"eos_token_id": value}})


@pytest.mark.parametrize(
    ("files", "eos"),
    [
        ({"tokenizer_config": {"eos_token": "<0>"}}, "<0>"),
        ({"tokenizer_config": {"eos_token": {"content": "<0>"}}}, "<0>"),
        ({"special_tokens_map": {"eos_token": "<1>"}}, "<1>"),
        ({"special_tokens_map": {"eos_token": {"content": "<1>"}}}, "<1>"),
        # The map is older: it counts where tokenizer_config.json does not list the tokens itself.
        ({"tokenizer_config": {"eos_token": "<0>"}, "special_tokens_map": {"eos_token": "<1>"}}, "<1>"),
        (
            {
                "tokenizer_config": {"eos_token": "<0>", "added_tokens_decoder": {"256": {"content": "<0>"}}},
                "special_tokens_map": {"eos_token": "<1>"},
            },
            "<0>",
        ),
    ],
)
def test_ends_by_text(tmp_path: Path, files: dict[str, Any], eos: str) -> None:
    tokenizer = _load(tmp_path, **files)
    assert tokenizer.eos_id == tokenizer.token_to_id(eos)
    assert tokenizer.stop_ids == {tokenizer.eos_id}


def test_tokens_that_only_tokenizer_config_has(tmp_path: Path) -> None:
    added = {
        "301": {"content": "<|plain|>", "special": False},
        "300": {"content": "<|im_end|>", "special": True},
        "258": {"content": "<2>", "special": True},
    }
    tokenizer = _load(tmp_path, tokenizer_config={"added_tokens_decoder": added, "eos_token": "<|im_end|>"})
    assert tokenizer.vocab_size == 302
    assert tokenizer.encode("<|im_end|>a<|plain|>", special=True)[::2] == [300, 301]
    assert 300 not in tokenizer.encode("<|im_end|>")
    assert tokenizer.encode("<|plain|>") == [301]
    assert tokenizer.eos_id == 300
    assert tokenizer.special_ids == {256, 257, 258, 300}  # what tokenizer.json called an ordinary one, too


def test_tokens_that_only_added_tokens_json_has(tmp_path: Path) -> None:
    files: dict[str, Any] = {
        "added_tokens": {"<|im_end|>": 300, "<word>": 301},
        "special_tokens_map": {"eos_token": "<|im_end|>", "additional_special_tokens": [{"content": "<x>"}, "<y>"]},
    }
    tokenizer = _load(tmp_path, **files)
    assert tokenizer.eos_id == 300
    assert 300 in tokenizer.special_ids
    assert tokenizer.encode("<word>") == [301]
    listed = {"256": {"content": "<0>", "special": True}}
    assert _load(tmp_path, tokenizer_config={"added_tokens_decoder": listed}, added_tokens={"<a>": 9}).vocab_size == 300


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"tokenizer_config": {"added_tokens_decoder": {"999": {"content": "<new>"}}}}, "'<new>' as token 999"),
        ({"tokenizer_config": {"added_tokens_decoder": {"-1": {"content": "<new>"}}}}, "'-1', no token id"),
        ({"tokenizer_config": {"added_tokens_decoder": {"9" * 20: {"content": "<new>"}}}}, "no token id"),
        ({"tokenizer_config": {"added_tokens_decoder": {"300": {"content": 7}}}}, "is no token"),
        ({"tokenizer_config": {"added_tokens_decoder": {"300": "<new>"}}}, "is no token"),
        ({"tokenizer_config": {"added_tokens_decoder": {"300": {"content": ""}}}}, "is no token"),
        ({"tokenizer_config": {"added_tokens_decoder": [1]}}, "is no object"),
        ({"added_tokens": {"<new>": 999}}, "'<new>' as token 999"),
        ({"added_tokens": {"<new>": "300"}}, "is no token id"),
        ({"added_tokens": {"": 300}}, "is no token id"),
    ],
)
def test_tokens_that_are_none(tmp_path: Path, files: dict[str, Any], words: str) -> None:
    with pytest.raises(TokenizerError, match=words):
        _load(tmp_path, **files)


_WRONG = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-2, 400), st.integers(), st.floats(), st.text(max_size=4)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=5,
)
_KEYS = ("eos_token", "bos_token", "pad_token", "unk_token", "cls_token", "sep_token", "eos_token_id", "add_bos_token")
_KEYS += ("add_eos_token", "added_tokens_decoder", "additional_special_tokens", "extra_special_tokens", "<|x|>")
_FILES = ("tokenizer_config", "special_tokens_map", "added_tokens", "generation_config", "config")


@given(
    files=st.dictionaries(
        st.sampled_from(_FILES), st.one_of(_WRONG, st.dictionaries(st.sampled_from(_KEYS), _WRONG)), max_size=3
    )
)
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_only_our_errors_escape(tmp_path: Path, files: dict[str, Any]) -> None:
    try:
        tokenizer = _load(tmp_path, **files)
        tokenizer.decode(tokenizer.encode("a<0>", special=True))
    except KamadoError:
        pass
