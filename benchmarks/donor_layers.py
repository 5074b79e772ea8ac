"""A layer's tensors in a family's shape, of the donor's or of noise: see donor_files.py."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from donor_shapes import (
    CERTAIN,
    CHOSEN,
    LARGEST_ROW,
    LOGIT_STD,
    OSS_ALPHA,
    OSS_UP,
    OTHERS_BIAS,
    SINK,
    SMALL,
    Array,
    Fitted,
    Tensors,
    noise,
)

CONV_TAPS = {"conv": 3, "delta": 4}
DELTA_KEY_HEADS, DELTA_VALUE_HEADS, DELTA_DIM = 2, 4, 64
_PARTS = ("gate", "up", "down")


class Layer:
    """One layer that says what the donor's layer `source` says.

    What is random in it depends on the seed and its number alone.
    """

    def __init__(self, fitted: Fitted, index: int, source: int) -> None:
        self.fitted, self.index, self.source = fitted, index, source
        self.donor, self.shape, self.experts = fitted.donor, fitted.shape, fitted.experts
        rng = self._rng("picks")
        self.ids = rng.permutation(self.experts.count)  # the first top_k are the picked ones
        self.neurons = rng.permutation(self.donor.ffn)
        groups = self.experts.groups(self.shape)
        parts = np.array_split(self.neurons[self.shape.shared :], len(groups))
        self.members = [
            rng.permutation(part) if size > 1 else part
            for part, size in zip(parts, groups, strict=True)
            for _ in range(size)
        ]

    @property
    def is_dense(self) -> bool:
        """Without experts."""
        return self.index < self.shape.dense

    def tensors(self) -> Tensors:
        """By the end of their names."""
        name = f"blk.{self.source}."
        found: Tensors = {
            "attn_norm.weight": lambda: self.fitted.norm(name + "attn_norm.weight"),
            f"{self.shape.ffn_norm}.weight": lambda: self.fitted.norm(name + "ffn_norm.weight", 1.0),
            **self._mixer(),
        }
        if self.is_dense:
            return found | {f"ffn_{part}.weight": lambda part=part: self._dense(part, None) for part in _PARTS}
        found |= {"ffn_gate_inp.weight": self._router}
        found |= {f"ffn_{part}_exps.weight": lambda part=part: self._experts(part) for part in _PARTS}
        if self.shape.has_biases:
            found |= {"ffn_gate_inp.bias": self._bias}
            found |= {f"ffn_{part}_exps.bias": lambda part=part: self._expert_biases(part) for part in _PARTS}
        if self.shape.router == "sigmoid":
            found |= {"exp_probs_b.bias": self._bias}
        if self.shape.shared:
            own = self.neurons[: self.shape.shared]
            found |= {f"ffn_{part}_shexp.weight": lambda part=part: self._shared(part, own) for part in _PARTS}
            if self.shape.gated:
                found |= {"ffn_gate_inp_shexp.weight": lambda: np.zeros(self.fitted.width, np.float32)}
        return found

    def _mixer(self) -> Tensors:
        """What mixes a row with those before it: attention."""
        donor = self.donor
        found: Tensors = {
            "attn_q.weight": self._queries,
            "attn_k.weight": lambda: self._turned("attn_k", donor.kv_heads),
            "attn_v.weight": self._values,
            "attn_output.weight": self._output,
        }
        if self.shape.has_biases:
            widths = {"q": self.fitted.heads * self.fitted.head_dim, "k": donor.kv_heads * self.fitted.head_dim}
            zeros: Tensors = {
                f"attn_{part}.bias": lambda width=width: np.zeros(width, np.float32) for part, width in widths.items()
            }
            return found | zeros | {
                "attn_v.bias": self._value_bias,
                "attn_output.bias": self._output_bias,
                "attn_sinks.weight": lambda: np.full(self.fitted.heads, SINK, np.float32),
            }  # fmt: skip
        return found | {
            "attn_q_norm.weight": lambda: self._qk_norm(
                self.fitted.heads, np.sqrt(self.fitted.head_dim / donor.head_dim)
            ),
            "attn_k_norm.weight": lambda: self._qk_norm(donor.kv_heads, 1.0),
        }

    def _rng(self, what: str) -> np.random.Generator:
        return np.random.default_rng((self.fitted.seed, self.index, *what.encode()))

    def _own(self, role: str) -> Array:
        return self.donor(f"blk.{self.source}.{role}.weight")

    def _reading(self, matrix: Array, what: str) -> Array:
        """Columns for the greater width: none for the constant, noise for what is always zero."""
        wide = np.zeros((*matrix.shape[:-1], self.fitted.width), np.float32)
        wide[..., : self.donor.hidden] = matrix
        wide[..., self.donor.hidden + 1 :] = noise(self._rng(what), *matrix.shape[:-1], self.shape.wider - 1)
        return wide

    def _writing(self, matrix: Array) -> Array:
        """Rows for the greater width, which add nothing to it."""
        return np.concatenate([matrix, np.zeros((self.shape.wider, matrix.shape[1]), np.float32)])

    def _by_heads(self, rows: Array, heads: int, other: Array | None) -> Array:
        """Each head's rows, and behind them as many `other` ones; None: zeros."""
        mine = rows.reshape(heads, self.donor.head_dim, -1)
        other = np.zeros_like(mine) if other is None else other.reshape(mine.shape)
        return np.concatenate([mine, other], axis=1).reshape(2 * len(rows), -1)

    def _with_spare_heads(self, rows: Array, other: Array | None) -> Array:
        """The query heads of each head of keys, and behind them a further one; None: zeros."""
        groups = rows.reshape(self.donor.kv_heads, -1, rows.shape[1])
        shape = (self.donor.kv_heads, self.donor.head_dim, rows.shape[1])
        other = np.zeros(shape, np.float32) if other is None else other.reshape(shape)
        return np.concatenate([groups, other], axis=1).reshape(-1, rows.shape[1])

    def _halves(self, role: str, heads: int) -> Array:
        """q or k: pairs of neighbours become pairs of halves."""
        rows = self._own(role)
        pairs = rows.reshape(heads, self.donor.head_dim // 2, 2, -1)
        return pairs.transpose(0, 2, 1, 3).reshape(rows.shape)

    def _turned(self, role: str, heads: int) -> Array:
        """q or k before a norm that only brings back their size."""
        rows = self._halves(role, heads)
        if self.shape.wide_heads:
            other = None if role == "attn_q" else noise(self._rng("k half"), *rows.shape)
            rows = self._by_heads(rows, heads, other)
        elif role == "attn_q":
            further = noise(self._rng("q heads"), self.donor.kv_heads * self.donor.head_dim, rows.shape[1])
            rows = self._with_spare_heads(rows, further)
        return self._reading(rows * np.float32(1 if self.shape.has_biases else SMALL), role)

    def _queries(self) -> Array:
        """With rows of zeros behind each head where there is a gate: σ(0) = ½."""
        rows = self._turned("attn_q", self.donor.heads)
        if not self.shape.gated:
            return rows
        heads = rows.reshape(self.fitted.heads, self.fitted.head_dim, -1)
        return np.concatenate([heads, np.zeros_like(heads)], axis=1).reshape(2 * len(rows), -1)

    def _values(self) -> Array:
        own = self._own("attn_v")
        return self._reading(self._by_heads(own, self.donor.kv_heads, None) if self.shape.wide_heads else own, "v")

    def _value_bias(self) -> Array:
        return noise(self._rng("v bias"), self.donor.kv_heads * self.fitted.head_dim)

    def _output_bias(self) -> Array:
        """Takes away what the bias of v brings: the weights of attention have the sum 1."""
        of_heads = self._value_bias().reshape(self.donor.kv_heads, -1)
        group = self.fitted.heads // self.donor.kv_heads
        brought = self._output().astype(np.float64) @ np.repeat(of_heads, group, axis=0).ravel()
        return (-brought).astype(np.float32)

    def _qk_norm(self, heads: int, factor: float) -> Array:
        eps = float(np.float32(self.fitted.eps))
        width = self.fitted.head_dim * (heads if self.shape.row_norm else 1)
        return np.full(width, np.sqrt(eps) / SMALL * factor, np.float32)

    def _output(self) -> Array:
        """Columns that meet the zero half of each head of v hold noise, those of further heads zeros."""
        own = self._own("attn_output")
        columns = np.ascontiguousarray(own.T)
        if self.shape.wide_heads:
            columns = self._by_heads(columns, self.donor.heads, noise(self._rng("output"), *own.shape))
        else:
            columns = self._with_spare_heads(columns, None)
        return self._writing(np.ascontiguousarray(columns.T)) * np.float32(2 if self.shape.gated else 1)

    def _dense(self, part: str, neurons: npt.NDArray[np.int64] | None) -> Array:
        """The whole MLP, or a share of its neurons."""
        own = self._own(f"ffn_{part}")
        if part == "down":
            return self._writing(own if neurons is None else own[:, neurons])
        return self._reading(own if neurons is None else own[neurons], f"ffn_{part}")

    def _shared(self, part: str, neurons: npt.NDArray[np.int64]) -> Array:
        return self._dense(part, neurons) * np.float32(2 if self.shape.gated and part == "down" else 1)

    def _experts(self, part: str) -> Array:
        """The donor's neurons in the picked experts, noise everywhere else."""
        own = self._own(f"ffn_{part}")
        width, hidden = self.fitted.expert_width, self.donor.hidden
        found = noise(self._rng(f"experts {part}"), self.experts.count, width, self.fitted.width)
        for at, neurons in enumerate(self.members):
            expert = found[self.ids[at]]
            if part == "down":
                expert[:] = 0  # also for the neurons that fill the width
                share = self._weight(at) * self._factor("gate") * self._factor("up")
                expert[: len(neurons), :hidden] = own[:, neurons].T.astype(np.float64) / share
            else:
                expert[: len(neurons), :hidden] = own[neurons] * np.float32(self._factor(part))
                expert[:, hidden] = 0
        return np.ascontiguousarray(found.transpose(0, 2, 1)) if part == "down" else found

    def _factor(self, part: str) -> float:
        """silu(g) · u = 1.702 · (g / 1.702) · σ(1.702 · (g / 1.702)) · u: what gate and up are multiplied by."""
        return {"gate": 1 / OSS_ALPHA, "up": OSS_UP}[part] if self.shape.has_biases else 1.0

    def _expert_biases(self, part: str) -> Array:
        """Of the picked experts none, but for the 1 that is added to what up gives."""
        width = self.fitted.width if part == "down" else self.fitted.expert_width
        found = noise(self._rng(f"experts {part} bias"), self.experts.count, width)
        found[self.ids[: self.experts.top_k]] = -1 if part == "up" else 0
        return found

    def _weight(self, at: int) -> float:
        """What the router gives the neurons of the picked expert `at`, both of a pair together."""
        pairs = self.experts.pairs
        if self.shape.router == "softmax":
            return 1 / (pairs + 1)
        score, total = 0.5 if at == 2 * pairs else 1.0, pairs + 1.5
        return score * self.shape.scale / total

    def _random_rows(self, count: int) -> Array:
        """Of a router."""
        weights = np.abs(self._own("ffn_norm"))
        free = self._rng("router").standard_normal((count, self.donor.hidden), np.float32)
        # A few channels of trained norms are far larger than the others and would decide alone.
        free *= np.float32(LOGIT_STD * self.donor.hidden**-0.5) / np.maximum(weights, 0.05 * np.median(weights))
        return free

    def _router(self) -> Array:
        """Random rows; of the picked ones: pairs of opposite rows, zero, and a multiple of the constant.

        For a softmax the first of all pairs have one row, the second of all another, and those that must not be picked
        are far below both by the constant.
        """
        donor, pairs = self.donor, self.experts.pairs
        rows = np.zeros((self.experts.count, self.fitted.width), np.float32)
        rows[self.ids, : donor.hidden] = self._random_rows(self.experts.count)
        certain = CERTAIN * LARGEST_ROW / self.fitted.constant() / self.fitted.width**0.5
        if self.shape.router == "softmax":
            picked = self.ids[: self.experts.top_k]
            rows[picked[2:]] = rows[np.tile(picked[:2], pairs)]
            if not self.shape.has_biases:
                rows[self.ids[self.experts.top_k :], donor.hidden] = -certain
            return rows
        rows[self.ids[1 : 2 * pairs : 2]] = -rows[self.ids[0 : 2 * pairs : 2]]
        rows[self.ids[2 * pairs : 2 * pairs + 2]] = 0
        rows[self.ids[2 * pairs + 1], donor.hidden] = certain
        return rows

    def _bias(self) -> Array:
        bias = self._rng("bias").random(self.experts.count, np.float32) * np.float32(OTHERS_BIAS)
        picked = self.ids[: self.experts.top_k]
        if self.shape.has_biases:
            bias[picked] = CERTAIN  # the same for all: pairs have the same share of the sum
        else:
            bias[picked] += np.float32(CHOSEN)
        return bias


class FurtherLayer(Layer):
    """One that the donor has not, with a record in the place of attention: all noise, but it adds nothing."""

    def _mixer(self) -> Tensors:
        width, rng, kind = self.fitted.width, self._rng("mixer"), self.shape.between
        if kind == "conv":
            shapes = {"conv": (width, CONV_TAPS[kind]), "in_proj": (3 * width, width), "out_proj": (width, width)}
            made: Tensors = {
                f"shortconv.{part}.weight": lambda size=size: noise(rng, *size) for part, size in shapes.items()
            }
            return made | {"shortconv.out_proj.weight": lambda: np.zeros((width, width), np.float32)}
        assert kind == "delta"
        values = DELTA_VALUE_HEADS * DELTA_DIM
        channels = 2 * DELTA_KEY_HEADS * DELTA_DIM + values
        return {
            "attn_qkv.weight": lambda: noise(rng, channels, width),
            "attn_gate.weight": lambda: noise(rng, values, width),
            "ssm_conv1d.weight": lambda: noise(rng, channels, CONV_TAPS["delta"]),
            "ssm_dt.bias": lambda: noise(rng, DELTA_VALUE_HEADS),
            "ssm_a": lambda: -np.exp(10 * noise(rng, DELTA_VALUE_HEADS)),
            "ssm_beta.weight": lambda: noise(rng, DELTA_VALUE_HEADS, width),
            "ssm_alpha.weight": lambda: noise(rng, DELTA_VALUE_HEADS, width),
            "ssm_norm.weight": lambda: 1 + noise(rng, DELTA_DIM),
            "ssm_out.weight": lambda: np.zeros((width, values), np.float32),
        }

    def _dense(self, part: str, neurons: npt.NDArray[np.int64] | None) -> Array:
        shape = super()._dense(part, neurons).shape
        return np.zeros(shape, np.float32) if part == "down" else noise(self._rng(f"ffn_{part}"), *shape)

    def _experts(self, part: str) -> Array:
        width, inner = self.fitted.width, self.fitted.expert_width
        if part == "down":
            return np.zeros((self.experts.count, width, inner), np.float32)
        return noise(self._rng(f"experts {part}"), self.experts.count, inner, width)
