"""Work on text that a stranger wrote, in a process that may die: compiling grammars and templates, reading tokenizers.

    reply = WORKER.ask("kamado.text.template_worker:render", request, limits)

The worker is a small interpreter of its own (never a fork: this process has threads, locks and a loaded model). It does
one thing at a time, at the lowest priority, and takes nothing of the caller's working directory or environment.

Covered, whatever the work does: processor time and time on the clock (the kernel's timers end the worker, so code that
never returns to Python is ended too), memory (its address space may grow by so much), depth of the native stack (a
thread of known size; past it the worker dies, the server does not), what it may write (no file). It ends by itself when
its parent does, when it was idle for some time, and after work that left it large.
Not covered: code execution. The worker is no sandbox against a fault of a package that lets a file run code.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import marshal
import math
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from .errors import BusyError

Why = Literal["time", "memory", "stack", "busy", "broken"]

# Native stack of the worker's thread. Whatever is done again in this process runs on OWN_STACK_BYTES, four times that.
WORKER_STACK_BYTES = 8 << 20
OWN_STACK_BYTES = 32 << 20
# Anonymous memory of the idle worker with llguidance and Jinja imported: 14 MB measured (CPython 3.11, x86-64).
WORKER_BASE_BYTES = 16 << 20
# What grammars and templates may take beyond that.
WORK_BYTES = 64 << 20

_MAX_MESSAGE_BYTES = 64 << 20
_IDLE_SECONDS = 60.0
_START_SECONDS = 30.0
_AGAIN_SECONDS = 60.0  # a start takes 0.3 s of processor time: after so long again at our own priority
_SPARE_BYTES = 24 << 20  # a worker that is larger than that after its work is replaced
_BUSY = "the machine is too busy with other work: try again later"
# Callers that may wait for their turn, and for how long: a queue without an end would be answered by nobody.
_MAX_WAITING = 8
_TURN_SECONDS = 20.0
_HEADER = struct.Struct("<I")
_PACKAGES = ("llguidance", "jinja2", "markupsafe", "tokenizers")


@dataclass(frozen=True, slots=True)
class Limits:
    """What one piece of work may use. Others go first, so on a busy machine the clock shows more than the processor."""

    cpu_seconds: float
    clock_seconds: float
    memory_bytes: int = WORK_BYTES


class WorkerEndedError(Exception):
    """The worker ended before its work did. `why` says which limit it met: "time" is the processor's, "busy" the
    clock's (others kept the processor), "broken" none of them."""

    def __init__(self, why: Why, detail: str = "") -> None:
        super().__init__(detail or why)
        self.why = why


def why_ended(error: WorkerEndedError, what: str, reasons: Mapping[str, str]) -> str:
    """What is said of `what`, which the worker could not do: of `reasons` the one for the limit that it met.

    Raises BusyError where nothing is wrong with it and the machine was too busy.
    """
    if error.why == "busy":
        raise BusyError(f"{what} could not be tried: {error}") from None
    return reasons.get(error.why, f"could not be tried: {error}")


class WorkerNeededError(Exception):
    """The work needs the worker, and this thread must not wait for it (`without_worker`)."""


_no_waiting = threading.local()


@contextlib.contextmanager
def without_worker() -> Iterator[None]:
    """Inside it, work that would wait for the worker raises WorkerNeededError instead: threads that everybody shares
    try so first, and hand such work to threads that may wait."""
    before = getattr(_no_waiting, "is_set", False)
    _no_waiting.is_set = True
    try:
        yield
    finally:
        _no_waiting.is_set = before


_patience = threading.local()


@contextlib.contextmanager
def until(deadline: float) -> Iterator[None]:
    """Inside it, this thread waits for the worker until `deadline` (of `time.monotonic`) and no longer, however often
    it asks: one turn has an end, but work that needs several could wait for each."""
    before = getattr(_patience, "deadline", math.inf)
    _patience.deadline = min(before, deadline)
    try:
        yield
    finally:
        _patience.deadline = before


def _seconds_left() -> float:
    """How long this thread may still wait for the worker; inf: nobody said. Raises WorkerEndedError when it is over."""
    left: float = getattr(_patience, "deadline", math.inf) - time.monotonic()
    if left <= 0:
        raise WorkerEndedError("busy", _BUSY)
    return left


class Worker:
    """A process that is started when it is first needed. Thread-safe; work waits for its turn."""

    def __init__(self, modules: Sequence[str] = (), *, nice: int = 19, idle_seconds: float = _IDLE_SECONDS) -> None:
        """`modules` are imported and warmed up at its start, at our own priority: else, on a busy machine, the first
        work would wait for seconds. Not soon after another start: else who makes workers die could take a core."""
        self._modules = tuple(modules)
        self._nice = nice
        self._idle_seconds = idle_seconds
        self._lock = threading.Lock()
        self._places = threading.BoundedSemaphore(1 + _MAX_WAITING)
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = -_AGAIN_SECONDS
        _workers.add(self)

    def ask(self, function: str, request: Mapping[str, Any], limits: Limits) -> Any:
        """What `module:function` of this package returns (JSON) for `request` (plain data, as `marshal` writes it).

        Raises WorkerEndedError when a limit was met, the worker died or the turn did not come, WorkerNeededError inside
        `without_worker`.
        """
        if getattr(_no_waiting, "is_set", False):
            raise WorkerNeededError(function)
        call = {
            "call": function,
            "with": request,
            "seconds": (limits.cpu_seconds, limits.clock_seconds),
            "memory": limits.memory_bytes,
        }
        message = marshal.dumps(call)  # the worker believes us; its own words are read as JSON
        if len(message) > _MAX_MESSAGE_BYTES:
            raise WorkerEndedError("memory", "the request is larger than a worker takes")
        with self._turn(min(_TURN_SECONDS, _seconds_left())):
            for is_again in (False, True):
                process, is_new = self._running()
                try:
                    return self._exchange(process, message, limits)
                except BaseException as error:
                    ended = self._drop(is_ending=isinstance(error, _NoReplyError))
                    # An idle worker may end in the moment in which it is asked.
                    if isinstance(error, _NoReplyError):
                        if ended == 0 and not is_new and not is_again:
                            continue
                        raise WorkerEndedError(*_why(ended)) from None
                    raise
            raise AssertionError("unreachable")

    @contextlib.contextmanager
    def _turn(self, seconds: float) -> Iterator[None]:
        if not self._places.acquire(blocking=False):
            raise WorkerEndedError("busy", _BUSY)
        try:
            if not self._lock.acquire(timeout=seconds):
                raise WorkerEndedError("busy", _BUSY)
            try:
                yield
            finally:
                self._lock.release()
        finally:
            self._places.release()

    def close(self) -> None:
        """Ends the process. The next work starts another."""
        with self._lock:
            self._drop()

    def forget(self) -> None:
        """In a forked child: the process and the thread that held the lock are the parent's."""
        self._lock, self._process = threading.Lock(), None
        self._places = threading.BoundedSemaphore(1 + _MAX_WAITING)

    @property
    def pid(self) -> int | None:
        """Of the process that waits for work, if there is one."""
        process = self._process
        return None if process is None else process.pid

    def _running(self) -> tuple[subprocess.Popen[bytes], bool]:
        if self._process is not None and self._process.poll() is None:
            return self._process, False
        self._drop()
        now = time.monotonic()
        self._process = _start(self._modules, self._nice, self._idle_seconds)
        if self._nice and now - self._started_at < _AGAIN_SECONDS:
            _make_idle(self._process.pid)
        self._started_at = now
        return self._process, True

    def _drop(self, *, is_ending: bool = False) -> int | None:
        """Ends the process and says how it ended; None: there is none. `is_ending`: its pipe is closed, so it is about
        to say by which signal it ended."""
        process, self._process = self._process, None
        if process is None:
            return None
        code: int | None = None
        if is_ending:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(_START_SECONDS)
        if code is None and (code := process.poll()) is None:
            process.kill()
            code = process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                assert pipe is not None  # both are pipes
                pipe.close()
        return code

    def _exchange(self, process: subprocess.Popen[bytes], message: bytes, limits: Limits) -> Any:
        assert process.stdin is not None
        assert process.stdout is not None
        deadline = time.monotonic() + min(_START_SECONDS + limits.clock_seconds, _seconds_left())
        try:
            process.stdin.write(_HEADER.pack(len(message)) + message)
            process.stdin.flush()
        except OSError:
            raise _NoReplyError from None
        (size,) = _HEADER.unpack(_read(process.stdout.fileno(), _HEADER.size, deadline))
        if size > _MAX_MESSAGE_BYTES:
            raise WorkerEndedError("broken", "the worker's answer cannot be read")
        reply = json.loads(_read(process.stdout.fileno(), size, deadline))
        if "ended" in reply:
            raise WorkerEndedError(reply["ended"], reply.get("detail", ""))
        return reply["is"]


class _NoReplyError(Exception):
    """The pipe was closed at the other end."""


def _read(fd: int, size: int, deadline: float) -> bytes:
    parts: list[bytes] = []
    while size:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1e3):
            raise WorkerEndedError("busy", _BUSY)
        part = os.read(fd, min(size, 1 << 20))
        if not part:
            raise _NoReplyError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _why(code: int | None) -> tuple[Why, str]:
    """What a worker's end says of the work."""
    if code is None:
        return "broken", "the worker was lost"
    slow, deep, large = "it took too long", "it is nested too deeply", "it needs too much memory"
    said: dict[int, tuple[Why, str]] = {
        signal.SIGPROF: ("time", slow),
        signal.SIGXCPU: ("time", slow),
        signal.SIGALRM: ("busy", _BUSY),
        signal.SIGSEGV: ("stack", deep),
        signal.SIGBUS: ("stack", deep),
        signal.SIGABRT: ("memory", large),  # native allocations that fail abort
        signal.SIGKILL: ("memory", large),  # so the system ends who takes too much
    }
    return said.get(-code, ("broken", f"the worker ended with code {code}"))


def _start(modules: Sequence[str], nice: int, idle_seconds: float) -> subprocess.Popen[bytes]:
    root = Path(__file__).resolve().parent.parent
    options = {"modules": modules, "nice": nice, "idle": idle_seconds, "path": [str(root), *_package_folders()]}
    code = "import json,sys;o=json.loads(sys.argv[1]);sys.path+=o['path'];from kamado.isolated import serve;serve(o)"
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "SYSTEMROOT", "TZ") if name in os.environ}
    try:
        return subprocess.Popen(
            # -I: nothing of the working directory, of PYTHON* variables or the user's site; -S: no site hooks
            [sys.executable, "-I", "-S", "-X", "utf8", "-c", code, json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=-1,
            cwd=os.sep,
            env={**kept, "MALLOC_ARENA_MAX": "1", "TOKENIZERS_PARALLELISM": "false"},
            start_new_session=True,  # Ctrl-C in the terminal is not for it
        )
    except OSError as error:
        raise WorkerEndedError("broken", f"the worker cannot be started: {error.strerror or error}") from error


def _make_idle(pid: int) -> None:
    """Whoever else wakes up takes the core at once. From a nice process it would get it only when that has had its
    slice, 3 ms, and the threads that compute wake up a hundred times a step."""
    if hasattr(os, "SCHED_IDLE"):
        with contextlib.suppress(OSError):
            os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))


def _package_folders() -> list[str]:
    """Folders from which this process takes the packages that a worker uses."""
    import importlib.util

    folders: list[str] = []
    for name in _PACKAGES:
        with contextlib.suppress(ImportError, ValueError):
            spec = importlib.util.find_spec(name)
            if spec is not None and spec.origin is not None:
                folder = str(Path(spec.origin).resolve().parent.parent)
                if folder not in folders:
                    folders.append(folder)
    return folders


def _forget_all() -> None:
    for worker in _workers:
        worker.forget()


_workers: weakref.WeakSet[Worker] = weakref.WeakSet()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)


def run_on_big_stack(work: Callable[[], Any], stack_bytes: int = OWN_STACK_BYTES) -> Any:
    """`work()` on a new thread whose native stack has that many bytes; only what is used of it takes memory."""
    out: list[Any] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            out.append(work())
        except BaseException as error:
            errors.append(error)

    with _stack_size_lock:
        before = threading.stack_size(stack_bytes)
        try:
            thread = threading.Thread(target=run, name="kamado-deep", daemon=True)
            thread.start()
        finally:
            threading.stack_size(before)
    thread.join()
    if errors:
        raise errors[0]
    return out[0]


_stack_size_lock = threading.Lock()


# --- in the worker ----------------------------------------------------------------------------------------------------


def serve(options: Mapping[str, Any]) -> NoReturn:
    """The worker's whole life: reads requests until the pipe is closed or nothing comes for a while."""
    import resource

    with contextlib.suppress(OSError):  # when memory is short, this process goes first
        Path("/proc/self/oom_score_adj").write_text("1000")
    for what, most in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_NOFILE, 64)):
        resource.setrlimit(what, (most, most))
    for name in ("SIGPROF", "SIGALRM", "SIGIO"):
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    for module in options["modules"]:
        with contextlib.suppress(Exception):  # of a package that is not there, the work will say so
            _warm_up(module)
    with contextlib.suppress(OSError):  # where sessions share the processor equally, its session must be nice too
        Path("/proc/self/autogroup").write_text(str(options["nice"]))
    os.nice(int(options["nice"]))
    if options["nice"]:
        _make_idle(0)
    threading.stack_size(WORKER_STACK_BYTES)
    thread = threading.Thread(target=_loop, args=(float(options["idle"]),), daemon=True)
    thread.start()
    thread.join()
    os._exit(0)


def _loop(idle_seconds: float) -> None:
    source, sink = os.fdopen(0, "rb", buffering=1 << 16), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a package prints is no answer
    least_bytes = 0
    while select.select([source], [], [], idle_seconds)[0]:
        header = source.read(_HEADER.size)
        if len(header) < _HEADER.size:
            return
        request = marshal.loads(source.read(_HEADER.unpack(header)[0]))
        module, _, name = request["call"].partition(":")
        assert module.startswith("kamado.")
        function = getattr(_warm_up(module), name)
        least_bytes = least_bytes or _address_space()
        cpu_seconds, clock_seconds = request["seconds"]
        with _limited(cpu_seconds, clock_seconds, least_bytes + request["memory"]):
            reply = _reply(function, request["with"])
        sink.write(_HEADER.pack(len(reply)) + reply)
        sink.flush()
        if _address_space() > least_bytes + _SPARE_BYTES:
            return


def _warm_up(name: str) -> Any:
    """The module, with the imports and tables that are not the work's."""
    module = importlib.import_module(name)
    getattr(module, "warm_up", int)()
    return module


def _reply(function: Callable[[Any], Any], request: Any) -> bytes:
    try:
        return json.dumps({"is": function(request)}, separators=(",", ":")).encode("utf-8", "surrogatepass")
    except MemoryError:
        return json.dumps({"ended": "memory", "detail": "it needs too much memory"}).encode()
    except RecursionError:
        return json.dumps({"ended": "stack", "detail": "it is nested too deeply"}).encode()
    except BaseException as error:
        detail = f"{type(error).__name__}: {str(error)[:300]}"
        return json.dumps({"ended": "broken", "detail": detail}).encode()


@contextlib.contextmanager
def _limited(cpu_seconds: float, clock_seconds: float, most_bytes: int) -> Iterator[None]:
    """The kernel ends this process when the work passes its time, or when the parent goes; allocations past an address
    space of `most_bytes` fail."""
    import fcntl
    import resource

    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (most_bytes, hard))
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
    signal.setitimer(signal.ITIMER_REAL, clock_seconds)
    # Nothing is sent while it works, so news on the pipe means that its other end was closed: SIGIO, which ends it.
    flags = fcntl.fcntl(0, fcntl.F_GETFL)
    fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(0, fcntl.F_SETFL, flags | getattr(os, "O_ASYNC", 0x2000))
    try:
        yield
    finally:
        fcntl.fcntl(0, fcntl.F_SETFL, flags)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def _address_space() -> int:
    """Bytes of it; so many that no limit is met where the system does not say."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 1 << 40


# Grammars and templates.
WORKER = Worker(("kamado.engine.forms.grammar_compile", "kamado.text.template_worker"))


def worker_pids() -> list[int]:
    """Of the worker processes that are there now."""
    return [pid for worker in list(_workers) if (pid := worker.pid) is not None]
