"""Loads models for the server, with a context and a cache that its memory affords."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import ClosedError
from ...isolated import until
from ...plan.overhead import CONSTRAINT_LIBRARY_BYTES, LIBRARY_BYTES, WORKER_BYTES
from .contract import LoadOptions, ServedModel
from .library import Located, StoreLibrary
from .slow_work import MOST_SECONDS, SlowWork
from .weights import Weights

if TYPE_CHECKING:
    from ...plan.forecast import Plan

_log = logging.getLogger("kamado.serve")

# A context is chosen up to this; who needs more says so.
_MOST_CONTEXT = 32_768
_LEAST_CONTEXT = 512
# Conversations of a whole context that the cache has room for, as many of these as fit.
_CONVERSATIONS = (8, 4, 2, 1)
# Of what the machine has to give, when no budget was named: the rest is for the user's other programs.
_MACHINE_SHARE = 0.6
_NUM_THREADS = 4  # models that are being loaded at once


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What every load of this server is told."""

    threads: int | None = None
    kv: str = "auto"
    context: int | None = None
    prefix_cache_bytes: int = 0  # on disk, shared by all models; 0: off
    allow_unknown: Sequence[str] = ()  # settings of model files: see `kamado.load`
    server_bytes: int = 0  # kept for the server itself where no budget was named


class EngineLoader:
    """contract.py's Loader over `kamado.load`."""

    def __init__(self, library: StoreLibrary, settings: EngineSettings) -> None:
        self._library = library
        self._settings = settings
        # Their own: a model whose template is being tried must not take the threads that look models up.
        self._threads = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="kamado-load")
        self._slow = SlowWork("kamado-share")
        self._weights: dict[tuple[Path, str], Weights] = {}  # in memory, by the file and its version

    async def estimate(self, name: str, options: LoadOptions) -> int:
        """See contract.py: of the smallest choice that is worth loading."""

        def work() -> int:
            located = self._library.locate(name)
            plan = self._planner(located, options, options.memory_bytes)
            least = plan(*self._choices(located, options)[-1])
            least.require_fit()
            return (least.least_bytes if least.is_streamed else least.peak_bytes) - shared_bytes(least)

        return await asyncio.to_thread(work)

    async def share(self, name: str) -> ServedModel | None:
        """See contract.py."""
        if not self._weights:
            return None
        located = await asyncio.to_thread(self._library.locate, name)
        weights = self._weights.get((located.path, located.file_version))
        return None if weights is None else await self._slow.run(partial(_of_weights, located, weights))

    async def load(self, name: str, options: LoadOptions, memory_bytes: int | None) -> ServedModel:
        """See contract.py."""
        work = partial(self._load, name, options, memory_bytes)
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _load(self, name: str, options: LoadOptions, memory_bytes: int | None) -> ServedModel:
        import kamado

        located = self._library.locate(name)
        context, kv_tokens, memory_bytes = self._choose(located, options, memory_bytes)
        model = kamado.load(
            located.path,
            memory=memory_bytes,
            threads=options.threads or self._settings.threads,
            kv=options.kv or self._settings.kv,
            context=context,
            kv_tokens=kv_tokens,
            prefix_cache=self._settings.prefix_cache_bytes or None,
            constraints=True,
            allow_unknown=self._allowed(options),
            name=name if located.recipe is None else located.recipe.base,
        )
        if model.plan.overridden:
            _log.warning("settings not applied", extra={"model": name, "settings": list(model.plan.overridden)})
        key = (located.path, located.file_version)
        weights = Weights(model, partial(self._forget, key))
        try:
            with until(time.monotonic() + MOST_SECONDS):
                served = _of_weights(located, weights)
        except BaseException:
            model.close()
            raise
        assert served is not None  # nobody else knew of them
        self._weights[key] = weights
        return served

    def _allowed(self, options: LoadOptions) -> Sequence[str]:
        return self._settings.allow_unknown if options.allow_unknown is None else options.allow_unknown

    def _forget(self, key: tuple[Path, str], weights: Weights) -> None:
        if self._weights.get(key) is weights:  # else they were loaded again meanwhile
            del self._weights[key]

    def _choose(self, located: Located, options: LoadOptions, memory_bytes: int | None) -> tuple[int, int, int | None]:
        """The first choice that fits, and the budget to load it with; the last one when none does, whose load then says
        by how much."""
        choices = self._choices(located, options)
        plan_of = self._planner(located, options, memory_bytes)
        for context, kv_tokens in choices:
            plan = plan_of(context, kv_tokens)
            limit = plan.memory_bytes
            if memory_bytes is None:
                limit = int(limit * _MACHINE_SHARE) - self._settings.server_bytes
                limit += shared_bytes(plan)  # which the server's bytes have
            if plan.peak_bytes <= limit:
                break
        return context, kv_tokens, None if memory_bytes is None else plan.memory_bytes

    def _choices(self, located: Located, options: LoadOptions) -> list[tuple[int, int]]:
        """(context, tokens of the cache), best first: a long context before room for many conversations."""
        most = located.info.max_context or _MOST_CONTEXT
        wanted = options.context
        if wanted is None and self._settings.context is not None:  # of the whole server: shorter models have less
            wanted = min(self._settings.context, most)
        if wanted is not None:
            return [(wanted, wanted * many) for many in _CONVERSATIONS]
        return [
            (context, context * many)
            for context in _halvings(min(most, _MOST_CONTEXT))
            for many in _CONVERSATIONS
            if many > 1 or context <= 4096
        ]

    def _planner(self, located: Located, options: LoadOptions, memory_bytes: int | None) -> Callable[[int, int], Plan]:
        """Plans by (context, tokens of the cache); the header is read once. `memory_bytes`: without what all models of
        the server share, which a plan counts."""
        from ...files import open_checkpoint
        from ...measure import prefix_store_bytes, program_of
        from ...plan import forecast
        from ...plan.machine import machine

        checkpoint = replace(open_checkpoint(located.path), name=located.info.name)
        program = program_of(checkpoint, self._allowed(options))
        here = machine()
        budget = memory_bytes
        if budget is not None:
            budget += LIBRARY_BYTES + (0 if program.is_encoder else CONSTRAINT_LIBRARY_BYTES + WORKER_BYTES)

        def plan(context: int, kv_tokens: int) -> Plan:
            return forecast.plan(
                checkpoint,
                program,
                context=context,
                kv=options.kv or self._settings.kv,
                threads=options.threads or self._settings.threads,
                memory=budget,
                kv_tokens=kv_tokens,
                reserved_bytes=prefix_store_bytes(program) if self._settings.prefix_cache_bytes else 0,
                constraints=not program.is_encoder,
                on=here,
            )

        return plan


def _of_weights(located: Located, weights: Weights) -> ServedModel | None:
    """A model that has these weights, with its recipe's template; None when they are gone."""
    from .engine_model import EngineModel

    model, recipe = weights.model, located.recipe
    info = replace(located.info, max_context=located.info.max_context or model.context)
    if located.info.name != model.name:
        model = model.renamed(located.info.name, None if recipe is None else recipe.template)
    try:
        return EngineModel(model, info, recipe, weights, path=located.path)
    except ClosedError:
        return None


def shared_bytes(plan: Plan) -> int:
    """What a plan counts for its model alone, but all models of a server share: share.py has it."""
    return plan.bytes_by_owner["libraries"] + plan.bytes_by_owner.get("worker", 0)


def _halvings(most: int) -> Iterator[int]:
    context = most
    while context >= min(most, _LEAST_CONTEXT):
        yield context
        context = math.ceil(context / 2)
