"""The operations that keep something of a sequence from step to step: attention, and those with a record.

As in `ops`, a class here is all that the executor's struct, its binding and its checks are made from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .operation import Keeps, Operation, Reads, Recurrent, Writes
from .state import Pages, Source, Window
from .wording import given, plus, unless

if TYPE_CHECKING:
    from .operation import Taps, Vector
    from .state import State
    from .wording import Show

Activation = Literal["silu", "gelu_tanh", "gelu_erf", "relu", "relu2", "sigmoid", "none"]
HeadMap = Literal["grouped", "tiled"]


@dataclass(frozen=True, slots=True)
class Attend(Operation):
    """Appends k, v to `state` and attends to it: softmax(q·k·scale [soft-capped]) · v, grouped query heads.

    q is heads × head_dim, k kv_heads × head_dim, v kv_heads × v_dim, out heads × v_dim. `window` counts keys,
    the row's own included: key j is seen from position p when p - window < j ≤ p. Without `stores` there is no k and v:
    it reads what another Attend stored earlier in the step, or a Source, whole (`causal` says nothing there). `sinks`
    (gpt-oss) has a logit a head that takes its share of the softmax and carries no value: a row's running sum begins as
    {logit, 1, 0} in the place of {-inf, 0, 0}, and pages are merged to that as ever.
    """

    out: Writes
    q: Reads
    k: Reads | None
    v: Reads | None
    state: Keeps
    num_heads: int
    num_kv_heads: int
    head_dim: int
    v_dim: int
    scale: float
    window: int | None = None
    softcap: float | None = None
    causal: bool = True
    stores: bool = True
    sinks: Vector | None = None

    RULES = {
        "(k is None) != stores and (v is None) != stores": "keys and values are given exactly where they are stored",
        "num_kv_heads >= 1 and num_heads >= 1 and num_heads % num_kv_heads == 0 and head_dim >= 1 and v_dim >= 1": (
            "{num_heads} heads on {num_kv_heads} of {head_dim} and {v_dim} values"
        ),
    }
    SHAPES = {
        "q": "num_heads * head_dim",
        "k": "num_kv_heads * head_dim",
        "v": "num_kv_heads * v_dim",
        "out": "num_heads * v_dim",
        "sinks": "num_heads",
    }

    @property
    def writes_state(self) -> bool:
        return self.stores

    def state_misfit(self, state: State) -> str | None:
        if not isinstance(state, Pages):
            return "a record has no keys"
        wanted, has = ((it.num_kv_heads, it.head_dim, it.v_dim) for it in (self, state))
        if wanted != has:
            return f"{wanted} heads, dimensions of keys and of values, the state has {has}"
        if isinstance(state, Source) and (self.stores or self.window):
            return "a source is filled once and read whole"
        if isinstance(state, Window) and not (self.causal and self.window and self.window <= state.tokens):
            return f"only a causal window of at most {state.tokens} can be read"
        return None

    def text(self, show: Show) -> str:
        keys = f"softmax({self.q.name} · {self.k.name}) · {self.v.name}" if self.k and self.v else self.q.name
        line = f"{self.out.sized} = {keys}" + ("" if self.stores else f" on state {self.state}")
        line += f", {self.num_heads} heads on {self.num_kv_heads} of {self.head_dim}"
        line += f" and {self.v_dim}" if self.v_dim != self.head_dim else ""
        line += given(scale=self.scale, window=self.window, softcap=self.softcap)
        line += "" if self.sinks is None else f", sinks {show(self.sinks)}"
        return line + ("" if self.causal else ", not causal")


@dataclass(frozen=True, slots=True)
class Accumulate(Recurrent):
    """s = decay · s + x, out = s, a column for itself: a sum in which each row before counts `decay` times less.

    s is a Record of out.width float32; the product and the sum are rounded one after the other (out may be x).
    """

    out: Writes
    x: Reads
    state: Keeps
    decay: float

    SHAPES = {"x": "out.width"}
    RECORD = "out.width"
    IN_PLACE = True

    def text(self, show: Show) -> str:
        return f"{self.out.sized} = {self.x.name} + {self.decay:g} · state {self.state}"


@dataclass(frozen=True, slots=True)
class Conv(Recurrent):
    """out = activation(Σ_j weight[:, j] · x of the row (taps - 1 - j) before + bias): a column for itself, causal.

    `weight` is (width, taps), its last tap is the row's own; rows before the sequence are zeros. The record is the last
    taps - 1 rows of x, the oldest first. Where several convolutions share one tensor each takes its rows of it.
    """

    out: Writes
    x: Reads
    weight: Taps
    state: Keeps
    bias: Vector | None = None
    activation: Activation = "none"

    RULES = {"2 <= weight.cols <= 64": "{weight.cols} taps, not 2 to 64"}
    SHAPES = {"x": "out.width", "weight": "out.width, _", "bias": "out.width"}
    RECORD = "(weight.cols - 1) * out.width"

    def text(self, show: Show) -> str:
        line = f"{self.x.name} ∗ {show(self.weight)}{plus(show, self.bias)}"
        return f"{self.out.sized} = {line if self.activation == 'none' else f'{self.activation}({line})'}"


@dataclass(frozen=True, slots=True)
class DeltaScan(Recurrent):
    """The gated delta rule: a matrix S (k_dim, v_dim) a value head, from which each row first takes what it replaces.

        beta = beta_scale · sigmoid(b)              e = exp(A · softplus(a + dt_bias))
        d = beta · (v - e · Sᵀ k)                   S ← e · S + k dᵀ                     out = scale · Sᵀ q

    A is `decay` (GGUF holds -exp(A_log)), or -exp(decay) where `decay_is_log` (safetensors hold A_log). `a` has a value
    a head, or one for each of its k_dim rows of S. Value head h has the key head h // (num_v_heads / num_k_heads) when
    `heads` are grouped, h mod num_k_heads when they are tiled. q and k come normed (`Norm` l2). The record is all S as
    docs/state.md lays them out, which also says the order of every sum.
    """

    out: Writes
    q: Reads
    k: Reads
    v: Reads
    a: Reads
    b: Reads
    decay: Vector
    dt_bias: Vector
    state: Keeps
    num_k_heads: int
    num_v_heads: int
    k_dim: int
    v_dim: int
    scale: float
    heads: HeadMap = "grouped"
    beta_scale: float = 1.0
    decay_is_log: bool = False

    RULES = {
        "num_k_heads >= 1 and num_v_heads >= 1 and num_v_heads % num_k_heads == 0 and k_dim >= 1 and v_dim >= 1": (
            "{num_v_heads} heads on {num_k_heads} of {k_dim} and {v_dim} values"
        ),
        "a.width == num_v_heads or a.width == num_v_heads * k_dim": (
            "{a.width} decays for {num_v_heads} heads of {k_dim}"
        ),
        "beta_scale > 0": "beta_scale {beta_scale} is not above 0",
    }
    SHAPES = {
        "q": "num_k_heads * k_dim",
        "k": "num_k_heads * k_dim",
        "v": "num_v_heads * v_dim",
        "out": "num_v_heads * v_dim",
        "b": "num_v_heads",
        "decay": "num_v_heads",
        "dt_bias": "a.width",
    }
    RECORD = "num_v_heads * k_dim * v_dim"

    def text(self, show: Show) -> str:
        decay = f"-exp({show(self.decay)})" if self.decay_is_log else show(self.decay)
        line = f"{self.out.sized} = delta rule: {self.q.name}, {self.k.name}, {self.v.name}"
        line += f", beta {self.b.name}, decay {self.a.name}{plus(show, self.dt_bias)} by {decay}"
        line += f", {self.num_v_heads} heads on {self.num_k_heads} {self.heads} of {self.k_dim} and {self.v_dim}"
        return line + given(scale=self.scale, beta_scale=unless(1.0, self.beta_scale))
