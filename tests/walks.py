"""The walks of docs/adding.md done for real: a copy of the tree gets the page's own edits and is built.

A step of a walk on the page is a numbered line and the code below it:

    1. `src/kamado/program/ops.py`, before `class Head(Operation):`. Why, in words.

       ```python
       ...
       ```

"before" and "after" name a line of the file by how it begins; without either the file is new.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "adding.md"
_STEP = re.compile(
    r"^\d+\. `(?P<path>[^`]+)`(?:, (?P<where>before|after) `(?P<anchor>[^`]+)`)?.*?\n\n"
    r"(?P<code> *```\w*\n.*?\n *```)$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Edit:
    """Lines that a step puts into a file of the tree."""

    path: str
    where: str | None  # "before" or "after" the line that begins with `anchor`; None: the file is new
    anchor: str
    text: str


def read_walk(heading: str) -> list[Edit]:
    """The steps below `## heading` of the page, in order."""
    page = PAGE.read_text(encoding="utf-8")
    begin = page.index(f"## {heading}\n")
    end = page.find("\n## ", begin)
    edits = []
    for step in _STEP.finditer(page[begin : end if end > 0 else None]):
        code = textwrap.dedent(step["code"]).splitlines()[1:-1]
        edits.append(Edit(step["path"], step["where"], step["anchor"] or "", "\n".join(code) + "\n"))
    return edits


class Tree:
    """A copy of the sources that may be changed and built."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__", "*.so", "*.pyd"))
        for name in ("native", "tests", "docs"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("CMakeLists.txt", "pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, folder / name)

    def apply(self, edits: list[Edit]) -> set[str]:
        """Does the steps; the files that they touched. AssertionError where a step's line is not just once there."""
        for edit in edits:
            path = self.folder / edit.path
            if edit.where is None:
                assert not path.exists(), f"{edit.path} is there already"
                path.write_text(edit.text, encoding="utf-8")
                continue
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            found = [i for i, line in enumerate(lines) if line.strip().startswith(edit.anchor)]
            assert len(found) == 1, f"{len(found)} lines of {edit.path} begin with {edit.anchor!r}"
            at = found[0] + (edit.where == "after")
            path.write_text("".join([*lines[:at], edit.text, *lines[at:]]), encoding="utf-8")
        return {edit.path for edit in edits}

    def change(self, path: str, anchor: str, old: str, new: str) -> None:
        """Puts `new` for `old` in the only line of a file that begins with `anchor`."""
        file = self.folder / path
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        (at,) = [i for i, line in enumerate(lines) if line.startswith(anchor)]
        assert lines[at].count(old) == 1, f"{old!r} is not once in {lines[at]!r}"
        lines[at] = lines[at].replace(old, new)
        file.write_text("".join(lines), encoding="utf-8")

    def build(self, *targets: str) -> None:
        """Builds the native module, into src/kamado, and `targets`: the native tests."""
        build = self.folder / "build"
        ninja = ["-G", "Ninja"] if shutil.which("ninja", path=_path()) else []
        self._call(
            "cmake", "-S", self.folder, "-B", build, *ninja, "-DCMAKE_BUILD_TYPE=Release", "-DKAMADO_BUILD_TESTS=ON",
            f"-DPython_EXECUTABLE={sys.executable}",
        )  # fmt: skip
        jobs = str(os.cpu_count() or 1)
        self._call("cmake", "--build", build, "--parallel", jobs, "--target", "_native", *targets)
        for module in build.glob("_native*"):
            if module.is_file():
                shutil.copy(module, self.folder / "src" / "kamado" / module.name)

    def run(self, *command: str | Path) -> str:
        """What a command prints that runs in the tree with the tree's package; AssertionError when it fails."""
        return self._call(*command, env={"PYTHONPATH": str(self.folder / "src")})

    def pytest(self, *arguments: str) -> str:
        """As `run`, of tests in the tree; slow ones too."""
        return self.run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "", *arguments)

    def _call(self, *command: str | Path, env: dict[str, str] | None = None) -> str:
        words = [str(word) for word in command]
        result = subprocess.run(
            words, cwd=self.folder, env={**os.environ, "PATH": _path(), **(env or {})}, capture_output=True, text=True
        )
        assert result.returncode == 0, f"{' '.join(words)}\n{result.stdout[-6000:]}\n{result.stderr[-6000:]}"
        return result.stdout


def _path() -> str:
    """The programs beside the interpreter are found too: cmake and ninja of a venv."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
