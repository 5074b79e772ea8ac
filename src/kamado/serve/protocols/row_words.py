"""Words that the tables of parameters are written in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..http.parameters import Kind, Row, one_of


def honoured(endpoints: Sequence[str], names: str, why: str = "") -> list[Row]:
    """Parameters whose effect a test has seen; `names` are parted by blanks."""
    return [Row(endpoint, name, "honoured", why) for endpoint in endpoints for name in names.split()]


def part(endpoints: Sequence[str], name: str, which: str, why: str = "") -> list[Row]:
    """A part of a parameter with a test of its own."""
    return [Row(endpoint, name, "honoured", why, part=which) for endpoint in endpoints]


def left_out(endpoints: Sequence[str], name: str, why: str, *examples: Any, **more: Any) -> list[Row]:
    """A parameter that the answer does not depend on."""
    return [Row(endpoint, name, "left out", why, examples=examples, **more) for endpoint in endpoints]


def refused(endpoints: Sequence[str], name: str, why: str, *examples: Any, **more: Any) -> list[Row]:
    """A parameter without which the answer would be another."""
    return [Row(endpoint, name, "refused", why, examples=examples, **more) for endpoint in endpoints]


def happens(
    endpoints: Sequence[str], name: str, values: Sequence[Any], why: str, others: Kind, *examples: Any, **more: Any
) -> list[Row]:
    """A parameter of which some values ask for what happens anyway; the `others`, of which there are `examples`."""
    shown = " or ".join(_written(value) for value in values)
    rows: list[Row] = []
    for endpoint in endpoints:
        rows.append(
            Row(
                endpoint,
                name,
                "honoured",
                "is what happens",
                part=shown,
                takes=one_of(*values),
                examples=tuple(values),
                happens=True,
                **more,
            )
        )
        rows.append(Row(endpoint, name, others, why, examples=examples, **more))
    return rows


def idle(endpoints: Sequence[str], name: str, why: str, *examples: Any) -> list[Row]:
    """A parameter that tunes what is off: it changes nothing elsewhere either."""
    return [Row(endpoint, name, "honoured", why, examples=examples, happens=True) for endpoint in endpoints]


def typed(*, among: Sequence[str] = (), but: Sequence[str | None] = ()) -> Callable[[Any], bool]:
    """Whether an object's `type` is one of some, or (`but`) none of some."""

    def takes(value: Any) -> bool:
        if not isinstance(value, dict):
            return False
        kind = value.get("type")
        return kind in among if among else isinstance(kind, str) and kind not in but

    return takes


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f'"{value}"' if isinstance(value, str) else str(value)
