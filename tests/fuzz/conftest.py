"""Makes every fuzz target a pair of tests, so that `pytest tests/fuzz` replays the corpus and some fixed mutations.

Long runs with fresh seeds are `python tests/fuzz/NAME.py --seconds N`, or any driver that calls `fuzz_one(data)`.
"""

from __future__ import annotations

import importlib
import random
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

_HERE = Path(__file__).parent
_MAX_SECONDS = 2.0
_MAX_INPUTS = 500


class Target(pytest.File):
    """One module with `fuzz_one`."""

    def collect(self) -> Iterable[pytest.Item]:
        for kind in ("corpus", "mutations"):
            yield Inputs.from_parent(self, name=kind)


class Inputs(pytest.Item):
    """The kept corpus of a target, or mutations of it."""

    def runtest(self) -> None:
        name = self.path.stem
        fuzz_one = importlib.import_module(f"fuzz.{name}").fuzz_one
        corpus = [path.read_bytes() for path in sorted((_HERE / "corpus" / name).iterdir())]
        assert corpus, f"tests/fuzz/corpus/{name} is empty"
        if self.name == "corpus":
            for data in corpus:
                fuzz_one(data)
            return
        mutate = importlib.import_module("fuzz._loop")._mutate
        generator = random.Random(1)
        end = time.monotonic() + _MAX_SECONDS
        for _ in range(_MAX_INPUTS):
            fuzz_one(mutate(generator, corpus, (b"\0" * 8, b"\xff" * 8, b"\x01", b"[", b"{")))
            if time.monotonic() > end:
                break


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> Target | None:
    """Targets are the modules beside this one."""
    is_target = file_path.parent == _HERE and file_path.suffix == ".py" and not file_path.name.startswith(("_", "conf"))
    return Target.from_parent(parent, path=file_path) if is_target else None
