"""How far two sequences of token ids say the same, though their ids differ.

A conversation that comes back is rendered as text and tokenised again, which can give other ids than those that were
generated: a model may pick ids that are not the usual ones of their text, templates trim white space and write calls
out again from parsed arguments. `SameText` finds how much of a prompt a known sequence stands for:

  by bytes     ids that differ are read on until both have said the same bytes; special tokens equal themselves alone,
               so text never becomes a special token or the reverse;
  by meaning   an assistant's turn whose bytes differ is the same one when the model's own parser reads the same out of
               both: equal reasoning, equal text but for white space around it, calls of equal names whose arguments
               are equal JSON values.

Both count within an assistant's turn only, which is what a model generated: prompts of others are never respelled.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .chat_types import ReasoningDelta, TextDelta, ToolCallDelta, ToolCallEnd, ToolCallStart
from .tool_format import ChatFormat
from .tool_format.reasoning import ReasoningTags
from .tool_format.syntax import without_marks

if TYPE_CHECKING:
    from ...text.tokenizer import Tokenizer

# Slices that are compared at once while ids are equal.
_MAX_SLICE = 4096
# A whole number up to here is written by every client as it was read.
_EXACT_FLOAT = 2.0**53


@dataclass(frozen=True, slots=True)
class _Answer:
    """What the parser read out of an assistant's turn."""

    reasoning: str
    has_tags: bool  # whether reasoning was closed, if only an empty one: templates show that on purpose
    items: tuple[tuple[str, str], ...]  # ("", text), and (name, arguments) of calls


class SameText:
    """Compares sequences of ids of one model. Thread-safe."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, chat: ChatFormat, prompt: Sequence[int]) -> None:
        """`prompt`: any that ends where an answer begins. What it has after its last special token, "assistant" and a
        newline for one, shows in other prompts which turns are the assistant's."""
        self._tokenizer = tokenizer
        self._chat = chat
        self._special = tokenizer.special_ids
        # Special tokens that no answer has inside: they begin and end turns.
        self._is_border = np.zeros(vocab_size, np.bool_)
        begin = chat.channels.borders(chat.marks) if chat.channels is not None else frozenset("")
        ids = [i for i in self._special if 0 <= i < vocab_size and _is_border(chat.marks.of_token(i), begin)]
        self._is_border[ids] = True
        borders = self._borders(prompt)
        # None: the template begins turns with no special token, so that nothing is found to be an assistant's.
        self._header = list(prompt[borders[-1] + 1 :]) if borders else None
        self._tags: ReasoningTags | None = chat.bound_tags
        self._opens_reasoning = False
        if self._tags is not None:
            self._opens_reasoning = self._text(self._header or []).rstrip().endswith(self._tags.open)

    def common(
        self, wanted: Sequence[int], known: Sequence[int], names: frozenset[str] = frozenset()
    ) -> tuple[int, int]:
        """(i, j), the largest found such that known[:j] says what wanted[:i] says.

        `names`: tools that the conversation has. All ids must be below `vocab_size`.
        """
        i = j = 0
        runs: list[tuple[int, int, int]] = []  # where both have the same ids: begin in wanted and in known, length
        borders = self._borders(known)
        while True:
            length = _equal_run(wanted, i, known, j)
            runs.append((i, j, length))
            i, j = i + length, j + length
            if i == len(wanted) or j == len(known):
                return i, j
            begin = self._turn_begin(known, borders, j)
            if begin is None:
                return i, j
            place = self._by_bytes(wanted, i, known, j) or self._by_meaning(wanted, known, begin, runs, borders, names)
            if place is None or place <= (i, j):
                return i, j
            i, j = place

    def _borders(self, ids: Sequence[int]) -> list[int]:
        found: NDArray[np.intp] = np.flatnonzero(self._is_border[np.asarray(ids, np.int64)])
        return [int(i) for i in found]

    def _turn_begin(self, known: Sequence[int], borders: Sequence[int], j: int) -> int | None:
        """Where the content of the assistant's turn that holds known[j] begins; None when it is in none."""
        if self._header is None:
            return None
        before = bisect_left(borders, j) - 1
        if before < 0:
            return None
        at = borders[before] + 1
        begin = at + len(self._header)
        return begin if list(known[at:begin]) == self._header else None

    def _by_bytes(self, wanted: Sequence[int], i: int, known: Sequence[int], j: int) -> tuple[int, int] | None:
        """The next place past (i, j) up to which both have said the same bytes, at a token's end in both."""
        ahead_wanted = ahead_known = b""  # what one of them has said more
        while True:
            if not ahead_wanted:
                if i == len(wanted) or wanted[i] in self._special:
                    return None
                ahead_wanted = self._tokenizer.token_bytes(wanted[i])
                i += 1
            if not ahead_known:
                if j == len(known) or known[j] in self._special:
                    return None
                ahead_known = self._tokenizer.token_bytes(known[j])
                j += 1
            size = min(len(ahead_wanted), len(ahead_known))
            if ahead_wanted[:size] != ahead_known[:size]:
                return None
            ahead_wanted, ahead_known = ahead_wanted[size:], ahead_known[size:]
            if not ahead_wanted and not ahead_known:
                return i, j

    def _by_meaning(
        self,
        wanted: Sequence[int],
        known: Sequence[int],
        begin: int,
        runs: Sequence[tuple[int, int, int]],
        borders: Sequence[int],
        names: frozenset[str],
    ) -> tuple[int, int] | None:
        """The ends of the turn that begins at known[begin], if what `wanted` has there reads the same."""
        begin_wanted = next((a + begin - b for a, b, length in reversed(runs) if b <= begin <= b + length), None)
        if begin_wanted is None:
            return None
        next_border = bisect_left(borders, begin)
        end = borders[next_border] if next_border < len(borders) else len(known)  # an answer that was cut has no end
        end_wanted = begin_wanted
        while end_wanted < len(wanted) and not self._is_border[wanted[end_wanted]]:
            end_wanted += 1
        if end_wanted == len(wanted):
            return None
        theirs = self._read(wanted[begin_wanted:end_wanted], names)
        if theirs is None:
            return None
        if theirs == self._read(known[begin:end], names):
            return end_wanted, end
        # What was computed lacks the last id that was picked, if the answer's form ended it with that.
        if end == len(known) and begin_wanted < end_wanted:
            whole = [*known[begin:end], wanted[end_wanted - 1]]
            if theirs == self._read(whole, names):
                return end_wanted - 1, end
        return None

    def _read(self, ids: Sequence[int], names: frozenset[str]) -> _Answer | None:
        """What a turn says; None when a call in it is not whole, or has an id, which later results may refer to."""
        text = self._text(ids)
        syntax = self._chat.syntax if names else None
        syntax = None if syntax is None else syntax.bind(self._chat.marks)
        if syntax is not None:
            ids_of_calls = (syntax.id_key, syntax.id_before, syntax.id_first)
            if any(one and one in text for one in ids_of_calls):
                return None
        parser = self._chat.parser(
            has_tools=bool(names), is_reasoning=self._opens_reasoning, names=names, new_id=lambda: ""
        )
        reasoning = ""
        items: list[tuple[str, str]] = []
        is_open = False
        for event in (*parser.push(text), *parser.finish()):
            if isinstance(event, ReasoningDelta):
                reasoning += event.text
            elif isinstance(event, TextDelta):
                before = items.pop()[1] if items and not items[-1][0] else ""
                items.append(("", before + event.text))
            elif isinstance(event, ToolCallStart):
                items.append((event.name, ""))
                is_open = True
            elif isinstance(event, ToolCallDelta):
                items[-1] = (items[-1][0], items[-1][1] + event.arguments)
            elif isinstance(event, ToolCallEnd):
                arguments = _plain_json(items[-1][1])
                if arguments is None:
                    return None
                items[-1] = (items[-1][0], arguments)
                is_open = False
        if is_open:
            return None
        said = tuple((name, value if name else value.strip()) for name, value in items)
        return _Answer(
            reasoning.strip(),
            self._tags is not None and self._tags.close in text,
            tuple(item for item in said if item != ("", "")),
        )

    def _text(self, ids: Sequence[int]) -> str:
        """Text of `ids`, with marks for the special tokens of the chat format."""
        parts: list[str] = []
        plain = bytearray()
        for token in ids:
            mark = self._chat.marks.of_token(token)
            if mark:
                parts += [without_marks(plain.decode("utf-8", "replace")), mark]
                plain.clear()
            else:
                plain += self._tokenizer.token_bytes(token)
        return "".join(parts) + without_marks(plain.decode("utf-8", "replace"))


def _is_border(mark: str, borders: frozenset[str]) -> bool:
    """Whether a special token begins or ends turns: it is no mark, or one of these."""
    return not mark or mark in borders


def _equal_run(a: Sequence[int], i: int, b: Sequence[int], j: int) -> int:
    """How many ids from a[i] and b[j] on are equal. Slices that grow are compared in C."""
    end = min(len(a) - i, len(b) - j)
    done, size = 0, 16
    while done < end:
        left, right = a[i + done : i + done + size], b[j + done : j + done + size]
        if left != right:
            pairs = zip(left, right, strict=False)  # one of them may be shorter
            return done + next((k for k, (x, y) in enumerate(pairs) if x != y), min(len(left), len(right)))
        done += len(left)
        size = min(4 * size, _MAX_SLICE)
    return end


def _plain_json(text: str) -> str | None:
    """One text for all ways to write a JSON value: 1.0 is 1 but not true, order of keys does not count."""
    try:
        value = json.loads(text)
        return json.dumps(_plain_numbers(value), sort_keys=True, ensure_ascii=True)
    except (ValueError, RecursionError):
        return None


def _plain_numbers(value: object) -> object:
    if isinstance(value, float) and value.is_integer() and abs(value) <= _EXACT_FLOAT:
        return int(value)
    if isinstance(value, dict):
        return {key: _plain_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain_numbers(item) for item in value]
    return value
