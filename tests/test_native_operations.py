"""The native builder takes the operations that `kamado.program.ops` defines, all of them, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kamado import _native
from kamado.program.operation import Kind, Operation, fields_of
from kamado.program.ops import OPERATIONS

ADD = {"out": 0, "a": 0, "b": 0}
NORM = {"out": 0, "x": 0, "weight": None, "bias": None, "eps": 1e-6, "kind": "rms", "group": None}


def native_fields(operation: type[Operation]) -> list[str]:
    return [field.name for field in fields_of(operation) if field.kind is not Kind.ADDED]


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.label())
def test_the_built_module_has_the_fields_of_the_definition(operation: type[Operation]) -> None:
    names, label = native_fields(operation), operation.label()
    for missing in names:
        with pytest.raises(ValueError, match=f"{label}: field {missing} is missing"):
            _native.Builder().append(label, {name: None for name in names if name != missing})
    with pytest.raises(ValueError, match=f"{label}: there are fields that it does not have"):
        _native.Builder().append(label, dict.fromkeys([*names, "more"]))


def builder() -> _native.Builder:
    """Buffer 0 of width 8 has values, buffer 1 of width 8 has none; constant 0 has 4 values."""
    made = _native.Builder()
    made.buffer("x", 8)
    made.buffer("empty", 8)
    made.constant(np.ones(4))
    table = made.matrix("table", __file__, 0, 0, 2, 8)
    made.append("embed", {"out": 0, "table": table, "scale": 1.0, "index": "token", "pieces": 1, "piece": 0})
    return made


@pytest.mark.parametrize(
    ("operation", "fields", "problem"),
    [
        ("multiply", {}, "no operation is called multiply"),
        ("predict", {"logits": 0}, "no operation is called predict"),
        ("add", {**ADD, "a": 2}, "add: a: no buffer has the id 2"),
        ("add", {**ADD, "out": -1}, "add: out: no buffer has the id -1"),
        ("add", {**ADD, "out": -(2**31)}, "add: out: no buffer has the id"),
        ("add", {**ADD, "b": 1}, "add: buffer empty is read before it is written"),
        ("add", {**ADD, "b": None}, "b: the value has the wrong type or is out of range"),
        ("add", {**ADD, "b": 2**40}, "b: the value has the wrong type or is out of range"),
        ("add", {**ADD, "b": "x"}, "b: the value has the wrong type or is out of range"),
        ("norm", {**NORM, "weight": 0}, "norm: weight: no vector has the id 0"),
        ("norm", {**NORM, "kind": "max"}, "kind: max is no choice"),
        ("norm", {**NORM, "kind": 1}, "kind: no text is no choice"),
        ("norm", {**NORM, "eps": float("nan")}, "norm: eps is not a number that it can be"),
        ("norm", {**NORM, "eps": -1.0}, "norm: eps -1 is negative"),
        ("norm", {**NORM, "group": -4}, "norm: group is not a number that it can be"),
        ("norm", {**NORM, "group": 3}, "norm: groups of 3 in 8 values"),
        ("linear", {"outs": [], "x": 0, "weights": [], "biases": []}, "linear: 0 outputs, 0 weights, 0 biases"),
        ("linear", {"outs": [1], "x": 0, "weights": [9], "biases": []}, "linear: weights: no matrix has the id 9"),
        ("linear", {"outs": [1], "x": 0, "weights": [None], "biases": []}, "weights: the value has the wrong type"),
        ("linear", {"outs": 1, "x": 0, "weights": [0], "biases": []}, "outs: no list"),
        ("linear", {"outs": [1], "x": 0, "weights": [0], "biases": [None, None]}, "1 outputs, 1 weights, 2 biases"),
        ("linear", {"outs": [1], "x": 0, "weights": [0], "biases": []}, "shape 2 x 8, expected 8 x 8"),
        (
            "rope",
            {"x": 0, "head_dim": 0, "inv_freq": 0, "interleaved": False, "attention_factor": 1.0},
            "rope: 4 frequencies, heads of 0 in 8 values",
        ),
        (
            "rope",
            {"x": 0, "head_dim": 8, "inv_freq": 3, "interleaved": False, "attention_factor": 1.0},
            "rope: inv_freq: no constant has the id 3",
        ),
    ],
)
def test_what_cannot_be_is_refused(operation: str, fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        builder().append(operation, fields)


def test_a_constant_is_finite() -> None:
    with pytest.raises(ValueError, match="not all values are finite"):
        _native.Builder().constant(np.array([1.0, np.inf]))
