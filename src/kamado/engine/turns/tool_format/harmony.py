"""gpt-oss: an answer is messages in channels (channels.HARMONY). A call is one message, to `functions.name`, and the
last of its turn; its template writes the name before the channel.
Solar Open: the same with other marks, several calls in one message, each with an id before its name."""

from __future__ import annotations

from .formats import ToolFormat
from .syntax import CallSyntax

_HARMONY = CallSyntax(begin=" to=functions.", head="", middle="<|channel|>commentary json<|message|>", tail="")
_SOLAR = CallSyntax(
    begin="<|tool_calls|>",
    head="<|tool_call:begin|>",
    id_first="<|tool_call:name|>",
    middle="<|tool_call:args|>",
    tail="<|tool_call:end|>",
    between="",
)

FORMAT = ToolFormat("harmony", (_HARMONY,))
SOLAR = ToolFormat("solar", (_SOLAR,), id_length=10)
