"""A line chart as SVG, readable on light and dark pages; no dependency."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 720, 420
_FONT = 'font-family="sans-serif" font-size="12"'
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 20, 44, 52


@dataclass(frozen=True, slots=True)
class Curve:
    """One line; `points` in ascending x."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: str
    width: float = 2
    is_dashed: bool = False


def svg(title: str, x_name: str, y_name: str, curves: Sequence[Curve]) -> str:
    """The chart, both axes from zero. Curves without points are left out."""
    curves = [curve for curve in curves if curve.points]
    x_ticks = _ticks(max((x for c in curves for x, _ in c.points), default=1.0))
    y_ticks = _ticks(max((y for c in curves for _, y in c.points), default=1.0))

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            _LEFT + x / x_ticks[-1] * (_WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - y / y_ticks[-1] * (_HEIGHT - _TOP - _BOTTOM),
        )

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" {_FONT}>',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        f'<text x="{_LEFT}" y="22" font-size="14" fill="#1c1917">{escape(title)}</text>',
    ]
    for tick in x_ticks:
        x, y = place(tick, 0)
        out.append(f'<text x="{x:.1f}" y="{y + 18:.1f}" text-anchor="middle" fill="#57534e">{tick:g}</text>')
    for tick in y_ticks:
        x, y = place(0, tick)
        out.append(f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}" stroke="#e7e5e4"/>')
        out.append(f'<text x="{x - 8:.1f}" y="{y + 4:.1f}" text-anchor="end" fill="#57534e">{tick:g}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    out.append(f'<text x="{middle}" y="{_HEIGHT - 12}" text-anchor="middle" fill="#57534e">{escape(x_name)}</text>')
    out.append(
        f'<text transform="translate(16 {_HEIGHT / 2}) rotate(-90)" text-anchor="middle" '
        f'fill="#57534e">{escape(y_name)}</text>'
    )
    for i, curve in enumerate(curves):
        places = [place(x, y) for x, y in curve.points]
        dash = ' stroke-dasharray="5 4"' if curve.is_dashed else ""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        style = f'stroke="{curve.colour}" stroke-width="{curve.width}"{dash}'
        out.append(f'<polyline points="{path}" fill="none" {style}/>')
        if not curve.is_dashed:
            out += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{curve.colour}"/>' for x, y in places]
        y = _TOP + 6 + 17 * i
        out.append(f'<line x1="{_LEFT + 14}" y1="{y}" x2="{_LEFT + 42}" y2="{y}" {style}/>')
        out.append(f'<text x="{_LEFT + 50}" y="{y + 4}" fill="#1c1917">{escape(curve.name)}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"


def _ticks(largest: float) -> list[float]:
    """About five round numbers from 0 to at least `largest`."""
    step = 10 ** math.floor(math.log10(max(largest, 1e-9) / 5))
    step = next(step * m for m in (1, 2, 2.5, 5, 10) if step * m * 5 >= largest)
    return [step * i for i in range(math.ceil(largest / step - 1e-9) + 1)]
