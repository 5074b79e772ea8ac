"""Long texts are tokenized in pieces: none is long, and no word of any known pattern reaches across a cut."""

from __future__ import annotations

import random

import pytest
from tokenizers import Regex, pre_tokenizers

from kamado.text.tokenizer import pretokenizers, rust

KNOWN = {
    name: value
    for table in vars(pretokenizers).values()
    if isinstance(table, dict)
    for name, value in table.items()
    if isinstance(value, pretokenizers.PreTokenizer)
}


@pytest.mark.parametrize("unit", ["word ", "line of text\n", "x", '"', " ", "日本語", "a1", "\n"])
def test_pieces_are_short_and_make_the_text(unit: str) -> None:
    text = unit * (300_000 // len(unit))
    pieces = list(rust.chunks(text))
    assert "".join(pieces) == text
    assert max(map(len, pieces)) <= rust._MAX_CHUNK_CHARS
    if unit in ("word ", "line of text\n"):  # usual texts are cut soon, and where no word is
        assert max(map(len, pieces)) <= rust._CHUNK_CHARS + 100


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_no_word_reaches_across_a_cut(name: str) -> None:
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in KNOWN[name].patterns]
    cutter = pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])

    def words(text: str) -> list[str]:
        return [word for word, _ in cutter.pre_tokenize_str(text)]

    lots = random.Random(name)
    parts = ["a", "Zed", " ", "  ", "\n", "1", "22", "'s", "'", "-", "é", "日", "!", ".", "\t", "_", "word", "The"]
    for _ in range(60):
        before = "".join(lots.choice(parts) for _ in range(lots.randrange(6)))
        after = "".join(lots.choice(parts) for _ in range(lots.randrange(6)))
        for begin, end in (("a", " Z"), ("The", " word"), (".\n", "a"), ("1\n", "Z")):
            first, second = before + begin, end + after
            assert rust._SAFE_CUT.search(first + second) is not None
            assert words(first + second) == words(first) + words(second), (first, second)
