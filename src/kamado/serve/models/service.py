"""What protocol families call: models by name, each loaded when it is first used, in a bounded queue.

Everything here runs on the server's event loop; only ServedModels know threads.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter as CountOf
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import TypeVar

from ...errors import ClosedError, ModelNotFoundError
from ..metrics import TOKEN_BUCKETS, Registry
from .contract import (
    ChatRequest,
    CompletionRequest,
    DeadlineError,
    Done,
    Embeddings,
    EmbedRequest,
    Event,
    Finish,
    Library,
    LoadedModel,
    Loader,
    LoadOptions,
    ModelInfo,
    OverloadedError,
    Progress,
    ServedModel,
    Started,
)
from .direct import AnswerRequest, PieceEvent, directly
from .pool import ModelPool

Request = TypeVar("Request", ChatRequest, CompletionRequest, AnswerRequest)
Own = TypeVar("Own", Event, Started | Progress | PieceEvent | Done)

_FIRST_GUESS_SECONDS = 5.0  # of a request, before one was seen


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of the queue. Seconds; 0: no deadline."""

    max_requests: int = 256
    max_requests_per_key: int | None = None  # of one asker
    deadline: float = 0.0
    stall: float = 120.0  # work without an event for so long is reported by /health


class Service:
    """Models, by name, for any number of requests at once."""

    def __init__(
        self,
        library: Library,
        loader: Loader,
        *,
        keep_alive: float = 300.0,
        limits: Limits | None = None,
        memory_bytes: int | None = None,
        load_wait: float = 120.0,
        aliases: Mapping[str, str] | None = None,
        metrics: Registry | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.library = library
        self._limits = limits or Limits()
        self._aliases = dict(aliases or {})
        self._clock = clock
        self.num_active = 0  # requests that run or wait
        self._num_by_asker: CountOf[str] = CountOf()
        self._request_seconds = _FIRST_GUESS_SECONDS
        self._is_closed = False
        self._last_event = clock()
        metrics = metrics or Registry()
        self.pool = ModelPool(
            library, loader, memory_bytes=memory_bytes, keep_alive=keep_alive, load_wait=load_wait, metrics=metrics
        )
        labels = ("model",)
        self._prompt_tokens = metrics.counter("kamado_prompt_tokens_total", "Tokens of prompts.", labels)
        self._cached_tokens = metrics.counter(
            "kamado_cached_prompt_tokens_total", "Tokens of prompts that were found in the cache.", labels
        )
        self._generated_tokens = metrics.counter("kamado_generated_tokens_total", "Tokens that were generated.", labels)
        self._refused = metrics.counter("kamado_requests_refused_total", "Requests that found the queue full.")
        self._cancelled = metrics.counter("kamado_requests_cancelled_total", "Requests whose client left.", labels)
        self._first = metrics.histogram(
            "kamado_time_to_first_token_seconds", "From the request to its first content.", labels=labels
        )
        self._seconds = metrics.histogram("kamado_generation_seconds", "From the request to its end.", labels=labels)
        self._lengths = metrics.histogram(
            "kamado_prompt_length_tokens", "Length of prompts.", buckets=TOKEN_BUCKETS, labels=labels
        )
        metrics.gauge("kamado_requests_active", "Requests that run or wait.", lambda: [((), float(self.num_active))])

    # --- what is there ------------------------------------------------------------------------------------------------

    def real_name(self, name: str) -> str:
        """The name that an alias stands for."""
        return self._aliases.get(name, name)

    async def models(self, *, with_aliases: bool = True) -> Sequence[ModelInfo]:
        """All models of the library, loaded ones exact, and aliases under their own names."""
        infos = [self._exact(info) for info in await self.library.list()]
        if not with_aliases:
            return infos
        taken = {info.name for info in infos}
        for alias, name in sorted(self._aliases.items()):
            if alias not in taken:
                with suppress(ModelNotFoundError):
                    infos.append(replace(self._exact(await self.library.get(name)), name=alias))
        return infos

    def is_loaded(self, name: str) -> bool:
        """Whether a model, or the one that an alias stands for, is in memory."""
        return self.pool.is_ready(self.real_name(name))

    async def model(self, name: str) -> ModelInfo:
        """One of them. Raises ModelNotFoundError."""
        return self._exact(await self.library.get(self.real_name(name)))

    def _exact(self, info: ModelInfo) -> ModelInfo:
        """What loading showed of a model, unless its file was replaced since."""
        slot = self.pool.find(info.name)
        if slot is None or slot.model is None or slot.version != info.version:
            return info
        return slot.model.info

    def loaded(self) -> list[LoadedModel]:
        """Models in memory."""
        return self.pool.loaded()

    async def load(
        self,
        name: str,
        asker: str = "",
        *,
        keep_alive: float | None = None,
        pinned: bool = False,
        options: LoadOptions | None = None,
    ) -> ModelInfo:
        """Loads a model without a request. `keep_alive` math.inf: for ever. `pinned`: only unload() ends it."""
        use = self.pool.use(self.real_name(name), keep_alive=keep_alive, pinned=pinned, options=options)
        async with self._admitted(asker), use as model:
            return model.info

    async def unload(self, name: str) -> bool:
        """Unloads a model as soon as nothing runs on it; False when it was not loaded."""
        info = await self.library.get(self.real_name(name))
        return await self.pool.unload(info.name)

    # --- work ---------------------------------------------------------------------------------------------------------

    def chat(self, name: str, request: ChatRequest, *, keep_alive: float | None = None) -> AsyncGenerator[Event, None]:
        """Answers a conversation; see contract.py for the rules of the stream."""
        return self._stream(name, request, lambda model, own: model.chat(own), keep_alive)

    def complete(
        self, name: str, request: CompletionRequest, *, keep_alive: float | None = None
    ) -> AsyncGenerator[Event, None]:
        """Continues texts."""
        return self._stream(name, request, lambda model, own: model.complete(own), keep_alive)

    def answer(self, name: str, request: AnswerRequest) -> AsyncGenerator[Started | Progress | PieceEvent | Done, None]:
        """Answers a call of the command line; see direct.py."""
        return self._stream(name, request, lambda model, own: directly(model).answer(own), None)

    async def embed(self, name: str, request: EmbedRequest, *, keep_alive: float | None = None) -> Embeddings:
        """Embeds texts."""
        deadline = self._deadline(request.deadline_seconds)
        async with self._admitted(request.asker):
            began, was_ready = self._clock(), self.is_loaded(name)
            try:
                async with (
                    asyncio.timeout_at(deadline),
                    self.pool.use(self.real_name(name), keep_alive=keep_alive) as model,
                ):
                    load_seconds = 0.0 if was_ready else self._clock() - began
                    result = replace(await model.embed(request), load_seconds=load_seconds)
            except TimeoutError:
                raise _late(request.deadline_seconds or self._limits.deadline) from None
            self._prompt_tokens.add(sum(result.num_tokens), model.info.name)
            return result

    async def count_chat_tokens(self, name: str, request: ChatRequest) -> int:
        """Tokens of the prompt that `chat` would compute. Loads the model when needed."""
        async with self._admitted(request.asker), self.pool.use(self.real_name(name)) as model:
            return await model.count_chat_tokens(request)

    @asynccontextmanager
    async def using(self, name: str, asker: str, *, keep_alive: float | None = None) -> AsyncIterator[ServedModel]:
        """The model itself, for tokenize and the like; it stays loaded inside the block."""
        async with self._admitted(asker), self.pool.use(self.real_name(name), keep_alive=keep_alive) as model:
            yield model

    async def _stream(
        self,
        name: str,
        request: Request,
        start: Callable[[ServedModel, Request], AsyncGenerator[Own, None]],
        keep_alive: float | None,
    ) -> AsyncGenerator[Own | Progress | Done, None]:
        began = self._clock()
        deadline = self._deadline(request.deadline_seconds)
        limit = request.deadline_seconds or self._limits.deadline
        async with self._admitted(request.asker):
            use = self.pool.use(self.real_name(name), keep_alive=keep_alive)
            load_seconds, asked = 0.0, self._clock()
            was_ready = self.is_loaded(name)
            if not was_ready:
                yield Progress("loading", 0, 1)
            try:
                async with asyncio.timeout_at(deadline):
                    model = await use.__aenter__()
            except TimeoutError:
                raise _late(limit) from None
            if not was_ready:
                load_seconds = self._clock() - asked
            label = model.info.name
            is_done, has_content = False, False
            try:
                async with aclosing(start(model, request)) as events:
                    while True:
                        try:
                            if deadline is None:
                                event = await anext(events)
                            else:
                                async with asyncio.timeout_at(deadline):
                                    event = await anext(events)
                        except StopAsyncIteration:
                            break
                        except TimeoutError:
                            raise _late(limit) from None
                        self._last_event = now = self._clock()
                        if isinstance(event, Done):
                            event = Done(replace(event.counts, load_seconds=load_seconds))
                            is_done = True
                            self._count(label, event, now - began)
                        elif not has_content and not isinstance(event, (Started, Progress, Finish)):
                            has_content = True
                            self._first.observe(now - began, label)
                        yield event
            except ClosedError:
                if self._is_closed:
                    raise ClosedError("the server is going down") from None
                raise
            finally:
                if not is_done:
                    self._cancelled.add(1, label)
                await use.__aexit__(None, None, None)

    def _count(self, label: str, event: Done, seconds: float) -> None:
        counts = event.counts
        self._prompt_tokens.add(counts.num_prompt_tokens, label)
        self._cached_tokens.add(counts.num_cached_tokens, label)
        self._generated_tokens.add(counts.num_generated_tokens, label)
        self._lengths.observe(counts.num_prompt_tokens, label)
        self._seconds.observe(seconds, label)
        self._request_seconds += 0.1 * (seconds - self._request_seconds)

    def _deadline(self, own: float | None) -> float | None:
        """When a request ends, on the event loop's clock."""
        limits = [seconds for seconds in (own, self._limits.deadline) if seconds]
        return asyncio.get_running_loop().time() + min(limits) if limits else None

    @asynccontextmanager
    async def _admitted(self, asker: str) -> AsyncIterator[None]:
        """A place in the queue. `asker` "": the server itself, which has no limit. Raises OverloadedError when there is
        none."""
        ClosedError.when(self._is_closed, "the server is going down")
        limits = self._limits
        if self.num_active >= limits.max_requests:
            self._refused.add()
            raise OverloadedError(
                f"{self.num_active} requests run or wait, and that is the limit: try again later",
                retry_after=self.retry_after,
            )
        most = limits.max_requests_per_key
        if asker and most and self._num_by_asker[asker] >= most:
            self._refused.add()
            raise OverloadedError(
                f"{self._num_by_asker[asker]} requests of this API key run or wait, and that is the limit for one key",
                retry_after=self.retry_after,
            )
        if self.num_active == 0:
            self._last_event = self._clock()  # nothing was due while there was no work
        self.num_active += 1
        self._num_by_asker[asker] += 1
        try:
            yield
        finally:
            self.num_active -= 1
            self._num_by_asker[asker] -= 1
            if not self._num_by_asker[asker]:
                del self._num_by_asker[asker]

    # --- operations ---------------------------------------------------------------------------------------------------

    def configure(self, *, limits: Limits, aliases: Mapping[str, str], keep_alive: float, load_wait: float) -> None:
        """Other settings for what comes from now on; what runs keeps its own."""
        self._limits = limits
        self._aliases = dict(aliases)
        self.pool.configure(keep_alive=keep_alive, load_wait=load_wait)

    @property
    def retry_after(self) -> float:
        """Seconds until a place is likely to be free, from how long requests took lately."""
        return min(120.0, max(1.0, self._request_seconds * max(1.0, self.num_active / 32)))

    @property
    def stalled_seconds(self) -> float:
        """For how long nothing came of work that is under way; 0 when there is none, or a model is being loaded."""
        if self.num_active == 0 or self.pool.is_loading:
            return 0.0
        silent = self._clock() - self._last_event
        return silent if silent > self._limits.stall else 0.0

    async def close(self) -> None:
        """Ends every stream with ClosedError and unloads all models. May be called again."""
        self._is_closed = True
        await self.pool.close()


def _late(seconds: float) -> DeadlineError:
    return DeadlineError(f"the answer was not complete after {seconds:g} seconds, the deadline of this request")
