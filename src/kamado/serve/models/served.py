"""A library of which only named models are seen: those of `kamado serve MODEL…`, or `models` of the settings.

For every protocol the others do not exist: they are not listed, shown, loaded, asked, copied or deleted. Nor do new
names come to be: what would be pulled, made or copied under another name could not be used here, so that is refused
with the setting that allows it.
"""

from __future__ import annotations

import builtins
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, cast

from ...errors import CheckpointError, ModelNotFoundError, UsageError
from .contract import Library, ModelInfo, PullProgress, Recipe

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator


class ServedLibrary:
    """contract.py's Library over another one, of which it shows the named models only."""

    def __init__(self, library: Library, names: Sequence[str]) -> None:
        """`names` as `library` takes them: "smollm2" too, where that is one model's."""
        self._library = library
        self._names = tuple(dict.fromkeys(names))

    async def list(self) -> Sequence[ModelInfo]:
        """See contract.py."""
        found = [info for _, info in await self._served()]
        return sorted({info.name: info for info in found}.values(), key=lambda info: info.name)

    async def get(self, name: str) -> ModelInfo:
        """See contract.py. As in the whole library, "x" stands for "x:latest" or the only "x:…", of what is served."""
        if name in self._names:  # as nearly every client writes it
            with suppress(ModelNotFoundError):
                return await self._library.get(name)
        served = await self._served()
        for names in ([name], [f"{name}:latest"]):
            for given, info in served:
                if info.name in names or given in names:
                    return await self._library.get(info.name)
        starts = {info.name for _, info in served if ":" not in name and info.name.startswith((f"{name}:", f"{name}@"))}
        if len(starts) == 1:
            return await self._library.get(starts.pop())
        raise ModelNotFoundError(
            f"there is no model called {name[:200]!r} here; this server serves: {self._shown(served)}"
        )

    async def pull(self, name: str) -> AsyncIterator[PullProgress]:
        """See contract.py. Raises UsageError for what is not served."""
        await self._check_new(name, "fetch")
        async with aclosing(cast("AsyncGenerator[PullProgress, None]", self._library.pull(name))) as steps:
            async for step in steps:
                yield step

    async def delete(self, name: str) -> None:
        """See contract.py."""
        await self._library.delete((await self.get(name)).name)

    async def copy(self, source: str, target: str) -> None:
        """See contract.py. Raises UsageError for a target that is not served."""
        found = await self.get(source)
        await self._check_new(target, "make")
        await self._library.copy(found.name, target)

    async def create(self, name: str, recipe: Recipe) -> None:
        """See contract.py. Raises UsageError for a name that is not served."""
        await self._check_new(name, "make")
        await self._library.create(name, recipe)

    async def _served(self) -> builtins.list[tuple[str, ModelInfo]]:
        """The served models that are there, each with the name it was given to this server by."""
        found = []
        for name in self._names:
            with suppress(ModelNotFoundError, CheckpointError, OSError):  # removed meanwhile, or damaged
                found.append((name, await self._library.get(name)))
        return found

    async def _check_new(self, name: str, deed: str) -> None:
        served = await self._served()
        if name not in self._names and name not in {info.name for _, info in served}:
            raise UsageError(
                f"this server serves {self._shown(served)} only, so it does not {deed} {name[:200]!r}: "
                "start it with --all (serve_all = true) for that"
            )

    def _shown(self, served: Sequence[tuple[str, ModelInfo]]) -> str:
        return ", ".join(dict.fromkeys(info.name for _, info in served)) or ", ".join(self._names)
