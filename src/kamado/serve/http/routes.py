"""The one table of routes, and what a handler gets and gives.

A protocol family is a module with a `FAMILY` and a list of `Route`s. families.py puts the lists together; app.py checks
keys, scopes and limits, reads and validates bodies, and calls handlers. Nothing is reachable that is not in a table,
and a route without a scope does not exist. A handler is

    async def chat(call: Call[ChatBody]) -> Response: ...

and answers with `json_response`, or with `stream_response` for server-sent events and lines of JSON (replies.py). It
raises KamadoErrors, RequestError (faults.py) among them; app.py writes them in the family's shape.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar

from ..faults import Fault
from ..scopes import Scope
from .parameters import LeftOut

if TYPE_CHECKING:
    from ..config import ServeConfig
    from ..metrics import Registry
    from ..models.service import Service
    from .keys import Key

Body = TypeVar("Body")

# What a route that works on a model may answer besides 200.
WORK_STATUSES = (404, 413, 415, 429, 500, 502, 503, 504)


@dataclass(frozen=True, slots=True)
class Family:
    """How one protocol writes faults and keeps a waiting client's connection alive."""

    name: str
    fault_body: Callable[[Fault], Mapping[str, Any]]  # the JSON of an error answer
    fault_event: Callable[[Fault], bytes]  # the same in the middle of a stream, framed
    keep_alive: bytes = b""  # sent while a stream is silent, e.g. an SSE comment; b"": nothing
    request_id_header: str = "x-request-id"
    key_headers: tuple[str, ...] = ()  # that carry an API key besides Authorization, in lower case


@dataclass(frozen=True, slots=True)
class Route:
    """One method of one path."""

    method: Literal["GET", "POST", "DELETE", "HEAD", "PUT"]
    path: str  # "/v1/models/{model:path}"
    handler: Callable[[Call[Any]], Awaitable[Response]]
    scope: Scope
    family: Family
    summary: str
    body: type | None = None  # a msgspec Struct; None: the request has no body
    result: Any = None  # type of a 200 answer that is JSON, for the OpenAPI document
    streams: str | None = None  # media type of a streamed answer
    is_empty: bool = False  # a 200 answer has no content
    statuses: tuple[int, ...] = ()  # that it may answer besides 200 and the ones that every route may
    query: Mapping[str, Any] = field(default_factory=dict)  # JSON Schemas of the query string's parameters
    is_hidden: bool = False  # not in the OpenAPI document: files of the page
    needs_model: bool = False  # a body without a model means the one that the server was started for


@dataclass(frozen=True, slots=True)
class Response:
    """An answer: `content` whole, or `chunks` one after the other as they come."""

    status: int = 200
    content: bytes = b""
    media_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    chunks: AsyncGenerator[bytes, None] | None = None


class Host(Protocol):
    """What handlers see of the server that runs them."""

    config: ServeConfig
    service: Service
    metrics: Registry
    routes: tuple[Route, ...]
    state: dict[str, Any]  # families' own: stored responses, …
    started_at: float  # seconds since the epoch
    is_draining: bool  # no more requests are taken
    model_stats: dict[str, Mapping[str, Any]]  # by model, as it was last asked: Stats.to_dict

    async def refresh_model_stats(self) -> None:
        """Asks the engines of loaded models for what they counted."""

    def log_left_out(self, left: LeftOut) -> None:
        """One line for each name of a parameter, however many requests have it."""


@dataclass(slots=True)
class Call(Generic[Body]):
    """One request that passed every check."""

    server: Host
    body: Body
    path: Mapping[str, str]  # parameters of the path
    query: Mapping[str, str]
    headers: Mapping[str, str]  # names in lower case
    key: Key  # who asks; key.id is the owner of cached prefixes
    id: str  # of the request, as in the log and in the answer's header
    notes: dict[str, Any] = field(default_factory=dict)  # what the log line says more: model, tokens, …
    answer_headers: dict[str, str] = field(default_factory=dict)  # as they are when the answer begins
    left_out: dict[str, LeftOut] = field(default_factory=dict)  # parameters that were; the answer's header says so

    def leave_out(self, left: LeftOut) -> None:
        """Says in the answer's header and, once for each name, in the log that a parameter was left out.

        Only before the handler has given its Response: a stream's header is sent with its first piece.
        """
        if left.name not in self.left_out:
            self.left_out[left.name] = left
            self.server.log_left_out(left)
