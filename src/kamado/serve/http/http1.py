"""HTTP/1.1 on one connection, within bounds: the protocol class that uvicorn is given (its option `http`).

Requests are read by h11 (its public API), a parser a request; answers are framed in asgi.py. A header is bounded in
time, bytes and fields, and is taken only if nobody could read it otherwise (a proxy before this server, say): no bare
line feeds, no folded lines, no two lengths of one body. What h11 refuses is refused. No upgrade is ever taken up: the
request is answered as if it had not asked. A client that closes its sending half is gone.

Read and not yet parsed is at most a header and one read; read and not yet taken by the application at most 64 KiB and
one read; an answer waits while its client reads slowly. See connections.py for what a connection may be
doing, and how many of them may.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import unquote

import h11

from ...local.place import is_own_user
from .asgi import LOCAL_PEER, AsgiRequest, Line
from .connections import BODY_READ_BYTES, ConnectionBounds, Connections
from .replies import to_json

if TYPE_CHECKING:
    import uvicorn
    from uvicorn.server import ServerState

# One read. Small, since all of it is parsed in one go: 16 KiB of chunks of one byte take 40 ms, of headers 10 ms. Of a
# body whose length is known nothing is parsed: there it would only be more turns, some 60 µs each.
_READ_BYTES = 16 << 10
_MAX_BODY_WAITING = 64 << 10  # bytes that the application has not taken: no more is read then
_MAX_HEADERS = 128  # fields of a request: each takes far more memory than its bytes on the line
# A body in chunks of few bytes costs some 15 µs each, so 32 MiB of them would be minutes of work.
_FREE_CHUNKS = 4096
_MIN_MEAN_CHUNK_BYTES = 64
_LINGER_SECONDS = 10.0  # for the rest of a body that was answered before it was read
# What a client sends after an answer that ends the connection is taken and dropped, within these bounds: of what nobody
# took the client's system is told by a reset, at which it may throw away the answer.
_MOST_DROPPED_BYTES = 4 << 20
_DROP_SECONDS = 1.0
_RETRY_AFTER_SECONDS = 5
_UNLIKE_LINES = re.compile(rb"(?<!\r)\n|\n[ \t]")  # h11 would take a bare line feed, and a line that is folded


class Http1Connection(asyncio.BufferedProtocol, asyncio.Protocol):
    """One connection. Subclasses are made by `protocol_class`."""

    book: ClassVar[Connections]
    transport: asyncio.Transport

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """As uvicorn calls it."""
        self._app = config.loaded_app
        self._server_state = server_state
        self._app_state = app_state
        self._loop = _loop or asyncio.get_running_loop()
        self.address = ""
        self._timer: asyncio.TimerHandle | None = None  # of whatever this connection waits for
        self._parser = self._new_parser()
        self._request: AsgiRequest | None = None  # that is being answered, or whose body is still coming
        self._num_to_come = 0  # bytes of a body whose length is known
        self._num_chunks = self._num_body_bytes = 0
        self._num_to_drop = 0  # bytes that are still taken after the last answer; 0: it has not been given

    # --- asyncio's side -----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._line = Line(transport)
        self._server_state.connections.add(self)  # type: ignore[arg-type] # it knows uvicorn's own classes
        self._client, self._server = (_address(transport.get_extra_info(key)) for key in ("peername", "sockname"))
        self.address = self._client[0] if self._client else ""
        link = transport.get_extra_info("socket")
        self._is_local = link is not None and link.family == getattr(socket, "AF_UNIX", None)
        if self._is_local and not is_own_user(link):
            transport.abort()
            return
        problem = self.book.enter(self)
        if problem:  # it is no member, so nothing would bound how many of its kind there are
            self._refuse(503, problem, is_member=False)
        else:
            self._await_header()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        self._server_state.connections.discard(self)
        self.book.leave(self)
        self._stop_timer()
        if self._request is not None:
            self._request.disconnect()
        self._line.resume()

    def pause_writing(self) -> None:
        """See asyncio."""
        self._line.pause()

    def resume_writing(self) -> None:
        """See asyncio."""
        self._line.resume()

    def get_buffer(self, sizehint: int) -> memoryview:
        """See asyncio.BufferedProtocol. A large read has nothing but the body."""
        num_plain = max(self._num_to_come, self._num_to_drop)
        return self.book.read_buffer[: max(_READ_BYTES, min(num_plain, BODY_READ_BYTES))]

    def buffer_updated(self, nbytes: int) -> None:
        """See asyncio.BufferedProtocol."""
        self.data_received(bytes(self.book.read_buffer[:nbytes]))

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        if self.transport.is_closing():
            return
        if self._num_to_drop:
            self._num_to_drop = max(0, self._num_to_drop - len(data))
            if not self._num_to_drop:
                self._close()
            return
        if self._request is None and self.book.move(self, "silent"):
            self._await_header()
        self._parser.receive_data(data)
        if self._has_whole_request:  # a further one, before this one is answered
            self.transport.pause_reading()
        else:
            self._read_events()

    def shutdown(self) -> None:
        """Called by uvicorn when the server goes down: what is being answered may end."""
        if self._request is None or self._request.is_complete:
            self._close()
        else:
            self._request.closes = True

    # --- reading ------------------------------------------------------------------------------------------------------

    @property
    def _has_whole_request(self) -> bool:
        return self._parser.their_state not in (h11.IDLE, h11.SEND_BODY)

    def _new_parser(self) -> h11.Connection:
        """Of one request: it is told nothing of the answer."""
        return h11.Connection(h11.SERVER, self.book.bounds.max_header_bytes)

    def _read_events(self) -> None:
        """Takes what has been read, to the end of a request at the most."""
        try:
            while (event := self._next_event()) is not h11.NEED_DATA:
                if isinstance(event, h11.Request):
                    self._begin(event)
                    continue
                assert self._request is not None
                if isinstance(event, h11.Data):
                    if self._request.add_body(event.data) > _MAX_BODY_WAITING:
                        self.transport.pause_reading()
                elif self._request.is_complete:
                    self._next_request()
                    return
                else:
                    self._request.end_body()
                    if self._parser.trailing_data[0]:
                        self.transport.pause_reading()
                    return
        except h11.RemoteProtocolError as error:
            self._refuse_unreadable(error)

    def _next_event(self) -> Any:
        """h11's next event. Raises RemoteProtocolError for what is past a bound, too."""
        parser = self._parser
        waiting = parser.trailing_data[0] if parser.their_state is h11.IDLE else b""
        event = parser.next_event()
        if isinstance(event, h11.Request):
            _check_header(event, waiting[: len(waiting) - len(parser.trailing_data[0])], self.book.bounds)
        elif isinstance(event, h11.Data):
            self._num_to_come = max(0, self._num_to_come - len(event.data))
            self._num_chunks += 1
            self._num_body_bytes += len(event.data)
            if self._num_chunks > _FREE_CHUNKS and self._num_body_bytes < self._num_chunks * _MIN_MEAN_CHUNK_BYTES:
                raise _CrumbsError("the body comes in too small chunks")
        return event

    def _begin(self, event: h11.Request) -> None:
        """Calls the application for a request whose header is whole."""
        self._stop_timer()
        self.book.move(self, "busy")
        headers = list(event.headers)
        self._num_to_come = int(dict(headers).get(b"content-length", b"0"))
        self._num_chunks = self._num_body_bytes = 0
        raw_path, _, query = event.target.partition(b"?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": event.http_version.decode("ascii"),
            "server": self._server,
            "client": self._client,
            "scheme": "https" if self.transport.get_extra_info("sslcontext") else "http",
            "method": event.method.decode("ascii"),
            "root_path": "",
            "path": unquote(raw_path.decode("ascii")),
            "raw_path": raw_path,
            "query_string": query,
            "headers": headers,
            "state": self._app_state.copy(),
            LOCAL_PEER: self._is_local,
        }
        self._request = AsgiRequest(
            scope,
            self._line,
            default_headers=self._server_state.default_headers,
            expects_continue=self._parser.they_are_waiting_for_100_continue,
            on_end=self._answer_ended,
        )
        task = self._loop.create_task(self._request.run(self._app))
        self._server_state.tasks.add(task)
        task.add_done_callback(self._server_state.tasks.discard)

    # --- between requests ---------------------------------------------------------------------------------------------

    def _answer_ended(self) -> None:
        """The answer is complete, or will never be."""
        request = self._request
        assert request is not None
        self._server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if not request.is_complete and not request.is_begun:
            self._refuse(500, "the request could not be answered")
        elif not request.is_complete:
            self._close()
        elif request.closes:
            self._end()
        elif self._has_whole_request:
            self._next_request()
        else:  # the rest of its body comes first
            self.book.move(self, "idle")
            self._await(_LINGER_SECONDS, self._idle_for_too_long)
            self.transport.resume_reading()

    def _next_request(self) -> None:
        """Idle from now on, or silent when a part of the next header is here."""
        waiting = self._parser.trailing_data[0]
        self._parser = self._new_parser()
        self._request = None
        self._num_to_come = 0
        self.transport.resume_reading()
        if waiting:
            self.data_received(waiting)
            return
        self.book.move(self, "idle")
        self._await(self.book.bounds.idle_seconds, self._idle_for_too_long)

    # --- time ---------------------------------------------------------------------------------------------------------

    def _await(self, seconds: float, is_over: Callable[..., None], *arguments: Any) -> None:
        """Calls `is_over` when the time is over, if nothing else is awaited before. 0: never."""
        self._stop_timer()
        if seconds:
            self._timer = self._loop.call_later(seconds, is_over, *arguments)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _await_header(self) -> None:
        self._await(self.book.bounds.header_seconds, self._header_is_late)

    def _header_is_late(self) -> None:
        self.book.note_closed("header_time")
        if self._parser.trailing_data[0]:
            self._refuse(408, "the request's header was not complete in time")
        else:
            self.transport.abort()

    def _idle_for_too_long(self) -> None:
        self.book.note_closed("idle")
        if self._request is None:
            self._close()
        else:  # the rest of its body did not come
            self.transport.abort()

    def _await_reader(self, num_unread: int) -> None:
        """Of a connection that is closing: its last words wait as long as it takes some of them now and then."""
        if self.transport.get_write_buffer_size() < num_unread:
            self._await(self.book.bounds.idle_seconds, self._await_reader, self.transport.get_write_buffer_size())
        else:
            self.transport.abort()

    # --- the end ------------------------------------------------------------------------------------------------------

    def _close(self) -> None:
        """Ends the connection when all that was written has been sent."""
        self._stop_timer()
        self.transport.close()
        num_unread = self.transport.get_write_buffer_size()
        if num_unread:
            self.book.move(self, "idle")  # so it is not kept when its place is wanted
            self._await_reader(num_unread + 1)

    def _end(self) -> None:
        """Ends the connection after its last answer, once its client has read that or the bounds of what is dropped are
        reached."""
        if self._parser.their_state in (h11.DONE, h11.MUST_CLOSE):
            self._close()  # nothing is on its way
            return
        self.book.move(self, "idle")  # so it is not kept when its place is wanted
        self._num_to_drop = _MOST_DROPPED_BYTES
        self._await(_DROP_SECONDS, self._close)
        if self.transport.can_write_eof():
            self.transport.write_eof()  # the client need not wait to see that this was all
        self.transport.resume_reading()

    def _refuse_unreadable(self, error: h11.RemoteProtocolError) -> None:
        """Answers what cannot be read if that still can be answered."""
        reason = "header_size" if error.error_status_hint == 431 else "malformed"
        self.book.note_closed("chunks" if isinstance(error, _CrumbsError) else reason)
        if self._request is not None and self._request.is_complete:  # of whose body this was the rest
            self._end()
        elif self._request is not None and self._request.is_begun:
            self.transport.abort()  # half an answer is on the line
        elif error.error_status_hint == 431:
            self._refuse(431, "the request's header is larger than this server takes")
        else:
            self._refuse(400, "this is no HTTP request that can be read")

    def _refuse(self, status: int, message: str, *, is_member: bool = True) -> None:
        """The last answer, without an application; no protocol family is known, so it has OpenAI's shape."""
        if self._request is not None:
            self._request.disconnect()
        kind = "server_error" if status >= 500 else "invalid_request_error"
        content = to_json({"error": {"message": message, "type": kind, "param": None, "code": None}})
        lines = [
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
            "connection: close",
            "content-type: application/json",
            f"content-length: {len(content)}",
            *([f"retry-after: {_RETRY_AFTER_SECONDS}"] if status == 503 else []),
        ]
        self.transport.write("\r\n".join(lines).encode() + b"\r\n\r\n" + content)
        if is_member:
            self._end()
        else:
            self._close()


class _CrumbsError(h11.RemoteProtocolError):
    """A body in chunks that are too small."""


def _check_header(event: h11.Request, header: bytes, bounds: ConnectionBounds) -> None:
    """Raises RemoteProtocolError for a header that is too large, or that another reader may take for another one."""
    if len(header) > bounds.max_header_bytes or len(event.headers) > _MAX_HEADERS:
        raise h11.RemoteProtocolError("the header is too large", error_status_hint=431)
    if not event.http_version.startswith(b"1."):
        raise h11.RemoteProtocolError("another version of HTTP")
    if _UNLIKE_LINES.search(header):
        raise h11.RemoteProtocolError("a line of the header is folded or does not end as it must")
    if len({name for name, _ in event.headers} & {b"content-length", b"transfer-encoding"}) > 1:
        raise h11.RemoteProtocolError("content-length beside transfer-encoding")


def _address(name: Any) -> tuple[str, int] | None:
    """Host and port of a socket's name; None: it has no such name."""
    return (name[0], name[1]) if isinstance(name, tuple) else None


def protocol_class(book: Connections) -> type[Http1Connection]:
    """The protocol of a server whose connections are in `book`, for uvicorn's `http`."""
    return type("BoundHttp1Connection", (Http1Connection,), {"book": book})
