"""Fixtures of the server's tests. `compat.py` has the mark that docs/compatibility.md is made from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import httpx2
import pytest

from .browsing import browser, open_page
from .compat import pytest_configure, pytest_runtest_makereport, pytest_sessionfinish, records
from .fake import FakeWorld
from .running import Running, running

if TYPE_CHECKING:
    import openai

__all__ = ["browser", "open_page", "pytest_configure", "pytest_runtest_makereport", "pytest_sessionfinish", "records"]


@pytest.fixture(scope="module")
def world() -> FakeWorld:
    """A model that shouts back; modules with a script of their own have their own."""
    return FakeWorld()


@pytest.fixture(scope="module")
def server(world: FakeWorld, request: pytest.FixtureRequest) -> Iterator[Running]:
    """A server of the world, with the module's CONFIG if it has one."""
    with running(world.library, world.loader, getattr(request.module, "CONFIG", None)) as up:
        yield up


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[openai.OpenAI]:
    """OpenAI's own client, which validates answers strictly."""
    import openai

    with openai.OpenAI(
        base_url=f"{server.url}/v1", api_key="any", max_retries=0, _strict_response_validation=True
    ) as found:
        yield found


@pytest.fixture(scope="module")
def http() -> Iterator[httpx2.Client]:
    """For requests that no client would send."""
    with httpx2.Client(timeout=30) as found:
        yield found
