"""Pieces of the lines that operations print of themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from ..files.types import TensorRef

    Show: TypeAlias = Callable[[TensorRef | None], str]


def given(**values: object) -> str:
    """What is not None, as ", name value"."""
    return "".join(f", {name} {value:g}" if isinstance(value, float) else f", {name} {value}"
                   for name, value in values.items() if value is not None)  # fmt: skip


def unless(usual: float, value: float) -> float | None:
    """The value, None where it is the usual one."""
    return None if value == usual else value


def plus(show: Show, ref: TensorRef | None) -> str:
    """A bias that is added, where there is one."""
    return "" if ref is None else f" + {show(ref)}"
