"""The words in which a conversation and its answer are put, whatever the protocol that carried them.

Messages, tools and output formats go in; events come out. They are public: `kamado.Message`, `kamado.Tool`, ….
`Model.chat` takes and yields them, and the server's three protocol families translate to and from them. Plain immutable
data; sizes and types of what comes from outside are checked before these are made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

Role = Literal["system", "user", "assistant", "tool"]
Effort = Literal["minimal", "low", "medium", "high"]
FinishReason = Literal["stop", "stop_sequence", "length", "tool_calls"]


@dataclass(frozen=True, slots=True)
class TextPart:
    """Text of a message. A message may have several; they are read one after the other."""

    text: str


@dataclass(frozen=True, slots=True)
class ImagePart:
    """A picture, its bytes as they were sent and bounded in size. A model without vision refuses it."""

    data: bytes
    media_type: str  # "image/png", …


Part: TypeAlias = TextPart | ImagePart


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that an assistant message made."""

    id: str  # "" when the protocol has none: then calls and results match by order
    name: str
    arguments: str  # JSON text of an object; of a call that was cut the beginning of it


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `developer` of other protocols is "system" here."""

    role: Role
    parts: tuple[Part, ...] = ()
    reasoning: str = ""  # of an assistant message, as the client sent it back
    tool_calls: tuple[ToolCall, ...] = ()  # of an assistant message
    tool_call_id: str = ""  # of a tool message: the call that it answers
    name: str = ""  # of a tool message: the tool; else the speaker, where a template knows of names

    @property
    def text(self) -> str:
        """All text parts together."""
        return "".join(part.text for part in self.parts if isinstance(part, TextPart))


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)  # JSON Schema of an object; {}: no parameters
    strict: bool = True  # False: what of `parameters` cannot be enforced is left open and checked, not refused


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Whether tools are called. `names`: only these may be (empty: all of them)."""

    mode: Literal["auto", "none", "required"] = "auto"
    names: frozenset[str] = frozenset()
    parallel: bool = True  # False: one call at the most


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """What the answer's text must be. Reasoning and tool calls before it are not bound by this."""

    kind: Literal["text", "json", "json_schema", "regex", "lark"] = "text"
    schema: Mapping[str, Any] | None = None  # of json_schema
    grammar: str = ""  # of regex and lark
    is_strict: bool = True  # False: what of `schema` cannot be enforced is left open and checked, not refused


@dataclass(frozen=True, slots=True)
class Think:
    """How much to reason. `enabled` None: as the model does by itself."""

    enabled: bool | None = None
    effort: Effort | None = None
    max_tokens: int | None = None  # reasoning ends after this many tokens


# --- events -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token, its log-probability (natural logarithm), and the most likely ones in its place, likeliest first."""

    token: int
    text: bytes  # its bytes, perhaps no whole character
    logprob: float
    top: tuple[tuple[int, bytes, float], ...] = ()  # (token, bytes, logprob)


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More of the answer's text. `text` may be empty when only log-probabilities are new."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    choice: int = 0


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """More of the reasoning."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    choice: int = 0


@dataclass(frozen=True, slots=True)
class ToolCallStart:
    """A call begins; `index` counts the calls of this choice from 0. Its name is whole."""

    index: int
    id: str
    name: str
    choice: int = 0


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """More of a call's arguments: JSON text, which together is one object."""

    index: int
    arguments: str
    choice: int = 0


@dataclass(frozen=True, slots=True)
class ToolCallEnd:
    """A call ends, and every call that began does. `is_cut`: the answer ended inside it, and its arguments are the
    beginning of an object (cut_json.py); else they are whole and parse."""

    index: int
    choice: int = 0
    is_cut: bool = False


@dataclass(frozen=True, slots=True)
class Finish:
    """One choice is complete. `stop_sequence`: which one came, for the reason of that name. `violations`: what the
    whole answer violates of schemas that were not strict and could not be enforced, each with its place."""

    reason: FinishReason
    stop_sequence: str | None = None
    choice: int = 0
    violations: tuple[str, ...] = ()


ContentEvent: TypeAlias = TextDelta | ReasoningDelta | ToolCallStart | ToolCallDelta | ToolCallEnd
Event: TypeAlias = ContentEvent | Finish  # what `Model.chat` yields when tools or thinking are asked for
