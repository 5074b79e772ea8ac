"""What the command line asks of a model in this server: the engine's own calls with all their options, piece by piece.

The protocols' contract (contract.py) speaks of events, as their clients do. `kamado run` beside a server must say what
`kamado run` without one says, token for token: so it hands over what it would have called `Model.chat` or `generate`
with, and gets the pieces that these give.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ...errors import UsageError
from ...local.documents import ModelState
from .bridge import PrefillProgress, merge
from .contract import (
    Asked,
    ChatRequest,
    Done,
    Message,
    ModelInfo,
    Progress,
    ServedModel,
    Started,
    TextPart,
    TokenCounts,
)
from .modelfile_options import Options

if TYPE_CHECKING:
    from ... import Generation, Model, Piece, Usage
    from .pool import ModelPool, Slot

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerRequest(Asked):
    """A call of `Model.chat` (messages) or `Model.generate` (prompt)."""

    messages: tuple[Mapping[str, Any], ...] | None = None
    prompt: str | None = None
    special: bool = False
    session: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)  # AnswerOptions, and schema, regex or grammar


@dataclass(frozen=True, slots=True)
class PieceEvent:
    """One piece of the answer."""

    piece: Piece


class DirectAnswers:
    """The part of EngineModel that answers such calls."""

    info: ModelInfo
    _model: Model
    _path: Path | None
    _defaults: Options
    _in_thread: Callable[..., Any]
    _with_recipe: Callable[[ChatRequest], ChatRequest]

    async def answer(self, request: AnswerRequest) -> AsyncGenerator[Started | Progress | PieceEvent | Done, None]:
        """`Started`, the pieces as they come, `Done`. Closing it stops the answer."""
        generation: Generation = await self._in_thread(partial(self._begin, request))
        try:
            usage = generation.usage
            yield Started(usage.num_prompt_tokens, self.info.context, None, generation.seed)
            progress = PrefillProgress(lambda: generation.num_computed_tokens, usage.num_prompt_tokens)
            events: AsyncGenerator[PieceEvent | Progress, None] = merge([_Pieces(generation)], progress)
            async with aclosing(events):
                async for event in events:
                    yield event
            yield Done(counts_of([generation.usage], generation.usage.num_prompt_tokens, 0))
        finally:
            generation.close()

    def _begin(self, request: AnswerRequest) -> Generation:
        """The call itself. On a thread."""
        options: dict[str, Any] = {**self._defaults.answer, **request.options}
        if request.messages is None:
            UsageError.when(request.session is not None, "a session goes with messages")
            return self._model.generate(request.prompt or "", special=request.special, **options)
        messages: list[Any] = list(request.messages)
        recipe = self._with_recipe(ChatRequest(asker="", messages=_roles(request.messages)))
        messages[:0] = recipe.messages[: len(recipe.messages) - len(messages)]
        generation: Generation = self._model.chat(messages, session=request.session, **options)
        return generation

    async def encode_chat(self, messages: tuple[Mapping[str, Any], ...], owner: str) -> list[int]:
        """The token ids that `chat` would send."""
        found: list[int] = await self._in_thread(partial(self._model.encode_chat, messages, owner=owner))
        return found

    async def own_stats(self) -> Mapping[str, Any]:
        """As `stats`, also of a model that uses another's weights."""
        found: Mapping[str, Any] = await self._in_thread(lambda: self._model.stats.to_dict())
        return found

    @property
    def state(self) -> ModelState:
        """How it was loaded."""
        plan = self._model.plan
        return ModelState(
            name=self.info.name,
            kv=plan.kv,
            threads=plan.num_threads,
            context=self.info.context,
            budget_bytes=plan.memory_bytes,
            path="" if self._path is None else os.path.realpath(self._path),
            overridden=tuple(plan.overridden),
            has_chat_template=self._model.has_chat_template,
            is_encoder=self._model.is_encoder,
            embeds="embedding" in self.info.capabilities,
        )


class _Pieces:
    """A Generation as bridge.py's Source."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation
        self.on_news = generation.on_news
        self.close = generation.close

    def poll(self) -> PieceEvent | None:
        """See bridge.py."""
        return PieceEvent(next(self._generation)) if self._generation.is_ready else None


def directly(model: ServedModel) -> DirectAnswers:
    """A served model as the command line asks it. Raises UsageError for one that is none of the engine's."""
    if not isinstance(model, DirectAnswers):
        raise UsageError(f"{model.info.name} cannot be asked this way")
    return model


def states(pool: ModelPool) -> tuple[ModelState, ...]:
    """The models in memory or on their way, paths of their files included."""
    ends = {model.info.name: model.expires_at for model in pool.loaded()}
    return tuple(_state(slot, ends.get(slot.name)) for slot in pool.slots)


def _state(slot: Slot, expires_at: float | None) -> ModelState:
    model: object = slot.model
    if isinstance(model, DirectAnswers):
        known = model.state
    else:
        context = 0 if slot.model is None else slot.model.info.context
        known = ModelState(slot.name, kv="", threads=0, context=context, is_loading=slot.model is None)
    return replace(
        known,
        name=slot.name,
        memory_bytes=slot.memory_bytes,
        requests=slot.num_active,
        since=slot.since,
        expires_at=expires_at,
        is_pinned=slot.is_pinned,
        asked={
            name: ",".join(value) if isinstance(value, tuple) else str(value)
            for name, value in asdict(slot.options).items()
            if value is not None
        },
    )


def _roles(messages: tuple[Mapping[str, Any], ...]) -> tuple[Message, ...]:
    """The messages as far as a recipe looks at them: who speaks. Raises UsageError."""
    found = []
    for i, message in enumerate(messages):
        role: Any = message.get("role")
        UsageError.when(role not in ("system", "user", "assistant", "tool"), f"message {i} has no role that is known")
        found.append(Message(role, (TextPart("x"),)))
    return tuple(found)


def counts_of(usages: Sequence[Usage], num_prompt: int, num_reasoning: int) -> TokenCounts:
    """All choices together: the prompt once, time of the slowest."""
    return TokenCounts(
        num_prompt_tokens=num_prompt,
        num_cached_tokens=min((usage.num_reused_tokens for usage in usages), default=0),
        num_generated_tokens=sum(usage.num_generated_tokens for usage in usages),
        num_reasoning_tokens=num_reasoning,
        queue_seconds=max((usage.queue_seconds for usage in usages), default=0.0),
        prefill_seconds=max((usage.prefill_seconds for usage in usages), default=0.0),
        decode_seconds=max((usage.decode_seconds for usage in usages), default=0.0),
    )
