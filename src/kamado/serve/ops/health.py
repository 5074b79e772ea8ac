"""Operations: is it alive, is it ready, what has it done, what does it offer."""

from __future__ import annotations

import time
from typing import Any

from msgspec import UNSET, Struct, UnsetType

from ..http.replies import json_response
from ..http.routes import Call, Response, Route
from ..protocols.openai.family import FAMILY


class HealthResult(Struct):
    """GET /health and /ready."""

    status: str
    version: str
    uptime_seconds: float
    models_loaded: int
    requests_active: int
    reason: str | UnsetType = UNSET


async def health(call: Call[None]) -> Response:
    """503 when work is under way and nothing came of it for long: a restart would help."""
    stalled = call.server.service.stalled_seconds
    reason = f"requests run, and no token came for {stalled:.0f} seconds" if stalled else ""
    return _status(call, "stalled" if stalled else "ok", reason)


async def ready(call: Call[None]) -> Response:
    """503 while going down, and while the models that were asked for at the start are being loaded."""
    if call.server.is_draining:
        return _status(call, "draining", "the server is going down")
    if not call.server.state.get("is_ready", True):
        return _status(call, "loading", "models are being loaded")
    return _status(call, "ok", "")


def _status(call: Call[None], status: str, reason: str) -> Response:
    from ... import __version__

    service = call.server.service
    result = HealthResult(
        status,
        __version__,
        round(time.time() - call.server.started_at, 3),
        len(service.loaded()),
        service.num_active,
        reason or UNSET,
    )
    return json_response(result, status=503 if reason else 200)


async def metrics(call: Call[None]) -> Response:
    """Prometheus' text."""
    await call.server.refresh_model_stats()
    return Response(content=call.server.metrics.text().encode(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def openapi(call: Call[None]) -> Response:
    """This API, described."""
    from .openapi import document

    return json_response(document(call.server.routes))


ROUTES = [
    Route(
        "GET", "/health", health, "public", FAMILY, "Whether the server does its work.", result=HealthResult,
        statuses=(503,),
    ),
    Route(
        "GET", "/ready", ready, "public", FAMILY, "Whether requests are taken.", result=HealthResult, statuses=(503,)
    ),
    Route("GET", "/metrics", metrics, "read", FAMILY, "Numbers for Prometheus.", streams="text/plain"),
    Route("GET", "/openapi.json", openapi, "read", FAMILY, "This document.", result=dict[str, Any]),
]  # fmt: skip
