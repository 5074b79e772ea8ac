"""A real model in another family's shape: benchmarks/donors.py, in small."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

DONORS = Path(__file__).resolve().parents[2] / "benchmarks" / "donors.py"


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("name", "mistakes"), [("glm4moe", 13), ("lfm2moe", 10), ("qwen35moe", 11)])
def test_smollm2_says_the_same_in_another_shape(
    name: str, mistakes: int, real_model: Callable[[str], Path], tmp_path: Path
) -> None:
    found = tmp_path / "found.json"
    command = [
        sys.executable, str(DONORS), "--shape", name, "--donor", str(real_model("smollm2:135m")),
        "--folder", str(tmp_path), "--texts", "3", "--length", "100", "--answers", "4", "--tokens", "24",
        "--broken-texts", "1", "--experts", "6", "--pairs", "1", "--json", str(found),
    ]  # fmt: skip
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    for path in tmp_path.glob("*.gguf"):
        path.unlink()  # 1.5 GB, which pytest would keep
    print(run.stdout)
    assert run.returncode == 0, run.stdout + run.stderr
    (shape,) = json.loads(found.read_text())["results"]
    assert shape["largest_change"] < 1e-3
    assert shape["same_answers"] == shape["answers"] == 4
    assert len(shape["mistakes"]) == mistakes
    assert all(row["seen"] for row in shape["mistakes"])
