"""SentencePiece BPE: held against SentencePiece itself, against a naive version of the rule, and by hand."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kamado.text.tokenizer import Tokenizer

from .corpus import DECOMPOSED, INVALID_BYTES, TEXTS
from .models import BYTE, CONTROL, NORMAL, SPACE, UNKNOWN, UNUSED, gguf, tiny_spm, training_texts

_GOLDEN = Path(__file__).parent / "golden" / "sentencepiece.json"
# SentencePiece reads NUL as the end of a C string in places, and maps some unassigned characters.
_LEFT_OUT = {"control_chars"}
_TEXTS = {name: text for name, text in (TEXTS | DECOMPOSED).items() if name not in _LEFT_OUT}


@pytest.mark.parametrize("model", ["plain", "spaces", "no_bytes", "across"])
def test_ids_are_those_that_sentencepiece_gave(model: str) -> None:
    """Recorded by record.py, so that the test needs no sentencepiece."""
    golden = json.loads(_GOLDEN.read_text())["models"][model]
    tokenizer = gguf(**golden["metadata"])
    assert len(golden["ids"]) > 40
    for name, ids in golden["ids"].items():
        assert tokenizer.encode(_TEXTS[name], add_bos=False) == ids, name


def test_live_sentencepiece(tmp_path: Path) -> None:
    """The same with the package at hand, on a vocabulary trained now."""
    spm = pytest.importorskip("sentencepiece")
    options = {"vocab_size": 520, "byte_fallback": True, "user_defined_symbols": ["<t>"]}
    metadata, encode = train_sentencepiece(spm, tmp_path, **options)
    tokenizer = gguf(**metadata)
    for name, text in _TEXTS.items():
        assert tokenizer.encode(text, add_bos=False) == encode(text), name


def train_sentencepiece(spm: Any, folder: Path, **options: Any) -> tuple[dict[str, Any], Any]:
    """A trained model as GGUF metadata, and SentencePiece's own encoder of it."""
    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join(training_texts()), encoding="utf-8")
    defaults = {
        "model_type": "bpe",
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "character_coverage": 0.98,
        "minloglevel": 2,
        "num_threads": 1,
        "max_sentence_length": 1 << 20,
    }
    spm.SentencePieceTrainer.train(input=str(corpus), model_prefix=str(folder / "m"), **(defaults | options))
    model = spm.SentencePieceProcessor(model_file=str(folder / "m.model"))
    kinds = []
    for i in range(model.vocab_size()):
        special = {UNKNOWN: model.is_unknown, CONTROL: model.is_control, UNUSED: model.is_unused, BYTE: model.is_byte}
        kinds.append(next((kind for kind, test in special.items() if test(i)), NORMAL))
    pieces = [model.id_to_piece(i) for i in range(model.vocab_size())]
    for symbol in options.get("user_defined_symbols", []):
        kinds[pieces.index(symbol)] = 4
    metadata = {
        "model": "llama",
        "tokens": pieces,
        "scores": [model.get_score(i) for i in range(model.vocab_size())],
        "token_type": kinds,
        "add_space_prefix": options.get("add_dummy_prefix", True),
        "remove_extra_whitespaces": options.get("remove_extra_whitespaces", False),
    }
    return metadata, model.encode


def _naive(keys: dict[str, Any], text: str) -> list[str]:
    """The rule in its plainest form: join the best-scored neighbours, the leftmost of equals, until none is left."""
    scores = {t: s for t, s, k in zip(keys["tokens"], keys["scores"], keys["token_type"], strict=True) if k == NORMAL}
    parts = list(text)
    while True:
        best = max(
            ((scores[a + b], -i) for i, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in scores),
            default=None,
        )
        if best is None:
            return parts
        i = -best[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


_LETTERS = "ab" + SPACE + "\n\0"


@given(
    words=st.lists(st.text(_LETTERS, min_size=2, max_size=5), max_size=14, unique=True),
    ranks=st.lists(st.integers(0, 6), min_size=14, max_size=14),
    text=st.text("ab \n\0", max_size=40),
)
@settings(deadline=None, max_examples=400)
def test_merging_follows_the_rule_on_any_vocabulary(words: list[str], ranks: list[int], text: str) -> None:
    """Tokens that reach across spaces and newlines, equal scores, parts that are no tokens: cutting must not show."""
    tokens = ["<unk>", *_LETTERS, *words]
    keys = {
        "model": "llama",
        "tokens": tokens,
        "scores": [0.0, *[-50.0] * len(_LETTERS), *map(float, ranks[: len(words)])],
        "token_type": [UNKNOWN] + [NORMAL] * (len(tokens) - 1),
        "add_space_prefix": False,
        "add_bos_token": False,
    }
    got = [tokens[i] for i in gguf(**keys).encode(text)]
    assert got == _naive(keys, text.replace(" ", SPACE))


def test_by_hand() -> None:
    tokenizer = gguf(**tiny_spm())
    pieces = [tokenizer.token_bytes(i) for i in tokenizer.encode("the inabcd", add_bos=False)]
    # "ab" (rank 6) goes before "bc" (7) and "cd" (9), so "abc" + "d", not "ab" + "cd".
    assert pieces == [b" the", b" ", b"in", b"abc", b"d"]


def test_space_prefix_and_its_removal() -> None:
    tokenizer = gguf(**tiny_spm())
    ids = tokenizer.encode("the", add_bos=False)
    assert ids == [tokenizer.token_to_id(f"{SPACE}the")]
    assert tokenizer.decode(ids) == "the"
    assert tokenizer.stream(continuation=True).push(ids[0]) == " the"
    bare = gguf(**tiny_spm(add_space_prefix=False))
    assert bare.decode(bare.encode("the", add_bos=False)) == "the"
    assert bare.decode(bare.encode(" the")) == " the"


def test_prefix_follows_special_tokens_as_in_llama_cpp() -> None:
    tokenizer = gguf(**tiny_spm())
    ids = tokenizer.encode("</s>the", special=True)
    assert ids == [tokenizer.bos_id, tokenizer.eos_id, tokenizer.token_to_id(f"{SPACE}the")]


def test_defaults_of_a_silent_file() -> None:
    tokenizer = gguf(**tiny_spm())
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)
    assert tokenizer.add_bos
    assert not tokenizer.add_eos
    assert tokenizer.stop_ids == {2}
    assert tokenizer.encode("") == [1]


def test_bytes_and_control_tokens_are_never_spelled() -> None:
    tokenizer = gguf(**tiny_spm(add_space_prefix=False, add_bos_token=False))
    newline = tokenizer.token_to_id("<0x0A>")
    assert newline not in tokenizer.encode("<0x0A>")
    assert tokenizer.decode(tokenizer.encode("<0x0A>")) == "<0x0A>"
    assert tokenizer.encode("\n") == [newline]
    assert tokenizer.eos_id not in tokenizer.encode("</s>")


@pytest.mark.parametrize("name", [*TEXTS, *DECOMPOSED])
def test_byte_fallback_loses_nothing(name: str) -> None:
    text = (TEXTS | DECOMPOSED)[name]
    tokenizer = gguf(**tiny_spm())
    assert tokenizer.decode(tokenizer.encode(text)) == text.replace(SPACE, " ")


@pytest.mark.parametrize("name", INVALID_BYTES)
def test_invalid_utf8_is_kept_byte_by_byte(name: str) -> None:
    data = INVALID_BYTES[name]
    tokenizer = gguf(**tiny_spm(add_space_prefix=False, add_bos_token=False))
    assert b"".join(map(tokenizer.token_bytes, tokenizer.encode(data))) == data


def test_without_byte_tokens_a_run_of_unknowns_is_one() -> None:
    keys = {
        "model": "llama",
        "tokens": ["<unk>", "a", SPACE],
        "scores": [0.0, 0.0, 0.0],
        "token_type": [UNKNOWN, NORMAL, NORMAL],
        "add_bos_token": False,
        "add_space_prefix": False,
    }
    tokenizer = gguf(**keys)
    assert tokenizer.encode("a日本a語") == [1, 0, 1, 0]
    assert tokenizer.encode(b"a\xff") == [1, 0]


def test_unused_tokens_fall_apart_again() -> None:
    keys = {
        "model": "llama",
        "tokens": ["<unk>", "a", "b", "ab", "abb"],
        "scores": [0.0, -9.0, -9.0, 0.0, -1.0],
        "token_type": [UNKNOWN, NORMAL, NORMAL, NORMAL, UNUSED],
        "add_bos_token": False,
        "add_space_prefix": False,
    }
    assert gguf(**keys).encode("abb") == [3, 2]


def _decoded(tokenizer: Tokenizer, text: str) -> str:
    return tokenizer.decode(tokenizer.encode(text))


@pytest.mark.slow
def test_a_word_of_a_million_letters() -> None:
    tokenizer = gguf(**tiny_spm())
    for text in ("a" * 1_000_000, "abcd" * 100_000, "日" * 100_000, " " * 200_000, "a b\n" * 100_000):
        assert _decoded(tokenizer, text) == text
