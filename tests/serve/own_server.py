"""Servers at the user's own socket: a real one with a tiny model, and one that answers whatever a test wants."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from kamado import __version__
from kamado.files.atomic import user_folder
from kamado.library.store import Store
from kamado.local import documents as d
from kamado.local import place
from kamado.serve.config import ServeConfig
from kamado.serve.http.keys import KeyRing
from kamado.serve.models.library import StoreLibrary
from kamado.serve.models.loader import EngineLoader, EngineSettings

from .running import Running, running


@contextmanager
def beside(
    files: Mapping[str, Path] | None = None, *, keys: KeyRing | None = None, **settings: Any
) -> Iterator[Running]:
    """A server over the user's store, and `files`, that the command line finds by itself."""
    config = ServeConfig(port=0, **settings)
    library = StoreLibrary(Store(), files)
    engine = EngineSettings(config.threads, config.kv, config.context, config.prefix_cache_bytes)
    own = place.listen()
    with running(library, EngineLoader(library, engine), config, keys, own=own, files=files) as up:
        yield up


Script = Callable[["Asked"], None]


class Asked(BaseHTTPRequestHandler):
    """One request to a scripted server."""

    protocol_version = "HTTP/1.1"
    script: Script

    def address_string(self) -> str:
        return "local"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.script()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.script()

    def give(self, content: bytes, status: int = 200) -> None:
        """A whole answer."""
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def give_json(self, value: Any, status: int = 200) -> None:
        self.give(json.dumps(value).encode(), status)

    def begin(self) -> None:
        """An answer that ends with the connection."""
        self.send_response(200)
        self.send_header("connection", "close")
        self.end_headers()
        self.close_connection = True

    def line(self, value: Any) -> None:
        self.wfile.write(json.dumps(value).encode() + b"\n")
        self.wfile.flush()


@contextmanager
def scripted(script: Script) -> Iterator[None]:
    """A server at the user's own socket that answers as `script` does."""
    own = place.listen()

    class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
        daemon_threads = True
        block_on_close = False

    handler = type("Scripted", (Asked,), {"script": script})
    server = Server("unused", handler, bind_and_activate=False)
    server.socket.close()
    server.socket = own.socket
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join(30)
        own.close()


def status_of(path: Path, **more: Any) -> dict[str, Any]:
    """A status that fits the model at `path`, called "tiny" there."""
    state = d.ModelState("tiny", kv="exact", threads=2, context=512, path=str(path), has_chat_template=True, since=1.0)
    found = d.Status(
        d.PROTOCOL,
        __version__,
        pid=77,
        address="http://127.0.0.1:1",
        settings=d.Settings("auto"),
        models=(state,),
        state_folder=str(user_folder("data", "sessions")),
    )
    return {**d.write(found), **more}


def told_of(path: Path) -> dict[str, Any]:
    """The same of /kamado/v1/model."""
    return {"told": d.write(d.Told(d.PROTOCOL, __version__, d.read(d.Status, status_of(path)).models[0]))}
