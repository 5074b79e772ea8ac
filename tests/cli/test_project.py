"""The promises around the package: few dependencies, none that runs code by itself, locks that fit, no stray paths."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DIRECT_BUDGET, CLOSURE_BUDGET = 12, 25
PIN = re.compile(r"^([A-Za-z0-9._-]+)==", re.MULTILINE)


def names(lock: str) -> set[str]:
    return set(PIN.findall((ROOT / "requirements" / lock).read_text()))


def test_dependency_budget() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    direct = {re.split(r"[<>=!~ ;\[]", requirement)[0] for requirement in project["dependencies"]}
    assert len(direct) <= DIRECT_BUDGET
    assert len(names("core.txt")) <= CLOSURE_BUDGET
    assert direct <= names("core.txt")


def test_locks_agree_and_every_pin_has_a_hash() -> None:
    core = set(re.findall(r"^\S+==\S+", (ROOT / "requirements" / "core.txt").read_text(), re.MULTILINE))
    test = set(re.findall(r"^\S+==\S+", (ROOT / "requirements" / "test.txt").read_text(), re.MULTILINE))
    assert core <= test
    for lock in (ROOT / "requirements").glob("*.txt"):
        text = lock.read_text()
        blocks = re.split(r"^(?=\S+==)", text, flags=re.MULTILINE)[1:]
        assert blocks
        assert all("--hash=sha256:" in block for block in blocks), lock
        assert not re.search(r"https?://|file:|--index|--find-links|\s/[a-z]", text), lock


@pytest.mark.parametrize("name", sorted(names("core.txt")))
def test_no_dependency_runs_code_when_python_starts(name: str) -> None:
    try:
        files = metadata.files(name) or []
    except metadata.PackageNotFoundError:
        pytest.skip(f"{name} is for another platform")
    assert [str(file) for file in files if file.suffix == ".pth"] == []


def test_the_package_imports_only_what_it_declares() -> None:
    core = {"click", "httpx2", "huggingface_hub", "jinja2", "numpy", "platformdirs", "tokenizers"}
    import ast
    import sys

    for path in (ROOT / "src").rglob("*.py"):
        declared = core | ({"h11", "msgspec", "uvicorn"} if "serve" in path.parts else set())
        declared |= {"llguidance"} if "engine" in path.parts else set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [node.module or ""]
            else:
                continue
            tops = {module.partition(".")[0] for module in modules}
            assert tops <= declared | sys.stdlib_module_names | {"kamado"}, path
