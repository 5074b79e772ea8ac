"""OpenAI's chat messages, read leniently where clients differ and strictly where meaning would be lost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ...faults import RequestError
from ...http.parameters import without_nulls
from ...models.contract import Message, Part, Role, TextPart, ToolCall
from ..images import image_from_url

# How chat pages begin what they ask of themselves: titles, tags, follow-up questions (Open WebUI's task prompts).
_TASK_BEGINNINGS = ("### Task:\n", "Create a concise, 3-5 word", "Generate a concise, 3-5 word")

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
_FIELDS: dict[str, frozenset[str]] = {
    "system": frozenset({"role", "content", "name"}),
    "developer": frozenset({"role", "content", "name"}),
    "user": frozenset({"role", "content", "name"}),
    "tool": frozenset({"role", "content", "tool_call_id", "name"}),
    "assistant": frozenset(
        # What servers answer with comes back: it must not be refused.
        {"role", "content", "name", "tool_calls", "refusal", "audio", "function_call", "annotations"}
        | {"reasoning_content", "reasoning", "thinking"}
    ),
}
_MAX_CALLS = 512
_MAX_NAME = 64


def to_messages(raw: Sequence[Mapping[str, Any]], *, max_image_bytes: int) -> tuple[tuple[Message, ...], bool]:
    """The messages, and whether the last is a page's own task (a title). Raises RequestError naming the message."""
    messages = tuple(_message(item, f"messages[{i}]", max_image_bytes) for i, item in enumerate(raw))
    known: set[str] = set()
    for i, message in enumerate(messages):
        known.update(call.id for call in message.tool_calls)
        RequestError.when(
            message.role == "tool" and message.tool_call_id not in known,
            f"messages[{i}].tool_call_id {message.tool_call_id[:80]!r} answers no call made before it",
            param=f"messages[{i}].tool_call_id",
        )
    last = messages[-1]
    return messages, last.role == "user" and last.text.startswith(_TASK_BEGINNINGS)


def _message(item: Mapping[str, Any], where: str, max_image_bytes: int) -> Message:
    item = without_nulls(item)
    name = item.get("role")
    if not isinstance(name, str) or name not in _ROLES:
        raise RequestError(
            f"{where}.role must be one of {', '.join(_ROLES)}, not {str(name)[:40]!r}", param=f"{where}.role"
        )
    for key in item:
        RequestError.when(
            key not in _FIELDS[name],
            f"{where}.{key[:60]} is not known in a message of this role",
            param=f"{where}.{key[:60]}",
        )
    role = _ROLES[name]
    parts = content_parts(item.get("content"), role, f"{where}.content", max_image_bytes)
    if role == "assistant":
        return _assistant(item, parts, where)
    RequestError.when(item.get("content") is None, f"{where}.content is missing", param=f"{where}.content")
    return Message(
        role=role,
        parts=parts,
        tool_call_id=text_of(item, "tool_call_id", where) if role == "tool" else "",
        name=text_of(item, "name", where, optional=True),
    )


def _assistant(item: Mapping[str, Any], parts: tuple[Part, ...], where: str) -> Message:
    for name in ("audio", "function_call"):
        RequestError.when(
            item.get(name) is not None, f"{where}.{name} cannot be honoured here", param=f"{where}.{name}"
        )
    if item.get("refusal"):
        parts = (*parts, TextPart(text_of(item, "refusal", where)))
    calls = item.get("tool_calls") or []
    RequestError.when(
        not isinstance(calls, list) or len(calls) > _MAX_CALLS,
        f"{where}.tool_calls must be a list",
        param=f"{where}.tool_calls",
    )
    if item.get("content") is None and not calls and not item.get("refusal"):
        parts = ()
    reasoning = ""
    for name in ("reasoning_content", "reasoning", "thinking"):
        reasoning = reasoning or text_of(item, name, where, optional=True)
    return Message(
        role="assistant",
        parts=parts,
        reasoning=reasoning,
        tool_calls=tuple(_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls)),
        name=text_of(item, "name", where, optional=True),
    )


def _call(call: Any, where: str) -> ToolCall:
    call = without_nulls(call) if isinstance(call, dict) else {}
    function = call.get("function")
    RequestError.when(
        not isinstance(function, dict) or call.get("type", "function") != "function",
        f"{where} must be a function call",
        param=where,
    )
    function = without_nulls(function)
    name = text_of(function, "name", f"{where}.function")
    RequestError.when(
        not 0 < len(name) <= _MAX_NAME, f"{where}.function.name must have 1 to {_MAX_NAME} characters", param=where
    )
    arguments = function.get("arguments")
    if isinstance(arguments, dict) or arguments is None:  # as other APIs have them, and calls without any
        arguments = json.dumps(arguments or {}, ensure_ascii=False)
    RequestError.when(
        not isinstance(arguments, str),
        f"{where}.function.arguments must be JSON text",
        param=f"{where}.function.arguments",
    )
    return ToolCall(text_of(call, "id", where), name, arguments or "{}")


def content_parts(content: Any, role: Role, where: str, max_image_bytes: int) -> tuple[Part, ...]:
    """Text, or a list of parts of either of OpenAI's endpoints. Raises RequestError naming the part."""
    if content is None:
        return ()
    if isinstance(content, str):
        return (TextPart(content),)
    RequestError.when(not isinstance(content, list), f"{where} must be text or a list of parts", param=where)
    return tuple(_part(part, role, f"{where}[{i}]", max_image_bytes) for i, part in enumerate(content))


def _part(part: Any, role: Role, where: str, max_image_bytes: int) -> Part:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in ("text", "input_text", "output_text", "refusal"):
        return TextPart(text_of(part, "refusal" if kind == "refusal" else "text", where))
    if kind == "image_url" and role == "user":
        image = part.get("image_url")
        url = image.get("url") if isinstance(image, dict) else image
        return image_from_url(url, f"{where}.image_url", max_image_bytes)
    if kind == "input_image" and role == "user":
        return image_from_url(part.get("image_url"), f"{where}.image_url", max_image_bytes)
    RequestError.when(
        kind in ("input_audio", "file", "input_file"),
        f"{where}: content of type {kind} cannot be honoured here",
        param=where,
    )
    raise RequestError(f"{where}.type must be text or image_url, not {str(kind)[:40]!r}", param=where)


def text_of(item: Mapping[str, Any], name: str, where: str, *, optional: bool = False) -> str:
    """The text that the object at `where` has under `name`. Raises RequestError; "" for an optional one without."""
    value = item.get(name)
    if value is None and optional:
        return ""
    if not isinstance(value, str):
        raise RequestError(f"{where}.{name} must be text", param=f"{where}.{name}")
    return value
