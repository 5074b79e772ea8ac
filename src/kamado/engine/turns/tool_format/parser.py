"""From a model's output, piece by piece, to events: reasoning, text, calls with their arguments as they come.

The events, neighbours of a kind joined, do not depend on how the output was cut into pieces. What may be the beginning
of a tag is held back until that is known, so no half tag is ever shown. Covered: output that was bound by the grammar
of the same format (call_grammar.py), for which every call is whole and correct; any other output gives events too, and
what is no call is text.

An answer that was cut (`finish(is_cut=True)`) ends here for every protocol: a call that has begun ends with its
ToolCallEnd, marked as cut, and what may be the beginning of a tag or of a call is not shown, for it is no text yet.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from typing import Literal

from ..chat_types import ContentEvent, ReasoningDelta, TextDelta, ToolCallDelta, ToolCallEnd, ToolCallStart
from .argument_readers import ArgumentReader, Kinds, ObjectReader, TaggedReader
from .bare_reader import BareReader
from .keyword_reader import KeywordReader
from .reasoning import ReasoningTags
from .syntax import ArgumentTags, BareArguments, CallSyntax, KeywordArguments, overlap, shown_text

# White space before a closing tag or a call belongs to neither; so much of it is held back to be left out.
_HELD_SPACE = 256
_MAX_NAME = 256
_SPACE = " \t\r\n"

_State = Literal[
    "start", "reason", "answer", "text", "open", "head", "name", "arguments", "tail", "end", "next", "after", "rest"
]


def new_call_id() -> str:
    """An id for a call, as clients of the large services expect one."""
    return f"call_{secrets.token_hex(12)}"


class AnswerParser:
    """Parses one answer. Not thread-safe."""

    def __init__(
        self,
        *,
        tags: ReasoningTags | None = None,
        is_reasoning: bool = False,
        syntax: CallSyntax | None = None,
        names: frozenset[str] = frozenset(),
        kinds: Mapping[str, Kinds] | None = None,
        is_required: bool = False,
        is_continued: bool = False,
        choice: int = 0,
        new_id: Callable[[], str] = new_call_id,
    ) -> None:
        """`tags` and `syntax` are bound to the marks that the text has (syntax.py). `is_reasoning`: the prompt has
        opened it already. `names`: tools that may be called; anything else that looks like a call is text.
        `kinds`: of which types each tool's parameters may be, for arguments between tags.
        `is_required`: a call must come, so that nothing can be text. `is_continued`: the answer's text has begun in the
        prompt, so that white space at its beginning is part of it."""
        self._tags = tags
        self._syntax = syntax
        self._names = names
        self._kinds = kinds or {}
        self._is_required = is_required and syntax is not None
        self._is_cut = False
        self._choice = choice
        self._new_id = new_id
        self._state: _State = "reason" if tags and is_reasoning else "start" if tags or syntax else "text"
        if is_continued:
            self._state = "text"
        self._held = ""
        self._is_first = True  # nothing of the reasoning was shown yet
        self._starts: tuple[str, ...] = ()
        if syntax is not None and syntax.is_whole_message:
            self._starts = tuple(syntax.open + syntax.head + name + syntax.middle for name in sorted(names))
        self._begins = tuple(one for one in (syntax.begin, syntax.bare) if one) if syntax is not None else ()
        self._recurring = tags.open if tags is not None and tags.recurs else ""
        self._call_start = syntax.begin + syntax.open + syntax.head if syntax and syntax.ends_reasoning else ""
        self._taken = ""  # of a call, before it was certain to be one
        self._is_bare = False  # the call that is read has begun without what should stand before it
        self._reader: ArgumentReader = ObjectReader()
        self._out: list[ContentEvent] = []
        self.num_calls = 0

    @property
    def is_reasoning(self) -> bool:
        """Whether the output has come to reasoning and not yet to its end."""
        return self._state == "reason"

    def push(self, text: str) -> list[ContentEvent]:
        """What is certain now that `text` came."""
        self._held += text
        return self._run(is_end=False)

    def finish(self, *, is_cut: bool = False) -> list[ContentEvent]:
        """What is left at the end. `is_cut`: the model had not come to it; a call that is open then ends as cut."""
        self._is_cut = is_cut
        events = self._run(is_end=True)
        if is_cut and self._state == "arguments":
            events.append(ToolCallEnd(self.num_calls, self._choice, is_cut=True))
        return events

    def _run(self, is_end: bool) -> list[ContentEvent]:
        while _STEPS[self._state](self, is_end):
            pass
        out, self._out = self._out, []
        return out

    # Each step takes from `_held` what is certain and returns whether the next step may find more.

    def _go(self, state: _State, num_taken: int = 0) -> bool:
        """What comes next, after so many characters were taken."""
        self._held = self._held[num_taken:]
        self._state = state
        return True

    def _start(self, is_end: bool) -> bool:
        text = self._held.lstrip(_SPACE)
        if self._tags is not None:
            opening, stray = self._tags.open, self._tags.stray
            if stray:
                while text.startswith(stray * 2):
                    text = text[len(stray) :]
                if text.startswith(bare := opening.removeprefix(stray) + self._tags.close):
                    self._held = text[len(bare) :]
                    return self._go("answer")
                if bare.startswith(text) and self._waits(is_end):
                    return False
            if text.startswith(opening):
                self._held = text[len(opening) :]
                return self._go("reason")
            if opening.startswith(text) and self._waits(is_end):
                return False
        return self._go("answer")

    def _waits(self, is_end: bool) -> bool:
        """Whether a mark that has begun may still end. In an answer that was cut, its beginning is dropped."""
        if is_end and self._is_cut:
            self._held = ""
        return not is_end

    def _reason(self, is_end: bool) -> bool:
        assert self._tags is not None
        end = self._held.find(self._tags.close)
        call = self._held.find(self._call_start) if self._call_start else -1
        if call >= 0 and not 0 <= end < call:
            self._show_reasoning(self._held[:call], is_end=True)
            return self._go("text", call)
        if end >= 0:
            self._show_reasoning(self._held[:end], is_end=True)
            return self._go("answer", end + len(self._tags.close))
        size = 0
        if not is_end or self._is_cut:
            size = max(overlap(self._held, self._tags.close), overlap(self._held, self._call_start))
        cut = len(self._held) - size
        rest = self._show_reasoning(self._held[:cut], is_end)
        self._held = "" if is_end else rest + self._held[cut:]
        return False

    def _show_reasoning(self, text: str, is_end: bool) -> str:
        """Shows `text` but for white space at its end, which is returned or, at the end, left out."""
        if self._is_first:
            text = text.lstrip(_SPACE)
        shown = _without_space(text)
        if shown:
            self._is_first = False
            if plain := shown_text(shown):
                self._out.append(ReasoningDelta(plain, choice=self._choice))
        return "" if is_end else text[len(shown) :]

    def _answer(self, is_end: bool) -> bool:
        """The answer begins: with a call, if a call is a whole message, or with text."""
        text = self._held.lstrip(_SPACE)
        if not text:
            if is_end:
                self._held = ""
            return False
        for start in self._starts:
            if text.startswith(start):
                self._held = text
                return self._go("open")
        if any(start.startswith(text) for start in self._starts) and (self._waits(is_end) or self._is_cut):
            return False
        self._held = text
        return self._go("text")

    def _text(self, is_end: bool) -> bool:
        syntax = self._syntax
        found = [(at, one) for one in self._begins if (at := self._held.find(one)) >= 0]
        again = self._held.find(self._recurring) if self._recurring else -1
        if again >= 0 and not (found and min(found)[0] < again):
            self._show_text(_without_space(self._held[:again]))
            return self._go("reason", again + len(self._recurring))
        if not (self._recurring or (syntax is not None and syntax.begin)) or (is_end and not found):
            size = self._begun() if self._is_cut else 0
            self._show_text(_without_space(self._held[:-size]) if size else self._held)
            self._held = ""
            return False
        if found:
            at, self._taken = min(found)
            self._is_bare = syntax is not None and self._taken != syntax.begin
            self._show_text(_without_space(self._held[:at]))
            return self._go("name" if self._is_bare else "open", at + len(self._taken))
        size = self._begun()
        shown = _without_space(self._held[: len(self._held) - size])
        self._show_text(shown)
        self._held = self._held[len(shown) :]
        return False

    def _begun(self) -> int:
        """Length of what may be the beginning of a call at the end of `_held`."""
        return max((overlap(self._held, one) for one in (*self._begins, self._recurring)), default=0)

    def _show_text(self, text: str) -> None:
        shown = shown_text(text)
        if shown and not self._is_required:
            self._out.append(TextDelta(shown, choice=self._choice))

    def _open(self, is_end: bool) -> bool:
        assert self._syntax is not None
        return self._literal(self._syntax.open, "head", is_end)

    def _head(self, is_end: bool) -> bool:
        assert self._syntax is not None
        return self._literal(self._syntax.head, "name", is_end)

    def _literal(self, literal: str, then: _State, is_end: bool) -> bool:
        if self._held.startswith(literal):
            self._taken += literal
            return self._go(then, len(literal))
        if literal.startswith(self._held):
            if is_end:
                self._held = ""
            return False
        return self._no_call()

    def _no_call(self) -> bool:
        self._held = self._taken + self._held
        self._taken = ""
        return self._go("rest")

    def _name(self, is_end: bool) -> bool:
        syntax = self._syntax
        assert syntax is not None
        end, size = self._held.find(syntax.middle), len(syntax.middle)
        if not size and isinstance(
            syntax.arguments, ArgumentTags
        ):  # the name ends where the first key begins, or the call ends
            ends = [at for one in (syntax.arguments.before, self._tail_text) if (at := self._held.find(one)) >= 0]
            end = min(ends, default=-1)
        name = self._held[: max(0, end)]
        if syntax.id_before:
            name = name.partition(syntax.id_before)[0]
        name = name.strip(_SPACE)
        if (end < 0 and len(self._held) > _MAX_NAME) or (end >= 0 and name not in self._names):
            return self._no_call()
        if end < 0:
            if is_end:
                self._held = ""
            return False
        self._held = self._held[end + size :]
        self._taken = ""
        self._out.append(ToolCallStart(self.num_calls, self._new_id(), name, self._choice))
        self._reader = ObjectReader()
        if isinstance(syntax.arguments, KeywordArguments):
            self._reader = KeywordReader(*syntax.separators)
        elif isinstance(syntax.arguments, BareArguments):
            self._reader = BareReader(*syntax.separators, syntax.arguments.quote)
        elif syntax.arguments is not None:
            self._reader = TaggedReader(syntax, self._tail_text, self._kinds.get(name, {}))
        return self._go("arguments")

    @property
    def _tail_text(self) -> str:
        assert self._syntax is not None
        return self._syntax.bare_tail if self._is_bare else self._syntax.tail

    def _arguments(self, is_end: bool) -> bool:
        if not self._held:
            return False
        size, arguments = self._reader.push(self._held)
        if arguments:
            self._out.append(ToolCallDelta(self.num_calls, arguments, self._choice))
        self._held = self._held[size:]
        if self._reader.is_done:
            self._out.append(ToolCallEnd(self.num_calls, self._choice))
            self.num_calls += 1
            return self._go("tail")
        return self._no_call() if self._reader.is_broken else False

    def _tail(self, is_end: bool) -> bool:
        assert self._syntax is not None
        id_key = self._syntax.id_key
        if id_key and self._held.startswith(id_key):
            end = self._held.find('"', len(id_key) + 1)
            if end >= 0:
                self._taken = ""
                return self._go("end", end + 1)
            return False
        if id_key and id_key.startswith(self._held) and not is_end:
            return False
        self._taken = ""
        return self._go("end")

    def _end(self, is_end: bool) -> bool:
        return self._literal(self._tail_text, "next", is_end)

    def _next(self, is_end: bool) -> bool:
        """What follows a call: another one, the end of them, or the rest of a tail that a bare call may have."""
        syntax = self._syntax
        assert syntax is not None
        after: list[tuple[str, _State]] = [(syntax.close, "after")] if syntax.close else []
        if syntax.between is not None:
            after.append((syntax.between, "head"))
            if not syntax.between:
                after[-1] = (syntax.head, "name")
        if self._is_bare and (rest := syntax.tail.removeprefix(syntax.bare_tail)):
            after.insert(0, (rest, "next"))
        for text, state in after:
            if self._held.startswith(text):
                self._is_bare = False
                self._taken = "" if state == "after" or state == "next" else text
                return self._go(state, len(text))
        if any(text.startswith(self._held) for text, _ in after) and self._waits(is_end):
            return False
        return self._go("after")

    def _after(self, is_end: bool) -> bool:
        """After the calls: white space is nothing, anything else is text."""
        self._held = self._held.lstrip(_SPACE)
        if self._held:
            self._state = "rest"
        return bool(self._held)

    def _rest(self, is_end: bool) -> bool:
        self._show_text(self._held)
        self._held = ""
        return False


_STEPS: dict[_State, Callable[[AnswerParser, bool], bool]] = {
    "start": AnswerParser._start,
    "reason": AnswerParser._reason,
    "answer": AnswerParser._answer,
    "text": AnswerParser._text,
    "open": AnswerParser._open,
    "head": AnswerParser._head,
    "name": AnswerParser._name,
    "arguments": AnswerParser._arguments,
    "tail": AnswerParser._tail,
    "end": AnswerParser._end,
    "next": AnswerParser._next,
    "after": AnswerParser._after,
    "rest": AnswerParser._rest,
}


def _without_space(text: str) -> str:
    """`text` without the white space at its end, of which so much is left out as may be held back."""
    return text[: max(len(text.rstrip(_SPACE)), len(text) - _HELD_SPACE)]
