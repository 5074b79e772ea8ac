"""Mistral: `[TOOL_CALLS]` and a JSON list, or since 2025 `[TOOL_CALLS]name[ARGS]{…}` for each call, with
`[CALL_ID]id` before `[ARGS]` in Small 3.2."""

from __future__ import annotations

from dataclasses import replace

from .formats import JSON_LIST, ToolFormat
from .syntax import CallSyntax

_LIST = replace(JSON_LIST, begin="[TOOL_CALLS]", id_key=', "id": ')
_NAMED = CallSyntax(begin="[TOOL_CALLS]", head="", middle="[ARGS]", tail="", between="[TOOL_CALLS]")
_WITH_ID = replace(_NAMED, id_before="[CALL_ID]")

FORMAT = ToolFormat("mistral", (_LIST, replace(_LIST, open=" ["), _NAMED, _WITH_ID), id_length=9)
