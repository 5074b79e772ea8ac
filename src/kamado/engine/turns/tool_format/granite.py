"""Granite 3: the token `<|tool_call|>`, or its text, and a JSON list of calls."""

from __future__ import annotations

from dataclasses import replace

from .formats import JSON_LIST, ToolFormat

FORMAT = ToolFormat("granite", (replace(JSON_LIST, begin="<|tool_call|>"), replace(JSON_LIST, begin="<tool_call>")))
