"""Qwen3-Coder, Qwen3-Next, Qwen3.5, Nemotron 3 and Step 3.5: `<function=name>` with `<parameter=key>` tags in
`<tool_call>`; Seed-OSS the same with other tags.

Coder leaves `<tool_call>` out at times, and a call may end reasoning that nothing has closed.
"""

from __future__ import annotations

from dataclasses import replace

from .formats import ToolFormat
from .syntax import ArgumentTags, CallSyntax


def _function(tag: str, arguments: ArgumentTags, between: str) -> CallSyntax:
    return CallSyntax(
        begin=f"<{tag}>",
        head="\n<function=",
        middle=">\n",
        tail=f"</function>\n</{tag}>",
        between=f"{between}<{tag}>",
        arguments=arguments,
        bare="<function=",
        bare_tail="</function>",
        ends_reasoning=True,
    )


_QWEN = _function("tool_call", ArgumentTags("<parameter=", ">\n", "\n</parameter>\n"), "\n")

FORMAT = ToolFormat("qwen_xml", (_QWEN, replace(_QWEN, between="<tool_call>")))
SEED = ToolFormat("seed", (_function("seed:tool_call", ArgumentTags("<parameter=", ">", "</parameter>\n"), "\n"),))
