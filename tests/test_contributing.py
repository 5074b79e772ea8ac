"""CONTRIBUTING.md's first steps, done by somebody who has nothing but a clone and a Python."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
NO_INDEX = ("No matching distribution", "Could not find a version", "Connection", "name resolution")
KEPT = ("PATH", "LANG", "LD_LIBRARY_PATH", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "HTTPS_PROXY", "NO_PROXY")


def first_test() -> tuple[str, str, str]:
    """The file's place, its text, and the command that runs it, as the page has them."""
    found = re.search(r"save it as `([^`]+)`:\n\n```python\n(.*?)```\n\n```sh\npython3 (.*?)\n```", PAGE, re.DOTALL)
    assert found is not None, "the page has no first test any more"
    return found[1], found[2], found[3]


def test_the_first_test_holds() -> None:
    _, text, _ = first_test()
    names: dict[str, object] = {}
    exec(compile(text, "CONTRIBUTING.md", "exec"), names)
    tests = [value for name, value in names.items() if name.startswith("test_") and callable(value)]
    assert len(tests) == 1
    tests[0]()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_newcomer_gets_to_a_first_test(tmp_path: Path) -> None:
    clone = tmp_path / "kamado"
    # What other tests write meanwhile may be gone before it is copied.
    made = ("build", "__pycache__", "*.so", ".sources", ".*_cache", ".hypothesis")
    ignored = shutil.ignore_patterns(".git", ".venv", *made)
    shutil.copytree(ROOT, clone, ignore=ignored)
    place, text, command = first_test()
    (clone / place).write_text(text, encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name in KEPT or name.startswith("PIP_")}
    environment["HOME"] = str(tmp_path)
    environment["XDG_CACHE_HOME"] = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))  # pip's, to be quick
    python = Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}"
    done = subprocess.run(
        [python if python.exists() else sys.executable, *shlex.split(command)],
        cwd=clone, env=environment, capture_output=True, text=True, timeout=880, check=False,
    )  # fmt: skip
    if done.returncode != 0 and any(reason in done.stderr + done.stdout for reason in NO_INDEX):
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert "1 passed" in done.stdout
    assert (clone / ".venv").is_dir()
