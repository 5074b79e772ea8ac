"""The steps of a `tokenizer.json`'s pre-tokenizer: read, and rewritten where the file's own way does not do."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from .bounds import flatten
from .pretokenizers import RIGHT_ALIGNED_DIGITS

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import PreTokenizer

# Trinity's own patterns for digits in threes from the right. The first looks ahead to the end of a run of digits from
# each place: 100,000 digits take a second, a million a hundred times that. What they cut is what ours cut.
TRINITY_DIGITS = (
    r"\p{Nd}{1,510}(?=(?>\p{Nd}{510})*(?:\P{Nd}|$))|\G\p{Nd}{510}",
    r"\A\p{Nd}{1,2}(?=\p{Nd}{3}+\z)",
    r"\A\p{Nd}{3}|\G\p{Nd}{3}",
)


def steps_of(words: PreTokenizer | None) -> list[dict[str, Any]]:
    """The steps of a pre-tokenizer, in order."""
    return [] if words is None else flatten(json.loads(words.__getstate__()))


def from_steps(steps: list[dict[str, Any]]) -> PreTokenizer:
    """The pre-tokenizer that takes these steps."""
    from tokenizers import pre_tokenizers

    words = pre_tokenizers.Sequence([])
    words.__setstate__(json.dumps({"type": "Sequence", "pretokenizers": steps}).encode())
    return words


def in_linear_time(words: PreTokenizer) -> PreTokenizer:
    """`words`, or what cuts the same in a time that grows with the text and no faster."""
    steps = steps_of(words)
    slow, quick = (list(map(_isolated, patterns)) for patterns in (TRINITY_DIGITS, RIGHT_ALIGNED_DIGITS))
    for i in range(len(steps) - len(slow) + 1):
        if steps[i : i + len(slow)] == slow:
            return from_steps([*steps[:i], *quick, *steps[i + len(slow) :]])
    return words


def _isolated(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
