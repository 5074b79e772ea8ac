"""What may wait for the worker process has a queue that ends, and who finds it full is told so."""

from __future__ import annotations

import asyncio
import threading

import pytest

from kamado import isolated
from kamado.errors import BusyError
from kamado.serve.faults import fault_of
from kamado.serve.models import slow_work
from kamado.serve.models.contract import OverloadedError
from kamado.serve.models.slow_work import SlowWork


def test_a_full_queue_is_refused_at_once() -> None:
    async def main() -> None:
        slow, is_over = SlowWork("test"), threading.Event()
        pending = [asyncio.ensure_future(slow.run(is_over.wait)) for _ in range(slow_work._MAX_PENDING)]
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError, match="that is the limit") as full:
            await slow.run(is_over.wait)
        assert (fault_of(full.value).status, fault_of(full.value).headers["retry-after"]) == (503, "5")
        is_over.set()
        assert all(await asyncio.gather(*pending))
        assert await slow.run(lambda: "again") == "again"
        slow.close()

    asyncio.run(main())


def test_the_wait_for_a_thread_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that stood behind others for all its time asks the worker for nothing more."""

    async def main() -> None:
        slow = SlowWork("test")
        assert await slow.run(isolated._seconds_left) > 30.0
        monkeypatch.setattr(slow_work, "MOST_SECONDS", 0.0)
        with pytest.raises(isolated.WorkerEndedError, match="too busy"):
            await slow.run(isolated._seconds_left)
        slow.close()

    asyncio.run(main())


def test_who_gets_no_turn_may_come_again() -> None:
    fault = fault_of(BusyError("the chat template could not be tried: the machine is too busy"))
    assert (fault.status, fault.headers["retry-after"]) == (503, "5")
