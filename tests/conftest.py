"""Fixtures that all tests share: no test touches the user's models or caches, and real models are found in one way."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

# The real models that tests name, and the file of each in the folder of KAMADO_TEST_MODELS.
REAL_MODELS = {
    "smollm2:135m": "smollm2-135m-instruct-q4_1.gguf",
    "gemma3:270m": "gemma-3-270m-q4_k_m.gguf",
    "qwen2.5-coder:1.5b": "qwen2.5-coder-1.5b.gguf",
    "all-minilm:l6-v2": "minilm",
}

# Read once, before the autouse fixture points them elsewhere.
_USERS = {name: os.environ.get(name) for name in ("KAMADO_HOME", "XDG_DATA_HOME")}
_TEST_MODELS = os.environ.get("KAMADO_TEST_MODELS")


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models, caches and configuration of the test are its own."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("KAMADO_HOME", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(home / "data"))


def find_real_model(name: str) -> Path | None:
    """The file or directory of a real model: in KAMADO_TEST_MODELS, else pulled into the user's own store."""
    if _TEST_MODELS:
        path = Path(_TEST_MODELS) / REAL_MODELS.get(name, name)
        if path.exists():
            return path
    from kamado.checkpoint.store import Store
    from kamado.errors import KamadoError

    with pytest.MonkeyPatch.context() as patch:
        for variable, value in _USERS.items():
            if value is None:
                patch.delenv(variable, raising=False)
            else:
                patch.setenv(variable, value)
        try:
            return Store().resolve(name)
        except KamadoError:
            return None


@pytest.fixture(scope="session")
def real_model() -> Callable[[str], Path]:
    """`real_model("smollm2:135m")` is its path; the test is skipped, with what to do, when it is not there."""

    def find(name: str) -> Path:
        path = find_real_model(name)
        if path is None:
            pytest.skip(f"no {name}: set KAMADO_TEST_MODELS to a folder with {REAL_MODELS.get(name, name)}, or pull it")
        return path

    return find
