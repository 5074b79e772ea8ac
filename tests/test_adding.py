"""The walks of docs/adding.md, done in a copy of the sources that is built: the page says enough, and few files."""

from __future__ import annotations

import pytest
from walks import Tree, read_walk

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def touched() -> dict[str, set[str]]:
    """The files of each walk, filled by `tree`."""
    return {}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory, touched: dict[str, set[str]]) -> Tree:
    """A copy in which all walks were done, built once."""
    tree = Tree(tmp_path_factory.mktemp("walks"))
    for heading in ("An operation", "A layout"):
        touched[heading] = tree.apply(read_walk(heading))
    for page, line, old, new in (
        ("README.md", "| Layouts |", " |\n", " T3_0 |\n"),
        ("docs/streaming.md", "| Layout | Q4_0", "Q2_K,", "Q2_K T3_0,"),
    ):
        tree.change(page, line, old, new)
        touched["A layout"].add(page)
    tree.build("test_vector", "test_linear")
    return tree


def test_an_operation_is_at_most_six_files(tree: Tree, touched: dict[str, set[str]]) -> None:
    assert 3 <= len(touched["An operation"]) <= 6
    tree.run(tree.folder / "build" / "test_vector")
    tree.pytest("tests/test_blend.py", "tests/models/test_program.py", "tests/test_native_module.py")


def test_a_layout_is_at_most_seven_files(tree: Tree, touched: dict[str, set[str]]) -> None:
    assert 4 <= len(touched["A layout"]) <= 7
    tree.run(tree.folder / "build" / "test_linear")
    tree.pytest(
        "tests/checkpoint/test_t3_0.py", "tests/checkpoint/test_layouts.py", "tests/test_native_layouts.py",
        "tests/memory/test_forecast.py",
    )  # fmt: skip
