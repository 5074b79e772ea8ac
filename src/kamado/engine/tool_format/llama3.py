"""Llama 3.1 to 3.3: the whole message is one JSON object, perhaps after `<|python_tag|>`."""

from __future__ import annotations

from .formats import ToolFormat
from .syntax import CallSyntax

_BARE = CallSyntax(head='{"name": "', middle='", "parameters": ', tail="}")
_TAGGED = CallSyntax(begin="<|python_tag|>", head='{"name": "', middle='", "parameters": ', tail="}")
_ARGUMENTS = CallSyntax(head='{"name": "', middle='", "arguments": ', tail="}")

FORMAT = ToolFormat("llama3", (_BARE, _TAGGED, _ARGUMENTS))
