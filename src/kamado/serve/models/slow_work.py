"""Threads for work that may wait for the worker process (isolated.py): apart from those that everybody shares, and with
a queue that has an end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from ...isolated import until
from .contract import OverloadedError

T = TypeVar("T")

_NUM_THREADS = 4
_MAX_PENDING = 12
_RETRY_SECONDS = 5.0
# From its request on, with the wait for a thread: what has not had its turns by then is told to come again. A template
# that is tried beside 48 streams took 50 to 80 s, and the requests behind it had no answer in 120.
MOST_SECONDS = 40.0


class SlowWork:
    """Runs what takes long, some at a time. One event loop's own."""

    def __init__(self, name: str) -> None:
        self._threads = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix=name)
        self._num_pending = 0

    async def run(self, work: Callable[[], T]) -> T:
        """`work()` on a thread. Raises OverloadedError when as much waits as may."""
        if self._num_pending >= _MAX_PENDING:
            raise OverloadedError(
                f"{self._num_pending} requests wait for a grammar or a template to be tried, and that is the limit",
                retry_after=_RETRY_SECONDS,
                is_queue=False,
            )
        deadline = time.monotonic() + MOST_SECONDS

        def patiently() -> T:
            with until(deadline):
                return work()

        self._num_pending += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, patiently)
        finally:
            self._num_pending -= 1

    def close(self) -> None:
        """Drops what has not begun."""
        self._threads.shutdown(wait=False, cancel_futures=True)
