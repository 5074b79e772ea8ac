"""Who imports whom in `src/kamado`: files that need each other in a circle cannot be read one after the other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "src"
MAX_CIRCLE = 2  # a pair may define each other


def modules() -> dict[str, Path]:
    """Every module by its dotted name; a package is its `__init__`."""
    found = {}
    for path in sorted((SOURCE / "kamado").rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path, known: Mapping[str, Path]) -> Iterator[str]:
    """Modules that `name` imports anywhere: at its top, inside functions, for type checkers."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                target = f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base
                if target in known and target != "kamado":  # "from .. import _native" reads so
                    yield target


def circles(edges: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of modules that reach each other (Tarjan 1972), each sorted."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in edges[node]:
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            at = stack.index(node)
            found.append(sorted(stack[at:]))
            del stack[at:]

    for node in edges:
        if node not in index:
            visit(node)
    return found


def test_circles_are_found() -> None:
    edges = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a", "d"}, "e": set()}
    assert sorted(circles(edges)) == [["a", "b", "c"], ["d"], ["e"]]


def test_no_more_than_two_files_import_each_other() -> None:
    known = modules()
    edges = {name: set(imports(name, path, known)) - {name} for name, path in known.items()}
    assert sum(map(len, edges.values())) > len(edges)  # imports are seen at all
    assert [circle for circle in circles(edges) if len(circle) > MAX_CIRCLE] == []


def test_only_a_bodys_scales_reach_the_native_module_from_commands_and_the_server() -> None:
    """import-linter sees no compiled module. Counting a body's JSON values as they arrive is no model's business."""
    found = {
        name
        for name, path in modules().items()
        if name.startswith(("kamado.cli", "kamado.serve"))
        and re.search(r"import _native|_native import", path.read_text())
    }
    assert found == {"kamado.serve.http.bodies"}
