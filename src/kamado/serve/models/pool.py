"""Models in memory: loaded when first used, given up when idle for long or when another needs the room.

A model with work is never given up. Loads happen one at a time: two at once would each believe the memory theirs; of
weights that are there (a recipe's base, another recipe of it) nothing is loaded. When
a model's file was replaced, the next request loads it anew; answers that run end on the old one.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace

from ...errors import ClosedError, KamadoError, MemoryBudgetError, UsageError
from ..metrics import Registry
from .contract import Library, LoadedModel, Loader, LoadOptions, ModelInfo, OverloadedError, ServedModel

_log = logging.getLogger("kamado.serve")

_RETRY_SECONDS = 10.0
_ESTIMATE_SECONDS = 60.0  # an estimate reads a header, 0.1 to 1 s: what it found is good for so long


@dataclass(eq=False)
class Slot:
    """One model that is loaded, or being so."""

    name: str
    keep_alive: float  # seconds without work; math.inf: for ever
    model: ServedModel | None = None
    load: asyncio.Task[ServedModel] | None = None
    memory_bytes: int = 0
    num_active: int = 0
    idle_since: float = 0.0
    is_doomed: bool = False  # unloaded when its work ends; no new work comes to it
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    version: str = ""  # ModelInfo.version when it was asked for
    options: LoadOptions = field(default_factory=LoadOptions)  # that it was asked to be loaded with
    since: float = 0.0  # Unix seconds, when it was loaded
    is_pinned: bool = False  # loaded at the start: neither keep_alive nor another model ends it

    def expires_at(self, now: float) -> float:
        """When it is given up if nothing comes, on the clock of `now`; math.inf: never."""
        if self.is_pinned or math.isinf(self.keep_alive):
            return math.inf
        return (now if self.num_active else self.idle_since) + self.keep_alive


class ModelPool:
    """All models in memory. One event loop's own."""

    def __init__(
        self,
        library: Library,
        loader: Loader,
        *,
        memory_bytes: int | None,
        keep_alive: float,
        load_wait: float,
        metrics: Registry,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._library = library
        self._loader = loader
        self._memory_bytes = memory_bytes
        self.configure(keep_alive=keep_alive, load_wait=load_wait)
        self._clock = clock
        self._slots: dict[str, Slot] = {}
        self._replaced: list[Slot] = []  # their files are others now: what runs on them ends on them
        self._resolved: dict[str, str] = {}
        self._needs: dict[tuple[str, str], tuple[float, int | None]] = {}  # by name and version: until when, bytes
        self._load_lock = asyncio.Lock()
        self._freed = asyncio.Event()  # some model has become idle or gone
        self._reaper: asyncio.Task[None] | None = None
        self._reap_now = asyncio.Event()
        self._closers: set[asyncio.Task[None]] = set()
        self._is_closed = False
        self._loads = metrics.counter("kamado_model_loads_total", "Models that were loaded.", ("model",))
        self._unloads = metrics.counter("kamado_model_unloads_total", "Models that were given up.", ("model", "reason"))
        self._load_seconds = metrics.histogram("kamado_model_load_seconds", "Time to load a model.", labels=("model",))
        metrics.gauge(
            "kamado_model_memory_bytes",
            "Memory planned for loaded models.",
            lambda: self._by_name(lambda s: s.memory_bytes if s.model is not None else 0),
            ("model",),
        )
        metrics.gauge(
            "kamado_model_requests",
            "Requests that run or wait, by model.",
            lambda: self._by_name(lambda s: s.num_active),
            ("model",),
        )

    def _by_name(self, value: Callable[[Slot], int]) -> list[tuple[tuple[str, ...], float]]:
        totals: dict[str, float] = {}
        for slot in self._all:
            totals[slot.name] = totals.get(slot.name, 0.0) + value(slot)
        return [((name,), total) for name, total in totals.items()]

    @property
    def _all(self) -> Sequence[Slot]:
        """All that hold memory."""
        return (*self._slots.values(), *self._replaced)

    def configure(self, *, keep_alive: float, load_wait: float) -> None:
        """Other settings from now on. Models that are loaded keep the time that they have."""
        self._keep_alive, self._load_wait = keep_alive, load_wait

    @property
    def slots(self) -> Sequence[Slot]:
        """Models in memory or on their way."""
        return tuple(self._slots.values())

    @property
    def is_loading(self) -> bool:
        """Whether a model is on its way."""
        return any(slot.model is None for slot in self._all)

    def find(self, name: str) -> Slot | None:
        """The slot of a model by its exact name."""
        return self._slots.get(name)

    def is_ready(self, name: str) -> bool:
        """Whether work on `name`, as a client writes it, would start without a load."""
        slot = self._slots.get(self._resolved.get(name, name))
        return slot is not None and slot.model is not None and not slot.is_doomed

    def loaded(self) -> list[LoadedModel]:
        """Models in memory, with Unix times."""
        now, wall = self._clock(), time.time()
        ends = [(slot, slot.model, slot.expires_at(now)) for slot in self.slots]
        return [
            LoadedModel(
                model.info,
                slot.memory_bytes,
                None if math.isinf(expires) else wall + (expires - now),
                slot.num_active,
                slot.is_pinned,
            )
            for slot, model, expires in ends
            if model is not None
        ]

    async def fits(self, info: ModelInfo) -> bool:
        """Whether a model can be had: it is in memory, or there is room for it beside those that are never given up."""
        slot = self._slots.get(info.name)
        if slot is not None and slot.model is not None:
            return True
        needed = await self._needed_bytes(info)
        if needed is None or self._memory_bytes is None:
            return needed is not None
        return needed <= self._memory_bytes - sum(s.memory_bytes for s in self._all if s.is_pinned)

    async def _needed_bytes(self, info: ModelInfo) -> int | None:
        """The least that loading takes; None: it cannot be loaded here at all."""
        key, now = (info.name, info.version), self._clock()
        known = self._needs.get(key)
        if known is None or known[0] < now:
            needed: int | None = None
            with suppress(KamadoError, OSError):
                needed = await self._loader.estimate(info.name, LoadOptions(memory_bytes=self._memory_bytes))
            if len(self._needs) > 1000:
                self._needs.clear()
            self._needs[key] = known = (now + _ESTIMATE_SECONDS, needed)
        return known[1]

    @asynccontextmanager
    async def use(
        self, name: str, *, keep_alive: float | None = None, pinned: bool = False, options: LoadOptions | None = None
    ) -> AsyncIterator[ServedModel]:
        """The model of this name for the time of the block; loaded first, with `options`, when it is not in memory.

        Raises UsageError when it is there with other options than those that are given, ModelNotFoundError,
        MemoryBudgetError when it can never fit, OverloadedError when others hold the memory.
        """
        info = await self._library.get(name)
        if len(self._resolved) > 1000:
            self._resolved.clear()
        self._resolved[name] = info.name
        slot = await self._slot(info.name, info.version, keep_alive, options)
        slot.num_active += 1
        slot.is_pinned |= pinned
        if keep_alive is not None:
            slot.keep_alive = keep_alive
        try:
            if slot.model is None:
                assert slot.load is not None
                await asyncio.shield(slot.load)
            assert slot.model is not None
            yield slot.model
        finally:
            slot.num_active -= 1
            if slot.num_active == 0:
                slot.idle_since = self._clock()
                self._freed.set()
                if slot.is_doomed or (slot.keep_alive <= 0 and not slot.is_pinned):
                    self._give_up(slot, "replaced" if slot in self._replaced else "keep_alive")
                self._reap_now.set()

    async def unload(self, name: str) -> bool:
        """Gives a model up as soon as nothing runs on it, and waits for that; False when it is not loaded."""
        slots = [slot for slot in self._all if slot.name == name]
        for slot in slots:
            slot.is_doomed = True
            if slot.num_active == 0 and slot.model is not None:
                self._give_up(slot, "asked")
        for slot in slots:
            await slot.gone.wait()
        return bool(slots)

    async def close(self) -> None:
        """Gives all models up at once; their streams end with ClosedError."""
        self._is_closed = True
        if self._reaper is not None:
            self._reaper.cancel()
        for slot in self._all:
            if slot.load is not None and not slot.load.done():
                slot.load.cancel()
            self._give_up(slot, "closed")
        if self._closers:
            await asyncio.gather(*self._closers, return_exceptions=True)

    async def _slot(self, name: str, version: str, keep_alive: float | None, wanted: LoadOptions | None = None) -> Slot:
        is_pinned, options = False, wanted or LoadOptions()
        while True:
            ClosedError.when(self._is_closed, "the server is going down")
            slot = self._slots.get(name)
            if slot is not None and slot.version != version and not slot.is_doomed:
                keep_alive = slot.keep_alive if keep_alive is None else keep_alive
                is_pinned, options = slot.is_pinned, wanted or slot.options
                self._replace(slot)
                slot = None
            if slot is None:
                slot = Slot(
                    name, self._keep_alive if keep_alive is None else keep_alive, version=version, options=options
                )
                slot.is_pinned = is_pinned
                self._slots[name] = slot
                slot.load = asyncio.create_task(self._load(slot), name=f"load {name}")
                slot.load.add_done_callback(_consume)
                return slot
            if not slot.is_doomed:
                UsageError.when(
                    wanted not in (None, slot.options),
                    f"{name} is in memory with other settings: unload it first (kamado stop {name})",
                )
                return slot
            await slot.gone.wait()

    def _replace(self, slot: Slot) -> None:
        """Its file is another one: no new work comes to it, and it goes when what runs on it has ended."""
        _log.info("model replaced", extra={"model": slot.name, "requests": slot.num_active})
        del self._slots[slot.name]
        self._replaced.append(slot)
        slot.is_doomed, slot.is_pinned = True, False
        if slot.num_active == 0:
            self._give_up(slot, "replaced")

    async def _load(self, slot: Slot) -> ServedModel:
        if self._reaper is None:
            self._reaper = asyncio.create_task(self._reap(), name="model reaper")
        try:
            started = self._clock()
            model = await self._loader.share(slot.name)
            if model is None:
                async with self._load_lock:
                    started = self._clock()
                    model = await self._loader.share(slot.name) or await self._load_when_room(slot)
            slot.model = model
            slot.memory_bytes = model.memory_bytes
            slot.since = time.time()
            seconds = self._clock() - started
        except BaseException:
            self._forget(slot)
            raise
        self._loads.add(1, slot.name)
        self._load_seconds.observe(seconds, slot.name)
        _log.info(
            "model loaded",
            extra={
                "model": slot.name,
                "seconds": round(seconds, 3),
                "memory_bytes": slot.memory_bytes,
                "context": model.info.context,
            },
        )
        if slot.num_active == 0:  # the client that asked has left meanwhile
            slot.idle_since = self._clock()
            self._reap_now.set()
        return model

    async def _load_when_room(self, slot: Slot) -> ServedModel:
        """Loads, giving idle models up, least recently used first, until there is room; then waits for busy ones."""
        most = replace(slot.options, memory_bytes=_least(self._memory_bytes, slot.options.memory_bytes))
        give_up_at = self._clock() + self._load_wait
        while True:
            left = _least(self._bytes_left(slot), slot.options.memory_bytes)
            try:
                if left is None or await self._loader.estimate(slot.name, most) <= left:
                    return await self._loader.load(slot.name, slot.options, left)
                problem = MemoryBudgetError(f"{slot.name} does not fit into what other models leave of the budget")
            except MemoryBudgetError as error:
                problem = error
            others = [s for s in self._all if s is not slot and s.model is not None]
            idle = [s for s in others if s.num_active == 0 and not s.is_pinned]
            if idle:
                oldest = min(idle, key=lambda s: s.idle_since)
                self._give_up(oldest, "memory")
                await oldest.gone.wait()
                continue
            closing = [s for s in self._all if s is not slot and s.model is None and s.memory_bytes]
            if closing:
                await closing[0].gone.wait()
                continue
            if not any(not s.is_pinned for s in others):
                raise problem  # no waiting would help
            self._freed.clear()
            try:
                async with asyncio.timeout(give_up_at - self._clock()):  # at once when it is past
                    await self._freed.wait()
            except TimeoutError:
                raise OverloadedError(
                    f"{slot.name} cannot be loaded now: models with running requests hold the memory ({problem})",
                    retry_after=_RETRY_SECONDS,
                    is_queue=False,
                ) from None

    def _bytes_left(self, slot: Slot) -> int | None:
        """Of the budget for `slot`; None: there is none."""
        if self._memory_bytes is None:
            return None
        return max(0, self._memory_bytes - sum(s.memory_bytes for s in self._all if s is not slot))

    def _give_up(self, slot: Slot, reason: str) -> None:
        if slot not in self._all or slot.gone.is_set() or slot.model is None:
            return
        slot.is_doomed = True
        model, slot.model = slot.model, None
        task = asyncio.create_task(self._close_model(slot, model, reason), name=f"unload {slot.name}")
        self._closers.add(task)
        task.add_done_callback(self._closers.discard)

    async def _close_model(self, slot: Slot, model: ServedModel, reason: str) -> None:
        try:
            await model.close()
        except Exception:
            _log.exception("a model did not close", extra={"model": slot.name})
        finally:
            self._unloads.add(1, slot.name, reason)
            _log.info("model unloaded", extra={"model": slot.name, "reason": reason})
            self._forget(slot)

    def _forget(self, slot: Slot) -> None:
        if self._slots.get(slot.name) is slot:
            del self._slots[slot.name]
        if slot in self._replaced:
            self._replaced.remove(slot)
        for other in self._all:
            if other.model is not None:  # it may have the memory now that the slot had
                other.memory_bytes = other.model.memory_bytes
        slot.gone.set()
        self._freed.set()

    async def _reap(self) -> None:
        """Gives models up when their time is over."""
        while True:
            self._reap_now.clear()
            now = self._clock()
            times = []
            for slot in self._all:
                if slot.model is None or slot.num_active:
                    continue
                expires = slot.expires_at(now)
                if slot.is_doomed or expires <= now:
                    self._give_up(slot, "replaced" if slot in self._replaced else "keep_alive")
                else:
                    times.append(expires - now)
            seconds = min(times, default=math.inf)
            with suppress(TimeoutError):
                async with asyncio.timeout(None if math.isinf(seconds) else seconds):
                    await self._reap_now.wait()


def _least(*limits: int | None) -> int | None:
    """The smallest of those that there are."""
    return min((limit for limit in limits if limit is not None), default=None)


def _consume(task: asyncio.Task[ServedModel]) -> None:
    """A load whose askers have all left may fail unheard."""
    if not task.cancelled():
        task.exception()
