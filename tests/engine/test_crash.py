"""kill -9 at every step of writing: each system call of a store's writer, in the middle of a file's bytes too.

Real processes are killed. A step is a call that changes what is on disk; the writer kills itself right before its n-th
one, for every n, so nothing depends on luck.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kamado.engine.cache import prefix_file
from kamado.engine.cache.prefix_store import PrefixStore
from kamado.engine.turns.conversations import ConversationStore

from .test_prefix_store import BINDING, EXPECTED, get, other_tokens, put

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

# A parent that forks one child for each step. argv: folder, what to run.
DRIVER = """
import os, signal, sys
from pathlib import Path
from kamado.engine.cache import prefix_file, prefix_store as store_module
from kamado.engine.turns.conversations import ConversationStore
from kamado.engine.cache.prefix_store import PrefixStore

def write_prefix(root):
    folder = PrefixStore(root).folder({"model": "m", "preset": "balanced", "owner": ""}, {"model": "m"})
    tokens = prefix_file.token_bytes([2001] * 700)
    keys = prefix_file.chain(folder.binding, tokens)
    for page in range(4):
        folder.write_page(keys[page], tokens[512 * page : 512 * (page + 1)], bytes([page]) * 1000)
    folder.write_point(tokens, b"tail")

def make_room(root):
    PrefixStore(root, cap_bytes=20_000)._evict(5_000)

def write_session(root):
    ConversationStore(root).record("trip", "m", [{"role": "user", "content": "new " * 500}])

left = 0

def step():
    global left
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1

def counted(function):
    def call(*arguments, **options):
        step()
        return function(*arguments, **options)
    return call

def child(n, root, work):
    global left
    left = n
    write = os.write
    os.write = lambda fd, data: write(fd, data[:700])  # a file is written a part at a time
    for name in ("open", "write", "replace", "fsync", "unlink", "mkdir"):
        setattr(os, name, counted(getattr(os, name)))
    work(root)
    os._exit(0)

root, work = Path(sys.argv[1]), globals()[sys.argv[2]]
for n in range(1000):
    pid = os.fork()
    if pid == 0:
        child(n, root / str(n), work)
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0:
        break
print(n)
"""


def kill_at_every_step(root: Path, work: str) -> int:
    """The number of steps; `root / str(n)` is what was left by a process that was killed before its step n."""
    run = [sys.executable, "-c", DRIVER, str(root), work]
    result = subprocess.run(run, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return int(result.stdout)


def copies(root: Path, count: int) -> list[Path]:
    """`root / "0"` as often as there may be steps."""
    for n in range(1, count):
        shutil.copytree(root / "0", root / str(n))
    return [root / str(n) for n in range(count)]


def check_store(root: Path) -> bool:
    """What is found is right, all other entries are as before, and writing goes on; whether the entry is there."""
    store = PrefixStore(root)
    folder = store.folder(BINDING)
    for kind, directory in ((prefix_file.PAGE, "pages"), (prefix_file.POINT, "points")):
        for path in (folder.directory / directory).glob("*.kv"):
            prefix_file.read(path, kind, folder.binding, max_bytes=1 << 20)
    is_there = bool(list(folder.find(other_tokens(1))))
    if is_there:
        assert get(folder, other_tokens(1)) == EXPECTED
    put(folder, other_tokens(1))
    assert get(store.folder(BINDING), other_tokens(1)) == EXPECTED
    return is_there


@needs_fork
def test_kill_9_at_every_step_of_writing_a_prefix(tmp_path: Path) -> None:
    put(PrefixStore(tmp_path / "0").folder(BINDING))
    fresh = copies(tmp_path, 120)
    num_steps = kill_at_every_step(tmp_path, "write_prefix")
    assert 30 < num_steps < len(fresh)
    found = []
    for root in fresh[: num_steps + 1]:
        assert get(PrefixStore(root).folder(BINDING)) == EXPECTED, "an older entry was harmed"
        found.append(check_store(root))
    assert found == sorted(found), "once it is there it stays"
    assert found[0] is False
    assert found[num_steps] is True
    assert any(list(root.rglob("*.tmp")) for root in fresh[:num_steps]), "some died inside a file"


@needs_fork
def test_kill_9_at_every_step_of_making_room(tmp_path: Path) -> None:
    for i in range(3):
        put(PrefixStore(tmp_path / "0").folder(BINDING), other_tokens(i))
    fresh = copies(tmp_path, 40)
    num_steps = kill_at_every_step(tmp_path, "make_room")
    assert 5 < num_steps < len(fresh)
    for root in fresh[:num_steps]:
        folder = PrefixStore(root).folder(BINDING)
        for i in range(3):
            for point in list(folder.find(other_tokens(i))):
                if all(folder.has_page(key) for key in point.page_keys):
                    assert get(folder, other_tokens(i)) == EXPECTED
        check_store(root)


@needs_fork
def test_kill_9_at_every_step_of_writing_a_session(tmp_path: Path) -> None:
    old = [{"role": "user", "content": "old"}]
    new = [{"role": "user", "content": "new " * 500}]
    for name in ("trip", "other"):
        ConversationStore(tmp_path / "0").record(name, "m", old)
    fresh = copies(tmp_path, 30)
    num_steps = kill_at_every_step(tmp_path, "write_session")
    assert 4 < num_steps < len(fresh)
    seen = []
    for root in fresh[: num_steps + 1]:
        store = ConversationStore(root)
        found = store.load("trip")
        assert found is not None
        assert found.messages in (old, new)
        seen.append(found.messages == new)
        assert {c.name for c in store.list()} == {"trip", "other"}
        store.record("trip", "m", new)
        again = store.load("trip")
        assert again is not None
        assert again.messages == new
    assert seen == sorted(seen)
    assert (seen[0], seen[num_steps]) == (False, True)
