"""Ollama's API: chat, generate, embed and embeddings. Models are listed, fetched and made in library.py.

Streams are lines of JSON, and a stream is the default. Durations are nanoseconds. A context that `options.num_ctx`
asks for and the model was not given is refused with both numbers; so is a prompt that does not fit, unless `truncate`
is true, and then the last line says what was left out.

Calls are objects here and come whole: one that was cut is left out of the message, for clients run every call they get,
and stands in the last line as `cut_call`, its arguments the text that had come.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

from ....errors import ModelNotFoundError
from ...faults import Fault, RequestError
from ...http.replies import NDJSON, json_response, lines_response, ndjson, written
from ...http.routes import Call, Family, Response, Route
from ...models.contract import (
    ChatRequest,
    CompletionRequest,
    Done,
    Embeddings,
    EmbedRequest,
    Event,
    Finish,
    ModelInfo,
    ReasoningDelta,
    Started,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
)
from ...models.modelfile_options import keep_alive_seconds, read_options
from ..schemas import noted
from ..thinking import say_if_it_cannot_think
from .bodies import (
    Asked,
    ChatBody,
    EmbedBody,
    EmbeddingsBody,
    GenerateBody,
    chat_request,
    generate_request,
)

_NS = 1_000_000_000


def _fault_body(fault: Fault) -> dict[str, Any]:
    message = fault.message
    if fault.param is not None and fault.param.split("[")[0].split(".")[-1] not in message:
        message = f"{fault.param}: {message}"
    return {"error": message}


FAMILY = Family(name="ollama", fault_body=_fault_body, fault_event=lambda fault: ndjson(_fault_body(fault)))


def now() -> str:
    """The time as Ollama writes it."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


async def find_model(call: Call[Any], name: str) -> ModelInfo:
    """The model of this name; clients add ":latest" to names without a tag. Raises ModelNotFoundError."""
    RequestError.when(not name, "model is missing", param="model")
    call.notes["model"] = name
    service = call.server.service
    try:
        return await service.model(name)
    except ModelNotFoundError:
        bare = name.removesuffix(":latest")
        if bare == name or not bare:
            raise
        return await service.model(bare)


class _Writer:
    """Turns a model's events into Ollama's lines. `part(text, thinking, calls)` is the field that carries content."""

    def __init__(self, name: str, part: Callable[[str, str, list[Any]], dict[str, Any]], num_ctx: int | None) -> None:
        self._name = name
        self._part = part
        self._num_ctx = num_ctx
        self._began = time.perf_counter()
        self._started: Started | None = None
        self._finish = Finish("stop")
        self._calls: dict[int, tuple[str, str, list[str]]] = {}  # id, name, pieces of the arguments

    def lines(self, event: Event) -> list[dict[str, Any]]:
        """The lines for one event."""
        if isinstance(event, Started):
            self._started = event
            RequestError.when(
                self._num_ctx is not None and event.context < self._num_ctx,
                f"options.num_ctx asks for {self._num_ctx} tokens and {self._name} was given {event.context}: ask "
                "for less, or start the server with a larger --context",
                param="options.num_ctx",
            )
        elif isinstance(event, (TextDelta, ReasoningDelta)):
            texts = (event.text, "") if isinstance(event, TextDelta) else ("", event.text)
            if event.text or event.logprobs:
                return [self._line(self._part(*texts, []), event.logprobs)]
        elif isinstance(event, ToolCallStart):
            self._calls[event.index] = (event.id, event.name, [])
        elif isinstance(event, ToolCallDelta):
            self._calls[event.index][2].append(event.arguments)
        elif isinstance(event, ToolCallEnd) and not event.is_cut:
            call_id, name, pieces = self._calls.pop(event.index)
            function = {"index": event.index, "name": name, "arguments": json.loads("".join(pieces) or "{}")}
            return [self._line(self._part("", "", [{"id": call_id, "function": function}]), ())]
        elif isinstance(event, Finish):
            self._finish = event
        elif isinstance(event, Done):
            return [self._last(event)]
        return []

    def _line(self, part: dict[str, Any], logprobs: tuple[TokenLogprob, ...]) -> dict[str, Any]:
        shown = [_logprob(item) for item in logprobs]
        return {"model": self._name, "created_at": now(), **part, "done": False, **_given(logprobs=shown)}

    def _last(self, done: Done) -> dict[str, Any]:
        counts = done.counts
        line = {
            "model": self._name,
            "created_at": now(),
            **self._part("", "", []),
            "done": True,
            "done_reason": "length" if self._finish.reason == "length" else "stop",
            "total_duration": int((time.perf_counter() - self._began) * _NS),
            "load_duration": int(counts.load_seconds * _NS),
            "prompt_eval_count": counts.num_prompt_tokens,
            "prompt_eval_duration": int(counts.prefill_seconds * _NS),
            "eval_count": counts.num_generated_tokens,
            "eval_duration": int(counts.decode_seconds * _NS),
        }
        for call_id, name, pieces in self._calls.values():  # what has not ended, or ended as cut
            line["cut_call"] = {"id": call_id, "function": {"name": name, "arguments": "".join(pieces)}}
        line |= _given(schema_violations=list(counts.violations))
        cut = self._started.truncated if self._started is not None else None
        if cut is not None:
            line["truncated"] = {"messages": cut.num_messages, "tokens": cut.num_tokens, "rule": cut.rule}
        return line


def _logprob(item: TokenLogprob) -> dict[str, Any]:
    top = [_token(text, logprob) for _, text, logprob in item.top]
    return _token(item.text, item.logprob) | _given(top_logprobs=top)


def _token(text: bytes, logprob: float) -> dict[str, Any]:
    return {"token": text.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(text)}


def _message_part(text: str, thinking: str, calls: list[Any]) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": text, **_given(thinking=thinking, tool_calls=calls)}}


def _response_part(text: str, thinking: str, calls: list[Any]) -> dict[str, Any]:
    return {"response": text, **_given(thinking=thinking, tool_calls=calls)}


def _given(**fields: Any) -> dict[str, Any]:
    """The fields that are not empty."""
    return {name: value for name, value in fields.items() if value}


async def _whole(lines: AsyncIterator[Mapping[str, Any]]) -> dict[str, Any]:
    """One answer of all lines: texts put together, the last line's figures."""
    texts: dict[str, str] = {}
    calls: list[Any] = []
    logprobs: list[Any] = []
    last: dict[str, Any] = {}
    async for line in lines:
        last = dict(line)
        part = last.get("message", last)
        for name in ("content", "response", "thinking"):
            if name in part:
                texts[name] = texts.get(name, "") + part[name]
        calls += part.get("tool_calls", [])
        logprobs += last.get("logprobs", [])
    target = last.get("message", last)
    target |= texts | _given(tool_calls=calls)
    return last | _given(logprobs=logprobs)


async def _answer(
    call: Call[Any], body: Asked, info: ModelInfo, request: ChatRequest | CompletionRequest, part: Callable[..., Any]
) -> Response:
    service = call.server.service
    keep_alive = keep_alive_seconds(body.keep_alive)
    writer = _Writer(body.model, part, request.context)
    if isinstance(request, ChatRequest):
        await say_if_it_cannot_think(call, info.name, request.think, "think")
        events = noted(call, service.chat(info.name, request, keep_alive=keep_alive))
    else:
        events = noted(call, service.complete(info.name, request, keep_alive=keep_alive))
    lines = written(events, writer.lines)
    if body.stream is False:
        async with aclosing(lines):
            return json_response(await _whole(lines))
    return lines_response(lines)


async def _load_or_unload(call: Call[Any], body: Asked, info: ModelInfo, part: dict[str, Any]) -> Response:
    """A request without a prompt loads the model, or with keep_alive 0 gives it up."""
    keep_alive = keep_alive_seconds(body.keep_alive)
    reason = "unload" if keep_alive == 0 else "load"
    if reason == "unload":
        await call.server.service.unload(info.name)
    else:
        await call.server.service.load(info.name, call.key.id, keep_alive=keep_alive)
    line = {"model": body.model, "created_at": now(), **part, "done": True, "done_reason": reason}
    return json_response(line)


async def chat(call: Call[ChatBody]) -> Response:
    """POST /api/chat."""
    body = call.body
    info = await find_model(call, body.model)
    if not body.messages:
        return await _load_or_unload(call, body, info, _message_part("", "", []))
    limit = call.server.config.max_image_bytes
    request = chat_request(body, owner=call.key.id, request_id=call.id, max_image_bytes=limit)
    return await _answer(call, body, info, request, _message_part)


async def generate(call: Call[GenerateBody]) -> Response:
    """POST /api/generate."""
    body = call.body
    info = await find_model(call, body.model)
    if not body.prompt and body.suffix is None and not body.images:
        return await _load_or_unload(call, body, info, _response_part("", "", []))
    if not info.capabilities:  # known once it was loaded
        keep_alive = keep_alive_seconds(body.keep_alive)
        info = await call.server.service.load(info.name, call.key.id, keep_alive=keep_alive)
    request = generate_request(
        body,
        can_chat="chat" in info.capabilities,
        owner=call.key.id,
        request_id=call.id,
        max_image_bytes=call.server.config.max_image_bytes,
    )
    return await _answer(call, body, info, request, _response_part)


async def _embed(call: Call[Any], inputs: Sequence[str], *, truncate: bool, dimensions: int | None) -> Embeddings:
    read_options(call.body.options)  # checked, though none of them changes an embedding
    request = EmbedRequest(
        inputs=tuple(inputs), dimensions=dimensions, truncate=truncate, asker=call.key.id, request_id=call.id
    )
    info = await find_model(call, call.body.model)
    keep_alive = keep_alive_seconds(call.body.keep_alive)
    return await call.server.service.embed(info.name, request, keep_alive=keep_alive)


async def embed(call: Call[EmbedBody]) -> Response:
    """POST /api/embed."""
    body = call.body
    inputs = [body.input] if isinstance(body.input, str) else body.input
    if not inputs:
        await find_model(call, body.model)
        return json_response({"model": body.model, "embeddings": []})
    began = time.perf_counter()
    result = await _embed(call, inputs, truncate=body.truncate is not False, dimensions=body.dimensions)
    return json_response(
        {
            "model": body.model,
            "embeddings": result.vectors.tolist(),
            "total_duration": int((time.perf_counter() - began) * _NS),
            "load_duration": int(result.load_seconds * _NS),
            "prompt_eval_count": sum(result.num_tokens),
        }
    )


async def embeddings(call: Call[EmbeddingsBody]) -> Response:
    """POST /api/embeddings."""
    result = await _embed(call, [call.body.prompt], truncate=True, dimensions=None)
    return json_response({"embedding": result.vectors[0].tolist()})


ROUTES: tuple[Route, ...] = (
    Route(
        "POST",
        "/api/chat",
        chat,
        "infer",
        FAMILY,
        "Answer a conversation (Ollama)",
        body=ChatBody,
        streams=NDJSON,
        needs_model=True,
    ),
    Route(
        "POST",
        "/api/generate",
        generate,
        "infer",
        FAMILY,
        "Continue a text (Ollama)",
        body=GenerateBody,
        needs_model=True,
        streams=NDJSON,
    ),
    Route("POST", "/api/embed", embed, "infer", FAMILY, "Embed texts (Ollama)", body=EmbedBody, needs_model=True),
    Route(
        "POST",
        "/api/embeddings",
        embeddings,
        "infer",
        FAMILY,
        "Embed one text (Ollama)",
        body=EmbeddingsBody,
        needs_model=True,
    ),
)
