"""How fast a file's disk answers reads like those of experts: several at once, at random places, page cache aside."""

from __future__ import annotations

import errno
import mmap
import os
import random
import threading
import time
from pathlib import Path

DEFAULT_REQUEST_BYTES = 1 << 20
DEFAULT_DEPTH = 4
_ALIGNMENT = 4096


def measure_disk(
    path: Path,
    *,
    request_bytes: int = DEFAULT_REQUEST_BYTES,
    depth: int = DEFAULT_DEPTH,
    seconds: float = 1.0,
    seed: int | None = None,
) -> float:
    """Bytes a second of reads at random places of `path`, `depth` at once. Direct I/O where the file system has it,
    else buffered, each read given back to the system first. Raises OSError when the file cannot be read."""
    size = os.stat(path).st_size
    request_bytes = max(_ALIGNMENT, min(request_bytes, size) // _ALIGNMENT * _ALIGNMENT)
    num_places = max(1, size // request_bytes)
    done = [0] * depth
    errors: list[OSError] = []
    begin = time.perf_counter()
    deadline = begin + seconds

    def read(reader: int) -> None:
        rng = random.Random(None if seed is None else seed + reader)
        try:
            fd, is_direct = _open(path)
            try:
                with mmap.mmap(-1, request_bytes) as buffer:  # page-aligned, as direct I/O wants it
                    while not done[reader] or time.perf_counter() < deadline:
                        offset = rng.randrange(num_places) * request_bytes
                        if not is_direct and hasattr(os, "posix_fadvise"):
                            os.posix_fadvise(fd, offset, request_bytes, os.POSIX_FADV_DONTNEED)
                        count = os.preadv(fd, [buffer], offset)
                        if count == 0:
                            raise OSError(errno.EIO, "the file ended while it was read", str(path))
                        done[reader] += count
            finally:
                os.close(fd)
        except OSError as error:
            errors.append(error)

    threads = [threading.Thread(target=read, args=(reader,), name="kamado-probe") for reader in range(depth)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return sum(done) / (time.perf_counter() - begin)


def _open(path: Path) -> tuple[int, bool]:
    """(file descriptor, whether reads are direct)."""
    direct = getattr(os, "O_DIRECT", 0)
    if direct:
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC | direct), True
        except OSError:
            pass
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC), False
