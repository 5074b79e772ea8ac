"""What the layers of a model share while its operations are written down: weights, rows, norms, kept states."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from .. import program as op
from ..program import Buffer, Op, State
from .weights import Weights


@dataclass(slots=True)
class Stream:
    """What all layers share: the weights, the rows, how rows are normed, and what sequences keep so far."""

    w: Weights
    hidden: int
    eps: float
    norm: Literal["rms", "layer"] = "rms"
    norm_offset: float = 0.0  # added to the norms' weights
    norm_offsets: Mapping[str, float] = field(default_factory=dict)  # by role, where they differ
    residual_scale: float = 1.0
    states: list[State] = field(default_factory=list)
    kv_of_layer: dict[int, int] = field(default_factory=dict)  # the number of each layer's keys and values
    _widths: dict[str, int] = field(default_factory=dict)

    def buffer(self, name: str, width: int | None = None) -> Buffer:
        """The rows called `name`, which layers use again; another width than at first makes another buffer."""
        width = width or self.hidden
        is_usual = self._widths.setdefault(name, width) == width
        return Buffer(name if is_usual else f"{name}{width}", width)

    @property
    def x(self) -> Buffer:
        """The residual stream."""
        return self.buffer("x")

    @property
    def h(self) -> Buffer:
        """The normed input of a part, then its output."""
        return self.buffer("h")

    def keep(self, state: State) -> int:
        """The number of one more state of every sequence."""
        self.states.append(state)
        return len(self.states) - 1

    def normed(
        self,
        out: Buffer,
        x: Buffer,
        role: str,
        i: int | None = None,
        group: int | None = None,
        eps: float | None = None,
    ) -> op.Norm:
        """out = norm(x), by groups of values when `group` is set; `eps` where it is not that of the others."""
        width = group or x.width
        bias = self.w.vector(role, width, i, end="bias") if self.norm == "layer" else None
        weight = self.w.vector(role, width, i)
        offset = self.norm_offsets.get(role, self.norm_offset)
        return op.Norm(out, x, weight, bias, self.eps if eps is None else eps, self.norm, group, offset)

    def linear(
        self,
        outs: Sequence[tuple[str, Buffer]],
        x: Buffer,
        bias: bool | None,
        i: int | None = None,
        fused: str | None = None,
    ) -> op.Linear:
        """Each out = x · the matrix of its role, with its bias. `fused`: the role of one matrix that has them all."""
        if fused is not None:
            weights = self.w.parts(fused, [out.width for _, out in outs], x.width, i)
        else:
            weights = tuple(self.w.matrix(role, out.width, x.width, i) for role, out in outs)
        biases = tuple(self.w.bias(role, out.width, i, bias) for role, out in outs)
        return op.Linear(tuple(out for _, out in outs), x, weights, biases if any(biases) else ())

    def added(self, out: Buffer) -> Iterator[Op]:
        """x += out · residual_scale"""
        if self.residual_scale != 1.0:
            yield op.Scale(out, out, self.residual_scale)
        yield op.Add(self.x, self.x, out)
