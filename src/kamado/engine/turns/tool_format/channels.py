"""Answers of several messages, each with a header that says what it is: gpt-oss (Harmony) and Solar Open.

    header · body mark · body · end mark · `start` · header · …

Headers and marks are special tokens and a few words. They are written and read as each `Channels` says, and nothing
else is a header: a model that is bound cannot write one that nobody can read.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from .reasoning import ReasoningTags
from .syntax import MARK_BASE, MAX_MARKS, Marks

if TYPE_CHECKING:
    from ....text.tokenizer import Tokenizer

Kind = Literal["reasoning", "text", "call"]
_SPELLED = re.compile(r"<\|[^|<>\s]+\|>")
_WORD = f"[^\\s{chr(MARK_BASE)}-{chr(MARK_BASE + MAX_MARKS - 1)}]+"


@dataclass(frozen=True, slots=True)
class Channels:
    """How messages of one answer are told apart.

    `reads`: kinds of messages by an expression of their header with its body mark; the group `name` or `role_name` is
    the tool's. `reasoning`, `asides`, `finals`: headers as a model may write them: of reasoning, of text that more must
    follow, of text that may be the last. `calls`: of a call, with NAME for the tool's name, in the notation of
    call_grammar.py's rules; `call_end` is what stands behind the arguments, `calls_end` behind the last call and
    `final_end` behind a final text: tokens that end the answer; "" for any.
    """

    name: str
    start: str
    end: str
    body_marks: tuple[str, ...]
    end_marks: tuple[str, ...]
    reads: tuple[tuple[Kind, str], ...]
    reasoning: tuple[str, ...]
    asides: tuple[str, ...]
    finals: tuple[str, ...]
    json_finals: tuple[str, ...]  # also these, where the answer is JSON
    calls: tuple[tuple[str, ...], ...]  # one after the other, each one of several texts, "" for none
    between: str | None  # what stands between two calls; None: one a turn
    call_end: str
    calls_end: str
    final_end: str
    id_pattern: str  # of what stands for ID in `calls`
    again: tuple[str, str]  # see ReasoningTags
    off: str  # the effort that stands for no reasoning
    joins_text: bool = False  # a message with calls has one text: what was said goes to the reasoning
    patterns: tuple[tuple[Kind, re.Pattern[str]], ...] = field(default=(), compare=False)

    @property
    def tags(self) -> ReasoningTags:
        """What opens and closes reasoning, as text."""
        return ReasoningTags(self.reasoning[0], self.end, recurs=True, again=self.again)

    def texts(self) -> tuple[str, ...]:
        """Every fixed part in which special tokens may be."""
        heads = (*self.reasoning, *self.asides, *self.finals, *self.json_finals)
        calls = tuple(text for part in self.calls for text in part)
        return (
            self.start,
            self.end,
            *self.body_marks,
            *self.end_marks,
            *heads,
            *calls,
            self.call_end,
            self.calls_end,
            self.final_end,
        )

    def is_known(self, tokenizer: Tokenizer, template: str) -> bool:
        """Whether a model has these: its template writes them and each mark is one special token."""
        marks = {mark for text in self.texts() for mark in _SPELLED.findall(text)}
        return self.finals[0] in template and all(
            tokenizer.token_to_id(mark) in tokenizer.special_ids for mark in marks
        )

    def bind(self, marks: Marks) -> Channels:
        """The same with special tokens as marks, ready to read."""
        encode = marks.encode

        def each(texts: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(map(encode, texts))

        return replace(
            self,
            start=encode(self.start),
            end=encode(self.end),
            body_marks=each(self.body_marks),
            end_marks=each(self.end_marks),
            reasoning=each(self.reasoning),
            asides=each(self.asides),
            finals=each(self.finals),
            json_finals=each(self.json_finals),
            calls=tuple(map(each, self.calls)),
            between=None if self.between is None else encode(self.between),
            call_end=encode(self.call_end),
            calls_end=encode(self.calls_end),
            final_end=encode(self.final_end),
            patterns=tuple((kind, _pattern(text, encode)) for kind, text in self.reads),
        )

    def borders(self, marks: Marks) -> frozenset[str]:
        """The marks that begin and end messages."""
        return frozenset(marks.encode(text)[:1] for text in (self.start, *self.end_marks))


def _pattern(text: str, encode: Callable[[str], str]) -> re.Pattern[str]:
    """An expression of a header: WORD is a run without blanks and marks."""
    return re.compile(encode(text).replace("WORD", _WORD))


_TYPE = r"(?:\s*(?:<|constrain|>)?(?:WORD)?\s*)"

HARMONY = Channels(
    name="harmony",
    start="<|start|>assistant",
    end="<|end|>",
    body_marks=("<|message|>",),
    end_marks=("<|end|>", "<|call|>", "<|return|>"),
    reads=(
        ("call", rf"\s*to=(?:functions\.)?(?P<role_name>WORD)<|channel|>(?:commentary|analysis){_TYPE}<|message|>"),
        ("call", rf"<|channel|>(?:commentary|analysis)\s*to=(?:functions\.)?(?P<name>WORD){_TYPE}<|message|>"),
        ("reasoning", rf"(?:\s*to=WORD)?<|channel|>analysis(?:\s*to=WORD)?{_TYPE}<|message|>"),
        ("text", rf"(?:\s*to=WORD)?<|channel|>(?:final|commentary)(?:\s*to=WORD)?{_TYPE}<|message|>"),
    ),
    reasoning=("<|channel|>analysis<|message|>",),
    asides=("<|channel|>commentary<|message|>",),
    finals=("<|channel|>final<|message|>",),
    json_finals=("<|channel|>final <|constrain|>json<|message|>",),
    calls=(
        (
            " to=functions.NAME<|channel|>commentary", " to=functions.NAME<|channel|>analysis",
            "<|channel|>commentary to=functions.NAME", "<|channel|>analysis to=functions.NAME",
        ),
        (" json", " <|constrain|>json", "<|constrain|>json", ""),
        ("<|message|>",),
    ),
    between=None,
    call_end="",
    calls_end="<|call|>",
    final_end="<|return|>",
    id_pattern="",
    again=("<|channel|>", "analysis"),
    off="low",
    joins_text=True,
)  # fmt: skip

SOLAR = Channels(
    name="solar",
    start="<|begin|>assistant",
    end="<|end|>",
    body_marks=("<|think|>", "<|content|>", "<|tool_call:args|>"),
    end_marks=("<|end|>", "<|calls|>", "<|flush|>", "<|tool_call:end|>"),
    reads=(
        ("call", r"(?:<|tool_calls|>)?<|tool_call:begin|>(?:WORD)?<|tool_call:name|>(?P<name>WORD)<|tool_call:args|>"),
        ("reasoning", r"<|think|>"),
        ("text", r"<|content|>"),
    ),
    reasoning=("<|think|>",),
    asides=(),
    finals=("<|content|>",),
    json_finals=(),
    calls=(("<|tool_calls|><|tool_call:begin|>ID<|tool_call:name|>NAME<|tool_call:args|>",),),
    between="<|tool_call:begin|>ID<|tool_call:name|>NAME<|tool_call:args|>",
    call_end="<|tool_call:end|>",
    calls_end="<|calls|>",
    final_end="",
    id_pattern="[a-z0-9]{10}",
    again=("assistant", "<|think|>"),
    off="minimal",
)

ALL = (HARMONY, SOLAR)


def find_channels(template: str, tokenizer: Tokenizer) -> Channels | None:
    """The messages that a model's answers are made of; None where an answer is one."""
    return next((one for one in ALL if one.is_known(tokenizer, template)), None)
