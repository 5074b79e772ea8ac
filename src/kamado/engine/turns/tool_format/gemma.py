"""Gemma 3, whose template has no tools: its makers' advice is to ask for one JSON object as the whole message."""

from __future__ import annotations

from dataclasses import replace

from .formats import JSON_CALL, ToolFormat

FORMAT = ToolFormat(
    "gemma",
    (replace(JSON_CALL, middle='", "parameters": '),),
    instructions=(
        "You can call functions. To call one, answer with nothing but a JSON object of this form:\n"
        '{{"name": "<function>", "parameters": {{"<parameter>": <value>}}}}\n'
        "When no function is of use, answer in words. What a function returned follows in the next message.\n"
        "The functions, one a line:\n"
        "{tools}"
    ),
    result=("The function returned:\n", ""),
)
