"""The prefix store's files: what is believed, what is refused, what a crash or a full disk leaves behind."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kamado.engine.cache import prefix_file
from kamado.engine.cache import prefix_store as store_module
from kamado.engine.cache.prefix_file import DamagedPrefixError, token_bytes
from kamado.engine.cache.prefix_store import PrefixFolder, PrefixStore
from kamado.engine.turns.conversations import ConversationStore
from kamado.plan.page_cache import cached_bytes, forget_cached

BINDING = {"model": "m", "preset": "balanced", "owner": ""}
TOKENS = token_bytes([i % 1000 for i in range(700)])  # five full pages and 60 tokens: four settled pages
NUM_SETTLED = 4


def page_payload(i: int) -> bytes:
    return bytes([i]) * 1000


def tail_payload(label: str = "") -> bytes:
    return b"tail" + label.encode()


def put(folder: PrefixFolder, tokens: bytes = TOKENS, label: str = "") -> list[bytes]:
    keys = prefix_file.chain(folder.binding, tokens)
    for i in range(prefix_file.settled_pages(len(tokens) // 4)):
        assert folder.write_page(keys[i], tokens[512 * i : 512 * (i + 1)], page_payload(i))
    assert folder.write_point(tokens, tail_payload(), label)
    return keys


def get(folder: PrefixFolder, tokens: bytes = TOKENS) -> bytes:
    """Everything of the deepest point, read as a restore does."""
    point = next(folder.find(tokens))
    parts = [bytes(folder.read_point(point, tokens, max_payload=1 << 20))]
    for i, key in enumerate(point.page_keys):
        parts.append(bytes(folder.read_page(key, tokens[512 * i : 512 * (i + 1)], max_payload=1 << 20)))
    return b"".join(parts)


EXPECTED = tail_payload() + b"".join(page_payload(i) for i in range(NUM_SETTLED))


def test_what_was_stored_comes_back() -> None:
    folder = PrefixStore().folder(BINDING)
    put(folder)
    longer = TOKENS + token_bytes([5] * 200)
    assert get(PrefixStore().folder(BINDING), longer) == EXPECTED
    assert next(folder.find(longer)).length == 700
    assert list(folder.find(TOKENS[:-4])) == []
    assert list(folder.find(longer, above=700)) == []


def test_within_a_budget_nothing_stays_in_the_page_cache() -> None:
    """Containers count cached pages of what is written and read too: gigabytes, in the course of a day."""

    def files(folder: PrefixFolder) -> list[Path]:
        return [path for path in folder.directory.rglob("*") if path.is_file()]

    def cached(folder: PrefixFolder) -> int:
        return sum(cached_bytes(path) or 0 for path in files(folder))

    keeping = PrefixStore().folder(BINDING)
    put(keeping)
    is_told = cached(keeping) > 0
    forget_cached(files(keeping))
    if not is_told or cached(keeping):
        pytest.skip("this system does not tell what it caches, or the file system keeps its pages")
    frugal = PrefixStore(keeps_cached=False).folder(BINDING | {"model": "other"})
    put(frugal)
    assert len(files(frugal)) > NUM_SETTLED
    assert cached(frugal) == 0
    assert get(frugal) == EXPECTED
    assert cached(frugal) <= 2 * 4096  # of the point's head, which is read again


def test_shared_pages_are_stored_once() -> None:
    store = PrefixStore()
    folder = store.folder(BINDING)
    put(folder)
    before = store.total_bytes()
    put(folder, TOKENS[: 4 * 600] + token_bytes([9] * 50))
    pages = list((folder.directory / "pages").iterdir())
    assert len(pages) == NUM_SETTLED, "650 tokens have four settled pages, the same ones"
    assert store.total_bytes() - before < 4 * 700 + 500


def test_the_deepest_point_comes_first() -> None:
    folder = PrefixStore().folder(BINDING)
    lengths = [1, 127, 128, 255, 256, 300, 640, 700]
    for length in lengths:
        put(folder, TOKENS[: 4 * length])
    assert [p.length for p in folder.find(TOKENS)] == lengths[::-1]
    assert [p.length for p in folder.find(TOKENS[: 4 * 299])] == [256, 255, 128, 127, 1]


def test_files_are_for_the_user_alone() -> None:
    store = PrefixStore()
    put(store.folder(BINDING, {"model": "m"}))
    for path in [store.root, *store.root.rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


@pytest.mark.parametrize("change", [{"model": "other"}, {"preset": "small"}, {"owner": "bob"}, {"build": "2"}])
def test_what_was_made_for_another_is_not_looked_at(change: dict[str, str]) -> None:
    put(PrefixStore().folder(BINDING))
    assert list(PrefixStore().folder({**BINDING, **change}).find(TOKENS)) == []


def test_a_foreign_file_under_the_right_name_is_refused_and_removed() -> None:
    store = PrefixStore()
    ours, theirs = store.folder(BINDING), store.folder({**BINDING, "model": "other"})
    put(ours)
    put(theirs)
    [point] = (theirs.directory / "points").iterdir()
    [target] = (ours.directory / "points").iterdir()
    target.write_bytes(point.read_bytes())
    with pytest.raises(DamagedPrefixError, match="another model"):
        get(ours)
    assert not target.exists()
    assert list(ours.find(TOKENS)) == []


def test_another_version_is_refused_and_removed() -> None:
    folder = PrefixStore().folder(BINDING)
    put(folder)
    [point] = (folder.directory / "points").iterdir()
    data = bytearray(point.read_bytes())
    data[8] += 1
    point.write_bytes(data)
    with pytest.raises(DamagedPrefixError, match="version"):
        get(folder)
    assert not point.exists()


def check_refused(folder: PrefixFolder, path: Path, content: bytes) -> None:
    """A file of the folder with this content is no prefix, and is removed."""
    path.write_bytes(content)
    with pytest.raises(DamagedPrefixError):
        get(folder)
    assert not path.exists()


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_flipped_bit_anywhere_is_noticed(data: st.DataObject) -> None:
    folder = PrefixStore().folder(BINDING)
    pages = prefix_file.chain(folder.binding, TOKENS)[:4]
    if not list(folder.find(TOKENS)) or not all(folder.has_page(page) for page in pages):
        put(folder)
    files = sorted(path for path in folder.directory.rglob("*.kv"))
    path = data.draw(st.sampled_from(files))
    content = bytearray(path.read_bytes())
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    content[bit // 8] ^= 1 << bit % 8
    check_refused(folder, path, content)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_file_that_was_cut_or_grew_is_noticed(data: st.DataObject) -> None:
    folder = PrefixStore().folder(BINDING)
    if not list(folder.find(TOKENS)):
        put(folder)
    [path] = (folder.directory / "points").iterdir()
    content = path.read_bytes()
    size = data.draw(st.integers(0, 2 * len(content)).filter(lambda n: n != len(content)))
    check_refused(folder, path, content[:size].ljust(size, b"\0"))


def test_equal_digests_are_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if two prefixes had one digest, the tokens in the file decide."""
    folder = PrefixStore().folder(BINDING)
    put(folder)
    point = next(folder.find(TOKENS))
    other = TOKENS[:-4] + token_bytes([999])
    with pytest.raises(DamagedPrefixError, match="other tokens"):
        folder.read_point(point, other, max_payload=1 << 20)


@pytest.mark.parametrize(
    ("common", "exact", "found"),
    [(450, True, True), (450, False, False), (650, False, True), (639, False, False), (50, True, False)],
)
def test_an_entry_that_goes_on_differently_is_found_where_it_can_be_cut(common: int, exact: bool, found: bool) -> None:
    """The entry has 700 tokens: of an encoded cache only its last page, from 640 on, can be cut."""
    folder = PrefixStore().folder(BINDING)
    put(folder)
    point = folder.find_overlap(TOKENS[: 4 * common] + token_bytes([1, 2, 3]), above=100, is_exact=exact)
    assert (None if point is None else point.length) == (700 if found else None)


# --- room -------------------------------------------------------------------------------------------------------------


def other_tokens(i: int) -> bytes:
    return token_bytes([2000 + i] * 700)


def test_the_cap_holds_and_what_was_used_longest_ago_goes_first() -> None:
    store = PrefixStore(cap_bytes=40_000)
    folder = store.folder(BINDING)
    for i in range(8):
        put(folder, other_tokens(i))
        assert store.total_bytes() <= store.cap_bytes
        os.utime(next(folder.find(other_tokens(i))).path, (1000 + i, 1000 + i))
        if i == 3:
            folder.touch(next(folder.find(other_tokens(0))))
    kept = [i for i in range(8) if list(folder.find(other_tokens(i)))]
    assert 0 in kept, "it was used"
    assert 7 in kept
    assert 1 not in kept
    for i in kept:
        assert get(folder, other_tokens(i)) == EXPECTED, "no page of a kept point has gone"


def test_pages_of_a_removed_point_stay_while_another_needs_them() -> None:
    store = PrefixStore(cap_bytes=1 << 20)
    folder = store.folder(BINDING)
    put(folder)
    os.utime(next(folder.find(TOKENS)).path, (1, 1))
    longer = TOKENS + token_bytes([3] * 300)
    put(folder, longer)
    store._evict(store.total_bytes() - 1)
    assert list(folder.find(TOKENS)) == []
    point = next(folder.find(longer))
    assert all(folder.has_page(key) for key in point.page_keys)


def test_what_a_crash_left_behind_goes_when_it_is_old(monkeypatch: pytest.MonkeyPatch) -> None:
    store = PrefixStore(cap_bytes=1 << 20)
    folder = store.folder(BINDING)
    put(folder)
    orphan = prefix_file.chain(folder.binding, other_tokens(1))[0]
    folder.write_page(orphan, other_tokens(1)[:512], page_payload(0))
    temporary = folder.directory / "pages" / ".1.tmp"
    temporary.write_bytes(b"x" * 100)
    store._evict(1 << 20)
    assert folder.has_page(orphan), "another process may be about to write its point"
    for path in (temporary, folder.directory / "pages" / f"{orphan.hex()}.kv"):
        os.utime(path, (1, 1))
    store._evict(1 << 20)
    assert not folder.has_page(orphan)
    assert not temporary.exists()
    assert get(folder) == EXPECTED


def test_an_entry_larger_than_the_cap_is_not_stored() -> None:
    store = PrefixStore(cap_bytes=5_000)
    folder = store.folder(BINDING)
    assert not folder.write_point(token_bytes([1] * 100), bytes(6_000))
    assert store.total_bytes() < 5_000


def test_a_full_disk_leaves_nothing_half_written(monkeypatch: pytest.MonkeyPatch) -> None:
    store = PrefixStore()
    folder = store.folder(BINDING)
    put(folder)
    files = sorted(store.root.rglob("*"))

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(store_module.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        folder.write_point(other_tokens(1)[: 4 * 100], b"x")
    monkeypatch.undo()
    assert sorted(store.root.rglob("*")) == files
    assert get(folder) == EXPECTED


def test_a_disk_that_fills_up_inside_a_file(tmp_path: Path) -> None:
    """The system takes a part of a page and refuses the rest: nothing of it stays."""
    resource = pytest.importorskip("resource")
    store = PrefixStore(tmp_path / "store")
    folder = store.folder(BINDING)
    put(folder)
    files = sorted(store.root.rglob("*"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        with pytest.raises(OSError, match="File too large"):
            folder.write_page(b"k" * 16, TOKENS[:512], bytes(4_000))
        with pytest.raises(OSError, match="File too large"):
            ConversationStore(tmp_path / "sessions").record("s", "m", [{"role": "user", "content": "a" * 4_000}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert sorted(store.root.rglob("*")) == files
    assert not [path for path in (tmp_path / "sessions").rglob("*") if path.is_file()]
    assert get(folder) == EXPECTED


def test_a_lock_that_is_held_by_a_stopped_process_costs_the_entry_only(monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(store_module, "_LOCK_SECONDS", 0.05)
    store = PrefixStore(cap_bytes=11_000)
    folder = store.folder(BINDING)
    put(folder)
    with open(store.root / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert not folder.write_page(b"k" * 16, TOKENS[:512], bytes(4_000))
    assert folder.write_page(b"k" * 16, TOKENS[:512], bytes(4_000))


# --- named sessions ---------------------------------------------------------------------------------------------------


def test_removing_a_label_removes_its_points_and_only_its_pages() -> None:
    store = PrefixStore()
    folder = store.folder(BINDING)
    put(folder)
    put(folder, TOKENS + token_bytes([3] * 300), label="mine")
    put(folder, other_tokens(1), label="mine")
    assert store.labels().keys() == {"mine"}
    assert store.remove_label("mine") > 0
    assert store.labels() == {}
    assert get(folder) == EXPECTED
    assert len(list((folder.directory / "pages").iterdir())) == NUM_SETTLED


# --- processes --------------------------------------------------------------------------------------------------------

WRITER = """
import sys
from pathlib import Path
from kamado.engine.cache import prefix_file
from kamado.engine.cache.prefix_store import PrefixStore

store = PrefixStore(Path(sys.argv[1]), cap_bytes=int(sys.argv[2]))
folder = store.folder({"model": "m", "preset": "balanced", "owner": ""})
first, count = int(sys.argv[3]), int(sys.argv[4])
for i in range(first, first + count):
    tokens = prefix_file.token_bytes([2000 + i] * 700)
    keys = prefix_file.chain(folder.binding, tokens)
    for page in range(4):
        folder.write_page(keys[page], tokens[512 * page : 512 * (page + 1)], bytes([page]) * 1000)
    folder.write_point(tokens, b"tail")
    print(i, flush=True)
"""


def writer(root: Path, cap: int, first: int, count: int) -> subprocess.Popen[str]:
    run = [sys.executable, "-c", WRITER, str(root), str(cap), str(first), str(count)]
    return subprocess.Popen(run, stdout=subprocess.PIPE, text=True)


def test_kill_9_while_pages_are_written_loses_that_entry_only(tmp_path: Path) -> None:
    for round_number in range(3):
        process = writer(tmp_path / "store", 1 << 30, 100 * round_number, 100_000)
        assert process.stdout is not None
        done = [int(process.stdout.readline()) for _ in range(3)]
        time.sleep(0.003 * round_number)
        process.send_signal(signal.SIGKILL)
        done += [int(line) for line in process.stdout.read().split()]
        process.wait()
        folder = PrefixStore(tmp_path / "store").folder(BINDING)
        for i in done:
            assert get(folder, other_tokens(i)) == EXPECTED
        for name in sorted((folder.directory / "points").glob("*.kv")):
            prefix_file.read(name, prefix_file.POINT, folder.binding, max_bytes=1 << 20)
        for name in sorted((folder.directory / "pages").glob("*.kv")):
            prefix_file.read(name, prefix_file.PAGE, folder.binding, max_bytes=1 << 20)


# Writes entries of its own and reads all processes' as a restore does, while room is made all the time.
MIXED = WRITER.replace(
    "    print(i, flush=True)",
    """
    for other in (*range(40), *range(1000, 1040)):
        tokens = prefix_file.token_bytes([2000 + other] * 700)
        for point in list(folder.find(tokens)):
            try:
                found = [bytes(folder.read_point(point, tokens, max_payload=1 << 20))]
                for page, key in enumerate(point.page_keys):
                    part = tokens[512 * page : 512 * (page + 1)]
                    found.append(bytes(folder.read_page(key, part, max_payload=1 << 20)))
            except FileNotFoundError:
                continue  # room was made
            assert found == [b"tail", *(bytes([page]) * 1000 for page in range(4))], other
            print("read", other if first <= other < first + 40 else "another's")
""",
)


def test_two_processes_that_read_write_and_make_room(tmp_path: Path) -> None:
    """A damaged entry, or another's bytes, would end a process with an error."""
    run = [sys.executable, "-c", MIXED, str(tmp_path / "store"), "60000"]
    processes = [
        subprocess.Popen([*run, first, "40"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for first in ("0", "1000")
    ]
    lines = []
    for process in processes:
        out, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        lines += out.splitlines()
    assert lines.count("read another's") > 0
    assert len(lines) > 80


def test_two_processes_on_one_small_store(tmp_path: Path) -> None:
    """Both make room all the time; what is found is right, and the cap holds but for a file that each may be at."""
    cap = 60_000
    processes = [writer(tmp_path / "store", cap, first, 40) for first in (0, 1000)]
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    store = PrefixStore(tmp_path / "store", cap_bytes=cap)
    folder = store.folder(BINDING)
    found = [i for i in (*range(40), *range(1000, 1040)) if list(folder.find(other_tokens(i)))]
    assert found
    whole = 0
    for i in found:
        try:
            assert get(folder, other_tokens(i)) == EXPECTED
            whole += 1
        except FileNotFoundError:
            pass  # a page went between the two: computed again
    assert whole
    assert store.total_bytes() <= 2 * cap
