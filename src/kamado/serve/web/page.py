"""The page at `/`: files of this folder, and what the page shows of models and memory.

    GET /                  index.html        GET /web/app.js, style.css, …    the rest of web/
    GET /web/status.json   models, which of them to begin with, what is loaded, bytes by owner

There is no build step and nothing is fetched from elsewhere. The policy sent with every file lets the page load scripts
and styles from this server only, talk to this server only, and never make HTML of a text (Trusted Types without a
policy): what a model writes can become text nodes and nothing else. Files are public, they say nothing of this server;
what they show comes through routes that want a key like every other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ...errors import ModelNotFoundError
from ..faults import Fault, FaultError
from ..http.replies import json_response, sse
from ..http.routes import Call, Family, Response, Route
from ..models.pool import Slot

_FOLDER = Path(__file__).parent
_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}

HEADERS: Mapping[str, str] = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-cache",  # asked again each time, answered with 304: an update shows at once
}


@dataclass(frozen=True, slots=True)
class WebFile:
    """One file of the page."""

    content: bytes
    media_type: str
    etag: str


@cache
def web_files() -> Mapping[str, WebFile]:
    """All files of the page by name. Only these can be asked for: no path is made of a request."""
    found = {}
    for path in sorted(_FOLDER.iterdir()):
        if path.suffix in _MEDIA_TYPES:
            content = path.read_bytes()
            etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            found[path.name] = WebFile(content, _MEDIA_TYPES[path.suffix], etag)
    return found


def _fault_body(fault: Fault) -> dict[str, Any]:
    return {"error": {"message": fault.message, "type": fault.kind, "param": fault.param, "code": fault.code}}


PAGE = Family(name="page", fault_body=_fault_body, fault_event=lambda fault: sse(_fault_body(fault)))


async def _file(call: Call[None]) -> Response:
    name = call.path.get("name", "index.html")
    file = web_files().get(name)
    if file is None:
        raise FaultError(Fault("not_found", f"the page has no file {name[:80]!r}"))
    headers = {**HEADERS, "etag": file.etag}
    if call.headers.get("if-none-match") == file.etag:
        return Response(status=304, media_type=file.media_type, headers=headers)
    return Response(content=file.content, media_type=file.media_type, headers=headers)


async def _status(call: Call[None]) -> Response:
    """What the page shows: models that can chat, which of them to begin with, what is loaded, bytes by owner."""
    service = call.server.service
    infos, real = [], {}
    for info in await service.models(with_aliases=False):
        if "chat" in info.capabilities:
            with suppress(ModelNotFoundError):  # removed at this moment
                real[info.name] = await service.model(info.name)  # an alias and its model are one
                infos.append(info)
    fits = {name: await service.pool.fits(info) for name, info in real.items()}
    await call.server.refresh_model_stats()
    stats = call.server.model_stats
    loaded = [
        {
            "name": model.info.name,
            "context": model.info.context,
            "memory_bytes": model.memory_bytes,
            "num_active": model.num_active,
            "is_pinned": model.is_pinned,
            "bytes_by_owner": dict(stats.get(model.info.name, {}).get("bytes_by_owner") or {}),
        }
        for model in service.loaded()
    ]
    in_memory = {model["name"] for model in loaded}
    models = [
        {
            "name": info.name,
            "context": info.context,
            "is_loaded": real[info.name].name in in_memory,
            "fits": fits[info.name],
        }
        for info in infos
    ]
    return json_response({"models": models, "default": _default(service.pool.slots, fits), "loaded": loaded})


def _default(slots: Sequence[Slot], fits: Mapping[str, bool]) -> str | None:
    """The model that answers soonest and surely: named at the start, else in memory, else one that fits, else any.

    `fits` has the models that can chat; `slots` are in the order in which they were loaded.
    """
    pinned = [slot.name for slot in slots if slot.is_pinned]
    latest = [slot.name for slot in reversed(slots)]
    fitting = [name for name, has_room in fits.items() if has_room]
    return next((name for name in (*pinned, *latest, *fitting, *fits) if name in fits), None)


ROUTES: tuple[Route, ...] = (
    Route("GET", "/", _file, "public", PAGE, "The page", is_hidden=True),
    Route("GET", "/web/status.json", _status, "read", PAGE, "What the page shows", is_hidden=True),
    Route("GET", "/web/{name}", _file, "public", PAGE, "A file of the page", is_hidden=True),
)
