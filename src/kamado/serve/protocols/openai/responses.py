"""OpenAI's /v1/responses: items instead of messages, a lifecycle of events, and answers that can be gone on from."""

from __future__ import annotations

import base64
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from ...faults import RequestError, fault_of
from ...http.replies import json_response, sse, stream_response, to_json, until_started
from ...http.routes import WORK_STATUSES, Call, Response, Route
from ...models.contract import (
    ChatRequest,
    Done,
    Event,
    Finish,
    ReasoningDelta,
    Started,
    TextDelta,
    TokenCounts,
    TokenLogprob,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
)
from ..schemas import noted
from ..thinking import say_if_it_cannot_think
from .family import FAMILY, keep_alive_of, new_id, note_counts, owner_of
from .responses_bodies import ENCRYPTED, INCLUDABLE, ResponsesBody, input_items, named_parts, responses_request
from .responses_replay import replay
from .results import ChatLogprob, account_of, chat_logprob

_log = logging.getLogger("kamado.serve")

# How an item of text begins: what its id begins with, and its own fields.
_HEADS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "message": ("msg_", {"role": "assistant", "status": "in_progress"}),
    "reasoning": ("rs_", {"status": "in_progress", "summary": ()}),
}
_MAX_STORED_BYTES = 64 << 20  # of all stored responses


@dataclass(frozen=True, slots=True)
class Stored:
    """A response that can be gone on from."""

    owner: str
    response: Mapping[str, Any]
    own_input: Sequence[Mapping[str, Any]]
    items: Sequence[Mapping[str, Any]]  # the whole conversation: what came before, input, output
    nbytes: int


class ResponseStore:
    """The latest responses, in memory only: a restart forgets them."""

    def __init__(self, max_responses: int) -> None:
        self._max_responses = max_responses
        self._found: OrderedDict[str, Stored] = OrderedDict()
        self._nbytes = 0

    def put(self, stored: Stored) -> None:
        """Keeps one; the oldest go."""
        if self._max_responses == 0 or stored.nbytes > _MAX_STORED_BYTES:
            return
        self._found[stored.response["id"]] = stored
        self._nbytes += stored.nbytes
        while len(self._found) > self._max_responses or self._nbytes > _MAX_STORED_BYTES:
            self._nbytes -= self._found.popitem(last=False)[1].nbytes

    def get(self, id_: str, owner: str, param: str | None = None) -> Stored:
        """One of this owner's. Raises RequestError (404)."""
        stored = self._found.get(id_)
        if stored is None or stored.owner != owner:
            raise RequestError(
                f"there is no response {id_[:100]!r}: it was not stored, or it was long ago",
                param=param,
                kind="not_found",
                code="response_not_found",
            )
        self._found.move_to_end(id_)
        return stored

    def remove(self, id_: str, owner: str) -> None:
        """Forgets one. Raises RequestError (404)."""
        self._nbytes -= self.get(id_, owner).nbytes
        del self._found[id_]


def _store(call: Call[Any]) -> ResponseStore:
    new = ResponseStore(call.server.config.max_stored_responses)
    store: ResponseStore = call.server.state.setdefault("responses", new)
    return store


def _request(call: Call[ResponsesBody], owner: str) -> tuple[ChatRequest, Sequence[Mapping[str, Any]]]:
    """What a body asks for, and the items of the conversation that it goes on from. Raises RequestError."""
    body, config = call.body, call.server.config
    earlier: Sequence[Mapping[str, Any]] = ()
    if body.previous_response_id is not None:
        earlier = _store(call).get(body.previous_response_id, call.key.id, "previous_response_id").items
    request = responses_request(
        body,
        earlier,
        owner=owner,
        request_id=call.id,
        max_schema_bytes=config.max_schema_bytes,
        max_image_bytes=config.max_image_bytes,
    )
    return request, earlier


async def create(call: Call[ResponsesBody]) -> Response:
    """POST /v1/responses."""
    body = call.body
    request, earlier = _request(call, owner_of(call, body.prompt_cache_key))
    call.notes |= {"model": body.model, "user": body.user}
    await say_if_it_cannot_think(call, body.model, request.think, "reasoning")
    maker = ResponseMaker(body)
    events = noted(call, call.server.service.chat(body.model, request, keep_alive=keep_alive_of(body.keep_alive)))

    def keep() -> None:
        own = input_items(body.input)
        if body.store is not False:
            items = [*earlier, *own, *maker.response["output"]]
            nbytes = len(to_json(items)) + 2000
            _store(call).put(Stored(call.key.id, maker.response, own, items, nbytes))

    if body.stream:
        return stream_response(_events(call, maker, events, keep))
    async with aclosing(events):
        async for event in events:
            maker.take(event)
            if isinstance(event, Done):
                note_counts(call, event.counts)
    keep()
    return json_response(maker.response)


async def _events(
    call: Call[Any], maker: ResponseMaker, events: AsyncGenerator[Event, None], keep: Any
) -> AsyncGenerator[bytes, None]:
    async with aclosing(events):
        started = await until_started(events)
        for item in maker.take(started):
            yield sse(item, event=item["type"])
        try:
            async for event in events:
                if isinstance(event, Done):
                    note_counts(call, event.counts)
                    maker.complete(event.counts)
                    keep()
                for item in maker.take(event):
                    yield sse(item, event=item["type"])
        except Exception as error:
            fault = fault_of(error)
            for item in maker.fail(fault.message):
                yield sse(item, event=item["type"])
            call.notes["fault"] = fault.kind
            if fault.kind == "internal":
                _log.exception("a response failed", extra={"id": call.id})


class ResponseMaker:
    """Puts a response together, and says each step as an event."""

    def __init__(self, body: ResponsesBody) -> None:
        self._number = 0
        self._started: Started | None = None
        self._item: dict[str, Any] | None = None  # the open one
        self._text: list[str] = []  # of the open item
        self._logprobs: list[ChatLogprob] = []
        self._calls: dict[int, int] = {}  # a call's index -> its place in the output
        include = body.include or ()
        self._has_logprobs = body.top_logprobs is not None or any("logprobs" in name for name in include)
        self._seals_reasoning = ENCRYPTED in include
        self._spaces = named_parts(body.tools)
        reasoning = body.reasoning
        text_format = body.text.format if body.text is not None else None
        self.response: dict[str, Any] = {
            "id": new_id("resp_"),
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress",
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "max_tool_calls": None,
            "model": body.model,
            "output": [],
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id,
            "prompt_cache_key": body.prompt_cache_key,
            "reasoning": {"effort": reasoning.effort if reasoning else None, "summary": None},
            "safety_identifier": body.safety_identifier,
            "service_tier": "default",
            "store": body.store is not False,
            "temperature": body.temperature,
            "text": {"format": _format_of(text_format), "verbosity": "medium"},
            "tool_choice": body.tool_choice if body.tool_choice is not None else "auto",
            "tools": [_tool_of(tool) for tool in body.tools or ()],
            "top_logprobs": body.top_logprobs or 0,
            "top_p": body.top_p,
            "truncation": body.truncation or "disabled",
            "usage": None,
            "user": body.user,
            "metadata": body.metadata or {},
        }

    def take(self, event: Event) -> list[dict[str, Any]]:
        """The response's events that one of the stream becomes."""
        if isinstance(event, Started):
            self._started = event
            return [self._whole("response.created"), self._whole("response.in_progress")]
        if isinstance(event, TextDelta):
            return self._more("message", event.text, event.logprobs)
        if isinstance(event, ReasoningDelta):
            return self._more("reasoning", event.text, ())
        if isinstance(event, ToolCallStart):
            call = {
                "type": "function_call",
                "id": new_id("fc_"),
                "call_id": event.id,
                **self._named(event.name),
                "arguments": "",
                "status": "in_progress",
            }
            return [*self._close(), *self._open(call)]
        if isinstance(event, ToolCallDelta):
            assert self._item is not None
            self._text.append(event.arguments)
            place = self._place()
            return [self._event("response.function_call_arguments.delta", **place, delta=event.arguments)]
        if isinstance(event, ToolCallEnd):
            return self._close("incomplete" if event.is_cut else "completed")
        if isinstance(event, Finish):
            is_cut = event.reason == "length"
            closing = self._close("incomplete" if is_cut else "completed")
            self.response["status"] = "incomplete" if is_cut else "completed"
            if is_cut:
                self.response["incomplete_details"] = {"reason": "max_output_tokens"}
            return closing
        if isinstance(event, Done):
            self.complete(event.counts)
            return [self._whole(f"response.{self.response['status']}")]
        return []

    def _named(self, name: str) -> dict[str, Any]:
        """A call's name as its tool was given: a function of a namespace has both names."""
        if name not in self._spaces:
            return {"name": name}
        namespace, own = self._spaces[name]
        return {"namespace": namespace, "name": own}

    def complete(self, counts: TokenCounts) -> None:
        """Adds the account."""
        assert self._started is not None
        self.response["usage"] = {
            "input_tokens": counts.num_prompt_tokens,
            "input_tokens_details": {"cached_tokens": counts.num_cached_tokens, "cache_write_tokens": 0},
            "output_tokens": counts.num_generated_tokens,
            "output_tokens_details": {"reasoning_tokens": counts.num_reasoning_tokens},
            "total_tokens": counts.num_prompt_tokens + counts.num_generated_tokens,
        }
        self.response["completed_at"] = int(time.time())
        self.response["kamado"] = account_of(self._started, counts)

    def fail(self, message: str) -> list[dict[str, Any]]:
        """The last events of a response that met a fault: an item that was open ends as it is."""
        closing = self._close("incomplete")
        self.response["status"] = "failed"
        self.response["error"] = {"code": "server_error", "message": message}
        return [*closing, self._whole("response.failed")]

    def _more(self, kind: str, text: str, logprobs: tuple[TokenLogprob, ...]) -> list[dict[str, Any]]:
        events = []
        if self._item is None or self._item["type"] != kind:
            events += self._close()
            prefix, head = _HEADS[kind]
            events += self._open({"type": kind, "id": new_id(prefix), **head, "content": []})
            events.append(self._event("response.content_part.added", **self._place(0), part=self._part("", [])))
        self._text.append(text)
        shown = [chat_logprob(token) for token in logprobs]
        self._logprobs += shown
        events.append(self._text_event("delta", delta=text, logprobs=shown))
        return events

    def _text_event(self, step: str, **fields: Any) -> dict[str, Any]:
        """More or the end of the open item's text; what is reasoned has no log-probabilities."""
        part = self._part("", [])["type"]
        if part == "reasoning_text":
            del fields["logprobs"]
        return self._event(f"response.{part}.{step}", **self._place(0), **fields)

    def _open(self, item: dict[str, Any]) -> list[dict[str, Any]]:
        self._item, self._text, self._logprobs = item, [], []
        self.response["output"].append(item)
        return [self._event("response.output_item.added", output_index=self._index(), item=dict(item))]

    def _close(self, status: str = "completed") -> list[dict[str, Any]]:
        item = self._item
        if item is None:
            return []
        text = "".join(self._text)
        item["status"] = status
        events = []
        if item["type"] == "function_call":
            item["arguments"] = text
            events.append(
                self._event("response.function_call_arguments.done", **self._place(), arguments=text, name=item["name"])
            )
        else:
            part = self._part(text, self._logprobs)
            events.append(self._text_event("done", text=text, logprobs=list(self._logprobs)))
            events.append(self._event("response.content_part.done", **self._place(0), part=part))
            item["content"] = [part]
            if item["type"] == "reasoning" and self._seals_reasoning:
                item["encrypted_content"] = base64.b64encode(text.encode()).decode("ascii")
        events.append(self._event("response.output_item.done", output_index=self._index(), item=dict(item)))
        self._item = None
        return events

    def _part(self, text: str, logprobs: list[ChatLogprob]) -> dict[str, Any]:
        assert self._item is not None
        if self._item["type"] == "reasoning":
            return {"type": "reasoning_text", "text": text}
        part: dict[str, Any] = {"type": "output_text", "text": text, "annotations": []}
        if self._has_logprobs:
            part["logprobs"] = list(logprobs)
        return part

    def _index(self) -> int:
        return len(self.response["output"]) - 1

    def _place(self, content_index: int | None = None) -> dict[str, Any]:
        assert self._item is not None
        place = {"item_id": self._item["id"], "output_index": self._index()}
        return place if content_index is None else {**place, "content_index": content_index}

    def _whole(self, kind: str) -> dict[str, Any]:
        return self._event(kind, response={**self.response, "output": list(self.response["output"])})

    def _event(self, kind: str, **fields: Any) -> dict[str, Any]:
        self._number += 1
        return {"type": kind, "sequence_number": self._number - 1, **fields}


def _format_of(form: Any) -> dict[str, Any]:
    if form is None:
        return {"type": "text"}
    if form.type != "json_schema":
        return {"type": form.type}
    return {
        "type": form.type,
        "name": form.name or "answer",
        "description": form.description,
        "schema": form.schema,
        "strict": form.strict,
    }


def _tool_of(tool: Mapping[str, Any]) -> dict[str, Any]:
    if tool.get("type") == "namespace":
        return {**tool, "tools": [_tool_of(inner) for inner in tool["tools"]]}
    return {
        "type": "function",
        "name": tool["name"],
        "description": tool.get("description"),
        "parameters": tool.get("parameters"),
        "strict": tool.get("strict") is True,
    }


async def retrieve(call: Call[None]) -> Response:
    """GET /v1/responses/{id}, whole or as the events that made it."""
    response = _store(call).get(call.path["id"], call.key.id).response
    _check_include(call)
    RequestError.when(
        _flag(call, "include_obfuscation"),
        "include_obfuscation must be false: answers are not padded here",
        param="include_obfuscation",
    )
    if not _flag(call, "stream"):
        return json_response(response)
    return stream_response(_replayed(response, _whole_number(call, "starting_after", -1)))


async def _replayed(response: Mapping[str, Any], after: int) -> AsyncGenerator[bytes, None]:
    for event in replay(response):
        if event["sequence_number"] > after:
            yield sse(event, event=event["type"])


def _flag(call: Call[Any], name: str) -> bool:
    """A query parameter that is true or false. Raises RequestError for anything else."""
    value = call.query.get(name, "false")
    RequestError.when(value not in ("true", "false"), f"{name} must be true or false", param=name)
    return value == "true"


def _whole_number(call: Call[Any], name: str, default: int) -> int:
    value = call.query.get(name)
    if value is None:
        return default
    RequestError.when(
        not (value.isascii() and value.isdecimal() and len(value) <= 9), f"{name} must be a whole number", param=name
    )
    return int(value)


def _check_include(call: Call[Any]) -> None:
    """What is there is shown, and what belongs to tools that are not here is in no answer: any known word is met."""
    for name in ("include", "include[]"):
        value = call.query.get(name, ENCRYPTED)
        RequestError.when(
            value not in INCLUDABLE,
            f"{name}: {value[:80]!r} is nothing that can be included",
            param=name,
        )


async def remove(call: Call[None]) -> Response:
    """DELETE /v1/responses/{id}."""
    _store(call).remove(call.path["id"], call.key.id)
    return json_response({"id": call.path["id"], "object": "response", "deleted": True})


async def list_input(call: Call[None]) -> Response:
    """GET /v1/responses/{id}/input_items."""
    stored = _store(call).get(call.path["id"], call.key.id)
    items = []
    for i, item in enumerate(stored.own_input):
        kind = item.get("type", "message")
        shown = {"id": f"item_{i}", "type": kind, "status": "completed", **item}
        if isinstance(shown.get("content"), str):
            part = "output_text" if shown.get("role") == "assistant" else "input_text"
            shown["content"] = [{"type": part, "text": shown["content"]}]
        items.append(shown)
    _check_include(call)
    return json_response(_page(items, call))


def _page(items: list[dict[str, Any]], call: Call[Any]) -> dict[str, Any]:
    """The items of a page, by `order`, `after` and `limit`; the newest first, as OpenAI has them."""
    limit = _whole_number(call, "limit", 20)
    RequestError.when(not 1 <= limit <= 100, "limit must be 1 to 100", param="limit")
    order = call.query.get("order", "desc")
    RequestError.when(order not in ("asc", "desc"), "order must be asc or desc", param="order")
    if order == "desc":
        items = items[::-1]
    if "after" in call.query:
        at = next((i for i, item in enumerate(items) if item["id"] == call.query["after"]), None)
        if at is None:
            raise RequestError("after: there is no such item", param="after")
        items = items[at + 1 :]
    shown = items[:limit]
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": len(items) > limit,
    }


async def count_input(call: Call[ResponsesBody]) -> Response:
    """POST /v1/responses/input_tokens."""
    request, _ = _request(call, call.key.id)
    num_tokens = await call.server.service.count_chat_tokens(call.body.model, request)
    return json_response({"object": "response.input_tokens", "input_tokens": num_tokens})


_BOOLEAN, _STRING = {"type": "string", "enum": ["true", "false"]}, {"type": "string", "enum": list(INCLUDABLE)}
_NUMBER = {"type": "integer", "minimum": 0, "maximum": 999_999_999}
_LIMIT = {"type": "integer", "minimum": 1, "maximum": 100}

ROUTES = [
    Route(
        "POST", "/v1/responses", create, "infer", FAMILY, "Answer, and keep the answer to go on from.",
        ResponsesBody, dict[str, Any], streams="text/event-stream", statuses=WORK_STATUSES, needs_model=True,
    ),
    Route(
        "POST", "/v1/responses/input_tokens", count_input, "infer", FAMILY, "Count the tokens of an input.",
        ResponsesBody, dict[str, Any], statuses=WORK_STATUSES, needs_model=True,
    ),
    Route(
        "GET", "/v1/responses/{id}", retrieve, "infer", FAMILY, "A stored response.", result=dict[str, Any],
        statuses=(404,), streams="text/event-stream",
        query={
            "stream": _BOOLEAN, "starting_after": _NUMBER, "include": _STRING, "include[]": _STRING,
            "include_obfuscation": _BOOLEAN,
        },
    ),
    Route(
        "DELETE", "/v1/responses/{id}", remove, "infer", FAMILY, "Forget a stored response.", result=dict[str, Any],
        statuses=(404,),
    ),
    Route(
        "GET", "/v1/responses/{id}/input_items", list_input, "infer", FAMILY, "The input of a stored response.",
        result=dict[str, Any], statuses=(404,),
        query={
            "limit": _LIMIT, "after": {"type": "string"}, "order": {"type": "string", "enum": ["asc", "desc"]},
            "include": _STRING, "include[]": _STRING,
        },
    ),
]  # fmt: skip
