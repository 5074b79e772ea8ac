"""What becomes of the parameters of Anthropic's endpoints."""

from __future__ import annotations

from typing import Any

from ...http.parameters import Row, one_of
from ..row_words import honoured, left_out, part, refused, typed

MESSAGES, COUNT = ("POST /v1/messages",), ("POST /v1/messages/count_tokens",)
_BOTH = (*MESSAGES, *COUNT)
_NOT_HERE = "it is run by Anthropic's servers or made for its own models; give a tool with name and input_schema"
_TOOL: dict[str, Any] = {"name": "look", "input_schema": {"type": "object"}}
_SEARCH = {"type": "web_search_20250305", "name": "web_search", "max_uses": 3}


def _keeps_all(value: Any) -> bool:
    """Whether a context_management changes no prompt: no edits, or thinking that is all kept."""
    edits = value.get("edits") if isinstance(value, dict) else None
    return (
        isinstance(value, dict)
        and not set(value) - {"edits"}
        and (not edits or isinstance(edits, list))
        and all(
            isinstance(edit, dict)
            and edit.get("type") == "clear_thinking_20251015"
            and edit.get("keep") in ("all", {"type": "all"})
            for edit in edits or ()
        )
    )


def _clears_thinking(value: Any) -> bool:
    """Whether a context_management takes out earlier thinking and nothing else."""
    edits = value.get("edits") if isinstance(value, dict) and set(value) == {"edits"} else None
    if not isinstance(edits, list) or len(edits) != 1 or not isinstance(edits[0], dict):
        return False
    keep = edits[0].get("keep")
    number = keep.get("value") if isinstance(keep, dict) and keep.get("type") == "thinking_turns" else None
    is_number = isinstance(number, int) and not isinstance(number, bool) and number >= 0
    return edits[0].get("type") == "clear_thinking_20251015" and (keep is None or is_number)


def _marked(where: str) -> Any:
    """A body with a `scope` in a cache_control at `where`."""

    def within(value: Any) -> dict[str, Any]:
        mark = {"type": "ephemeral"} | ({} if value is None else {"scope": value})
        text = {"type": "text", "text": "a", "cache_control": mark}
        if where == "system":
            return {"system": [text]}
        if where == "tools":
            return {"tools": [{**_TOOL, "cache_control": mark}]}
        if where == "messages":
            return {"messages": [{"role": "user", "content": [text]}]}
        if where == "results":
            use = {"type": "tool_use", "id": "t1", "name": "look", "input": {}}
            result = {"type": "tool_result", "tool_use_id": "t1", "content": [text]}
            said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": [use]}]
            return {"tools": [_TOOL], "messages": [*said, {"role": "user", "content": [result]}]}
        return {"cache_control": mark}

    return within


def _with_tools(value: Any) -> dict[str, Any]:
    return {"tools": [_TOOL, *([] if value is None else [value])]}


def _a_tool_with(name: str) -> Any:
    return lambda value: {"tools": [_TOOL if value is None else {**_TOOL, name: value}]}


_SCOPE = "prefixes are shared within one API key, always"
ROWS = [
    *honoured(_BOTH, "model messages system tools tool_choice thinking output_config cache_control"),
    *honoured(_BOTH, "output_format", "the older name of output_config.format"),
    *honoured(MESSAGES, "max_tokens stream stop_sequences temperature top_k top_p metadata service_tier"),
    *part(MESSAGES, "max_tokens", "0", "the prompt is computed and cached, nothing is answered"),
    *part(_BOTH, "output_config", "effort", "xhigh and max as high"),
    *honoured(_BOTH, "speed", "standard"),
    *left_out(
        _BOTH, "speed", "there is one speed here, the standard one", "fast", part="fast", takes=one_of("fast")
    ),
    *left_out(
        _BOTH, "context_management", "all thinking is kept: nothing changes",
        {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}, {"edits": []},
        part="edits that change nothing", takes=_keeps_all,
    ),
    *[
        Row(
            endpoint, "context_management", "honoured", "thinking of earlier turns is taken out of the prompt",
            part="clear_thinking", takes=_clears_thinking,
        )
        for endpoint in _BOTH
    ],
    *refused(
        _BOTH, "context_management", "contexts are not edited here: send the messages that the model is to see",
        {"edits": [{"type": "clear_tool_uses_20250919"}]},
        {"edits": [{"type": "clear_thinking_20251015", "keep": "most"}]},
        {"edits": [{"type": "compact_20260112"}]},
    ),
    *left_out(
        _BOTH, "output_config.task_budget",
        "an answer ends at max_tokens; budgets of several requests are the client's",
        {"type": "tokens", "total": 1000},
    ),
    *left_out(_BOTH, "mcp_servers", "this server calls no other: connect to MCP servers in the client", [{"url": "x"}]),
    *left_out(
        _BOTH, "tools", _NOT_HERE, _SEARCH, {"type": "bash_20250124", "name": "bash"},
        {"type": "text_editor_20250728", "name": "str_replace_based_edit_tool"}, {"type": "mcp_toolset", "name": "m"},
        {"type": "code_execution_20250825", "name": "code_execution"}, {"type": "tool_search_tool_regex_20251119",
        "name": "s"},
        path="tools[]", part="hosted", takes=typed(but=("custom",)), within=_with_tools,
    ),
    *refused(
        _BOTH, "tool_choice", "there is no such tool", {"type": "tool", "name": "web_search"}, part="hosted",
        by_code=True,
        within=lambda v: {"tools": [_TOOL, _SEARCH], "tool_choice": v},
    ),
    *left_out(
        _BOTH, "tools.defer_loading", "there is no tool search here: the model sees all tools from the beginning", True,
        path="tools[].defer_loading", within=_a_tool_with("defer_loading"), takes=one_of(True, False),
    ),
    *left_out(
        _BOTH, "tools.allowed_callers", "only the model itself calls tools here", ["direct", "code_execution_20250825"],
        path="tools[].allowed_callers", within=_a_tool_with("allowed_callers"),
        takes=lambda v: isinstance(v, list) and "direct" in v and v != ["direct"], part="the model and others",
    ),
    *refused(
        _BOTH, "tools.allowed_callers", "only the model itself calls tools here (direct)", ["code_execution_20250825"],
        path="tools[].allowed_callers", within=_a_tool_with("allowed_callers"),
        takes=lambda v: isinstance(v, list) and bool(v) and "direct" not in v,
    ),
    *left_out(_BOTH, "cache_control.scope", _SCOPE, "global", within=_marked("")),
    *left_out(
        _BOTH, "system.cache_control.scope", _SCOPE, "global", path="system[].cache_control.scope",
        within=_marked("system"),
    ),
    *left_out(
        _BOTH, "tools.cache_control.scope", _SCOPE, "global", path="tools[].cache_control.scope",
        within=_marked("tools"),
    ),
    *left_out(
        _BOTH, "messages.cache_control.scope", _SCOPE, "global", path="messages[].content[].cache_control.scope",
        within=_marked("messages"),
    ),
    *left_out(
        _BOTH, "messages.content.cache_control.scope", _SCOPE, "global",
        path="messages[].content[].content[].cache_control.scope", within=_marked("results"),
    ),
    *left_out(_BOTH, "betas", "what is here needs no beta", ["context-management-2025-06-27"]),
    *left_out(_BOTH, "anthropic_beta", "what is here needs no beta", ["context-management-2025-06-27"]),
    *left_out(_BOTH, "anthropic_version", "there is one version of the API here", "vertex-2023-10-16"),
    *refused(MESSAGES, "container", "there are no containers here: this server runs no code", "c_1", {"id": "c_1"}),
    *refused(
        MESSAGES, "diagnostics", "there are none here: usage.cache_read_input_tokens says what was found in the cache",
        {"a": 1},
    ),
    *refused(MESSAGES, "inference_geo", "the answer is computed on this machine, in no other region", "us"),
]  # fmt: skip
