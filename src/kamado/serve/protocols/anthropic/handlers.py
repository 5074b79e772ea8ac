"""Anthropic's Messages API: /v1/messages and /v1/messages/count_tokens.

    events of the model  →  _Blocks: message_start, content blocks, message_delta, message_stop
                                   ├→ as server-sent events          (stream)
                                   └→ put together to one message    (whole)

Both ways go through the same events, so that they cannot differ. The input of a call that was cut has what came whole,
which is what the official clients read out of the stream; `stop_reason` says that it was cut.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing
from typing import Any, Literal

from .... import whole_members
from ...faults import Fault, FaultKind
from ...http.replies import json_response, sse, stream_response, written
from ...http.routes import Call, Family, Response, Route
from ...models.contract import (
    Done,
    Event,
    Finish,
    FinishReason,
    ReasoningDelta,
    Started,
    TextDelta,
    Think,
    TokenCounts,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
)
from ..schemas import noted
from ..thinking import say_if_it_cannot_think
from .bodies import CountTokensBody, MessagesBody, chat_request

_ERROR_TYPES: Mapping[FaultKind, str] = {
    "unauthorized": "authentication_error",
    "forbidden": "permission_error",
    "not_found": "not_found_error",
    "model_not_found": "not_found_error",
    "too_large": "request_too_large",
    "rate_limited": "rate_limit_error",
    "internal": "api_error",
    "upstream": "api_error",
    "unavailable": "overloaded_error",
    "timeout": "timeout_error",
}


def _fault_body(fault: Fault) -> dict[str, Any]:
    message = fault.message
    if fault.kind == "context_overflow" and fault.numbers:  # clients look for these words to shorten what they send
        n = fault.numbers
        message = f"prompt is too long: {n['num_prompt_tokens']} tokens > {n['context_tokens']} maximum"
    elif fault.param is not None and fault.param not in message:
        message = f"{fault.param}: {message}"
    return {
        "type": "error",
        "error": {"type": _ERROR_TYPES.get(fault.kind, "invalid_request_error"), "message": message},
    }


FAMILY = Family(
    name="anthropic",
    fault_body=_fault_body,
    fault_event=lambda fault: sse(_fault_body(fault), event="error"),
    keep_alive=sse({"type": "ping"}, event="ping"),
    request_id_header="request-id",
    key_headers=("x-api-key",),
)


def _stop_reason(finish: FinishReason, num_generated: int, max_tokens: int) -> str:
    if finish == "length":  # fewer than were allowed: it was the context that ended
        return "max_tokens" if num_generated >= max_tokens else "model_context_window_exceeded"
    return {"stop": "end_turn", "stop_sequence": "stop_sequence", "tool_calls": "tool_use"}[finish]


class _Blocks:
    """Turns a model's events into the API's. One content block is open at a time; they are numbered from 0."""

    def __init__(self, body: MessagesBody, model: str) -> None:
        self._body = body
        self._model = model
        self._num_blocks = 0
        self._open: Literal["", "text", "thinking", "tool_use"] = ""
        self._thoughts = hashlib.sha256()
        self._hides_thinking = body.thinking is not None and body.thinking.display == "omitted"
        self._finish = Finish("stop")

    def events(self, event: Event) -> Iterator[dict[str, Any]]:
        """The API's events for one of the model's."""
        if isinstance(event, Started):
            yield {"type": "message_start", "message": self._message(event)}
        elif isinstance(event, Finish):
            self._finish = event
        elif isinstance(event, Done):
            yield from self._close()
            yield from self._end(event.counts)
        elif self._body.max_tokens == 0 or (isinstance(event, (TextDelta, ReasoningDelta)) and not event.text):
            return
        elif isinstance(event, TextDelta):
            yield from self._in("text", {"type": "text", "text": ""})
            yield self._delta({"type": "text_delta", "text": event.text})
        elif isinstance(event, ReasoningDelta):
            yield from self._in("thinking", {"type": "thinking", "thinking": "", "signature": ""})
            self._thoughts.update(event.text.encode("utf-8", "surrogatepass"))
            if not self._hides_thinking:
                yield self._delta({"type": "thinking_delta", "thinking": event.text})
        elif isinstance(event, ToolCallStart):
            yield from self._close()
            call_id = event.id or f"toolu_{secrets.token_hex(12)}"
            yield from self._in("tool_use", {"type": "tool_use", "id": call_id, "name": event.name, "input": {}})
        elif isinstance(event, ToolCallDelta):
            yield self._delta({"type": "input_json_delta", "partial_json": event.arguments})
        elif isinstance(event, ToolCallEnd):
            yield from self._close()

    def _message(self, started: Started) -> dict[str, Any]:
        return {
            "id": f"msg_{secrets.token_hex(12)}",
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            # What the cache holds of the prompt is known at the end; message_delta says it.
            "usage": {"input_tokens": started.num_prompt_tokens, "output_tokens": 0, "service_tier": "standard"},
        }

    def _in(self, kind: Literal["text", "thinking", "tool_use"], block: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Opens a block of this kind unless one is open."""
        if self._open == kind:
            return
        yield from self._close()
        self._open = kind
        yield {"type": "content_block_start", "index": self._num_blocks, "content_block": block}

    def _delta(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": self._num_blocks, "delta": delta}

    def _close(self) -> Iterator[dict[str, Any]]:
        if not self._open:
            return
        if self._open == "thinking":  # clients send it back; it is a checksum here, and not checked
            yield self._delta({"type": "signature_delta", "signature": self._thoughts.hexdigest()})
        yield {"type": "content_block_stop", "index": self._num_blocks}
        self._open = ""
        self._num_blocks += 1

    def _end(self, counts: TokenCounts) -> Iterator[dict[str, Any]]:
        usage = {
            "input_tokens": counts.num_prompt_tokens - counts.num_cached_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": counts.num_cached_tokens,
            "output_tokens": counts.num_generated_tokens,
            "output_tokens_details": {"thinking_tokens": counts.num_reasoning_tokens},
        }
        reason = _stop_reason(self._finish.reason, counts.num_generated_tokens, self._body.max_tokens)
        if self._body.max_tokens == 0:
            usage["output_tokens"] = 0
            reason = "max_tokens"
        sequence = self._finish.stop_sequence if reason == "stop_sequence" else None
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        said = {"kamado": {"schema_violations": list(counts.violations)}} if counts.violations else {}
        yield {"type": "message_delta", "delta": delta, "usage": usage, **said}
        yield {"type": "message_stop"}


async def _whole(events: AsyncIterator[dict[str, Any]]) -> dict[str, Any]:
    """The message that the events make together."""
    message: dict[str, Any] = {}
    arguments = ""
    async for event in events:
        if event["type"] == "message_start":
            message = event["message"]
        elif event["type"] == "content_block_start":
            message["content"].append(dict(event["content_block"]))
            arguments = ""
        elif event["type"] == "content_block_delta":
            delta, block = event["delta"], message["content"][-1]
            if delta["type"] == "input_json_delta":
                arguments += delta["partial_json"]
            else:
                name = delta["type"].removesuffix("_delta")
                block[name] += delta[name]
        elif event["type"] == "content_block_stop":
            if message["content"][-1]["type"] == "tool_use":
                message["content"][-1]["input"] = whole_members(arguments)
        elif event["type"] == "message_delta":
            message |= event["delta"]
            message["usage"] |= event["usage"]
            message |= {"kamado": event["kamado"]} if "kamado" in event else {}
    return message


async def _events(call: Call[MessagesBody]) -> AsyncGenerator[dict[str, Any], None]:
    body = call.body
    request = chat_request(call)
    blocks = _Blocks(body, body.model)
    async with aclosing(noted(call, call.server.service.chat(body.model, request))) as events:
        async for event in events:
            for made in blocks.events(event):
                yield made
            if isinstance(event, Done):
                call.notes["tokens"] = event.counts.num_generated_tokens


async def messages(call: Call[MessagesBody]) -> Response:
    """POST /v1/messages."""
    call.notes["model"] = call.body.model
    if call.body.metadata is not None and call.body.metadata.user_id:
        call.notes["user"] = call.body.metadata.user_id
    await _say_if_it_cannot_think(call)
    events = _events(call)
    if call.body.stream:
        return stream_response(written(events, lambda event: (sse(event, event=event["type"]),)))
    async with aclosing(events):
        return json_response(await _whole(events))


async def _say_if_it_cannot_think(call: Call[MessagesBody]) -> None:
    thinking, config = call.body.thinking, call.body.output_config
    asks = {
        "thinking": thinking is not None and thinking.type == "enabled",
        "output_config.effort": config is not None and config.effort is not None,
    }
    if names := [name for name, is_asked in asks.items() if is_asked]:
        await say_if_it_cannot_think(call, call.body.model, Think(enabled=True), *names)


async def count_tokens(call: Call[CountTokensBody]) -> Response:
    """POST /v1/messages/count_tokens."""
    call.notes["model"] = call.body.model
    request = chat_request(call)
    return json_response({"input_tokens": await call.server.service.count_chat_tokens(call.body.model, request)})


# Some clients add it to every path; it changes nothing here.
_QUERY: Mapping[str, Any] = {"beta": {"type": "string", "enum": ["true", "false"]}}

ROUTES: tuple[Route, ...] = (
    Route(
        "POST",
        "/v1/messages",
        messages,
        "infer",
        FAMILY,
        "Answer a conversation (Anthropic)",
        body=MessagesBody,
        streams="text/event-stream",
        query=_QUERY,
        needs_model=True,
    ),
    Route(
        "POST",
        "/v1/messages/count_tokens",
        count_tokens,
        "infer",
        FAMILY,
        "Tokens of a prompt (Anthropic)",
        body=CountTokensBody,
        query=_QUERY,
        needs_model=True,
    ),
)
