"""From a model's output to events, where an answer is several messages (channels.py). As AnswerParser: events,
neighbours of a kind joined, do not depend on how the output was cut, and no half header is shown.

What no header is read from is text: a model that is bound by the grammar of the same format has none of that. Two texts
of one answer have an empty line between them, and so have two pieces of reasoning.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from ..chat_types import ContentEvent, ReasoningDelta, TextDelta, ToolCallDelta, ToolCallEnd, ToolCallStart
from .argument_readers import ObjectReader
from .channels import Channels, Kind
from .syntax import shown_text

_MAX_HEADER = 512
_BETWEEN = "\n\n"


class ChannelParser:
    """Parses one answer. Not thread-safe."""

    def __init__(
        self,
        channels: Channels,
        *,
        names: frozenset[str] = frozenset(),
        is_required: bool = False,
        is_continued: bool = False,
        choice: int = 0,
        new_id: Callable[[], str],
    ) -> None:
        """`channels` are bound to marks. `names`: tools that may be called. `is_required`: a call must come, so that
        nothing can be text. `is_continued`: the answer's text has begun in the prompt."""
        self._channels = channels
        self._names = names
        self._is_required = is_required
        self._choice = choice
        self._new_id = new_id
        self._kind: Kind | Literal["header"] = "text" if is_continued else "header"
        self._held = ""  # of a header
        self._ends = frozenset(channels.end_marks)
        self._marks = self._ends | frozenset(channels.body_marks)
        self._shown: set[str] = {"text"} if is_continued else set()  # kinds of which something was shown
        self._is_fresh = not is_continued  # nothing of this body was shown
        self._reader = ObjectReader()
        self._out: list[ContentEvent] = []
        self.num_calls = 0

    @property
    def is_reasoning(self) -> bool:
        """Whether the output has come to reasoning and not yet to its end."""
        return self._kind == "reasoning"

    def push(self, text: str) -> list[ContentEvent]:
        """What is certain now that `text` came."""
        begin = 0
        for i, c in enumerate(text):
            if c not in self._marks:
                continue
            self._take(text[begin:i])
            begin = i + 1
            if c in self._ends:
                self._end()
            elif self._kind == "header":
                self._begin(self._held + c)
        self._take(text[begin:])
        out, self._out = self._out, []
        return out

    def finish(self, *, is_cut: bool = False) -> list[ContentEvent]:
        """What is left at the end. `is_cut`: the model had not come to it; a call that is open then ends as cut."""
        if self._kind == "header" and not is_cut:
            self._no_header()
        elif self._kind == "call":
            self._end()
        out, self._out = self._out, []
        return out

    def _take(self, text: str) -> None:
        """Text without marks that end something here."""
        if not text:
            return
        if self._kind == "header":
            self._held += text
            if len(self._held) > _MAX_HEADER:
                self._no_header()
        elif self._kind == "call":
            self._argue(text)
        else:
            self._show(self._kind, text)

    def _begin(self, header: str) -> None:
        """A header is whole: what it says is what follows."""
        self._held = ""
        self._is_fresh = True
        header = header.removeprefix(self._channels.start)
        for kind, pattern in self._channels.patterns:
            match = pattern.fullmatch(header)
            if match is None:
                continue
            if kind != "call":
                self._kind = kind
                return
            name = next((text for text in match.groupdict().values() if text is not None), "")
            if name in self._names:
                self._kind = "call"
                self._reader = ObjectReader()
                self._out.append(ToolCallStart(self.num_calls, self._new_id(), name, self._choice))
                return
        self._kind = "text"

    def _no_header(self) -> None:
        """What was held for one is text."""
        held, self._held = self._held.removeprefix(self._channels.start), ""
        self._kind = "text"
        self._is_fresh = True
        self._show("text", held)

    def _end(self) -> None:
        """A mark that ends a message."""
        if self._kind == "header":
            self._no_header()
        elif self._kind == "call":
            self._out.append(ToolCallEnd(self.num_calls, self._choice, is_cut=not self._reader.is_done))
            self.num_calls += 1
        self._kind = "header"

    def _argue(self, text: str) -> None:
        if self._reader.is_done or self._reader.is_broken:
            return
        text = shown_text(text)
        _, arguments = self._reader.push(text.lstrip() if self._is_fresh else text)
        if arguments:
            self._is_fresh = False
            self._out.append(ToolCallDelta(self.num_calls, arguments, self._choice))

    def _show(self, kind: Kind, text: str) -> None:
        shown = shown_text(text)
        if not shown or (kind == "text" and self._is_required):
            return
        if self._is_fresh and kind in self._shown:
            shown = _BETWEEN + shown
        self._is_fresh = False
        self._shown.add(kind)
        make = ReasoningDelta if kind == "reasoning" else TextDelta
        self._out.append(make(shown, choice=self._choice))
