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
# Between marks of an answer, of which the last one stays: one that is left, or cut by a stop string, has a few tokens
# more than the next prompt has of it.
ANSWER_MARK_TOKENS = 64
# To compute so few tokens costs hardly more than one does: what is so near to another place is none of its own.
NEAR_TOKENS = 32
# Texts between two contents whose border is remembered: roles in pairs, and calls, which are all different.
_MAX_SPLITS = 256

Span = tuple[int, int]  # of characters, end excluded


def wanted_marks(num_tokens: int, starts: Sequence[int] | None, answer_at: int = 0) -> list[int]:
    """Lengths at which others may want to start from a prompt of so many tokens, ascending; the last one is that from
    which the same prompt can be answered again.

    `starts`: where its turns begin, ascending; None: it has none. Records are few, so of many turns the first is taken
    (what comes before it is shared), the last two, that of the answer among them, `answer_at`, and between them one
    every RAW_MARK_TOKENS. Where no turn begins near the end, one token before it is a place as well."""
    last = num_tokens - 1
    if starts is None:
        wanted = set(range(RAW_MARK_TOKENS, last, RAW_MARK_TOKENS))
    else:
        starts = [place for place in starts if place >= NEAR_TOKENS]
        wanted = {answer_at, *starts[:1], *starts[-2:]}
        before = 0
        for place in starts:
            if place in wanted or place - before >= RAW_MARK_TOKENS:
                wanted.add(place)
                before = place
    wanted = {place for place in wanted if 0 < place <= last}
    if last > 0 and last - max(wanted, default=0) >= NEAR_TOKENS:
        wanted.add(last)
    return sorted(wanted)


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
        self._splits: dict[tuple[str, int], int] = {}

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
        empty: Sequence[int] = (),
    ) -> dict[int, int]:
        """Numbers of tokens of `ids` before which a turn begins, by the turn's number, ascending.

        `text` is the prompt with unguessable words for its contents, `contents` ("": a turn without), and `literals`
        are its special tokens, in the same order as those in `ids`, among `special_ids`. `render(n)`: the text of the
        first n turns alone. With `has_tools` the first turn counts too: what comes before it is worth a mark. `empty`:
        turns that count though they have no content; one more than there are is that of the answer.
        """
        special_at = [i for i, token in enumerate(ids) if token in special_ids]
        num_before = len(special_at) - len(literals)  # the tokenizer puts one before all text, perhaps
        if num_before not in (0, 1):
            return {}
        spans = _spans(text, contents)
        located = list(spans)
        places: dict[int, int] = {}
        for i in sorted({*located, *empty}):
            here = bisect_left(located, i)
            begin, end = 0, spans[located[here]][0] if here < len(located) else len(text)
            border = end
            if here > 0:
                before = located[here - 1]
                begin = spans[before][1]
                border = begin + self._split(text[begin:end], contents[before], i, i - before, render)
            elif i not in spans or (i == 0 and not has_tools):
                continue
            after = bisect_left(literals, (border, border))
            if after < len(literals) and literals[after][0] == border:
                places[i] = special_at[num_before + after]
            elif after > 0 and literals[after - 1][0] >= begin:
                places[i] = special_at[num_before + after - 1] + 1
        return places

    def _split(self, between: str, content: str, num_turns: int, num_between: int, render: Callable[[int], str]) -> int:
        """Characters of the text after a turn's content that belong to the first `num_turns` turns, of which the last
        `num_between` begin there."""
        key = (between, num_between)
        split = self._splits.get(key)
        if split is None:
            try:
                before = render(num_turns)
            except TemplateError:  # it wants a conversation to end otherwise
                return 0
            # Not where the text has it: a turn that is the last may be written otherwise, reasoning for one.
            _, found, rest = before.partition(content)
            split = common_prefix(rest, between) if found else 0
            if len(self._splits) >= _MAX_SPLITS:
                self._splits.clear()
            self._splits[key] = split
        return split


def _spans(text: str, contents: Sequence[str]) -> dict[int, Span]:
    """Where contents lie in the text, by the numbers of their turns."""
    found: dict[int, Span] = {}
    end = 0
    for i, content in enumerate(contents):
        at = text.find(content, end) if content else -1
        if at >= 0:
            end = at + len(content)
            found[i] = at, end
    return found
