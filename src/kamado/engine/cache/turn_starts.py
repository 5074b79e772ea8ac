"""Where a prompt is to be marked, so that others may start there: the turns of a conversation, or every 4,096 tokens.

Only programs that keep a record need this. A record is replaced by every step, so that a prompt can be left at a
place only if its computing stopped there: the places must be known beforehand.

Where turns begin the template is asked, not understood: the rendering of the messages before a turn ends where the turn
begins. What stands between two contents is asked about once, and splits at the same place when it comes again. The
place in tokens is that of the template's next special token, or the one after the last; a turn whose borders have
neither gets no mark.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Sequence

from ...errors import TemplateError
from .prefix_tree import common_prefix

# Between marks of a prompt that has no turns: 4,096 tokens of a 1.5B model take half a minute on two cores.
RAW_MARK_TOKENS = 4096
# Texts between two contents whose border is remembered: roles in pairs, and calls, which are all different.
_MAX_SPLITS = 256

Span = tuple[int, int]  # of characters, end excluded


def wanted_marks(num_tokens: int, starts: Sequence[int] | None) -> list[int]:
    """Lengths at which others may want to start from a prompt of so many tokens, ascending: the `starts` of its turns
    (None: it has none), and one token before its end, from where the same prompt can be answered again."""
    last = num_tokens - 1
    places = range(RAW_MARK_TOKENS, last, RAW_MARK_TOKENS) if starts is None else starts
    return sorted({place for place in (*places, last) if 0 < place <= last})


def moved(places: Sequence[int], before: Sequence[int], after: Sequence[int]) -> tuple[int, ...]:
    """Places in the ids `before`, as they lie in `after`, the same text in part with other ids. Those between ids that
    differ are left out."""
    if not places or before is after:
        return tuple(places)
    shift = len(after) - len(before)
    head = common_prefix(before, after)
    tail = len(before) - common_prefix(before[::-1], after[::-1])
    return tuple(p if p <= head else p + shift for p in places if p <= head or p >= tail)


class TurnStarts:
    """Finds where turns begin in prompts of one template. Thread-safe."""

    def __init__(self) -> None:
        self._splits: dict[str, int] = {}

    def find(
        self,
        text: str,
        contents: Sequence[str],
        literals: Sequence[Span],
        ids: Sequence[int],
        special_ids: Collection[int],
        *,
        render: Callable[[int], str],
        has_tools: bool,
    ) -> tuple[int, ...]:
        """Numbers of tokens of `ids` before which a turn begins, ascending.

        `text` is the prompt with unguessable words for its contents, `contents` ("": a turn without), and `literals`
        are its special tokens, in the same order as those in `ids`, among `special_ids`. `render(n)`: the text of the
        first n turns alone. With `has_tools` the first turn counts too: what comes before it is worth a mark.
        """
        special_at = [i for i, token in enumerate(ids) if token in special_ids]
        num_before = len(special_at) - len(literals)  # the tokenizer puts one before all text, perhaps
        if num_before not in (0, 1):
            return ()
        places: set[int] = set()
        end = 0  # of the content before
        for i, content in enumerate(contents):
            at = text.find(content, end) if content else -1
            if at < 0:
                continue
            border = at if i == 0 else end + self._split(text, (end, at), lambda n=i: render(n))  # type: ignore[misc]
            after = bisect_left(literals, (border, border))
            if i == 0 and not has_tools:
                pass
            elif after < len(literals) and literals[after][0] == border:
                places.add(special_at[num_before + after])
            elif after > 0 and literals[after - 1][0] >= end:
                places.add(special_at[num_before + after - 1] + 1)
            end = at + len(content)
        return tuple(sorted(places))

    def _split(self, text: str, gap: Span, render: Callable[[], str]) -> int:
        """Characters of the gap between two contents that belong to the turn before."""
        end, at = gap
        between = text[end:at]
        split = self._splits.get(between)
        if split is None:
            try:
                before = render()
            except TemplateError:  # it wants a conversation to end otherwise
                before = ""
            split = common_prefix(before[end:], between) if before[:end] == text[:end] else 0
            if len(self._splits) >= _MAX_SPLITS:
                self._splits.clear()
            self._splits[between] = split
        return split
