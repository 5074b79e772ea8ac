"""The walks of docs/adding.md, done in a copy of the sources that is built: the page says enough, and few files."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from walks import Tree, read_walk

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@dataclass
class Walked:
    """A tree with an operation and a layout more, and what each of them touched."""

    tree: Tree
    operation: set[str]
    layout: set[str]


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Walked:
    """Both walks in one copy, since a build takes minutes."""
    tree = Tree(tmp_path_factory.mktemp("walks"))
    done = Walked(tree, tree.apply(read_walk("An operation")), tree.apply(read_walk("A layout")))
    for page, line, old, new in (
        ("README.md", "| Layouts |", " |\n", " T3_0 |\n"),
        ("docs/streaming.md", "| Layout | Q4_0", "Q2_K,", "Q2_K T3_0,"),
    ):
        tree.change(page, line, old, new)
        done.layout.add(page)
    tree.build("test_vector", "test_linear")
    return done


def test_an_operation_is_at_most_six_files(walked: Walked) -> None:
    assert 3 <= len(walked.operation) <= 6
    walked.tree.run(walked.tree.folder / "build" / "test_vector")
    tests = ("test_blend.py", "test_native_operations.py", "test_native_module.py", "models/test_program.py")
    assert "passed" in walked.tree.pytest(*(f"tests/{name}" for name in tests))


def test_a_layout_is_at_most_seven_files(walked: Walked) -> None:
    assert 4 <= len(walked.layout) <= 7
    walked.tree.run(walked.tree.folder / "build" / "test_linear")
    tests = ("test_native_layouts.py", "files/test_layouts.py", "files/test_t3_0.py")
    assert "passed" in walked.tree.pytest(*(f"tests/{name}" for name in tests), "tests/plan/test_forecast.py")
