"""Llama 3.1 to 3.3: the whole message is one JSON object, perhaps after `<|python_tag|>`."""

from __future__ import annotations

from dataclasses import replace

from .formats import JSON_CALL, ToolFormat

_BARE = replace(JSON_CALL, middle='", "parameters": ')
_TAGGED = replace(_BARE, begin="<|python_tag|>")

FORMAT = ToolFormat("llama3", (_BARE, _TAGGED, JSON_CALL))
