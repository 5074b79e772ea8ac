"""Responses that are kept: to be fetched, gone on from, forgotten."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...faults import RequestError
from ...http.replies import json_response, sse, stream_response
from ...http.routes import Call, Response
from ..paging import page_of
from .responses_bodies import ENCRYPTED, INCLUDABLE
from .responses_replay import replay

_MAX_STORED_BYTES = 64 << 20  # of all stored responses
MOST_ITEMS = 100  # of a page


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


def store_of(call: Call[Any]) -> ResponseStore:
    """The server's."""
    new = ResponseStore(call.server.config.max_stored_responses)
    store: ResponseStore = call.server.state.setdefault("responses", new)
    return store


async def retrieve(call: Call[None]) -> Response:
    """GET /v1/responses/{id}, whole or as the events that made it."""
    response = store_of(call).get(call.path["id"], call.key.id).response
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
    store_of(call).remove(call.path["id"], call.key.id)
    return json_response({"id": call.path["id"], "object": "response", "deleted": True})


async def list_input(call: Call[None]) -> Response:
    """GET /v1/responses/{id}/input_items."""
    stored = store_of(call).get(call.path["id"], call.key.id)
    items = []
    for i, item in enumerate(stored.own_input):
        kind = item.get("type", "message")
        shown = {"id": f"item_{i}", "type": kind, "status": "completed", **item}
        if isinstance(shown.get("content"), str):
            part = "output_text" if shown.get("role") == "assistant" else "input_text"
            shown["content"] = [{"type": part, "text": shown["content"]}]
        items.append(shown)
    _check_include(call)
    return json_response(_page(items, call.query))


def _page(items: list[dict[str, Any]], query: Mapping[str, str]) -> dict[str, Any]:
    """A page of the items; the newest first, as OpenAI has them."""
    order = query.get("order", "desc")
    RequestError.when(order not in ("asc", "desc"), "order must be asc or desc", param="order")
    return {"object": "list", **page_of(items[::-1] if order == "desc" else items, query, most=MOST_ITEMS)}
