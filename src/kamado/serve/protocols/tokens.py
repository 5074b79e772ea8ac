"""Tokens of a text and back: /tokenize and /detokenize, in llama.cpp's shape and in vLLM's.

{"content": …}           →  {"tokens": […]}                    {"tokens": […]}           →  {"content": …}
{"model": …, "prompt": …} →  {"count", "max_model_len", …}      {"model": …, "tokens": …} →  {"prompt": …} too
"""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct

from ..faults import RequestError
from ..http.replies import json_response
from ..http.routes import WORK_STATUSES, Call, Response, Route
from .openai.bodies import ModelName, TokenId
from .openai.family import FAMILY


class TokenizeBody(Struct, kw_only=True, forbid_unknown_fields=True):
    """POST /tokenize."""

    model: ModelName
    content: str | None = None  # llama.cpp's name
    prompt: str | None = None  # vLLM's
    add_special: bool | None = None  # what the model wants before a text; false where `content` is, as in llama.cpp
    add_special_tokens: bool | None = None  # the same; true where `prompt` is, as in vLLM
    parse_special: bool | None = None  # true: special tokens written in the text become their ids
    with_pieces: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeBody(Struct, kw_only=True, forbid_unknown_fields=True):
    """POST /detokenize."""

    model: ModelName
    tokens: Annotated[list[TokenId], Meta(max_length=1 << 22)]


async def tokenize(call: Call[TokenizeBody]) -> Response:
    """POST /tokenize."""
    body = call.body
    call.notes["model"] = body.model
    RequestError.when(
        (body.content is None) == (body.prompt is None), "give the text as content or as prompt", param="content"
    )
    text = body.content if body.content is not None else body.prompt or ""
    given = body.add_special if body.add_special is not None else body.add_special_tokens
    add_special = given if given is not None else body.prompt is not None
    async with call.server.service.using(body.model, call.key.id) as model:
        tokens = await model.tokenize(
            text, special=body.parse_special is not False, add_bos=None if add_special else False
        )
        pieces = await model.pieces(tokens) if body.with_pieces or body.return_token_strs else []
        context = model.info.context
    answer: dict[str, Any] = {"tokens": tokens}
    if body.with_pieces:
        answer["tokens"] = [{"id": token, "piece": _piece(p)} for token, p in zip(tokens, pieces, strict=True)]
    if body.prompt is not None:
        answer = {"count": len(tokens), "max_model_len": context, **answer}
    if body.return_token_strs:
        answer["token_strs"] = [piece.decode("utf-8", "replace") for piece in pieces]
    return json_response(answer)


def _piece(piece: bytes) -> str | list[int]:
    """Text, or its bytes where a token ends inside a character: llama.cpp's way."""
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError:
        return list(piece)


async def detokenize(call: Call[DetokenizeBody]) -> Response:
    """POST /detokenize."""
    body = call.body
    call.notes["model"] = body.model
    async with call.server.service.using(body.model, call.key.id) as model:
        text = await model.detokenize(body.tokens)
    return json_response({"content": text, "prompt": text})


ROUTES = [
    Route(
        "POST", "/tokenize", tokenize, "infer", FAMILY, "Token ids of a text.", TokenizeBody, dict[str, Any],
        statuses=WORK_STATUSES, needs_model=True,
    ),
    Route(
        "POST", "/detokenize", detokenize, "infer", FAMILY, "The text of token ids.", DetokenizeBody, dict[str, Any],
        statuses=WORK_STATUSES, needs_model=True,
    ),
]  # fmt: skip
