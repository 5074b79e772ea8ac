"""The operations: what each reads, writes and keeps, which shapes it takes and how it prints.

A class here is all that the executor's struct, its binding, its checks and its dependency list are made from; what the
words of the field types and the rules mean is said in `operation`. Those that keep something from step to step are
in `stateful`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from . import stateful
from .operation import Added, Float64, Operation, Reads, Routed, Routes, RowWise, Updates, Writes
from .stateful import Activation
from .wording import given, plus, unless

if TYPE_CHECKING:
    from .operation import Constants, Matrix, Table, Vector
    from .wording import Show

Pooling = Literal["mean", "first", "last"]
EmbedIndex = Literal["token", "position", "first"]
NormKind = Literal["rms", "layer", "l2"]
RouteScore = Literal["softmax", "sigmoid", "topk_softmax"]


@dataclass(frozen=True, slots=True)
class Embed(Operation):
    """out[r] = table[token[r]] · scale. `table` is (vocabulary, width).

    `index` "position": the row's position in its sequence instead of its token; "first": row 0 of the table for all.
    `pieces`: rows of the table are so many pieces of out.width values, of which out is number `piece`. All operations
    on pieces of a table together read a row once; pieces begin where blocks of its layout do.
    """

    out: Writes
    table: Table
    scale: float = 1.0
    index: EmbedIndex = "token"
    pieces: int = 1
    piece: int = 0

    RULES = {"0 <= piece < pieces": "piece {piece} of {pieces}"}
    SHAPES = {"table": "_, pieces * out.width"}

    def text(self, show: Show) -> str:
        scale = f" · {self.scale:g}" if self.scale != 1.0 else ""
        piece = f", a piece of {self.pieces}" if self.pieces > 1 else ""  # which one: that of the layer
        return f"{self.out.sized} = {show(self.table)}[{self.index}]{scale}{piece}"


@dataclass(frozen=True, slots=True)
class Norm(Operation):
    """RMS: x / sqrt(mean(x²) + eps) · w.  Layer: (x - mean) / sqrt(var + eps) · w + b.  L2: x / sqrt(Σx² + eps) · w.

    Works on `width // group` groups of each row when `group` is set (per-head QK norm: group = head_dim, weight of
    that length). `weight_offset` is added to the weight once at load (Gemma's safetensors store w - 1). out may be x.
    """

    out: Writes
    x: Reads
    weight: Vector | None
    bias: Vector | None = None
    eps: float = 1e-6
    kind: NormKind = "rms"
    group: int | None = None
    weight_offset: Added = 0.0

    IN_PLACE = True
    RULES = {
        "x.width % (group or x.width) == 0": "groups of {group} in {x.width} values",
        "kind == 'layer' or bias is None": "only a layer norm has a bias",
        "eps >= 0": "eps {eps} is negative",
    }
    SHAPES = {"out": "x.width", "weight": "group or x.width", "bias": "group or x.width"}

    def text(self, show: Show) -> str:
        weight = show(self.weight)
        scale = f"({weight} + {self.weight_offset:g})" if self.weight_offset else weight
        groups = None if self.group is None else f"of {self.group}"
        line = f"{self.out.sized} = {self.kind}({self.x.name}) · {scale}{plus(show, self.bias)}"
        return line + given(eps=self.eps, groups=groups)


@dataclass(frozen=True, slots=True)
class Linear(Operation):
    """outs[i] = x · weights[i]ᵀ (+ biases[i]); the weights (rows, cols) share the input, so it is quantised once.

    No output is x; `biases` is empty or has one entry a weight.
    """

    outs: tuple[Writes, ...]
    x: Reads
    weights: tuple[Matrix, ...]
    biases: tuple[Vector | None, ...] = ()

    RULES = {
        "len(weights) == len(outs) > 0 and (len(biases) == 0 or len(biases) == len(outs))": (
            "{len(outs)} outputs, {len(weights)} weights, {len(biases)} biases"
        )
    }
    SHAPES = {"weights": "outs.width, x.width", "biases": "outs.width"}

    def text(self, show: Show) -> str:
        biases = self.biases or (None,) * len(self.outs)
        parts = zip(self.outs, self.weights, biases, strict=True)
        return ", ".join(f"{o.sized} = {self.x.name} · {show(w)}{plus(show, b)}" for o, w, b in parts)


@dataclass(frozen=True, slots=True)
class Rope(Operation):
    """Rotary positions, in place, on each of `x.width // head_dim` heads.

    `inv_freq` float64[rot_dim / 2] has every scaling rule applied already; angles are position · inv_freq in double.
    cos and sin are multiplied by `attention_factor` (YaRN, LongRoPE). `interleaved`: pairs are (2i, 2i+1), as GGUF's
    `llama` weights are permuted for; otherwise (i, i + rot_dim/2). Values past rot_dim pass through.
    """

    x: Updates
    head_dim: int
    inv_freq: Constants
    interleaved: bool = False
    attention_factor: Float64 = 1.0

    RULES = {
        "head_dim >= 1 and x.width % head_dim == 0 and 0 < 2 * len(inv_freq) <= head_dim": (
            "{len(inv_freq)} frequencies, heads of {head_dim} in {x.width} values"
        )
    }

    def text(self, show: Show) -> str:
        pairs = "interleaved" if self.interleaved else "halves"
        ends = f"frequencies {self.inv_freq[0]:g} to {self.inv_freq[-1]:g}"
        factor = given(factor=unless(1.0, self.attention_factor))
        return f"{self.x.sized} by heads of {self.head_dim}, {pairs}, {ends}{factor}"


@dataclass(frozen=True, slots=True)
class Gate(RowWise):
    """out = activation(a) · b, or activation(a) when b is None (out may be a or b).

    `limit` clamps after the activation (Step 3.5): min(activation(a), limit) · clamp(b, -limit, limit). `group`: a has
    one value for so many of b, out[j] = activation(a[j // group]) · b[j] (a gate a head, or one for the whole row).
    relu2 is relu(a)².

    `alpha` (gpt-oss) makes another gate of silu, whose limit clamps before it and whose b counts one more:
    g · sigmoid(alpha · g) · (clamp(b, -limit, limit) + 1) with g = min(a, limit).
    """

    out: Writes
    a: Reads
    b: Reads | None
    activation: Activation
    limit: float | None = None
    group: int | None = None
    alpha: float | None = None

    RULES = {
        "out.width % (group or 1) == 0": "groups of {group} in {out.width} values",
        "alpha is None or (activation == 'silu' and b is not None and group is None)": (
            "alpha {alpha} is of silu with a second input, without groups"
        ),
    }
    SHAPES = {"a": "out.width // (group or 1)"}
    GUARDS = "a gate"  # activations take -infinity to 0, a limit any infinity to itself

    def text(self, show: Show) -> str:
        line = f"{self.out.sized} = {self.activation}({self.a.name})" + (f" · {self.b.name}" if self.b else "")
        return line + given(
            limit=self.limit, groups=None if self.group is None else f"of {self.group}", alpha=self.alpha
        )


@dataclass(frozen=True, slots=True)
class Route(Operation):
    """Picks `top_k` experts a row from router logits (rows × experts); ties go to the lower expert id.

    score = softmax over all, sigmoid, or none (softmax over the picked ones only, `score="topk_softmax"`). `bias` is
    added for the choice only (DeepSeek-style). `num_groups`/`top_groups` restrict the choice to the best groups, a
    group's rank being the sum of its two best (biased) scores. Weights are the unbiased scores of the picked, divided
    by max(their sum + norm_eps, norm_min) when `normalize`, times `scale`; where that divisor is 0 the weights are 0
    too. `expert_scale`: a number for each expert, by which its weight is multiplied in the end (Gemma 4). The result
    (ids ascending, weights) lives beside the buffer named `logits`.

    The guards decide where all picked scores are tiny: sigmoids of logits below -46 have a sum below 1e-20, and without
    the `norm_eps` of their family they would get weights of 1 / top_k in the place of almost none.
    """

    logits: Routes
    num_experts: int
    top_k: int
    score: RouteScore = "softmax"
    normalize: bool = True
    bias: Vector | None = None
    num_groups: int = 1
    top_groups: int = 1
    scale: float = 1.0
    norm_eps: float = 0.0
    norm_min: float = 0.0
    expert_scale: Vector | None = None

    RULES = {
        "1 <= top_k <= num_experts == logits.width": "top {top_k} of {num_experts} experts, {logits.width} logits",
        "num_groups >= 1 and num_experts % num_groups == 0 and 1 <= top_groups <= num_groups"
        " and top_groups * (num_experts // num_groups) >= top_k": (
            "{top_groups} of {num_groups} groups for top {top_k} of {num_experts}"
        ),
        "norm_eps >= 0 and norm_min >= 0": "guards {norm_eps} and {norm_min} of the sum: one is negative",
    }
    SHAPES = {"bias": "num_experts", "expert_scale": "num_experts"}

    def text(self, show: Show) -> str:
        line = f"top {self.top_k} of {self.num_experts} by {self.logits.name}, {self.score}"
        line += ", normalized" if self.normalize and self.score != "topk_softmax" else ""
        line += plus(show, self.bias)
        line += f", {self.top_groups} of {self.num_groups} groups" if self.num_groups > 1 else ""
        guards = given(norm_eps=unless(0.0, self.norm_eps), norm_min=unless(0.0, self.norm_min))
        line += guards + given(scale=unless(1.0, self.scale))
        return line + ("" if self.expert_scale is None else f", weights · {show(self.expert_scale)}")


@dataclass(frozen=True, slots=True)
class Experts(Operation):
    """out = Σ over the row's picked experts, ascending id, of weight · down(activation(gate(x)) · up(x)).

    One tuple entry an expert; gate and up are (expert_width, width), down is (width, expert_width). `logits` names
    the Route whose result is used. `limit` and `alpha` are Gate's. Biases are empty or have one entry an expert: they
    are added to what gate, up and down give, so that of down is weighted too. out is not x.
    """

    out: Writes
    x: Reads
    logits: Routed
    gate: tuple[Matrix, ...]
    up: tuple[Matrix, ...]
    down: tuple[Matrix, ...]
    activation: Activation = "silu"
    limit: float | None = None
    alpha: float | None = None
    gate_biases: tuple[Vector, ...] = ()
    up_biases: tuple[Vector, ...] = ()
    down_biases: tuple[Vector, ...] = ()

    RULES = {
        "logits.choices == len(gate) > 0": "{len(gate)} experts without a route over as many",
        "len(gate) == len(up) == len(down)": "{len(gate)} gates, {len(up)} ups, {len(down)} downs",
        "len(gate_biases) == 0 or len(gate_biases) == len(gate)": "{len(gate_biases)} biases of {len(gate)} gates",
        "len(up_biases) == 0 or len(up_biases) == len(up)": "{len(up_biases)} biases of {len(up)} ups",
        "len(down_biases) == 0 or len(down_biases) == len(down)": "{len(down_biases)} biases of {len(down)} downs",
        "alpha is None or activation == 'silu'": "alpha {alpha} is of silu",
    }
    SHAPES = {
        "out": "x.width",
        "gate": "gate[0].rows, x.width",
        "up": "gate[0].rows, x.width",
        "down": "x.width, gate[0].rows",
        "gate_biases": "gate[0].rows",
        "up_biases": "gate[0].rows",
        "down_biases": "x.width",
    }

    def text(self, show: Show) -> str:
        x = self.x.name
        parts = ((self.gate, self.gate_biases), (self.up, self.up_biases), (self.down, self.down_biases))
        first = [show(matrices[0]) + (" + bias" if biases else "") for matrices, biases in parts]
        line = f"{self.out.sized} = Σ {self.logits.name} · down({self.activation}(gate({x})) · up({x}))"
        line += given(limit=self.limit, alpha=self.alpha)
        return f"{line}, {len(self.gate)} × gate {first[0]}, up {first[1]}, down {first[2]}"


@dataclass(frozen=True, slots=True)
class Add(RowWise):
    """out = a + b (out may be a)."""

    out: Writes
    a: Reads
    b: Reads

    def text(self, show: Show) -> str:
        return f"{self.out.sized} = {self.a.name} + {self.b.name}"


@dataclass(frozen=True, slots=True)
class Scale(RowWise):
    """out = x · factor (out may be x)."""

    out: Writes
    x: Reads
    factor: float

    def text(self, show: Show) -> str:
        return f"{self.out.sized} = {self.x.name} · {self.factor:g}"


@dataclass(frozen=True, slots=True)
class Rescale(Operation):
    """out = x · weight, one number of the file for all values (out may be x)."""

    out: Writes
    x: Reads
    weight: Vector

    IN_PLACE = True
    SHAPES = {"x": "out.width", "weight": "1"}

    def text(self, show: Show) -> str:
        return f"{self.out.sized} = {self.x.name} · {show(self.weight)}"


@dataclass(frozen=True, slots=True)
class Temper(Operation):
    """out = x · (1 + beta · ln(1 + ⌊(position + offset) / length⌋)), position the row's in its sequence.

    The temperature of queries beyond the trained length (Ministral 3; Llama 4 with offset 1). The factor is
    computed in double and rounded once (out may be x).
    """

    out: Writes
    x: Reads
    beta: Float64
    length: int
    offset: int = 0

    IN_PLACE = True
    RULES = {"length >= 1 and offset >= 0": "a temperature by {length} positions from {offset} on"}
    SHAPES = {"x": "out.width"}

    def text(self, show: Show) -> str:
        position = f"(position + {self.offset})" if self.offset else "position"
        return f"{self.out.sized} = {self.x.name} · (1 + {self.beta:g} · ln(1 + ⌊{position} / {self.length}⌋))"


@dataclass(frozen=True, slots=True)
class Softcap(RowWise):
    """out = cap · tanh(x / cap) (out may be x)."""

    out: Writes
    x: Reads
    cap: float

    RULES = {"cap > 0": "the cap {cap} is not positive"}
    GUARDS = "a value before its soft cap"

    def text(self, show: Show) -> str:
        return f"{self.out.sized} = {self.cap:g} · tanh({self.x.name} / {self.cap:g})"


@dataclass(frozen=True, slots=True)
class Head(Operation):
    """logits = x · weightᵀ · scale (+ bias), soft-capped when `softcap`; only for the rows that the step asks for.

    Must be the last operation; what follows the last one that writes state is computed only for those rows too.
    """

    x: Reads
    weight: Matrix
    bias: Vector | None = None
    scale: float = 1.0
    softcap: float | None = None

    IS_LAST = True
    SHAPES = {"weight": "_, x.width", "bias": "weight.rows"}

    def text(self, show: Show) -> str:
        line = f"logits = {self.x.name} · {show(self.weight)}{plus(show, self.bias)}"
        return line + given(scale=unless(1.0, self.scale), softcap=self.softcap)


@dataclass(frozen=True, slots=True)
class Pool(Operation):
    """The vector of a sequence: the mean of its rows of x, the first of them ([CLS]) or the last.

    Ends the program of a model that makes vectors, not text, in the place of Head. The executor gives the rows, whose
    mean the engine takes; what follows the last operation that writes state is only for the rows that are needed.
    """

    x: Reads
    kind: Pooling

    IS_LAST = True

    def text(self, show: Show) -> str:
        return f"vector = {self.kind} of {self.x.name}"


# All of them, in this order in the executor too.
OPERATIONS = tuple(
    item
    for item in (*vars(stateful).values(), *list(vars().values()))
    if isinstance(item, type) and issubclass(item, Operation) and item.__module__ in (stateful.__name__, __name__)
)
