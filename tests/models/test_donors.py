"""A real model in another family's shape: benchmarks/donors.py, in small."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

DONORS = Path(__file__).resolve().parents[2] / "benchmarks" / "donors.py"


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("name", "donor", "texts", "answers", "mistakes"),
    [
        ("glm4moe", "smollm2:135m", 3, 4, 13),
        ("lfm2moe", "smollm2:135m", 3, 4, 10),
        ("qwen35moe", "smollm2:135m", 3, 4, 11),
        ("gpt-oss", "smollm2:135m", 1, 2, 10),
        ("gemma4", "gemma3:270m", 1, 2, 13),
    ],
)
def test_a_model_says_the_same_in_another_shape(
    name: str, donor: str, texts: int, answers: int, mistakes: int, real_model: Callable[[str], Path], tmp_path: Path
) -> None:
    found = tmp_path / "found.json"
    command = [
        sys.executable, str(DONORS), "--shape", name, "--donor", str(real_model(donor)), "--folder", str(tmp_path),
        "--texts", str(texts), "--length", "100", "--answers", str(answers), "--tokens", "24", "--broken-texts", "1",
        "--experts", "6", "--pairs", "1", "--json", str(found),
    ]  # fmt: skip
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    for path in tmp_path.glob("donor-*"):  # up to 3 GB, which pytest would keep
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    print(run.stdout)
    assert run.returncode == 0, run.stdout + run.stderr
    (shape,) = json.loads(found.read_text())["results"]
    assert shape["largest_change"] < 1e-3
    assert shape["same_answers"] == shape["answers"] == answers
    assert len(shape["mistakes"]) == mistakes
    assert all(row["seen"] for row in shape["mistakes"])
