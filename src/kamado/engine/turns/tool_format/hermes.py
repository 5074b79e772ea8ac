"""Qwen 2.5 and 3, Hermes, Granite 4, many fine-tunes: a JSON object between `<tool_call>` tags, several in a row."""

from __future__ import annotations

from .formats import ToolFormat, tagged

FORMAT = ToolFormat(
    "hermes",
    (tagged("\n", "\n"), tagged("", ""), tagged("", "\n")),
    unwritten=tagged("\n", "\n"),
    told='<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>',  # SmolLM3
)
