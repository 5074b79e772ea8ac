"""From the engine's threads to the event loop: answers that are read without waiting in a thread for each.

The engine puts pieces into a queue and calls a listener; the listener wakes the loop, once for any number of pieces.
When a client reads slowly its queue fills, and its answer pauses until some of it was read: nothing piles up.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, ClassVar, Protocol, TypeVar
from weakref import WeakKeyDictionary, finalize

from .contract import Progress

T = TypeVar("T", covariant=True)
Begun = TypeVar("Begun", bound="Source[Any]")

# After so long without news the waiting client is told how far the prompt has come.
_PATIENCE_SECONDS = 1.0


class Source(Protocol[T]):
    """One answer that is being made: engine/turns/turn.py's TurnStream, and what stands for it in completions.py."""

    def poll(self) -> T | None:
        """The next event if it is there, else None. Raises StopIteration after the last, and what the answer met."""

    def on_news(self, listener: Callable[[], None] | None) -> None:
        """`listener` is called, from any thread, when `poll` may have something."""

    def close(self) -> None:
        """Stops the answer."""


class _Bell:
    """Wakes a loop from any thread, once for all wakers that were called before it came to look.

    Where the system has it, by an eventfd: one write and one read of eight bytes, half of what asyncio's own way costs.
    The file is open as long as anybody knows the loop, so that none writes to a number that is another file's by now.
    """

    _bells: ClassVar[WeakKeyDictionary[asyncio.AbstractEventLoop, _Bell]] = WeakKeyDictionary()

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._rung: deque[Waker] = deque()
        self._is_ringing = False
        self._file: int | None = None
        if sys.platform == "linux":
            with suppress(OSError, NotImplementedError):  # out of files, or a loop that watches none
                file = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
                finalize(loop, os.close, file).atexit = False  # the scheduler's thread may still ring
                loop.add_reader(file, self._on_ring, file)
                self._file = file

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop) -> _Bell:
        """The bell of a loop."""
        bell = cls._bells.get(loop)
        if bell is None:
            bell = cls._bells[loop] = cls(loop)
        return bell

    def ring(self, waker: Waker) -> None:
        """From any thread."""
        self._rung.append(waker)
        if self._is_ringing:  # the last ring was not heard yet: when it is, all that are in the row are woken
            return
        self._is_ringing = True
        if self._file is not None:
            os.eventfd_write(self._file, 1)
            return
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            waker.loop.call_soon_threadsafe(self._answer)

    def _on_ring(self, file: int) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(file)
        self._answer()

    def _answer(self) -> None:
        self._is_ringing = False
        while self._rung:
            self._rung.popleft().wake()


class Waker:
    """Wakes one task of a loop from any thread."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._bell = _Bell.of(self.loop)
        self._is_called = False  # a wake-up is on its way
        self._has_news = False
        self._waiter: asyncio.Future[bool] | None = None

    def __call__(self) -> None:
        """News, from any thread."""
        if not self._is_called:
            self._is_called = True
            self._bell.ring(self)

    def wake(self) -> None:
        """The news has arrived; on the loop."""
        self._is_called = False
        self._has_news = True
        self._resolve(True)

    def _resolve(self, has_news: bool) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(has_news)

    def clear(self) -> None:
        """Before looking for news: what comes after it is not missed."""
        self._has_news = False

    async def wait(self, seconds: float | None) -> bool:
        """Until news; False when none came in that time. None: no limit, and no timer is made."""
        if self._has_news:
            return True
        self._waiter = self.loop.create_future()
        timer = None if seconds is None else self.loop.call_later(seconds, self._resolve, False)
        try:
            return await self._waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()


async def merge(sources: Sequence[Source[T]], idle: Callable[[], T | None]) -> AsyncGenerator[T, None]:
    """The events of all sources as they come, those of one in order. `idle` may give events until the first one comes.

    Closing it stops all sources.
    """
    waker = Waker()
    live = list(sources)
    patience: float | None = _PATIENCE_SECONDS
    try:
        for source in live:
            source.on_news(waker)
        while True:
            waker.clear()
            for source in tuple(live):
                try:
                    while (event := source.poll()) is not None:
                        patience = None
                        yield event
                except StopIteration:
                    live.remove(source)
            if not live:
                return
            if not await waker.wait(patience) and (event := idle()) is not None:
                yield event
    finally:
        for source in sources:
            source.on_news(None)
            source.close()


def begun(sources: Iterable[Begun]) -> list[Begun]:
    """All of them. When one cannot begin, those before it are stopped."""
    made: list[Begun] = []
    try:
        for source in sources:
            made.append(source)
    except BaseException:
        for source in made:
            source.close()
        raise
    return made


class PrefillProgress:
    """Says how far the prompt has come, while nothing else comes and when it has come further."""

    def __init__(self, read: Callable[[], int], total: int) -> None:
        self._read = read
        self._total = total
        self._last = -1

    def __call__(self) -> Progress | None:
        """What is new; None: nothing."""
        done = min(self._read(), self._total)
        if done == self._last:
            return None
        self._last = done
        return Progress("prefill", done, self._total)
