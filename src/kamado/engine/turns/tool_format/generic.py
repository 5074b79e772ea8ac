"""For models whose template has no tools and whose family has no known format (SmolLM2): the form that most
fine-tunes have seen, explained in the system message."""

from __future__ import annotations

from .formats import ToolFormat, tagged

FORMAT = ToolFormat(
    "generic",
    (tagged("\n", "\n"),),
    instructions=(
        "You have tools. To use one, write its name and its arguments as JSON between <tool_call> and </tool_call>:\n"
        '<tool_call>\n{{"name": "<tool>", "arguments": {{"<argument>": <value>}}}}\n</tool_call>\n'
        "What it returned follows between <tool_response> and </tool_response>. When no tool is of use, just answer.\n"
        "The tools, one a line:\n"
        "{tools}"
    ),
    result=("<tool_response>\n", "\n</tool_response>"),
)
