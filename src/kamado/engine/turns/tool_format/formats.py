"""What a chat format says about tools, and the list of all formats in the order in which they are tried."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .syntax import CallSyntax

__all__ = ["JSON_CALL", "JSON_LIST", "ToolFormat", "tagged"]

JSON_CALL = CallSyntax(head='{"name": "', middle='", "arguments": ', tail="}")
JSON_LIST = replace(JSON_CALL, open="[", between=", ", close="]")


def tagged(gap: str, between: str) -> CallSyntax:
    """JSON between `<tool_call>` tags: `gap` is what stands inside of them, `between` what parts two calls."""
    head, tail = f"{gap}{JSON_CALL.head}", f"{JSON_CALL.tail}{gap}</tool_call>"
    return replace(JSON_CALL, begin="<tool_call>", head=head, tail=tail, between=f"{between}<tool_call>")


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """A family's way with tools.

    `syntaxes` are tried one after the other against what the template renders. A format with `instructions` is for
    templates that know nothing of tools: the instructions go into the system message, calls and results into messages.
    """

    name: str
    syntaxes: tuple[CallSyntax, ...]
    instructions: str | None = None  # has {tools}, one JSON object a line
    result: tuple[str, str] = ("", "")  # what is put around a tool's result
    id_length: int | None = None  # templates that refuse ids of another length
    unwritten: CallSyntax | None = None  # of models whose template shows tools and leaves out calls: we write them
    told: str = ""  # what such a template says, or such a vocabulary has
    result_mark: str = ""  # what must stand before a result; "": anything may
    results_name: str = ""  # of the call's message, where the template takes its results there

    @property
    def is_prompted(self) -> bool:
        """Whether we tell the model of its tools, not the template."""
        return self.instructions is not None
