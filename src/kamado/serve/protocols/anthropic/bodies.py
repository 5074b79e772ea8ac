"""What a client of Anthropic's Messages API sends, and the conversation it means.

What is honoured is a field; what is left out or refused is a row of rows.py and never comes here; what is
neither is unknown and refused by name. Blocks and tools are read here, not by their declared types, so that a refusal
can say why.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from ...faults import RequestError
from ...http.parameters import converted
from ...http.routes import Call
from ...models.answer_options import body_options
from ...models.contract import (
    AnswerOptions,
    ChatRequest,
    ImagePart,
    Message,
    OutputFormat,
    Part,
    Role,
    TextPart,
    Think,
    Tool,
    ToolCall,
    ToolChoice,
)
from ..images import image_from_base64
from ..schemas import check_schema
from ..thinking import EFFORTS
from ..tools import MAX_TOOLS, choose

_MODES: Mapping[str, Literal["auto", "none", "required"]] = {"auto": "auto", "any": "required", "none": "none"}


class CacheControl(Struct, forbid_unknown_fields=True):
    """Every beginning is cached here, without being asked and for as long as there is memory: any marker is met."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class _Block(Struct):
    type: str
    cache_control: CacheControl | None = None


class _Text(_Block, kw_only=True, forbid_unknown_fields=True):
    text: str
    citations: list[Any] | None = None


class _Image(_Block, kw_only=True, forbid_unknown_fields=True):
    source: dict[str, Any]
    transformations: dict[str, Any] | None = None


class _Document(_Block, kw_only=True, forbid_unknown_fields=True):
    source: dict[str, Any]
    title: str | None = None
    context: str | None = None
    citations: dict[str, Any] | None = None


class _ToolUse(_Block, kw_only=True, forbid_unknown_fields=True):
    id: str
    name: str
    input: dict[str, Any] = {}
    caller: dict[str, Any] | None = None
    toolset_name: str | None = None


class _ToolResult(_Block, kw_only=True, forbid_unknown_fields=True):
    tool_use_id: str
    content: str | list[dict[str, Any]] = ""
    is_error: bool | None = None
    toolset_name: str | None = None


class _Thinking(Struct, forbid_unknown_fields=True):
    type: str
    thinking: str
    signature: str = ""


class _Base64(Struct, forbid_unknown_fields=True):
    type: str
    media_type: Literal["image/png", "image/jpeg", "image/gif", "image/webp"]
    data: str


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


class MessageBody(Struct, forbid_unknown_fields=True):
    """One turn."""

    role: Literal["user", "assistant", "system"]
    content: str | list[dict[str, Any]]


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
    max_image_bytes = call.server.config.max_image_bytes
    tools = tuple(_tools(body.tools or []))
    messages = _messages(body, max_image_bytes)
    if body.context_management:
        (edit,) = body.context_management["edits"]
        messages = _without_thinking(messages, keep=(edit.get("keep") or {"value": 1})["value"])
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


def _messages(body: PromptBody, max_image_bytes: int) -> list[Message]:
    reader = _Reader(max_image_bytes)
    if body.system is not None:
        parts = tuple(reader.text_parts(body.system, "system"))
        if parts:
            reader.add("system", parts)
    for i, message in enumerate(body.messages):
        reader.read(message, f"messages[{i}]")
    RequestError.when(
        not any(message.role != "system" for message in reader.messages),
        "messages: there is nothing to answer",
        param="messages",
    )
    return reader.messages


def _without_thinking(messages: Sequence[Message], *, keep: int) -> list[Message]:
    """The messages with the thinking of the last `keep` turns that have any."""
    thought = [i for i, message in enumerate(messages) if message.reasoning]
    cleared = set(thought[: len(thought) - keep]) if keep < len(thought) else set()
    return [replace(message, reasoning="") if i in cleared else message for i, message in enumerate(messages)]


class _Reader:
    """Turns Anthropic's turns, in which everything is a block, into messages."""

    def __init__(self, max_image_bytes: int) -> None:
        self.messages: list[Message] = []
        self._max_image_bytes = max_image_bytes
        self._tool_names: dict[str, str] = {}  # of the calls so far, by id

    def add(self, role: Role, parts: tuple[Part, ...], **fields: Any) -> None:
        """Adds a message; turns of one role that follow each other are one turn."""
        last = self.messages[-1] if self.messages else None
        if last is not None and last.role == role and role in ("user", "assistant"):
            between = (TextPart("\n"),) if last.parts and parts else ()
            reasoning = last.reasoning + fields.get("reasoning", "")
            calls = last.tool_calls + fields.get("tool_calls", ())
            self.messages[-1] = Message(role, last.parts + between + parts, reasoning, calls)
        else:
            self.messages.append(Message(role, parts, **fields))

    def read(self, message: MessageBody, where: str) -> None:
        """Adds one turn."""
        if isinstance(message.content, str):
            self.add(message.role, (TextPart(message.content),))
            return
        is_empty = not message.content and message.role != "assistant"  # an answer that was cut at once is empty
        RequestError.when(is_empty, f"{where}.content is empty", param=f"{where}.content")
        if message.role == "assistant":
            self._read_assistant(message.content, f"{where}.content")
        elif message.role == "system":
            self.add("system", tuple(self.text_parts(message.content, f"{where}.content")))
        else:
            self._read_user(message.content, f"{where}.content")

    def text_parts(self, content: str | Sequence[Mapping[str, Any]], where: str) -> Iterator[Part]:
        """Text only."""
        if isinstance(content, str):
            if content:
                yield TextPart(content)
            return
        for i, block in enumerate(content):
            RequestError.when(
                block.get("type") != "text", f"{where}[{i}]: only text blocks may stand here", param=f"{where}[{i}]"
            )
            yield from self._parts(block, f"{where}[{i}]", is_first=i == 0)

    def _parts(self, block: Mapping[str, Any], where: str, *, is_first: bool) -> Iterator[Part]:
        """What a text, image or document block says."""
        kind = block.get("type")
        if kind == "text":
            text = converted(block, _Text, where)
            if not is_first:
                yield TextPart("\n")
            yield TextPart(text.text)
        elif kind == "image":
            image = converted(block, _Image, where)
            RequestError.when(
                image.transformations, f"{where}.transformations: images are not transformed here", param=where
            )
            yield self._image(image.source, f"{where}.source")
        elif kind == "document":
            yield TextPart(("" if is_first else "\n") + self._document(converted(block, _Document, where), where))
        else:
            raise RequestError(
                f"{where}: a block of type {str(kind)[:60]!r} cannot be read here: text, images, plain-text documents, "
                "tool_use, tool_result and thinking can",
                param=where,
            )

    def _image(self, source: Mapping[str, Any], where: str) -> ImagePart:
        RequestError.when(
            source.get("type") != "base64",
            f"{where}: this server fetches nothing from other hosts; send the image's bytes (base64)",
            param=where,
        )
        image = converted(source, _Base64, where)
        return image_from_base64(image.data, f"{where}.data", self._max_image_bytes)

    def _document(self, document: _Document, where: str) -> str:
        RequestError.when(
            document.citations and document.citations.get("enabled"),
            f"{where}.citations: answers have no citations here",
            param=f"{where}.citations",
        )
        source = document.source
        if source.get("type") == "text" and isinstance(source.get("data"), str):
            text = source["data"]
        elif source.get("type") == "content" and isinstance(source.get("content"), (str, list)):
            parts = self.text_parts(source["content"], f"{where}.source.content")
            text = "".join(part.text for part in parts if isinstance(part, TextPart))
        else:
            raise RequestError(
                f"{where}.source: documents are read as plain text only (type 'text'); turn a PDF into text first",
                param=f"{where}.source",
            )
        return "\n".join(part for part in (document.title, document.context, text) if part)

    def _read_user(self, blocks: Sequence[Mapping[str, Any]], where: str) -> None:
        parts: list[Part] = []
        for i, block in enumerate(blocks):
            here = f"{where}[{i}]"
            if block.get("type") != "tool_result":
                parts += self._parts(block, here, is_first=not parts)
                continue
            if parts:
                self.add("user", tuple(parts))
                parts = []
            self._read_result(converted(block, _ToolResult, here), here)
        if parts:
            self.add("user", tuple(parts))

    def _read_result(self, result: _ToolResult, where: str) -> None:
        name = self._tool_names.get(result.tool_use_id)
        if name is None:
            raise RequestError(
                f"{where}: no tool_use block before it has the id {result.tool_use_id[:80]!r}", param=where
            )
        if isinstance(result.content, str):
            parts: list[Part] = [TextPart(result.content)]
        else:
            parts = []
            for i, block in enumerate(result.content):
                parts += self._parts(block, f"{where}.content[{i}]", is_first=i == 0)
        if result.is_error:
            parts.insert(0, TextPart("Error: "))
        self.messages.append(Message("tool", tuple(parts), tool_call_id=result.tool_use_id, name=name))

    def _read_assistant(self, blocks: Sequence[Mapping[str, Any]], where: str) -> None:
        parts: list[Part] = []
        calls: list[ToolCall] = []
        reasoning = ""
        for i, block in enumerate(blocks):
            here = f"{where}[{i}]"
            kind = block.get("type")
            if kind == "tool_use":
                use = converted(block, _ToolUse, here)
                self._tool_names[use.id] = use.name
                calls.append(ToolCall(use.id, use.name, json.dumps(use.input, ensure_ascii=False)))
            elif kind == "thinking":
                reasoning += converted(block, _Thinking, here).thinking
            elif kind == "text":
                parts += self._parts(block, here, is_first=not parts)
            else:
                raise RequestError(
                    f"{here}: an assistant's turn has text, thinking and tool_use blocks here, not {str(kind)[:60]!r}",
                    param=here,
                )
        self.add("assistant", tuple(parts), reasoning=reasoning, tool_calls=tuple(calls))
