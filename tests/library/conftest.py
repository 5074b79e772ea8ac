"""Fixtures of the tests that fetch and keep models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kamado.library.store import Store

from .servers import Hub, Server, serve


@pytest.fixture
def server() -> Iterator[Server]:
    """A web server of the test's own."""
    with serve() as running:
        yield running


@pytest.fixture
def hub(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    """The server as a hub, and the one that is asked."""
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return Hub(server)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "store")


@pytest.fixture(autouse=True)
def _no_pause_and_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries come at once, and the test's server is reached directly."""
    monkeypatch.setattr("kamado.library.fetch.FIRST_PAUSE_S", 0.0)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
