"""The program's checks and its text."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models

from kamado import program as p
from kamado.files import open_checkpoint
from kamado.files.types import Layout, TensorRef
from kamado.models import build_program


def tensor(name: str, *shape: int) -> TensorRef:
    return TensorRef(name, Path("x"), 0, 4 * int(np.prod(shape)), shape, Layout.F32)


X, H, Q, K, V, A = (p.Buffer(name, 8) for name in "xhqkva")
TABLE = tensor("embed", 11, 8)
W = tensor("layers.0.w", 8, 8)
OPS: list[p.Op] = [
    p.Embed(X, TABLE),
    p.Norm(H, X, tensor("layers.0.norm", 8)),
    p.Linear((Q, K, V), H, (W, W, W)),
    p.Rope(Q, 4, np.array([1.0, 0.1])),
    p.Attend(A, Q, K, V, 0, 2, 2, 4, 4, 0.5),
    p.Add(X, X, A),
    p.Head(X, TABLE),
]


def program(ops: list[p.Op]) -> p.Program:
    return p.Program("test", ops, 1, 8, 11, 64)


def changed(index: int, **fields: Any) -> list[p.Op]:
    return [dataclasses.replace(op, **fields) if i == index else op for i, op in enumerate(OPS)]


def test_a_sound_program_passes() -> None:
    p.validate(program(OPS))


@pytest.mark.parametrize(
    ("ops", "words"),
    [
        (OPS[1:], "begins with Embed"),
        (OPS[:-1], "ends with Head"),
        ([*OPS, OPS[-1]], "operation 6 .head.: is not the last"),
        ([*OPS[:2], *OPS[3:]], "buffer 'q' is read before it is written"),
        (changed(1, x=p.Buffer("x", 9)), "buffer 'x' has width 9, before 8"),
        (changed(2, outs=(Q, K, H)), "both input and output"),
        (changed(2, weights=(W, W)), "3 outputs, 2 weights"),
        (changed(2, weights=(W, W, tensor("bad", 8, 9))), "tensor 'bad' has shape"),
        (changed(2, biases=(None, None, tensor("bias", 7))), "tensor 'bias' has shape"),
        (changed(1, weight=tensor("norm", 4)), "tensor 'norm' has shape"),
        (changed(1, group=3), "groups of 3"),
        (changed(3, head_dim=3), "heads of 3"),
        (changed(3, inv_freq=np.array([np.nan, 1.0])), "not finite"),
        (changed(4, state=1), "state 1 of a program with 1"),
        (changed(4, num_kv_heads=1), "expected"),
        (changed(4, out=Q), "writes over an input"),
        (changed(4, window=0), "window 0"),
        (changed(6, weight=W), "has shape"),
        (
            [
                *OPS[:-1],
                p.Experts(H, X, p.Buffer("router", 2), (W, W), (W, W), (W, W)),
                OPS[-1],
            ],
            "'router' is read before",
        ),
        ([*OPS[:-1], p.Experts(H, X, A, (W, W), (W, W), (W, W)), OPS[-1]], "2 experts without a route"),
        ([*OPS[:-1], p.Route(A, 8, 9), OPS[-1]], "top 9 of 8"),
    ],
)
def test_faults_are_named(ops: list[p.Op], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        p.validate(program(ops))


@pytest.mark.parametrize("family", sorted(tiny_models.CONFIGS))
def test_the_text_folds_equal_layers_and_shows_everything_on_demand(family: str, tmp_path: Path) -> None:
    built = build_program(open_checkpoint(tiny_models.write(tmp_path, family)))
    folded, whole = p.format_program(built), p.format_program(built, fold=False)
    assert len(whole.splitlines()) >= len(folded.splitlines())
    for ref in {ref.name for op in built.ops if not isinstance(op, p.Experts) for ref in p.tensors(op)}:
        assert f"{ref} (" in whole
    assert all(len(line) < 600 for line in whole.splitlines())  # six matrices share the input of a delta rule
    assert f"{tiny_models.FAMILIES[family].heading}\n" in folded


def test_the_text_of_a_llama(tmp_path: Path) -> None:
    built = build_program(open_checkpoint(tiny_models.write(tmp_path, "mistral")))
    assert (
        p.format_program(built).splitlines()
        == (Path(__file__).parent / "golden" / "mistral.txt").read_text(encoding="utf-8").splitlines()
    )
