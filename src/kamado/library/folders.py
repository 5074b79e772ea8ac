"""Looking into folders of other programs: bounded, no link followed out of them, nothing opened but regular files."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

MAX_MODELS = 5000  # of one program, and entries of one folder


@dataclass(frozen=True, slots=True)
class Found:
    """One model of another program."""

    name: str  # as commands take it, the program's prefix included
    owner: str  # the program
    path: Path  # what open_checkpoint takes
    nbytes: int
    remove_with: str  # what its owner removes it with
    repo: str = ""  # OWNER/REPO where it came from a hub
    file: str = ""  # its path in that repository

    @property
    def bare(self) -> str:
        """The name without the program's prefix."""
        return self.name.partition(":")[2]


def resolved_roots(folders: Sequence[Path]) -> tuple[Path, ...]:
    """The folders that exist, links in them resolved."""
    found = []
    for folder in folders:
        try:
            found.append(folder.resolve(strict=True))
        except (OSError, RuntimeError):
            continue
    return tuple(found)


def size_of(path: Path, roots: Sequence[Path]) -> int | None:
    """Bytes of a regular file, or of one inside `roots` that a link leads to; None for anything else."""
    try:
        found = os.lstat(path)
        if stat.S_ISLNK(found.st_mode):
            target = path.resolve(strict=True)
            if not any(root in target.parents for root in roots):
                return None
            found = os.lstat(target)
        return found.st_size if stat.S_ISREG(found.st_mode) else None
    except (OSError, RuntimeError, ValueError):
        return None


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in a folder, at most MAX_MODELS entries, in name order; nothing of one that cannot be read."""
    found: list[os.DirEntry[str]] = []
    try:
        with os.scandir(folder) as listed:
            for entry in listed:
                if len(found) == MAX_MODELS:
                    break
                found.append(entry)
    except OSError:
        return []
    return sorted(found, key=lambda entry: entry.name)


def folders_of(folder: Path) -> Iterator[Path]:
    """The folders in a folder, no links."""
    for entry in entries(folder):
        try:
            if entry.is_dir(follow_symlinks=False):
                yield Path(entry.path)
        except OSError:
            continue
