"""Whether a program can be run: the rules that `operation` and `ops` state, applied to what a family wrote down."""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from operator import attrgetter
from types import CodeType
from typing import Any, TypeAlias

import numpy as np

from .model import Program
from .operation import (
    BUFFERS,
    NUMBERS,
    TENSORS,
    Buffer,
    Field,
    Kind,
    Operation,
    fields_of,
    fills,
    reads,
    states_of,
    writes,
)
from .ops import Embed, Experts, Head, Route
from .state import Record, Source, State


def validate(program: Program) -> None:
    """Raises ValueError, naming the operation, when the program cannot be run: an invariant of the family files.

    Checked: every buffer has one width and is written before it is read; operands and tensors fit each other;
    Route precedes its Experts; Head or Pool is last and there is exactly one; every state is written by one operation,
    a Source by none, before others read it, and fits all of them.
    """
    known = _Known({}, set(), {}, set(), set())
    if not program.ops or not isinstance(program.ops[0], Embed):
        raise ValueError("a program begins with Embed")
    for i, op in enumerate(program.ops):
        written = writes(op)
        problem = next(_problems(op, written, program, known), None)
        if problem is None and op.IS_LAST and i != len(program.ops) - 1:
            problem = "is not the last operation"
        if problem is not None:
            raise ValueError(f"operation {i} ({op.label()}): {problem}")
        known.add(op, written)
    if not program.ops[-1].IS_LAST:
        raise ValueError("a program ends with Head or Pool")
    for number, state in enumerate(program.states):
        problem = _misdeclared(state)
        if problem is None and number not in known.kept and not isinstance(state, Source):
            problem = "no operation writes it"
        if problem is not None:
            raise ValueError(f"state {number} ({type(state).__name__.lower()}): {problem}")


@dataclass(frozen=True, slots=True)
class _Known:
    """What the operations so far say of buffers, by name."""

    widths: dict[str, int]
    written: set[str]
    choices: dict[str, int]  # experts that a route chose from, where the logits are still those
    kept: set[int]  # states that were written
    fitting: set[tuple[Any, ...]]  # operations whose operands fit each other, by `_likeness`

    def add(self, op: Operation, written: tuple[Buffer, ...]) -> None:
        for buffer in written:
            self.written.add(buffer.name)
            self.choices.pop(buffer.name, None)
        if isinstance(op, Route):
            self.choices[op.logits.name] = op.num_experts
        if op.writes_state:
            self.kept.update(states_of(op))


@dataclass(frozen=True, slots=True)
class _Routed:
    """A buffer with the choice beside it, as rules see it."""

    width: int
    choices: int


def _problems(op: Operation, written: tuple[Buffer, ...], program: Program, known: _Known) -> Iterator[str]:
    """What does not fit, the first thing first; what comes after it may be nonsense."""
    read = reads(op)
    for buffer in (*read, *written):
        width = buffer.width
        before = known.widths.setdefault(buffer.name, width)
        if width < 1 or width != before:
            yield f"buffer {buffer.name!r} has width {width}, before {before}"
    for buffer in read:
        if buffer.name not in known.written:
            yield f"buffer {buffer.name!r} is read before it is written"
    if not op.IN_PLACE or len(written) > 1:
        yield from _overwritten(op, read)
    likeness = _likeness(op, known)
    if likeness not in known.fitting:
        yield from _misfits(op, known)
        known.fitting.add(likeness)
    yield from _misstated(op, program, known)
    if isinstance(op, Embed | Head):
        yield from _unlike(op, program)
    if isinstance(op, Experts):
        scattered = (ref for ref in (*op.gate, *op.up, *op.down) if ref.blocks is not None and ref.blocks[0] > 1)
        yield from (f"tensor {ref.name!r} lies in blocks, which an expert's must not" for ref in scattered)


_Look: TypeAlias = Callable[[Any, dict[str, int]], object]


@dataclass(frozen=True, slots=True)
class _Looks:
    """How `_likeness` reads one type of operation."""

    plain: Callable[[Any], object]  # the fields that count as they are, in one go
    others: tuple[tuple[str, _Look], ...]  # name, and what counts of the value


_LOOKS: dict[type[Operation], _Looks] = {}


def _looks(operation: type[Operation]) -> _Looks:
    if operation not in _LOOKS:
        looks = [(field.name, _look(field)) for field in fields_of(operation)]
        plain = [name for name, look in looks if look is None]
        others = tuple((name, look) for name, look in looks if look is not None)
        _LOOKS[operation] = _Looks(attrgetter(*plain) if plain else lambda _: None, others)
    return _LOOKS[operation]


def _look(field: Field) -> _Look | None:
    """What `_misfits` looks at of a field's value; None: all of it."""
    if field.kind in TENSORS:
        if field.is_list:
            return lambda value, _: tuple(item and item.shape for item in value)
        return lambda value, _: value and value.shape
    if field.kind is Kind.ROUTED:
        return lambda value, choices: (value.width, choices.get(value.name, 0))
    if field.kind in BUFFERS:
        if field.is_list:
            return lambda value, _: tuple(item.width for item in value)
        return lambda value, _: value and value.width
    if field.kind is Kind.KEEPS:  # no rule looks at its number
        return lambda value, _: value < 0
    return (lambda value, _: id(value)) if field.kind is Kind.CONSTANTS else None


def _likeness(op: Operation, known: _Known) -> tuple[object, ...]:
    """Equal for operations of which `_misfits` says the same. Layers repeat each other, so most are like one before."""
    kind, choices = type(op), known.choices
    looks = _looks(kind)
    return kind, looks.plain(op), *[look(getattr(op, name), choices) for name, look in looks.others]


def _misfits(op: Operation, known: _Known) -> Iterator[str]:
    """Fields that cannot be, rules that do not hold, shapes that do not fit."""
    values: dict[str, Any] = {}
    for field in fields_of(type(op)):
        value = values[field.name] = getattr(op, field.name)
        problem = _misfit(field, value)
        if problem is not None:
            yield problem
        if field.kind is Kind.ROUTED:
            values[field.name] = _Routed(value.width, known.choices.get(value.name, 0))
    for rule, text in op.RULES.items():
        if not _value(rule, values):
            yield _filled(text, values)
    yield from _misshapen(op, values)


def _filled(problem: str, values: dict[str, Any]) -> str:
    """The text of a rule with the values of its expressions; floats as the executor writes them too."""
    parts = []
    for text, expression, _, _ in string.Formatter().parse(problem):
        value = "" if expression is None else _value(expression, values)
        parts.append(f"{text}{value:g}" if isinstance(value, float) else f"{text}{value}")
    return "".join(parts)


def _overwritten(op: Operation, read: tuple[Buffer, ...]) -> Iterator[str]:
    """Buffers that an operation fills twice, or while it still reads them."""
    out = [buffer.name for buffer in fills(op)]
    if len(out) > 1:
        for name in {name for name in out if out.count(name) > 1}:
            yield f"buffer {name!r} is written twice"
    for buffer in () if op.IN_PLACE else read:
        if buffer.name in out:
            yield f"writes over an input: buffer {buffer.name!r} is both input and output"


def _misfit(field: Field, value: Any) -> str | None:
    """What is wrong with the value of one field, whatever the others are."""
    if field.kind is Kind.CONSTANTS:
        if value.dtype != np.float64 or value.ndim != 1 or not np.isfinite(value).all():
            return f"{field.name} is not finite float64: {value.dtype}{list(value.shape)}"
    elif field.kind is Kind.CHOICE:
        if value not in field.choices:
            return f"{field.name} {value!r} is none of {', '.join(field.choices)}"
    elif field.kind in NUMBERS and value is not None:
        is_low = value <= 0 if field.is_optional else field.kind is Kind.KEEPS and value < 0
        if is_low or not math.isfinite(value):
            return f"{field.name} {value} is not a number that it can be"
    return None


@dataclass(frozen=True, slots=True)
class _Shape:
    """What SHAPES says of a field."""

    field: Field
    parts: tuple[str, ...]
    beside: tuple[str, ...]  # lists whose entry is meant that stands beside this one


_SHAPES: dict[type[Operation], tuple[_Shape, ...]] = {}


def _shapes(operation: type[Operation]) -> tuple[_Shape, ...]:
    if operation not in _SHAPES:
        lists = [field.name for field in fields_of(operation) if field.is_list]
        shapes = ((field, operation.shape_of(field)) for field in fields_of(operation))
        _SHAPES[operation] = tuple(
            _Shape(field, tuple(shape.split(", ")), tuple(name for name in lists if f"{name}." in shape))
            for field, shape in shapes
            if shape is not None
        )
    return _SHAPES[operation]


def _misshapen(op: Operation, values: dict[str, Any]) -> Iterator[str]:
    """Buffers and tensors whose shape is not what SHAPES says."""
    for shape in _shapes(type(op)):
        field, beside = shape.field, shape.beside
        wanted: tuple[int | None, ...] | None = None
        for i, item in enumerate(values[field.name] if field.is_list else (values[field.name],)):
            if item is None:
                continue
            if wanted is None or beside:
                named = {**values, **{name: values[name][i] for name in beside}} if beside else values
                wanted = tuple(None if part == "_" else _value(part, named) for part in shape.parts)
            got = (item.width,) if field.kind in BUFFERS else item.shape
            if got == wanted or (
                len(got) == len(wanted) and all(w in (None, g) for g, w in zip(got, wanted, strict=True))
            ):
                continue
            if field.kind in BUFFERS:
                yield f"buffer {item.name!r} has width {got[0]}, expected {wanted[0]}"
            else:
                yield f"tensor {item.name!r} has shape {got}, expected {wanted}"


def _unlike(op: Embed | Head, program: Program) -> Iterator[str]:
    """Tables that do not fit the model: the executor knows no vocabulary but theirs."""
    if isinstance(op, Embed) and op.index == "position" and op.table.rows < program.context_length:
        yield f"table {op.table.name!r} has {op.table.rows} positions, the model {program.context_length}"
    ref = op.weight if isinstance(op, Head) else op.table if op.index == "token" else None
    if ref is not None and ref.rows != program.vocab_size:
        yield f"tensor {ref.name!r} has shape {ref.shape}, expected {program.vocab_size} rows"


def _misstated(op: Operation, program: Program, known: _Known) -> Iterator[str]:
    """A state that is not there, does not fit, or is written twice or too late."""
    for number in states_of(op):
        if number >= len(program.states):
            yield f"state {number} of a program with {len(program.states)}"
        problem = op.state_misfit(program.states[number])
        if problem is not None:
            yield f"state {number}: {problem}"
        if op.writes_state and number in known.kept:
            yield f"state {number} is written by another operation already"
        if not op.writes_state and number not in known.kept and not isinstance(program.states[number], Source):
            yield f"state {number} is read before it is written"


def _misdeclared(state: State) -> str | None:
    if isinstance(state, Record):
        is_sound = state.num_bytes > 0 and state.num_bytes % 4 == 0
        return None if is_sound else f"{state.num_bytes} bytes are no number of float32"
    sizes = (state.num_kv_heads, state.head_dim, state.v_dim, getattr(state, "tokens", 1))
    return None if min(sizes) > 0 else f"sizes {sizes} are not all above 0"


@cache
def _compiled(expression: str) -> CodeType:
    return compile(expression, "<rule>", "eval")


_NAMES: dict[str, Any] = {"__builtins__": {"len": len}}


def _value(expression: str, values: dict[str, Any]) -> Any:
    """A rule's expression over an operation's fields. Rules are constants of `ops` and never input."""
    return eval(_compiled(expression), _NAMES, values)
