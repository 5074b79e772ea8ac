"""GET /v1/models for Anthropic's clients: the path is OpenAI's too, an `anthropic-version` header tells them apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ....errors import KamadoError
from ...faults import fault_of
from ...http.replies import json_response, utc_text
from ...http.routes import Call, Response
from ...models.contract import ModelInfo
from ..paging import page_of
from .bodies import check_headers
from .handlers import FAMILY

_MAX_LIMIT = 1000  # of a page


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


async def list_models(call: Call[None]) -> Response:
    """GET /v1/models, errors included, in Anthropic's shape."""
    try:
        check_headers(call.headers)
        return json_response(
            page_of(
                [model_body(info) for info in await call.server.service.models()],
                call.query,
                most=_MAX_LIMIT,
                after="after_id",
                before="before_id",
            )
        )
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
