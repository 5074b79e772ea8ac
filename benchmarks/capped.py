"""Runs a command in a memory cgroup of its own, whose limit counts cached file pages too; v1 and v2."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TIMED_OUT = -1
_V1 = Path("/sys/fs/cgroup/memory")
_V2 = Path("/sys/fs/cgroup")


class NotPossibleError(Exception):
    """This machine does not let us cap memory, drop caches or set read-ahead; the text says which and why."""


@dataclass(frozen=True, slots=True)
class CappedRun:
    """What a command printed and what its cgroup was charged."""

    stdout: str
    stderr: str
    code: int
    seconds: float
    peak_bytes: int  # anonymous memory, page cache and the kernel's share
    limit_hits: int  # times the limit was reached and something had to be reclaimed
    disk_bytes: int  # read from the device meanwhile, by anyone


class Capped:
    """A memory cgroup and what runs in it. Made by `capped`."""

    def __init__(self, directory: Path, is_v2: bool, device: str | None) -> None:
        self.directory = directory
        self._is_v2 = is_v2
        self._device = device
        self._begin = time.perf_counter()
        self._read_before = disk_bytes_read(device)

    def start(self, command: list[str], **pipes: Any) -> subprocess.Popen[str]:
        """Starts a command inside; `pipes` as for Popen."""
        words = ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(self.directory / "cgroup.procs"), *command]
        return subprocess.Popen(words, text=True, **pipes)

    def usage_bytes(self) -> int:
        """Charged now: anonymous memory, page cache and the kernel's share."""
        return _number(self.directory / ("memory.current" if self._is_v2 else "memory.usage_in_bytes"))

    def kill(self, process: subprocess.Popen[str]) -> None:
        """Ends a process, also one that is stuck reclaiming: a limit far too small keeps it in the kernel for minutes,
        deaf to signals, until there is memory again."""
        process.kill()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(OSError):
                _set_limit(self.directory, self._is_v2, None)
            process.wait()

    def result(self, stdout: str, stderr: str, code: int) -> CappedRun:
        """What was charged so far."""
        name = "memory.peak" if self._is_v2 else "memory.max_usage_in_bytes"
        return CappedRun(
            stdout,
            stderr,
            code,
            time.perf_counter() - self._begin,
            _number(self.directory / name),
            _events(self.directory) if self._is_v2 else _number(self.directory / "memory.failcnt"),
            disk_bytes_read(self._device) - self._read_before,
        )


def run_capped(
    command: list[str], limit_bytes: int | None, *, timeout: float = 3600, device: str | None = None
) -> CappedRun:
    """Runs `command` under `limit_bytes` (None: uncapped, but measured). Raises NotPossibleError without the rights.

    The code is TIMED_OUT when it was not done after `timeout` seconds.
    """
    with (
        capped(limit_bytes, device=device) as group,
        tempfile.TemporaryFile("w+", errors="replace") as out,
        tempfile.TemporaryFile("w+", errors="replace") as err,
    ):
        process = group.start(command, stdout=out, stderr=err, stdin=subprocess.DEVNULL)
        try:
            code = process.wait(timeout=timeout)
        except subprocess.TimeoutExpired:
            group.kill(process)
            code = TIMED_OUT
        except BaseException:
            group.kill(process)
            raise
        out.seek(0)
        err.seek(0)
        stderr = f"not done after {timeout:.0f} s" if code == TIMED_OUT else err.read()
        return group.result(out.read(), stderr, code)


@contextlib.contextmanager
def capped(limit_bytes: int | None, *, device: str | None = None) -> Iterator[Capped]:
    """A memory cgroup of `limit_bytes` (None: none, but measured). Raises NotPossibleError without the rights."""
    is_v2 = not _V1.is_dir()
    directory = (_V2 if is_v2 else _V1) / f"kamado-bench-{os.getpid()}-{time.monotonic_ns()}"
    try:
        directory.mkdir()
    except OSError as error:
        raise NotPossibleError(
            f"no memory cgroup can be made ({error.strerror}): run as root, outside a sandbox"
        ) from None
    try:
        if limit_bytes is not None:
            try:
                _set_limit(directory, is_v2, limit_bytes)
            except OSError as error:
                raise NotPossibleError(f"the memory cgroup takes no limit ({error.strerror})") from None
        yield Capped(directory, is_v2, device)
    finally:
        for _ in range(50):
            if not is_v2:
                with contextlib.suppress(OSError):
                    (directory / "memory.force_empty").write_text("0")
            try:
                directory.rmdir()
                break
            except OSError:  # the last process is still on its way out
                time.sleep(0.1)


def _set_limit(directory: Path, is_v2: bool, limit_bytes: int | None) -> None:
    """Swapping is off, since it would hide what is out of bounds. Raises OSError when the limit itself is refused."""
    names = ["memory.max", "memory.swap.max"] if is_v2 else ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]
    if limit_bytes is None:
        values = ["max", "max"] if is_v2 else ["-1", "-1"]
        names.reverse()  # memory and swap together may not be less than memory
    else:
        values = [str(limit_bytes), "0" if is_v2 else str(limit_bytes)]
    for name, value in zip(names, values, strict=True):
        try:
            (directory / name).write_text(value)
        except OSError:
            if "sw" not in name:  # kernels may be without swap accounting
                raise


def drop_caches() -> None:
    """Empties the machine's page cache. Raises NotPossibleError without the rights."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError as error:
        raise NotPossibleError(f"the page cache cannot be dropped ({error.strerror})") from None


def device_of(path: Path) -> str | None:
    """The block device under a file, "vda"; None when it is not one that /sys tells of."""
    number = os.stat(path).st_dev
    link = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    if not link.exists():
        return None
    found = link.resolve()
    return found.name if (found / "queue").is_dir() else found.parent.name


@contextlib.contextmanager
def read_ahead(device: str | None, kib: int | None) -> Iterator[int | None]:
    """Sets the device's read-ahead for the block (None: leaves it) and yields what is in force."""
    if device is None:
        if kib is not None:
            raise NotPossibleError("the model lies on no block device whose read-ahead could be set")
        yield None
        return
    path = Path(f"/sys/block/{device}/queue/read_ahead_kb")
    before = path.read_text().strip()
    if kib is not None:
        try:
            path.write_text(str(kib))
        except OSError as error:
            raise NotPossibleError(f"{path} cannot be set ({error.strerror})") from None
    try:
        yield int(path.read_text())
    finally:
        if kib is not None:
            path.write_text(before)


def disk_bytes_read(device: str | None) -> int:
    """Bytes that a device has read since the machine started, 0 when not known."""
    try:
        return int(Path(f"/sys/block/{device}/stat").read_text().split()[2]) * 512
    except (OSError, IndexError, ValueError):
        return 0


def _number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0


def _events(directory: Path) -> int:
    for line in (directory / "memory.events").read_text().splitlines():
        name, _, value = line.partition(" ")
        if name == "max":
            return int(value)
    return 0
