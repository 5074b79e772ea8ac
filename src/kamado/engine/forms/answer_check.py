"""Finished answers against what their schemas left open while they were written."""

from __future__ import annotations

from collections.abc import Mapping

from ..turns.chat_types import ContentEvent, TextDelta, ToolCallDelta, ToolCallStart
from .json_schema import CompiledSchema


class AnswerCheck:
    """Collects one answer, as far as there is anything to check, and checks it at its end."""

    def __init__(self, schemas: Mapping[str, CompiledSchema]) -> None:
        """`schemas`: of tools by name, "" is that of the answer's text."""
        self._open = {name: compiled for name, compiled in schemas.items() if compiled.open}
        self._text: list[str] = []
        self._calls: dict[int, tuple[str, list[str]]] = {}

    def take(self, event: ContentEvent) -> None:
        """One more event."""
        if not self._open:
            return
        if isinstance(event, TextDelta):
            if "" in self._open:
                self._text.append(event.text)
        elif isinstance(event, ToolCallStart):
            if event.name in self._open:
                self._calls[event.index] = (event.name, [])
        elif isinstance(event, ToolCallDelta) and event.index in self._calls:
            self._calls[event.index][1].append(event.arguments)

    def violations(self) -> tuple[str, ...]:
        """What the whole answer violates, each with the call and the place."""
        out = [
            f"call {index} of {name}: {one}"
            for index, (name, pieces) in self._calls.items()
            for one in self._open[name].violations("".join(pieces))
        ]
        if "" in self._open and (text := "".join(self._text).strip()):
            out += self._open[""].violations(text)
        return tuple(out)
