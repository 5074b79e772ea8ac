"""What goes wrong in readers of model files without a crash: each makes another program of a right one.

Most were met by other engines; a family whose test of logits would not notice one of them is not tested.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy_executor import NumpyExecutor

from kamado import program as p

Change = Callable[[Any], Any]  # an operation as it is built by mistake, or the same one where there is none


def _rope_width(op: p.Rope, share: float) -> p.Rope:
    """With another share of the head turned, at the frequencies that such a share has."""
    width = int(op.head_dim * share) // 2 * 2
    theta = float(op.inv_freq[1]) ** (-op.inv_freq.size)
    return replace(op, inv_freq=theta ** (-np.arange(0, width, 2) / width))


def _other_map(op: p.DeltaScan) -> p.DeltaScan:
    return replace(op, heads="tiled" if op.heads == "grouped" else "grouped")


def _is_mapped(op: p.DeltaScan) -> bool:
    return 1 < op.num_k_heads < op.num_v_heads


def _is_in_halves(op: p.Linear) -> bool:
    return len(op.weights) > 1 and op.weights[0].blocks is not None and op.weights[0].shape == op.weights[1].shape


_OTHER_ACTIVATION = {
    "silu": "gelu_erf", "gelu_erf": "silu", "gelu_tanh": "silu", "relu": "silu", "relu2": "relu", "sigmoid": "silu",
    "none": "silu",
}  # fmt: skip

# (name, kind of operation, whether it is in danger, what becomes of it)
CHANGES: tuple[tuple[str, type[Any], Callable[[Any], Any], Change], ...] = (
    ("rope pairs", p.Rope, lambda _: True, lambda op: replace(op, interleaved=not op.interleaved)),
    ("rope of the whole head", p.Rope, lambda op: 2 * op.inv_freq.size < op.head_dim, lambda op: _rope_width(op, 1.0)),
    ("rope of half the head", p.Rope, lambda op: 2 * op.inv_freq.size == op.head_dim, lambda op: _rope_width(op, 0.5)),
    ("rope factor", p.Rope, lambda op: op.attention_factor != 1, lambda op: replace(op, attention_factor=1.0)),
    ("window one off", p.Attend, lambda op: bool(op.window), lambda op: replace(op, window=op.window - 1)),
    ("no window", p.Attend, lambda op: bool(op.window), lambda op: replace(op, window=None)),
    ("attention scale", p.Attend, lambda _: True, lambda op: replace(op, scale=op.scale * 1.25)),
    ("choice without its bias", p.Route, lambda op: op.bias is not None, lambda op: replace(op, bias=None)),
    ("softmax router", p.Route, lambda op: op.score == "sigmoid", lambda op: replace(op, score="softmax")),
    ("sigmoid router", p.Route, lambda op: op.score != "sigmoid", lambda op: replace(op, score="sigmoid")),
    (
        "weights over their sum", p.Route, lambda op: op.score != "topk_softmax",
        lambda op: replace(op, normalize=not op.normalize),
    ),
    ("no groups", p.Route, lambda op: op.num_groups > 1, lambda op: replace(op, num_groups=1, top_groups=1)),
    ("router's factor", p.Route, lambda op: op.scale != 1, lambda op: replace(op, scale=1.0)),
    ("one expert fewer", p.Route, lambda op: op.top_k > 1, lambda op: replace(op, top_k=op.top_k - 1)),
    ("gate and up exchanged", p.Experts, lambda _: True, lambda op: replace(op, gate=op.up, up=op.gate)),
    (
        "two experts exchanged", p.Experts, lambda op: len(op.gate) > 1,
        lambda op: replace(op, down=(op.down[1], op.down[0], *op.down[2:])),
    ),
    ("norms' weights less 1", p.Norm, lambda op: op.weight_offset != 0, lambda op: replace(op, weight_offset=0.0)),
    ("norms' weights more 1", p.Norm, lambda op: op.weight_offset == 0, lambda op: replace(op, weight_offset=1.0)),
    ("activation", p.Gate, lambda _: True, lambda op: replace(op, activation=_OTHER_ACTIVATION[op.activation])),
    ("a gate without its limit", p.Gate, lambda op: op.limit is not None, lambda op: replace(op, limit=None)),
    ("experts without their limit", p.Experts, lambda op: op.limit is not None, lambda op: replace(op, limit=None)),
    ("no scales of experts", p.Route, lambda op: op.expert_scale, lambda op: replace(op, expert_scale=None)),
    ("pairs that stand still turn", p.Rope, lambda op: op.inv_freq[-1] == 0, lambda op: _rope_width(op, 1.0)),
    (
        "another piece of a row", p.Embed, lambda op: op.pieces > 1,
        lambda op: replace(op, piece=op.pieces - 1 - op.piece),
    ),
    ("a plain gate of experts", p.Experts, lambda op: op.alpha is not None, lambda op: replace(op, alpha=None)),
    ("another alpha", p.Experts, lambda op: op.alpha is not None, lambda op: replace(op, alpha=1.0)),
    (
        "gate and up without biases", p.Experts, lambda op: bool(op.gate_biases),
        lambda op: replace(op, gate_biases=(), up_biases=()),
    ),
    ("down without its bias", p.Experts, lambda op: bool(op.down_biases), lambda op: replace(op, down_biases=())),
    ("products without biases", p.Linear, lambda op: bool(op.biases), lambda op: replace(op, biases=())),
    ("no sinks", p.Attend, lambda op: op.sinks is not None, lambda op: replace(op, sinks=None)),
    (
        "activation of a convolution", p.Conv, lambda op: op.activation != "none",
        lambda op: replace(op, activation="none"),
    ),
    ("other key heads", p.DeltaScan, _is_mapped, _other_map),
    ("keys for queries", p.DeltaScan, lambda _: True, lambda op: replace(op, q=op.k, k=op.q)),
    ("beta for the decay", p.DeltaScan, lambda _: True, lambda op: replace(op, a=op.b, b=op.a)),
    ("scale of the betas", p.DeltaScan, lambda _: True, lambda op: replace(op, beta_scale=0.9)),
    ("betas up to 1", p.DeltaScan, lambda op: op.beta_scale != 1, lambda op: replace(op, beta_scale=1.0)),
    ("logarithm of the decay", p.DeltaScan, lambda op: op.decay_is_log, lambda op: replace(op, decay_is_log=False)),
    (
        "two matrices of one exchanged", p.Linear, _is_in_halves,
        lambda op: replace(op, weights=(op.weights[1], op.weights[0], *op.weights[2:])),
    ),
    ("embedding's factor", p.Embed, lambda op: op.scale != 1, lambda op: replace(op, scale=1.0)),
    ("factor", p.Scale, lambda _: True, lambda op: replace(op, factor=1.0)),
    ("logits' factor", p.Head, lambda op: op.scale != 1, lambda op: replace(op, scale=1.0)),
    ("logits' cap", p.Head, lambda op: op.softcap is not None, lambda op: replace(op, softcap=None)),
)  # fmt: skip


def _is_branch(op: Any) -> bool:
    """Adds a part of a layer (a shared expert) to another part of it, and not to the stream."""
    return isinstance(op, p.Add) and op.out.name != "x"


def broken(program: p.Program) -> Iterator[tuple[str, p.Program]]:
    """(what is wrong, the program with that mistake in all layers) for all mistakes that it can have."""
    for name, kind, is_in_danger, change in CHANGES:
        if name == "weights over their sum" and _are_experts_normed(program):
            continue
        ops = [change(op) if isinstance(op, kind) and is_in_danger(op) else op for op in program.ops]
        if any(a is not b for a, b in zip(ops, program.ops, strict=True)):
            yield name, replace(program, ops=ops)
    for name, is_left_out in (
        ("an addition left out", _is_branch),
        ("no positions", lambda op: isinstance(op, p.Rope)),
        ("queries not tempered", lambda op: isinstance(op, p.Temper)),
        ("q and k not normed", lambda op: isinstance(op, p.Norm) and op.out.name in ("q", "k")),
        ("q and k of the delta rule not normed", lambda op: isinstance(op, p.Norm) and op.kind == "l2"),
        ("a gate left out", lambda op: isinstance(op, p.Gate) and op.out.name.startswith("attn")),
        ("values not normed", lambda op: isinstance(op, p.Norm) and op.out.name == op.x.name == "v"),
        ("the stream not scaled", lambda op: isinstance(op, p.Rescale)),
        ("a gate of the delta rule left out", lambda op: isinstance(op, p.Gate) and op.out.name == "delta"),
        ("a gate before a convolution left out", lambda op: isinstance(op, p.Gate) and op.out.name == "conv_b"),
        ("a gate behind a convolution left out", lambda op: isinstance(op, p.Gate) and op.out.name == "conv_c"),
        ("a shared expert's gate left out", lambda op: isinstance(op, p.Gate) and op.group == op.out.width),
        ("what is added not normed", lambda op: isinstance(op, p.Norm) and op.x.name == op.out.name == "h"),
    ):
        ops = [op for op in program.ops if not is_left_out(op)]
        if len(ops) < len(program.ops):
            yield name, replace(program, ops=ops)
    head_dim = next((op.head_dim for op in program.ops if isinstance(op, p.Attend)), 0)
    ops = [_normed_by_heads(op, head_dim) if _norms_a_row(op) else op for op in program.ops]
    if any(_norms_a_row(op) for op in program.ops):
        yield "q and k normed head by head", replace(program, ops=ops)
    if turned := list(_turned_everywhere(program)):
        yield "positions where there are none", replace(program, ops=turned)
    ropes = [op for op in program.ops if isinstance(op, p.Rope)]
    if any(not np.array_equal(op.inv_freq, ropes[0].inv_freq) for op in ropes):
        rotations = iter([replace(ropes[0], x=op.x) for op in ropes])
        yield (
            "one rotation in all layers",
            replace(program, ops=[next(rotations) if isinstance(op, p.Rope) else op for op in program.ops]),
        )
    if any(op.window for op in program.ops if isinstance(op, p.Attend)):
        window = max(op.window or 0 for op in program.ops if isinstance(op, p.Attend))
        ops = [replace(op, window=window) if isinstance(op, p.Attend) else op for op in program.ops]
        if ops != list(program.ops):
            yield "a window in all layers", replace(program, ops=ops)
    yield from _exchanged(program)
    yield from _others_keys(program)
    ops = list(program.ops)
    for i, (one, other) in enumerate(itertools.pairwise(program.ops)):
        if {type(one), type(other)} == {p.Norm, p.Rope} and _target(one) == _target(other):
            ops[i], ops[i + 1] = other, one
    if ops != list(program.ops):
        yield "norm on the other side of the rotation", replace(program, ops=ops)
    ops = list(program.ops)
    for i, (one, other) in enumerate(itertools.pairwise(program.ops)):
        if isinstance(one, p.Norm) and isinstance(other, p.Gate) and one.out == other.out == other.b:
            ops[i], ops[i + 1] = other, one
    if ops != list(program.ops):
        yield "gate before the norm", replace(program, ops=ops)


class _Reversed(NumpyExecutor):
    """Takes the taps of a convolution in the other order."""

    def _conv(self, op: p.Conv, x: Any, sequence: Any) -> Any:
        taps = self._get(op.weight)
        self._tensors[op.weight.name] = taps[:, ::-1]
        rows = super()._conv(op, x, sequence)
        self._tensors[op.weight.name] = taps
        return rows


class _Forgetful(NumpyExecutor):
    """A convolution that does not see the rows of the call before."""

    def _conv(self, op: p.Conv, x: Any, sequence: Any) -> Any:
        sequence.records.pop(op.state, None)
        return super()._conv(op, x, sequence)


class _Additive(NumpyExecutor):
    """Adds to what is there, and takes nothing out of it first."""

    def _replaced(self, state: Any, key: Any) -> Any:
        return np.zeros_like(super()._replaced(state, key))


def misread(program: p.Program) -> Iterator[tuple[str, type[NumpyExecutor]]]:
    """(what is wrong, executors that do it so) for mistakes that no program can say."""
    if any(isinstance(op, p.Conv) for op in program.ops):
        yield "taps reversed", _Reversed
        yield "rows before a chunk forgotten", _Forgetful
    if any(isinstance(op, p.DeltaScan) for op in program.ops):
        yield "delta rule without its minus", _Additive


def _are_experts_normed(program: p.Program) -> bool:
    """Whether a norm takes every factor away that all weights of a row have in common."""
    pairs = itertools.pairwise(program.ops)
    return any(isinstance(one, p.Experts) and isinstance(other, p.Norm) and other.x == one.out for one, other in pairs)


def _norms_a_row(op: Any) -> bool:
    return isinstance(op, p.Norm) and op.out.name in ("q", "k") and op.group is None


def _normed_by_heads(op: p.Norm, head_dim: int) -> p.Norm:
    """With the weights of the first head for all."""
    weight, size = op.weight, op.weight.nbytes // op.weight.num_values
    return replace(op, group=head_dim, weight=replace(weight, shape=(head_dim,), nbytes=head_dim * size))


def _turned_everywhere(program: p.Program) -> Iterator[Any]:
    """The operations with a rotation in layers that have none; nothing when all layers have one, or none has."""
    rope = next((op for op in program.ops if isinstance(op, p.Rope)), None)
    turned = [op.x.name for op in program.ops if isinstance(op, p.Rope)]
    if rope is None or len(turned) == sum(1 + op.stores for op in program.ops if isinstance(op, p.Attend)):
        return
    is_turned = False
    for op in program.ops:
        if isinstance(op, p.Attend):
            if not is_turned:
                yield from (replace(rope, x=rows) for rows in (op.q, op.k))
            is_turned = False
        is_turned = is_turned or isinstance(op, p.Rope)
        yield op


def _exchanged(program: p.Program) -> Iterator[tuple[str, p.Program]]:
    """With two operations in the other order: a scale on the branch alone, values from keys that are normed already."""
    branch, values = list(program.ops), list(program.ops)
    for i, (one, other) in enumerate(itertools.pairwise(program.ops)):
        if isinstance(one, p.Add) and isinstance(other, p.Rescale):
            branch[i : i + 2] = [replace(other, out=one.b, x=one.b), one]
        if isinstance(one, p.Norm) and one.out.name == "v" != one.x.name:
            after = next(k for k in range(i, len(values)) if isinstance(values[k], p.Attend))
            values[i:after] = [*values[i + 1 : after], one]
    for name, ops in (("the branch alone scaled", branch), ("values of turned keys", values)):
        if ops != list(program.ops):
            yield name, replace(program, ops=ops)


def _others_keys(program: p.Program) -> Iterator[tuple[str, p.Program]]:
    """Layers that attend to the first layer of their kind, not to the last; routers that see what experts see."""
    kinds = {op.state: (op.window, op.head_dim) for op in program.ops if isinstance(op, p.Attend) and op.stores}
    first = {kind: min(state for state, other in kinds.items() if other == kind) for kind in kinds.values()}
    keys = [
        replace(op, state=first[kinds[op.state]]) if isinstance(op, p.Attend) and not op.stores else op
        for op in program.ops
    ]
    seen = [
        replace(op, x=p.Buffer("h", op.x.width)) if isinstance(op, p.Linear) and op.x.name == "routed" else op
        for op in program.ops
    ]
    for name, ops in (("keys of another layer", keys), ("a router that sees what its experts see", seen)):
        if ops != list(program.ops):
            yield name, replace(program, ops=ops)


def _target(op: Any) -> str:
    return str(op.x.name if isinstance(op, p.Rope) else op.out.name)
