"""Files of ours appear whole or not at all, where the user wants them. Kills at every step: engine/test_crash.py."""

import os
import stat

import pytest

from kamado.files import atomic


def test_content_is_on_the_disk_before_the_name_and_then_the_name(tmp_path, monkeypatch):
    done = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda fd: (done.append("folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file"), fsync(fd))
    )
    monkeypatch.setattr(os, "replace", lambda *paths: (done.append("name"), replace(*paths)))
    atomic.write_atomically(tmp_path / "a", "text")
    assert done == ["file", "name", "folder"]
    done.clear()
    atomic.write_atomically(tmp_path / "a", "text", is_synced=False)
    atomic.sync_folder(tmp_path)
    assert done == ["file", "name", "folder"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "kept"
    path.write_text("old")

    def full(fd):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            atomic.write_atomically(path, "new")
    with pytest.raises(KeyboardInterrupt), atomic.replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["kept"]


def test_a_file_keeps_its_permissions_and_a_secret_is_nobody_elses_at_any_moment(tmp_path, monkeypatch):
    old = os.umask(0o022)
    try:
        path = tmp_path / "file"
        atomic.write_atomically(path, "1")
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
        path.chmod(0o640)
        atomic.write_atomically(path, "2")
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        modes = []
        fsync = os.fsync
        monkeypatch.setattr(os, "fsync", lambda fd: (modes.append(stat.S_IMODE(os.fstat(fd).st_mode)), fsync(fd)))
        atomic.write_atomically(path, "3", mode=atomic.PRIVATE)
        assert modes[0] == stat.S_IMODE(path.stat().st_mode) == 0o600
    finally:
        os.umask(old)


def test_a_link_is_replaced_and_not_followed(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("mine")
    link = tmp_path / "link"
    link.symlink_to(elsewhere)
    atomic.write_atomically(link, "new")
    assert elsewhere.read_text() == "mine"
    assert not link.is_symlink()
    assert link.read_text() == "new"


def test_folders_lie_below_kamado_home_or_where_the_system_has_them(tmp_path, monkeypatch):
    monkeypatch.setenv("KAMADO_HOME", str(tmp_path / "home"))
    assert atomic.user_folder("cache", "kv") == tmp_path / "home" / "kv"
    monkeypatch.delenv("KAMADO_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert atomic.user_folder("data") == tmp_path / "kamado"
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert atomic.user_folder("data", "x") == tmp_path / ".local" / "share" / "kamado" / "x"
