"""OpenAI's /v1/completions: texts to continue as they are."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec

from ...faults import RequestError
from ...http.replies import json_response, sse, stream_response, until_started
from ...http.routes import Call, Response
from ...models.answer_options import body_options
from ...models.contract import CompletionRequest, Done, Event, Finish, PromptLogprobs, TextDelta, TokenLogprob
from ..schemas import noted
from .answer_forms import form_of
from .bodies import MAX_PROMPTS, CompletionBody
from .family import FINISH, SSE_DONE, keep_alive_of, new_id, note_counts, owner_of
from .requests import check_stream_options, limit_of, stops_of
from .results import ContextResult, TextChoice, TextLogprobs, TextResult, account_of, token_text, usage_of

_DEFAULT_MAX_TOKENS = 16  # of completions, as OpenAI says


async def completions(call: Call[CompletionBody]) -> Response:
    """POST /v1/completions."""
    body = call.body
    check_stream_options(body)
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
    max_tokens = limit_of(body.max_tokens, body.n_predict, least=0)
    RequestError.when(max_tokens == 0 and not echo, "max_tokens may be 0 only with echo", param="max_tokens")
    RequestError.when(echo and body.suffix, "echo and suffix contradict each other", param="echo")
    request = CompletionRequest(
        prompts=prompts,
        suffix=body.suffix or None,
        options=body_options(
            body,
            max_tokens=max_tokens or None,
            stop=stops_of(body.stop),
            logprobs=body.logprobs,
            background=bool(body.background),
            owner=owner_of(call, body.cache_salt),
        ),
        output=form_of(body, call.server.config.max_schema_bytes),
        n=n,
        prompt_logprobs=(body.logprobs or 0) if echo else None,
        is_scored_only=max_tokens == 0,
        usual_tokens=_DEFAULT_MAX_TOKENS,
        truncation="keep_end" if body.truncation == "auto" else "refuse",
        special=body.parse_special is not False,
        add_bos=False if body.add_special_tokens is False else None,
        deadline_seconds=body.deadline_seconds,
        asker=call.key.id,
        request_id=call.id,
    )
    call.notes |= {"model": body.model, "user": body.user}
    events = noted(call, call.server.service.complete(body.model, request, keep_alive=keep_alive_of(body.keep_alive)))
    chunks = _completion_chunks(call, events, request)
    if body.stream:
        return stream_response(_completion_events(chunks, body.includes_usage))
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
    call: Call[CompletionBody], events: AsyncGenerator[Event, None], request: CompletionRequest
) -> AsyncGenerator[TextResult, None]:
    """One result an event; the last has the usage and no choice."""
    model, num_top = call.body.model, call.body.logprobs
    id_, created = new_id("cmpl-"), int(time.time())
    offsets = [0] * (len(request.prompts) * request.n)

    def chunk(choice: TextChoice) -> TextResult:
        return TextResult(id_, created, model, [choice])

    async with aclosing(events):
        started = await until_started(events)
        if call.body.echo and num_top is None:
            echoed = await _echoed(call, model, request)
            for i, text in enumerate(echoed):
                offsets[i] += len(text)
                yield chunk(TextChoice(i, text))
        async for event in events:
            if isinstance(event, PromptLogprobs):
                if num_top is not None:
                    text = b"".join(t.text for t in event.tokens).decode("utf-8", "replace")
                    logprobs = _text_logprobs(event.tokens, num_top, offsets[event.choice])
                    offsets[event.choice] += len(text)
                    yield chunk(TextChoice(event.choice, text, logprobs))
            elif isinstance(event, TextDelta):
                new = None if num_top is None else _text_logprobs(event.logprobs, num_top, offsets[event.choice])
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
    async with call.server.service.using(model, request.asker) as served:
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
