"""The user's folders, and the one way in which a file of ours takes its place: whole or not at all, for good.

What is written lies beside its target under a name of its own until it is on the disk, then takes the name by one
rename, which is brought to the disk too. A crash at any moment leaves what was there before or all that is new, and at
most a temporary file (a dot, 32 digits, `TEMPORARY_SUFFIX`).
"""

from __future__ import annotations

import os
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

TEMPORARY_SUFFIX = ".tmp"
PRIVATE = 0o600  # what only the user may read

# Where an XDG variable is no use.
_HOME = {"data": ".local/share", "cache": ".cache", "state": ".local/state", "config": ".config"}


def user_folder(kind: Literal["data", "cache", "state", "config"], name: str = "") -> Path:
    """Where things of this kind lie: `name` below KAMADO_HOME if that is set, else in the user's XDG folder.

    A relative path in an XDG variable is ignored, as the specification wants it.
    """
    home = os.environ.get("KAMADO_HOME")
    if home:
        return Path(home).expanduser().absolute() / name
    import platformdirs

    folders = {
        "data": platformdirs.user_data_path,
        "cache": platformdirs.user_cache_path,
        "state": platformdirs.user_state_path,
        "config": platformdirs.user_config_path,
    }
    found = folders[kind]("kamado", appauthor=False)
    return (found if found.is_absolute() else Path.home() / _HOME[kind] / "kamado") / name


def write_atomically(
    path: Path,
    *parts: bytes | bytearray | memoryview | str,
    mode: int | None = None,
    is_synced: bool = True,
    then: Callable[[int], None] | None = None,
) -> None:
    """Makes `parts`, one behind the other (text as UTF-8), the content of `path`, whose folder must exist.

    `mode`: the permissions; None keeps those of the file whose place is taken, or takes the user's usual ones.
    `is_synced=False`: the folder is synced by the caller, once for many files. `then` is called with the descriptor of
    the written, synced file. Raises OSError; then the temporary file is gone and `path` as it was.
    """
    with replacing(path, mode=mode, is_synced=is_synced) as temporary:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
        fd = os.open(temporary, flags, 0o666 if mode is None else mode)
        try:
            for part in parts:
                view = memoryview(part.encode() if isinstance(part, str) else part)
                while view:
                    view = view[os.write(fd, view) :]
            if then is not None:
                os.fsync(fd)
                then(fd)
        finally:
            os.close(fd)


@contextmanager
def replacing(path: Path, *, mode: int | None = None, is_synced: bool = True) -> Iterator[Path]:
    """A name beside `path` for a file that the block writes; it takes `path`'s place when the block ends well.

    When it does not, the file is removed. `mode` and `is_synced` as for `write_atomically`. Raises OSError.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex}{TEMPORARY_SUFFIX}")
    try:
        yield temporary
        if mode is None:
            with suppress(FileNotFoundError):
                mode = stat.S_IMODE(path.stat().st_mode)
        put_in_place(temporary, path, mode=mode, is_synced=is_synced)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def put_in_place(file: Path, path: Path, *, mode: int | None = None, is_synced: bool = True) -> None:
    """Moves a finished `file` of ours to `path` on the same file system: content first, then name. Raises OSError."""
    _sync(file, os.O_RDWR)
    if mode is not None:
        os.chmod(file, mode)
    os.replace(file, path)
    if is_synced:
        sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Brings the names in a folder to the disk, where the system can."""
    with suppress(OSError):
        _sync(path, os.O_RDONLY)


def _sync(path: Path, flags: int) -> None:
    fd = os.open(path, flags | getattr(os, "O_CLOEXEC", 0))
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
