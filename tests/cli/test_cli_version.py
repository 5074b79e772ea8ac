"""`kamado --version`: version, build, tiers; and what it says where parts of that are missing or foreign."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kamado.cli import version
from kamado.plan.machine import kernel_tiers


def said(monkeypatch: pytest.MonkeyPatch, path: Path, wheel: str = "") -> str:
    monkeypatch.setattr(version, "_BUILD", path)
    monkeypatch.setattr(version, "_wheel_tag", lambda: wheel)
    return version.version_line()


def test_the_line_names_commit_compiler_wheel_and_tiers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "build.json"
    path.write_text(json.dumps({"commit": "0123456789ab", "compiler": "Clang 21.1.0", "processor": "x86_64"}))
    line = said(monkeypatch, path, "cp312-abi3-manylinux_2_28_x86_64")
    assert "(build 0123456789ab, Clang 21.1.0, cp312-abi3-manylinux_2_28_x86_64; tier " in line
    tiers = kernel_tiers()
    assert tiers[:1] in ((), ("scalar",))
    assert f" of {', '.join(tiers)};" in line or not tiers
    assert "\n" not in line


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"commit": "' + "a" * 9000 + '"}', "\xff"])
def test_a_build_file_that_is_not_ours_is_passed_over(
    text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "build.json"
    path.write_text(text, encoding="latin-1")
    assert "(build from a source tree; " in said(monkeypatch, path)
    assert "(build from a source tree; " in said(monkeypatch, tmp_path / "none")


def test_a_build_of_no_commit_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "build.json"
    path.write_text(json.dumps({"commit": "", "compiler": "GNU 12.2.0"}))
    assert "(build of no commit, GNU 12.2.0; " in said(monkeypatch, path)
