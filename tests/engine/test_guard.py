"""A memory limit that is lowered while a model runs: slots are given back, or the model ends and says why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kamado.engine.schedule.guard import LOOK_SECONDS, MemoryGuard
from kamado.errors import ClosedError, MemoryBudgetError
from kamado.plan.forecast import Plan
from kamado.plan.watch import LimitWatch

from .fakes import FakeExecutor, make_model

MIB = 1 << 20


class Machine:
    """A tree of /proc and /sys with one cgroup that can be limited, and a clock."""

    def __init__(self, root: Path, version: int) -> None:
        self.root = root
        self.now = 100.0
        group = root / ("sys/fs/cgroup/kamado" if version == 2 else "sys/fs/cgroup/memory/kamado")
        self.limit_file = group / ("memory.max" if version == 2 else "memory.limit_in_bytes")
        for path, text in {
            root / "proc/meminfo": "MemTotal: 16777216 kB\nMemAvailable: 12777216 kB\n",
            root / "proc/self/status": "VmRSS: 10240 kB\n",
            root / "proc/self/cgroup": "0::/kamado\n" if version == 2 else "4:memory:/kamado\n",
            self.limit_file: str(1024 * MIB),
            group / ("memory.current" if version == 2 else "memory.usage_in_bytes"): str(10 * MIB),
        }.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def lower(self, limit_bytes: int) -> None:
        self.limit_file.write_text(str(limit_bytes))
        self.now += LOOK_SECONDS


@pytest.fixture(params=[1, 2])
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Machine:
    return Machine(tmp_path, request.param)


class Slots:
    """An executor's slots: 100 MiB at the least."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def ledger(self) -> dict[str, Any]:
        return {"least_expert_bytes": 100 * MIB, "layers": [], "resident": False}

    def shrink_experts(self, expert_bytes: int) -> None:
        self.asked.append(expert_bytes)


def plan_of(experts: int | None, fixed: int = 200 * MIB) -> Plan:
    return Plan(
        model="m", architecture="test", context=512, kv_tokens=512, kv="exact", num_threads=1, max_rows=64,
        max_logit_rows=16, bytes_by_owner={"weights": fixed, "experts": experts or 0}, memory_bytes=1024 * MIB,
        memory_limited_by="budget", least_bytes=fixed, weight_bytes_per_token=1, ops_per_token=1, expert_bytes=experts,
    )  # fmt: skip


def guard_of(machine: Machine, slots: Slots, plan: Plan) -> MemoryGuard:
    return MemoryGuard(plan, slots, LimitWatch(machine.root), clock=lambda: machine.now)


def test_slots_shrink_to_what_the_new_limit_leaves(machine: Machine) -> None:
    slots = Slots()
    guard = guard_of(machine, slots, plan_of(600 * MIB))
    for limit in (1024, 900, 850):  # enough
        machine.lower(limit * MIB)
        guard()
    assert slots.asked == []
    for limit in (700, 500):
        machine.lower(limit * MIB)
        guard()
        fixed_and_margin = 200 * MIB + max(16 * MIB, limit * MIB // 32)
        assert slots.asked[-1] <= limit * MIB - fixed_and_margin
        assert slots.asked[-1] >= limit * MIB - fixed_and_margin - 2 * MIB
    guard()
    machine.lower(900 * MIB)  # raised: what was given back stays given back
    guard()
    machine.lower(600 * MIB)
    guard()
    assert len(slots.asked) == 2
    machine.lower(301 * MIB)  # the least, without a margin
    guard()
    assert slots.asked[2:] == [100 * MIB]
    machine.lower(299 * MIB)
    with pytest.raises(MemoryBudgetError, match=r"kamado was lowered to 299.0 MiB while m ran, which needs 300.0 MiB"):
        guard()


def test_what_was_not_planned_for_takes_what_is_left_and_then_slots(machine: Machine) -> None:
    slots = Slots()
    guard = guard_of(machine, slots, plan_of(800 * MIB))  # 24 MiB of the budget are left
    assert guard.spare_bytes == 24 * MIB
    assert guard.reserve(20 * MIB, "answers of a given form", "…") == 0
    assert (slots.asked, guard.spare_bytes) == ([], 4 * MIB)
    assert guard.reserve(15 * MIB, "answers of a given form", "…") == 12 * MIB  # whole huge pages
    assert slots.asked == [788 * MIB]
    assert guard.spare_bytes == 1 * MIB
    with pytest.raises(
        MemoryBudgetError, match=r"700.0 MiB, and the budget of 1.00 GiB has 1.00 MiB left .*: give up$"
    ):
        guard.reserve(700 * MIB, "answers of a given form", "give up")
    assert guard.spare_bytes == 1 * MIB  # nothing was taken
    # A limit that is lowered later has to leave room for that too.
    machine.lower(700 * MIB)
    guard()
    assert slots.asked[-1] <= 700 * MIB - 200 * MIB - 35 * MIB - 700 * MIB // 32


def test_a_resident_model_has_only_what_is_left(machine: Machine) -> None:
    guard = guard_of(machine, Slots(), plan_of(None, fixed=1000 * MIB))
    guard.reserve(24 * MIB, "answers of a given form", "…")
    with pytest.raises(MemoryBudgetError, match=r"has 0 B left beside m: load it with constraints=True"):
        guard.reserve(1, "answers of a given form", "load it with constraints=True")


def test_it_looks_every_half_second_only(machine: Machine) -> None:
    slots = Slots()
    guard = guard_of(machine, slots, plan_of(600 * MIB))
    machine.limit_file.write_text(str(500 * MIB))
    guard()
    machine.now += LOOK_SECONDS * 0.9
    guard()
    assert slots.asked == []
    machine.now += LOOK_SECONDS
    guard()
    assert len(slots.asked) == 1


def test_a_resident_model_ends_when_it_cannot_fit(machine: Machine) -> None:
    guard = guard_of(machine, Slots(), plan_of(None))
    machine.lower(210 * MIB)
    guard()
    machine.lower(190 * MIB)
    with pytest.raises(MemoryBudgetError, match="lowered to 190.0 MiB"):
        guard()


def test_every_request_gets_the_error() -> None:
    executor = FakeExecutor()
    num_calls = 0

    def before_step() -> None:
        nonlocal num_calls
        num_calls += 1
        if num_calls > 5:
            raise MemoryBudgetError("the memory limit was lowered")

    with make_model(executor, before_step=before_step) as model:
        with pytest.raises(MemoryBudgetError, match="was lowered"):
            list(model.generate([1, 2, 3], max_tokens=100, temperature=0, logit_bias={257: -100, 259: -100}))
        with pytest.raises(ClosedError, match="was lowered"):
            list(model.generate([1, 2, 3], max_tokens=1))
    assert executor.is_closed
