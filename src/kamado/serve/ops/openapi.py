"""The OpenAPI document, made from the table of routes: what is reachable is described, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from ..http.route_table import PARAMETER
from ..http.routes import Route
from ..protocols.openai.results import ErrorResult

_EVERY = (400, 401, 403, 404, 405)  # what the gate itself may answer
_BODY = (408, 413, 415, 429, 500, 503, 504)
# Before 3.2, OpenAPI describes each event of a stream, not the stream.
_EVENT = {
    "type": "object",
    "required": ["data"],
    "properties": {"data": {"type": "string"}, "event": {"type": "string"}},
}
_REASONS = {
    400: "The request cannot be honoured.",
    401: "An API key is needed.",
    403: "Not allowed: the key's scopes, the Host or the Origin.",
    404: "No such model or path.",
    405: "The path has other methods.",
    408: "The body came too slowly.",
    413: "The body is too large.",
    415: "The body is no JSON.",
    429: "The queue is full; Retry-After says when to try again.",
    500: "A fault of the server.",
    502: "A download failed.",
    503: "Going down, or no memory for the model now.",
    504: "The deadline passed.",
}


def document(routes: Sequence[Route]) -> dict[str, Any]:
    """An OpenAPI 3.1 document."""
    from ... import __version__

    shown = [route for route in routes if not route.is_hidden]
    types = _types(shown)
    schemas, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    of_type = {_key(kind): schema for kind, schema in zip(types, schemas, strict=True)}
    paths: dict[str, dict[str, Any]] = {}
    for route in shown:
        path = PARAMETER.sub(r"{\1}", route.path)
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, of_type)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Kamado",
            "version": __version__,
            "description": "A local model server that speaks the OpenAI, Ollama and Anthropic protocols.",
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


def _types(routes: Sequence[Route]) -> list[Any]:
    found: dict[str, Any] = {_key(ErrorResult): ErrorResult}
    for route in routes:
        for kind in (route.body, route.result):
            if kind is not None:
                found.setdefault(_key(kind), kind)
    return list(found.values())


def _key(kind: Any) -> str:
    return f"{getattr(kind, '__module__', '')}.{getattr(kind, '__qualname__', '')}:{kind!r}"


def _operation(route: Route, of_type: Mapping[str, Any]) -> dict[str, Any]:
    words = [word for word in re.split(r"[^A-Za-z0-9]+", route.path) if word]
    operation: dict[str, Any] = {
        "operationId": "_".join([route.method.lower(), *words]),
        "summary": route.summary,
        "tags": [route.family.name],
        "responses": _responses(route, of_type),
    }
    if route.scope != "public":
        operation["security"] = [{"bearer": []}, {"x-api-key": []}, {}]
        operation["x-scope"] = route.scope
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name, _ in PARAMETER.findall(route.path)
    ]
    parameters += [
        {"name": name, "in": "query", "required": False, "schema": schema} for name, schema in route.query.items()
    ]
    if parameters:
        operation["parameters"] = parameters
    if route.body is not None:
        schema = of_type[_key(route.body)]
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return operation


def _responses(route: Route, of_type: Mapping[str, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if route.result is not None:
        content["application/json"] = {"schema": of_type[_key(route.result)]}
    elif route.body is not None and not route.is_empty:
        content["application/json"] = {"schema": {"type": "object"}}
    if route.streams is not None:
        content[route.streams] = {"schema": _EVENT if route.streams == "text/event-stream" else {"type": "string"}}
    found: dict[str, Any] = {"200": {"description": "The answer.", **({"content": content} if content else {})}}
    error = of_type[_key(ErrorResult)] if route.family.name == "openai" else {"type": "object"}
    statuses = {*_EVERY, *route.statuses, *(_BODY if route.body is not None else ()), 500, 503}
    for status in sorted(statuses):
        schema = of_type[_key(route.result)] if status == 503 and route.path in ("/health", "/ready") else error
        found[str(status)] = {
            "description": _REASONS.get(status, "An error."),
            "content": {"application/json": {"schema": schema}},
        }
    return found
