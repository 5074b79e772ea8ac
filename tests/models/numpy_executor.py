"""A program run with NumPy, one operation after another: the oracle of the native executor and of the families.

Nothing is fused, shared out or reordered. float64 by default, so that its own rounding is out of the picture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kamado import program as p
from kamado.files.types import Layout, TensorRef

Array = NDArray[Any]


def read_tensor(ref: TensorRef) -> Array:
    """The values as float32. Quantised layouts go through the gguf package's reference."""
    if ref.by_column or (len(ref.shape) == 1 and ref.blocks):
        return _read_columns(ref)
    if ref.scales is not None:
        return _read_pairs(ref)
    if ref.blocks is None:
        raw = np.fromfile(ref.file, dtype=np.uint8, count=ref.nbytes, offset=ref.offset)
    else:
        length, stride = (rows * ref.nbytes // ref.rows for rows in ref.blocks)
        begins = range(ref.offset, ref.offset + stride * (ref.nbytes // length), stride)
        raw = np.concatenate([np.fromfile(ref.file, np.uint8, length, offset=begin) for begin in begins])
    match ref.layout:
        case Layout.F32:
            values = raw.view("<f4")
        case Layout.F16:
            values = raw.view("<f2").astype(np.float32)
        case Layout.BF16:
            values = (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
        case _:
            import gguf

            rows = raw.reshape(-1, ref.layout.nbytes(ref.cols))
            values = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType(int(ref.layout)))
    return values.reshape(ref.shape)


def _read_columns(ref: TensorRef) -> Array:
    """A matrix that lies as its transpose does, or a vector: of all that lies there every so many are its own."""
    step = ref.blocks[1] if ref.blocks else 1
    width, lines = ref.shape[0] * step, ref.shape[1] if len(ref.shape) == 2 else 1
    count = width * lines - step + 1  # nothing may lie behind the last value
    there = replace(ref, blocks=None, by_column=False, nbytes=count * ref.layout.block_bytes, shape=(count,))
    values = np.pad(read_tensor(there), (0, step - 1)).reshape(lines, width)[:, ::step]
    return np.ascontiguousarray(values.T if len(ref.shape) == 2 else values[0])


_FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def _read_pairs(ref: TensorRef) -> Array:
    """MXFP4 as OCP and transformers have it: two codes a byte, the lower one first; a scale is 2^(e - 127)."""
    assert ref.scales is not None
    rows, blocks = ref.rows, ref.cols // 32
    step = ref.blocks[1] if ref.blocks else 1

    def raw(file: Path, offset: int, width: int) -> Array:
        begins = (offset + row * step * width for row in range(rows))
        return np.stack([np.fromfile(file, np.uint8, width, offset=begin) for begin in begins])

    codes, scales = raw(ref.file, ref.offset, blocks * 16), raw(*ref.scales, blocks)
    pairs = np.stack([codes & 15, codes >> 4], axis=-1).reshape(rows, blocks, 32)
    return (_FP4[pairs] * np.exp2(scales.astype(np.float32) - 127)[..., None]).reshape(rows, ref.cols)


@dataclass
class Sequence:
    """Keys, values and records of one sequence, by state."""

    keys: dict[int, Array] = field(default_factory=dict)
    values: dict[int, Array] = field(default_factory=dict)
    records: dict[int, Array] = field(default_factory=dict)
    length: int = 0


class NumpyExecutor:
    """Runs `program` on one sequence at a time."""

    def __init__(self, program: p.Program, dtype: type[np.floating[Any]] = np.float64) -> None:
        self.program = program
        self.dtype = dtype
        self._tensors: dict[str, Array] = {}

    def _get(self, ref: TensorRef) -> Array:
        if ref.name not in self._tensors:
            self._tensors[ref.name] = read_tensor(ref).astype(self.dtype)
        return self._tensors[ref.name]

    def forward(self, tokens: Any, sequence: Sequence | None = None) -> Array:
        """Logits [tokens, vocab] of `tokens` appended to `sequence`, a new one when None; of an encoder its rows."""
        ids = np.asarray(tokens, dtype=np.int64)
        sequence = sequence or Sequence()
        positions = sequence.length + np.arange(len(ids))
        buffers: dict[str, Array] = {}
        routes: dict[str, tuple[Array, Array]] = {}
        logits: Array | None = None
        for op in self.program.ops:
            match op:
                case p.Embed():
                    index = {"token": ids, "position": positions, "first": np.zeros_like(ids)}[op.index]
                    columns = slice(op.piece * op.out.width, (op.piece + 1) * op.out.width)
                    buffers[op.out.name] = self._get(op.table)[index, columns] * self.dtype(op.scale)
                case p.Norm():
                    buffers[op.out.name] = self._norm(op, buffers[op.x.name])
                case p.Linear():
                    x = buffers[op.x.name]
                    biases = op.biases or (None,) * len(op.outs)
                    for out, weight, bias in zip(op.outs, op.weights, biases, strict=True):
                        y = x @ self._get(weight).T
                        buffers[out.name] = y if bias is None else y + self._get(bias)
                case p.Rope():
                    buffers[op.x.name] = self._rope(op, buffers[op.x.name], positions)
                case p.Attend():
                    buffers[op.out.name] = self._attend(op, buffers, positions, sequence)
                case p.Accumulate():
                    buffers[op.out.name] = self._accumulate(op, buffers[op.x.name], sequence)
                case p.Conv():
                    buffers[op.out.name] = self._conv(op, buffers[op.x.name], sequence)
                case p.DeltaScan():
                    buffers[op.out.name] = self._delta_scan(op, buffers, sequence)
                case p.Gate():
                    b = None if op.b is None else buffers[op.b.name]
                    a = np.repeat(buffers[op.a.name], op.group or 1, axis=-1)
                    buffers[op.out.name] = _gate(op.activation, a, b, op.limit, op.alpha)
                case p.Route():
                    routes[op.logits.name] = self._route(op, buffers[op.logits.name])
                case p.Experts():
                    buffers[op.out.name] = self._experts(op, buffers[op.x.name], *routes[op.logits.name])
                case p.Add():
                    buffers[op.out.name] = buffers[op.a.name] + buffers[op.b.name]
                case p.Scale():
                    buffers[op.out.name] = buffers[op.x.name] * self.dtype(op.factor)
                case p.Rescale():
                    buffers[op.out.name] = buffers[op.x.name] * self._get(op.weight)
                case p.Temper():
                    steps = np.floor_divide(positions + op.offset, op.length).astype(np.float64)
                    factors = (1 + op.beta * np.log(1 + steps)).astype(self.dtype)
                    buffers[op.out.name] = buffers[op.x.name] * factors[:, None]
                case p.Softcap():
                    buffers[op.out.name] = op.cap * np.tanh(buffers[op.x.name] / op.cap)
                case p.Head():
                    logits = buffers[op.x.name] @ self._get(op.weight).T * self.dtype(op.scale)
                    if op.bias is not None:
                        logits = logits + self._get(op.bias)
                    if op.softcap is not None:
                        logits = op.softcap * np.tanh(logits / op.softcap)
                case p.Pool():
                    logits = buffers[op.x.name]
        sequence.length += len(ids)
        assert logits is not None
        return logits

    def greedy(self, prompt: list[int], count: int) -> tuple[list[int], float]:
        """`count` tokens by argmax, and the least lead that the first had over the second."""
        sequence, chosen, lead = Sequence(), [], math.inf
        row = self.forward(prompt, sequence)[-1]
        for _ in range(count):
            best, second = np.argsort(row)[::-1][:2]
            lead = min(lead, float(row[best] - row[second]))
            chosen.append(int(best))
            row = self.forward([int(best)], sequence)[-1]
        return chosen, lead

    def _norm(self, op: p.Norm, x: Array) -> Array:
        grouped = x.reshape(len(x), -1, op.group or x.shape[1])
        if op.kind == "layer":
            grouped = grouped - grouped.mean(-1, keepdims=True)
        squares = (grouped**2).sum if op.kind == "l2" else (grouped**2).mean
        y = grouped / np.sqrt(squares(-1, keepdims=True) + self.dtype(op.eps))
        if op.weight is not None:
            weight = read_tensor(op.weight).astype(np.float32) + np.float32(op.weight_offset)
            y = y * weight.astype(self.dtype)
        if op.bias is not None:
            y = y + self._get(op.bias)
        return y.reshape(x.shape)

    def _rope(self, op: p.Rope, x: Array, positions: Array) -> Array:
        half = op.inv_freq.size
        angles = positions[:, None, None].astype(np.float64) * op.inv_freq
        cos = (np.cos(angles) * op.attention_factor).astype(self.dtype)
        sin = (np.sin(angles) * op.attention_factor).astype(self.dtype)
        heads = x.reshape(len(x), -1, op.head_dim).copy()
        first = np.s_[..., 0 : 2 * half : 2] if op.interleaved else np.s_[..., :half]
        second = np.s_[..., 1 : 2 * half : 2] if op.interleaved else np.s_[..., half : 2 * half]
        a, b = heads[first].copy(), heads[second].copy()
        heads[first], heads[second] = a * cos - b * sin, b * cos + a * sin
        return heads.reshape(x.shape)

    def _accumulate(self, op: p.Accumulate, x: Array, sequence: Sequence) -> Array:
        total = sequence.records.get(op.state, np.zeros(x.shape[1], self.dtype))
        rows = []
        for row in x:
            total = self.dtype(np.float32(op.decay)) * total + row
            rows.append(total)
        sequence.records[op.state] = total
        return np.stack(rows)

    def _conv(self, op: p.Conv, x: Array, sequence: Sequence) -> Array:
        weight = self._get(op.weight)
        num_before = weight.shape[1] - 1
        before = sequence.records.get(op.state, np.zeros((num_before, x.shape[1]), self.dtype))
        rows = np.concatenate([before, x])
        sequence.records[op.state] = rows[-num_before:]
        y = sum(weight[:, j] * rows[j : j + len(x)] for j in range(num_before + 1))
        return _activate(op.activation, y if op.bias is None else y + self._get(op.bias))

    def _delta_scan(self, op: p.DeltaScan, buffers: dict[str, Array], sequence: Sequence) -> Array:
        n, heads = len(buffers[op.v.name]), op.num_v_heads
        of_head = np.arange(heads)
        of_head = of_head % op.num_k_heads if op.heads == "tiled" else of_head // (heads // op.num_k_heads)
        q, k = (buffers[it.name].reshape(n, op.num_k_heads, op.k_dim)[:, of_head] for it in (op.q, op.k))
        v = buffers[op.v.name].reshape(n, heads, op.v_dim)
        beta = op.beta_scale / (1.0 + np.exp(-buffers[op.b.name]))
        steps = np.logaddexp(buffers[op.a.name] + self._get(op.dt_bias), 0).reshape(n, heads, -1)
        decay = self._get(op.decay)[:, None]
        kept = np.exp((-np.exp(decay) if op.decay_is_log else decay) * steps)  # a head or one of its rows of S
        s = sequence.records.get(op.state, np.zeros((heads, op.k_dim, op.v_dim), self.dtype))
        rows = []
        for t in range(n):
            s = s * kept[t, :, :, None]
            s = s + np.einsum("hk,hv->hkv", k[t], beta[t, :, None] * (v[t] - self._replaced(s, k[t])))
            rows.append(np.einsum("hkv,hk->hv", s, q[t]) * op.scale)
        sequence.records[op.state] = s
        return np.stack(rows).reshape(n, -1)

    def _replaced(self, state: Array, key: Array) -> Array:
        """What is read under a key before a value is written there."""
        replaced: Array = np.einsum("hkv,hk->hv", state, key)
        return replaced

    def set_source(self, sequence: Sequence, state: int, k: Array, v: Array) -> None:
        """Keys and values of a Source, [rows, heads · dimensions]."""
        kept = self.program.states[state]
        assert isinstance(kept, p.Source)
        sequence.keys[state] = k.reshape(len(k), kept.num_kv_heads, kept.head_dim).astype(self.dtype)
        sequence.values[state] = v.reshape(len(v), kept.num_kv_heads, kept.v_dim).astype(self.dtype)

    def _attend(self, op: p.Attend, buffers: dict[str, Array], positions: Array, sequence: Sequence) -> Array:
        n = len(positions)
        if op.k is not None and op.v is not None:
            k = buffers[op.k.name].reshape(n, op.num_kv_heads, op.head_dim)
            v = buffers[op.v.name].reshape(n, op.num_kv_heads, op.v_dim)
            if op.state in sequence.keys:
                k = np.concatenate([sequence.keys[op.state], k])
                v = np.concatenate([sequence.values[op.state], v])
            sequence.keys[op.state], sequence.values[op.state] = k, v
        k, v = sequence.keys[op.state], sequence.values[op.state]
        group = op.num_heads // op.num_kv_heads
        q = buffers[op.q.name].reshape(n, op.num_kv_heads, group, op.head_dim)
        scores = np.einsum("nkgd,mkd->nkgm", q, k) * self.dtype(op.scale)
        if op.softcap is not None:
            scores = op.softcap * np.tanh(scores / op.softcap)
        where = np.arange(len(k))
        seen = np.ones((n, len(k)), dtype=bool)
        if op.causal and not isinstance(self.program.states[op.state], p.Source):
            seen &= where <= positions[:, None]
        if op.window is not None:
            seen &= where > positions[:, None] - op.window
        scores = np.where(seen[:, None, None, :], scores, -np.inf)
        if op.sinks is not None:  # a key of that score, whose value is nothing
            sinks = self._get(op.sinks).reshape(1, op.num_kv_heads, group, 1)
            scores = np.concatenate([scores, np.broadcast_to(sinks, (*scores.shape[:-1], 1))], axis=-1)
            v = np.concatenate([v, self._sink_value(v)])
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        return np.einsum("nkgm,mkd->nkgd", weights, v).reshape(n, -1)

    def _sink_value(self, v: Array) -> Array:
        """That of the key that a sink is: it carries none."""
        return np.zeros_like(v[:1])

    def _route(self, op: p.Route, logits: Array) -> tuple[Array, Array]:
        if op.score == "softmax":
            scores = _softmax(logits)
        elif op.score == "sigmoid":
            scores = 1.0 / (1.0 + np.exp(-logits))
        else:
            scores = logits
        choice = scores if op.bias is None else scores + self._get(op.bias)
        if op.num_groups > 1:
            grouped = choice.reshape(len(choice), op.num_groups, -1)
            rank = np.sort(grouped, axis=-1)[..., -2:].sum(-1)
            best = np.argsort(-rank, axis=-1, kind="stable")[:, : op.top_groups]
            allowed = np.zeros(rank.shape, dtype=bool)
            np.put_along_axis(allowed, best, values=True, axis=-1)
            choice = np.where(allowed[..., None], grouped, -np.inf).reshape(choice.shape)
        picked = np.sort(np.argsort(-choice, axis=-1, kind="stable")[:, : op.top_k], axis=-1)
        weights = np.take_along_axis(scores, picked, axis=-1)
        if op.score == "topk_softmax":
            weights = _softmax(weights)
        elif op.normalize:
            sums = np.maximum(weights.sum(-1, keepdims=True) + op.norm_eps, op.norm_min)
            weights = np.divide(weights, sums, out=np.zeros_like(weights), where=sums > 0)
        weights = weights * self.dtype(op.scale)
        return picked, weights if op.expert_scale is None else weights * self._get(op.expert_scale)[picked]

    def _experts(self, op: p.Experts, x: Array, picked: Array, weights: Array) -> Array:
        out = np.zeros_like(x)
        for e in range(len(op.gate)):
            rows, slots = np.nonzero(picked == e)
            if rows.size:
                gate = self._product(x[rows], op.gate[e], op.gate_biases, e)
                up = self._product(x[rows], op.up[e], op.up_biases, e)
                inner = _gate(op.activation, gate, up, op.limit, op.alpha)
                out[rows] += weights[rows, slots, None] * self._product(inner, op.down[e], op.down_biases, e)
        return out

    def _product(self, x: Array, weight: TensorRef, biases: tuple[TensorRef, ...], e: int) -> Array:
        y = x @ self._get(weight).T
        return y + self._get(biases[e]) if biases else y


def _softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _gate(activation: str, a: Array, b: Array | None, limit: float | None, alpha: float | None) -> Array:
    if alpha is not None:
        assert b is not None
        top = np.inf if limit is None else limit
        g, u = np.minimum(a, top), np.clip(b, -top, top)
        return g / (1.0 + np.exp(-alpha * g)) * (u + 1.0)
    y = _activate(activation, a)
    if limit is not None:
        y, b = np.minimum(y, limit), None if b is None else np.clip(b, -limit, limit)
    return y if b is None else y * b


def _activate(kind: str, x: Array) -> Array:
    match kind:
        case "silu":
            return x / (1.0 + np.exp(-x))
        case "gelu_tanh":
            return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))
        case "gelu_erf":
            return 0.5 * x * (1.0 + np.vectorize(math.erf, otypes=[x.dtype])(x / math.sqrt(2.0)))
        case "relu":
            return np.maximum(x, 0)
        case "relu2":
            return np.maximum(x, 0) ** 2
        case "sigmoid":
            return 1.0 / (1.0 + np.exp(-x))
        case "none":
            return x
    raise ValueError(kind)
