"""The walk of docs/adding.md for a family, done in a copy of the sources: two files, and all tests of families."""

from __future__ import annotations

import shutil

import pytest
from walks import Tree, read_walk


@pytest.mark.slow
def test_a_family_is_at_most_two_files(tmp_path_factory: pytest.TempPathFactory) -> None:
    native = pytest.importorskip("kamado._native", reason="the native module is not built")
    tree = Tree(tmp_path_factory.mktemp("family"))
    shutil.copy(native.__file__, tree.folder / "src" / "kamado")  # a family changes nothing in it
    touched = tree.apply(read_walk("A family"))
    assert 1 <= len(touched) <= 2
    # Both formats, its text, unread settings and tensors refused, arbitrary settings, prefixes, how it is printed.
    modules = ("both_formats", "models_golden", "models_settings", "names_and_limits", "program", "damaged_files")
    shown = tree.pytest("-m", "not parity", "-k", "toy", *(f"tests/models/test_{name}.py" for name in modules))
    assert "passed" in shown
    assert "failed" not in shown
