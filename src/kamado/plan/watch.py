"""Notices that a memory limit of an enclosing cgroup was lowered while a model runs."""

from __future__ import annotations

from pathlib import Path

from .machine import least_cgroup_limit, usable_bytes


class LimitWatch:
    """Remembers the least limit over all enclosing cgroups, v1 and v2. A look takes some 50 µs a cgroup."""

    def __init__(self, root: Path = Path("/")) -> None:
        """`root` is where /proc and /sys are found, for tests."""
        self._root = root
        self._least, _ = least_cgroup_limit(root)

    def lowered(self) -> tuple[int, int, str] | None:
        """(the limit, what it leaves to us less a margin, the cgroup) when there is a lower limit than ever before."""
        limit, path = least_cgroup_limit(self._root)
        if limit >= self._least:
            return None
        self._least = limit
        return limit, min(limit, usable_bytes(self._root) or limit), path
