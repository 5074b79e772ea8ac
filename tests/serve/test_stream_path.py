"""The way of one piece from the engine's thread to the socket: none is lost, delayed or out of order, whoever reads."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kamado.errors import ModelNotFoundError
from kamado.library.store import Store
from kamado.serve.config import ServeConfig
from kamado.serve.http.asgi import AsgiRequest
from kamado.serve.http.replies import SseTemplate, sse
from kamado.serve.models import bridge, library
from kamado.serve.models.contract import Recipe, TextDelta
from kamado.serve.models.library import StoreLibrary

from .fake import FakeWorld, Wait, text
from .running import Running, running

NUM_SOURCES, NUM_EVENTS = 8, 300


class ThreadSource:
    """Numbers that a thread of its own makes."""

    def __init__(self, name: int) -> None:
        self._name = name
        self._events: deque[tuple[int, int]] = deque()
        self._listener: Callable[[], None] | None = None
        self._num_polled = 0
        self.is_closed = False
        self._thread = threading.Thread(target=self._make)

    def _make(self) -> None:
        for i in range(NUM_EVENTS):
            self._events.append((self._name, i))
            if self._listener is not None:
                self._listener()

    def poll(self) -> tuple[int, int] | None:
        if self._num_polled == NUM_EVENTS:
            raise StopIteration
        if not self._events:
            return None
        self._num_polled += 1
        return self._events.popleft()

    def on_news(self, listener: Callable[[], None] | None) -> None:
        self._listener = listener
        if listener is not None:
            self._thread.start()

    def close(self) -> None:
        self.is_closed = True
        self._thread.join(30)


@pytest.mark.parametrize("platform", ["linux", "other"])
def test_every_event_of_every_thread_wakes_its_reader(platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if platform == "other":
        monkeypatch.setattr(bridge.sys, "platform", platform)

    async def read() -> list[tuple[int, int]]:
        return [event async for event in bridge.merge(sources, lambda: None)]

    sources = [ThreadSource(name) for name in range(NUM_SOURCES)]
    found = asyncio.run(asyncio.wait_for(read(), 30))
    for name in range(NUM_SOURCES):
        assert [i for source, i in found if source == name] == list(range(NUM_EVENTS))
    assert all(source.is_closed for source in sources)


def test_two_readers_of_one_loop_wake_each_by_his_own_news() -> None:
    async def work() -> None:
        first, second = bridge.Waker(), bridge.Waker()
        waits = [asyncio.create_task(waker.wait(30)) for waker in (first, second)]
        await asyncio.sleep(0)
        await asyncio.to_thread(second)
        assert await asyncio.wait_for(waits[1], 30)
        assert not waits[0].done()
        await asyncio.to_thread(first)
        assert await asyncio.wait_for(waits[0], 30)
        first.clear()
        assert not await first.wait(0.001)  # nothing came

    asyncio.run(work())


@pytest.mark.parametrize("words", ["plain", 'quote " and \\ and \n', "\u2028 \x00 \U0001f600", ""])
def test_a_template_gives_what_encoding_anew_would(words: str) -> None:
    def make(words: str) -> Any:
        return {"id": 7, "delta": {"reasoning": words, "reasoning_content": words, "index": 0}}

    for event in (None, "delta"):
        assert SseTemplate(make, event=event).fill(words) == sse(make(words), event=event)


# --- over a socket ----------------------------------------------------------------------------------------------------

NUM_LARGE, LARGE = 300, "x" * 40_000  # more than the kernel holds for a client that does not read


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    world = FakeWorld(
        {
            "short": [*[TextDelta(f"{i} ") for i in range(50)], *text("end")],
            "late": [TextDelta("now"), Wait(0.2), *text(" later")],
            "large": [*[TextDelta(LARGE) for _ in range(NUM_LARGE)], *text("end")],
        }
    )
    with running(world.library, world.loader, ServeConfig(port=0)) as found:
        yield found


def ask(server: Running, words: str, version: str = "1.1") -> socket.socket:
    """A connection on which a streamed answer comes."""
    body = {"model": "fake", "messages": [{"role": "user", "content": words}], "stream": True}
    content = json.dumps(body).encode()
    host, port = server.url.removeprefix("http://").split(":")
    line = socket.socket()
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    line.settimeout(30)
    line.connect((host, int(port)))
    head = f"POST /v1/chat/completions HTTP/{version}\r\nhost: localhost\r\nconnection: close\r\n"
    line.sendall(f"{head}content-length: {len(content)}\r\n\r\n".encode() + content)
    return line


def rest(line: socket.socket) -> tuple[bytes, bytes]:
    """Head and body as they came."""
    parts = []
    while data := line.recv(1 << 20):
        parts.append(data)
    head, _, body = b"".join(parts).partition(b"\r\n\r\n")
    return head, body


def unchunked(body: bytes) -> bytes:
    parts, place = [], 0
    while True:
        end = body.index(b"\r\n", place)
        size = int(body[place:end], 16)
        parts.append(body[end + 2 : end + 2 + size])
        assert body[end + 2 + size : end + 4 + size] == b"\r\n"
        place = end + 4 + size
        if size == 0:
            assert place == len(body)
            return b"".join(parts)


def said(events: bytes) -> str:
    found = [event.removeprefix(b"data: ") for event in events.split(b"\n\n") if event]
    assert found[-1] == b"[DONE]"
    return "".join(c["delta"].get("content") or "" for e in found[:-1] for c in json.loads(e)["choices"])


def test_pieces_take_the_short_way_and_are_framed_right(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    write_now = AsgiRequest.write_now

    def count(self: AsgiRequest, chunk: bytes) -> bool:
        taken.append(write_now(self, chunk))
        return taken[-1]

    monkeypatch.setattr(AsgiRequest, "write_now", count)
    with ask(server, "short") as line:
        head, body = rest(line)
    assert b"transfer-encoding: chunked" in head.lower()
    assert said(unchunked(body)) == "".join(f"{i} " for i in range(50)) + "end"
    assert len(taken) > 50
    assert taken.index(True) == 1  # the first goes with the header
    assert all(taken[1:])


def test_a_piece_is_sent_while_the_next_is_made(server: Running) -> None:
    with ask(server, "late") as line:
        seen = b""
        while b'"now"' not in seen:
            seen += line.recv(1 << 16)
        assert b"later" not in seen
        rest(line)


def test_an_old_client_gets_no_chunks(server: Running) -> None:
    with ask(server, "short", version="1.0") as line:
        head, body = rest(line)
    assert b"chunked" not in head.lower()
    assert said(body).endswith("49 end")


def test_a_slow_reader_holds_back_his_own_answer_only(server: Running) -> None:
    with ask(server, "large") as slow:
        for _ in range(3):
            with ask(server, "short") as line:
                assert said(unchunked(rest(line)[1])).endswith("end")
        assert server.server.service.num_active == 1, "it was to wait for its reader"
        assert said(unchunked(rest(slow)[1])) == LARGE * NUM_LARGE + "end"


# --- which model it is ------------------------------------------------------------------------------------------------


def test_a_model_is_looked_for_once_while_nothing_changes(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "_SETTLED_NS", -1)
    models, looked = shelf(tmp_path, tiny_checkpoint)

    async def work() -> None:
        for _ in range(3):
            assert (await models.get("tiny")).name == "tiny"
        assert len(looked) == 1
        await models.create("mine", Recipe(base="tiny", system="Be kind."))
        assert (await models.get("mine")).system == "Be kind."
        assert (await models.get("mine")).parent == "tiny"
        assert len(looked) == 2
        await models.delete("mine")
        with pytest.raises(ModelNotFoundError):
            await models.get("mine")

    asyncio.run(work())


def test_what_changed_this_moment_is_looked_at_again(tmp_path: Path, tiny_checkpoint: Path) -> None:
    models, looked = shelf(tmp_path, tiny_checkpoint)

    async def work() -> None:
        for system in ("One.", "Two.", "Three."):  # the same name, perhaps within one tick of the file system's clock
            await models.create("mine", Recipe(base="tiny", system=system))
            assert (await models.get("mine")).system == system
        assert len(looked) == 3

    asyncio.run(work())


def shelf(root: Path, file: Path) -> tuple[StoreLibrary, list[str]]:
    """A library with one file, and the names that it has looked for."""
    models = StoreLibrary(Store(root), {"tiny": file})
    looked: list[str] = []
    locate = models.locate

    def count(name: str) -> library.Located:
        looked.append(name)
        return locate(name)

    models.locate = count  # type: ignore[method-assign]
    return models, looked
