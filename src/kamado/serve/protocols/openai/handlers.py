"""OpenAI's protocol: chat, completions, embeddings, models. /v1/responses is in responses.py; GET /v1/models, which is
Anthropic's path too, in ../model_lists.py."""

from __future__ import annotations

import base64
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from ...faults import RequestError
from ...http.replies import SseTemplate, json_response, sse, stream_response, until_started, written
from ...http.routes import WORK_STATUSES, Call, Response, Route
from ...models.contract import (
    Done,
    EmbedRequest,
    Event,
    Finish,
    ReasoningDelta,
    Started,
    TextDelta,
    TokenCounts,
    TokenLogprob,
    ToolCallDelta,
    ToolCallStart,
)
from ..schemas import noted
from ..thinking import say_if_it_cannot_think
from .bodies import MAX_INPUTS, ChatBody, CompletionBody, EmbeddingBody
from .completions import completions, prompts_of
from .family import FAMILY, FINISH, SSE_DONE, keep_alive_of, new_id, note_counts, owner_of
from .requests import chat_request, hides_reasoning, thinking_parameters
from .results import (
    ChatChoice,
    ChatLogprobs,
    ChatResult,
    Chunk,
    ChunkChoice,
    DeletedResult,
    Delta,
    EmbeddingResult,
    EmbeddingsResult,
    EmbeddingUsage,
    FunctionCall,
    FunctionDelta,
    MessageResult,
    ModelsResult,
    TextResult,
    ToolCallDeltaResult,
    ToolCallResult,
    account_of,
    chat_logprobs,
    model_result,
    usage_of,
)

# --- chat -------------------------------------------------------------------------------------------------------------


async def chat(call: Call[ChatBody]) -> Response:
    """POST /v1/chat/completions."""
    body, config = call.body, call.server.config
    request = chat_request(
        body,
        owner=owner_of(call, body.prompt_cache_key or body.cache_salt),
        asker=call.key.id,
        request_id=call.id,
        max_schema_bytes=config.max_schema_bytes,
        max_image_bytes=config.max_image_bytes,
    )
    is_background = request.options.get("background", False)
    call.notes |= {"model": body.model, "background": is_background or None, "user": body.user}
    await say_if_it_cannot_think(call, body.model, request.think, *thinking_parameters(body))
    events = noted(call, call.server.service.chat(body.model, request, keep_alive=keep_alive_of(body.keep_alive)))
    if hides_reasoning(body):
        events = written(events, lambda event: () if isinstance(event, ReasoningDelta) else (event,))
    headers = {"x-kamado-lane": "background"} if is_background else {}
    if body.stream:
        include_usage = body.includes_usage or (body.usage is not None and bool(body.usage.include))
        return stream_response(_chat_chunks(call, body.model, events, request.n, include_usage), headers=headers)
    return json_response(await _chat_result(call, body.model, events, request.n), headers=headers)


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
        asker=call.key.id,
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
