"""A forward pass as a flat list of fused operations over named row buffers: what a model family writes down.

A *buffer* is float32[rows, width], one row a token of the step. An operation reads and writes whole buffers; the
executor decides how rows and columns are shared out, and what is fused. A program knows nothing of the processor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .checkpoint.types import TensorRef

Activation = Literal["silu", "gelu_tanh", "gelu_erf", "relu", "none"]


@dataclass(frozen=True, slots=True)
class Buffer:
    """float32[rows, width]; `rows` is the step's."""

    name: str
    width: int


@dataclass(frozen=True, slots=True)
class Embed:
    """out[r] = table[token[r]] · scale. `table` is (vocabulary, width)."""

    out: Buffer
    table: TensorRef
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Norm:
    """RMS: x / sqrt(mean(x²) + eps) · w.  Layer: (x - mean) / sqrt(var + eps) · w + b.

    Works on `width // group` groups of each row when `group` is set (per-head QK norm: group = head_dim, weight of
    that length). `weight_offset` is added to the weight once at load (Gemma's safetensors store w - 1).
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
    """outs[i] = x · weights[i]ᵀ (+ biases[i]); the weights (rows, cols) share the input, so it is quantised once."""

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
    """out = activation(a) · b, or activation(a) when b is None."""

    out: Buffer
    a: Buffer
    b: Buffer | None
    activation: Activation


@dataclass(frozen=True, slots=True)
class Route:
    """Picks `top_k` experts a row from router logits (rows × experts); ties go to the lower expert id.

    score = softmax over all, sigmoid, or none (softmax over the picked ones only, `score="topk_softmax"`). `bias` is
    added for the choice only (DeepSeek-style). `num_groups`/`top_groups` restrict the choice to the best groups, a
    group's rank being the sum of its two best (biased) scores. Weights are the unbiased scores of the picked, divided by their sum when
    `normalize`, times `scale`. The result (ids ascending, weights) lives beside the buffer named `logits`.
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
    the Route whose result is used.
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
    """out = cap · tanh(x / cap)."""

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


Op = Embed | Norm | Linear | Rope | Attend | Gate | Route | Experts | Add | Scale | Softcap | Head


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
    notes: tuple[str, ...] = field(default=())
