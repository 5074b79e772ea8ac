"""From settings to a server that listens: put together, bind, load what was asked for, go down with grace."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import uvicorn

from ..errors import KamadoError, ServerError, UsageError
from ..local.place import Listener, listen
from .app import Server
from .config import ServeConfig, config_dir
from .families import all_routes, family_of, own_routes
from .http.connections import (
    ACCEPT_BATCH,
    affordable_connections,
    loop_exception_handler,
    raise_file_limit,
)
from .http.http1 import protocol_class
from .http.keys import KeyRing, new_key
from .metrics import Registry
from .models.contract import Library, Loader
from .models.served import ServedLibrary
from .models.service import Limits, Service
from .ops.desk import Desk
from .ops.log_ring import LogRing
from .ops.logs import JsonFormatter, TextFormatter
from .ops.reload import Load, Reloader, warn_of_exposed_keys
from .share import models_bytes, server_share

_log = logging.getLogger("kamado.serve")

# The scheduler's thread waits no longer for the interpreter when a step has ended: 5 ms, the default, are a whole step
# of a small model, and every conversation would wait with it.
_SWITCH_SECONDS = 0.0005

# Between the last words of cut streams and the end of the process.
_LAST_WORDS_SECONDS = 2.0
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_BACKLOG = 512  # connections that wait to be taken


def make_server(config: ServeConfig, library: Library, loader: Loader, *, keys: KeyRing) -> Server:
    """The server of these settings, with the models that they name, or all.

    Raises UsageError when it could be reached from elsewhere without a key.
    """
    UsageError.when(
        not config.is_loopback and not len(keys),
        f"an API key is needed to serve on {config.host}: everybody in reach could use the server",
    )
    if config.models and not config.serve_all:
        library = ServedLibrary(library, [config.aliases.get(name, name) for name in config.models])
    metrics = Registry()
    service = Service(
        library,
        loader,
        limits=Limits(config.max_requests, config.max_requests_per_key, config.deadline),
        memory_bytes=models_bytes(config),
        keep_alive=config.keep_alive,
        load_wait=config.load_wait,
        aliases=config.aliases,
        metrics=metrics,
    )
    return Server(
        config, service, metrics=metrics, keys=keys, routes=[*all_routes(), *own_routes()], family_of=family_of
    )


def key_file() -> Path:
    """Where hashes of keys that were made are kept."""
    return config_dir() / "keys.json"


def make_keys(config: ServeConfig, *, announce: Callable[[str], None] | None) -> KeyRing:
    """The keys of the settings and of the key file; for an address that others reach one is made if there is none.

    A key that was made is passed to `announce`, once: only its hash is kept. None: no key is made.
    """
    ring = KeyRing()
    for entry in config.api_keys:
        UsageError.when(
            (entry.key is None) == (entry.sha256 is None), f"the API key {entry.name!r} needs either key or sha256"
        )
        if entry.key is not None:
            ring.add(entry.key, name=entry.name, scopes=entry.scopes)
        else:
            ring.add_hash(str(entry.sha256), name=entry.name, scopes=entry.scopes)
    if config.is_loopback or len(ring):
        return ring
    path = key_file()
    ring.load(path)
    if not len(ring) and announce is not None:
        key = new_key()
        ring.add(key, name="first")
        ring.save(path)
        announce(key)
    return ring


def bind(config: ServeConfig) -> socket.socket:
    """A listening socket. Raises UsageError when the address cannot be had."""
    host = config.host.strip("[]")
    try:
        found = socket.getaddrinfo(host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise UsageError(f"{config.host!r} is no address of this machine: {error}") from None
    if config.is_loopback:  # a name such as localhost must not lead elsewhere
        found = [entry for entry in found if str(entry[4][0]).startswith(("127.", "::1"))]
    UsageError.when(not found, f"{config.host!r} is no address of this machine")
    family, kind, protocol, _, address = sorted(found, key=lambda entry: entry[0] != socket.AF_INET)[0]
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(_BACKLOG)  # once the address is announced a client may connect at once
    except OSError as error:
        listener.close()
        raise UsageError(f"cannot listen on {config.host}:{config.port}: {error.strerror or error}") from None
    listener.set_inheritable(False)
    return listener


def listen_for_user() -> tuple[Listener | None, str]:
    """The user's own socket, or None and why there is none: then there is TCP alone."""
    try:
        return listen(), ""
    except ServerError as error:
        return None, str(error)


def address_of(listener: socket.socket) -> str:
    """A listening TCP socket's address as people write it."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Web(uvicorn.Server):
    """uvicorn's server with our protocol class, within the bounds of connections.py; at the first signal the
    application says farewell to its streams."""

    def __init__(self, server: Server) -> None:
        config = server.config
        book = server.connections
        afforded = affordable_connections(config.max_connections, raise_file_limit())
        if afforded < config.max_connections:
            _log.warning("fewer connections than max_connections: open files are limited", extra={"count": afforded})
        book.bounds = replace(book.bounds, max_connections=afforded)
        super().__init__(
            uvicorn.Config(
                server.app,
                interface="asgi3",
                http=protocol_class(book),
                ws="none",
                loop="asyncio",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=True,
                proxy_headers=False,
                timeout_graceful_shutdown=int(config.drain + _LAST_WORDS_SECONDS + 1),
                backlog=ACCEPT_BATCH,
            )
        )
        self._server = server
        self._farewell: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn."""
        asyncio.get_running_loop().set_exception_handler(loop_exception_handler(_log))
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(_BACKLOG)  # asyncio's backlog is also how many are taken in one turn of the loop

    def stop(self) -> None:
        """Ends the server as SIGTERM does. On its loop."""
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn."""
        self._server.drain()
        _log.info("draining", extra={"requests": self._server.service.num_active})
        self._farewell = asyncio.create_task(self._cut_after(self._server.config.drain))
        try:
            await super().shutdown(sockets)
        finally:
            self._farewell.cancel()
            with suppress(asyncio.CancelledError):
                await self._farewell

    async def _cut_after(self, seconds: float) -> None:
        """Streams that still run get their last event, so that clients see an end and not a broken line."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._server.service.num_active:
                    await asyncio.sleep(0.05)
        await self._server.service.close()


def run(
    config: ServeConfig,
    server: Server,
    listener: socket.socket,
    *,
    on_ready: Callable[[], None] | None = None,
    load_settings: Load | None = None,
    watched: Sequence[Path] = (),
    own: Listener | None = None,
    files: Mapping[str, Path] | None = None,
) -> None:
    """Serves until SIGTERM, SIGINT or `kamado stop --server`. Raises what loading the first models raised.

    `own`: the user's own socket, closed at the end. `files`: models outside the store, by name.
    `load_settings` reads settings and keys anew, when SIGHUP comes or a file of `watched` changes; see reload.py.
    """
    ring = LogRing()
    kept = () if own is None else (ring,)  # nobody else could read it
    set_up_logging(config, *kept)
    share = server_share(config)
    parts = {f"{name}_bytes": nbytes for name, nbytes in share.parts().items()}
    _log.info("memory of the server itself", extra={"bytes": share.total, **parts, "models": models_bytes(config)})
    warn_of_exposed_keys(watched, config)
    sys.setswitchinterval(_SWITCH_SECONDS)
    _set_up_memory()
    web = Web(server)
    if own is not None:
        desk = Desk(server, address=address_of(listener), ring=ring, stop=web.stop, files=files)
        server.open_desk(desk.routes())
    failure: list[KamadoError] = []

    async def main() -> None:
        server.state["is_ready"] = False
        tasks = [asyncio.create_task(_load_first(config, server, web, failure))]
        if load_settings is not None:
            reloader = Reloader(server, load_settings, watched, on_change=lambda: set_up_logging(server.config, *kept))
            tasks.append(asyncio.create_task(reloader.watch(), name="settings"))
            if hasattr(signal, "SIGHUP"):
                asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reloader.ask)
        if on_ready is not None:
            on_ready()
        await web.serve(sockets=[listener] if own is None else [listener, own.socket])
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    try:
        asyncio.run(main())
    finally:
        if own is not None:
            own.close()
    if failure:
        raise failure[0]


async def _load_first(config: ServeConfig, server: Server, web: uvicorn.Server, failure: list[KamadoError]) -> None:
    """Loads the models that the server was started for; one that cannot be loaded ends it."""
    try:
        for name in config.models:
            await server.service.load(name, pinned=True)
    except KamadoError as error:
        failure.append(error)
        web.should_exit = True
        return
    gc.collect()
    gc.freeze()  # what is here stays: looking through it again took 30 to 100 ms, in which no stream went on
    server.state["is_ready"] = True


def _set_up_memory() -> None:
    """Large buffers go back to the system when they are freed. glibc otherwise learns from the first body of 27 MB to
    keep such blocks, and 400 MiB stay resident after some of them."""
    if sys.platform != "linux":
        return
    with suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 4 << 20)
        libc.mallopt(_M_TRIM_THRESHOLD, 16 << 20)


def set_up_logging(config: ServeConfig, *kept: logging.Handler) -> None:
    """Lines on stderr and for `kept`, of this package and of uvicorn's errors."""
    handlers = [logging.StreamHandler(sys.stderr), *kept]
    for handler in handlers:
        handler.setFormatter(JsonFormatter() if config.log == "json" else TextFormatter())
    for name, level in (("kamado.serve", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers = list(handlers)
        logger.propagate = False
        logger.setLevel(level)
