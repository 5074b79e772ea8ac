"""A server on a real socket in a thread of its own, for clients that know nothing of tests."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from kamado.local.place import Listener
from kamado.serve.app import Server
from kamado.serve.config import ServeConfig
from kamado.serve.http.keys import KeyRing
from kamado.serve.models.contract import Library, Loader
from kamado.serve.ops.desk import Desk
from kamado.serve.ops.log_ring import LogRing
from kamado.serve.run import Web, address_of, bind, make_server

T = TypeVar("T")


def wait_until(is_so: Callable[[], bool]) -> None:
    """For what a server does after its answer: at most a minute."""
    for _ in range(6000):
        if is_so():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come about")


class Running:
    """A server that runs; `url` is where."""

    def __init__(self, server: Server, url: str, loop: asyncio.AbstractEventLoop) -> None:
        self.server = server
        self.url = url
        self.loop = loop

    def call(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Runs a coroutine on the server's loop and waits for it."""
        return asyncio.run_coroutine_threadsafe(work(), self.loop).result(30)


@contextmanager
def running(
    library: Library,
    loader: Loader,
    config: ServeConfig | None = None,
    keys: KeyRing | None = None,
    own: Listener | None = None,
    files: Mapping[str, Path] | None = None,
) -> Iterator[Running]:
    """Starts a server on a free port of loopback, and at `own`, the user's own socket; it is gone after the block."""
    server = make_server(config or ServeConfig(port=0), library, loader, keys=keys or KeyRing())
    listener = bind(config or ServeConfig(port=0))
    web = Web(server)
    ring = LogRing()
    if own is not None:
        logging.getLogger("kamado.serve").addHandler(ring)
        desk = Desk(server, address=address_of(listener), ring=ring, stop=web.stop, files=files)
        server.open_desk(desk.routes())
    sockets = [listener] if own is None else [listener, own.socket]
    found: dict[str, Any] = {}
    is_up = threading.Event()

    async def main() -> None:
        found["loop"] = asyncio.get_running_loop()
        task = asyncio.create_task(web.serve(sockets=sockets))
        while not web.started and not task.done():
            await asyncio.sleep(0.01)
        if web.started:
            found["port"] = listener.getsockname()[1]
        is_up.set()
        await task

    thread = threading.Thread(target=lambda: asyncio.run(main()), name="test-server", daemon=True)
    thread.start()
    assert is_up.wait(60)
    assert "port" in found, "the server did not start"
    try:
        yield Running(server, f"http://127.0.0.1:{found['port']}", found["loop"])
    finally:
        web.should_exit = web.force_exit = True
        thread.join(60)
        assert not thread.is_alive(), "the server did not stop"
        logging.getLogger("kamado.serve").removeHandler(ring)
        if own is not None:
            own.close()
