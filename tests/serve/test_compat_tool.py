"""tools/compatibility.py misses nothing: a row without its test, a test that says another class, a documented name."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from kamado.serve.protocols.table import TABLE

TOOL = Path(__file__).parents[2] / "tools" / "compatibility.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("compatibility", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def everything() -> list[dict[str, str]]:
    """What a run records in which every row was asserted."""
    return [
        {"endpoint": row.endpoint, "parameter": row.label, "status": row.kind, "note": "", "test": "t"}
        for row in TABLE.rows
    ]


def test_every_row_needs_its_test(tool: ModuleType) -> None:
    said = [item for item in everything() if item["parameter"] not in ("store", "options.num_thread")]
    lines = tool.missing(said)
    assert "no test has seen it left out: POST /v1/chat/completions: store" in lines
    assert "no test has seen it left out: POST /api/chat: options.num_thread" in lines


def test_a_test_that_says_another_class_is_told(tool: ModuleType) -> None:
    said = everything()
    wrong = next(item for item in said if item["parameter"] == "grammar")
    wrong["status"] = "left out"
    lines = tool.missing(said)
    assert f"no test has seen it refused: {wrong['endpoint']}: grammar" in lines
    assert f"a test saw it left out: {wrong['endpoint']}: grammar" in lines


def test_what_is_documented_has_a_row_or_a_test(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "documented", lambda: {"POST /v1/messages": {"model", "telepathy"}})
    assert tool.missing(everything()) == ["documented, and in no row: POST /v1/messages: telepathy"]


def test_the_page_has_every_row(tool: ModuleType) -> None:
    page = tool.render([])
    for row in TABLE.rows:
        name = row.name.replace("|", "\\|")
        assert f"| {name}" in page
    assert "| options.num_thread | left out |" in page
    assert "(0 is taken)" in page
