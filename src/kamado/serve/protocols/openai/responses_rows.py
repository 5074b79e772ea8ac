"""What becomes of the parameters of /v1/responses."""

from __future__ import annotations

from typing import Any

from ...http.parameters import Row, one_of
from ..row_words import happens, honoured, left_out, part, refused, typed

RESPONSES = ("POST /v1/responses", "POST /v1/responses/input_tokens")

NO_SEARCH = "it runs on the servers of others; the model answers without it"
LABEL = "a label for its sender's own records"
# Tools that OpenAI's servers run, or that its own models were trained to call without a schema.
HOSTED = (
    "web_search", "web_search_2025_08_26", "web_search_preview", "web_search_preview_2025_03_11", "file_search",
    "code_interpreter", "image_generation", "mcp", "computer", "computer_use_preview", "computer-preview",
    "local_shell", "shell", "apply_patch", "tool_search", "custom", "programmatic_tool_calling",
)  # fmt: skip
# What OpenAI's answers can include and ours never have.
OTHERS_INCLUDABLE = (
    "web_search_call.action.sources", "web_search_call.results", "code_interpreter_call.outputs",
    "file_search_call.results", "computer_call_output.output.image_url", "message.input_image.image_url",
)  # fmt: skip
_FUNCTION: dict[str, Any] = {"type": "function", "name": "look", "parameters": {"type": "object"}}


def _with_tools(value: Any) -> dict[str, Any]:
    return {"tools": [_FUNCTION, *([] if value is None else [value])]}


def _a_function_with(name: str) -> Any:
    return lambda value: {"tools": [_FUNCTION if value is None else {**_FUNCTION, name: value}]}


def _a_namespace_with(name: str) -> Any:
    tools = _a_function_with(name)
    return lambda value: {"tools": [{"type": "namespace", "name": "n", **tools(value)}]}


def _choosing(value: Any) -> dict[str, Any]:
    return {"tools": [_FUNCTION, {"type": "web_search"}], "tool_choice": value}


def _including(value: Any) -> dict[str, Any]:
    return {"include": [] if value is None else [value]}


RESPONSES_ROWS: list[Row] = [
    *honoured(RESPONSES, "input instructions max_output_tokens metadata parallel_tool_calls previous_response_id"),
    *honoured(RESPONSES, "prompt_cache_key reasoning safety_identifier store stream_options text tool_choice tools"),
    *honoured(RESPONSES, "top_logprobs truncation include"),
    *part(RESPONSES, "max_output_tokens", "-1", "as many as fit"),
    *part(RESPONSES, "text", "format"),
    *part(RESPONSES, "include", "reasoning.encrypted_content"),
    *part(RESPONSES, "include", "message.output_text.logprobs"),
    *part(RESPONSES, "tools", "namespace", "each function of it under the namespace's name; calls come back with both"),
    *part(RESPONSES, "service_tier", "auto, default, flex", "flex goes behind interactive requests"),
    *honoured(RESPONSES, "service_tier"),
    *left_out(
        RESPONSES, "service_tier", "there is one tier here; flex goes behind interactive requests", "priority", "scale",
        part="others", takes=lambda v: isinstance(v, str) and v not in ("auto", "default", "flex"),
    ),
    *refused(
        RESPONSES, "background", "stream the response, or ask again for less", True, part="true", takes=one_of(True)
    ),
    *left_out(RESPONSES, "background_options", "responses are not made in the background", {"a": 1}),
    *left_out(RESPONSES, "client_metadata", LABEL, {"x-codex-turn-metadata": "{}"}),
    *happens(
        RESPONSES, "text.verbosity", ("medium",),
        "no model here has this switch: ask for short or long answers in the prompt", "left out", "low", "high",
    ),
    *happens(
        RESPONSES, "reasoning.summary", ("auto", "none"), "reasoning is shown as it is, not summed up", "left out",
        "detailed", "concise",
    ),
    *happens(
        RESPONSES, "reasoning.generate_summary", ("auto",), "reasoning is shown as it is, not summed up", "left out",
        "detailed", "concise",
    ),
    *left_out(
        RESPONSES, "include", "it belongs to tools that are not here", *OTHERS_INCLUDABLE, path="include[]",
        part="of hosted tools", takes=one_of(*OTHERS_INCLUDABLE), within=_including,
    ),
    *refused(
        RESPONSES, "include", "reasoning.encrypted_content and message.output_text.logprobs can be included", "soul",
        path="include[]", part="others", within=_including,
        takes=lambda v: v not in ("reasoning.encrypted_content", "message.output_text.logprobs"),
    ),
    *left_out(
        RESPONSES, "tools", f"{NO_SEARCH}; functions are called by you", *({"type": kind,
        "name": "x"} for kind in HOSTED),
        path="tools[]", part="hosted", takes=typed(among=HOSTED), within=_with_tools,
    ),
    *left_out(
        RESPONSES, "tools.tools", f"{NO_SEARCH}; functions are called by you", {"type": "custom", "name": "x"},
        path="tools[].tools[]", takes=typed(among=HOSTED),
        within=lambda v: {
            "tools": [{"type": "namespace", "name": "n", "tools": [_FUNCTION, *([] if v is None else [v])]}]
        },
    ),
    *refused(
        RESPONSES, "tool_choice", "this tool is not here", {"type": "web_search"}, {"type": "custom", "name": "x"},
        part="hosted", takes=typed(among=HOSTED), within=_choosing,
    ),
    *left_out(
        RESPONSES, "tool_choice.tools", f"{NO_SEARCH}; functions are called by you", {"type": "web_search"},
        path="tool_choice.tools[]", takes=typed(among=HOSTED),
        within=lambda v: {
            "tools": [_FUNCTION],
            "tool_choice": {
                "type": "allowed_tools", "mode": "auto",
                "tools": [{"type": "function", "name": "look"}, *([] if v is None else [v])],
            },
        },
    ),
    *[
        row
        for name, value, why in (
            ("defer_loading", True, "there is no tool search here: the model sees all tools from the beginning"),
            ("output_schema", {"type": "object"}, "results are read as they come"),
            ("async", True, "calls are yours to make"),
            ("allowed_callers", ["direct", "programmatic"], "only the model itself calls tools here"),
        )
        for row in (
            *left_out(RESPONSES, f"tools.{name}", why, value, path=f"tools[].{name}", within=_a_function_with(name)),
            *left_out(
                RESPONSES, f"tools.tools.{name}", why, value, path=f"tools[].tools[].{name}",
                within=_a_namespace_with(name),
            ),
        )
    ],
    *happens(RESPONSES, "reasoning.mode", ("standard",), "there is one way to reason here", "left out", "pro"),
    *happens(
        RESPONSES, "reasoning.context", ("auto",), "earlier reasoning is what the input has of it", "left out",
        "current_turn", "all_turns",
    ),
    *refused(RESPONSES, "access_programs", "there are none here", [{"type": "x"}]),
    *refused(
        RESPONSES, "context_management", "nothing is compacted; truncation: auto may leave messages out",
        [{"type": "compaction", "compact_threshold": 1000}],
    ),
    *refused(RESPONSES, "conversation", "conversations are carried on by previous_response_id", "conv_1"),
    *refused(RESPONSES, "image", "no model here makes pictures", {"size": "auto"}),
    *left_out(RESPONSES, "max_tool_calls", "it counts calls of hosted tools, and none is here", 3),
    *refused(RESPONSES, "moderation", "no moderation model is here", {"model": "m"}),
    *refused(RESPONSES, "prompt", "no prompt templates are stored here", {"id": "p"}),
]  # fmt: skip
