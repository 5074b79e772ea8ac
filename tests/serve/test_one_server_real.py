"""`kamado serve` and the commands beside it, each in a process of its own: killed, started twice, stopped."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .processes import started
from .running import wait_until
from .stores import put

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="no sockets for it there")]


def kamado(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "KAMADO_HOME": str(home)}
    command = [sys.executable, "-m", "kamado", *words]
    return subprocess.run(command, env=env, capture_output=True, text=True, errors="replace", timeout=120)


def test_a_life_beside_a_server(tmp_path: Path, tiny_checkpoint: Path) -> None:
    put(tmp_path, "tiny", tiny_checkpoint)
    run = ["run", "tiny", "hello", "--seed", "5", "-n", "12"]
    alone = kamado(tmp_path, *run)
    assert (alone.returncode, alone.stderr) == (0, "")
    with started(tmp_path, "tiny") as first:
        beside = kamado(tmp_path, *run)
        assert (beside.returncode, beside.stdout, beside.stderr) == (0, alone.stdout, "")
        wait_until(lambda: any(event.get("path") == "/kamado/v1/answer" for event in first.events()))
        with started(tmp_path, "tiny") as second:
            assert any("another server of yours is there already" in line for line in second.lines)
        assert str(first.popen.pid) in kamado(tmp_path, "ps").stderr
        first.kill()
    gone = kamado(tmp_path, *run)
    assert (gone.returncode, gone.stdout, gone.stderr) == (0, alone.stdout, "")
    assert kamado(tmp_path, "ps").returncode == 9
    with started(tmp_path, "tiny") as third:
        assert kamado(tmp_path, "logs", "-n", "5").returncode == 0
        assert kamado(tmp_path, "stop", "--server").stdout == f"the server {third.popen.pid} ends\n"
        assert third.popen.wait(60) == 0
    assert not list(tmp_path.glob("run-*/*"))
