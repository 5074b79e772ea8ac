"""A forward pass as a flat list of fused operations over named row buffers: what a model family writes down.

A *buffer* is float32[rows, width], one row a token of the step. An operation reads and writes whole buffers; the
executor decides how rows and columns are shared out, and what is fused. A program knows nothing of the processor.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .checkpoint.types import TensorRef

Pooling = Literal["mean", "first", "last"]
Activation = Literal["silu", "gelu_tanh", "gelu_erf", "relu", "none"]


@dataclass(frozen=True, slots=True)
class Buffer:
    """float32[rows, width]; `rows` is the step's."""

    name: str
    width: int


@dataclass(frozen=True, slots=True)
class Embed:
    """out[r] = table[token[r]] · scale. `table` is (vocabulary, width).

    `index` "position": the row's position in its sequence instead of its token; "first": row 0 of the table for all.
    """

    out: Buffer
    table: TensorRef
    scale: float = 1.0
    index: Literal["token", "position", "first"] = "token"


@dataclass(frozen=True, slots=True)
class Norm:
    """RMS: x / sqrt(mean(x²) + eps) · w.  Layer: (x - mean) / sqrt(var + eps) · w + b.

    Works on `width // group` groups of each row when `group` is set (per-head QK norm: group = head_dim, weight of
    that length). `weight_offset` is added to the weight once at load (Gemma's safetensors store w - 1). out may be x.
    """

    out: Buffer
    x: Buffer
    weight: TensorRef | None
    bias: TensorRef | None = None
    eps: float = 1e-6
    kind: Literal["rms", "layer"] = "rms"
    group: int | None = None
    weight_offset: float = 0.0


@dataclass(frozen=True, slots=True)
class Linear:
    """outs[i] = x · weights[i]ᵀ (+ biases[i]); the weights (rows, cols) share the input, so it is quantised once.

    No output is x; `biases` is empty or has one entry a weight.
    """

    outs: tuple[Buffer, ...]
    x: Buffer
    weights: tuple[TensorRef, ...]
    biases: tuple[TensorRef | None, ...] = ()


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary positions, in place, on each of `x.width // head_dim` heads.

    `inv_freq` float64[rot_dim / 2] has every scaling rule applied already; angles are position · inv_freq in double.
    cos and sin are multiplied by `attention_factor` (YaRN, LongRoPE). `interleaved`: pairs are (2i, 2i+1), as GGUF's
    `llama` weights are permuted for; otherwise (i, i + rot_dim/2). Values past rot_dim pass through.
    """

    x: Buffer
    head_dim: int
    inv_freq: NDArray[np.float64]
    interleaved: bool = False
    attention_factor: float = 1.0


@dataclass(frozen=True, slots=True)
class Attend:
    """Appends k, v to the cache of `layer` and attends: softmax(q·k·scale [soft-capped]) · v, grouped query heads.

    q is heads × head_dim, k kv_heads × head_dim, v kv_heads × v_dim, out heads × v_dim. `window` counts keys,
    the row's own included: key j is seen from position p when p - window < j ≤ p.
    """

    out: Buffer
    q: Buffer
    k: Buffer
    v: Buffer
    layer: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    v_dim: int
    scale: float
    window: int | None = None
    softcap: float | None = None
    causal: bool = True


@dataclass(frozen=True, slots=True)
class Gate:
    """out = activation(a) · b, or activation(a) when b is None (out may be a)."""

    out: Buffer
    a: Buffer
    b: Buffer | None
    activation: Activation


@dataclass(frozen=True, slots=True)
class Route:
    """Picks `top_k` experts a row from router logits (rows × experts); ties go to the lower expert id.

    score = softmax over all, sigmoid, or none (softmax over the picked ones only, `score="topk_softmax"`). `bias` is
    added for the choice only (DeepSeek-style). `num_groups`/`top_groups` restrict the choice to the best groups, a
    group's rank being the sum of its two best (biased) scores. Weights are the unbiased scores of the picked, divided
    by their sum when `normalize`, times `scale`. The result (ids ascending, weights) lives beside the buffer named
    `logits`.
    """

    logits: Buffer
    num_experts: int
    top_k: int
    score: Literal["softmax", "sigmoid", "topk_softmax"] = "softmax"
    normalize: bool = True
    bias: TensorRef | None = None
    num_groups: int = 1
    top_groups: int = 1
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Experts:
    """out = Σ over the row's picked experts, ascending id, of weight · down(activation(gate(x)) · up(x)).

    One tuple entry an expert; gate and up are (expert_width, width), down is (width, expert_width). `logits` names
    the Route whose result is used. out is not x.
    """

    out: Buffer
    x: Buffer
    logits: Buffer
    gate: tuple[TensorRef, ...]
    up: tuple[TensorRef, ...]
    down: tuple[TensorRef, ...]
    activation: Activation = "silu"


@dataclass(frozen=True, slots=True)
class Add:
    """out = a + b (out may be a)."""

    out: Buffer
    a: Buffer
    b: Buffer


@dataclass(frozen=True, slots=True)
class Scale:
    """out = x · factor (out may be x)."""

    out: Buffer
    x: Buffer
    factor: float


@dataclass(frozen=True, slots=True)
class Softcap:
    """out = cap · tanh(x / cap) (out may be x)."""

    out: Buffer
    x: Buffer
    cap: float


@dataclass(frozen=True, slots=True)
class Head:
    """logits = x · weightᵀ · scale (+ bias), soft-capped when `softcap`; only for the rows that the step asks for.

    Must be the last operation; everything after the last Attend is computed only for those rows too.
    """

    x: Buffer
    weight: TensorRef
    bias: TensorRef | None = None
    scale: float = 1.0
    softcap: float | None = None


@dataclass(frozen=True, slots=True)
class Pool:
    """The vector of a sequence: the mean of its rows of x, the first of them ([CLS]) or the last.

    Ends the program of a model that makes vectors, not text, in the place of Head. The executor gives the rows, whose
    mean the engine takes; what follows the last Attend is computed only for the rows that are needed.
    """

    x: Buffer
    kind: Pooling


Op = Embed | Norm | Linear | Rope | Attend | Gate | Route | Experts | Add | Scale | Softcap | Head | Pool


@dataclass(frozen=True, slots=True)
class Program:
    """A model ready to be run: its operations in order and what the caller must know of its shape."""

    architecture: str
    ops: Sequence[Op]
    num_layers: int
    hidden: int
    vocab_size: int
    context_length: int  # what the model was trained for
    num_experts: int = 0
    top_k: int = 0
    pooling: Pooling | None = None  # how the rows of a text become its vector, where the file says so
    notes: tuple[str, ...] = field(default=())
    overridden: tuple[str, ...] = ()  # settings of the file that nobody read and the user allowed

    @property
    def is_encoder(self) -> bool:
        """Whether it makes vectors of texts, and no text."""
        return isinstance(self.ops[-1], Pool)

    @property
    def is_causal(self) -> bool:
        """Whether no row sees later ones; otherwise a text must be computed in one step."""
        return all(op.causal for op in self.ops if isinstance(op, Attend))

    @property
    def output_width(self) -> int:
        """Numbers a row of the result has: logits, or the values of a vector."""
        return self.hidden if self.is_encoder else self.vocab_size


def tensors(op: Op) -> Iterator[TensorRef]:
    """Every tensor that `op` reads, in the order of its fields."""
    match op:
        case Embed():
            yield op.table
        case Norm() | Head():
            yield from (ref for ref in (op.weight, op.bias) if ref is not None)
        case Linear():
            yield from op.weights
            yield from (ref for ref in op.biases if ref is not None)
        case Route():
            yield from () if op.bias is None else (op.bias,)
        case Experts():
            for expert in zip(op.gate, op.up, op.down, strict=True):
                yield from expert


def reads(op: Op) -> tuple[Buffer, ...]:
    """Buffers whose contents `op` needs."""
    match op:
        case Embed():
            return ()
        case Attend():
            return (op.q, op.k, op.v)
        case Gate():
            return (op.a,) if op.b is None else (op.a, op.b)
        case Route():
            return (op.logits,)
        case Experts():
            return (op.x, op.logits)
        case Add():
            return (op.a, op.b)
        case _:
            return (op.x,)


def writes(op: Op) -> tuple[Buffer, ...]:
    """Buffers that `op` fills; Head's logits are no buffer."""
    match op:
        case Linear():
            return op.outs
        case Rope():
            return (op.x,)
        case Route() | Head() | Pool():
            return ()
        case _:
            return (op.out,)


def validate(program: Program) -> None:
    """Raises ValueError, naming the operation, when the program cannot be run: an invariant of the family files.

    Checked: every buffer has one width and is written before it is read; operands and tensors fit each other;
    layers attend in order, once each; Route precedes its Experts; Head or Pool is last and there is exactly one.
    """
    widths: dict[str, int] = {}
    written: set[str] = set()
    routes: dict[str, Route] = {}
    num_attends = 0
    if not program.ops or not isinstance(program.ops[0], Embed):
        raise ValueError("a program begins with Embed")
    for i, op in enumerate(program.ops):

        def fail(problem: str, i: int = i, op: Op = op) -> ValueError:
            return ValueError(f"operation {i} ({type(op).__name__.lower()}): {problem}")

        for buffer in (*reads(op), *writes(op)):
            if buffer.width < 1 or widths.setdefault(buffer.name, buffer.width) != buffer.width:
                raise fail(f"buffer {buffer.name!r} has width {buffer.width}, before {widths[buffer.name]}")
        for buffer in reads(op):
            if buffer.name not in written:
                raise fail(f"buffer {buffer.name!r} is read before it is written")
        problem = _misfit(op, program)
        if isinstance(op, Attend):
            if op.layer != num_attends:
                problem = f"attends as layer {op.layer}, expected {num_attends}"
            num_attends += 1
        elif isinstance(op, Route):
            routes[op.logits.name] = op
        elif isinstance(op, Experts):
            route = routes.get(op.logits.name)
            if route is None or route.num_experts != len(op.gate):
                problem = f"{len(op.gate)} experts without a route over as many"
        elif isinstance(op, Head | Pool) and i != len(program.ops) - 1:
            problem = "is not the last operation"
        if problem:
            raise fail(problem)
        for buffer in writes(op):
            written.add(buffer.name)
            if not isinstance(op, Route):
                routes.pop(buffer.name, None)
    if not isinstance(program.ops[-1], Head | Pool):
        raise ValueError("a program ends with Head or Pool")
    if num_attends != program.num_layers:
        raise ValueError(f"{num_attends} attend operations in a program of {program.num_layers} layers")


def _misfit(op: Op, program: Program) -> str | None:
    """What does not fit within one operation, None when all does."""
    match op:
        case Embed():
            rows = program.vocab_size if op.index == "token" else op.table.rows
            if op.index == "position" and rows < program.context_length:
                return f"table {op.table.name!r} has {rows} positions, the model {program.context_length}"
            problem = _shape(op.table, (rows, op.out.width))
            return problem or (None if math.isfinite(op.scale) else "scale is not finite")
        case Norm():
            group = op.x.width if op.group is None else op.group
            if op.out.width != op.x.width or group < 1 or op.x.width % group:
                return f"groups of {group} in {op.x.width} values, output {op.out.width}"
            return _shape(op.weight, (group,)) or _shape(op.bias, (group,))
        case Linear():
            if len(op.outs) != len(op.weights) or (op.biases and len(op.biases) != len(op.outs)):
                return f"{len(op.outs)} outputs, {len(op.weights)} weights, {len(op.biases)} biases"
            if op.x in op.outs:
                return f"buffer {op.x.name!r} is both input and output"
            biases = op.biases or (None,) * len(op.outs)
            for out, weight, bias in zip(op.outs, op.weights, biases, strict=True):
                problem = _shape(weight, (out.width, op.x.width)) or _shape(bias, (out.width,))
                if problem:
                    return problem
        case Rope():
            if op.x.width % op.head_dim or not 0 < 2 * op.inv_freq.size <= op.head_dim or op.inv_freq.ndim != 1:
                return f"{op.inv_freq.size} frequencies, heads of {op.head_dim} in {op.x.width} values"
            if op.inv_freq.dtype != np.float64 or not np.isfinite(op.inv_freq).all():
                return "frequencies are not finite float64"
        case Attend():
            sizes = (op.q.width, op.k.width, op.v.width, op.out.width)
            q, kv = op.num_heads, op.num_kv_heads
            wanted = (q * op.head_dim, kv * op.head_dim, kv * op.v_dim, q * op.v_dim)
            if kv < 1 or q % kv or sizes != wanted:
                return f"{q} heads on {kv}, widths {sizes}, expected {wanted}"
            if op.out in (op.q, op.k, op.v):
                return "writes over an input"
            if op.window is not None and op.window < 1:
                return f"window {op.window}"
        case Route():
            if op.logits.width != op.num_experts or not 1 <= op.top_k <= op.num_experts:
                return f"top {op.top_k} of {op.num_experts} experts, {op.logits.width} logits"
            return _shape(op.bias, (op.num_experts,))
        case Experts():
            if op.out.width != op.x.width or op.out == op.x or not len(op.gate) == len(op.up) == len(op.down) > 0:
                return f"{len(op.gate)} gates, {len(op.up)} ups, {len(op.down)} downs, output {op.out.name!r}"
            inner = op.gate[0].rows
            for gate, up, down in zip(op.gate, op.up, op.down, strict=True):
                into, back = (inner, op.x.width), (op.x.width, inner)
                problem = _shape(gate, into) or _shape(up, into) or _shape(down, back)
                if problem:
                    return problem
        case Gate() | Add() | Scale() | Softcap():
            if any(buffer.width != op.out.width for buffer in reads(op)):
                return "widths differ"
        case Head():
            return _shape(op.weight, (program.vocab_size, op.x.width)) or _shape(op.bias, (program.vocab_size,))
    return None


def _shape(ref: TensorRef | None, wanted: tuple[int, ...]) -> str | None:
    if ref is None or ref.shape == wanted:
        return None
    return f"tensor {ref.name!r} has shape {ref.shape}, expected {wanted}"


_LAYER = re.compile(r"(?<=\.)\d+(?=\.)")


def format_program(program: Program, *, fold: bool = True) -> str:
    """The program as text, one operation a line; layers that differ only in their number are shown once.

    `fold=False` prints every layer.
    """
    sections: list[tuple[int | None, list[str]]] = []  # (layer, lines)
    layer: int | None = None
    for op in program.ops:
        ref = next(tensors(op), None)
        if ref is not None:
            number = _LAYER.search(ref.name)
            layer = int(number.group()) if number else None
        elif isinstance(op, Attend):
            layer = op.layer
        if not sections or sections[-1][0] != layer:
            sections.append((layer, []))
        sections[-1][1].append(_describe(op, fold=fold))
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


def _describe(op: Op, *, fold: bool) -> str:
    """One line: outputs with widths, inputs, tensors with shape and layout, parameters that are not the usual."""

    def show(ref: TensorRef | None) -> str:
        if ref is None:
            return "1"
        name = _LAYER.sub("{i}", ref.name, count=1) if fold else ref.name
        return f"{name} ({'×'.join(map(str, ref.shape))} {ref.layout.name})"

    def plus(ref: TensorRef | None) -> str:
        return "" if ref is None else f" + {show(ref)}"

    def given(**values: object) -> str:
        return "".join(f", {name} {value:g}" if isinstance(value, float) else f", {name} {value}"
                       for name, value in values.items() if value is not None)  # fmt: skip

    def out(buffer: Buffer) -> str:
        return f"{buffer.name}[{buffer.width}]"

    match op:
        case Embed():
            text = f"{out(op.out)} = {show(op.table)}[{op.index}]" + (f" · {op.scale:g}" if op.scale != 1.0 else "")
        case Norm():
            offset = f"({show(op.weight)} + {op.weight_offset:g})" if op.weight_offset else show(op.weight)
            text = f"{out(op.out)} = {op.kind}({op.x.name}) · {offset}{plus(op.bias)}" + given(
                eps=op.eps, groups=None if op.group is None else f"of {op.group}"
            )
        case Linear():
            biases = op.biases or (None,) * len(op.outs)
            parts = zip(op.outs, op.weights, biases, strict=True)
            text = ", ".join(f"{out(o)} = {op.x.name} · {show(w)}{plus(b)}" for o, w, b in parts)
        case Rope():
            pairs = "interleaved" if op.interleaved else "halves"
            factor = None if op.attention_factor == 1.0 else op.attention_factor
            text = f"{out(op.x)} by heads of {op.head_dim}, {pairs}"
            text += f", frequencies {op.inv_freq[0]:g} to {op.inv_freq[-1]:g}{given(factor=factor)}"
        case Attend():
            text = f"{out(op.out)} = softmax({op.q.name} · {op.k.name}) · {op.v.name}"
            text += f", {op.num_heads} heads on {op.num_kv_heads} of {op.head_dim}"
            text += f" and {op.v_dim}" if op.v_dim != op.head_dim else ""
            text += given(scale=op.scale, window=op.window, softcap=op.softcap) + ("" if op.causal else ", not causal")
        case Gate():
            text = f"{out(op.out)} = {op.activation}({op.a.name})" + (f" · {op.b.name}" if op.b else "")
        case Route():
            text = f"top {op.top_k} of {op.num_experts} by {op.logits.name}, {op.score}"
            text += (", normalized" if op.normalize and op.score != "topk_softmax" else "") + plus(op.bias)
            text += f", {op.top_groups} of {op.num_groups} groups" if op.num_groups > 1 else ""
            text += given(scale=None if op.scale == 1.0 else op.scale)
        case Experts():
            x = op.x.name
            text = f"{out(op.out)} = Σ {op.logits.name} · down({op.activation}(gate({x})) · up({x}))"
            text += f", {len(op.gate)} × gate {show(op.gate[0])}, up {show(op.up[0])}, down {show(op.down[0])}"
        case Add():
            text = f"{out(op.out)} = {op.a.name} + {op.b.name}"
        case Scale():
            text = f"{out(op.out)} = {op.x.name} · {op.factor:g}"
        case Softcap():
            text = f"{out(op.out)} = {op.cap:g} · tanh({op.x.name} / {op.cap:g})"
        case Head():
            text = f"logits = {op.x.name} · {show(op.weight)}{plus(op.bias)}" + given(
                scale=None if op.scale == 1.0 else op.scale, softcap=op.softcap
            )
        case Pool():
            text = f"vector = {op.kind} of {op.x.name}"
    return f"{type(op).__name__.lower():<8}{text}"
