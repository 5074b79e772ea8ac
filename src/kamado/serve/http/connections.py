"""Who stands on the line: bounds of connections before there is a request that the gate could judge.

A connection is silent (no whole request header yet), busy (its request is being answered), or idle (it waits for the
next one). Silent ones have `header_seconds`, idle ones `idle_seconds`. There are at most `max_connections`, of which
`max_silent` may be silent: a new one closes the oldest of them, so whoever says nothing never locks others out. When
all places are taken, the silent or idle one that has been so for longest goes; when all are busy, the new one is told
to come back.

Covered, with http1.py: silence, dripped headers, floods of connections, oversized headers, bodies in tiny chunks, and
bodies or answers that nobody reads. Not covered: an attacker with so many addresses and requests that all places are
busy.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter as CountOf
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from ..metrics import Registry

_log = logging.getLogger("kamado.serve")

State = Literal["silent", "busy", "idle"]

BODY_READ_BYTES = 256 << 10  # one read of a body whose length is known; others are smaller
ACCEPT_BATCH = 16  # taken in one turn of the loop: fewer than silent ones may stand, so that none goes before it spoke


@dataclass(frozen=True, slots=True)
class ConnectionBounds:
    """Bounds of connections. Seconds; 0: no bound."""

    max_connections: int = 512
    max_silent: int = 128
    max_per_address: int | None = None
    max_header_bytes: int = 32 << 10
    header_seconds: float = 10.0
    idle_seconds: float = 60.0


class Member(Protocol):
    """A connection, as far as it is known here."""

    address: str
    transport: asyncio.Transport


class Connections:
    """All connections of one server. One event loop's own."""

    def __init__(self, bounds: ConnectionBounds, metrics: Registry) -> None:
        self.bounds = bounds
        self.read_buffer = memoryview(bytearray(BODY_READ_BYTES))  # of whoever is reading at this moment
        self._states: dict[Member, State] = {}
        self._since: dict[State, dict[Member, float]] = {"silent": {}, "busy": {}, "idle": {}}  # oldest first
        self._by_address: CountOf[str] = CountOf()
        self._closed = metrics.counter(
            "kamado_connections_closed_total",
            "Connections that the server closed: header_time, header_size, malformed, idle, silent_limit, limit, "
            "address, chunks.",
            ("reason",),
        )
        self._tell = Damped(_log)
        metrics.gauge(
            "kamado_connections",
            "Connections by state: silent (no whole request header yet), busy, idle.",
            lambda: [((state,), float(self.count(state))) for state in self._since],
            ("state",),
        )

    def __len__(self) -> int:
        return len(self._states)

    def count(self, state: State) -> int:
        """How many there are of a state."""
        return len(self._since[state])

    def enter(self, member: Member) -> str:
        """A new connection, silent at first; "" or why it cannot stay."""
        bounds = self.bounds
        if bounds.max_per_address and self._by_address[member.address] >= bounds.max_per_address:
            return self._refuse("address", "this address has as many connections as one may have")
        silent, idle = self._since["silent"], self._since["idle"]
        while len(self._states) >= bounds.max_connections:
            oldest = [next(iter(group.items())) for group in (silent, idle) if group]
            if not oldest:
                return self._refuse("limit", "all connections of this server are at work")
            self._evict(min(oldest, key=lambda entry: entry[1])[0], "limit")
        self._by_address[member.address] += 1
        self._states[member] = "silent"
        silent[member] = time.monotonic()
        while len(silent) > bounds.max_silent:
            self._evict(next(iter(silent)), "silent_limit")
        return ""

    def move(self, member: Member, state: State) -> bool:
        """Its state from now on, unless it has left; the youngest there when it is another than before, which is
        returned."""
        before = self._states.get(member, state)
        if before == state:
            return False
        del self._since[before][member]
        self._states[member] = state
        self._since[state][member] = time.monotonic()
        return True

    def leave(self, member: Member) -> None:
        """It is gone. May be called again."""
        state = self._states.pop(member, None)
        if state is None:
            return
        del self._since[state][member]
        self._by_address[member.address] -= 1
        if not self._by_address[member.address]:
            del self._by_address[member.address]

    def note_closed(self, reason: str) -> None:
        """Counts one that was closed for `reason`, and says so in the log, at most every few seconds."""
        self._closed.add(1, reason)
        if reason != "idle":  # which is how connections usually end
            self._tell.warning("connections closed", reason)

    def _refuse(self, reason: str, text: str) -> str:
        self.note_closed(reason)
        return text

    def _evict(self, member: Member, reason: str) -> None:
        self.note_closed(reason)
        self.leave(member)
        member.transport.abort()


class Damped:
    """Log lines that a stranger can cause at will: one of a kind every few seconds, with how many it stands for."""

    def __init__(self, log: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock = clock
        self._last: dict[str, float] = {}
        self._held: CountOf[str] = CountOf()

    def warning(self, event: str, reason: str) -> None:
        """A line, unless there was one of this reason within five seconds."""
        now = self._clock()
        self._held[reason] += 1
        if now - self._last.get(reason, -DAMP_SECONDS) < DAMP_SECONDS:
            return
        self._last[reason] = now
        self._log.warning(event, extra={"reason": reason, "count": self._held.pop(reason)})


DAMP_SECONDS = 5.0


# Descriptors beside connections: model files with their shards, downloads, workers' pipes, logs.
_OTHER_FILES = 128
_LEAST_CONNECTIONS = 16


def raise_file_limit() -> int | None:
    """Raises this process's limit of open files as far as it may; what it is then. None: there is none to speak of."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = 1 << 20
    wanted = most if hard == resource.RLIM_INFINITY else min(hard, most)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):  # macOS has a lower limit of its own
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


def affordable_connections(wanted: int, file_limit: int | None) -> int:
    """How many of `wanted` connections the limit of open files affords, 16 at the least."""
    return wanted if file_limit is None else max(_LEAST_CONNECTIONS, min(wanted, file_limit - _OTHER_FILES))


def loop_exception_handler(log: logging.Logger) -> Callable[[asyncio.AbstractEventLoop, dict[str, Any]], None]:
    """For `set_exception_handler`: no descriptors left is one line every few seconds, not hundreds with tracebacks.

    asyncio itself tries to accept again after a second.
    """
    tell = Damped(log)

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if context.get("message") == "socket.accept() out of system resource":
            tell.warning("no connection can be taken", f"{getattr(error, 'strerror', None) or error}")
        else:
            log.error(str(context.get("message")), exc_info=error)

    return handle
