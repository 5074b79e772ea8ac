"""Native strings, byte-pair merging and top ids, each against the slow version it stands for."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kamado._native import BytePairs, StringTable, scan_strings, top_ids
from kamado.errors import CorruptFileError
from kamado.files.gguf_header import MIN_SCANNED_STRINGS, _Cursor
from kamado.files.strings import Strings

_PATH = Path("model.gguf")


def _encoded(texts: list[bytes]) -> bytes:
    return b"".join(len(text).to_bytes(8, "little") + text for text in texts)


def _read(data: bytes, count: int, *, natively: bool) -> tuple[list[str], int] | str:
    """Strings and the position after them, or the error."""
    cursor = _Cursor(io.BytesIO(data), len(data), _PATH)
    try:
        strings = cursor.strings(count, "tokens") if natively else cursor.read_strings(count, "tokens")
    except CorruptFileError as error:
        return str(error)
    return list(strings), cursor.pos


@given(st.lists(st.binary(max_size=12), max_size=8), st.data())
@settings(max_examples=200, deadline=None)
def test_the_scanner_agrees_with_python_on_damaged_bytes(texts: list[bytes], choice: st.DataObject) -> None:
    data = bytearray(_encoded(texts))
    if data:
        data[choice.draw(st.integers(0, len(data) - 1))] ^= 1 << choice.draw(st.integers(0, 7))
        del data[choice.draw(st.integers(0, len(data))) :]
    monkey = pytest.MonkeyPatch()
    monkey.setattr("kamado.files.gguf_header.MIN_SCANNED_STRINGS", 0)
    try:
        assert _read(bytes(data), len(texts), natively=True) == _read(bytes(data), len(texts), natively=False)
    finally:
        monkey.undo()


def test_a_length_near_two_to_the_64_is_an_error_that_names_it() -> None:
    data = _encoded([b"a"] * MIN_SCANNED_STRINGS) + (2**64 - 1).to_bytes(8, "little")
    error = _read(data, MIN_SCANNED_STRINGS + 1, natively=True)
    assert error == _read(data, MIN_SCANNED_STRINGS + 1, natively=False)
    assert str(len(data) + 2**64 - 1) in str(error)


def test_a_table_longer_than_the_first_read_is_read_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kamado.files.gguf_header._FIRST_READ_BYTES", 100)
    texts = [f"token {i}" for i in range(5000)]
    found = _read(_encoded([text.encode() for text in texts]), len(texts), natively=True)
    assert found[0] == texts


def test_strings_are_a_list_to_whoever_asks() -> None:
    texts = ["a", "", "Ġthe", "\udcff", "\U0001f600"]
    table, end, more = scan_strings(_encoded([t.encode("utf-8", "surrogateescape") for t in texts]), 0, 5)
    assert table is not None
    assert (end, more) == (51, 0)
    strings = Strings(table)
    assert strings == texts
    assert texts == strings
    assert strings != texts[1:]
    assert (len(strings), strings[2], strings[-1], strings[1:3]) == (5, "Ġthe", "\U0001f600", ["", "Ġthe"])
    assert strings.tolist() is strings.tolist()


_LETTERS = "abcd"


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=40),
    st.lists(st.text(_LETTERS + "x", max_size=20), min_size=1, max_size=20),
    st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_merging_gives_the_ids_of_the_tokenizers_package(
    picks: list[tuple[int, int]], words: list[str], whole_words: bool
) -> None:
    from tokenizers import Tokenizer, models

    tokens, merges = list(_LETTERS), []
    for left, right in picks:
        pair = (tokens[left % len(tokens)], tokens[right % len(tokens)])
        if pair[0] + pair[1] not in tokens:
            tokens.append(pair[0] + pair[1])
        merges.append(pair)
    oracle = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges, ignore_merges=whole_words))
    table = StringTable([f"{left} {right}" for left, right in merges])
    ours = BytePairs(StringTable(tokens), bytes(len(tokens)), table, whole_words)
    for word in words:
        assert ours.encode([(word, (0, len(word)))]) == (oracle.encode(word).ids if word else [])


@given(st.integers(0, 2**32 - 1), st.integers(1, 3000), st.data())
@settings(max_examples=100, deadline=None)
def test_top_ids_are_those_of_a_stable_sort(seed: int, size: int, choice: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.integers(-choice.draw(st.sampled_from((1, 5, 10**6))), 2, size).astype(np.float32)
    logits[rng.random(size) < 0.1] = -np.inf
    k = choice.draw(st.integers(1, size))
    assert top_ids(logits, k).tolist() == np.argsort(-logits, kind="stable")[:k].tolist()
    for wrong in (0, size + 1):
        with pytest.raises(ValueError, match="k must be"):
            top_ids(logits, wrong)
