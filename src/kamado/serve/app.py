"""The ASGI application: every request passes the same gate, in this order, before a handler sees it.

    id → going down? → Host → route → Origin → key → scope → body (size, time, type, depth, shape) → handler → answer

The gate is the only place that knows connections. A handler runs in a task of its own that is cancelled when its client
leaves, which frees the executor within a step.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl

from ..errors import ClosedError
from ..measure import kept_schema_bytes
from .config import ServeConfig
from .faults import Fault, FaultError, RequestError, fault_of, shown
from .http.access import Access
from .http.asgi import LOCAL_PEER, WRITE_NOW
from .http.bodies import MEMORY_FACTOR, SMALL_SHARE, BodyBudget, BodyDecoder, BodyLimits, take_body
from .http.connections import ConnectionBounds, Connections
from .http.exchange import CLIENT_LEFT, Exchange
from .http.keys import LOCAL, NOBODY, Key, KeyRing
from .http.parameters import LeftOut
from .http.paths import canonical, instead_of
from .http.route_table import RouteTable
from .http.routes import Call, Family, Route
from .http.writer import Writer
from .metrics import Registry
from .models.model_stats import register_model_stats
from .models.service import Limits, Service
from .protocols.table import admit
from .share import CONNECTION_BYTES, server_share, worker_bytes

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_log = logging.getLogger("kamado.serve")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,80}")
_MAX_QUERY_BYTES = 8192
_STATS_SECONDS = 1.0
_MAX_PATH_CHARACTERS = 2048
_MAX_LOGGED = 1000


class Server:
    """One server: its settings, its service, its routes. `app` is the ASGI application."""

    def __init__(
        self,
        config: ServeConfig,
        service: Service,
        *,
        metrics: Registry,
        keys: KeyRing | None = None,
        routes: Sequence[Route],
        family_of: Callable[[str], Family],
    ) -> None:
        """`metrics` is the registry that `service` was made with; `family_of` says in whose shape a fault on a path is
        written when no route says so."""
        self.config = config
        self.service = service
        self.metrics = metrics
        self.keys = keys if keys is not None else KeyRing()
        self.routes = tuple(routes)
        self.is_draining = False
        self.started_at = time.time()
        self.state: dict[str, Any] = {}  # families' own: stored responses, …
        self._family_of = family_of
        self._table = RouteTable(self.routes)
        self._local_table = self._table
        self._access = Access(config)
        self._limits = _body_limits(config)
        self._bodies = BodyBudget(config.bodies_bytes)
        self.connections = Connections(_bounds(config), metrics)
        self._requests = metrics.counter(
            "kamado_http_requests_total", "Answers, by route and status.", ("route", "status")
        )
        self._http_seconds = metrics.histogram("kamado_http_seconds", "From a request to the end of its answer.")
        self._num_open = 0
        self._logged: set[str] = set()  # names of parameters that were left out once
        self.model_stats: dict[str, Mapping[str, Any]] = {}  # by model, as it was last: Stats.to_dict
        register_model_stats(metrics, lambda: self.model_stats, lambda: {"server": self.own_bytes})
        share = server_share(config)
        metrics.gauge(
            "kamado_server_share_bytes",
            "Memory that is kept for the server itself: bodies in flight, connections, the worker process, libraries.",
            lambda: [((name,), float(nbytes)) for name, nbytes in share.parts().items()],
            ("part",),
        )
        metrics.gauge("kamado_http_open", "Requests being answered.", lambda: [((), float(self._num_open))])

    def open_desk(self, routes: Sequence[Route]) -> None:
        """Further routes, for those who come over the user's own socket; for others they do not exist."""
        self._local_table = RouteTable((*self.routes, *routes))

    def configure(self, config: ServeConfig, keys: KeyRing) -> None:
        """Other settings and keys from now on; requests that are past the gate keep theirs."""
        self.config, self.keys = config, keys
        self._access = Access(config)
        self._limits = _body_limits(config)
        self.connections.bounds = replace(_bounds(config), max_connections=self.connections.bounds.max_connections)
        self.service.configure(
            limits=Limits(config.max_requests, config.max_requests_per_key, config.deadline),
            aliases=config.aliases,
            keep_alive=config.keep_alive,
            load_wait=config.load_wait,
        )

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI 3 application."""
        if scope["type"] == "http":
            self._num_open += 1
            try:
                await self._http(scope, receive, send)
            finally:
                self._num_open -= 1
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})

    async def refresh_model_stats(self) -> None:
        """What engines counted, for /metrics. A model in the middle of a long step is shown as it was before."""
        for slot in self.service.pool.slots:
            if slot.model is not None:
                with suppress(TimeoutError, ClosedError):
                    async with asyncio.timeout(_STATS_SECONDS):
                        self.model_stats[slot.name] = await slot.model.stats()
        loaded = {slot.name for slot in self.service.pool.slots}
        self.model_stats = {name: stats for name, stats in self.model_stats.items() if name in loaded}

    @property
    def own_bytes(self) -> int:
        """Memory that bodies, connections, schemas and the worker process take now."""
        return self._bodies.used_bytes + len(self.connections) * CONNECTION_BYTES + kept_schema_bytes() + worker_bytes()

    def drain(self) -> None:
        """Takes no more requests; those that run may end. `Service.close` cuts them."""
        self.is_draining = True

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                await self.service.close()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        given = headers.get("x-request-id", "")
        path = scope["path"]
        exchange = Exchange(
            id=given if _REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}",
            method=scope["method"],
            path=path,
            family=self._family_of(canonical(path)),
            headers=headers,
            started=time.perf_counter(),
        )
        writer = Writer(
            send,
            is_head=exchange.method == "HEAD",
            write_timeout=self.config.write_timeout,
            write_now=scope.get("extensions", {}).get(WRITE_NOW),
        )
        try:
            await self._answer(exchange, scope, receive, writer)
        except asyncio.CancelledError:
            exchange.notes["outcome"] = "cancelled"
            if not writer.is_complete:
                writer.abort()
            if asyncio.current_task().cancelling():  # type: ignore[union-attr] # the server's own wish, not the client's
                raise
        except Exception as error:
            exchange.notes["outcome"] = "error"
            _log.exception("a request failed", extra={"id": exchange.id, "path": path}, exc_info=error)
            writer.abort()
        finally:
            if exchange.body is not None:
                exchange.body.close()
            name = f"{exchange.route.method} {exchange.route.path}" if exchange.route is not None else "none"
            self._requests.add(1, name, str(writer.status or CLIENT_LEFT))
            self._http_seconds.observe(time.perf_counter() - exchange.started)
            exchange.log(writer)

    async def _answer(self, exchange: Exchange, scope: Scope, receive: Receive, writer: Writer) -> None:
        """Runs the request and writes what came of it, whatever that is."""
        work = asyncio.ensure_future(self._run(exchange, scope, receive, writer))
        try:
            await work
        except asyncio.CancelledError:
            work.cancel()
            raise
        except Exception as error:
            fault = fault_of(error)
            if fault.kind == "internal":
                _log.exception("a handler failed", extra={"id": exchange.id, "path": exchange.path})
            _let_go(error)
            await exchange.write_fault(writer, fault)

    async def _run(self, exchange: Exchange, scope: Scope, receive: Receive, writer: Writer) -> None:
        call, route = await self._pass_gate(exchange, scope, receive)
        if call is None or route is None:
            await writer.whole(204, b"", "text/plain", exchange.headers_of({}))
            return
        work = asyncio.current_task()
        assert work is not None
        watcher = asyncio.create_task(_cancel_on_disconnect(receive, work, writer, exchange.notes))
        try:
            response = await route.handler(call)
            exchange.left_out = tuple(call.left_out)
            exchange.answer_headers = call.answer_headers
            await exchange.write(writer, response, comment_seconds=self.config.keep_alive_comment)
        finally:
            exchange.notes.update(call.notes)
            watcher.cancel()
            with suppress(asyncio.CancelledError):
                await watcher

    async def _pass_gate(
        self, exchange: Exchange, scope: Scope, receive: Receive
    ) -> tuple[Call[Any] | None, Route | None]:
        """The checked call and its route; (None, None) for a preflight that is granted. Raises FaultError."""
        headers = exchange.headers
        is_local = scope.get(LOCAL_PEER, False)
        self._access.check_host(headers.get("host"))
        exchange.cors = self._access.check_origin(headers, exchange.method)
        is_too_long = len(exchange.path) > _MAX_PATH_CHARACTERS or len(scope["query_string"]) > _MAX_QUERY_BYTES
        RequestError.when(is_too_long, "the path or its query is too long")
        path = canonical(exchange.path)
        reason = instead_of(path)
        RequestError.when(reason is not None, f"there is no {exchange.path}: {reason}", kind="not_found")
        table = self._local_table if is_local else self._table
        methods, route, parameters = table.find(exchange.method, path)
        if exchange.method == "OPTIONS" and methods and "access-control-request-method" in headers:
            exchange.cors = self._access.preflight(exchange.cors, methods)
            return None, None
        RequestError.when(not methods, f"there is no {shown(exchange.path)}", kind="not_found")
        if route is None:
            allow = ", ".join(methods)
            raise FaultError(
                Fault(
                    "method_not_allowed",
                    f"{shown(exchange.path)} takes {allow}, not {exchange.method[:20]}",
                    allow=allow,
                )
            )
        exchange.route, exchange.family = route, route.family
        exchange.key = LOCAL if is_local else self._identify(route, headers)
        ClosedError.when(self.is_draining and route.scope != "public", "the server is going down")
        query = self._query(route, scope["query_string"])
        body = None
        left_out: list[LeftOut] = []
        if route.body is not None:
            exchange.body = self._bodies.open()
            decode = BodyDecoder(route.body, self._limits, lambda value: self._admit(route, value, left_out))
            body = await take_body(receive, headers, decode, exchange.body)
        call = Call(self, body, parameters, query, headers, exchange.key, exchange.id)
        for item in left_out:
            call.leave_out(item)
        return call, route

    def _admit(self, route: Route, value: dict[str, Any], left_out: list[LeftOut]) -> None:
        """Takes out of a body what the table leaves out, and puts the only model there is to mean into it.

        Perhaps on the thread of bodies.py.
        """
        assert route.body is not None
        left_out += admit(f"{route.method} {route.path}", value, route.body)
        models = self.config.models
        if len(models) == 1 and route.needs_model and not value.get("model") and not value.get("name"):
            value["model"] = models[0]

    def log_left_out(self, left: LeftOut) -> None:
        """One line for each name, however many requests have it."""
        if left.name not in self._logged and len(self._logged) < _MAX_LOGGED:
            self._logged.add(left.name)
            _log.info("left out", extra={"parameter": left.name, "reason": left.why})

    def _identify(self, route: Route, headers: Mapping[str, str]) -> Key:
        secret: str | None = None
        kind, _, value = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and value:
            secret = value.strip()
        for name in ("x-api-key", *route.family.key_headers):
            secret = secret or headers.get(name)
        key = self.keys.find(secret)
        if route.scope == "public":
            return key or NOBODY
        if key is None:
            problem = "this API key is not known here" if secret else "an API key is needed"
            raise RequestError(problem, kind="unauthorized", code="invalid_api_key")
        RequestError.when(
            not key.may(route.scope),
            f"this API key has no scope {route.scope!r}",
            kind="forbidden",
            code="insufficient_permissions",
        )
        return key

    def _query(self, route: Route, raw: bytes) -> dict[str, str]:
        try:
            pairs = parse_qsl(raw.decode("ascii"), keep_blank_values=True, max_num_fields=32, errors="strict")
        except ValueError:
            raise FaultError(Fault("invalid_request", "the query string cannot be read")) from None
        query = dict(pairs)
        unknown = [name for name in query if name not in route.query]
        if unknown and not route.is_hidden:
            raise FaultError(
                Fault("invalid_request", f"unknown query parameter {unknown[0][:60]!r}", param=unknown[0][:60])
            )
        return query


def _let_go(error: BaseException) -> None:
    """Frees what the frames of a traceback hold. Tasks and their exceptions point at each other, so a body of megabytes
    would stay until garbage is looked for."""
    seen: BaseException | None = error
    for _ in range(10):
        if seen is None:
            return
        traceback.clear_frames(seen.__traceback__)
        seen = seen.__cause__ or seen.__context__


def _body_limits(config: ServeConfig) -> BodyLimits:
    most_bytes = config.bodies_bytes - config.bodies_bytes // SMALL_SHARE  # what one could have if it were alone
    return BodyLimits(
        min(config.max_body_bytes, most_bytes),
        config.max_json_depth,
        config.body_timeout,
        config.max_json_values,
        min(MEMORY_FACTOR * config.max_body_bytes, most_bytes),
    )


def _bounds(config: ServeConfig) -> ConnectionBounds:
    return ConnectionBounds(
        max_connections=config.max_connections,
        max_silent=config.max_silent_connections,
        max_per_address=config.max_connections_per_address,
        max_header_bytes=config.max_header_bytes,
        header_seconds=config.header_timeout,
        idle_seconds=config.idle_timeout,
    )


async def _cancel_on_disconnect(
    receive: Receive, work: asyncio.Task[Any], writer: Writer, notes: dict[str, Any]
) -> None:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            if writer.is_complete:  # it is said of a complete answer too
                return
            notes["outcome"] = "client left"
            work.cancel()
            return
