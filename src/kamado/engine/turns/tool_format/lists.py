"""A JSON list of calls between tags: Hunyuan A13B, Phi-4-mini, Nemotron Nano 2."""

from __future__ import annotations

from dataclasses import replace

from .formats import JSON_LIST, ToolFormat
from .syntax import CallSyntax


def _between(begin: str, end: str) -> CallSyntax:
    return replace(JSON_LIST, begin=begin, close=f"]{end}")


FORMAT = ToolFormat(
    "lists",
    (
        _between("<tool_calls>", "</tool_calls>"),
        _between("<|tool_call|>", "<|/tool_call|>"),
        _between("<TOOLCALL>", "</TOOLCALL>"),
    ),
)
