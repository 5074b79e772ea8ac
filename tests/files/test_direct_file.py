"""Files written past the page cache: every byte arrives, whatever the file system allows."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from kamado.files import direct_file
from kamado.files.atomic import replacing
from kamado.files.direct_file import DirectFile

BUFFER = 1 << 16


@pytest.fixture(autouse=True)
def _small_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct_file, "_BUFFER_BYTES", BUFFER)


def content(size: int) -> bytes:
    return bytes(i * 7 % 251 for i in range(size))


@pytest.mark.parametrize("size", [0, 1, 4096, BUFFER - 1, BUFFER, BUFFER + 1, 3 * BUFFER + 5000])
@pytest.mark.parametrize("piece", [777, BUFFER, 1 << 20])
def test_all_bytes_arrive(tmp_path: Path, size: int, piece: int) -> None:
    data = content(size)
    with DirectFile(tmp_path / "file") as file:
        for begin in range(0, size, piece):
            file.write(memoryview(data)[begin : begin + piece])
    assert (tmp_path / "file").read_bytes() == data


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="no direct I/O on this system")
@pytest.mark.parametrize("refused", ["open", "write"])
def test_a_file_system_without_direct_io_gets_ordinary_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    real = {"open": os.open, "write": os.write}

    def open_(path: Path, flags: int, mode: int = 0o777) -> int:
        if refused == "open" and flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no direct I/O")
        return real["open"](path, flags, mode)

    def write(fd: int, data: memoryview) -> int:
        import fcntl

        if refused == "write" and fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no direct I/O")
        return real["write"](fd, data)

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "write", write)
    data = content(2 * BUFFER + 10)
    with DirectFile(tmp_path / "file") as file:
        file.write(data)
        assert not file.is_direct
    assert (tmp_path / "file").read_bytes() == data


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[: max(1, len(data) // 3)]))
    data = content(BUFFER + 100)
    with DirectFile(tmp_path / "file") as file:
        file.write(data)
    assert (tmp_path / "file").read_bytes() == data


def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, data: memoryview) -> int:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(os, "write", full)
    with (
        pytest.raises(OSError, match="no space left"),
        replacing(tmp_path / "file") as temporary,
        DirectFile(temporary) as file,
    ):
        file.write(content(2 * BUFFER))
    assert list(tmp_path.iterdir()) == []
