"""The grammar of an answer of several messages (channels.py): headers that can be read, and nothing else between them.

    answer:  message ( <|end|> <|start|>assistant message )*     the last one is a final text, or calls

Every message's text is free of marks. Calls are of the tools that are offered, with arguments by their schemas; an
answer's form binds its final text. Where nothing else is asked for the headers are bound all the same.
"""

from __future__ import annotations

from typing import Any

from ...forms.grammar import Grammar
from .call_grammar import ANY_TEXT, AnswerGrammar
from .channels import Channels
from .syntax import CallSyntax


class ChannelGrammar(AnswerGrammar):
    """Collects the rules of one answer."""

    def __init__(self, channels: Channels, *, may_reason: bool, is_continued: bool, **given: Any) -> None:
        """`channels` are bound to marks. `is_continued`: the prompt has begun a final text. `given`: as for
        AnswerGrammar."""
        super().__init__(**given, tags=None, is_reasoning=False)
        self._channels = channels
        self._may_reason = may_reason
        self._is_continued = is_continued

    def build(self) -> Grammar:
        """The grammar. Raises ConstraintError for a schema that cannot be used."""
        channels = self._channels
        has_form = self._output.kind != "text"
        if has_form:
            self._add_form()
        asides = [*(channels.reasoning if self._may_reason else ()), *channels.asides]
        lasts: list[str] = []
        final_end = self._literal(channels.final_end) if channels.final_end else f"({self._literal(channels.end)})?"
        if not self._is_required:
            heads = [*channels.finals, *(channels.json_finals if self._output.kind.startswith("json") else ())]
            lasts.append(f"{self._heads(heads)} {'@form' if has_form else 'TEXT?'} {final_end}")
            if not has_form:
                asides += channels.finals
        if self._syntax is not None:
            self._add_tools(self._syntax)
            lasts.append("calls")
        more = f"{self._literal(channels.end)} {self._literal(channels.start)}"
        begun = f"TEXT? ({final_end} | {more} messages)" if self._is_continued else "messages"
        self._rules.append(f"messages: {f'({self._heads(asides)} TEXT? {more})* ' if asides else ''}last")
        self._rules.append(f"last: {' | '.join(lasts)}")
        return self._grammar([f"start: {begun}", f"TEXT: /{ANY_TEXT}+/", *self._rules])

    def _heads(self, heads: list[str]) -> str:
        return f"({' | '.join(map(self._literal, heads))})"

    def _add_tools(self, syntax: CallSyntax) -> None:
        channels = self._channels
        heads = [self._part(k, part) for k, part in enumerate(channels.calls)]
        numbers = range(len(self._tools))
        more = ""
        if channels.between is not None and self._is_parallel:
            more = f" ({' | '.join(f'more_{i}' for i in numbers)})*"
        calls = " | ".join(f"call_{i}" for i in numbers)
        self._rules.append(f"calls: ({calls}){more} {self._literal(channels.calls_end)}")
        for i, tool in enumerate(self._tools):
            head = " ".join(part if isinstance(part, str) else self._named(part, tool.name) for part in heads)
            self._rules.append(f"call_{i}: {head} rest_{i}")
            if more:
                self._rules.append(f"more_{i}: {self._named((channels.between or '',), tool.name)} rest_{i}")
            self._rules.append(f"rest_{i}: @arguments_{i} {self._literal(channels.call_end)}")
            self._add_arguments(i, tool, syntax)
        if channels.id_pattern:
            self._rules.append(f"ID: /{channels.id_pattern}/")

    def _part(self, k: int, texts: tuple[str, ...]) -> str | tuple[str, ...]:
        """The rule of a header's part that is the same for every tool; any other part as it is."""
        if any("NAME" in text for text in texts):
            return texts
        ways = " | ".join(self._literal(text) for text in texts if text)
        self._rules.append(f"head_{k}: {ways}")
        return f"head_{k}{'?' if '' in texts else ''}"

    def _named(self, texts: tuple[str, ...], name: str) -> str:
        """The ways to write a header's part for one tool."""
        ways = []
        for text in texts:
            before, has_id, behind = text.partition("ID")
            parts = [self._literal(part.replace("NAME", name)) for part in (before, behind)]
            ways.append(" ID ".join(parts) if has_id else parts[0])
        return f"({' | '.join(ways)})"
