"""Keeps a running model within its memory: when a limit is lowered, or something that was not planned for comes up,
slots are given back, or there is an error."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, Protocol

from ...errors import MemoryBudgetError
from ...plan.budget import format_size
from ...plan.forecast import Plan
from ...plan.sizes import HUGE_PAGE_BYTES
from ...plan.watch import LimitWatch

LOOK_SECONDS = 0.5


class ShrinkingExecutor(Protocol):
    """The part of the executor that gives expert slots back."""

    def ledger(self) -> Mapping[str, Any]:
        """What experts take."""

    def shrink_experts(self, expert_bytes: int) -> None:
        """Slots and read buffers take at most that many bytes from now on."""


@dataclass
class MemoryGuard:
    """Called between steps; looks at the limits every half second."""

    plan: Plan
    executor: ShrinkingExecutor
    limits: LimitWatch
    _: KW_ONLY
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._next = self.clock() + LOOK_SECONDS
        self._expert_bytes = self.plan.expert_bytes
        self._reserved_bytes = 0

    @property
    def spare_bytes(self) -> int:
        """What the budget has beside the plan and what was reserved since."""
        used = self.plan.peak_bytes - (self.plan.expert_bytes or 0) + (self._expert_bytes or 0) + self._reserved_bytes
        return max(0, self.plan.memory_bytes - used)

    def reserve(self, num_bytes: int, what: str, advice: str) -> int:
        """Makes room for `what`, which the plan did not count: what the budget has left, then expert slots. Returns the
        bytes that experts lost. Call it between steps.

        Raises MemoryBudgetError, which ends with `advice`, when there is no room.
        """
        missing = num_bytes - self.spare_bytes
        taken = 0
        if missing > 0:
            least = num_bytes
            if self._expert_bytes is not None:
                least_expert_bytes = int(self.executor.ledger()["least_expert_bytes"])
                left = (self._expert_bytes - missing) & -HUGE_PAGE_BYTES
                if left >= least_expert_bytes:
                    self.executor.shrink_experts(left)
                    taken = self._expert_bytes - left
                    self._expert_bytes = left
                    missing = 0
            if missing > 0:
                plan = self.plan
                raise MemoryBudgetError(
                    f"{what} take {format_size(least)}, and the budget of {format_size(plan.memory_bytes)} has "
                    f"{format_size(self.spare_bytes)} left beside {plan.model}: {advice}"
                )
        self._reserved_bytes += num_bytes
        return taken

    def __call__(self) -> None:
        """Raises MemoryBudgetError when the model cannot go on within the new limit."""
        now = self.clock()
        if now < self._next:
            return
        self._next = now + LOOK_SECONDS
        found = self.limits.lowered()
        if found is None:
            return
        limit, usable, cgroup = found
        plan = self.plan
        fixed = plan.peak_bytes - (plan.expert_bytes or 0) + self._reserved_bytes
        if fixed + (self._expert_bytes or 0) <= usable:
            return
        least = fixed
        if self._expert_bytes is not None:
            least_expert_bytes = int(self.executor.ledger()["least_expert_bytes"])
            least += least_expert_bytes
            if least <= limit:  # a margin is better, but none is no reason to stop
                expert_bytes = max(least_expert_bytes, (usable - fixed) & -HUGE_PAGE_BYTES)
                self.executor.shrink_experts(expert_bytes)
                self._expert_bytes = expert_bytes
                return
        elif fixed <= limit:
            return
        raise MemoryBudgetError(
            f"the memory limit of {cgroup} was lowered to {format_size(limit)} while {plan.model} ran, which needs "
            f"{format_size(least)} as it was loaded: raise the limit, or load it again with a smaller context"
        )
