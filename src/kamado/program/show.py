"""A program as text: `kamado show MODEL --program`."""

from __future__ import annotations

import re

from ..files.types import TensorRef
from .model import Program
from .operation import tensors

_LAYER = re.compile(r"(?<=\.)\d+(?=\.)")


def format_program(program: Program, *, fold: bool = True) -> str:
    """The program as text, one operation a line; layers that differ only in their number are shown once.

    `fold=False` prints every layer.
    """

    def show(ref: TensorRef | None) -> str:
        """A tensor with its shape and layout; none stands for ones."""
        if ref is None:
            return "1"
        name = _LAYER.sub("{i}", ref.name, count=1) if fold else ref.name
        return f"{name} ({'×'.join(map(str, ref.shape))} {ref.layout.name})"

    sections: list[tuple[int | None, list[str]]] = []  # (layer, lines)
    layer: int | None = None
    for op in program.ops:
        ref = next(tensors(op), None)
        if ref is not None:
            number = _LAYER.search(ref.name)
            layer = int(number.group()) if number else None
        if not sections or sections[-1][0] != layer:
            sections.append((layer, []))
        sections[-1][1].append(f"{op.label():<7} {op.text(show)}")
    lines = [
        f"{program.architecture}: {program.num_layers} layers, hidden {program.hidden}, "
        f"vocabulary {program.vocab_size}, context {program.context_length}"
        + (f", {program.top_k} of {program.num_experts} experts" if program.num_experts else "")
    ]
    lines += [f"note: {note}" for note in program.notes]
    lines += [f"note: the file's {key} is not applied (allowed)" for key in program.overridden]
    groups: dict[object, tuple[list[int], list[str]]] = {}
    for index, (number_, body) in enumerate(sections):
        key: object = tuple(body) if fold and number_ is not None else index
        groups.setdefault(key, ([], body))[0].append(-1 if number_ is None else number_)
    for numbers, body in groups.values():
        if numbers[0] >= 0:
            lines.append(f"{'layer' if len(numbers) == 1 else 'layers'} {_ranges(numbers)}")
        lines += [("  " if numbers[0] >= 0 else "") + line for line in body]
    return "\n".join(lines)


def _ranges(numbers: list[int]) -> str:
    """0-4, 6-10, 12"""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs)
