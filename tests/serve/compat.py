"""Which parameter of which endpoint is honoured, refused or absent: recorded by the tests that assert it.

A test says what it proves by a mark, and what it says counts only when it passes:

    @pytest.mark.compat("POST /v1/chat/completions", "temperature", "seed")
    def test_a_seed_gives_the_same_answer_again(...): ...

    @pytest.mark.compat("POST /v1/chat/completions", "audio", status="refused", note="no model here speaks")
    def test_audio_is_refused(...): ...

    @pytest.mark.parametrize("name", [pytest.param("store", marks=compat("POST /v1/responses", "store"))])

A test that goes over a table uses the fixture instead: `records("POST /api/chat", "images", status="refused")`, after
the assertion. Statuses: honoured, left out (header and log name it, the answer is the same without), refused (an error
names the parameter and the reason), absent (there is no such endpoint: it answers 404 in its API's error shape).
`tools/compatibility.py` runs these tests, compares what they recorded with the server's own table of parameters, and
writes docs/compatibility.md.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

STATUSES = ("honoured", "left out", "refused", "absent")
RECORD_VARIABLE = "KAMADO_COMPAT_RECORD"  # the file that what was asserted goes to

compat = pytest.mark.compat


@dataclass(frozen=True)
class Assertion:
    """One line of the table."""

    endpoint: str  # "POST /v1/messages"
    parameter: str  # "" for the endpoint itself; "options.num_ctx", "tool_choice: named" for parts
    status: str
    note: str
    test: str


_assertions: list[Assertion] = []
_pending = pytest.StashKey[list[Assertion]]()


def _assertion(test: str, endpoint: str, parameter: str, status: str, note: str) -> Assertion:
    assert status in STATUSES, f"{test}: {status!r} is no status: {', '.join(STATUSES)}"
    method, _, path = endpoint.partition(" ")
    assert method in ("GET", "POST", "DELETE", "HEAD"), f"{test}: {endpoint!r} has no method"
    assert path.startswith("/"), f"{test}: {endpoint!r} has no path"
    return Assertion(endpoint, parameter, status, note, test)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "compat(endpoint, *parameters, status='honoured', note=''): what the test proves of an endpoint's parameters",
    )


def _from_marks(item: pytest.Item) -> Iterator[Assertion]:
    for mark in item.iter_markers("compat"):
        endpoint, *parameters = mark.args
        for parameter in parameters or [""]:
            kinds: dict[str, Any] = {"status": "honoured", "note": "", **mark.kwargs}
            yield _assertion(item.nodeid.partition("[")[0], endpoint, parameter, kinds["status"], kinds["note"])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    if call.when == "call" and report.passed:
        _assertions.extend(_from_marks(item))
        _assertions.extend(item.stash.get(_pending, []))
    return report


@pytest.fixture
def records(request: pytest.FixtureRequest) -> Callable[..., None]:
    """`records(endpoint, parameter, status="honoured", note="")`: counts when the test passes."""
    pending = request.node.stash.setdefault(_pending, [])

    def record(endpoint: str, parameter: str = "", *, status: str = "honoured", note: str = "") -> None:
        pending.append(_assertion(request.node.nodeid.partition("[")[0], endpoint, parameter, status, note))

    return record


def pytest_sessionfinish(session: pytest.Session) -> None:
    path = os.environ.get(RECORD_VARIABLE)
    if path:
        Path(path).write_text(json.dumps([asdict(a) for a in _assertions], indent=1), encoding="utf-8")
