"""Model files opened for reading: regular files only. A FIFO, a socket or a device could make a reader wait forever."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import CorruptFileError

BOM = b"\xef\xbb\xbf"  # what editors on Windows put before UTF-8 text


def open_regular(path: Path) -> BinaryIO:
    """`path` opened for reading bytes. Never waits: the kind is asked of the opened file, not of its name.

    Raises CorruptFileError for anything but a
    regular file, OSError as `open` does.
    """
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    try:
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode):
            raise CorruptFileError(f"{path}: not a regular file but {_kind(mode)}")
        return open(fd, "rb")
    except BaseException:
        os.close(fd)
        raise


def _kind(mode: int) -> str:
    kinds = (
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISBLK, "a device"),
        (stat.S_ISCHR, "a device"),
    )
    return next((name for is_kind, name in kinds if is_kind(mode)), "something else")


def read_limited(path: Path, max_bytes: int) -> bytes:
    """The whole of a small file. Raises CorruptFileError when it is larger, no regular file or cannot be read."""
    try:
        with open_regular(path) as file:
            if os.fstat(file.fileno()).st_size > max_bytes:  # asked first: read(n) takes n bytes of memory at once
                raise CorruptFileError(f"{path}: larger than the limit of {max_bytes} bytes")
            return file.read()
    except OSError as error:
        raise CorruptFileError(f"{path}: cannot be read: {error.strerror or error}") from error


def read_text(path: Path, max_bytes: int) -> str:
    """UTF-8 text without its byte order mark. Raises CorruptFileError as `read_limited` does, or for other bytes."""
    try:
        return read_limited(path, max_bytes).removeprefix(BOM).decode("utf-8")
    except UnicodeDecodeError:
        raise CorruptFileError(f"{path}: not valid UTF-8") from None


def parse_json_object(raw: bytes, path: Path) -> dict[str, Any]:
    """A JSON object without duplicate keys, nesting and number sizes bounded; a byte order mark before it is fine.

    Raises CorruptFileError naming `path`.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        out = dict(pairs)
        if len(out) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise CorruptFileError(f"{path}: key {twice[:80]!r} appears twice")
        return out

    try:
        value = json.loads(raw.removeprefix(BOM).decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:  # ValueError: JSON, UTF-8 and huge-integer faults alike
        raise CorruptFileError(f"{path}: not valid JSON: {str(error)[:120]}") from None
    if not isinstance(value, dict):
        raise CorruptFileError(f"{path}: must hold a JSON object, it holds a {type(value).__name__}")
    return value
