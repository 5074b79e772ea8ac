"""OpenAI's protocol: chat, completions, embeddings, models. /v1/responses is in responses.py; GET /v1/models, which is
Anthropic's path too, in ../model_lists.py."""

from __future__ import annotations

import base64
import math
import secrets
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import msgspec
import numpy as np

from ...config import parse_duration
from ...faults import Fault, RequestError
from ...http.replies import SseTemplate, json_response, sse, stream_response, until_started, written
from ...http.routes import WORK_STATUSES, Call, Family, Response, Route
from ...models.contract import (
    ChatRequest,
    CompletionRequest,
    Done,
    EmbedRequest,
    Event,
    Finish,
    ModelInfo,
    PromptLogprobs,
    ReasoningDelta,
    Started,
    TextDelta,
    TokenCounts,
    TokenLogprob,
    ToolCallDelta,
    ToolCallStart,
)
from ...models.sampling import sampling_of
from ..schemas import noted
from ..thinking import say_if_it_cannot_think
from .answer_forms import form_of
from .bodies import (
    MAX_CHOICES,
    MAX_INPUTS,
    MAX_PROMPTS,
    ChatBody,
    CompletionBody,
    EmbeddingBody,
    chat_request,
    hides_reasoning,
    limit_of,
    stops_of,
    thinking_parameters,
)
from .results import (
    ChatChoice,
    ChatLogprobs,
    ChatResult,
    Chunk,
    ChunkChoice,
    ContextResult,
    DeletedResult,
    Delta,
    EmbeddingResult,
    EmbeddingsResult,
    EmbeddingUsage,
    FunctionCall,
    FunctionDelta,
    MessageResult,
    ModelResult,
    ModelsResult,
    TextChoice,
    TextLogprobs,
    TextResult,
    ToolCallDeltaResult,
    ToolCallResult,
    account_of,
    chat_logprobs,
    token_text,
    usage_of,
)

_TYPES = {
    "unauthorized": "authentication_error",
    "forbidden": "permission_error",
    "rate_limited": "rate_limit_error",
    "internal": "server_error",
    "unavailable": "server_error",
    "upstream": "server_error",
    "timeout": "server_error",
}
_DEFAULT_MAX_TOKENS = 16  # of completions, as OpenAI says
SSE_DONE = b"data: [DONE]\n\n"
FINISH = {"stop": "stop", "stop_sequence": "stop", "length": "length", "tool_calls": "tool_calls"}


def fault_body(fault: Fault) -> Mapping[str, Any]:
    """OpenAI's error object."""
    error: dict[str, Any] = {
        "message": fault.message,
        "type": _TYPES.get(fault.kind, "invalid_request_error"),
        "param": fault.param,
        "code": fault.code,
    }
    return {"error": error | dict(fault.numbers)}


# In a stream the same, as the official clients expect it.
FAMILY = Family("openai", fault_body, lambda fault: sse(fault_body(fault)), keep_alive=b": keep-alive\n\n")


def new_id(prefix: str) -> str:
    """An id that nobody can guess."""
    return f"{prefix}{secrets.token_hex(16)}"


def keep_alive_of(value: float | str | None) -> float | None:
    """Seconds; None: as the server was told."""
    return None if value is None else parse_duration(value)


# --- chat -------------------------------------------------------------------------------------------------------------


async def chat(call: Call[ChatBody]) -> Response:
    """POST /v1/chat/completions."""
    body, config = call.body, call.server.config
    request = chat_request(body, max_schema_bytes=config.max_schema_bytes, max_image_bytes=config.max_image_bytes)
    request = replace(request, owner=owner_of(call, body.prompt_cache_key or body.cache_salt), request_id=call.id)
    call.notes |= {"model": body.model, "background": request.is_background or None, "user": body.user}
    await say_if_it_cannot_think(call, body.model, request.think, *thinking_parameters(body))
    events = noted(call, call.server.service.chat(body.model, request, keep_alive=keep_alive_of(body.keep_alive)))
    if hides_reasoning(body):
        events = written(events, lambda event: () if isinstance(event, ReasoningDelta) else (event,))
    headers = {"x-kamado-lane": "background"} if request.is_background else {}
    if body.stream:
        include_usage = body.stream_options is not None and body.stream_options.include_usage
        include_usage = include_usage or (body.usage is not None and bool(body.usage.include))
        return stream_response(_chat_chunks(call, body.model, events, request.n, include_usage), headers=headers)
    return json_response(await _chat_result(call, body.model, events, request.n), headers=headers)


def owner_of(call: Call[Any], cache_key: str | None = None) -> str:
    """Whose prefixes a request may share. A cache key parts one API key's users from each other."""
    return call.key.id if not cache_key else f"{call.key.id}/{cache_key}"


@dataclass
class Answer:
    """One choice, put together."""

    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[tuple[str, str, list[str]]] = field(default_factory=list)  # id, name, pieces of arguments
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish: Finish | None = None

    def take(self, event: Event) -> None:
        """One more event of this choice."""
        if isinstance(event, TextDelta):
            self.text.append(event.text)
            self.logprobs.extend(event.logprobs)
        elif isinstance(event, ReasoningDelta):
            self.reasoning.append(event.text)
        elif isinstance(event, ToolCallStart):
            self.calls.append((event.id, event.name, []))
        elif isinstance(event, ToolCallDelta):
            self.calls[event.index][2].append(event.arguments)
        elif isinstance(event, Finish):
            self.finish = event


async def collect(events: AsyncGenerator[Event, None], num_choices: int) -> tuple[Started, list[Answer], TokenCounts]:
    """The whole of a stream."""
    answers = [Answer() for _ in range(num_choices)]
    started: Started | None = None
    counts: TokenCounts | None = None
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Started):
                started = event
            elif isinstance(event, Done):
                counts = event.counts
            elif hasattr(event, "choice"):
                answers[event.choice].take(event)
    assert started is not None
    assert counts is not None, "every stream has Started and Done"
    return started, answers, counts


def note_counts(call: Call[Any], counts: TokenCounts) -> None:
    """For the log."""
    call.notes |= {
        "prompt_tokens": counts.num_prompt_tokens,
        "cached_tokens": counts.num_cached_tokens,
        "generated_tokens": counts.num_generated_tokens,
        "queue_seconds": round(counts.queue_seconds, 4),
        "prefill_seconds": round(counts.prefill_seconds, 4),
        "decode_seconds": round(counts.decode_seconds, 4),
    }


async def _chat_result(call: Call[Any], model: str, events: AsyncGenerator[Event, None], n: int) -> ChatResult:
    started, answers, counts = await collect(events, n)
    note_counts(call, counts)
    choices = []
    for i, answer in enumerate(answers):
        text = "".join(answer.text)
        message = MessageResult(text if text or not answer.calls else None)
        if answer.reasoning:
            message.reasoning = message.reasoning_content = "".join(answer.reasoning)
        if answer.calls:
            message.tool_calls = [ToolCallResult(c[0], FunctionCall(c[1], "".join(c[2]))) for c in answer.calls]
        assert answer.finish is not None
        choices.append(
            ChatChoice(i, message, FINISH[answer.finish.reason], chat_logprobs(tuple(answer.logprobs)))  # type: ignore[arg-type]
        )
    return ChatResult(
        new_id("chatcmpl-"),
        int(time.time()),
        model,
        choices,
        usage=usage_of(counts),
        kamado=account_of(started, counts),
    )


async def _chat_chunks(
    call: Call[Any], model: str, events: AsyncGenerator[Event, None], n: int, include_usage: bool
) -> AsyncGenerator[bytes, None]:
    id_, created = new_id("chatcmpl-"), int(time.time())

    def value(choices: list[ChunkChoice], **more: Any) -> Chunk:
        if include_usage:
            more.setdefault("usage", None)
        return Chunk(id_, created, model, choices, **more)

    def chunk(choices: list[ChunkChoice], **more: Any) -> bytes:
        return sse(value(choices, **more))

    def delta(i: int, logprobs: ChatLogprobs | None = None, **fields: Any) -> bytes:
        return chunk([ChunkChoice(i, Delta(**fields), logprobs)])

    @cache
    def text_of(i: int) -> SseTemplate:
        return SseTemplate(lambda text: value([ChunkChoice(i, Delta(content=text))]))

    @cache
    def reasoning_of(i: int) -> SseTemplate:
        return SseTemplate(lambda text: value([ChunkChoice(i, Delta(reasoning_content=text, reasoning=text))]))

    async with aclosing(events):
        started = await until_started(events)
        for i in range(n):
            yield delta(i, role="assistant", content="")
        async for event in events:
            if isinstance(event, TextDelta):
                if event.logprobs:
                    yield delta(event.choice, chat_logprobs(event.logprobs), content=event.text)
                else:
                    yield text_of(event.choice).fill(event.text)
            elif isinstance(event, ReasoningDelta):
                yield reasoning_of(event.choice).fill(event.text)
            elif isinstance(event, ToolCallStart):
                first = ToolCallDeltaResult(event.index, event.id, "function", FunctionDelta(event.name, ""))
                yield delta(event.choice, tool_calls=[first])
            elif isinstance(event, ToolCallDelta):
                more = ToolCallDeltaResult(event.index, function=FunctionDelta(arguments=event.arguments))
                yield delta(event.choice, tool_calls=[more])
            elif isinstance(event, Finish):
                choice = ChunkChoice(event.choice, Delta(), finish_reason=FINISH[event.reason])  # type: ignore[arg-type]
                yield chunk([choice])
            elif isinstance(event, Done):
                note_counts(call, event.counts)
                if include_usage:
                    yield chunk([], usage=usage_of(event.counts), kamado=account_of(started, event.counts))
                elif started.truncated is not None or event.counts.violations:  # said whether it was asked for or not
                    yield chunk([], kamado=account_of(started, event.counts))
    yield SSE_DONE


# --- completions ------------------------------------------------------------------------------------------------------


async def completions(call: Call[CompletionBody]) -> Response:
    """POST /v1/completions."""
    body = call.body
    RequestError.when(
        body.stream_options is not None and not body.stream,
        "stream_options needs stream to be true",
        param="stream_options",
    )
    n = body.n or 1
    RequestError.when(
        body.best_of is not None and body.best_of != n,
        "best_of cannot be honoured unless it equals n: all answers are returned, none is dropped",
        param="best_of",
        code="unsupported_parameter",
    )
    prompts = prompts_of(body.prompt, "prompt", MAX_PROMPTS)
    RequestError.when(len(prompts) * n > MAX_PROMPTS, f"prompts times n may be {MAX_PROMPTS} at most", param="n")
    echo = bool(body.echo)
    is_limited = body.max_tokens is not None or body.n_predict is not None
    max_tokens = limit_of(body.max_tokens, body.n_predict) if is_limited else _DEFAULT_MAX_TOKENS
    RequestError.when(max_tokens == 0 and not echo, "max_tokens may be 0 only with echo", param="max_tokens")
    RequestError.when(echo and body.suffix, "echo and suffix contradict each other", param="echo")
    request = CompletionRequest(
        prompts=prompts,
        suffix=body.suffix or None,
        sampling=sampling_of(body),
        output=form_of(body, call.server.config.max_schema_bytes),
        max_tokens=max_tokens,
        stop=stops_of(body.stop),
        n=n,
        logprobs=body.logprobs,
        prompt_logprobs=(body.logprobs or 0) if echo else None,
        truncation="keep_end" if body.truncation == "auto" else "refuse",
        special=body.parse_special is not False,
        add_bos=False if body.add_special_tokens is False else None,
        is_background=bool(body.background),
        owner=owner_of(call, body.cache_salt),
        deadline_seconds=body.deadline_seconds,
        request_id=call.id,
    )
    call.notes |= {"model": body.model, "user": body.user}
    events = noted(call, call.server.service.complete(body.model, request, keep_alive=keep_alive_of(body.keep_alive)))
    include_usage = body.stream_options is not None and body.stream_options.include_usage
    chunks = _completion_chunks(call, body.model, events, request, echo)
    if body.stream:
        return stream_response(_completion_events(chunks, include_usage))
    return json_response(await _completion_whole(chunks, len(prompts) * n))


async def _completion_events(
    chunks: AsyncGenerator[TextResult, None], include_usage: bool
) -> AsyncGenerator[bytes, None]:
    async with aclosing(chunks):
        async for chunk in chunks:
            is_last = chunk.usage is not msgspec.UNSET
            if is_last and not include_usage and not _must_be_said(chunk.kamado):
                continue
            if is_last != include_usage:
                chunk.usage = msgspec.UNSET if is_last else None
            yield sse(chunk)
    yield SSE_DONE


def _must_be_said(account: ContextResult | msgspec.UnsetType) -> bool:
    """Whether it has what is said even when no account was asked for."""
    return not isinstance(account, msgspec.UnsetType) and (
        account.truncated is not None or account.schema_violations is not msgspec.UNSET
    )


async def _completion_whole(chunks: AsyncGenerator[TextResult, None], num_choices: int) -> TextResult:
    whole: TextResult | None = None
    choices = [TextChoice(i, "") for i in range(num_choices)]
    async with aclosing(chunks):
        async for chunk in chunks:
            for more in chunk.choices:
                choice = choices[more.index]
                choice.text += more.text
                choice.finish_reason = more.finish_reason or choice.finish_reason
                if choice.logprobs is None:
                    choice.logprobs = more.logprobs
                elif more.logprobs is not None:
                    _extend(choice.logprobs, more.logprobs)
            whole = chunk
    assert whole is not None
    whole.choices = choices
    return whole


def _extend(all_: TextLogprobs, more: TextLogprobs) -> None:
    for name in TextLogprobs.__struct_fields__:
        if (column := getattr(all_, name)) is not None:  # `top_logprobs` may be left out, in all of them
            column += getattr(more, name)


async def _completion_chunks(
    call: Call[Any], model: str, events: AsyncGenerator[Event, None], request: CompletionRequest, echo: bool
) -> AsyncGenerator[TextResult, None]:
    """One result an event; the last has the usage and no choice."""
    id_, created = new_id("cmpl-"), int(time.time())
    offsets = [0] * (len(request.prompts) * request.n)

    def chunk(choice: TextChoice) -> TextResult:
        return TextResult(id_, created, model, [choice])

    async with aclosing(events):
        started = await until_started(events)
        if echo and request.logprobs is None:
            echoed = await _echoed(call, model, request)
            for i, text in enumerate(echoed):
                offsets[i] += len(text)
                yield chunk(TextChoice(i, text))
        async for event in events:
            if isinstance(event, PromptLogprobs):
                if request.logprobs is not None:
                    text = b"".join(t.text for t in event.tokens).decode("utf-8", "replace")
                    logprobs = _text_logprobs(event.tokens, request.logprobs, offsets[event.choice])
                    offsets[event.choice] += len(text)
                    yield chunk(TextChoice(event.choice, text, logprobs))
            elif isinstance(event, TextDelta):
                top = request.logprobs
                new = None if top is None else _text_logprobs(event.logprobs, top, offsets[event.choice])
                offsets[event.choice] += len(event.text)
                yield chunk(TextChoice(event.choice, event.text, new))
            elif isinstance(event, Finish):
                yield chunk(TextChoice(event.choice, "", None, FINISH[event.reason]))  # type: ignore[arg-type]
            elif isinstance(event, Done):
                note_counts(call, event.counts)
                yield TextResult(
                    id_,
                    created,
                    model,
                    [],
                    usage=usage_of(event.counts),
                    kamado=account_of(started, event.counts),
                )


async def _echoed(call: Call[Any], model: str, request: CompletionRequest) -> list[str]:
    """The prompts as text, one a choice."""
    texts: list[str] = []
    async with call.server.service.using(model, request.owner) as served:
        for prompt in request.prompts:
            texts += [prompt if isinstance(prompt, str) else await served.detokenize(prompt)] * request.n
    return texts


def _text_logprobs(tokens: tuple[TokenLogprob, ...], num_top: int, offset: int) -> TextLogprobs:
    texts, offsets = [], []
    for token in tokens:
        texts.append(token_text(token.text))
        offsets.append(offset)
        offset += len(token.text.decode("utf-8", "replace"))
    top: list[dict[str, float] | None] | None = None
    if num_top:
        top = [None if math.isnan(t.logprob) else {token_text(data): value for _, data, value in t.top} for t in tokens]
    return TextLogprobs(texts, [None if math.isnan(t.logprob) else t.logprob for t in tokens], top, offsets)


def prompts_of(value: Any, param: str, limit: int) -> tuple[str | tuple[int, ...], ...]:
    """One text, texts, token ids, or lists of them. Raises RequestError for anything else."""
    if isinstance(value, str):
        return (value,)
    RequestError.when(
        not isinstance(value, list) or not value,
        f"{param} must be text, token ids, or a list of either, and not empty",
        param=param,
    )
    if _is_ids(value):
        return (tuple(value),)
    RequestError.when(len(value) > limit, f"{param} has {len(value)} items, more than {limit}", param=param)
    items: list[str | tuple[int, ...]] = []
    for i, item in enumerate(value):
        if isinstance(item, str):
            items.append(item)
        elif isinstance(item, list) and item and _is_ids(item):
            items.append(tuple(item))
        else:
            raise RequestError(f"{param}[{i}] must be text or token ids, and not empty", param=f"{param}[{i}]")
    return tuple(items)


def _is_ids(items: list[Any]) -> bool:
    # The types first, all at once: a list may have a million.
    return set(map(type, items)) == {int} and min(items) >= 0 and max(items) < 1 << 31


# --- embeddings and models --------------------------------------------------------------------------------------------


async def embeddings(call: Call[EmbeddingBody]) -> Response:
    """POST /v1/embeddings."""
    body = call.body
    inputs = prompts_of(body.input, "input", MAX_INPUTS)
    RequestError.when(any(item == "" for item in inputs), "input must not be empty text", param="input")
    request = EmbedRequest(
        inputs=inputs,
        dimensions=body.dimensions,
        truncate=bool(body.truncate),
        owner=owner_of(call),
        request_id=call.id,
    )
    call.notes |= {"model": body.model, "inputs": len(inputs), "user": body.user}
    result = await call.server.service.embed(body.model, request, keep_alive=keep_alive_of(body.keep_alive))
    vectors = np.ascontiguousarray(result.vectors, dtype="<f4")
    is_base64 = body.encoding_format == "base64"
    data = [
        EmbeddingResult(i, base64.b64encode(row.tobytes()).decode("ascii") if is_base64 else row.tolist())
        for i, row in enumerate(vectors)
    ]
    num_tokens = sum(result.num_tokens)
    return json_response(EmbeddingsResult(data, body.model, EmbeddingUsage(num_tokens, num_tokens)))


def model_result(info: ModelInfo, is_loaded: bool) -> ModelResult:
    """A model as OpenAI lists it, with what one wants to know of it."""
    return ModelResult(
        id=info.name,
        created=info.created,
        context_length=info.context or info.max_context or None,
        max_context_length=info.max_context or None,
        capabilities=sorted(info.capabilities),
        size_bytes=info.nbytes,
        quantization=info.quantization,
        is_loaded=is_loaded,
    )


async def list_models(call: Call[None]) -> Response:
    """GET /v1/models in OpenAI's shape."""
    for name in call.query:
        RequestError.when(name != "beta", "for clients with an anthropic-version header only", param=name)
    service = call.server.service
    return json_response(ModelsResult([model_result(m, service.is_loaded(m.name)) for m in await service.models()]))


async def get_model(call: Call[None]) -> Response:
    """GET /v1/models/{model} in OpenAI's shape."""
    service = call.server.service
    info = await service.model(call.path["model"])
    return json_response(model_result(info, service.is_loaded(info.name)))


async def delete_model(call: Call[None]) -> Response:
    """DELETE /v1/models/{model}: the file too."""
    service = call.server.service
    info = await service.model(call.path["model"])
    await service.unload(info.name)
    await service.library.delete(info.name)
    return json_response(DeletedResult(info.name))


ROUTES = [
    Route(
        "POST", "/v1/chat/completions", chat, "infer", FAMILY, "Answer a conversation.", ChatBody, ChatResult,
        streams="text/event-stream", statuses=WORK_STATUSES, needs_model=True,
    ),
    Route(
        "POST", "/v1/completions", completions, "infer", FAMILY, "Continue a text.", CompletionBody, TextResult,
        streams="text/event-stream", statuses=WORK_STATUSES, needs_model=True,
    ),
    Route(
        "POST", "/v1/embeddings", embeddings, "infer", FAMILY, "Embed texts.", EmbeddingBody, EmbeddingsResult,
        statuses=WORK_STATUSES, needs_model=True,
    ),
    Route(
        "DELETE", "/v1/models/{model:path}", delete_model, "delete", FAMILY, "Remove a model and its file.",
        result=DeletedResult, statuses=(404,),
    ),
]  # fmt: skip

__all__ = ["FAMILY", "MAX_CHOICES", "ROUTES", "Answer", "ChatRequest", "collect", "new_id", "owner_of"]
