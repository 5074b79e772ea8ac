"""Anthropic's turns, in which everything is a block, as messages."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from msgspec import Struct

from ...faults import RequestError
from ...http.parameters import converted
from ...models.contract import ImagePart, Message, Part, Role, TextPart, ToolCall
from ..images import image_from_base64


class CacheControl(Struct, forbid_unknown_fields=True):
    """Every beginning is cached here, without being asked and for as long as there is memory: any marker is met."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class MessageBody(Struct, forbid_unknown_fields=True):
    """One turn."""

    role: Literal["user", "assistant", "system"]
    content: str | list[dict[str, Any]]


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


def to_messages(
    turns: Sequence[MessageBody], system: str | Sequence[Mapping[str, Any]] | None, *, max_image_bytes: int
) -> list[Message]:
    """The conversation that they are. Raises RequestError naming the block."""
    reader = _Reader(max_image_bytes)
    if system is not None:
        parts = tuple(reader.text_parts(system, "system"))
        if parts:
            reader.add("system", parts)
    for i, message in enumerate(turns):
        reader.read(message, f"messages[{i}]")
    RequestError.when(
        not any(message.role != "system" for message in reader.messages),
        "messages: there is nothing to answer",
        param="messages",
    )
    return reader.messages


def without_thinking(messages: Sequence[Message], *, keep: int) -> list[Message]:
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
