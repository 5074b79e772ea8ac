"""The body of /v1/responses and what it means: items of input to messages, parameters to a ChatRequest."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from ...faults import RequestError
from ...http.parameters import converted, without_nulls
from ...models.answer_options import body_options
from ...models.contract import ChatRequest, Message, OutputFormat, Part, Role, TextPart, Tool, ToolCall
from ..schemas import check_schema
from ..tools import MAX_TOOLS, FunctionSpec, checked, tool_of
from .bodies import Common, Effort, JsonObject, Label, MaxTokens, ResponsesStreamOptions
from .messages import content_parts, text_of
from .requests import limit_of, think_of, tool_choice_of
from .responses_rows import OTHERS_INCLUDABLE

_MAX_ITEMS = 10_000
_LOGPROBS = "message.output_text.logprobs"
ENCRYPTED = "reasoning.encrypted_content"  # for clients that keep reasoning themselves: base64, it is theirs anyway
INCLUDABLE = (ENCRYPTED, _LOGPROBS, *OTHERS_INCLUDABLE)


class Reasoning(Struct, forbid_unknown_fields=True):
    """How much to reason. Summaries are written by another model elsewhere: here the reasoning itself is shown."""

    effort: Effort | None = None
    max_tokens: Annotated[int, Meta(ge=0)] | None = None  # an extension


class TextFormat(Struct, forbid_unknown_fields=True):
    """What the answer must be; `regex` and `lark` are extensions."""

    type: Literal["text", "json_object", "json_schema", "regex", "lark"]
    name: str | None = None
    description: str | None = None
    schema: JsonObject | None = None
    strict: bool | None = None
    pattern: str | None = None
    grammar: str | None = None


class TextConfig(Struct, forbid_unknown_fields=True):
    """Of the answer's text."""

    format: TextFormat | None = None


class FunctionTool(FunctionSpec, kw_only=True, forbid_unknown_fields=True):
    """A function, by itself or of a namespace. Hosted tools (search, code, files) are not here."""

    type: Literal["function"]


class Namespace(Struct, forbid_unknown_fields=True):
    """Functions under one name: Codex sends each MCP server's so. Calls come back with `namespace` and `name`."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    type: Literal["namespace"]
    tools: Annotated[list[JsonObject], Meta(max_length=MAX_TOOLS)]
    description: str | None = None


class ResponsesBody(Common, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/responses."""

    input: str | Annotated[list[JsonObject], Meta(max_length=_MAX_ITEMS)]
    instructions: str | None = None
    max_output_tokens: MaxTokens = None
    metadata: dict[str, Annotated[str, Meta(max_length=512)]] | None = None
    parallel_tool_calls: bool | None = None
    previous_response_id: Annotated[str, Meta(max_length=100)] | None = None
    prompt_cache_key: Label | None = None
    reasoning: Reasoning | None = None
    safety_identifier: Label | None = None
    service_tier: str | None = None
    store: bool | None = None
    stream_options: ResponsesStreamOptions | None = None
    text: TextConfig | None = None
    tool_choice: Any = None
    tools: Annotated[list[JsonObject], Meta(max_length=MAX_TOOLS)] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    include: list[str] | None = None


def responses_request(
    body: ResponsesBody,
    earlier: Sequence[Mapping[str, Any]],
    *,
    owner: str,
    asker: str,
    request_id: str,
    max_schema_bytes: int,
    max_image_bytes: int,
) -> ChatRequest:
    """What the body asks for, after the items of `earlier` responses. Raises RequestError naming the parameter."""
    reasoning = body.reasoning or Reasoning()
    text = body.text or TextConfig()
    tools = _tools(body.tools, max_schema_bytes)
    messages = items_to_messages([*earlier, *input_items(body.input)], max_image_bytes=max_image_bytes)
    if body.instructions:
        messages = [Message("system", (TextPart(body.instructions),)), *messages]
    RequestError.when(not messages, "input must not be empty", param="input")
    has_logprobs = body.top_logprobs is not None or _LOGPROBS in (body.include or ())
    return ChatRequest(
        messages=tuple(messages),
        tools=tools,
        tool_choice=tool_choice_of(
            _flat_choice(body.tool_choice), [tool.name for tool in tools], body.parallel_tool_calls
        ),
        output=_output(text.format, max_schema_bytes),
        think=think_of(reasoning.effort, reasoning.max_tokens),
        options=body_options(
            body,
            max_tokens=limit_of(body.max_output_tokens, param="max_output_tokens"),
            logprobs=(body.top_logprobs or 0) if has_logprobs else None,
            background=body.service_tier == "flex",
            owner=owner,
        ),
        truncation="drop_oldest" if body.truncation == "auto" else "refuse",
        deadline_seconds=body.deadline_seconds,
        asker=asker,
        request_id=request_id,
    )


def input_items(value: str | Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The input as a list of items."""
    if isinstance(value, str):
        return [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": value}]}]
    return list(value)


def items_to_messages(items: Sequence[Mapping[str, Any]], *, max_image_bytes: int) -> list[Message]:
    """Items of one turn (reasoning, text, calls) become one assistant message. Raises RequestError."""
    messages: list[Message] = []
    known: set[str] = set()
    reasoning = ""
    for i, item in enumerate(items):
        where = f"input[{i}]"
        item = without_nulls(item)
        kind = item.get("type", "message" if "role" in item else None)
        if reasoning and (kind == "function_call_output" or item.get("role", "assistant") != "assistant"):
            messages.append(Message("assistant", reasoning=reasoning))  # an answer that was cut while it reasoned
            reasoning = ""
        if kind == "message":
            message = _message(item, where, max_image_bytes)
            if message.role == "assistant":
                _append(messages, replace(message, reasoning=reasoning))
                reasoning = ""
            else:
                messages.append(message)
        elif kind == "reasoning":
            reasoning += _reasoning(item, where)
        elif kind == "function_call":
            name = text_of(item, "name", where)
            if item.get("namespace") is not None:
                name = joined(text_of(item, "namespace", where), name)
            call = ToolCall(text_of(item, "call_id", where), name, text_of(item, "arguments", where) or "{}")
            known.add(call.id)
            _append(messages, Message("assistant", reasoning=reasoning, tool_calls=(call,)))
            reasoning = ""
        elif kind == "function_call_output":
            messages.append(_output_item(item, where, known, max_image_bytes))
        elif kind == "item_reference":
            raise RequestError(f"{where}: refer to a whole response by previous_response_id", param=where)
        else:
            raise RequestError(f"{where}.type {str(kind)[:60]!r} cannot be honoured here", param=f"{where}.type")
    if reasoning:
        messages.append(Message("assistant", reasoning=reasoning))
    return messages


def _append(messages: list[Message], message: Message) -> None:
    """Adds to the assistant's message before it when both are of one turn: text never follows calls in one."""
    last = messages[-1] if messages else None
    if last is None or last.role != "assistant" or (message.parts and last.tool_calls):
        messages.append(message)
        return
    messages[-1] = Message(
        "assistant",
        parts=(*last.parts, *message.parts),
        reasoning=last.reasoning + message.reasoning,
        tool_calls=(*last.tool_calls, *message.tool_calls),
    )


def _message(item: Mapping[str, Any], where: str, max_image_bytes: int) -> Message:
    role = item.get("role")
    if role not in ("user", "assistant", "system", "developer"):
        raise RequestError(
            f"{where}.role must be user, assistant, system or developer, not {str(role)[:40]!r}", param=f"{where}.role"
        )
    neutral: Role = "system" if role == "developer" else role
    content = item.get("content")
    RequestError.when(content is None, f"{where}.content is missing", param=f"{where}.content")
    return Message(neutral, content_parts(content, neutral, f"{where}.content", max_image_bytes))


def _reasoning(item: Mapping[str, Any], where: str) -> str:
    parts = item.get("content") or item.get("summary") or []
    sealed = item.get("encrypted_content")
    if not parts and isinstance(sealed, str):
        try:
            return base64.b64decode(sealed, validate=True).decode("utf-8")
        except ValueError:
            raise RequestError(f"{where}.encrypted_content was not made here", param=where) from None
    RequestError.when(not isinstance(parts, list), f"{where}.content must be a list", param=where)
    return "".join(text_of(part, "text", where) for part in parts if isinstance(part, dict))


def _output_item(item: Mapping[str, Any], where: str, known: set[str], max_image_bytes: int) -> Message:
    call_id = text_of(item, "call_id", where)
    RequestError.when(
        call_id not in known,
        f"{where}.call_id {call_id[:80]!r} answers no call made before it",
        param=f"{where}.call_id",
    )
    output = item.get("output")
    parts: tuple[Part, ...] = content_parts(output, "tool", f"{where}.output", max_image_bytes)
    return Message("tool", parts, tool_call_id=call_id)


def joined(namespace: str, name: str) -> str:
    """The name by which the model calls a function of a namespace, `mcp__files` and `read` being mcp__files__read."""
    return namespace + name if namespace.endswith("__") else f"{namespace}__{name}"


def named_parts(tools: Sequence[Mapping[str, Any]] | None) -> dict[str, tuple[str, str]]:
    """Namespace and name of each function of the namespaces, by the name that the model calls."""
    return {
        joined(item["name"], tool["name"]): (item["name"], tool["name"])
        for item in tools or ()
        if item.get("type") == "namespace"
        for tool in item["tools"]
        if tool.get("type") == "function"
    }


def _tools(raw: Sequence[Mapping[str, Any]] | None, max_schema_bytes: int) -> tuple[Tool, ...]:
    tools = []
    for i, item in enumerate(raw or ()):
        where = f"tools[{i}]"
        if item.get("type") != "namespace":
            tools.append(_function(item, where, max_schema_bytes))
            continue
        space = converted(item, Namespace, where)
        about = f"{space.description}\n" if space.description else ""
        for j, inner in enumerate(space.tools):
            tool = _function(inner, f"{where}.tools[{j}]", max_schema_bytes)
            tools.append(replace(tool, name=joined(space.name, tool.name), description=about + tool.description))
    RequestError.when(
        len(tools) > MAX_TOOLS, f"tools: {len(tools)} functions are more than the {MAX_TOOLS} allowed", param="tools"
    )
    return checked(tools)


def _function(item: Mapping[str, Any], where: str, max_schema_bytes: int) -> Tool:
    RequestError.when(
        item.get("type") != "function",
        f"{where}: tools of type {str(item.get('type'))[:40]!r} are not here: functions are called by you",
        param=where,
    )
    return tool_of(converted(item, FunctionTool, where), where, max_schema_bytes)


def _flat_choice(choice: Any) -> Any:
    """The choice with functions of namespaces under the names that the model calls."""
    if not isinstance(choice, dict):
        return choice
    if isinstance(choice.get("tools"), list):
        return {**choice, "tools": [_flat_choice(tool) for tool in choice["tools"]]}
    space, name = choice.get("namespace"), choice.get("name")
    if isinstance(space, str) and isinstance(name, str):
        return {**choice, "name": joined(space, name)}
    return choice


def _output(form: TextFormat | None, max_schema_bytes: int) -> OutputFormat:
    if form is None or form.type == "text":
        return OutputFormat()
    if form.type == "json_object":
        return OutputFormat("json")
    if form.type == "json_schema":
        if form.schema is None:
            raise RequestError("text.format.schema is missing, which the type json_schema needs", param="text.format")
        check_schema(form.schema, "text.format.schema", max_schema_bytes)
        return OutputFormat("json_schema", schema=form.schema, is_strict=form.strict is True)
    source = (form.pattern if form.type == "regex" else form.grammar) or ""
    RequestError.when(
        not source or len(source) > max_schema_bytes,
        f"text.format of type {form.type} needs its pattern or grammar",
        param="text.format",
    )
    return OutputFormat(form.type, grammar=source)
