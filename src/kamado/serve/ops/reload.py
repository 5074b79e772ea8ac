"""Settings that change while the server runs: a changed file or SIGHUP is read, checked, and taken whole or not at all.

Keys, names, limits and times are taken at once; requests that run keep what they began with. What was fixed when the
server started (address, memory, context, …) is named in the log and needs a restart.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from ...errors import KamadoError, UsageError
from ..app import Server
from ..config import ServeConfig, exposed_keys
from ..http.keys import KeyRing

_log = logging.getLogger("kamado.serve")

LOOK_SECONDS = 2.0  # between looks at the files

# Fields of ServeConfig that sockets, loaded models and the engine's threads were made from.
FIXED = frozenset(
    {"host", "port", "models", "serve_all", "memory", "context", "threads", "kv", "prefix_cache", "allow_unknown",
     "max_header_bytes", "max_stored_responses", "max_connections", "max_bodies_bytes"}
)  # fmt: skip

Load = Callable[[], tuple[ServeConfig, KeyRing]]


class Reloader:
    """Reads the settings again. One event loop's own."""

    def __init__(self, server: Server, load: Load, files: Sequence[Path], *, on_change: Callable[[], None]) -> None:
        """`load` reads everything anew and raises KamadoErrors; `files` are watched, also while they do not exist.

        `on_change` is called after other settings were taken.
        """
        self._server = server
        self._load = load
        self._files = tuple(files)
        self._on_change = on_change
        self._asked = asyncio.Event()
        self._first = self._stamps()

    def ask(self) -> None:
        """Reads the settings soon, changed or not. For signal handlers of the event loop."""
        self._asked.set()

    async def watch(self) -> None:
        """Looks at the files until it is cancelled. One that changed is read when it looks the same twice: it may be
        half written, and half of the keys is not what anybody wanted."""
        seen = last = self._first
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._asked.wait()
            now = await asyncio.to_thread(self._stamps)
            if self._asked.is_set() or (now != seen and now == last):
                self._asked.clear()
                seen = now
                await self.reload()
            last = now

    async def reload(self) -> bool:
        """Reads and takes the settings; False, and the reason in the log, when they cannot be taken."""
        try:
            config, keys = await asyncio.to_thread(self._load)
            changed = self._take(config, keys)
        except KamadoError as error:
            _log.error("settings not reloaded: the old ones stay", extra={"reason": str(error)[:500]})
            return False
        except Exception:
            _log.exception("settings not reloaded: the old ones stay")
            return False
        if changed:
            self._on_change()
        return True

    def _take(self, config: ServeConfig, keys: KeyRing) -> bool:
        old = self._server.config
        names = [field.name for field in msgspec.structs.fields(ServeConfig)]
        changed = [name for name in names if getattr(old, name) != getattr(config, name)]
        needs_restart = sorted(FIXED.intersection(changed))
        merged = msgspec.structs.replace(config, **{name: getattr(old, name) for name in FIXED})
        UsageError.when(
            not merged.is_loopback and not len(keys),
            f"an API key is needed to serve on {merged.host}: everybody in reach could use the server",
        )
        has_other_keys = keys != self._server.keys
        self._server.configure(merged, keys)
        if needs_restart:
            _log.warning("settings that need a restart", extra={"settings": needs_restart})
        taken = [name for name in changed if name not in FIXED and name != "api_keys"]
        if has_other_keys:
            taken.append("api_keys")
        warn_of_exposed_keys(self._files, merged)
        _log.info("settings reloaded", extra={"changed": taken, "keys": len(keys)})
        return bool(taken)

    def _stamps(self) -> list[tuple[int, int, int] | None]:
        return [_stamp(path) for path in self._files]


def warn_of_exposed_keys(files: Sequence[Path], config: ServeConfig) -> None:
    """A line in the log for each file of settings with API keys that others may read."""
    for warning in filter(None, (exposed_keys(path, config) for path in files)):
        _log.warning("an API key is exposed", extra={"reason": warning})


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """Differs when the file was written or replaced; None: there is none."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
