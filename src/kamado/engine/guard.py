"""Keeps a running model within a memory limit that is lowered: slots are given back, or it ends with an error."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from ..errors import MemoryBudgetError
from ..memory.budget import format_size
from ..memory.forecast import Plan
from ..memory.limits import LimitWatch
from ..memory.sizes import HUGE_PAGE_BYTES

LOOK_SECONDS = 0.5


class ShrinkingExecutor(Protocol):
    """The part of the executor that gives expert slots back."""

    def ledger(self) -> Mapping[str, Any]:
        """What experts take."""
        ...

    def shrink_experts(self, expert_bytes: int) -> None:
        """Slots and read buffers take at most that many bytes from now on."""
        ...


class MemoryGuard:
    """Called between steps; looks at the limits every half second."""

    def __init__(
        self,
        plan: Plan,
        executor: ShrinkingExecutor,
        limits: LimitWatch,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._plan = plan
        self._executor = executor
        self._limits = limits
        self._clock = clock
        self._next = clock() + LOOK_SECONDS

    def __call__(self) -> None:
        """Raises MemoryBudgetError when the model cannot go on within the new limit."""
        now = self._clock()
        if now < self._next:
            return
        self._next = now + LOOK_SECONDS
        found = self._limits.lowered()
        if found is None:
            return
        limit, usable, cgroup = found
        plan = self._plan
        if plan.peak_bytes <= usable:
            return
        fixed = plan.peak_bytes - (plan.expert_bytes or 0)
        least = fixed
        if plan.expert_bytes is not None:
            least_expert_bytes = int(self._executor.ledger()["least_expert_bytes"])
            least += least_expert_bytes
            if least <= limit:  # a margin is better, but none is no reason to stop
                expert_bytes = max(least_expert_bytes, (usable - fixed) & -HUGE_PAGE_BYTES)
                self._executor.shrink_experts(expert_bytes)
                return
        elif fixed <= limit:
            return
        raise MemoryBudgetError(
            f"the memory limit of {cgroup} was lowered to {format_size(limit)} while {plan.model} ran, which needs "
            f"{format_size(least)} as it was loaded: raise the limit, or load it again with a smaller context"
        )
