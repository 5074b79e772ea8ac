"""`kamado serve` in processes of its own, and the commands beside it: killed, started twice, stopped."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .processes import started
from .running import wait_until
from .stores import put
from .test_one_server import command

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="no sockets for it there")]


def test_a_life_beside_a_server(tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAMADO_HOME", str(tmp_path))
    put(tmp_path, "tiny", tiny_checkpoint)
    run = ["run", "tiny", "hello", "--seed", "5", "-n", "12"]
    alone = command(*run)
    assert (alone.exit_code, alone.stderr) == (0, "")
    with started(tmp_path, "tiny") as first:
        words = [sys.executable, "-m", "kamado", *run]
        beside = subprocess.run(words, capture_output=True, text=True, errors="replace", timeout=120)
        assert (beside.returncode, beside.stdout, beside.stderr) == (0, alone.stdout, "")
        wait_until(lambda: any(event.get("path") == "/kamado/v1/answer" for event in first.events()))
        with started(tmp_path, "tiny") as second:
            assert any("another server of yours is there already" in line for line in second.lines)
        assert str(first.popen.pid) in command("ps").stderr
        first.kill()
    gone = command(*run)
    assert (gone.exit_code, gone.stdout, gone.stderr) == (0, alone.stdout, "")
    assert command("ps").exit_code == 9
    with started(tmp_path, "tiny") as third:
        assert command("logs", "-n", "5").exit_code == 0
        assert command("stop", "--server").stdout == f"the server {third.popen.pid} ends\n"
        assert third.popen.wait(60) == 0
    assert not list(tmp_path.glob("run-*/*"))
