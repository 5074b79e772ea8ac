"""The walks of docs/adding.md, done in a copy of the sources that is built: the page says enough, and few files."""

from __future__ import annotations

import pytest
from walks import Tree, read_walk

pytestmark = pytest.mark.slow


@pytest.mark.timeout(1800)
def test_an_operation_is_at_most_six_files(tmp_path_factory: pytest.TempPathFactory) -> None:
    tree = Tree(tmp_path_factory.mktemp("operation"))
    touched = tree.apply(read_walk("An operation"))
    assert 3 <= len(touched) <= 6
    tree.build("test_vector")
    tree.run(tree.folder / "build" / "test_vector")
    tree.pytest("tests/test_blend.py", "tests/models/test_program.py", "tests/test_native_module.py")
