"""GET /v1/models for Anthropic's clients: the path is OpenAI's too, an `anthropic-version` header tells them apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ....errors import KamadoError
from ...faults import RequestError, fault_of
from ...http.replies import json_response, utc_text
from ...http.routes import Call, Response
from ...models.contract import ModelInfo
from .bodies import check_headers
from .handlers import FAMILY

_DEFAULT_LIMIT, _MAX_LIMIT = 20, 1000


def is_asked(headers: Mapping[str, str]) -> bool:
    """Whether a request comes from a client of Anthropic's API; its SDKs always send the header."""
    return "anthropic-version" in headers


def model_body(info: ModelInfo) -> dict[str, Any]:
    """One model in Anthropic's shape; capabilities that its API does not know of are in ours."""
    context = info.context or info.max_context or None
    return {
        "type": "model",
        "id": info.name,
        "display_name": info.name,
        "created_at": utc_text(info.created),
        "lifecycle": "active",
        "max_input_tokens": context,
        "max_tokens": context,
    }


def page(infos: Sequence[ModelInfo], query: Mapping[str, str]) -> dict[str, Any]:
    """A page of models by `limit`, `after_id` and `before_id`. Raises RequestError naming a parameter that is wrong."""
    text = query.get("limit", str(_DEFAULT_LIMIT))
    RequestError.when(
        not (text.isascii() and text.isdecimal() and len(text) <= 4 and 1 <= int(text) <= _MAX_LIMIT),
        f"limit must be 1 to {_MAX_LIMIT}",
        param="limit",
    )
    limit = int(text)
    RequestError.when(
        "after_id" in query and "before_id" in query, "after_id and before_id exclude each other", param="before_id"
    )
    models = list(infos)
    for name in ("after_id", "before_id"):
        if name in query:
            at = next((i for i, info in enumerate(models) if info.name == query[name]), None)
            if at is None:
                raise RequestError("there is no such model", param=name)
            models = models[at + 1 :] if name == "after_id" else models[:at]
    shown = models[-limit:] if "before_id" in query else models[:limit]
    return {
        "data": [model_body(info) for info in shown],
        "first_id": shown[0].name if shown else None,
        "last_id": shown[-1].name if shown else None,
        "has_more": len(models) > len(shown),
    }


async def list_models(call: Call[None]) -> Response:
    """GET /v1/models, errors included, in Anthropic's shape."""
    try:
        check_headers(call.headers)
        return json_response(page(await call.server.service.models(), call.query))
    except KamadoError as error:
        return _fault_response(error)


async def get_model(call: Call[None]) -> Response:
    """GET /v1/models/{model}, errors included, in Anthropic's shape."""
    try:
        check_headers(call.headers)
        return json_response(model_body(await call.server.service.model(call.path["model"])))
    except KamadoError as error:
        return _fault_response(error)


def _fault_response(error: KamadoError) -> Response:
    fault = fault_of(error)
    return json_response(FAMILY.fault_body(fault), status=fault.status, headers=fault.headers)
