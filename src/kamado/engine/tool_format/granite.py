"""Granite 3: the token `<|tool_call|>`, or its text, and a JSON list of calls."""

from __future__ import annotations

from dataclasses import replace

from .formats import ToolFormat
from .syntax import CallSyntax

_LIST = CallSyntax(
    begin="<|tool_call|>",
    open="[",
    head='{"name": "',
    middle='", "arguments": ',
    tail="}",
    between=", ",
    close="]",
)
_TAGGED = replace(_LIST, begin="<tool_call>")

FORMAT = ToolFormat("granite", (_LIST, _TAGGED))
