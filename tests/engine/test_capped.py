"""The budget inside a real memory cgroup, which charges the page cache and the kernel's share too: the least that is
stated runs, a cold start stays within it, memory does not grow, and a limit that is lowered is kept to. In a cgroup v1
of our own; skipped where none can be made."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kamado.files import open_checkpoint
from kamado.files.page_cache import forget_cached
from kamado.models import build_program
from kamado.plan.budget import parse_size
from kamado.plan.forecast import plan

from .cold import ColdPython, copy_python
from .moe_file import write_dense, write_moe

pytest.importorskip("kamado._native", reason="the native module is not built")
pytestmark = pytest.mark.slow

MIB = 1 << 20
CONTEXT = 256
GROUPS = Path("/sys/fs/cgroup/memory")

# Prints a line of JSON after each answer: tokens so far, slots, peaks. Reads a line before the next one.
PROGRAM = """
import json, sys, time
import kamado
from kamado.plan.usage import memory_use
path, memory, seconds, answers = sys.argv[1], int(sys.argv[2]) or None, float(sys.argv[3]), int(sys.argv[4])
model = kamado.load(path, memory=memory, context=256, threads=2)
end = time.monotonic() + seconds
for i in range(answers) if answers else iter(int, 1):
    if not answers and time.monotonic() > end:
        break
    tokens = []
    try:
        for piece in model.generate([i % 500, 7, 9], temperature=0, max_tokens=60 if i else 2):
            tokens.append(piece.token)
    except kamado.KamadoError as error:
        print(json.dumps({"error": type(error).__name__, "text": str(error), "tokens": tokens}), flush=True)
        break
    stats = model.stats
    print(json.dumps({
        "tokens": tokens, "slots": stats.ledger.slots if stats.ledger else None, "peak": stats.peak_bytes,
        "budget": stats.budget_bytes, "resident": memory_use().resident_bytes, "misses":
        stats.ledger.total.misses if stats.ledger else 0, "held": stats.has_held, "least": model.plan.least_bytes,
        "owners": stats.bytes_by_owner, "planned": stats.planned_by_owner,
    }), flush=True)
    if answers:
        sys.stdin.readline()
"""


class Group:
    """A memory cgroup."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def limit(self, limit_bytes: int) -> None:
        (self.directory / "memory.limit_in_bytes").write_text(str(limit_bytes))

    def number(self, name: str) -> int:
        return int((self.directory / name).read_text())

    def start(
        self, path: Path, memory: int, *, seconds: float = 0, answers: int = 0, python: ColdPython | None = None
    ) -> subprocess.Popen[str]:
        executable = sys.executable if python is None else str(python.executable)
        words = [executable, "-c", PROGRAM, str(path), str(memory), str(seconds), str(answers)]
        into = 'echo $$ > "$0" && exec "$@"'
        return subprocess.Popen(
            ["sh", "-c", into, str(self.directory / "cgroup.procs"), *words],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=None if python is None else python.environment,
        )  # fmt: skip

    def run(self, path: Path, memory: int, **options: Any) -> tuple[list[dict[str, Any]], str]:
        process = self.start(path, memory, **options)
        stdout, stderr = process.communicate("\n" * 100, timeout=250)
        return [json.loads(line) for line in stdout.splitlines()], stderr


@pytest.fixture
def group() -> Iterator[Group]:
    directory = GROUPS / f"kamado-test-{os.getpid()}-{time.monotonic_ns()}"
    if not (GROUPS / "memory.limit_in_bytes").exists():
        pytest.skip("no cgroup v1 with a memory controller")
    try:
        directory.mkdir()
        (directory / "memory.limit_in_bytes").write_text(str(1 << 40))
    except OSError as error:
        pytest.skip(f"no memory cgroup can be made: {error.strerror}")
    yield Group(directory)
    for _ in range(50):
        with contextlib.suppress(OSError):
            (directory / "memory.force_empty").write_text("0")
        try:
            directory.rmdir()
            return
        except OSError:  # the last process is still on its way out
            time.sleep(0.1)


@pytest.fixture(scope="module")
def moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 layers of 64 experts, 4 a token: 160 MB of experts."""
    return write_moe(tmp_path_factory.mktemp("capped"), layers=12, hidden=512, experts=64)


def least_bytes(path: Path) -> int:
    checkpoint = open_checkpoint(path)
    return plan(checkpoint, build_program(checkpoint), memory=1 << 20, context=CONTEXT, threads=2).least_bytes


@pytest.fixture(scope="module")
def expected(moe: Path) -> list[list[int]]:
    """Answers with everything resident."""
    import kamado

    with kamado.load(moe, context=CONTEXT, threads=2) as model:
        assert not model.plan.is_streamed
        return [
            [piece.token for piece in model.generate([i, 7, 9], temperature=0, max_tokens=60 if i else 2)]
            for i in range(5)
        ]


def test_the_least_that_is_stated_runs_and_less_is_refused(moe: Path, group: Group, expected: list[list[int]]) -> None:
    least = least_bytes(moe)
    group.limit(least)
    lines, errors = group.run(moe, least, answers=2)
    assert [line["tokens"] for line in lines] == expected[:2], errors
    assert all(line["held"] and line["peak"] <= least for line in lines)
    assert group.number("memory.max_usage_in_bytes") <= least
    lines, errors = group.run(moe, least * 95 // 100, answers=1)
    assert lines == []
    assert "MemoryBudgetError" in errors
    stated = re.search(r"the least that works is ([0-9.]+ [KMG]iB)", errors)
    assert stated is not None
    assert least <= parse_size(stated[1]) <= least * 1.01


@pytest.fixture(scope="module")
def cold_python(tmp_path_factory: pytest.TempPathFactory) -> ColdPython:
    return copy_python(tmp_path_factory.mktemp("cold") / "python")


@pytest.mark.parametrize(("is_roomy", "more"), [(True, 64 * MIB), (False, 0)], ids=["roomy", "exact"])
def test_a_cold_start_stays_within_the_budget(
    moe: Path, group: Group, cold_python: ColdPython, expected: list[list[int]], is_roomy: bool, more: int
) -> None:
    """All that the cgroup counts, with nothing of Python, the libraries or the model in the page cache before; in a
    cgroup of exactly the budget nothing has to be reclaimed."""
    budget = least_bytes(moe) + more
    group.limit(2 * budget if is_roomy else budget)
    cold_python.drop()
    lines, errors = group.run(moe, budget, answers=2, python=cold_python)
    assert [line["tokens"] for line in lines] == expected[:2], errors
    peak = group.number("memory.max_usage_in_bytes")
    assert peak <= budget
    assert group.number("memory.failcnt") == 0
    last = lines[-1]
    assert last["held"]
    # What it says of itself is what was counted, and what others had read before: libraries of the system, directories.
    assert peak - 2 * MIB <= last["peak"] <= peak + 20 * MIB
    owners, planned = last["owners"], last["planned"]
    assert 40 * MIB < owners["libraries"] <= planned["libraries"]
    assert 2 * MIB < owners["kernel"] <= planned["kernel"]
    assert group.number("memory.kmem.max_usage_in_bytes") <= planned["kernel"]


def test_loading_a_dense_model_leaves_no_read_ahead_behind(
    tmp_path: Path, group: Group, cold_python: ColdPython
) -> None:
    """The system reads ahead as it likes (8 MiB a window and more on some machines); what loading has in the page cache
    stays within the few MiB that are planned, in a cgroup of exactly the plan."""
    path = write_dense(tmp_path)
    checkpoint = open_checkpoint(path)
    budget = plan(checkpoint, build_program(checkpoint), context=CONTEXT, memory=1 << 40, threads=2).peak_bytes
    forget_cached([path])
    cold_python.drop()
    group.limit(budget)
    lines, errors = group.run(path, budget, answers=1, python=cold_python)
    assert len(lines) == 1, errors
    assert lines[0]["slots"] is None
    assert group.number("memory.max_usage_in_bytes") <= budget
    assert group.number("memory.failcnt") == 0


def test_memory_does_not_grow(moe: Path, group: Group) -> None:
    """Twenty seconds of answers in a cgroup of the budget: under it, and level."""
    budget = least_bytes(moe) + 24 * MIB
    group.limit(budget)
    lines, errors = group.run(moe, budget, seconds=20)
    assert len(lines) > 5, errors
    assert all(line["held"] and line["peak"] <= budget for line in lines)
    assert lines[-1]["misses"] > lines[0]["misses"]  # it streamed all the time
    assert group.number("memory.max_usage_in_bytes") <= budget
    residents = [line["resident"] for line in lines[len(lines) // 3 :]]
    middle = len(residents) // 2
    assert max(residents[middle:]) - max(residents[:middle]) < MIB
    owners, planned = lines[-1]["owners"], lines[-1]["planned"]
    assert {"weights", "experts", "kv", "scratch", "interpreter", "file_cache"} <= set(owners)
    for owner in ("weights", "experts", "kv", "scratch", "file_cache"):
        assert owners[owner] <= planned[owner] * 1.02 + MIB, owner


def test_a_limit_that_is_lowered_is_kept_to(moe: Path, group: Group, expected: list[list[int]]) -> None:
    budget = least_bytes(moe) + 120 * MIB
    lowered = least_bytes(moe) + 70 * MIB  # more than the first, short answer has used
    group.limit(budget + 64 * MIB)
    process = group.start(moe, budget, answers=5)
    assert process.stdin is not None
    assert process.stdout is not None
    lines = []
    try:
        for i in range(5):
            lines.append(json.loads(process.stdout.readline()))
            if i == 0:
                group.limit(lowered)
                time.sleep(1)  # two looks
            process.stdin.write("\n")
            process.stdin.flush()
        process.communicate(timeout=100)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    assert [line["tokens"] for line in lines] == expected
    assert lines[-1]["slots"] < lines[0]["slots"]
    assert lines[-1]["resident"] <= lowered
    assert lines[-1]["misses"] > lines[1]["misses"]
