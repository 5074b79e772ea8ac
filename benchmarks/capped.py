"""Runs a command in a memory cgroup of its own, whose limit counts cached file pages too; v1 and v2."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

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


def run_capped(
    command: list[str], limit_bytes: int | None, *, timeout: float = 3600, device: str | None = None
) -> CappedRun:
    """Runs `command` under `limit_bytes` (None: uncapped, but measured). Raises NotPossibleError without the rights."""
    with _cgroup(limit_bytes) as (directory, is_v2):
        procs = directory / "cgroup.procs"
        read_before = disk_bytes_read(device)
        begin = time.perf_counter()
        process = subprocess.Popen(
            ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(procs), *command],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        code: int | None = None
        try:
            try:
                stdout, stderr = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                stdout, _ = process.communicate()
                stderr, code = f"not done after {timeout:.0f} s", TIMED_OUT
        except BaseException:
            process.kill()
            process.wait()
            raise
        seconds = time.perf_counter() - begin
        peak = _number(directory / ("memory.peak" if is_v2 else "memory.max_usage_in_bytes"))
        hits = _events(directory) if is_v2 else _number(directory / "memory.failcnt")
        return CappedRun(
            stdout,
            stderr,
            process.returncode if code is None else code,
            seconds,
            peak,
            hits,
            disk_bytes_read(device) - read_before,
        )


@contextlib.contextmanager
def _cgroup(limit_bytes: int | None) -> Iterator[tuple[Path, bool]]:
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
                (directory / ("memory.max" if is_v2 else "memory.limit_in_bytes")).write_text(str(limit_bytes))
            except OSError as error:
                raise NotPossibleError(f"the memory cgroup takes no limit ({error.strerror})") from None
            with contextlib.suppress(OSError):  # swapping would hide what is out of bounds
                (directory / ("memory.swap.max" if is_v2 else "memory.memsw.limit_in_bytes")).write_text(
                    "0" if is_v2 else str(limit_bytes)
                )
        yield directory, is_v2
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
