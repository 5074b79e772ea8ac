"""Granite 3: the token `<|tool_call|>`, or its text, and a JSON list of calls."""

from __future__ import annotations

from dataclasses import replace

from .formats import JSON_LIST, ToolFormat

_TOKEN = replace(JSON_LIST, begin="<|tool_call|>")

FORMAT = ToolFormat(
    "granite",
    (_TOKEN, replace(JSON_LIST, begin="<tool_call>")),
    unwritten=_TOKEN,
    told="respond only with <|tool_call|> followed by a JSON list of tools used",  # 3.3
)
