"""Models that were fetched: every file kept once, by its hash; every model a directory of links to such files.

    models/<name>/entry.json       name, source, files with hash and size
    models/<name>/<file> ...       hard links into blobs/
    blobs/<sha256>                 content
    downloads/                     what is on its way

A directory is put together beside the others and appears by one rename, so a crash leaves either all of a model or
none of it. Where one takes another's place there are two renames; the next look finishes what a crash left
between them. Names are escaped so that none can leave the store. Models elsewhere are used where they lie.
"""

from __future__ import annotations

import builtins
import errno
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from ..errors import CorruptFileError, DownloadError, ModelNotFoundError, UsageError
from ..files.atomic import put_in_place, sync_folder, user_folder, write_atomically
from .catalog import catalog, find_entry
from .elsewhere import elsewhere
from .names import ENTRY_FILE as _ENTRY
from .names import MODEL_NAME as _NAME
from .names import OUTSIDE, safe_path
from .names import SHA256 as _SHA256

_BUILDING, _READY, _REMOVED = ".new", ".ready", ".removed"  # directories with a dot before their name
_ABANDONED_SECONDS = 3600.0
_MOST_NAMED = 8


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file of a stored model."""

    path: str  # relative to the model's directory, "/" between its parts
    sha256: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class StoredModel:
    """One model of the store."""

    name: str
    path: Path  # what open_checkpoint takes: the GGUF file (the first shard), or the directory
    nbytes: int
    files: tuple[StoredFile, ...]
    source: Mapping[str, Any]  # where it came from: kind, and what pins it
    added: str  # ISO 8601, UTC


class Store:
    """The models under one root. Holds no state beside the files: any number of processes may use one root."""

    def __init__(self, root: Path | None = None) -> None:
        """`root`: KAMADO_HOME if set, else the user's XDG data directory. Nothing is created until a pull."""
        self.root = Path(root or user_folder("data")).absolute()
        self.models_dir = self.root / "models"
        self.blobs_dir = self.root / "blobs"
        self.downloads_dir = self.root / "downloads"

    def list(self) -> builtins.list[StoredModel]:
        """All models in name order. Directories that are no model of ours are passed over."""
        self.recover()
        found = []
        for entry in sorted(self.models_dir.glob(f"*/{_ENTRY}")):
            if entry.parent.name.startswith("."):  # being made, or being removed
                continue
            try:
                found.append(_read_entry(entry))
            except CorruptFileError:
                continue
        return sorted(found, key=lambda model: model.name)

    def get(self, name: str) -> StoredModel | None:
        """The model of exactly this name."""
        if _NAME.fullmatch(name) is None:
            return None
        entry = self._directory(name) / _ENTRY
        if not entry.is_file():
            self.recover()
        return _read_entry(entry) if entry.is_file() else None

    def name_of(self, path: Path) -> str:
        """What `resolve` takes for the model at `path`: its name in the store, or another program's, else the path."""
        if self.models_dir not in path.parents:
            found = elsewhere().at(path)
            return str(path) if found is None else found.name
        return next((model.name for model in self.list() if model.path == path), str(path))

    def resolve(self, name_or_path: str | os.PathLike[str]) -> Path:
        """Where a model lies: a path (used in place), a name of the store, or the part before ':' of just one name.

        Then come names of what other programs keep on this machine, used in place too: `ollama:…`, `lmstudio:…`,
        `hfcache:…`, or without the program's name where just one model can be meant. Raises ModelNotFoundError with
        near names, and with the pull command for a name that could be fetched.
        """
        text = os.fspath(name_or_path)
        if not text:
            raise ModelNotFoundError("the model's name is empty: give a name, a GGUF file or a directory")
        if text.startswith(OUTSIDE):
            return elsewhere().get(text).path
        if not isinstance(name_or_path, str) or _looks_like_path(text):
            return _existing(Path(text).expanduser())
        stored = self.get(text)
        if stored is not None:
            return stored.path
        entry = find_entry(text)
        stored = self.get(entry.name) if entry is not None else None
        if stored is not None:
            return stored.path
        if entry is None and Path(text).exists():
            return Path(text).absolute()
        names = [model.name for model in self.list()]
        starts = [name for name in names if name.startswith((text + ":", text + "@"))]
        if len(starts) == 1:
            return self.resolve(starts[0])
        if starts:
            raise ModelNotFoundError(f"{text!r} may be any of {', '.join(starts)}: give the whole name")
        others = elsewhere().meant_by(text, entry.hub if entry is not None else None)
        if len(others) == 1:
            return others[0].path
        if others:
            named = ", ".join(found.name for found in others)
            raise ModelNotFoundError(f"{text[:200]!r} may be any of {named}: give the whole name")
        raise ModelNotFoundError(self.not_found(text))

    def not_found(self, name: str) -> str:
        """What to say of a name that no model has: near names, of models only."""
        name, stored = name[:200], [model.name for model in self.list()]
        if find_entry(name) is not None or name.startswith("hf:"):
            return f"{name} is not fetched yet; fetch it with: kamado pull {name}"
        entries = catalog().entries.values()
        known = [*stored, *(entry.name for entry in entries if entry.name not in stored)]
        near = get_close_matches(
            name.lower(), [*known, *(a for entry in entries for a in entry.aliases)], n=3, cutoff=0.5
        )
        near += [entry for entry in known if name.lower() in entry and entry not in near][:3]
        if near:
            hint = f"did you mean {' or '.join(near)}?"
        else:
            hint = f"known names: {', '.join(known[:_MOST_NAMED])}; 'kamado pull --list' has all"
        return f"there is no file, directory or model called {name!r}; {hint}"

    def remove(self, name: str) -> None:
        """Forget a model and delete content that no other model has. Raises ModelNotFoundError."""
        model = self.get(name)
        if model is None:
            raise ModelNotFoundError(self.not_found(name))
        directory = self._directory(name)
        # Gone at once for everybody, even if deleting is interrupted.
        os.replace(directory, directory.with_name(f".{uuid.uuid4().hex}{_REMOVED}"))
        self._clear()

    def blob(self, sha256: str) -> Path:
        """Where content of this hash lies or would lie."""
        if _SHA256.fullmatch(sha256) is None:
            raise UsageError(f"{sha256!r} is no sha256")
        return self.blobs_dir / sha256

    def adopt(self, file: Path, sha256: str) -> None:
        """Move `file`, whose hash the caller has checked, to the content of the store."""
        self.blobs_dir.mkdir(parents=True, exist_ok=True)
        put_in_place(file, self.blob(sha256), mode=0o444)

    def add(self, name: str, files: Iterable[StoredFile], source: Mapping[str, Any]) -> Path:
        """Make a model of content the store has. Replaces a model of this name. Returns what resolve() will."""
        if _NAME.fullmatch(name) is None:
            raise UsageError(f"{name!r} is no name for a model: letters, digits and . _ : / @ + - only, 200 at most")
        files = tuple(sorted(files, key=lambda file: file.path))
        building = self.models_dir / f".{uuid.uuid4().hex}{_BUILDING}"
        building.mkdir(parents=True)
        try:
            for file in files:
                target = building.joinpath(*safe_path(file.path).parts)
                target.parent.mkdir(parents=True, exist_ok=True)
                _link(self.blob(file.sha256), target)
            entry = {
                "name": name,
                "source": dict(source),
                "added": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "files": [{"path": file.path, "sha256": file.sha256, "nbytes": file.nbytes} for file in files],
            }
            write_atomically(building / _ENTRY, json.dumps(entry, indent=1), "\n")
            with self.changing():
                ready = building.with_suffix(_READY)
                os.replace(building, ready)
                self._put_in_place(ready, name)
            self._clear()
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise
        return _read_entry(self._directory(name) / _ENTRY).path

    def recover(self) -> None:
        """Finishes replacing models where a crash came between the two renames. Cheap when there is nothing to do."""
        if not any(self.models_dir.glob(f".*{_READY}")):
            return
        with suppress(OSError), self.changing():  # a store that cannot be written is read as it is
            for ready in self.models_dir.glob(f".*{_READY}"):
                with suppress(CorruptFileError):
                    self._put_in_place(ready, _read_entry(ready / _ENTRY).name)
        self._clear()

    def _put_in_place(self, ready: Path, name: str) -> None:
        directory = self._directory(name)
        if directory.exists():
            os.replace(directory, directory.with_name(f".{uuid.uuid4().hex}{_REMOVED}"))
        os.replace(ready, directory)
        sync_folder(self.models_dir)

    def _clear(self) -> None:
        """Deletes removed models, content that no other has, and what nobody has gone on building for an hour."""
        for path in self.models_dir.glob(f".*{_REMOVED}"):
            files: tuple[StoredFile, ...] = ()
            with suppress(CorruptFileError):
                files = _read_entry(path / _ENTRY).files
            shutil.rmtree(path, ignore_errors=True)
            self._drop_blobs({file.sha256 for file in files})
        for path in self.models_dir.glob(f".*{_BUILDING}"):
            with suppress(OSError):
                if path.stat().st_mtime < time.time() - _ABANDONED_SECONDS:
                    shutil.rmtree(path, ignore_errors=True)

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Held for renames and for pins.json: a directory that is ready outside of it was left by a crash."""
        with open(self.root / ".models.lock", "w") as file:
            _take(file)  # Windows: only two processes that replace the same model at once would notice
            yield

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Held while a model is being fetched. Raises DownloadError when another process fetches it already."""
        self.downloads_dir.mkdir(parents=True, exist_ok=True)
        with open(self.downloads_dir / f"{quote(name, safe='')}.lock", "w") as file:
            try:
                _take(file, is_waiting=False)  # Windows: two pulls at once cost bandwidth and break nothing
            except OSError:
                raise DownloadError(f"{name} is being fetched by another process: wait for it") from None
            yield

    def _directory(self, name: str) -> Path:
        return self.models_dir / quote(name, safe="")

    def _drop_blobs(self, candidates: set[str]) -> None:
        kept = {file.sha256 for model in self.list() for file in model.files}
        for sha256 in candidates - kept:
            self.blob(sha256).unlink(missing_ok=True)


def _take(file: IO[str], *, is_waiting: bool = True) -> None:
    """Locks an open file against other processes where the system can. OSError when another one has it."""
    with suppress(ImportError):
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | (0 if is_waiting else fcntl.LOCK_NB))


def _looks_like_path(text: str) -> bool:
    if text.startswith("hf:"):
        return False
    return "/" in text or os.sep in text or text in (".", "..", "~") or text.endswith((".gguf", ".safetensors"))


def _existing(path: Path) -> Path:
    if path.exists():
        return path.absolute()
    parent = path.parent
    near: list[str] = []
    if parent.is_dir():
        near = get_close_matches(path.name, (entry.name for entry in parent.iterdir()), n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise ModelNotFoundError(f"{path}: no such file or directory{hint}")


def _link(blob: Path, target: Path) -> None:
    """A hard link, else (other kinds of file system) a symbolic link, else a copy."""
    if not blob.is_file():  # a symbolic link would not mind
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(blob))
    for make in (os.link, os.symlink, shutil.copyfile):
        try:
            make(blob, target)
            return
        except (OSError, NotImplementedError):
            if make is shutil.copyfile:
                raise


def _read_entry(entry: Path) -> StoredModel:
    try:
        data = json.loads(entry.read_text("utf-8"))
        files = tuple(StoredFile(str(f["path"]), str(f["sha256"]), int(f["nbytes"])) for f in data["files"])
        weights = sorted(f.path for f in files if f.path.endswith(".gguf"))
        directory = entry.parent
        path = directory.joinpath(*safe_path(weights[0]).parts) if weights else directory
        return StoredModel(
            str(data["name"]), path, sum(f.nbytes for f in files), files, dict(data["source"]), str(data["added"])
        )
    except (OSError, ValueError, KeyError, TypeError, UsageError, RecursionError) as error:
        raise CorruptFileError(f"{entry}: damaged: {error}; remove its directory and pull the model again") from None
