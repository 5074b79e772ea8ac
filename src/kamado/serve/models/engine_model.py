"""The engine as the server sees it: `kamado.load`ed models behind the contract of contract.py."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ... import TextEvents
from ...errors import BusyError, ClosedError, ContextOverflowError, KamadoError, UsageError
from ...isolated import WorkerNeededError, without_worker
from ...options import MAX_SEED
from .bridge import PrefillProgress, begun, merge
from .completions import around_gap, insert_marks
from .contract import (
    AnswerOptions,
    Capability,
    ChatRequest,
    CompletionRequest,
    Done,
    Embeddings,
    EmbedRequest,
    Event,
    Finish,
    Message,
    ModelInfo,
    OutputFormat,
    PromptLogprobs,
    Recipe,
    Started,
    TextPart,
    Truncated,
)
from .direct import DirectAnswers, counts_of
from .loader import shared_bytes
from .modelfile_options import Options, recipe_options
from .prompt_limits import (
    MOST_COUNTED_CHARACTERS,
    FarTooLongError,
    check_length,
    most_characters,
    most_prompt_tokens,
    size_of,
    without_oldest,
    worth_counting,
)
from .schema_header import schema_header
from .slow_work import SlowWork
from .weights import Weights

if TYPE_CHECKING:
    from ... import AnswerEvents, Form, Model, Turn
    from ... import PromptLogprobs as ScoredPrompt

T = TypeVar("T")
Wish = TypeVar("Wish", ChatRequest, CompletionRequest)

# What a turn takes of a request, under the same names.
_OF_TURNS = ("tools", "tool_choice", "output", "think", "continue_last", "template_options", "owner")
# Templates and tokenizers hold the GIL for most of their work: more threads would only wait for each other.
_NUM_THREADS = 2


class EngineModel(DirectAnswers):
    """One loaded model; contract.py's ServedModel."""

    def __init__(
        self,
        model: Model,
        info: ModelInfo,
        recipe: Recipe | None = None,
        weights: Weights | None = None,
        *,
        path: Path | None = None,
    ) -> None:
        """`info` as the library has it; `weights`: that the model is of, which others may use too; `path`: its file.

        Proves the chat format, which takes some milliseconds, and seconds for a template that needs the worker process:
        not for the loop. Raises ClosedError when the weights are gone, BusyError when the worker has no turn.
        """
        self._model = model
        self._path = path
        self._weights = weights or Weights(model)
        self._recipe = recipe
        self._defaults = Options() if recipe is None else recipe_options(recipe.parameters)
        self._threads = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="kamado-serve")
        self._slow = SlowWork("kamado-serve-slow")
        self._marks = insert_marks(model) if model.has_tokenizer else None
        self._is_closed = False
        ClosedError.when(not self._weights.join(self), "the model was closed")
        try:
            self.info = replace(info, context=model.context, capabilities=self._capabilities(info))
        except BaseException:
            self._weights.leave(self)
            raise

    @property
    def memory_bytes(self) -> int:
        """See contract.py. 0 for a model that uses another's weights."""
        plan = self._model.plan
        return plan.peak_bytes - shared_bytes(plan) if self._weights.is_payer(self) else 0

    def _capabilities(self, info: ModelInfo) -> frozenset[Capability]:
        if "embedding" in info.capabilities and "completion" not in info.capabilities:
            return info.capabilities
        shown: dict[Capability, bool] = {
            "completion": True,
            "insert": self._marks is not None,
            "embedding": "embedding" in info.capabilities,
        }
        return frozenset(name for name, has in (shown | self._chat_capabilities()).items() if has)

    def _chat_capabilities(self) -> dict[Capability, bool]:
        if not self._model.has_chat_template:
            return {}
        try:
            chat = self._model.chat_format
        except BusyError:  # says nothing of the model
            raise
        except KamadoError:
            return {}
        return {"chat": True, "tools": chat.tools is not None, "thinking": chat.tags is not None}

    # --- chat ---------------------------------------------------------------------------------------------------------

    async def chat(self, request: ChatRequest) -> AsyncGenerator[Event, None]:
        """See contract.py."""
        UsageError.when(
            any(not isinstance(part, TextPart) for message in request.messages for part in message.parts),
            f"{self.info.name} cannot see pictures",
        )
        request = self._with_recipe(self._with_options(request))
        context = min(request.context or self.info.context, self.info.context)
        turn, truncated = await self._in_thread(partial(self._prepare, request, context))
        seed = _first_seed(request)
        num_prompt = len(turn.tokens)
        sources = begun(
            self._model.chat(turn, choice=i, **_options(request, num_prompt, context, seed + i))
            for i in range(request.n)
        )
        yield Started(len(turn.tokens), context, truncated, seed, schema_header(turn.schemas))
        progress = PrefillProgress(lambda: sources[0].num_computed_tokens, len(turn.tokens))
        events: AsyncGenerator[Event, None] = merge(sources, progress)
        async with aclosing(events):
            async for event in events:
                yield event
        num_reasoning = sum(source.num_reasoning_tokens for source in sources)
        yield Done(counts_of([source.usage for source in sources], len(turn.tokens), num_reasoning))

    def _with_options(self, request: Wish) -> Wish:
        """The recipe's options where the request says none."""
        options: AnswerOptions = {**self._defaults.answer, **request.options}
        return replace(request, options=options, context=request.context or self._defaults.context)

    def _with_recipe(self, request: ChatRequest) -> ChatRequest:
        """What the recipe says before the request's messages."""
        recipe = self._recipe
        if recipe is None:
            return request
        messages = request.messages
        if recipe.messages:
            messages = (*recipe.messages, *messages)
        if recipe.system and not any(message.role == "system" for message in request.messages):
            messages = (Message("system", (TextPart(recipe.system),)), *messages)
        return replace(request, messages=messages)

    def _prepare(self, request: ChatRequest, context: int) -> tuple[Turn, Truncated | None]:
        """The prompt, messages left out as the request allows. On a thread."""
        from_middle = request.truncation == "drop_middle"
        kept, num_uncounted = worth_counting(request, context)
        most_tokens = context if request.truncation == "refuse" else None
        turn = self._turn(request, tuple(kept), most_tokens)
        num_tokens = len(turn.tokens)
        if num_tokens < context and len(kept) == len(request.messages):
            return turn, None
        if request.truncation == "refuse":
            raise ContextOverflowError(num_tokens, context)
        limit = most_prompt_tokens(request, context)
        size = num_tokens
        while size > limit:
            shorter = without_oldest(kept, size - limit, size, from_middle=from_middle)
            if shorter is None:
                raise ContextOverflowError(size, context)
            kept = shorter
            turn = self._turn(request, tuple(kept))
            size = len(turn.tokens)
        num_left_out = len(request.messages) - len(kept)
        return turn, Truncated(num_left_out, num_uncounted + num_tokens - size, request.truncation)

    def _turn(self, request: ChatRequest, messages: tuple[Message, ...], most_tokens: int | None = None) -> Turn:
        given = {name: getattr(request, name) for name in _OF_TURNS}
        return self._model.prepare_chat(messages, **given, most_tokens=most_tokens)

    async def count_chat_tokens(self, request: ChatRequest) -> int:
        """See contract.py."""
        request = self._with_recipe(request)
        check_length(sum(size_of(message) for message in request.messages), MOST_COUNTED_CHARACTERS)
        turn = await self._in_thread(partial(self._turn, request, request.messages))
        return len(turn.tokens)

    # --- completions --------------------------------------------------------------------------------------------------

    async def complete(self, request: CompletionRequest) -> AsyncGenerator[Event, None]:
        """See contract.py."""
        request = self._with_options(request)
        if "max_tokens" not in request.options:
            request = replace(request, options={**request.options, "max_tokens": request.usual_tokens})
        context = min(request.context or self.info.context, self.info.context)
        most = most_characters(context)
        if request.truncation == "keep_end":  # what is far too long is cut before its tokens are counted
            kept = tuple(text[-most:] if isinstance(text, str) else text for text in request.prompts)
            request = replace(request, prompts=kept)
        for text in (*request.prompts, request.suffix or ""):
            if isinstance(text, str) and len(text) > most:
                raise FarTooLongError(len(text), context)
        prompts, cut, form = await self._in_thread(partial(self._prompts, request, context))
        num_prompt = sum(map(len, prompts))
        seed = _first_seed(request)
        truncated = Truncated(0, cut, "keep_end") if cut else None
        # First, so that what it computes is not computed again for the answers.
        scored = await self._score(prompts, request)
        sources: list[AnswerEvents] = []
        try:
            if not request.is_scored_only:
                sources = self._start(request, prompts, context, seed, form)
            schema = form.schema if form is not None and request.output.kind == "json_schema" else None
            schemas = {} if schema is None else {"": schema}
            yield Started(num_prompt, context, truncated, seed, schema_header(schemas))
            for p, found in enumerate(scored):
                for i in range(request.n):
                    yield PromptLogprobs(found.tokens, p * request.n + i)
            if not sources:
                for choice in range(len(prompts) * request.n):
                    yield Finish("length", None, choice)
            else:
                progress = PrefillProgress(lambda: sources[0].num_computed_tokens, len(prompts[0]))
                events: AsyncGenerator[Event, None] = merge(sources, progress)
                async with aclosing(events):
                    async for event in events:
                        yield event
        finally:
            for source in sources:
                source.close()
        usages = [source.usage for source in sources]
        if scored:
            num_cached = sum(found.num_reused for found in scored)
        else:
            reused = [usage.num_reused_tokens for usage in usages]
            num_cached = sum(min(reused[i : i + request.n]) for i in range(0, len(reused), request.n))
        yield Done(replace(counts_of(usages, num_prompt, 0), num_cached_tokens=num_cached))

    async def _score(self, prompts: Sequence[list[int]], request: CompletionRequest) -> list[ScoredPrompt]:
        """Log-probabilities of the prompts in their order, if asked for. Other requests run in between."""
        if request.prompt_logprobs is None:
            return []
        scores = self._model.score_prompts(prompts, request.prompt_logprobs, owner=request.owner)
        found: dict[int, ScoredPrompt] = {}
        while (one := await self._in_thread(partial(next, scores, None))) is not None:
            found[one.number] = one
        return [found[i] for i in range(len(prompts))]

    def _start(
        self, request: CompletionRequest, prompts: Sequence[list[int]], context: int, seed: int, form: Form | None
    ) -> list[AnswerEvents]:
        def source(choice: int, tokens: list[int]) -> AnswerEvents:
            options = _options(request, len(tokens), context, seed + choice)
            return TextEvents(self._model.generate(tokens, form=form, **options), choice)

        return begun(source(p * request.n + i, tokens) for p, tokens in enumerate(prompts) for i in range(request.n))

    def _prompts(self, request: CompletionRequest, context: int) -> tuple[list[list[int]], int, Form | None]:
        """Token ids of every prompt, how many were cut off, and the compiled form. On a thread."""
        prompts: list[list[int]] = []
        num_cut = 0
        for prompt in request.prompts:
            if isinstance(prompt, str):
                tokens = self._model.tokenize(prompt, special=request.special, add_bos=request.add_bos)
            else:
                tokens = list(prompt)
                UsageError.when(
                    (bad := max(tokens, default=0)) >= self._model.vocab_size,
                    f"token id {bad} is past the vocabulary of {self._model.vocab_size}",
                )
            if request.suffix is not None:
                if self._marks is None:
                    raise UsageError(f"{self.info.name} was not taught to fill a gap: suffix cannot be used")
                tokens = around_gap(self._model, self._marks, prompt, request.suffix)
            UsageError.when(not tokens, "a prompt is empty: it must have one token at least")
            room = 0 if request.is_scored_only else 1  # scoring alone may fill the context
            if len(tokens) + room > context:
                if request.truncation == "refuse":
                    raise ContextOverflowError(len(tokens), context)
                keep = most_prompt_tokens(request, context)
                num_cut += len(tokens) - keep
                tokens = tokens[-keep:]
            prompts.append(tokens)
        return prompts, num_cut, self._model.prepare_form(strict=request.output.is_strict, **_form(request.output))

    # --- the rest -----------------------------------------------------------------------------------------------------

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """See contract.py."""
        UsageError.when(
            "embedding" not in self.info.capabilities,
            f"{self.info.name} generates text and makes no embeddings: its file names no pooling, so it was not "
            "trained for them; use an embedding model such as minilm",
        )
        most = most_characters(self.info.context)
        inputs = tuple(text[:most] if request.truncate and isinstance(text, str) else text for text in request.inputs)
        for text in inputs:
            if isinstance(text, str) and len(text) > most:
                raise FarTooLongError(len(text), self.info.context)
        result = await self._in_thread(
            partial(self._model.embed_counted, inputs, dimensions=request.dimensions, truncate=request.truncate)
        )
        return Embeddings(np.asarray(result.vectors, np.float32), tuple(result.num_tokens))

    async def tokenize(self, text: str, *, special: bool = False, add_bos: bool | None = None) -> list[int]:
        """See contract.py."""
        check_length(len(text), MOST_COUNTED_CHARACTERS)
        return await self._in_thread(partial(self._model.tokenize, text, special=special, add_bos=add_bos))

    async def pieces(self, tokens: Sequence[int]) -> list[bytes]:
        """See contract.py."""
        return await self._in_thread(lambda: [self._model.token_bytes(token) for token in tokens])

    async def detokenize(self, tokens: Sequence[int]) -> str:
        """See contract.py."""
        return await self._in_thread(partial(self._model.detokenize, tokens))

    async def stats(self) -> Mapping[str, Any]:
        """See contract.py. What uses another's weights is counted there."""
        if not self._weights.is_payer(self):
            return {}
        return await self._in_thread(lambda: self._model.stats.to_dict())

    async def close(self) -> None:
        """See contract.py."""
        self._is_closed = True
        await asyncio.to_thread(self._weights.leave, self)
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._slow.close()

    async def _in_thread(self, work: Callable[[], T]) -> T:
        ClosedError.when(self._is_closed, "the model was closed")
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, _at_once, work)
        except WorkerNeededError:
            return await self._slow.run(work)


def _at_once(work: Callable[[], T]) -> T:
    """`work()`, which must leave nothing behind when it finds that it needs the worker process."""
    with without_worker():
        return work()


def _first_seed(request: ChatRequest | CompletionRequest) -> int:
    seed = request.options.get("seed")
    return secrets.randbits(53) if seed is None else seed


def _options(request: ChatRequest | CompletionRequest, num_prompt: int, context: int, seed: int) -> AnswerOptions:
    """What the model is told of the answer that has this seed."""
    room = context - num_prompt
    limit = min(room, request.options.get("max_tokens") or room)
    return {**request.options, "seed": seed & MAX_SEED, "max_tokens": limit}


def _form(output: OutputFormat) -> dict[str, Any]:
    forms: dict[str, dict[str, Any]] = {
        "json": {"schema": True},
        "json_schema": {"schema": output.schema or {}},
        "regex": {"regex": output.grammar},
        "lark": {"grammar": output.grammar},
    }
    return forms.get(output.kind, {})
