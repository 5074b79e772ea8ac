"""Functions that run on the scheduler's thread, between steps."""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue
from typing import Generic, TypeVar

from ..cache.sequences import SequenceCache

T = TypeVar("T")


class Job(Generic[T]):
    """A function to run, and where its result goes."""

    def __init__(self, function: Callable[[SequenceCache], T]) -> None:
        self.function = function
        self.result: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()
        self.is_cancelled = False

    def run(self, sequences: SequenceCache) -> None:
        """Runs it. What it raises is the caller's to handle."""
        self.result.put((self.function(sequences), None))

    def fail(self, error: BaseException) -> None:
        """Gives `error` to who waits."""
        self.result.put((None, error))
