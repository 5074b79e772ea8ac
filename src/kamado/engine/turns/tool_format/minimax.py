"""MiniMax M2 to M2.5: a block `<minimax:tool_call>` with an `<invoke>` for each call."""

from __future__ import annotations

from .formats import ToolFormat
from .syntax import ArgumentTags, CallSyntax

_INVOKE = CallSyntax(
    begin="<minimax:tool_call>", open="\n", head='<invoke name="', middle='">\n', tail="</invoke>\n", between="",
    close="</minimax:tool_call>", arguments=ArgumentTags('<parameter name="', '">', "</parameter>\n"),
    ends_reasoning=True,
)  # fmt: skip

FORMAT = ToolFormat("minimax", (_INVOKE,))
