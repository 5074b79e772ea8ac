"""The model store as the server sees it: names only, never paths, and recipes beside the files.

A path reaches a model only when it was given at the server's start. A recipe (a Modelfile's content) is a small JSON
file; its model's weights are its base's.
"""

from __future__ import annotations

import asyncio
import builtins
import glob
import hashlib
import json
import os
import re
import time
from calendar import timegm
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote

from ...errors import CheckpointError, CorruptFileError, ModelNotFoundError, UsageError
from ...files.atomic import PRIVATE, write_atomically
from ...library.catalog import find_entry
from ...library.store import Store, StoredModel
from .contract import Message, ModelInfo, PullProgress, Recipe, TextPart
from .describe import describe

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,199}")
_MAX_RECIPE_BYTES = 1 << 20
_MAX_RECIPES = 1000
_MAX_DEPTH = 8  # recipes of recipes
_SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})\.gguf")
_MAX_FILES = 1000  # of a model that are looked at for changes
_MAX_FOUND = 1000
_SETTLED_NS = 1_000_000_000  # some file systems note times to a second

_Stamp: TypeAlias = tuple[tuple[int, int], ...]  # of each directory: when it was changed, and its size


@dataclass(frozen=True, slots=True)
class Located:
    """Where a model's file is, and what is known of it."""

    path: Path
    info: ModelInfo
    file_version: str  # `_version` of the file when it was looked at
    recipe: Recipe | None = None


class StoreLibrary:
    """contract.py's Library over a Store, and files that the server was started with."""

    def __init__(
        self, store: Store, files: Mapping[str, Path] | None = None, allow_unknown: Sequence[str] = ()
    ) -> None:
        """`files`: models outside the store, by the name they are served under. `allow_unknown`: see `kamado.load`."""
        self._store = store
        self._files = dict(files or {})
        self._allow_unknown = tuple(allow_unknown)
        self._recipes_dir = store.root / "recipes"
        self._seen: dict[tuple[str, str], ModelInfo] = {}  # by name and version
        self._found: dict[str, tuple[_Stamp, Located]] = {}  # by the name that was asked for

    # --- asked by the event loop, done on threads ---------------------------------------------------------------------

    async def list(self) -> Sequence[ModelInfo]:
        """See contract.py."""
        return await asyncio.to_thread(self._list)

    async def get(self, name: str) -> ModelInfo:
        """See contract.py. Every request asks: what was found stays good while the store's directories are the same."""
        before = self._stamp()
        known = self._found.get(name)
        if known is not None and known[0] == before and known[1].file_version == _version_now(known[1].path):
            return known[1].info
        located = await asyncio.to_thread(self.locate, name)
        newest = max(changed_ns for changed_ns, _ in (*before, _stamp_of(located.path)))
        if time.time_ns() - newest > _SETTLED_NS:  # else it might change again and have the same time
            if len(self._found) > _MAX_FOUND:
                self._found.clear()
            self._found[name] = (before, located)
        return located.info

    def _stamp(self) -> _Stamp:
        """Changes when a model or a recipe comes, goes or is replaced, which is always by renaming."""
        return (_stamp_of(self._store.models_dir), _stamp_of(self._recipes_dir))

    async def delete(self, name: str) -> None:
        """See contract.py."""
        await asyncio.to_thread(self._delete, name)

    async def copy(self, source: str, target: str) -> None:
        """See contract.py."""
        await asyncio.to_thread(self._copy, source, target)

    async def create(self, name: str, recipe: Recipe) -> None:
        """See contract.py."""
        await asyncio.to_thread(self._create, name, recipe)

    async def pull(self, name: str) -> AsyncIterator[PullProgress]:
        """See contract.py. One step every 100 ms at the most."""
        from ...library.pull import pull

        check_name(name.removeprefix("hf:"))
        if not name.startswith("hf:"):
            entry = await asyncio.to_thread(find_entry, name)
            if entry is None:  # a path is never looked at for a client
                await self.get(name)
                raise UsageError(f"{name} is here already, and is no catalog name that could be fetched again")
            name = entry.name  # which may be another than the one that was asked for
        is_left = False
        news: dict[str, int] = {}

        def progress(done: int, total: int) -> None:
            if is_left:
                raise _StoppedError
            news["done"], news["total"] = done, total

        yield PullProgress("resolving")
        work = asyncio.create_task(asyncio.to_thread(pull, name, self._store, progress=progress))
        shown = -1
        try:
            while not work.done():
                await asyncio.wait({work}, timeout=0.1)
                done, total = news.get("done", 0), news.get("total", 0)
                if done != shown and total:
                    shown = done
                    status = "verifying" if done >= total else "downloading"
                    yield PullProgress(status, file=name, done_bytes=done, total_bytes=total)
            await work
        finally:
            is_left = True
            if not work.done():
                work.add_done_callback(lambda task: task.cancelled() or task.exception())
        info = await self.get(name)
        yield PullProgress("success", file=name, digest=info.digest, done_bytes=info.nbytes, total_bytes=info.nbytes)

    # --- on threads ---------------------------------------------------------------------------------------------------

    def locate(self, name: str) -> Located:
        """Where the model called `name` is. A name without a tag may stand for "name:latest" or the only "name:…".

        Raises ModelNotFoundError with near names, CheckpointError for a damaged file.
        """
        return self._locate(name, 0)

    def _locate(self, name: str, depth: int) -> Located:
        real = self._real_name(name)
        if real in self._files:
            info = self._info(real, self._files[real], None)
            return Located(self._files[real], info, info.version)
        stored = self._store.get(real)
        if stored is not None:
            info = self._info(real, stored.path, stored)
            return Located(stored.path, info, info.version)
        recipe = self._read_recipe(real)
        if recipe is None or depth >= _MAX_DEPTH:
            raise ModelNotFoundError(self._not_found(name))
        base = self._locate(recipe.base, depth + 1)
        merged = _merged(base.recipe, recipe)
        info = _described(real, base.info, merged, self._recipe_path(real))
        return Located(base.path, info, base.file_version, merged)

    def _names(self) -> dict[str, None]:
        return dict.fromkeys((*self._files, *(model.name for model in self._store.list()), *self._recipe_names()))

    def _recipe_names(self) -> builtins.list[str]:
        found = []
        for path in sorted(self._recipes_dir.glob("*.json"))[:_MAX_RECIPES]:
            with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
                found.append(str(json.loads(path.read_text("utf-8"))["name"]))
        return found

    def _real_name(self, name: str) -> str:
        names = self._names()
        if name in names:
            return name
        if _NAME.fullmatch(name) is None or ":" in name:
            raise ModelNotFoundError(self._not_found(name))
        if f"{name}:latest" in names:
            return f"{name}:latest"
        starts = [known for known in names if known.startswith((f"{name}:", f"{name}@"))]
        if len(starts) > 1:
            raise ModelNotFoundError(f"{name!r} may be any of {', '.join(sorted(starts))}: give the whole name")
        if not starts:
            raise ModelNotFoundError(self._not_found(name))
        return starts[0]

    def _not_found(self, name: str) -> str:
        if find_entry(name) is not None:
            return f"{name} is not fetched yet; fetch it with: kamado pull {name}"
        names = list(self._names())
        near = get_close_matches(name[:200].lower(), names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(names[:20]) or 'none'}"
        return f"there is no model called {name[:200]!r}; {hint}"

    def _list(self) -> builtins.list[ModelInfo]:
        found = []
        for name in sorted(self._names()):
            with suppress(ModelNotFoundError, CheckpointError, OSError):  # damaged, or gone at this moment
                found.append(self.locate(name).info)
        return found

    def _info(self, name: str, path: Path, stored: StoredModel | None) -> ModelInfo:
        try:
            version = _version(path)
            modified = path.stat().st_mtime
        except OSError as error:
            raise CorruptFileError(f"{path}: {error.strerror or error}") from None
        key = (name, version)
        info = self._seen.get(key)
        if info is None:
            digest = ""
            created = int(modified)
            if stored is not None:
                weights = [file for file in stored.files if file.path.endswith((".gguf", ".safetensors"))]
                digest = weights[0].sha256 if weights else ""
                with suppress(ValueError):
                    created = timegm(time.strptime(stored.added, "%Y-%m-%dT%H:%M:%SZ"))
            info = describe(
                name, path, digest=digest, created=created, nbytes=stored.nbytes if stored else None,
                allow_unknown=self._allow_unknown,
            )  # fmt: skip
            info = replace(info, version=version)
            if len(self._seen) > 1000:
                self._seen.clear()
            self._seen[key] = info
        return info

    def _delete(self, name: str) -> None:
        real = self._real_name(name)
        UsageError.when(
            real in self._files, f"{real} is a file that the server was started with: it is not in the store"
        )
        if self._store.get(real) is not None:
            self._store.remove(real)
            return
        try:
            self._recipe_path(real).unlink()
        except FileNotFoundError:
            raise ModelNotFoundError(self._not_found(name)) from None

    def _copy(self, source: str, target: str) -> None:
        check_name(target)
        real = self._real_name(source)
        if target == real:
            return
        UsageError.when(
            target in self._files, f"{target} is a file that the server was started with: choose another name"
        )
        stored = self._store.get(real)
        if stored is not None:
            self._recipe_path(target).unlink(missing_ok=True)
            self._store.add(target, stored.files, stored.source)
            return
        recipe = self._read_recipe(real) or Recipe(base=real)
        self._create(target, recipe)

    def _create(self, name: str, recipe: Recipe) -> None:
        check_name(name)
        UsageError.when(
            name in self._files or self._store.get(name) is not None,
            f"there is a model called {name} already, with weights of its own: choose another name",
        )
        base = self._real_name(recipe.base)
        UsageError.when(
            base == name or len(self._recipe_names()) >= _MAX_RECIPES,
            f"{name} cannot be made of itself" if base == name else "there are too many recipes",
        )
        self._locate(base, 1)
        text = json.dumps({"name": name, **_to_json(recipe, base)}, indent=1)
        UsageError.when(len(text) > _MAX_RECIPE_BYTES, f"the recipe has more than {_MAX_RECIPE_BYTES} bytes")
        self._recipes_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        if os.name != "nt":  # system prompts are nobody else's; older versions left it open
            self._recipes_dir.chmod(0o700)
        write_atomically(self._recipe_path(name), text, "\n", mode=PRIVATE)

    def _recipe_path(self, name: str) -> Path:
        return self._recipes_dir / f"{quote(name, safe='')}.json"

    def _read_recipe(self, name: str) -> Recipe | None:
        if _NAME.fullmatch(name) is None:
            return None
        path = self._recipe_path(name)
        try:
            return _from_json(json.loads(path.read_text("utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise CorruptFileError(f"the recipe of {name} is damaged: {error}; create it again") from None


def _stamp_of(path: Path) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except OSError:
        return (0, 0)
    return (found.st_mtime_ns, found.st_size)


def _version_now(path: Path) -> str:
    try:
        return _version(path)
    except OSError:
        return ""


class _StoppedError(Exception):
    """Whoever asked for a download has left."""


def _version(path: Path) -> str:
    """Changes when a model's file, one of its shards or a file of its directory is replaced or written to.

    By what the file system says (place, size, time of the last change): contents are gigabytes. Raises OSError.
    """
    shard = _SHARD.fullmatch(path.name)
    if path.is_dir():
        files = [path, *sorted(file for file in path.iterdir() if file.is_file())[:_MAX_FILES]]
    elif shard is not None:
        files = sorted(path.parent.glob(f"{glob.escape(shard[1])}-*-of-{shard[2]}.gguf"))[:_MAX_FILES]
    else:
        files = [path]
    stats = [(file.name, file.stat()) for file in files]
    return _hashed(*(f"{name} {s.st_dev} {s.st_ino} {s.st_size} {s.st_mtime_ns}" for name, s in stats))


def _hashed(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def check_name(name: str) -> None:
    """Raises UsageError for what cannot be a model's name."""
    UsageError.when(
        _NAME.fullmatch(name) is None or ".." in name,
        f"{name[:200]!r} is no name for a model: letters, digits and . _ : / @ + - only, 200 at most",
    )


def _merged(base: Recipe | None, recipe: Recipe) -> Recipe:
    """A recipe on top of its base's."""
    if base is None:
        return recipe
    return Recipe(
        base=base.base,
        system=recipe.system if recipe.system is not None else base.system,
        template=recipe.template if recipe.template is not None else base.template,
        parameters={**base.parameters, **recipe.parameters},
        messages=recipe.messages or base.messages,
        license=recipe.license or base.license,
    )


def _described(name: str, base: ModelInfo, recipe: Recipe, path: Path) -> ModelInfo:
    return replace(
        base,
        name=name,
        created=int(path.stat().st_mtime),
        template=recipe.template or base.template,
        system=recipe.system or "",
        license=recipe.license or base.license,
        parameters=dict(recipe.parameters),
        parent=recipe.base,
        version=_hashed(base.version, json.dumps(_to_json(recipe, recipe.base), sort_keys=True)),
    )


def _to_json(recipe: Recipe, base: str) -> dict[str, Any]:
    return {
        "base": base,
        "system": recipe.system,
        "template": recipe.template,
        "parameters": dict(recipe.parameters),
        "messages": [{"role": message.role, "text": message.text} for message in recipe.messages],
        "license": recipe.license,
    }


def _from_json(data: Mapping[str, Any]) -> Recipe:
    return Recipe(
        base=str(data["base"]),
        system=_text(data["system"]),
        template=_text(data["template"]),
        parameters=dict(data["parameters"]),
        messages=tuple(Message(item["role"], (TextPart(str(item["text"])),)) for item in data["messages"]),
        license=_text(data["license"]),
    )


def _text(value: object) -> str | None:
    return None if value is None else str(value)
