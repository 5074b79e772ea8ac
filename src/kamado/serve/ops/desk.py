"""The server's desk for its own user: what is going on, load, unload, stop, log lines. Over the user's socket only
(local/place.py): these routes are in no other table, so over TCP they do not exist, whatever key is shown."""

from __future__ import annotations

import math
import os
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta, Struct

from ... import __version__
from ...files.atomic import user_folder
from ...local.documents import (
    LOAD_PATH,
    LOGS_PATH,
    PROTOCOL,
    STATUS_PATH,
    STOP_PATH,
    UNLOAD_PATH,
    Settings,
    Status,
    write,
)
from ..app import Server
from ..faults import RequestError
from ..http.replies import json_response
from ..http.routes import WORK_STATUSES, Call, Response, Route
from ..models.contract import LoadOptions
from ..models.direct import states
from ..protocols.direct import DIRECT, Name, lines_response
from ..share import models_bytes
from .log_ring import MOST_LINES, LogRing


class LoadBody(Struct, kw_only=True, forbid_unknown_fields=True):
    """POST /local/v1/load."""

    model: Name
    context: Annotated[int, Meta(ge=2)] | None = None
    threads: Annotated[int, Meta(ge=1, le=1024)] | None = None
    memory_bytes: Annotated[int, Meta(ge=1)] | None = None
    kv: Annotated[str, Meta(max_length=4096)] | None = None
    allow_unknown: list[str] | None = None
    keep_alive: float | None = None  # seconds without work; negative: until it is unloaded or its room is needed


class UnloadBody(Struct, kw_only=True, forbid_unknown_fields=True):
    """POST /local/v1/unload."""

    model: Name


class Desk:
    """Answers what the user's own programs ask about this server."""

    def __init__(
        self,
        server: Server,
        *,
        address: str,
        ring: LogRing,
        stop: Callable[[], None],
        files: Mapping[str, Path] | None = None,
    ) -> None:
        """`address`: of the TCP side, for people; `stop` ends the server; `files`: models outside the store by name."""
        self._server = server
        self._address = address
        self._ring = ring
        self._stop = stop
        self._files = dict(files or {})

    def routes(self) -> Sequence[Route]:
        """For `Server.open_desk`."""
        last = {"type": "integer"}
        return (
            Route("GET", STATUS_PATH, self._status, "read", DIRECT, "What is going on"),
            Route("POST", LOAD_PATH, self._load, "admin", DIRECT, "Load", body=LoadBody, statuses=WORK_STATUSES),
            Route("POST", UNLOAD_PATH, self._unload, "admin", DIRECT, "Unload", body=UnloadBody),
            Route("POST", STOP_PATH, self._end, "admin", DIRECT, "Stop the server"),
            Route("GET", LOGS_PATH, self._logs, "admin", DIRECT, "Log", query={"n": last, "follow": last}),
        )

    @property
    def status(self) -> Status:
        """The server now."""
        config, service = self._server.config, self._server.service
        return Status(
            protocol=PROTOCOL,
            kamado=__version__,
            pid=os.getpid(),
            address=self._address,
            settings=Settings(
                kv=config.kv,
                memory_bytes=config.memory_bytes,
                context=config.context,
                threads=config.threads,
                prefix_cache_bytes=config.prefix_cache_bytes,
                allow_unknown=tuple(config.allow_unknown),
            ),
            models=states(service.pool),
            requests=service.num_active,
            started_at=self._server.started_at,
            is_ready=bool(self._server.state.get("is_ready", True)) and not self._server.is_draining,
            memory_bytes=models_bytes(config),
            files={name: os.path.realpath(path) for name, path in self._files.items()},
            state_folder=str(user_folder("data", "sessions")),
            life_seconds=config.keep_alive_comment,
        )

    async def _status(self, call: Call[None]) -> Response:
        return json_response(write(self.status))

    async def _load(self, call: Call[LoadBody]) -> Response:
        call.notes["model"] = call.body.model
        return lines_response(self._loaded(call.body))

    async def _loaded(self, body: LoadBody) -> AsyncGenerator[Mapping[str, Any], None]:
        allowed = None if body.allow_unknown is None else tuple(body.allow_unknown)
        options = LoadOptions(body.context, body.memory_bytes, body.threads, body.kv, allowed)
        keep = body.keep_alive
        info = await self._server.service.load(
            body.model,
            keep_alive=math.inf if keep is not None and keep < 0 else keep,
            options=None if options == LoadOptions() else options,
        )
        yield {"model": next((write(one) for one in self.status.models if one.name == info.name), None)}

    async def _unload(self, call: Call[UnloadBody]) -> Response:
        call.notes["model"] = call.body.model
        return lines_response(self._unloaded(call.body.model))

    async def _unloaded(self, name: str) -> AsyncGenerator[Mapping[str, Any], None]:
        yield {"unloaded": await self._server.service.unload(name)}

    async def _end(self, call: Call[None]) -> Response:
        self._stop()
        return json_response({"stopping": os.getpid(), "requests": self._server.service.num_active})

    async def _logs(self, call: Call[None]) -> Response:
        last = call.query.get("n", "100")
        RequestError.when(not (last.isascii() and last.isdigit() and len(last) < 7), "n must be a whole number")
        return lines_response(self._log_lines(min(int(last), MOST_LINES), call.query.get("follow") == "1"))

    async def _log_lines(self, last: int, is_followed: bool) -> AsyncGenerator[Mapping[str, Any], None]:
        async for line in self._ring.follow(last, lambda: self._server.is_draining or not is_followed):
            yield {"line": line}
