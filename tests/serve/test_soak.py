"""The hostile soak in its short form: attackers beside honest clients on a real engine with a tiny model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
@pytest.mark.timeout(600)
def test_attackers_neither_end_nor_change_what_honest_clients_get(tmp_path: Path, tiny_checkpoint: Path) -> None:
    found = tmp_path / "report.json"
    command = [
        sys.executable, str(ROOT / "benchmarks" / "serve_load.py"), "--model", str(tiny_checkpoint), "--clients", "12",
        "--hostile", "4", "--minutes", "0.25", "--questions", "8", "--tokens", "24", "--context", "256",
        "--memory", "1GiB", "--gap-limit", "0", "--json", str(found), "--log", str(tmp_path / "log"),
    ]  # fmt: skip
    environment = {**os.environ, "KAMADO_HOME": str(tmp_path / "home")}
    (tmp_path / "home").mkdir()
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert found.exists(), run.stderr[-2000:]
    report = json.loads(found.read_text("utf-8"))
    # Memory is not flat yet after seconds; ten minutes by hand look at that.
    failed = [name for name, is_so in report["checks"].items() if not is_so and not name.endswith("memory_flat")]
    assert not failed, (failed, report["hostile"]["faults"], report["hostile"].get("hostile"))
    assert sum(report["hostile"]["hostile"]["sent"].values()) > 10
    assert report["hostile"]["resident_mib"]["growth"] < 150  # bodies of 27 MB do not stay
