"""Fixtures of the server's tests. `compat.py` has the mark that docs/compatibility.md is made from."""

from __future__ import annotations

from .browsing import browser, open_page
from .compat import pytest_configure, pytest_runtest_makereport, pytest_sessionfinish, records

__all__ = ["browser", "open_page", "pytest_configure", "pytest_runtest_makereport", "pytest_sessionfinish", "records"]
