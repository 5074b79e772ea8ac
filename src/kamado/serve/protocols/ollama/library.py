"""Ollama's API, the library: tags, show, ps, pull, delete, copy, create, version."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import Any

from ....errors import UsageError
from ...faults import RequestError
from ...http.parameters import Table
from ...http.replies import NDJSON, json_response, lines_response, utc_text
from ...http.routes import Call, Response, Route
from ...models.contract import ModelInfo, PullProgress
from ...models.modelfile import (
    Instructions,
    check_name,
    make_recipe,
    parameter_lines,
    parameters_from_lines,
    parse_modelfile,
    write_modelfile,
)
from ...models.slow_work import SlowWork
from .bodies import CopyBody, CreateBody, DeleteBody, PullBody, ShowBody, named
from .handlers import FAMILY, find_model
from .rows import CREATE, ROWS

# Clients ask for the version to know what the API has; this is the one whose API is spoken here.
API_VERSION = "0.13.0"
_TABLE = Table(ROWS)


def _details(info: ModelInfo) -> dict[str, Any]:
    return {
        "parent_model": info.parent,
        "format": info.format,
        "family": info.architecture,
        "families": [info.architecture] if info.architecture else [],
        "parameter_size": _size(info.parameter_count),
        "quantization_level": info.quantization,
    }


def _size(count: int) -> str:
    """135000000 → "135M", 1543714304 → "1.5B"."""
    if count <= 0:
        return ""
    return f"{count / 1e9:.1f}B" if count >= 999_500_000 else f"{count / 1e6:.4g}M"


async def tags(call: Call[None]) -> Response:
    """GET /api/tags."""
    models = [
        {
            "name": info.name,
            "model": info.name,
            "modified_at": utc_text(info.created),
            "size": info.nbytes,
            "digest": info.digest,
            "details": _details(info),
        }
        for info in await call.server.service.models()
    ]
    return json_response({"models": models})


async def ps(call: Call[None]) -> Response:
    """GET /api/ps."""
    models = [
        {
            "name": loaded.info.name,
            "model": loaded.info.name,
            "size": loaded.memory_bytes,
            "digest": loaded.info.digest,
            "details": _details(loaded.info),
            "expires_at": utc_text(math.inf if loaded.expires_at is None else loaded.expires_at),
            "size_vram": 0,
            "context_length": loaded.info.context,
        }
        for loaded in call.server.service.loaded()
    ]
    return json_response({"models": models})


async def show(call: Call[ShowBody]) -> Response:
    """POST /api/show."""
    body = call.body
    info = await find_model(call, named(body))
    arch = info.architecture or "model"
    model_info: dict[str, Any] = {
        "general.architecture": info.architecture,
        "general.parameter_count": info.parameter_count,
        f"{arch}.context_length": info.max_context or info.context,
        f"{arch}.embedding_length": info.embedding_length,
        # What prompt and answer may have together as it is served here: less than it was trained for, perhaps.
        "kamado.context": info.context,
    }
    if body.verbose:
        model_info = {**info.details, **model_info}
    return json_response(
        {
            "modelfile": write_modelfile(info),
            "parameters": "\n".join(parameter_lines(info.parameters)),
            "template": info.template,
            "system": info.system,
            "license": info.license,
            "details": _details(info),
            "model_info": model_info,
            "capabilities": sorted(info.capabilities - {"chat"}),
            "modified_at": utc_text(info.created),
        }
    )


async def _pull_lines(call: Call[PullBody], name: str) -> AsyncGenerator[dict[str, Any], None]:
    progress = call.server.service.library.pull(name)
    try:
        yield {"status": "pulling manifest"}
        async for step in progress:
            yield _pull_line(step)
    finally:
        close = getattr(progress, "aclose", None)  # a client that leaves stops the download; what came is kept
        if close is not None:
            await close()


def _pull_line(step: PullProgress) -> dict[str, Any]:
    if step.status == "downloading":
        line: dict[str, Any] = {"status": f"pulling {(step.digest or step.file)[:12]}"}
        if step.digest:
            line["digest"] = f"sha256:{step.digest}"
        return line | {"total": step.total_bytes, "completed": step.done_bytes}
    return {
        "status": {"resolving": "pulling manifest", "verifying": "verifying sha256 digest"}.get(
            step.status, step.status
        )
    }


async def _told(lines: AsyncGenerator[dict[str, Any], None], is_streamed: bool | None) -> Response:
    """The lines as they come, or the last word alone when they were not asked for."""
    if is_streamed is not False:
        return lines_response(lines)
    async with aclosing(lines):
        async for _ in lines:
            pass
    return json_response({"status": "success"})


async def pull(call: Call[PullBody]) -> Response:
    """POST /api/pull."""
    body = call.body
    name = named(body)
    check_name(name, "model")
    call.notes["model"] = name
    return await _told(_pull_lines(call, name), body.stream)


async def delete(call: Call[DeleteBody]) -> Response:
    """DELETE /api/delete."""
    info = await find_model(call, named(call.body))
    await call.server.service.unload(info.name)
    await call.server.service.library.delete(info.name)
    return Response(media_type="text/plain; charset=utf-8")  # as Ollama: nothing in it


async def copy(call: Call[CopyBody]) -> Response:
    """POST /api/copy."""
    info = await find_model(call, call.body.source)
    check_name(call.body.destination, "destination")
    RequestError.when(not call.body.destination, "destination is missing", param="destination")
    await call.server.service.library.copy(info.name, call.body.destination)
    return Response(media_type="text/plain; charset=utf-8")  # as Ollama: nothing in it


def _written_parameters(call: Call[CreateBody], written: Instructions) -> dict[str, Any]:
    """The PARAMETERs of a Modelfile, by the same rows as those of the body."""
    inner: dict[str, Any] = {"parameters": parameters_from_lines(written.parameters)}
    for left in _TABLE.admit(*CREATE, inner):
        call.leave_out(left)
    parameters: dict[str, Any] = inner["parameters"]
    return parameters


async def _create(call: Call[CreateBody]) -> AsyncGenerator[dict[str, Any], None]:
    body = call.body
    name = named(body)
    check_name(name, "model")
    written = Instructions() if body.modelfile is None else parse_modelfile(body.modelfile)
    parameters = {**_written_parameters(call, written), **(body.parameters or {})}
    given = "\n\n".join(body.license) if isinstance(body.license, list) else body.license
    messages = written.messages if body.messages is None else [(m.role, m.content) for m in body.messages]
    slow: SlowWork = call.server.state.setdefault("create", SlowWork("kamado-serve-create"))
    recipe = await slow.run(  # compiles the template
        partial(
            make_recipe,
            base=body.base or written.base,
            system=body.system if body.system is not None else written.system,
            template=body.template if body.template is not None else written.template,
            license_text=given if given is not None else written.license,
            parameters=parameters,
            messages=messages,
        )
    )
    base = await find_model(call, recipe.base)
    UsageError.when(base.name == name, f"from: {name!r} cannot be made of itself")
    yield {"status": f"using existing model {base.name}"}
    await call.server.service.library.create(name, recipe)
    await call.server.service.unload(name)  # a model of this name that is loaded is the old one
    yield {"status": "writing manifest"}
    yield {"status": "success"}


async def create(call: Call[CreateBody]) -> Response:
    """POST /api/create."""
    call.notes["model"] = named(call.body)
    return await _told(_create(call), call.body.stream)


async def version(call: Call[None]) -> Response:
    """GET /api/version."""
    from .... import __version__

    return json_response({"version": API_VERSION, "kamado": __version__})


ROUTES: tuple[Route, ...] = (
    Route("GET", "/api/tags", tags, "read", FAMILY, "Models that are here (Ollama)"),
    Route("GET", "/api/ps", ps, "read", FAMILY, "Models in memory (Ollama)"),
    Route("POST", "/api/show", show, "read", FAMILY, "What is known of a model (Ollama)", body=ShowBody),
    Route("POST", "/api/pull", pull, "pull", FAMILY, "Fetch a model (Ollama)", body=PullBody, streams=NDJSON),
    Route("DELETE", "/api/delete", delete, "delete", FAMILY, "Forget a model (Ollama)", body=DeleteBody, is_empty=True),
    Route(
        "POST", "/api/copy", copy, "admin", FAMILY, "A second name for a model (Ollama)", body=CopyBody, is_empty=True
    ),
    Route(
        "POST",
        "/api/create",
        create,
        "admin",
        FAMILY,
        "A model made of another (Ollama)",
        body=CreateBody,
        streams=NDJSON,
    ),
    Route("GET", "/api/version", version, "public", FAMILY, "Version (Ollama)"),
)
