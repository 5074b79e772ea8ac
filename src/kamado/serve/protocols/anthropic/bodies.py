"""What a client of Anthropic's Messages API sends, and the conversation it means.

What is honoured is a field; what is left out or refused is a row of rows.py and never comes here; what is
neither is unknown and refused by name. Tools are read here, and blocks in messages.py, not by their declared types, so
that a refusal can say why.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from ...faults import RequestError
from ...http.parameters import converted
from ...http.routes import Call
from ...models.answer_options import body_options
from ...models.contract import (
    AnswerOptions,
    ChatRequest,
    OutputFormat,
    Think,
    Tool,
    ToolChoice,
)
from ..schemas import check_schema
from ..thinking import EFFORTS
from ..tools import MAX_TOOLS, choose
from .messages import CacheControl, MessageBody, to_messages, without_thinking

_MODES: Mapping[str, Literal["auto", "none", "required"]] = {"auto": "auto", "any": "required", "none": "none"}


class _CustomTool(Struct, forbid_unknown_fields=True):
    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.\-]{1,128}$")]
    input_schema: dict[str, Any]
    type: str | None = None
    description: str | None = None
    strict: bool | None = None
    cache_control: CacheControl | None = None
    eager_input_streaming: bool | None = None  # arguments are always streamed as they come
    input_examples: list[dict[str, Any]] | None = None
    allowed_callers: list[str] | None = None


class ToolChoiceBody(Struct, forbid_unknown_fields=True):
    """Which tools may or must be called."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class ThinkingBody(Struct, forbid_unknown_fields=True):
    """How much to think."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Annotated[int, Meta(ge=1)] | None = None
    display: Literal["summarized", "omitted"] | None = None


class OutputFormatBody(Struct, forbid_unknown_fields=True):
    """A JSON Schema that the answer must match."""

    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(Struct, forbid_unknown_fields=True):
    """Effort and format of the answer."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormatBody | None = None


class Metadata(Struct, forbid_unknown_fields=True):
    """Who the client's own user is: goes to the log line."""

    user_id: Annotated[str, Meta(max_length=512)] | None = None


class PromptBody(Struct, forbid_unknown_fields=True, kw_only=True):
    """What /v1/messages and /v1/messages/count_tokens share."""

    model: Annotated[str, Meta(min_length=1, max_length=256)]
    messages: Annotated[list[MessageBody], Meta(min_length=1, max_length=100_000)]
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: ToolChoiceBody | None = None
    thinking: ThinkingBody | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormatBody | None = None  # the older name of output_config.format
    cache_control: CacheControl | None = None
    context_management: dict[str, Any] | None = None  # only clear_thinking comes here
    speed: Literal["standard"] | None = None


class MessagesBody(PromptBody, forbid_unknown_fields=True, kw_only=True):
    """The body of POST /v1/messages."""

    max_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)]
    stream: bool = False
    stop_sequences: list[str] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_k: Annotated[int, Meta(ge=-1)] | None = None  # 0 and -1: off
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None  # there is one tier, the standard one


class CountTokensBody(PromptBody, forbid_unknown_fields=True, kw_only=True):
    """The body of POST /v1/messages/count_tokens."""


REFUSED_HEADERS: Mapping[str, str] = {
    "anthropic-user-profile-id": "there are no user profiles here: keys are this server's own",
    "anthropic-workspace-id": "there are no workspaces here: keys are this server's own",
}


def check_headers(headers: Mapping[str, str]) -> None:
    """Raises RequestError for a header that cannot be honoured."""
    for name, reason in REFUSED_HEADERS.items():
        RequestError.when(name in headers, f"{name}: {reason}", param=name)


def chat_request(call: Call[Any]) -> ChatRequest:
    """The conversation that a call's body asks to continue. Raises RequestError naming the parameter."""
    body: PromptBody = call.body
    check_headers(call.headers)
    tools = tuple(_tools(body.tools or []))
    messages = to_messages(body.messages, body.system, max_image_bytes=call.server.config.max_image_bytes)
    if body.context_management:
        (edit,) = body.context_management["edits"]
        messages = without_thinking(messages, keep=(edit.get("keep") or {"value": 1})["value"])
    config = _config(body)
    options: AnswerOptions = {"owner": call.key.id}
    if isinstance(body, MessagesBody):
        budget = body.thinking.budget_tokens if body.thinking is not None else None
        RequestError.when(
            budget is not None and budget >= max(1, body.max_tokens),
            f"thinking.budget_tokens is {budget} and max_tokens {body.max_tokens}: thinking counts towards "
            "max_tokens, so its budget must be smaller",
            param="thinking.budget_tokens",
        )
        options = body_options(
            body,
            # 0 asks for the prompt to be computed and kept, nothing more: one token is computed and not sent.
            max_tokens=max(1, body.max_tokens),
            stop=tuple(text for text in body.stop_sequences or () if text) or None,
            owner=call.key.id,
        )
    return ChatRequest(
        messages=tuple(messages),
        tools=tools,
        tool_choice=_tool_choice(body.tool_choice, tools),
        output=_output(config),
        think=_think(body.thinking, config),
        continue_last=messages[-1].role == "assistant" and not messages[-1].tool_calls,
        options=options,
        asker=call.key.id,
        request_id=call.id,
    )


def _config(body: PromptBody) -> OutputConfig:
    config = body.output_config or OutputConfig()
    if body.output_format is None:
        return config
    RequestError.when(
        config.format is not None,
        "output_format and output_config.format are two names of one thing",
        param="output_format",
    )
    return OutputConfig(config.effort, body.output_format)


def _output(config: OutputConfig) -> OutputFormat:
    if config.format is None:
        return OutputFormat()
    check_schema(config.format.schema, "output_config.format.schema")
    return OutputFormat(kind="json_schema", schema=config.format.schema, is_strict=False)


def _think(thinking: ThinkingBody | None, config: OutputConfig) -> Think:
    effort = None if config.effort is None else EFFORTS[config.effort]
    if thinking is None:
        return Think(effort=effort)
    RequestError.when(
        thinking.type == "enabled" and thinking.budget_tokens is None,
        "thinking.budget_tokens is missing: give the tokens to think",
        param="thinking.budget_tokens",
    )
    RequestError.when(
        thinking.type != "enabled" and thinking.budget_tokens is not None,
        f"thinking.budget_tokens does not go with the type {thinking.type!r}",
        param="thinking.budget_tokens",
    )
    enabled = {"enabled": True, "disabled": False, "adaptive": None}[thinking.type]
    return Think(enabled=enabled, effort=effort, max_tokens=thinking.budget_tokens)


def _tool_choice(choice: ToolChoiceBody | None, tools: Sequence[Tool]) -> ToolChoice:
    if choice is None:
        return ToolChoice()
    RequestError.when(
        (choice.name is not None) != (choice.type == "tool"),
        "tool_choice.name goes with the type 'tool', and only with it",
        param="tool_choice.name",
    )
    RequestError.when(
        choice.type in ("any", "tool") and not tools,
        "tool_choice asks for a call, but there are no tools that can be called",
        param="tool_choice",
    )
    is_single = choice.disable_parallel_tool_use
    parallel = None if is_single is None else not is_single
    if choice.name is not None:
        RequestError.when(
            choice.name not in {tool.name for tool in tools},
            f"tool_choice.name: there is no tool {choice.name[:80]!r}",
            param="tool_choice.name",
        )
        return choose("required", {choice.name}, parallel, is_bound=True)
    return choose(_MODES[choice.type], [tool.name for tool in tools], parallel)


def _tools(raw: Sequence[Mapping[str, Any]]) -> Iterator[Tool]:
    RequestError.when(len(raw) > MAX_TOOLS, f"tools: {len(raw)} are more than the {MAX_TOOLS} allowed", param="tools")
    names = set()
    for i, item in enumerate(raw):
        where = f"tools[{i}]"
        tool = converted(item, _CustomTool, where)
        RequestError.when(tool.name in names, f"{where}: there are two tools {tool.name!r}", param=f"{where}.name")
        names.add(tool.name)
        check_schema(tool.input_schema, f"{where}.input_schema")
        description = tool.description or ""
        for example in tool.input_examples or ():
            description += f"\nExample of its input: {json.dumps(example, ensure_ascii=False)}"
        yield Tool(tool.name, description.lstrip("\n"), tool.input_schema, strict=tool.strict is True)
