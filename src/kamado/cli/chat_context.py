"""How full a context is: tokens by message, what to leave out for room, and which limit cut an answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import ContextOverflowError

if TYPE_CHECKING:
    from .. import Usage

Message = dict[str, str]
Count = Callable[[Sequence[Message]], int]

WARN_SHARE = 0.8  # of the context, from which on a person is told how full it is
_ROOM_SHARE = 4  # a quarter of the context is left to what follows, so that nobody is asked at every question
_MOST_COUNTED = 40  # messages whose tokens are listed one by one


def room_wanted(context: int, max_tokens: int | None) -> int:
    """Tokens that must stay free for an answer and the next question."""
    quarter = max(1, context // _ROOM_SHARE)
    return quarter if max_tokens is None else min(max(1, max_tokens), quarter)


def leave_out(
    count: Count, system: Sequence[Message], messages: Sequence[Message], context: int, room: int
) -> int | None:
    """The least number of oldest messages without which the rest leaves `room`: it begins with a question then. The
    last question stays, with less room if need be; None: it alone is too long."""
    starts = [i for i, message in enumerate(messages) if message["role"] == "user" and i > 0]

    def fits(start: int, room: int) -> bool:
        try:
            return count([*system, *messages[start:]]) <= context - room
        except ContextOverflowError:
            return False

    low, high = 0, len(starts)
    while low < high:  # the more is left out, the less is left
        middle = (low + high) // 2
        low, high = (low, middle) if fits(starts[middle], room) else (middle + 1, high)
    if low < len(starts):
        return starts[low]
    return starts[-1] if starts and fits(starts[-1], 1) else None


def tokens_by_message(count: Count, messages: Sequence[Message]) -> list[tuple[int, int]]:
    """(index, tokens) of the last messages, each with what the template puts around it. The first of them has all that
    stands before it."""
    first = max(0, len(messages) - _MOST_COUNTED)
    found: list[tuple[int, int]] = []
    before = 0
    for i in range(first, len(messages)):
        # A template begins the answer after the last message: the difference has no part of that.
        total = count(messages[: i + 1])
        found.append((i, total - before))
        before = total
    return found


def why_cut(usage: Usage, context: int, sampling: Mapping[str, Any]) -> str:
    """Which limit ended an answer, and how to go on."""
    max_tokens = sampling.get("max_tokens")
    if max_tokens is not None and usage.num_generated_tokens >= max_tokens:
        return f"(cut after {max_tokens:,} tokens, the limit max_tokens: /continue goes on, /set max_tokens N sets it)"
    if usage.num_prompt_tokens + usage.num_generated_tokens >= context:
        return f"(cut: the context of {context:,} tokens is full: /trim leaves out the oldest, /continue then goes on)"
    return "(ended: it only repeated itself; /retry asks again, /set stop_on_repeat default lets it go on)"


def how_full(num_tokens: int, context: int) -> str:
    """In words, with the share."""
    return f"{num_tokens:,} of {context:,} tokens, {num_tokens / context:.0%}"
