"""Looking into folders of other programs: bounded, no link followed out of them, nothing opened but regular files."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

MAX_MODELS = 5000  # of one program, and entries of one folder
MAX_ENTRIES = 100_000  # of all folders at one look


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


class Looker:
    """Looks into folders below `roots`: at most MAX_ENTRIES entries in all, then everything is empty."""

    def __init__(self, roots: Sequence[Path]) -> None:
        self._left = MAX_ENTRIES
        self._roots: list[Path] = []  # links in them resolved
        for root in roots:
            with suppress(OSError, RuntimeError):
                self._roots.append(root.resolve(strict=True))

    def entries(self, folder: Path) -> list[os.DirEntry[str]]:
        """What lies in a folder, at most MAX_MODELS entries, in name order; nothing of one that cannot be read."""
        found: list[os.DirEntry[str]] = []
        try:
            with os.scandir(folder) as listed:
                for entry in listed:
                    if len(found) == MAX_MODELS or self._left == 0:
                        break
                    self._left -= 1
                    found.append(entry)
        except OSError:
            return []
        return sorted(found, key=lambda entry: entry.name)

    def folders(self, folder: Path) -> Iterator[Path]:
        """The folders in a folder, no links."""
        for entry in self.entries(folder):
            if self.is_folder(entry):
                yield Path(entry.path)

    @staticmethod
    def is_folder(entry: os.DirEntry[str]) -> bool:
        """Whether it is a folder and no link to one."""
        try:
            return entry.is_dir(follow_symlinks=False)
        except OSError:
            return False

    def size(self, path: Path) -> int | None:
        """Bytes of a regular file, or of one inside the roots that a link leads to; None for anything else."""
        try:
            found = os.lstat(path)
            if stat.S_ISLNK(found.st_mode):
                target = path.resolve(strict=True)
                if not any(root in target.parents for root in self._roots):
                    return None
                found = os.lstat(target)
            return found.st_size if stat.S_ISREG(found.st_mode) else None
        except (OSError, RuntimeError, ValueError):
            return None
