"""GLM 4.5 to 5: the name, then `<arg_key>` and `<arg_value>` pairs, in `<tool_call>`; since 4.7 without line breaks.
Hunyuan 3 the same with other tags, in one block for all calls."""

from __future__ import annotations

from dataclasses import replace

from .formats import ToolFormat
from .syntax import ArgumentTags, CallSyntax

_LINES = CallSyntax(
    begin="<tool_call>", head="", middle="\n", tail="</tool_call>", between="\n<tool_call>",
    arguments=ArgumentTags("<arg_key>", "</arg_key>\n<arg_value>", "</arg_value>\n"), ends_reasoning=True,
)  # fmt: skip
_DENSE = replace(  # the first key follows the name, or the end
    _LINES,
    middle="",
    between="<tool_call>",
    arguments=ArgumentTags("<arg_key>", "</arg_key><arg_value>", "</arg_value>"),
)
_HUNYUAN = CallSyntax(
    begin="<tool_calls:opensource>", open="\n", head="<tool_call:opensource>", middle="<tool_sep:opensource>\n",
    tail="</tool_call:opensource>\n", between="", close="</tool_calls:opensource>",
    arguments=ArgumentTags(
        "<arg_key:opensource>", "</arg_key:opensource>\n<arg_value:opensource>", "</arg_value:opensource>\n"
    ),
)  # fmt: skip

FORMAT = ToolFormat("glm", (_LINES, _DENSE, _HUNYUAN))
