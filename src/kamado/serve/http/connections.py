"""Who stands on the line: bounds of connections before there is a request that the gate could judge.

A connection is silent (no whole request header yet), busy (its request is being answered), or idle (it waits for the
next one). Silent ones have `header_seconds`, idle ones `idle_seconds`. There are at most `max_connections`, of which
`max_silent` may be silent: a new one closes the oldest of them, so whoever says nothing never locks others out. When
all places are taken, the silent or idle one that has been so for longest goes; when all are busy, the new one is told
to come back.

Covered: silence, dripped headers, floods of connections, oversized headers, bodies in tiny chunks, bodies that nobody
reads. Not covered: an attacker with so many addresses and requests that all places are busy.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter as CountOf
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, ClassVar, Literal

from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle, h11  # type: ignore[attr-defined]

from ..metrics import Registry
from .replies import to_json

_log = logging.getLogger("kamado.serve")

State = Literal["silent", "busy", "idle"]

# One read. Small, since all of it is parsed in one go: 16 KiB of chunks of one byte take 40 ms, of headers 10 ms. Of a
# body whose length is known nothing is parsed: there 16 KiB would only be more turns, some 60 µs each.
_READ_BYTES = 16 << 10
_BODY_READ_BYTES = 256 << 10
_MAX_HEADERS = 128  # fields of a request: each takes far more memory than its bytes on the line
# A body in chunks of few bytes costs some 15 µs each, so 32 MiB of them would be minutes of work.
_FREE_CHUNKS = 4096
_MIN_MEAN_CHUNK_BYTES = 64
_LINGER_SECONDS = 10.0  # for the rest of a body that was answered before it was read
_RETRY_AFTER_SECONDS = 5
ACCEPT_BATCH = 16  # taken in one turn of the loop: fewer than silent ones may stand, so that none goes before it spoke


@dataclass(frozen=True, slots=True)
class ConnectionBounds:
    """Bounds of connections. Seconds; 0: no bound."""

    max_connections: int = 512
    max_silent: int = 128
    max_per_address: int | None = None
    header_seconds: float = 10.0
    idle_seconds: float = 60.0


class Connections:
    """All connections of one server. One event loop's own."""

    def __init__(self, bounds: ConnectionBounds, metrics: Registry) -> None:
        self.bounds = bounds
        self.body_buffer = memoryview(bytearray(_BODY_READ_BYTES))  # of whoever is reading at this moment
        self._states: dict[GuardedProtocol, State] = {}
        self._silent: dict[GuardedProtocol, float] = {}  # since when, oldest first
        self._idle: dict[GuardedProtocol, float] = {}
        self._by_address: CountOf[str] = CountOf()
        self._closed = metrics.counter(
            "kamado_connections_closed_total",
            "Connections that the server closed: header_time, header_size, idle, silent_limit, limit, address, chunks.",
            ("reason",),
        )
        self._tell = Damped(_log)
        metrics.gauge(
            "kamado_connections",
            "Connections by state: silent (no whole request header yet), busy, idle.",
            lambda: [((state,), float(self.count(state))) for state in ("silent", "busy", "idle")],
            ("state",),
        )

    def __len__(self) -> int:
        return len(self._states)

    def count(self, state: State) -> int:
        """How many there are of a state."""
        if state == "busy":
            return len(self._states) - len(self._silent) - len(self._idle)
        return len(self._silent if state == "silent" else self._idle)

    def enter(self, protocol: GuardedProtocol) -> str:
        """A new connection, silent at first; "" or why it cannot stay."""
        bounds = self.bounds
        if bounds.max_per_address and self._by_address[protocol.address] >= bounds.max_per_address:
            return self._refuse("address", "this address has as many connections as one may have")
        while len(self._states) >= bounds.max_connections:
            oldest = [next(iter(group.items())) for group in (self._silent, self._idle) if group]
            if not oldest:
                return self._refuse("limit", "all connections of this server are at work")
            self._evict(min(oldest, key=lambda entry: entry[1])[0], "limit")
        self._by_address[protocol.address] += 1
        self.move(protocol, "silent")
        while len(self._silent) > bounds.max_silent:
            self._evict(next(iter(self._silent)), "silent_limit")
        return ""

    def move(self, protocol: GuardedProtocol, state: State) -> None:
        """Its state from now on; the youngest there when it is another than before."""
        if self._states.get(protocol) == state:
            return
        self._silent.pop(protocol, None)
        self._idle.pop(protocol, None)
        self._states[protocol] = state
        if state != "busy":
            (self._silent if state == "silent" else self._idle)[protocol] = time.monotonic()

    def leave(self, protocol: GuardedProtocol) -> None:
        """It is gone. May be called again."""
        if self._states.pop(protocol, None) is None:
            return
        self._silent.pop(protocol, None)
        self._idle.pop(protocol, None)
        self._by_address[protocol.address] -= 1
        if not self._by_address[protocol.address]:
            del self._by_address[protocol.address]

    def note_closed(self, reason: str) -> None:
        """Counts one that was closed for `reason`, and says so in the log, at most every few seconds."""
        self._closed.add(1, reason)
        if reason != "idle":  # which is how connections usually end
            self._tell.warning("connections closed", reason)

    def _refuse(self, reason: str, text: str) -> str:
        self.note_closed(reason)
        return text

    def _evict(self, protocol: GuardedProtocol, reason: str) -> None:
        self.note_closed(reason)
        self.leave(protocol)
        protocol.transport.abort()


class Damped:
    """Log lines that a stranger can cause at will: one of a kind every few seconds, with how many it stands for."""

    def __init__(self, log: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock = clock
        self._last: dict[str, float] = {}
        self._held: CountOf[str] = CountOf()

    def warning(self, event: str, reason: str) -> None:
        """A line, unless there was one of this reason within five seconds."""
        now = self._clock()
        self._held[reason] += 1
        if now - self._last.get(reason, -DAMP_SECONDS) < DAMP_SECONDS:
            return
        self._last[reason] = now
        self._log.warning(event, extra={"reason": reason, "count": self._held.pop(reason)})


DAMP_SECONDS = 5.0


class _Connection(h11.Connection):
    """h11's connection with bounds that hold exactly: of the header when it is whole, and of chunks."""

    def __init__(self, max_header_bytes: int, on_request: Callable[[], None]) -> None:
        super().__init__(h11.SERVER, max_header_bytes)
        self._max_header_bytes = max_header_bytes
        self._on_request = on_request
        self._num_chunks = 0
        self._num_body_bytes = 0
        self.refusal = 400  # the status that a RemoteProtocolError is answered with
        self.reason = ""  # of note_closed, when it is a bound

    @property
    def num_waiting_bytes(self) -> int:
        """Received and not yet part of an event."""
        return len(self._receive_buffer)

    @property
    def num_body_bytes_to_come(self) -> int:
        """Of a body whose length is known, 0 otherwise."""
        return getattr(self._reader, "_remaining", 0)

    def next_event(self) -> Any:
        """See h11."""
        before = len(self._receive_buffer)
        try:
            event = super().next_event()
        except h11.RemoteProtocolError as error:
            if error.error_status_hint == 431:
                self.refusal, self.reason = 431, "header_size"
            raise
        if type(event) is h11.Request:
            num_bytes = before - len(self._receive_buffer)
            if num_bytes > self._max_header_bytes or len(event.headers) > _MAX_HEADERS:
                self.refusal, self.reason = 431, "header_size"
                self._process_error(self.their_role)
                raise h11.RemoteProtocolError("the header is too large", error_status_hint=431)
            names = [name for name, _ in event.headers if name in (b"content-length", b"transfer-encoding")]
            if len(set(names)) > 1:  # two lengths of one body: a proxy may believe the other one
                self._process_error(self.their_role)
                raise h11.RemoteProtocolError("content-length beside transfer-encoding")
            self._num_chunks = self._num_body_bytes = 0
            self._on_request()
        elif type(event) is h11.Data:
            self._num_chunks += 1
            self._num_body_bytes += len(event.data)
            if self._num_chunks > _FREE_CHUNKS and self._num_body_bytes < self._num_chunks * _MIN_MEAN_CHUNK_BYTES:
                self.reason = "chunks"
                self._process_error(self.their_role)
                raise h11.RemoteProtocolError("the body comes in too small chunks")
        return event


class GuardedProtocol(H11Protocol, asyncio.BufferedProtocol):
    """uvicorn's protocol over h11, within bounds. Subclasses are made by `protocol_class`."""

    book: ClassVar[Connections]

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        max_header_bytes = self.config.h11_max_incomplete_event_size or _READ_BYTES
        self.conn: _Connection = _Connection(max_header_bytes, self._header_is_whole)
        self.address = ""
        self._buffer = self._reads_into = memoryview(bytearray(_READ_BYTES))
        self._timer: asyncio.TimerHandle | None = None  # of a header, or of the rest of a body that nobody reads
        self._is_lingering = False

    # --- asyncio's side -----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio."""
        super().connection_made(transport)
        self.address = self.client[0] if self.client else ""
        problem = self.book.enter(self)
        if problem:
            self._refuse(503, problem, retry_after=True)
        else:
            self._await_header()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        self.book.leave(self)
        self._stop_timer()
        super().connection_lost(exc)

    def get_buffer(self, sizehint: int) -> memoryview:
        """See asyncio.BufferedProtocol."""
        is_large = self.conn.num_body_bytes_to_come > _READ_BYTES
        self._reads_into = self.book.body_buffer if is_large else self._buffer
        return self._reads_into

    def buffer_updated(self, nbytes: int) -> None:
        """See asyncio.BufferedProtocol."""
        self.data_received(bytes(self._reads_into[:nbytes]))

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        if self.transport.is_closing():
            return
        if not self._is_lingering and self.conn.their_state is h11.IDLE:
            self.book.move(self, "silent")
            if self._timer is None:
                self._await_header()
        super().data_received(data)
        if self._is_lingering and self.conn.their_state is h11.IDLE:  # the rest has come: the next request may
            self._rest()

    # --- uvicorn's side -----------------------------------------------------------------------------------------------

    def send_400_response(self, msg: str) -> None:
        """What cannot be read is answered if it still can be, and the connection ends."""
        if self.conn.reason:
            self.book.note_closed(self.conn.reason)
        if self._is_answering:
            self.transport.abort()  # half an answer is on the line
        elif self.conn.refusal == 431:
            self._refuse(431, "the request's header is larger than this server takes")
        else:
            self._refuse(400, "this is no HTTP request that can be read")

    def on_response_complete(self) -> None:
        """Called by the cycle."""
        super().on_response_complete()  # may begin the next request, if it came already
        if self.transport.is_closing() or not self.cycle.response_complete:
            return
        if self.conn.their_state is h11.IDLE:
            self._rest()
        elif self.conn.their_state is h11.SEND_BODY:
            self._is_lingering = True
            self.book.move(self, "idle")
            self._start_timer(_LINGER_SECONDS, "idle")

    def timeout_keep_alive_handler(self) -> None:
        """Called by uvicorn when an idle connection's time is over."""
        self.book.note_closed("idle")
        super().timeout_keep_alive_handler()

    @property
    def _is_answering(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and cycle.response_started and not cycle.response_complete

    # --- states -------------------------------------------------------------------------------------------------------

    def _header_is_whole(self) -> None:
        self._is_lingering = False
        self._stop_timer()
        self.book.move(self, "busy")

    def _rest(self) -> None:
        """Between requests: idle, or silent when a part of the next header is here."""
        self._is_lingering = False
        self._stop_timer()
        self._unset_keepalive_if_required()
        if self.conn.num_waiting_bytes:
            self.book.move(self, "silent")
            self._await_header()
            return
        self.book.move(self, "idle")
        seconds = self.book.bounds.idle_seconds
        if seconds:
            self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def _await_header(self) -> None:
        self._start_timer(self.book.bounds.header_seconds, "header_time")

    def _start_timer(self, seconds: float, reason: str) -> None:
        self._stop_timer()
        if seconds:
            self._timer = self.loop.call_later(seconds, self._time_is_over, reason)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _time_is_over(self, reason: str) -> None:
        self._timer = None
        if self.transport.is_closing():
            return
        self.book.note_closed(reason)
        if reason == "header_time" and self.conn.num_waiting_bytes:
            self._refuse(408, "the request's header was not complete in time")
        else:
            self.transport.abort()

    def _refuse(self, status: int, message: str, *, retry_after: bool = False) -> None:
        """An answer without a request; no protocol family is known yet, so it has OpenAI's shape."""
        kind = "server_error" if status >= 500 else "invalid_request_error"
        content = to_json({"error": {"message": message, "type": kind, "param": None, "code": None}})
        lines = [
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
            "connection: close",
            "content-type: application/json",
            f"content-length: {len(content)}",
            *([f"retry-after: {_RETRY_AFTER_SECONDS}"] if retry_after else []),
        ]
        self.transport.write("\r\n".join(lines).encode() + b"\r\n\r\n" + content)
        self.transport.close()


def protocol_class(book: Connections) -> type[GuardedProtocol]:
    """The protocol of a server whose connections are in `book`, for uvicorn's `http`."""
    return type("BoundGuardedProtocol", (GuardedProtocol,), {"book": book})


# Descriptors beside connections: model files with their shards, downloads, workers' pipes, logs.
_OTHER_FILES = 128
_LEAST_CONNECTIONS = 16


def raise_file_limit() -> int | None:
    """Raises this process's limit of open files as far as it may; what it is then. None: there is none to speak of."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = 1 << 20
    wanted = most if hard == resource.RLIM_INFINITY else min(hard, most)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):  # macOS has a lower limit of its own
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


def affordable_connections(wanted: int, file_limit: int | None) -> int:
    """How many of `wanted` connections the limit of open files affords, 16 at the least."""
    return wanted if file_limit is None else max(_LEAST_CONNECTIONS, min(wanted, file_limit - _OTHER_FILES))


def loop_exception_handler(log: logging.Logger) -> Callable[[asyncio.AbstractEventLoop, dict[str, Any]], None]:
    """For `set_exception_handler`: no descriptors left is one line every few seconds, not hundreds with tracebacks.

    asyncio itself tries to accept again after a second.
    """
    tell = Damped(log)

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if context.get("message") == "socket.accept() out of system resource":
            tell.warning("no connection can be taken", f"{getattr(error, 'strerror', None) or error}")
        else:
            log.error(str(context.get("message")), exc_info=error)

    return handle
