"""Unigram vocabularies in GGUF: ids are SentencePiece's own, recorded and, where the package is, made now."""

from __future__ import annotations

import functools
import json
import random
import struct
from pathlib import Path
from typing import Any

import pytest

from kamado.errors import KamadoError, UnsupportedError
from kamado.text.tokenizer.charsmap import CharsMap

from .models import BYTE, CONTROL, NORMAL, SPACE, UNKNOWN, USER_DEFINED, gguf
from .unigram_models import MODELS, texts, train

_GOLDEN = Path(__file__).parent / "golden" / "unigram.json"


@functools.cache
def _golden() -> dict[str, Any]:
    recorded: dict[str, Any] = json.loads(_GOLDEN.read_text())["models"]
    return recorded


@pytest.mark.parametrize("name", MODELS)
def test_ids_are_those_that_sentencepiece_gave(name: str) -> None:
    golden = _golden()[name]
    ours = gguf(**golden["metadata"])
    assert len(golden["ids"]) > 200
    wrong = {key: text for key, text in texts().items() if ours.encode(text, add_bos=False) != golden["ids"][key]}
    assert not wrong


@pytest.mark.parametrize("name", MODELS)
def test_ids_against_sentencepiece_itself(tmp_path: Path, name: str) -> None:
    spm = pytest.importorskip("sentencepiece")
    options = MODELS[name]
    rules = {} if "normalization_rule_name" in options else {"normalization_rule_name": "nmt_nfkc_cf"}
    metadata, encode = train(spm, tmp_path, **options | rules)
    ours = gguf(**metadata)
    wrong = {key: text for key, text in texts().items() if ours.encode(text, add_bos=False) != encode(text)}
    assert not wrong


def _small(**more: Any) -> dict[str, Any]:
    pieces: list[tuple[str, float, int]] = [("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL), ("<unk>", 0.0, UNKNOWN)]
    pieces += [(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]
    words = (f"{SPACE}a", f"{SPACE}leading", "a", "b", SPACE)
    pieces += [(word, -float(i + 1), NORMAL) for i, word in enumerate(words)]
    pieces += [("<user>", 0.0, USER_DEFINED)]
    keys = {
        "model": "t5",
        "tokens": [piece for piece, _, _ in pieces],
        "scores": [score for _, score, _ in pieces],
        "token_type": [kind for _, _, kind in pieces],
        "bos_token_id": 0,
        "eos_token_id": 1,
        "unknown_token_id": 2,
        "add_eos_token": False,
    }
    return keys | more


def _spelled(text: str, *, special: bool = False, **more: Any) -> list[str]:
    keys = _small(**more)
    return [keys["tokens"][i] for i in gguf(**keys).encode(text, special=special, add_bos=False)]


def test_white_space_at_the_beginning_leaves_the_mark() -> None:
    for text in ("leading", " leading", "   leading", "leading  "):
        assert _spelled(text) == [f"{SPACE}leading"]


def test_byte_tokens_are_not_spelled() -> None:
    assert _spelled("<0x0A>") == [SPACE, *(f"<0x{ord(char):02X}>" for char in "<0x0A>")]
    assert _spelled("a\nb") == [f"{SPACE}a", "<0x0A>", "b"]
    assert gguf(**_small()).encode("<0x0A>") == gguf(**_small()).encode(b"<0x0A>")


def test_control_tokens_begin_a_text_anew_and_user_defined_ones_do_not() -> None:
    assert _spelled("a</s>a", special=True) == [f"{SPACE}a", "</s>", f"{SPACE}a"]
    assert _spelled("a<user>a") == [f"{SPACE}a", "<user>", "a"]
    assert _spelled("<user> a ") == [SPACE, "<user>", f"{SPACE}a"]
    assert "</s>" not in _spelled("a</s>a")


def test_options_that_would_be_ignored_are_refused() -> None:
    for key, value in (("treat_whitespace_as_suffix", True), ("escape_whitespaces", False)):
        with pytest.raises(UnsupportedError, match=key):
            gguf(**_small(**{key: value}))
        gguf(**_small(**{key: not value}))


def test_the_table_of_a_byte_pair_vocabulary_counts_too() -> None:
    table = _golden()["rules"]["metadata"]["precompiled_charsmap"]
    keys = _small(model="llama", precompiled_charsmap=table, add_bos_token=False)
    assert gguf(**keys).encode("\u3000a") == gguf(**keys).encode(" a")


def test_hostile_tables_end_in_our_errors_or_in_text() -> None:
    table = bytes(_golden()["rules"]["metadata"]["precompiled_charsmap"])
    rng = random.Random(7)
    text = "".join(texts().values())[:2000] + "\ud7ff\U0010ffff\0"
    for _ in range(60):
        mutated = bytearray(table)
        for _ in range(rng.randint(1, 40)):
            mutated[rng.randrange(4, len(mutated))] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
        assert isinstance(CharsMap(bytes(mutated)).normalize(text), str)
    for wrong in (b"", b"\0\0\0\0x", struct.pack("<I", 8) + bytes(8), struct.pack("<I", 0xFFFFFFFC) + bytes(64)):
        with pytest.raises(ValueError, match="claims"):
            CharsMap(wrong)
    for value in (7, "table", [1.5] * 16, [None], {"a": 1}):
        with pytest.raises(KamadoError, match="precompiled_charsmap"):
            gguf(**_small(precompiled_charsmap=value))
