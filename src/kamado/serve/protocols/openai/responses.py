"""OpenAI's /v1/responses: items instead of messages, a lifecycle of events, and answers that can be gone on from."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from ...faults import fault_of
from ...http.replies import json_response, sse, stream_response, to_json, until_started
from ...http.routes import WORK_STATUSES, Call, Response, Route
from ...models.contract import ChatRequest, Done, Event
from ..schemas import noted
from ..thinking import say_if_it_cannot_think
from .family import FAMILY, keep_alive_of, note_counts, owner_of
from .responses_bodies import INCLUDABLE, ResponsesBody, input_items, responses_request
from .responses_maker import ResponseMaker
from .responses_stored import MOST_ITEMS, Stored, list_input, remove, retrieve, store_of

_log = logging.getLogger("kamado.serve")


def _request(call: Call[ResponsesBody], owner: str) -> tuple[ChatRequest, Sequence[Mapping[str, Any]]]:
    """What a body asks for, and the items of the conversation that it goes on from. Raises RequestError."""
    body, config = call.body, call.server.config
    earlier: Sequence[Mapping[str, Any]] = ()
    if body.previous_response_id is not None:
        earlier = store_of(call).get(body.previous_response_id, call.key.id, "previous_response_id").items
    request = responses_request(
        body,
        earlier,
        owner=owner,
        asker=call.key.id,
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
            store_of(call).put(Stored(call.key.id, maker.response, own, items, nbytes))

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


async def count_input(call: Call[ResponsesBody]) -> Response:
    """POST /v1/responses/input_tokens."""
    request, _ = _request(call, call.key.id)
    num_tokens = await call.server.service.count_chat_tokens(call.body.model, request)
    return json_response({"object": "response.input_tokens", "input_tokens": num_tokens})


_BOOLEAN, _STRING = {"type": "string", "enum": ["true", "false"]}, {"type": "string", "enum": list(INCLUDABLE)}
_NUMBER = {"type": "integer", "minimum": 0, "maximum": 999_999_999}
_LIMIT = {"type": "integer", "minimum": 1, "maximum": MOST_ITEMS}

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
