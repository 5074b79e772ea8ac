"""What of a prompt fits: texts too long to be worth counting, and messages that a request allows to be left out."""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import ContextOverflowError, UsageError
from .contract import ChatRequest, Message, Wanted

# A truncated prompt leaves room for an answer of this share of the context.
_ANSWER_SHARE = 4
# Texts with more characters than so many a token of the context, and more than can be counted in no time, are refused
# before they are tokenized: 13 MB took 6 s and 400 MB. Prose has 4 to 5 characters a token, deeply indented code 10.
_MOST_CHARACTERS_A_TOKEN = 64
_FEW_CHARACTERS = 256 << 10
MOST_COUNTED_CHARACTERS = 4 << 20  # where the question is how many tokens a text has


def most_prompt_tokens(request: Wanted, context: int) -> int:
    """Tokens that a truncated prompt keeps at the most: the answer wants room too."""
    limit = request.options.get("max_tokens")
    return context - max(1, min(limit or context, context // _ANSWER_SHARE))


def worth_counting(request: ChatRequest, context: int) -> tuple[list[Message], int]:
    """The messages without the oldest ones that are far too many, and how many tokens those had at the least. Raises
    ContextOverflowError when none may be left out."""
    from_middle = request.truncation == "drop_middle"
    most = most_characters(context)
    kept = list(request.messages)
    num_uncounted = 0
    while (num_characters := sum(map(size_of, kept))) > most:
        shorter = None
        if request.truncation != "refuse":
            shorter = without_oldest(kept, num_characters - most, num_characters, from_middle=from_middle)
        if shorter is None:
            raise FarTooLongError(num_characters, context)
        num_uncounted += (num_characters - sum(map(size_of, shorter))) // _MOST_CHARACTERS_A_TOKEN
        kept = shorter
    return kept, num_uncounted


def without_oldest(
    messages: Sequence[Message], num_over: int, num_tokens: int, *, from_middle: bool
) -> list[Message] | None:
    """Messages without the oldest ones that may go, about `num_over` tokens of them; None when none may.

    System messages and the last turn stay; calls go together with their results, so that no result is left alone.
    """
    last = max((i for i, m in enumerate(messages) if m.role == "user"), default=len(messages) - 1)
    first = next((i for i, m in enumerate(messages) if m.role != "system"), len(messages))
    if from_middle and first < last:  # the opening exchange stays too
        first = next((i for i in range(first + 1, last) if messages[i].role == "user"), last)
    total = sum(size_of(message) for message in messages) or 1
    wanted = total * num_over / num_tokens
    end = first
    freed = 0.0
    while end < last and (freed < wanted or messages[end].role == "tool" or end == first):
        freed += size_of(messages[end])
        end += 1
    if end == first:
        return None
    kept = [m for i, m in enumerate(messages) if not first <= i < end or m.role == "system"]
    return kept if len(kept) < len(messages) else None


def size_of(message: Message) -> int:
    """About how long a message is, in characters."""
    return 8 + len(message.text) + sum(len(call.arguments) for call in message.tool_calls)


class FarTooLongError(ContextOverflowError):
    """A prompt whose tokens are not counted. `num_prompt_tokens` is what it has at the least."""

    def __init__(self, num_characters: int, context: int) -> None:
        super().__init__(num_characters // _MOST_CHARACTERS_A_TOKEN, context)
        text = f"the prompt has {num_characters} characters, and the context holds {context} tokens: so much is refused"
        self.args = (f"{text} without counting its tokens; shorten it",)


def most_characters(context: int) -> int:
    """Characters that a prompt for `context` tokens may have: more are never worth counting their tokens."""
    return max(_FEW_CHARACTERS, context * _MOST_CHARACTERS_A_TOKEN)


def check_length(num_characters: int, most: int) -> None:
    """Raises UsageError for a text that is too long to count its tokens."""
    UsageError.when(
        num_characters > most, f"the text has {num_characters} characters; tokens are counted of {most} at the most"
    )
