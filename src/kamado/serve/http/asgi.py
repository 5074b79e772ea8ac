"""One request and its answer, as an ASGI application sees them. The answer is framed here.

One piece of a streamed answer costs a message, a coroutine and a state machine about as much processor time as all the
rest of the server takes, and on a small machine that time is taken from the model. So an application may write a chunk
in one call: `scope["extensions"][WRITE_NOW]`, a `WriteNow`. What must wait for a client that reads slowly is sent.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from http import HTTPStatus
from typing import Any

Message = MutableMapping[str, Any]
App = Callable[[Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]
Headers = Iterable[tuple[bytes, bytes]]  # names are in lower case

# Writes a part of a streamed body at once. False: it was not taken and must be sent.
WriteNow = Callable[[bytes], bool]
WRITE_NOW = "kamado.write_now"
LOCAL_PEER = "kamado.local_peer"  # in a request's scope: it came over the user's own socket, from the same user

_log = logging.getLogger("kamado.serve")

_REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}
_NAME = re.compile(rb"[-!#$%&'*+.^_`|~0-9a-z]+")
_VALUE = re.compile(rb"[^\0\r\n]*")  # anything else could begin another header, or another answer


def closes_connection(headers: Headers) -> bool:
    """Whether headers say `Connection: close`."""
    tokens = b",".join(value for name, value in headers if name == b"connection").lower().split(b",")
    return b"close" in [token.strip() for token in tokens]


class Line:
    """The sending side of a connection, and whether its client reads."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.is_full = False
        self._has_room = asyncio.Event()
        self._has_room.set()

    def pause(self) -> None:
        """More is waiting than should."""
        self.is_full = True
        self._has_room.clear()

    def resume(self) -> None:
        """There is room again, or nobody who could need it."""
        self.is_full = False
        self._has_room.set()

    async def wait(self) -> None:
        """Returns when there is room."""
        await self._has_room.wait()


class AsgiRequest:
    """One request whose header is whole. `closes`: the connection ends with the answer."""

    def __init__(
        self,
        scope: Message,
        line: Line,
        *,
        default_headers: Headers,
        expects_continue: bool,
        on_end: Callable[[], None],
    ) -> None:
        """`on_end` is called when the answer is complete, or when the application has left it incomplete."""
        self._scope = scope
        self.closes = scope["http_version"] < "1.1" or closes_connection(scope["headers"])
        self._line = line
        self._default_headers = default_headers
        self._expects_continue = expects_continue
        self._on_end = on_end
        self.is_complete = False
        self.is_begun = False  # something of the answer is on the line
        self._is_gone = False
        # of the request
        self._body = bytearray()
        self._has_more_body = True
        self._news = asyncio.Event()
        # of the answer
        self._head: bytes | None = None  # b"" when it has been written
        self._has_body = True
        self._is_chunked = False
        self._num_to_come: int | None = None  # bytes of a body whose length was said
        self._can_write_now = False
        scope["extensions"] = {WRITE_NOW: self.write_now}

    # --- the connection's side ----------------------------------------------------------------------------------------

    def add_body(self, data: bytes) -> int:
        """A part of the body; how many bytes wait for the application now."""
        if not self.is_complete:
            self._body += data
            self._news.set()
        return len(self._body)

    def end_body(self) -> None:
        """There is no more of the body."""
        self._has_more_body = False
        self._news.set()

    def disconnect(self) -> None:
        """The client is gone; nothing more is written."""
        self._is_gone = True
        self._can_write_now = False
        self._news.set()

    async def run(self, app: App) -> None:
        """Calls the application."""
        try:
            await app(self._scope, self.receive, self.send)
        except Exception:
            _log.exception("the application failed", extra={"path": self._scope["path"][:200]})
        finally:
            del self._scope["extensions"]  # which points back here
            if not (self.is_complete or self._is_gone):
                self._on_end()

    # --- the application's side ---------------------------------------------------------------------------------------

    async def receive(self) -> Message:
        """See ASGI."""
        if self._expects_continue and not self.is_begun and not self._is_gone:
            self._line.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._expects_continue = False
        if not (self._is_gone or self.is_complete):
            if self._has_more_body:
                self._line.transport.resume_reading()
            await self._news.wait()
            self._news.clear()
        if self._is_gone or self.is_complete:
            return {"type": "http.disconnect"}
        body, self._body = self._body, bytearray()
        return {"type": "http.request", "body": bytes(body), "more_body": self._has_more_body}

    async def send(self, message: Message) -> None:
        """See ASGI. Raises RuntimeError or ValueError for what cannot be framed; nothing is written then."""
        if self._line.is_full and not self._is_gone:
            await self._line.wait()
        if self._is_gone:
            return
        if message["type"] == "http.response.start" and self._head is None:
            headers = [(name.lower(), value) for name, value in message.get("headers", ())]
            self._head = self._frame_head(message["status"], headers)
        elif message["type"] == "http.response.body" and self._head is not None and not self.is_complete:
            self._write(self._head, message.get("body", b""), more=message.get("more_body", False))
        else:
            raise RuntimeError(f"{message['type']} was sent out of order")

    def write_now(self, chunk: bytes) -> bool:
        """See WriteNow."""
        if not self._can_write_now or self._line.is_full:
            return False
        if chunk:  # an empty one would be the end
            self._line.transport.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
        return True

    # --- framing ------------------------------------------------------------------------------------------------------

    def _frame_head(self, status: int, headers: Headers) -> bytes:
        """The answer's header. Says how its body is framed, and whether the connection ends."""
        lines = [b"HTTP/1.1 %d %b" % (status, _REASONS.get(status, b""))]
        for name, value in (*self._default_headers, *headers):
            if not (_NAME.fullmatch(name) and _VALUE.fullmatch(value)):
                raise ValueError(f"no header of an answer: {name!r}: {value[:80]!r}")
            if name == b"content-length":
                self._num_to_come = int(value)
            if name != b"connection":
                lines.append(name + b": " + value)
        self.closes = self.closes or closes_connection(headers)
        has_length = self._num_to_come is not None or status in (204, 304)
        self._has_body = self._scope["method"] != "HEAD" and status not in (204, 304)
        self._is_chunked = not has_length and self._scope["http_version"] >= "1.1"
        if self._is_chunked:
            lines.append(b"transfer-encoding: chunked")
        if self.closes:
            lines.append(b"connection: close")
        return b"\r\n".join((*lines, b"", b""))

    def _write(self, head: bytes, body: bytes, *, more: bool) -> None:
        """The header if it has not been written, a part of the body, and its end if that is all."""
        if not self._has_body:
            body = b""
        elif self._is_chunked:
            body = (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + (b"" if more else b"0\r\n\r\n")
        elif self._num_to_come is not None:
            self._num_to_come -= len(body)
            if self._num_to_come < 0 or (self._num_to_come and not more):
                raise RuntimeError("the body has not the length that its header says")
        if head or body:
            # Not writelines: from Python 3.12 on it raises TypeError when the client has just gone.
            self._line.transport.write(head + body)
        self._head, self.is_begun = b"", True
        self._can_write_now = more and self._is_chunked and self._has_body
        if not more:
            self.is_complete = True
            self._body.clear()
            self._news.set()
            self._on_end()
