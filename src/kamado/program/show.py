"""A program as text: `kamado show MODEL --program`."""

from __future__ import annotations

import re

from ..files.types import TensorRef
from .model import Program
from .operation import tensors

_LAYER = re.compile(r"(?<=\.)\d+(?=\.)")
_ROWS = re.compile(r"\[\d+:\d+\]")  # of a tensor that has those of all layers, one below the other


def format_program(program: Program, *, fold: bool = True) -> str:
    """The program as text, one operation a line; layers that differ only in their number are shown once.

    `fold=False` prints every layer.
    """

    def show(ref: TensorRef | None) -> str:
        """A tensor with its shape and layout; none stands for ones."""
        if ref is None:
            return "1"
        name = (_LAYER if _LAYER.search(ref.name) else _ROWS).sub("{i}", ref.name, count=1) if fold else ref.name
        return f"{name} ({'×'.join(map(str, ref.shape))} {ref.layout.name})"

    sections: list[tuple[int | None, list[str]]] = []  # (layer, lines)
    for op, layer in zip(program.ops, _layers(program), strict=True):
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


def _layers(program: Program) -> list[int | None]:
    """The layer of each operation: that of its first tensor's name. One without a tensor is where the one before is,
    and one whose tensor belongs to no layer (a table for all) is in the layer in the midst of which it stands."""
    named: list[int | str | None] = []  # "": of no layer
    for op in program.ops:
        ref = next(tensors(op), None)
        number = _LAYER.search(ref.name) if ref is not None else None
        named.append(int(number.group()) if number else None if ref is None else "")
    after: list[int | str | None] = []  # the next one that is in a layer
    for item in reversed(named):
        after.append(item if isinstance(item, int) else after[-1] if after else None)
    layers: list[int | None] = []
    for item, following in zip(named, reversed(after), strict=True):
        before = layers[-1] if layers else None
        layers.append(item if isinstance(item, int) else before if item is None or following == before else None)
    return layers


def _ranges(numbers: list[int]) -> str:
    """0-4, 6-10, 12"""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs)
