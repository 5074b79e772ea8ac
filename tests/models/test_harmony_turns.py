"""Sampled turns in Harmony's format, read by a parser that is not ours: benchmarks/harmony_turns.py, in small."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

PROGRAM = Path(__file__).resolve().parents[2] / "benchmarks" / "harmony_turns.py"


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_turn_of_a_donor_is_malformed(real_model: Callable[[str], Path], tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    command = [
        sys.executable, str(PROGRAM), "--donor", str(real_model("smollm2:135m")), "--turns", "240", "--free-turns",
        "40", "--json", str(found),
    ]  # fmt: skip
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    print(run.stdout)
    assert run.returncode == 0, run.stdout + run.stderr
    bound, free = json.loads(found.read_text())["results"]
    assert bound["malformed"] == bound["wrong_calls"] == bound["wrong_json"] == 0
    assert min(bound[name] for name in ("whole", "calls", "json", "analysis", "commentary", "final")) > 5
    assert free["malformed"] > 0
