"""Calls as in Python. OLMo 3: one a line in `<function_calls>`, values as JSON. LFM2: a list in
`<|tool_call_start|>`, values as Python literals; but for LFM2.5-8B-A1B its templates show tools and write no call."""

from __future__ import annotations

from dataclasses import replace

from .formats import ToolFormat
from .syntax import CallSyntax, KeywordArguments

_OLMO = CallSyntax(
    begin="<function_calls>", head="", middle="(", tail=")", between="\n", close="</function_calls>",
    arguments=KeywordArguments("json"),
)  # fmt: skip
_LFM = CallSyntax(
    begin="<|tool_call_start|>", open="[", head="", middle="(", tail=")", between=", ", close="]<|tool_call_end|>",
    arguments=KeywordArguments("python"), ends_reasoning=True,
)  # fmt: skip

FORMAT = ToolFormat("pythonic", (_OLMO, replace(_LFM, arguments=KeywordArguments("shown")), _LFM),
    unwritten=_LFM, told=_LFM.begin)  # fmt: skip
