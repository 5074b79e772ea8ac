"""The walk of docs/adding.md for a layout, done in a copy of the sources that is built: the page says enough."""

from __future__ import annotations

import pytest
from walks import Tree, read_walk


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_layout_is_at_most_seven_files(tmp_path_factory: pytest.TempPathFactory) -> None:
    tree = Tree(tmp_path_factory.mktemp("layout"))
    touched = tree.apply(read_walk("A layout"))
    for page, line, old, new in (
        ("README.md", "| Layouts |", " |\n", " T3_0 |\n"),
        ("docs/streaming.md", "| Layout | Q4_0", "Q2_K,", "Q2_K T3_0,"),
    ):
        tree.change(page, line, old, new)
        touched.add(page)
    assert 4 <= len(touched) <= 7
    tree.build("test_linear")
    tree.run(tree.folder / "build" / "test_linear")
    tests = ("test_native_layouts.py", "test_native_module.py", "checkpoint/test_layouts.py", "checkpoint/test_t3_0.py")
    assert "passed" in tree.pytest(*(f"tests/{name}" for name in tests), "tests/memory/test_forecast.py")
