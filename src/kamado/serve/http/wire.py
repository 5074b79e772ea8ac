"""The short way to the socket for streamed answers.

One piece of an answer costs uvicorn and h11 about as much processor time as all the rest of the server does, and on a
small machine that time is taken from the model. So a chunk of a streamed body is framed here and given to the
connection's transport. Headers, whole answers, the end of a stream and whatever must wait (a client that reads slowly)
go the ordinary way: framing a chunk changes nothing in h11's account of the connection.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any, Protocol


class Wire(Protocol):
    """Takes chunks of a streamed body."""

    def write(self, chunk: bytes) -> bool:
        """Whether the chunk was taken; False: it must go the ordinary way."""
        ...


class _ChunkedWire:
    """Of uvicorn's h11 protocol, for an HTTP/1.1 answer whose length is not known beforehand."""

    def __init__(self, cycle: Any) -> None:
        self._cycle = cycle
        self._flow = cycle.flow
        self._write = cycle.transport.write

    def write(self, chunk: bytes) -> bool:
        """See Wire."""
        cycle = self._cycle
        if self._flow.write_paused or cycle.disconnected or cycle.response_complete or not cycle.response_started:
            return False
        if chunk:  # an empty one would be the end
            self._write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
        return True


def find_wire(scope: MutableMapping[str, Any], send: Any) -> Wire | None:
    """The short way of a request, if its server is one that has it. The answer must not have a content-length."""
    if scope.get("http_version") != "1.1":  # older clients get no chunks
        return None
    cycle = getattr(send, "__self__", None)
    if type(cycle).__module__ != "uvicorn.protocols.http.h11_impl":
        return None
    needed = ("flow", "transport", "disconnected", "response_complete", "response_started")
    return _ChunkedWire(cycle) if all(hasattr(cycle, name) for name in needed) else None
