"""Headless Chromium for tests of the page; conftest.py hands its fixtures to all tests here.

The browser is Debian's `chromium` (or KAMADO_CHROMIUM), driven by playwright; without one the tests are skipped.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextmanager
def launched() -> Iterator[Any]:
    """A browser; without one the test that asks for it is skipped."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
    path = os.environ.get("KAMADO_CHROMIUM") or shutil.which("chromium")
    if path is None:
        pytest.skip("no chromium: install Debian's chromium, or name one in KAMADO_CHROMIUM")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched() as found:
        yield found


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens the page in a fresh profile. A script error, a refusal by the policy or a foreign request is a failure."""
    contexts: list[Any] = []
    faults: list[str] = []

    def open_page(url: str, context: Any = None, **options: Any) -> Any:
        if context is None:
            context = browser.new_context(**options)
            contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda m: faults.append(m.text) if "Content Security" in m.text else None)
        page.on("request", lambda r: None if r.url.startswith(url) else faults.append(f"foreign request: {r.url}"))
        page.goto(url)
        page.wait_for_selector("html[data-ready]")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert faults == []


def ask(page: Any, question: str) -> None:
    page.fill("#input", question)
    page.press("#input", "Enter")


def answered(page: Any, content: str) -> None:
    """Waits until the last answer has this text and is complete."""
    last = page.locator(".message.assistant").last
    last.locator(".body", has_text=content).wait_for()  # the last one may still be that of the question before
    last.locator(".tools button", has_text="Retry").wait_for()
    assert content in last.locator(".body").inner_text()
