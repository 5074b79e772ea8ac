"""What Ollama's clients send, and the conversation or text it means."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

from ...faults import RequestError
from ...models.contract import (
    ChatRequest,
    CompletionRequest,
    Message,
    OutputFormat,
    Part,
    TextPart,
    Think,
    Tool,
    ToolCall,
)
from ...models.modelfile_options import Options, read_options
from ..images import image_from_base64
from ..schemas import check_schema
from ..thinking import EFFORTS
from ..tools import MAX_TOOLS, FunctionSpec, tools_of

ModelName = Annotated[str, Meta(max_length=256)]
TopLogprobs = Annotated[int, Meta(ge=0, le=20)]


class FunctionCallBody(Struct, forbid_unknown_fields=True):
    """A call of a tool."""

    name: str
    arguments: dict[str, Any] | None = None
    index: int | None = None
    description: str | None = None


class ToolCallBody(Struct, forbid_unknown_fields=True):
    """A call that the assistant made."""

    function: FunctionCallBody
    id: str | None = None
    type: str | None = None


class MessageBody(Struct, forbid_unknown_fields=True):
    """One turn."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    images: list[str] | None = None
    tool_calls: list[ToolCallBody] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class FunctionBody(FunctionSpec, forbid_unknown_fields=True):
    """A tool's function, of nearly any name."""

    name: Annotated[str, Meta(min_length=1, max_length=256)]


class ToolBody(Struct, forbid_unknown_fields=True):
    """A tool."""

    function: FunctionBody
    type: Literal["function"] | None = None


class ForModel(Struct, kw_only=True):
    """What all bodies that make a model work share."""

    model: ModelName
    options: dict[str, Any] | None = None
    keep_alive: float | str | None = None


class Asked(ForModel, forbid_unknown_fields=True, kw_only=True):
    """What /api/chat and /api/generate share."""

    stream: bool | None = None
    format: str | dict[str, Any] | None = None
    think: bool | str | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None
    truncate: bool | None = None
    shift: bool | None = None


class ChatBody(Asked, forbid_unknown_fields=True, kw_only=True):
    """The body of POST /api/chat."""

    messages: Annotated[list[MessageBody], Meta(max_length=100_000)] | None = None
    tools: Annotated[list[ToolBody], Meta(max_length=MAX_TOOLS)] | None = None


class GenerateBody(Asked, forbid_unknown_fields=True, kw_only=True):
    """The body of POST /api/generate."""

    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    raw: bool | None = None
    images: list[str] | None = None
    parse_special: bool | None = None  # false: special tokens written in a raw prompt are plain text


class EmbedBody(ForModel, forbid_unknown_fields=True, kw_only=True):
    """The body of POST /api/embed."""

    input: str | Annotated[list[str], Meta(max_length=4096)]
    truncate: bool | None = None
    dimensions: Annotated[int, Meta(ge=1, le=1 << 20)] | None = None


class EmbeddingsBody(ForModel, forbid_unknown_fields=True, kw_only=True):
    """The body of POST /api/embeddings, which /api/embed follows."""

    prompt: str


class Named(Struct, kw_only=True):
    """What all bodies about a model of the library share."""

    model: ModelName | None = None
    name: ModelName | None = None  # older clients


class ShowBody(Named, forbid_unknown_fields=True, kw_only=True):
    """The body of POST /api/show."""

    verbose: bool | None = None


class PullBody(Named, forbid_unknown_fields=True, kw_only=True):
    """The body of POST /api/pull."""

    stream: bool | None = None


class DeleteBody(Named, forbid_unknown_fields=True, kw_only=True):
    """The body of DELETE /api/delete."""


class CopyBody(Struct, forbid_unknown_fields=True, kw_only=True):
    """The body of POST /api/copy."""

    source: ModelName
    destination: ModelName


class CreateMessage(Struct, forbid_unknown_fields=True):
    """A turn that a model's conversations begin with."""

    role: str
    content: str


class CreateBody(Named, forbid_unknown_fields=True, kw_only=True):
    """The body of POST /api/create."""

    base: ModelName | None = field(default=None, name="from")
    modelfile: str | None = None  # older clients
    system: str | None = None
    template: str | None = None
    license: str | list[str] | None = None
    parameters: dict[str, Any] | None = None
    messages: Annotated[list[CreateMessage], Meta(max_length=1000)] | None = None
    stream: bool | None = None


def named(body: Named) -> str:
    """The model's name: `model`, or `name` as older clients say. Raises RequestError."""
    name = body.model or body.name or ""
    RequestError.when(not name, "model is missing", param="model")
    return name


def _options(body: Asked, owner: str) -> Options:
    RequestError.when(
        body.top_logprobs and not body.logprobs, "top_logprobs needs logprobs: true", param="top_logprobs"
    )
    options = read_options(body.options, logprobs=(body.top_logprobs or 0) if body.logprobs else None, owner=owner)
    RequestError.when(
        body.truncate and options.num_keep,
        "options.num_keep does not go with truncate: system messages and the last one are kept, whole messages go",
        param="options.num_keep",
    )
    return options


def _think(value: bool | str | None) -> Think:
    if value is None or isinstance(value, bool):
        return Think(enabled=value)
    RequestError.when(
        value not in ("low", "medium", "high"),
        f"think must be true, false, low, medium or high, not {value[:40]!r}",
        param="think",
    )
    return Think(enabled=True, effort=EFFORTS[value])


def _output(value: str | dict[str, Any] | None) -> OutputFormat:
    if value is None or value == "":
        return OutputFormat()
    if isinstance(value, dict):
        check_schema(value, "format")
        return OutputFormat(kind="json_schema", schema=value, is_strict=False)
    RequestError.when(value != "json", f"format must be 'json' or a JSON Schema, not {value[:40]!r}", param="format")
    return OutputFormat(kind="json")


def _images(images: Sequence[str] | None, where: str, max_bytes: int) -> list[Part]:
    return [image_from_base64(image, f"{where}[{i}]", max_bytes) for i, image in enumerate(images or ())]


def _message(message: MessageBody, i: int, max_image_bytes: int) -> Message:
    where = f"messages[{i}]"
    for name, role in (("thinking", "assistant"), ("tool_calls", "assistant"), ("tool_name", "tool")):
        RequestError.when(
            getattr(message, name) and message.role != role,
            f"{where}.{name} belongs to messages of the role {role!r}",
            param=f"{where}.{name}",
        )
    RequestError.when(
        message.tool_call_id and message.role != "tool",
        f"{where}.tool_call_id belongs to the role 'tool'",
        param=f"{where}.tool_call_id",
    )
    parts = _images(message.images, f"{where}.images", max_image_bytes)
    if message.content:
        parts.append(TextPart(message.content))
    calls = tuple(
        ToolCall(call.id or "", call.function.name, json.dumps(call.function.arguments or {}, ensure_ascii=False))
        for call in message.tool_calls or ()
    )
    return Message(
        message.role,
        tuple(parts),
        reasoning=message.thinking or "",
        tool_calls=calls,
        tool_call_id=message.tool_call_id or "",
        name=message.tool_name or "",
    )


def chat_request(body: ChatBody, *, owner: str, request_id: str, max_image_bytes: int) -> ChatRequest:
    """The conversation of /api/chat. Raises RequestError naming the parameter."""
    options = _options(body, owner)
    messages = tuple(_message(m, i, max_image_bytes) for i, m in enumerate(body.messages or ()))
    return _chat(body, options, messages, tools_of(body.tools), owner, request_id)


def _chat(
    body: Asked,
    options: Options,
    messages: tuple[Message, ...],
    tools: tuple[Tool, ...],
    asker: str,
    request_id: str,
) -> ChatRequest:
    return ChatRequest(
        messages=messages,
        tools=tools,
        output=_output(body.format),
        think=_think(body.think),
        options=options.answer,
        continue_last=messages[-1].role == "assistant" and not messages[-1].tool_calls,
        context=options.context,
        asker=asker,
        truncation="drop_oldest" if body.truncate else "refuse",
        request_id=request_id,
    )


def generate_request(
    body: GenerateBody, *, can_chat: bool, owner: str, request_id: str, max_image_bytes: int
) -> ChatRequest | CompletionRequest:
    """What /api/generate asks: a conversation of one question through the template, or a text to continue as it is
    (`raw`, a suffix, or a model without a template). Raises RequestError naming the parameter.
    """
    options = _options(body, owner)
    is_plain = bool(body.raw) or body.suffix is not None or not can_chat
    if not is_plain:
        parts = _images(body.images, "images", max_image_bytes)
        if body.prompt:
            parts.append(TextPart(body.prompt))
        system = (Message("system", (TextPart(body.system),)),) if body.system else ()
        return _chat(body, options, (*system, Message("user", tuple(parts))), (), owner, request_id)
    why = "raw" if body.raw else "suffix" if body.suffix is not None else "a model without a chat template"
    for name in ("system", "images", "think"):
        RequestError.when(getattr(body, name), f"{name} does not go with {why}", param=name)
    RequestError.when(
        body.truncate, f"truncate does not go with {why}: there are no messages to leave out", param="truncate"
    )
    return CompletionRequest(
        prompts=(body.prompt or "",),
        suffix=body.suffix,
        options=options.answer,
        output=_output(body.format),
        special=bool(body.raw) and body.parse_special is not False,
        context=options.context,
        asker=owner,
        request_id=request_id,
    )
