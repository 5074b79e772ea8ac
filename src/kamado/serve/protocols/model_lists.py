"""GET /v1/models: one path of two protocols. An `anthropic-version` header tells whose client asks."""

from __future__ import annotations

from ..http.routes import Call, Response, Route
from .anthropic import models as anthropic
from .openai import handlers as openai
from .openai.family import FAMILY
from .openai.results import ModelResult, ModelsResult


async def list_models(call: Call[None]) -> Response:
    """GET /v1/models in the shape of the client's protocol."""
    shape = anthropic.list_models if anthropic.is_asked(call.headers) else openai.list_models
    return await shape(call)


async def get_model(call: Call[None]) -> Response:
    """GET /v1/models/{model} in the shape of the client's protocol."""
    shape = anthropic.get_model if anthropic.is_asked(call.headers) else openai.get_model
    return await shape(call)


_INTEGER, _STRING = {"type": "integer", "minimum": 1, "maximum": 1000}, {"type": "string"}
_BETA = {"type": "string", "enum": ["true", "false"]}  # Anthropic's clients add it; it changes nothing

ROUTES = [
    Route(
        "GET", "/v1/models", list_models, "read", FAMILY, "List the models.", result=ModelsResult,
        query={"limit": _INTEGER, "after_id": _STRING, "before_id": _STRING, "beta": _BETA},  # Anthropic's
    ),
    Route(
        "GET", "/v1/models/{model:path}", get_model, "read", FAMILY, "Describe a model.", result=ModelResult,
        statuses=(404,), query={"beta": _BETA},
    ),
]  # fmt: skip
