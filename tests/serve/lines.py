"""One HTTP/1.1 connection without sockets: bytes in, bytes out, and a small application that tells what it got."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from types import SimpleNamespace
from typing import Any

import h11
from uvicorn.server import ServerState

from kamado.serve.http.connections import ConnectionBounds, Connections
from kamado.serve.http.http1 import protocol_class
from kamado.serve.metrics import Registry

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
Seen = tuple[str, str, bytes]  # method, path, body


class FakeTransport(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__(extra={"peername": ("127.0.0.1", 50_000), "sockname": ("127.0.0.1", 8417)})
        self.written: list[bytes] = []
        self.is_paused = self.is_closed = self.is_aborted = False
        self.num_unsent = 0  # what a client has not read

    def write(self, data: Any) -> None:
        if not self.is_closed:
            self.written.append(bytes(data))

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_closed = self.is_aborted = True

    def is_closing(self) -> bool:
        return self.is_closed

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        """The client has been told that this was all, and goes unless it has something to read."""
        self.is_closed = self.is_closed or not self.num_unsent

    def get_write_buffer_size(self) -> int:
        return self.num_unsent


class Talk:
    """A client's side of one connection. Use it in a `with` statement."""

    def __init__(self, app: Any = None, **bounds: Any) -> None:
        self.loop = asyncio.new_event_loop()
        self.faults: list[Any] = []  # what nobody caught
        self.loop.set_exception_handler(lambda _, context: self.faults.append(context))
        self.seen: list[Seen] = []  # requests whose body was whole
        self.notes: list[str] = []
        self.transport = FakeTransport()
        self.state = ServerState()
        self.book = Connections(ConnectionBounds(**bounds), Registry())
        config: Any = SimpleNamespace(loaded_app=app or self.echo)
        self.connection = protocol_class(self.book)(config, self.state, {}, self.loop)
        self.connection.connection_made(self.transport)
        self._unread = bytearray()

    def __enter__(self) -> Talk:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.turn()
        self.loop.close()

    @property
    def heard(self) -> bytes:
        """All that was written."""
        return b"".join(self.transport.written)

    def turn(self) -> None:
        """Lets everything run that can."""
        self.loop.run_until_complete(_turns())

    def say(self, data: bytes, piece: int = 1 << 20) -> None:
        """Sends `data`, at most `piece` bytes a read, as far as it is read."""
        self._unread += data
        while self._unread and not (self.transport.is_paused or self.transport.is_closed):
            buffer = self.connection.get_buffer(-1)
            size = min(piece, len(buffer), len(self._unread))
            buffer[:size] = self._unread[:size]
            del self._unread[:size]
            self.connection.buffer_updated(size)
            self.turn()

    def leave(self) -> None:
        """The connection is gone."""
        self.transport.is_closed = True
        self.connection.connection_lost(None)
        self.turn()

    async def echo(self, scope: Any, receive: Receive, send: Send) -> None:
        """Answers with method, path and body: whole, or for /stream a line at a time."""
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.notes.append("gone")
                return
            body += message["body"]
            if not message["more_body"]:
                break
        self.seen.append((scope["method"], scope["path"], body))
        lines = [f"{scope['method']} {scope['path']}\n".encode(), body]
        if scope["path"] != "/stream":
            await answer(send, b"".join(lines))
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for line in lines:
            await send({"type": "http.response.body", "body": line, "more_body": True})
        await send({"type": "http.response.body"})


async def _turns() -> None:
    for _ in range(8):
        await asyncio.sleep(0)


async def answer(send: Send, content: bytes, status: int = 200, *headers: tuple[bytes, bytes]) -> None:
    """A whole answer."""
    length = (b"content-length", str(len(content)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [length, *headers]})
    await send({"type": "http.response.body", "body": content})


def answers(heard: bytes, methods: Sequence[str], *, has_ended: bool = False) -> list[tuple[int, bytes]]:
    """Status and body of each answer as h11's client reads them, informational ones too. `methods` are the requests';
    `has_ended`: the connection did.

    Raises h11.RemoteProtocolError for what is no answer, AssertionError for one that is incomplete.
    """
    found: list[tuple[int, bytes]] = []
    left = list(methods)
    while heard:
        client = h11.Connection(h11.CLIENT)
        method = left.pop(0) if left else "GET"
        if method == "CONNECT":  # what follows its answer would be no HTTP to h11
            method = "GET"
        client.send(h11.Request(method=method, target="/", headers=[("host", "x")]))
        client.send(h11.EndOfMessage())
        client.receive_data(heard)
        if has_ended:
            client.receive_data(b"")
        status, body = 0, b""
        while not isinstance(event := client.next_event(), h11.EndOfMessage):
            if isinstance(event, h11.InformationalResponse):
                found.append((event.status_code, b""))
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif event is h11.NEED_DATA and not status and not client.trailing_data[0]:
                return found  # a body was asked for and has not come
            else:
                assert isinstance(event, h11.Data), "an answer is incomplete"
                body += event.data
        found.append((status, body))
        heard = client.trailing_data[0]
    return found
