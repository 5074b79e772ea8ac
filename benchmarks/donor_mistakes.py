"""Programs of donor_files.py's and donor_gemma.py's shapes with a mistake in one layer, which donors.py must see."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from donor_files import Made
from donor_gemma import GLOBAL_EVERY
from kamado import program as p
from kamado.models.rope import base_frequencies


def mistakes(program: p.Program, made: Made, options: argparse.Namespace) -> Iterator[tuple[str, p.Program]]:
    """(what is wrong, the program with that mistake in one layer, in the middle of those with experts)"""
    if program.architecture == "gemma4":
        yield from _gemma_mistakes(program)
        return
    layers = sorted(made.picked)
    own = [layer for layer in layers if layer in made.own]
    layer = own[len(own) // 2]
    at = [i for i, op in enumerate(program.ops) if isinstance(op, p.Experts)][layers.index(layer)]
    yield from _router_mistakes(program, at, made.picked[layer], options.pairs)
    yield from _gate_mistakes(program, at)
    yield from _rope_mistakes(program, at)


def _changed(program: p.Program, index: int, change: Callable[[Any], Any]) -> p.Program:
    ops = list(program.ops)
    ops[index] = change(ops[index])
    return replace(program, ops=ops)


def _last(program: p.Program, before: int, kind: type[p.Op]) -> int:
    return max(i for i, op in enumerate(program.ops[:before]) if isinstance(op, kind))


def _router_mistakes(program: p.Program, at: int, picked: list[int], pairs: int) -> Iterator[tuple[str, p.Program]]:
    """Of the router and of the experts' order; the experts are the operation `at`."""
    index = _last(program, at, p.Route)
    route = program.ops[index]
    assert isinstance(route, p.Route)

    def exchanged(one: int, other: int) -> p.Program:
        order = list(range(len(program.ops[at].gate)))
        order[one], order[other] = other, one
        return _changed(
            program, at,
            lambda op: replace(op, **{part: [getattr(op, part)[e] for e in order] for part in ("gate", "up", "down")}),
        )  # fmt: skip

    def routed(**changes: Any) -> p.Program:
        return _changed(program, index, lambda op: replace(op, **changes))

    unpicked = next(e for e in range(len(program.ops[at].gate)) if e not in picked)
    yield "a picked and an unpicked expert exchanged", exchanged(picked[0], unpicked)
    if route.score == "sigmoid":
        yield "choice bias dropped", routed(bias=None)
        yield "picked ½ and picked 1 exchanged", exchanged(picked[2 * pairs], picked[2 * pairs + 1])
        yield "picked σ(l) and picked ½ exchanged", exchanged(picked[0], picked[2 * pairs])
        if pairs > 1:
            yield "picked σ(l) and picked σ(m) exchanged", exchanged(picked[0], picked[2])
        yield "softmax router", routed(score="softmax")
        yield "weights not divided by their sum", routed(normalize=False)
    else:
        if program.ops[index - 1].biases:
            yield "router's bias dropped", _changed(program, index - 1, lambda op: replace(op, biases=()))
        yield "two picked experts exchanged", exchanged(picked[0], picked[3])
        yield "one expert less", routed(top_k=route.top_k - 1)
    if route.scale != 1:
        yield "router's factor dropped", routed(scale=1.0)
    if getattr(program.ops[at], "alpha", None):
        yield "experts' gate is a silu", _changed(program, at, lambda op: replace(op, alpha=None))
        yield "experts' biases dropped", _changed(program, at, lambda op: replace(op, up_biases=()))
    else:
        yield "experts' gate not activated", _changed(program, at, lambda op: replace(op, activation="none"))


def _gate_mistakes(program: p.Program, at: int) -> Iterator[tuple[str, p.Program]]:
    """Of the gates of attention before, and of the shared expert after, the experts at `at`."""
    attend = _last(program, at, p.Attend)
    if isinstance(program.ops[attend + 1], p.Linear) and program.ops[attend + 1].biases:
        yield "bias of attention's output dropped", _changed(program, attend + 1, lambda op: replace(op, biases=()))
    if isinstance(program.ops[attend + 1], p.Gate):
        yield "attention's gate left out", _changed(program, attend + 1, _ungated)
    end = next(i for i, op in enumerate(program.ops) if i > at and isinstance(op, p.Add) and op.a == program.ops[0].out)
    gates = [i for i in range(at + 1, end) if isinstance(program.ops[i], p.Gate)]
    if gates:
        yield (
            "shared expert's gate left out",
            _changed(program, gates[0], lambda op: replace(op, a=op.b, b=None, activation="none")),
        )
        yield "shared expert left out", _changed(program, end - 1, lambda op: p.Scale(op.out, op.a, 1.0))
    if len(gates) > 1:
        yield "gate of the whole shared expert left out", _changed(program, gates[1], _ungated)


def _ungated(gate: p.Gate) -> p.Gate:
    """What it multiplies, as it is."""
    assert gate.b is not None
    return replace(gate, a=gate.b, b=None, activation="none", group=None)


def _rope_mistakes(program: p.Program, at: int) -> Iterator[tuple[str, p.Program]]:
    """Of the rotation before the experts at `at`."""
    of_k = _last(program, _last(program, at, p.Attend), p.Rope)
    of_q = _last(program, of_k, p.Rope)
    for rows, index in (("k", of_k), ("q", of_q)):
        yield f"rope pairs of {rows}", _changed(program, index, lambda op: replace(op, interleaved=True))
    rope = program.ops[of_k]
    assert isinstance(rope, p.Rope)
    is_whole = 2 * len(rope.inv_freq) == rope.head_dim
    steps = np.arange(rope.head_dim // (4 if is_whole else 2)) * (2 if is_whole else 0.5)
    other = p.Rope(rope.x, rope.head_dim, rope.inv_freq[1] ** steps)
    yield f"rope of {'half' if is_whole else 'the whole'} head", _changed(program, of_k, lambda _: other)


def _gemma_mistakes(program: p.Program) -> Iterator[tuple[str, p.Program]]:
    """Of Gemma 4's E shape: in a global layer, what global ones have; else in a local one."""
    attends = [i for i, op in enumerate(program.ops) if isinstance(op, p.Attend)]
    full, local = attends[2 * GLOBAL_EVERY - 1], attends[GLOBAL_EVERY]

    def changed(index: int, change: Callable[[Any], Any]) -> p.Program:
        return _changed(program, index, change)

    def after(index: int, kind: type[p.Op], number: int = 0) -> int:
        return [i for i, op in enumerate(program.ops) if i > index and isinstance(op, kind)][number]

    def left_out(op: Any) -> p.Op:
        return p.Scale(op.out, op.x, 1.0)

    own = after(after(full, p.Gate), p.Gate)  # of the layer's own embedding
    scale = after(local, p.Rescale)  # of ½: the global layers' is 1
    rope_k = _last(program, full, p.Rope)
    norms = [i for i, op in enumerate(program.ops) if isinstance(op, p.Norm) and full - 8 < i < full]
    v_norm, q_norm, k_norm = norms[-3:]
    yield "attention scaled by the head's width", changed(full, lambda op: replace(op, scale=op.head_dim**-0.5))
    yield "v not normed", changed(v_norm, left_out)
    yield "q not normed", changed(q_norm, left_out)
    yield "k not normed", changed(k_norm, left_out)
    wide = program.ops[rope_k]
    assert isinstance(wide, p.Rope)
    undivided = base_frequencies(1e6, wide.head_dim)
    yield "divisors of the rotation dropped", changed(rope_k, lambda op: replace(op, inv_freq=undivided))
    yield "rope pairs of k", changed(rope_k, lambda op: replace(op, interleaved=True))
    yield (
        "local rotation by the global base",
        changed(_last(program, local, p.Rope), lambda op: replace(op, inv_freq=base_frequencies(1e6, op.head_dim))),
    )
    yield "window of 64 tokens in a local layer", changed(local, lambda op: replace(op, window=64))
    yield "norm behind attention left out", changed(after(full, p.Norm), left_out)
    yield "norm behind the MLP left out", changed(after(full, p.Norm, 2), left_out)
    yield "MLP's gate is a silu", changed(after(full, p.Gate), lambda op: replace(op, activation="silu"))
    yield (
        "norm behind the own embedding without weights",
        changed(after(own, p.Norm), lambda op: replace(op, weight=None)),
    )
    yield "layer's scale left out", changed(scale, left_out)
