"""Kamado's own protocol, which the command line speaks: the engine's calls with all their options, in lines of JSON.

    POST /kamado/v1/model   {"model"}                                       →  … {"told": {…}}
    POST /kamado/v1/answer  {"model", "messages" | "prompt", "options", …}  →  {"started"} {"piece"}… {"done"}
    POST /kamado/v1/encode  {"model", "messages"}                           →  {"tokens"}
    POST /kamado/v1/embed   {"model", "texts", …}                           →  {"vectors": base64, "num_tokens"}
    POST /kamado/v1/stats   {"model"}                                       →  {"stats"}

A fault is {"error": {"kind", "message", "code", …}}, as an answer or as a stream's last line; `code` is the name of the
exception class, so that the command line raises what it would have raised alone. {"progress": [stage, done, total]} and
empty lines may come anywhere. local/documents.py has what both sides read.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import replace
from functools import wraps
from typing import Annotated, Any

import numpy as np
from msgspec import Meta, Struct

from ... import AnswerOptions, __version__
from ...errors import KamadoError
from ...local.documents import (
    ANSWER_PATH,
    EMBED_PATH,
    ENCODE_PATH,
    MODEL_PATH,
    PROTOCOL,
    STATS_PATH,
    Spent,
    Told,
    write,
)
from ..faults import Fault, FaultError, RequestError, fault_of
from ..http.keys import LOCAL
from ..http.replies import NDJSON, json_response, ndjson, stream_response
from ..http.routes import WORK_STATUSES, Call, Family, Response, Route
from ..models.contract import Done, EmbedRequest, Progress, Started
from ..models.direct import AnswerRequest, PieceEvent, directly, states

_FORMS = frozenset({"schema", "regex", "grammar"})
_OPTIONS = (frozenset(AnswerOptions.__annotations__) | _FORMS) - {"owner"}

Name = Annotated[str, Meta(min_length=1, max_length=300)]
MessageRow = dict[str, Any]


class ModelBody(Struct, kw_only=True, forbid_unknown_fields=True):
    """POST /kamado/v1/model and /stats."""

    model: Name


class AnswerBody(Struct, kw_only=True, forbid_unknown_fields=True):
    """POST /kamado/v1/answer."""

    model: Name
    messages: list[MessageRow] | None = None
    prompt: str | None = None
    special: bool = False
    session: Annotated[str, Meta(max_length=300)] | None = None
    options: dict[str, Any] = {}


class EncodeBody(Struct, kw_only=True, forbid_unknown_fields=True):
    """POST /kamado/v1/encode."""

    model: Name
    messages: list[MessageRow]


class EmbedBody(Struct, kw_only=True, forbid_unknown_fields=True):
    """POST /kamado/v1/embed."""

    model: Name
    texts: Annotated[list[str], Meta(min_length=1, max_length=4096)]
    dimensions: Annotated[int, Meta(ge=1)] | None = None
    truncate: bool = False


def fault_body(fault: Fault) -> dict[str, Any]:
    """The JSON of an error."""
    told = {"kind": fault.kind, "message": fault.message, "param": fault.param, "code": fault.code}
    return {"error": {**told, "numbers": dict(fault.numbers)}}


DIRECT = Family(
    name="kamado",
    fault_body=fault_body,
    fault_event=lambda fault: ndjson(fault_body(fault)),
    keep_alive=b"\n",
)


def named_fault(error: KamadoError) -> FaultError:
    """The fault of an error, with the name of its class."""
    if isinstance(error, FaultError):
        return error
    return FaultError(replace(fault_of(error), code=type(error).__name__))


def _naming(handler: Callable[[Call[Any]], Awaitable[Response]]) -> Callable[[Call[Any]], Awaitable[Response]]:
    """A handler whose faults have their class's name."""

    @wraps(handler)
    async def named(call: Call[Any]) -> Response:
        try:
            return await handler(call)
        except KamadoError as error:
            raise named_fault(error) from error

    return named


async def _lines(items: AsyncGenerator[Mapping[str, Any], None]) -> AsyncGenerator[bytes, None]:
    """Lines of JSON; a fault has its class's name."""
    try:
        async with aclosing(items):
            async for item in items:
                yield ndjson(item)
    except KamadoError as error:
        raise named_fault(error) from error


def lines_response(items: AsyncGenerator[Mapping[str, Any], None]) -> Response:
    """An answer in lines of JSON, with signs of life while none come."""
    return stream_response(_lines(items), media_type=NDJSON)


def owner_of(call: Call[Any]) -> str:
    """Whose prefixes and sessions these are: the local user's own, or a key's."""
    return "" if call.key is LOCAL else call.key.id


async def _model(call: Call[ModelBody]) -> Response:
    """Loads the model if it is not in memory, and says how it was loaded."""
    call.notes["model"] = call.body.model
    return lines_response(_loading(call))


async def _loading(call: Call[ModelBody]) -> AsyncGenerator[Mapping[str, Any], None]:
    service = call.server.service
    if not service.is_loaded(call.body.model):
        yield _progress(Progress("loading", 0, 1))
    async with service.using(call.body.model, call.key.id) as model:
        directly(model)
        state = next(one for one in states(service.pool) if one.name == model.info.name)
    told = Told(PROTOCOL, __version__, replace(state, path=""), call.server.config.keep_alive_comment)
    yield {"told": write(told)}


async def _answer(call: Call[AnswerBody]) -> Response:
    body = call.body
    call.notes["model"] = body.model
    RequestError.when((body.messages is None) == (body.prompt is None), "give messages or a prompt", param="messages")
    RequestError.when(
        body.session is not None and call.key is not LOCAL, "sessions are the local user's own", param="session"
    )
    options = dict(body.options)
    unknown = options.keys() - _OPTIONS - ({"continue_last"} if body.messages is not None else set())
    RequestError.when(unknown, f"there is no option {min(unknown, default='')!r}", param="options")
    if isinstance(options.get("logit_bias"), dict):
        options["logit_bias"] = _biases(options["logit_bias"])
    if owner := owner_of(call):
        options["owner"] = owner
    request = AnswerRequest(
        asker=call.key.id,
        request_id=call.id,
        messages=None if body.messages is None else tuple(body.messages),
        prompt=body.prompt,
        special=body.special,
        session=body.session,
        options=options,
    )
    return lines_response(_pieces(call, request))


def _biases(given: dict[Any, Any]) -> dict[int, Any]:
    try:
        return {int(token): bias for token, bias in given.items()}
    except ValueError:
        raise RequestError("logit_bias must map token ids to numbers", param="options.logit_bias") from None


async def _pieces(call: Call[AnswerBody], request: AnswerRequest) -> AsyncGenerator[Mapping[str, Any], None]:
    """The events of an answer as lines."""
    async with aclosing(call.server.service.answer(call.body.model, request)) as events:
        async for event in events:
            if isinstance(event, PieceEvent):
                yield {"piece": list(event.piece)}
            elif isinstance(event, Progress):
                yield _progress(event)
            elif isinstance(event, Started):
                yield {"started": [event.num_prompt_tokens, event.context, event.seed]}
            else:
                yield {"done": write(_spent(call, event))}


def _progress(event: Progress) -> Mapping[str, Any]:
    return {"progress": [event.stage, event.done, event.total]}


def _spent(call: Call[AnswerBody], event: Done) -> Spent:
    counts = event.counts
    call.notes["prompt_tokens"], call.notes["generated_tokens"] = counts.num_prompt_tokens, counts.num_generated_tokens
    return Spent(
        counts.num_prompt_tokens,
        counts.num_cached_tokens,
        counts.num_generated_tokens,
        counts.queue_seconds,
        counts.prefill_seconds,
        counts.decode_seconds,
    )


async def _encode(call: Call[EncodeBody]) -> Response:
    call.notes["model"] = call.body.model
    async with call.server.service.using(call.body.model, call.key.id) as model:
        tokens = await directly(model).encode_chat(tuple(call.body.messages), owner_of(call))
    return json_response({"tokens": tokens})


async def _embed(call: Call[EmbedBody]) -> Response:
    body = call.body
    call.notes["model"] = body.model
    request = EmbedRequest(
        asker=call.key.id,
        request_id=call.id,
        inputs=tuple(body.texts),
        dimensions=body.dimensions,
        truncate=body.truncate,
    )
    found = await call.server.service.embed(body.model, request)
    vectors = base64.b64encode(found.vectors.astype(np.dtype("<f4")).tobytes()).decode()
    return json_response({"vectors": vectors, "num_tokens": found.num_tokens})


async def _stats(call: Call[ModelBody]) -> Response:
    async with call.server.service.using(call.body.model, call.key.id) as model:
        return json_response({"stats": await directly(model).own_stats()})


def _route(path: str, handler: Any, body: type, summary: str) -> Route:
    return Route(
        "POST", path, _naming(handler), "infer", DIRECT, summary, body=body, statuses=WORK_STATUSES, is_hidden=True
    )


ROUTES = (
    _route(MODEL_PATH, _model, ModelBody, "Loads a model and says how"),
    _route(ANSWER_PATH, _answer, AnswerBody, "Answers as the command line does"),
    _route(ENCODE_PATH, _encode, EncodeBody, "A conversation's token ids"),
    _route(EMBED_PATH, _embed, EmbedBody, "Texts to vectors"),
    _route(STATS_PATH, _stats, ModelBody, "What a model counted"),
)
