"""The worker process: what it is given, how it ends, and what its end means for who asked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kamado import isolated
from kamado.isolated import Limits, Worker, WorkerEndedError, WorkerNeededError, run_on_big_stack, without_worker

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits are Linux's")

CHECK = "kamado.engine.forms.grammar_compile:check"
USE = "kamado.text.template_worker:use"
MODULES = (CHECK.partition(":")[0], USE.partition(":")[0])
SMALL = {"kind": "regex", "text": "[ab]+"}
LIMITS = Limits(cpu_seconds=2.0, clock_seconds=20.0)


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker(MODULES, nice=0)  # tests wait for it, and the machine may be busy
    yield made
    made.close()


def test_the_worker_answers_again_and_again(worker: Worker) -> None:
    assert worker.pid is None
    assert worker.ask(CHECK, SMALL, LIMITS) == ""
    pid = worker.pid
    assert "cannot be used" in worker.ask(CHECK, SMALL | {"text": "[ab"}, LIMITS)
    assert worker.pid == pid


def test_nobody_waits_for_ever_for_a_turn(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated, "_TURN_SECONDS", 0.05)
    with worker._turn(1.0):  # somebody's work
        with pytest.raises(WorkerEndedError) as late:
            worker.ask(CHECK, SMALL, LIMITS)
        assert late.value.why == "busy"
        monkeypatch.setattr(isolated, "_TURN_SECONDS", 60.0)
        waiting = [threading.Thread(target=worker.ask, args=(CHECK, SMALL, LIMITS)) for _ in range(8)]
        for thread in waiting:
            thread.start()
        while worker._places._value:
            time.sleep(0.001)
        with pytest.raises(WorkerEndedError, match="too busy"):
            worker.ask(CHECK, SMALL, LIMITS)  # the ninth does not even wait
    for thread in waiting:
        thread.join()
    assert worker.ask(CHECK, SMALL, LIMITS) == ""


def test_several_turns_together_have_an_end(worker: Worker) -> None:
    """Each turn would have come; what is too long is all of them, and it is remembered through what lies between."""
    with isolated.until(time.monotonic() + 60.0), worker._turn(1.0):
        with isolated.until(time.monotonic() + 0.05):
            for _ in range(2):
                with pytest.raises(WorkerEndedError) as late:
                    worker.ask(CHECK, SMALL, LIMITS)
                assert late.value.why == "busy"
        assert isolated._seconds_left() > 30.0
    assert worker.ask(CHECK, SMALL, LIMITS) == ""


def test_others_go_first() -> None:
    worker = Worker(MODULES)
    try:
        worker.ask(CHECK, SMALL, LIMITS)
        pid = worker.pid
        assert pid is not None
        assert os.getpriority(os.PRIO_PROCESS, pid) == 19
        assert os.sched_getscheduler(pid) == os.SCHED_IDLE
        assert os.getsid(pid) == pid, "Ctrl-C in our terminal would end it"
    finally:
        worker.close()


def test_nothing_of_the_working_directory_is_imported(tmp_path: Path) -> None:
    for name in ("json", "marshal", "llguidance", "kamado", "site", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text("open('/dev/stderr', 'w').write('taken')\nraise SystemExit(3)\n")
    code = (
        f"import sys; sys.path[:0] = {[p for p in sys.path if p]!r}\n"
        "from kamado.isolated import WORKER, Limits\n"
        f"print(repr(WORKER.ask({CHECK!r}, {SMALL!r}, Limits(2, 20))))"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONSTARTUP": str(tmp_path / "json.py")}
    done = subprocess.run(
        [sys.executable, "-E", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout == "''\n", done.stderr
    assert "taken" not in done.stderr


@pytest.mark.parametrize(
    ("why", "function", "request_"),
    [
        # A chain that the static bounds refuse elsewhere; here it reaches the compiler.
        ("stack", CHECK, SMALL | {"kind": "lark", "text": "start: r0\n" + "".join(
            f'r{i}: "a" r{i + 1}\n' for i in range(8000)) + 'r8000: "b"\n'}),
        ("time", USE, {"source": "{{ ('a' * 2000000).rfind('ab' ~ 'a' * 1000000) }}", "limits": {}, "variables": {}}),
        ("memory", USE, {"source": "{{ a }}" * 60_000, "limits": {}, "variables": {}}),
    ],
)  # fmt: skip
def test_a_limit_ends_the_work_and_the_next_goes_on(worker: Worker, why: str, function: str, request_: object) -> None:
    assert isinstance(request_, dict)
    limits = Limits(0.2, 20.0) if why == "time" else Limits(10.0, 60.0, 8 << 20 if why == "memory" else 64 << 20)
    with pytest.raises(WorkerEndedError) as caught:
        worker.ask(function, request_, limits)
    assert caught.value.why == why, str(caught.value)
    assert worker.ask(CHECK, SMALL, LIMITS) == ""


def test_work_that_waits_for_nothing_is_ended_by_the_clock(worker: Worker) -> None:
    worker.ask(CHECK, SMALL, LIMITS)
    pid = worker.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)  # as on a machine that never gives it a turn
    with pytest.raises(WorkerEndedError) as caught:
        worker._exchange(worker._process, b"", Limits(0.1, -29.8))  # type: ignore[arg-type]
    assert caught.value.why == "busy"


def test_an_idle_worker_ends_and_another_is_started() -> None:
    worker = Worker(MODULES, nice=0, idle_seconds=0.05)
    try:
        worker.ask(CHECK, SMALL, LIMITS)
        first = worker._process
        assert first is not None
        assert first.wait(20) == 0
        assert worker.ask(CHECK, SMALL, LIMITS) == ""
        assert worker.pid != first.pid
    finally:
        worker.close()


_PARENT = """
import os, signal, sys, threading, time
from kamado.isolated import WORKER, Limits
WORKER._nice = 0  # at the lowest priority even its end takes long on a busy machine
WORKER.ask({check!r}, {small!r}, Limits(2, 20))
print(WORKER.pid, flush=True)
if sys.argv[1] == "busy":
    work = dict(source="{{{{ ('a' * 2000000).rfind('ab' ~ 'a' * 1000000) }}}}", limits={{}}, variables={{}})
    threading.Thread(target=WORKER.ask, args=({use!r}, work, Limits(50, 100)), daemon=True).start()
    time.sleep(0.5)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("state", ["busy", "idle"])
def test_the_worker_ends_with_its_parent(state: str) -> None:
    code = _PARENT.format(check=CHECK, small=SMALL, use=USE)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", code, state], env=environment, capture_output=True, check=False)
    pid = int(done.stdout)
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            state_line = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return
        if state_line == "Z":  # dead, and nobody in this container collects it
            return
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("the worker outlived its parent")


def test_a_forked_child_has_a_worker_of_its_own(worker: Worker) -> None:
    code = (
        "import os\nfrom kamado.isolated import WORKER, Limits\n"
        f"ask = lambda: WORKER.ask({CHECK!r}, {SMALL!r}, Limits(2, 20))\n"
        "ask(); mine = WORKER.pid\n"
        "WORKER._lock.acquire()\n"  # as another thread may hold it
        "child = os.fork()\n"
        "if not child:\n    os._exit(0 if ask() == '' and WORKER.pid != mine else 1)\n"
        "WORKER._lock.release()\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0\n"
        "assert ask() == '' and WORKER.pid == mine\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)


def test_a_thread_that_must_not_wait_is_told(worker: Worker) -> None:
    with without_worker(), pytest.raises(WorkerNeededError):
        worker.ask(CHECK, SMALL, LIMITS)
    assert worker.ask(CHECK, SMALL, LIMITS) == ""


def test_the_big_stack_is_that_thread_s_alone() -> None:
    before = threading.stack_size()
    assert run_on_big_stack(lambda: 7) == 7
    assert threading.stack_size() == before
    with pytest.raises(KeyError):
        run_on_big_stack(lambda: {}["x"])
