"""Mistral: `[TOOL_CALLS]` and a JSON list, or since 2025 `[TOOL_CALLS]name[ARGS]{…}` for each call."""

from __future__ import annotations

from dataclasses import replace

from .formats import JSON_LIST, ToolFormat
from .syntax import CallSyntax

_LIST = replace(JSON_LIST, begin="[TOOL_CALLS]", id_key=', "id": ')
_NAMED = CallSyntax(begin="[TOOL_CALLS]", head="", middle="[ARGS]", tail="", between="[TOOL_CALLS]")

FORMAT = ToolFormat("mistral", (_LIST, replace(_LIST, open=" ["), _NAMED), id_length=9)
