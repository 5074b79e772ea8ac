"""docs/api.md: its examples run, and it names every argument of the public API."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path

import pytest

import kamado
from kamado.engine.turns.asked import EventOptions

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "api.md").read_text()


def test_the_examples_run_one_after_the_other(write_tiny: Callable[..., Path]) -> None:
    path = write_tiny(context_length=4096)
    names: dict[str, object] = {"path": path}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(block.replace('"smollm2:135m"', "path"), "docs/api.md", "exec"), names)


@pytest.mark.parametrize("function", ["load", "generate", "chat", "prepare_chat", "embed"])
def test_every_argument_is_named(function: str) -> None:
    found = getattr(kamado, function, None) or getattr(kamado.Model, function)
    arguments = {*inspect.signature(found).parameters, *EventOptions.__annotations__} - {"self", "options", "messages"}
    assert [name for name in sorted(arguments) if f"`{name}`" not in PAGE] == []
