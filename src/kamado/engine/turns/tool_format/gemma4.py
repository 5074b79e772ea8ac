"""Gemma 4: `<|tool_call>call:name{key:value,…}<tool_call|>`, keys bare and in their order, texts as they are between
two `<|"|>`. Results follow inside of the model's own turn."""

from __future__ import annotations

from dataclasses import replace

from .formats import ToolFormat
from .syntax import BareArguments, CallSyntax

_CALL = CallSyntax(
    begin="<|tool_call>",
    head="call:",
    middle="{",
    tail="}<tool_call|>",
    between="<|tool_call>",
    arguments=BareArguments('<|"|>'),
    item_separator=",",
    key_separator=":",
)

FORMAT = ToolFormat("gemma4", (_CALL,), result_mark="<|tool_response>")
# Its first templates take results in the message with the call.
FIRST = replace(FORMAT, results_name="tool_responses")
