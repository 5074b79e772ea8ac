"""Answers: whole JSON, server-sent events, lines of JSON."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec

from ..models.contract import Event, Progress, Started
from .routes import Response

NDJSON = "application/x-ndjson"
T = TypeVar("T")
U = TypeVar("U")

_encoder = msgspec.json.Encoder()


def to_json(value: Any) -> bytes:
    """Compact JSON of Structs, dataclasses and plain data. NaN and infinities become null."""
    return _encoder.encode(value)


def json_response(value: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A whole answer."""
    return Response(status=status, content=to_json(value), headers=headers or {})


def sse(value: Any, *, event: str | None = None) -> bytes:
    """One server-sent event of JSON."""
    data = to_json(value)  # line breaks inside strings are escaped, and there are none elsewhere
    return b"data: %b\n\n" % data if event is None else b"event: %b\ndata: %b\n\n" % (event.encode(), data)


class SseTemplate:
    """Server-sent events that are the same but for one text: all else is encoded once."""

    def __init__(self, make: Callable[[str], Any], *, event: str | None = None) -> None:
        """`make(text)` gives the JSON value; the text may stand in it several times, each time as a whole string."""
        word = secrets.token_hex(16)  # as a string it is part of nothing else
        self._parts = sse(make(word), event=event).split(b'"%b"' % word.encode())

    def fill(self, text: str) -> bytes:
        """The event with this text: what `sse` gives for `make(text)`."""
        return to_json(text).join(self._parts)


def ndjson(value: Any) -> bytes:
    """One line of JSON."""
    return to_json(value) + b"\n"


def lines_response(lines: AsyncGenerator[dict[str, Any], None]) -> Response:
    """An answer in lines of JSON."""
    return stream_response(written(lines, lambda line: (ndjson(line),)), media_type=NDJSON)


def stream_response(
    chunks: AsyncGenerator[bytes, None],
    *,
    media_type: str = "text/event-stream",
    headers: Mapping[str, str] | None = None,
) -> Response:
    """An answer in chunks. A fault before the first chunk becomes a status; after it, the family's fault event.

    So a generator yields nothing before the request is known to be good: it iterates to `Started` first. When that
    takes long, app.py begins the answer all the same and keeps the client company.
    """
    own = {"cache-control": "no-cache", "x-accel-buffering": "no"}  # a proxy that buffers would hold tokens back
    return Response(media_type=media_type, headers={**own, **(headers or {})}, chunks=chunks)


async def written(items: AsyncGenerator[T, None], write: Callable[[T], Iterable[U]]) -> AsyncGenerator[U, None]:
    """What `write` makes of each item, as they come. Closing it closes `items`."""
    async with aclosing(items):
        async for item in items:
            for made in write(item):
                yield made


async def until_started(events: AsyncGenerator[Event, None]) -> Started:
    """Reads past Progress to Started. Raises what is wrong with the request."""
    async for event in events:
        if isinstance(event, Started):
            return event
        assert isinstance(event, Progress), "Started comes before all content"
    raise AssertionError("a stream ended before Started")


# What Ollama says of a model that is never given up, for clients that want a date.
_END_OF_TIME = datetime(2318, 10, 5, tzinfo=UTC)


def utc_text(seconds: float) -> str:
    """A moment as the APIs write it; what lies before 1970 or after the end of Ollama's time is set to those."""
    moment = datetime.fromtimestamp(min(max(seconds, 0.0), _END_OF_TIME.timestamp()), UTC)
    return moment.isoformat().replace("+00:00", "Z")
