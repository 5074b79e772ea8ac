"""Qwen 2.5 and 3, Hermes, Granite 4, many fine-tunes: a JSON object between `<tool_call>` tags, several in a row."""

from __future__ import annotations

from .formats import ToolFormat
from .syntax import CallSyntax

_LINES = CallSyntax(
    begin="<tool_call>",
    head='\n{"name": "',
    middle='", "arguments": ',
    tail="}\n</tool_call>",
    between="\n<tool_call>",
)
_ONE_LINE = CallSyntax(
    begin="<tool_call>",
    head='{"name": "',
    middle='", "arguments": ',
    tail="}</tool_call>",
    between="<tool_call>",
)
_SPACED = CallSyntax(
    begin="<tool_call>",
    head='{"name": "',
    middle='", "arguments": ',
    tail="}</tool_call>",
    between="\n<tool_call>",
)

FORMAT = ToolFormat("hermes", (_LINES, _ONE_LINE, _SPACED))
