"""Messages and tools as a template reads them: plain dictionaries, in the model's own form or written out as text."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ....errors import UsageError
from ..chat_types import ImagePart, Message, TextPart, Tool, ToolCall
from ..cut_json import closed
from ..mixed_text import MixedText
from .formats import ToolFormat
from .reasoning import PARTS, WAYS
from .syntax import Call, CallSyntax

_TOOL_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")
MAX_TOOLS = 256


def check_tools(tools: Sequence[Tool]) -> None:
    """Raises UsageError for a name that no format could carry, two of one name, or too many."""
    if len(tools) > MAX_TOOLS:
        raise UsageError(f"{len(tools)} tools: {MAX_TOOLS} are allowed")
    seen: set[str] = set()
    for tool in tools:
        if not _TOOL_NAME.fullmatch(tool.name):
            raise UsageError(f"a tool's name must be 1 to 128 letters, digits or '_.:/-', not {repr(tool.name)[:60]}")
        if tool.name in seen:
            raise UsageError(f"two tools are named {tool.name!r}")
        seen.add(tool.name)


def tool_objects(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """Tools as templates expect them."""
    return [
        {
            "type": "function",
            "function": {"name": t.name, "description": t.description, "parameters": dict(t.parameters) or _NONE},
        }
        for t in tools
    ]


_NONE = {"type": "object", "properties": {}}


def answered(messages: Sequence[Message]) -> list[Message]:
    """The same with an id for every call, and with each result's own: protocols without ids (Ollama's) match results by
    their tools and their order, templates by ids."""
    out: list[Message] = []
    waiting: list[ToolCall] = []  # calls whose result has not come
    for i, message in enumerate(messages):
        if message.role == "tool":
            known = [call for call in waiting if call.id == message.tool_call_id]
            named = [call for call in waiting if call.name == message.name]
            if not message.tool_call_id and waiting:
                known = (named or waiting)[:1]
                message = replace(message, tool_call_id=known[0].id)
            waiting = [call for call in waiting if call not in known]
        else:
            calls = tuple(replace(c, id=c.id or f"call{i}x{k}") for k, c in enumerate(message.tool_calls))
            if calls != message.tool_calls:
                message = replace(message, tool_calls=calls)
            waiting = list(calls)
        out.append(message)
    return out


def one_call_each(messages: Sequence[Message]) -> list[Message]:
    """The same with one call a message, its result behind it, for templates that know no more. What was said before a
    call goes to the reasoning, if there is some: such templates take one text."""
    out: list[Message] = []
    i = 0
    while i < len(messages):
        message = messages[i]
        i += 1
        if message.role != "assistant" or not message.tool_calls:
            out.append(message)
            continue
        results = []
        while i < len(messages) and messages[i].role == "tool":
            results.append(messages[i])
            i += 1
        if message.reasoning and message.text:
            others = tuple(part for part in message.parts if not isinstance(part, TextPart))
            message = replace(message, parts=others, reasoning=f"{message.reasoning}\n\n{message.text}")
        for k, call in enumerate(message.tool_calls):
            out.append(replace(message, tool_calls=(call,)) if k == 0 else Message("assistant", tool_calls=(call,)))
            place = next((n for n, result in enumerate(results) if result.tool_call_id == call.id), None)
            if place is not None:
                out.append(results.pop(place))
        out += results
    return out


def make_turns(
    messages: Sequence[Message],
    tools: Sequence[Tool],
    tool_format: ToolFormat | None,
    syntax: CallSyntax | None,
    system_in_user: bool,
    reasoning: str = WAYS[0],
    *,
    in_content: bool = False,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
    """What goes into the template: messages, and tools if it knows of them. `reasoning`: the way in which the template
    takes that of earlier messages (reasoning.WAYS). `in_content`: it writes no calls, so they go into the messages'
    text.

    Raises UsageError for a message that cannot be put into this form: a picture, arguments that are no JSON object.
    """
    if tool_format is not None and not tool_format.is_prompted:
        turns = [
            _native(i, message, tool_format, syntax, reasoning, in_content)
            for i, message in enumerate(answered(messages))
        ]
        if tool_format.results_name:
            turns = _results_in_calls(turns, tool_format.results_name)
        return turns, tool_objects(tools) if tools else None
    turns = []
    is_result = False  # whether the last turn ends with what a tool returned
    for i, message in enumerate(messages):
        turn = _written(i, message, tool_format, syntax, reasoning)
        # Templates that know of no tools may insist that user and model take turns.
        if turns and turn["role"] == turns[-1]["role"] == "user" and (message.role == "tool" or is_result):
            turns[-1]["content"] += "\n" + turn["content"]
        else:
            turns.append(turn)
        is_result = message.role == "tool"
    if tools and tool_format is not None and tool_format.instructions is not None:
        lines = "\n".join(json.dumps(t["function"], ensure_ascii=False) for t in tool_objects(tools))
        _put_first(turns, tool_format.instructions.format(tools=lines), system_in_user)
    elif system_in_user and turns and turns[0]["role"] == "system":
        text = turns.pop(0)["content"]
        _put_first(turns, text, True)
    return turns, None


def _put_first(turns: list[dict[str, Any]], text: str, system_in_user: bool) -> None:
    """Instructions behind the system message's own text, or before the first user message's."""
    if turns and turns[0]["role"] == "system":
        text = f"{turns[0]['content']}\n\n{text}" if turns[0]["content"] else text
        del turns[0]
    if not system_in_user:
        turns.insert(0, {"role": "system", "content": text})
        return
    user = next((turn for turn in turns if turn["role"] == "user"), None)
    if user is None:
        turns.insert(0, {"role": "user", "content": text})
    else:
        user["content"] = f"{text}\n\n{user['content']}"


def _native(
    i: int, message: Message, tool_format: ToolFormat, syntax: CallSyntax | None, reasoning: str, in_content: bool
) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": _text(i, message)}
    if message.role == "assistant" and message.tool_calls and in_content and syntax is not None:
        told = [Call(c.name, arguments_of(i, c.name, c.arguments)) for c in message.tool_calls]
        text = turn["content"]
        turn["content"] = MixedText([(f"{text}\n" if text else "", False), *syntax.pieces(told)])
        _put_reasoning(turn, message, reasoning)
        return turn
    _put_reasoning(turn, message, reasoning)
    if message.role == "assistant" and message.tool_calls:
        turn["tool_calls"] = calls = []
        for call in message.tool_calls:
            arguments = _passed(arguments_of(i, call.name, call.arguments), syntax)
            function = {"name": call.name, "arguments": arguments}
            calls.append({"id": call_id(call.id, tool_format), "type": "function", "function": function})
    if message.role == "tool":
        turn["name"] = message.name
        turn["tool_call_id"] = call_id(message.tool_call_id, tool_format)
    return turn


def _results_in_calls(turns: Sequence[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """Results as a part of the turn whose calls they answer; one that answers none stays a turn of its own."""
    out: list[dict[str, Any]] = []
    for turn in turns:
        if turn["role"] == "tool" and out and out[-1].get("tool_calls"):
            calls = [call for call in out[-1]["tool_calls"] if call["id"] == turn["tool_call_id"]]
            tool = calls[0]["function"]["name"] if calls else turn["name"]
            out[-1].setdefault(name, []).append({"name": tool, "response": turn["content"]})
        else:
            out.append(turn)
    return out


def _passed(arguments: Mapping[str, Any], syntax: CallSyntax | None) -> Mapping[str, Any]:
    """Arguments as the template gets them."""
    if syntax is None or syntax.arguments is None:
        return arguments
    return syntax.arguments.passed(arguments, syntax.separators)


def _written(
    i: int, message: Message, tool_format: ToolFormat | None, syntax: CallSyntax | None, reasoning: str
) -> dict[str, Any]:
    content = _text(i, message)
    if message.role == "tool":
        before, after = tool_format.result if tool_format else ("", "")
        return {"role": "user", "content": f"{before}{content}{after}"}
    if message.role == "assistant" and message.tool_calls:
        calls = [Call(c.name, arguments_of(i, c.name, c.arguments)) for c in message.tool_calls]
        if syntax is None:
            written = "\n".join(f"{call.name}({json.dumps(call.arguments, ensure_ascii=False)})" for call in calls)
        elif syntax.between is None:
            written = "\n".join(syntax.render([call]) for call in calls)
        else:
            written = syntax.render(calls)
        content = f"{content}\n{written}" if content else written
    turn: dict[str, Any] = {"role": message.role, "content": content}
    _put_reasoning(turn, message, reasoning)
    return turn


def _put_reasoning(turn: dict[str, Any], message: Message, way: str) -> None:
    if not message.reasoning:
        return
    if way != PARTS:
        turn[way] = message.reasoning
        return
    text = turn["content"]
    parts = [{"type": "thinking", "thinking": message.reasoning}]
    if text or not message.tool_calls:
        parts.append({"type": "text", "text": text})
    turn["content"] = parts


def _text(i: int, message: Message) -> str:
    if any(isinstance(part, ImagePart) for part in message.parts):
        raise UsageError(f"message {i} has a picture: this model reads text only")
    return message.text


def arguments_of(i: int, name: str, text: str) -> Mapping[str, Any]:
    """Arguments of a call that a client sent back, closed where the answer was cut in them.

    Raises UsageError when they are neither a JSON object nor the beginning of one.
    """
    value = {} if text == "null" else closed(text)
    if value is None:
        raise UsageError(f"message {i}: the arguments of the call to {name[:80]!r} are no JSON object")
    return value


def call_id(given: str, tool_format: ToolFormat) -> str:
    """The id of a call, or one of the length that the template insists on, made of it."""
    length = tool_format.id_length
    if length is None or (len(given) == length and given.isalnum()):
        return given
    return hashlib.sha256(given.encode("utf-8", "surrogatepass")).hexdigest()[:length]
