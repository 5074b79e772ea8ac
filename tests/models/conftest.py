"""The parity table, printed after the tests that filled it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

# The models are tiny: on a busy machine torch's threads wait for each other longer than they compute.
os.environ.setdefault("OMP_NUM_THREADS", "1")

_ROWS: list[tuple[str, str, float]] = []


@pytest.fixture
def record_parity() -> Callable[[str, str, float], None]:
    """Takes (case, route, max abs difference over the logits' standard deviation)."""
    return lambda case, route, reached: _ROWS.append((case, route, reached))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not _ROWS:
        return
    routes = sorted({route for _, route, _ in _ROWS})
    terminalreporter.section("max |difference of logits| / std of logits, against transformers in float32")
    terminalreporter.write_line(f"{'case':<28}" + "".join(f"{route:>16}" for route in routes))
    cells = {(case, route): reached for case, route, reached in _ROWS}
    for case in dict.fromkeys(case for case, _, _ in _ROWS):
        shown = (cells.get((case, route)) for route in routes)
        terminalreporter.write_line(
            f"{case:<28}" + "".join(f"{'' if value is None else format(value, '.1e'):>16}" for value in shown)
        )
