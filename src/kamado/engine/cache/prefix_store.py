"""The prefix store: pages of the KV cache on disk, so that a prompt or a conversation is never computed twice.

    <root>/<binding>/about.json                          model and preset, for people
    <root>/<binding>/pages/<key>.kv                      one full page, shared by all prefixes that run through it
    <root>/<binding>/points/<page key>-<tokens>-<key>.kv  a reuse point: all its tokens and its exact last pages
    <root>/lock                                          held while files are removed

A binding is the digest of model file, build, preset and owner: what was made for one is never looked at for another. A
page's name depends on all tokens before it, so equal beginnings share their pages without any bookkeeping. A file
appears by one rename after it was written and synced, pages before the point that needs them: a crash leaves at most
pages that no point needs, which go when room is made. Every read is checked; what fails is removed. Points that were
not used for longest go first, then the pages that no other point needs.

Any number of processes may use one root. Files have mode 0600, directories 0700.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ...files.atomic import PRIVATE, TEMPORARY_SUFFIX, sync_folder, user_folder, write_atomically
from ...files.page_cache import forget_open
from ...plan.kv_pages import PAGE_TOKENS
from . import prefix_file
from .prefix_file import PAGE, POINT, Buffer, DamagedPrefixError

DEFAULT_CAP_BYTES = 2 << 30

_SUFFIX = ".kv"
# Pages without a point and temporary files younger than this may belong to a process that is writing them.
_ABANDONED_SECONDS = 3600.0
_LOCK_SECONDS = 2.0  # another process may have been stopped while it holds the lock: then nothing is stored
_RECOUNT_SECONDS = 60.0  # others write too
_KEPT_SHARE = 0.9  # making room goes on to this part of the cap, so that it is not done for every page


@dataclass(frozen=True, slots=True)
class StoredPoint:
    """A reuse point on disk. `page_keys` are those of its full pages, `length` its tokens."""

    path: Path
    length: int
    page_keys: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class _Point:
    used_at: float
    nbytes: int
    path: Path
    pages: tuple[str, ...]  # names of the pages it needs


@dataclass(slots=True)
class _Files:
    """What lies under one binding."""

    directory: Path
    binding: bytes
    points: list[_Point] = field(default_factory=list)
    pages: dict[str, tuple[int, float]] = field(default_factory=dict)  # name -> bytes, written at
    damaged: list[Path] = field(default_factory=list)


class PrefixStore:
    """All prefixes under one root. May be used from several threads."""

    def __init__(
        self, root: Path | None = None, *, cap_bytes: int = DEFAULT_CAP_BYTES, keeps_cached: bool = True
    ) -> None:
        """`cap_bytes` bounds all files together. Nothing is created before something is written. `keeps_cached`: what
        was written or read stays in the page cache, from which it comes back faster, but which containers count."""
        self.root = Path(root or user_folder("cache", "prefixes")).absolute()
        self.cap_bytes = cap_bytes
        self.keeps_cached = keeps_cached
        self._lock = threading.RLock()
        self._total_bytes = 0
        self._counted_at = float("-inf")

    def folder(self, binding: Mapping[str, str], about: Mapping[str, str] | None = None) -> PrefixFolder:
        """What was stored for one model, build, preset and owner. `about` is written beside it for people."""
        text = json.dumps({**binding, "record": str(prefix_file.VERSION)}, sort_keys=True)
        return PrefixFolder(self, prefix_file.digest(text.encode()), dict(about or {}))

    def total_bytes(self) -> int:
        """Bytes of all files, counted now."""
        with self._lock:
            self._total_bytes = sum(size for _, size in _walk(self.root))
            self._counted_at = time.monotonic()
            return self._total_bytes

    def remove_label(self, label: str) -> int:
        """Removes the points of a named session and the pages that only they need. Returns the bytes freed."""
        before = self.total_bytes()
        with self._held() as is_held:
            if is_held:
                needed_before = {files.binding: _needed(files) for files in self._scan()}
                for files in self._scan():
                    for point in files.points:
                        if _label(point.path, files.binding) == label:
                            _remove(point.path)
                for files in self._scan():
                    for name in needed_before.get(files.binding, Counter()) - _needed(files):
                        if name not in _needed(files):
                            (files.directory / "pages" / name).unlink(missing_ok=True)
        return before - self.total_bytes()

    def labels(self) -> dict[str, int]:
        """Bytes of points and pages by the named session they belong to; a shared page counts for each."""
        found: dict[str, int] = {}
        for files in self._scan():
            for point in files.points:
                if label := _label(point.path, files.binding):
                    pages = sum(files.pages[name][0] for name in point.pages if name in files.pages)
                    found[label] = max(found.get(label, 0), pages + point.nbytes)
        return found

    def make_room(self, num_bytes: int) -> bool:
        """Whether `num_bytes` more stay below the cap, points used least recently removed if need be."""
        with self._lock:
            if time.monotonic() - self._counted_at > _RECOUNT_SECONDS:
                self.total_bytes()
            if self._total_bytes + num_bytes <= self.cap_bytes:
                return True
            if num_bytes > self.cap_bytes:
                return False
            with self._held() as is_held:
                if is_held:
                    self._evict(max(0, int(self.cap_bytes * _KEPT_SHARE) - num_bytes))
            return self.total_bytes() + num_bytes <= self.cap_bytes

    def write(self, path: Path, parts: list[Buffer]) -> bool:
        """Writes a file whole or not at all; False when the cap leaves no room. Raises OSError."""
        size = sum(len(part) for part in parts)
        if not self.make_room(size):
            return False
        self._make_directory(path.parent)
        forget = None if self.keeps_cached else forget_open
        write_atomically(path, *parts, mode=PRIVATE, is_synced=False, then=forget)
        with self._lock:
            self._total_bytes += size
        return True

    def _make_directory(self, path: Path) -> None:
        """The directory and those above it up to the root, for the user alone."""
        if path.is_dir():
            return
        self.root.parent.mkdir(parents=True, exist_ok=True)
        for directory in (self.root, *reversed([p for p in path.parents if self.root in p.parents]), path):
            directory.mkdir(mode=0o700, exist_ok=True)
            if directory.stat().st_mode & 0o077:
                directory.chmod(0o700)

    @contextlib.contextmanager
    def _held(self) -> Iterator[bool]:
        """Alone among processes in removing files; False when another one holds the lock for too long."""
        if not self.root.is_dir():
            yield False
            return
        with self._lock, open(os.open(self.root / "lock", os.O_RDWR | os.O_CREAT, 0o600), "rb+") as file:
            yield _flock(file.fileno())

    def _scan(self) -> list[_Files]:
        """All points and pages. The heads of points are read, to know which pages they need."""
        found = []
        for directory in _subdirectories(self.root):
            try:
                files = _Files(directory, bytes.fromhex(directory.name))
            except ValueError:
                continue
            for path, stat in _entries(directory / "pages"):
                files.pages[path.name] = (stat.st_size, stat.st_mtime)
            for path, stat in _entries(directory / "points"):
                try:
                    _, tokens, _ = prefix_file.read_head(path, POINT, files.binding)
                except OSError:
                    continue
                except DamagedPrefixError:
                    files.damaged.append(path)
                    continue
                keys = prefix_file.chain(files.binding, tokens)[: prefix_file.settled_pages(len(tokens) // 4)]
                names = tuple(key.hex() + _SUFFIX for key in keys)
                files.points.append(_Point(stat.st_mtime, stat.st_size, path, names))
            found.append(files)
        return found

    def _evict(self, target_bytes: int) -> None:
        """Removes what no point needs, then points, the least recently used first, until `target_bytes` are left."""
        self._remove_unneeded()
        total = self.total_bytes()
        scanned = self._scan()
        needed = {files.binding: _needed(files) for files in scanned}
        points = [(point, files) for files in scanned for point in files.points]
        for point, files in sorted(points, key=lambda item: item[0].used_at):
            if total <= target_bytes:
                return
            point.path.unlink(missing_ok=True)
            total -= point.nbytes
            counts = needed[files.binding]
            for name in point.pages:
                counts[name] -= 1
                if counts[name] == 0 and name in files.pages:
                    (files.directory / "pages" / name).unlink(missing_ok=True)
                    total -= files.pages[name][0]

    def _remove_unneeded(self) -> None:
        """Removes damaged points, and what is old enough: pages that no point needs, files that were never finished."""
        limit = time.time() - _ABANDONED_SECONDS
        for files in self._scan():
            for path in files.damaged:
                path.unlink(missing_ok=True)
            needed = _needed(files)
            for name, (_, written_at) in files.pages.items():
                if name not in needed and written_at <= limit:
                    (files.directory / "pages" / name).unlink(missing_ok=True)
        for path, _ in list(_walk(self.root)):
            with contextlib.suppress(OSError):
                if path.suffix == TEMPORARY_SUFFIX and path.stat().st_mtime <= limit:
                    path.unlink(missing_ok=True)


class PrefixFolder:
    """The prefixes of one binding. May be used from several threads."""

    def __init__(self, store: PrefixStore, binding: bytes, about: Mapping[str, str]) -> None:
        self.store = store
        self.binding = binding
        self.directory = store.root / binding.hex()
        self._about = about
        self._pages = self.directory / "pages"
        self._points = self.directory / "points"
        self._index: dict[bytes, list[tuple[int, bytes, Path]]] = {}  # last page's key -> tokens after it, key, path
        self._index_stamp: int | None = None
        self._heads: dict[Path, bytes] = {}  # tokens of points that were looked at
        self._lock = threading.Lock()

    def find(self, tokens: bytes, *, above: int = 0) -> Iterator[StoredPoint]:
        """Reuse points that are a beginning of `tokens` (int32) with more than `above` tokens, the deepest first.

        By digests only: `read_point` compares tokens.
        """
        index = self._refreshed()
        if not index:
            return
        keys = prefix_file.chain(self.binding, tokens)
        size = 4 * PAGE_TOKENS
        for num_pages in range(prefix_file.settled_pages(len(tokens) // 4), -1, -1):
            base = keys[num_pages - 1] if num_pages else self.binding
            for num_rest, key, path in sorted(index.get(base, ()), reverse=True):
                length = num_pages * PAGE_TOKENS + num_rest
                if not above < length <= len(tokens) // 4 or prefix_file.settled_pages(length) != num_pages:
                    continue
                if prefix_file.digest(base, b"point", tokens[num_pages * size : 4 * length]) == key:
                    yield StoredPoint(path, length, tuple(keys[:num_pages]))

    def find_overlap(self, tokens: bytes, *, above: int, is_exact: bool) -> StoredPoint | None:
        """The point that shares the longest usable beginning with `tokens`, longer than `above`, and goes on otherwise.

        Of an exact cache any beginning is usable; else one that ends in the point's last page, since the exact pages
        before it are the same ones.
        """
        wanted = np.frombuffer(tokens, "<i4")
        best: tuple[int, StoredPoint] | None = None
        for items in self._overlapping(tokens, is_exact):
            for _, _, path in items:
                held = np.frombuffer(self.point_tokens(path), "<i4")
                size = min(len(held), len(wanted))
                differs = np.flatnonzero(held[:size] != wanted[:size])
                length = int(differs[0]) if len(differs) else size
                is_usable = is_exact or length // PAGE_TOKENS == len(held) // PAGE_TOKENS
                if is_usable and length > (best[0] if best else above):
                    keys = prefix_file.chain(self.binding, held.tobytes())[: prefix_file.settled_pages(len(held))]
                    best = length, StoredPoint(path, len(held), tuple(keys))
        return None if best is None else best[1]

    def _overlapping(self, tokens: bytes, is_exact: bool) -> Iterator[list[tuple[int, bytes, Path]]]:
        """Points worth comparing: all, or those whose settled pages are all shared."""
        index = self._refreshed()
        if is_exact:
            yield from list(index.values())
            return
        keys = [self.binding, *prefix_file.chain(self.binding, tokens)]
        for key in keys[: prefix_file.settled_pages(len(tokens) // 4) + 1]:
            if key in index:
                yield index[key]

    def point_tokens(self, path: Path) -> bytes:
        """All tokens of a point, as its head has them; none when it cannot be read."""
        found = self._heads.get(path)
        if found is None:
            try:
                found = prefix_file.read_head(path, POINT, self.binding)[1]
            except (OSError, DamagedPrefixError):
                found = b""
            self._heads[path] = found
        return found

    def all_tokens(self) -> Iterator[bytes]:
        """The tokens (int32) of every point, as its head has them, those used latest first."""
        for path, _ in sorted(_entries(self._points), key=lambda entry: -entry[1].st_mtime_ns):
            with contextlib.suppress(OSError, DamagedPrefixError):
                yield prefix_file.read_head(path, POINT, self.binding)[1]

    def point_label(self, path: Path) -> str:
        """The named session that a point belongs to; "" when none or when it cannot be read."""
        return _label(path, self.binding) or ""

    def num_pages(self, tokens: bytes) -> int:
        """Leading full pages of `tokens` that are on disk, by digests only."""
        if not self._pages.is_dir():
            return 0
        count = 0
        for key in prefix_file.chain(self.binding, tokens):
            if not self.has_page(key):
                break
            count += 1
        return count

    def _page(self, key: bytes) -> Path:
        return self._pages / (key.hex() + _SUFFIX)

    def has_page(self, key: bytes) -> bool:
        """Whether a page of this key is there (not whether it is whole)."""
        return self._page(key).is_file()

    def read_point(
        self, point: StoredPoint, tokens: bytes, *, max_payload: int, buffer: bytearray | None = None
    ) -> memoryview:
        """The point's payload, in `buffer` when that is large enough. Raises DamagedPrefixError, the file removed, when
        it is not whole or not of `tokens`."""
        return self._read(point.path, POINT, tokens[: 4 * point.length], max_payload, buffer)

    def read_page(self, key: bytes, tokens: bytes, *, max_payload: int, buffer: bytearray | None = None) -> memoryview:
        """The payload of the page that holds `tokens`, as read_point. Raises DamagedPrefixError, the file removed;
        OSError."""
        return self._read(self._page(key), PAGE, tokens, max_payload, buffer)

    def touch(self, point: StoredPoint) -> None:
        """The point was used: it goes later."""
        with contextlib.suppress(OSError):
            os.utime(point.path)

    def remove(self, point: StoredPoint) -> None:
        """Forgets a point that turned out to be unusable; its pages stay for others."""
        _remove(point.path)
        self._index_stamp = None

    def write_page(self, key: bytes, tokens: bytes, payload: Buffer) -> bool:
        """Stores a page unless it is there; False when there is no room. Raises OSError."""
        if self.has_page(key):
            return True
        self._describe()
        path = self._page(key)
        return self.store.write(path, prefix_file.pack(PAGE, self.binding, key, tokens, payload))

    def write_point(self, tokens: bytes, payload: Buffer, label: str = "") -> bool:
        """Stores a reuse point whose pages were stored; False when there is no room or a page has gone meanwhile."""
        keys = prefix_file.chain(self.binding, tokens)
        count = prefix_file.settled_pages(len(tokens) // 4)
        if not all(self.has_page(key) for key in keys[:count]):
            return False
        self._describe()
        sync_folder(self._pages)
        base = keys[count - 1] if count else self.binding
        num_rest = len(tokens) // 4 - count * PAGE_TOKENS
        key = prefix_file.point_key(self.binding, keys, tokens)
        path = self._points / f"{base.hex()}-{num_rest:02x}-{key.hex()}{_SUFFIX}"
        if not self.store.write(path, prefix_file.pack(POINT, self.binding, key, tokens, payload, label)):
            return False
        sync_folder(self._points)
        self._index_stamp = None
        return True

    def remove_pages(self, keys: Iterable[bytes]) -> None:
        """Removes pages of an entry that was given up, which no point needs yet."""
        for key in keys:
            _remove(self._page(key))

    def _read(self, path: Path, kind: int, tokens: bytes, max_payload: int, buffer: bytearray | None) -> memoryview:
        limit = prefix_file.file_bytes(len(tokens) // 4, max_payload) + prefix_file.MAX_LABEL_BYTES
        try:
            found = prefix_file.read(
                path, kind, self.binding, max_bytes=limit, buffer=buffer, keeps_cached=self.store.keeps_cached
            )
            if found.tokens != tokens:
                raise DamagedPrefixError(f"{path}: it holds other tokens than its name says")
            return found.payload
        except (DamagedPrefixError, FileNotFoundError):
            _remove(path)
            self._index_stamp = None
            raise

    def _refreshed(self) -> dict[bytes, list[tuple[int, bytes, Path]]]:
        """The points by their last page, read from the directory again when it has changed."""
        with self._lock:
            try:
                stamp = self._points.stat().st_mtime_ns
            except OSError:
                self._index, self._index_stamp = {}, None
                return self._index
            if stamp != self._index_stamp:
                self._index, self._heads = {}, {}
                for path, _ in _entries(self._points):
                    last, _, rest = path.name.removesuffix(_SUFFIX).partition("-")
                    count, _, key = rest.partition("-")
                    with contextlib.suppress(ValueError):
                        item = (int(count, 16), bytes.fromhex(key), path)
                        if item[0] < 2 * PAGE_TOKENS:
                            self._index.setdefault(bytes.fromhex(last), []).append(item)
                self._index_stamp = stamp
            return self._index

    def _describe(self) -> None:
        path = self.directory / "about.json"
        if self._about and not path.is_file():
            self.store.write(path, [json.dumps(self._about, indent=1).encode()])


def _label(path: Path, binding: bytes) -> str | None:
    """The named session that a point belongs to, "" when none; None when it cannot be read."""
    try:
        return prefix_file.read_head(path, POINT, binding)[2]
    except (OSError, DamagedPrefixError):
        return None


def _remove(path: Path) -> None:
    """Removes a file that may be gone, or in use where that forbids it."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def _needed(files: _Files) -> Counter[str]:
    """How many points need each page."""
    return Counter(name for point in files.points for name in point.pages)


def _walk(root: Path) -> Iterator[tuple[Path, int]]:
    """Every file below `root` with its bytes; what goes away meanwhile is passed over."""
    for directory, _, names in os.walk(root):
        for name in names:
            path = Path(directory) / name
            with contextlib.suppress(OSError):
                yield path, path.stat().st_size


def _subdirectories(root: Path) -> list[Path]:
    try:
        with os.scandir(root) as entries:
            return [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def _entries(directory: Path) -> list[tuple[Path, os.stat_result]]:
    """Prefix files in a directory; what goes away meanwhile is passed over."""
    found = []
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if entry.name.endswith(_SUFFIX):
                    found.append((Path(entry.path), entry.stat(follow_symlinks=False)))
    return found


def _flock(fd: int) -> bool:
    """Locks an open file for this process; False when another holds it for longer than we wait."""
    try:
        import fcntl
    except ImportError:  # Windows: two processes that make room at once remove more than they must, and break nothing
        return True
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.02)
