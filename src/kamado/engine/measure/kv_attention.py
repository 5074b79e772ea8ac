"""What codes do to attention itself, layer by layer: which keys are delicate.

A preset's perplexity says whether it is safe; here it shows which layers spoil it. While the exact cache is scored,
some queries of every layer are kept; then its own keys and values are encoded as a preset would, and the weights
that those queries give to what comes back are compared with the exact ones. Nothing is passed on to the next layer, so
each layer's figure is its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ...files.numbers import read_vector
from ...plan.kv_pages import PAGE_TOKENS
from ...plan.kv_presets import Bits
from ...program import Attend, Program
from ..executor_protocol import ExecutorProtocol
from .kv_results import KvLayerRow

Floats = NDArray[np.float32]

QUERY_STRIDE = 61  # positions between two queries: a prime, so that all places within a page come
# A layer is delicate when its worst head's divergence is that many times the median layer's worst, and that large.
_DELICATE_TIMES = 4.0
_DELICATE_NATS = 0.02
_SPOILING_SHARE = 1 / 3  # of the divergence of all layers
_MOST_TOKENS = 8192  # of a text: what a layer's keys and values are read for


class _Sums:
    """Totals of one layer and one pair of bits."""

    def __init__(self, num_heads: int) -> None:
        self.divergence = np.zeros(num_heads)
        self.error = 0.0
        self.power = 0.0
        self.num_queries = 0


class AttentionProbe:
    """Collects over several texts. `begin` before a text's first step, `add` after its last, on an executor that keeps
    everything as f16."""

    def __init__(self, program: Program, presets: Mapping[str, Sequence[Bits]]) -> None:
        """`presets`: bits of each KV layer, (0, 0) where it stays exact."""
        self._layers = [attends[0] for attends in program.attends_by_kv_layer]
        self._sinks = [None if op.sinks is None else read_vector(op.sinks).astype(np.float32) for op in self._layers]
        self._presets = presets
        self._sums: dict[tuple[int, Bits], _Sums] = {
            (layer, bits[layer]): _Sums(op.num_heads)
            for bits in presets.values()
            for layer, op in enumerate(self._layers)
            if bits[layer] != (0, 0)
        }

    def begin(self, executor: ExecutorProtocol, sequence: int) -> None:
        """The next steps' queries are kept."""
        del sequence  # it is empty
        if self._sums:
            executor.record_queries(QUERY_STRIDE)

    def add(self, executor: ExecutorProtocol, sequence: int) -> None:
        """Compares, for the text that `sequence` holds."""
        if not self._sums or executor.length(sequence) > _MOST_TOKENS:
            return
        for layer, op in enumerate(self._layers):
            wanted = [bits for of_layer, bits in self._sums if of_layer == layer]
            if not wanted:
                continue
            positions, queries = executor.recorded_queries(layer)
            is_late = positions >= 2 * PAGE_TOKENS  # others read nothing that is encoded
            if is_late.any():
                kept = executor.read_kv(sequence, layer, 0, 0)
                exact = _Exact(op, self._sinks[layer], positions[is_late], queries[is_late], *kept)
                for bits in wanted:
                    exact.compare(*executor.read_kv(sequence, layer, *bits), self._sums[layer, bits])
        executor.record_queries(0)

    def losses(self, kv: str) -> list[KvLayerRow]:
        """Of one preset's encoded layers, by layer; empty when nothing was compared."""
        found = []
        for layer in range(len(self._layers)):
            sums = self._sums.get((layer, self._presets[kv][layer]))
            if sums is None or not sums.num_queries:
                continue
            by_head = np.maximum(sums.divergence / sums.num_queries, 0)  # rounding may take it below
            worst = int(by_head.argmax())
            error = sums.error / sums.power if sums.power else 0.0
            found.append(KvLayerRow(kv, layer, float(by_head.mean()), worst, float(by_head[worst]), error))
        return found


class _Exact:
    """One layer's attention of one text as it is; queries of a KV head's group lie behind one another."""

    def __init__(
        self, op: Attend, sinks: Floats | None, positions: NDArray[np.int32], queries: Floats, k: Floats, v: Floats
    ) -> None:
        """sinks [heads]; queries [n, heads, dim]; k and v [kv_heads, tokens, dim]."""
        self._op = op
        self._group = op.num_heads // op.num_kv_heads
        self._num_queries = len(positions)
        by_kv_head = queries.reshape(len(positions), op.num_kv_heads, self._group, -1).transpose(1, 2, 0, 3)
        self._queries = np.ascontiguousarray(by_kv_head).reshape(op.num_kv_heads, len(positions) * self._group, -1)
        places = np.arange(k.shape[1])
        self._hidden = np.tile(places > positions[:, None], (self._group, 1))
        pages = places // PAGE_TOKENS
        self._is_coded = np.tile(pages < positions[:, None] // PAGE_TOKENS - 1, (self._group, 1))
        self._scores = [q @ keys.T for q, keys in zip(self._queries, k, strict=True)]
        none = np.full(op.num_heads, -np.inf, np.float32)
        self._sinks = np.repeat(none if sinks is None else sinks, len(positions)).reshape(op.num_kv_heads, -1)
        self._logs = [self._log_weights(head, scores) for head, scores in enumerate(self._scores)]
        self._outs = [np.exp(logs[:, 1:]) @ values for logs, values in zip(self._logs, v, strict=True)]
        self._v = v

    def compare(self, k: Floats, v: Floats, sums: _Sums) -> None:
        """Adds what encoded keys and values change."""
        for head, (exact, out) in enumerate(zip(self._logs, self._outs, strict=True)):
            scores = np.where(self._is_coded, self._queries[head] @ k[head].T, self._scores[head])
            coded = self._log_weights(head, scores)
            difference = np.subtract(exact, coded, where=np.isfinite(exact), out=np.zeros_like(exact))
            divergences = (np.exp(exact) * difference).sum(axis=1, dtype=np.float64)
            first = head * self._group
            sums.divergence[first : first + self._group] += divergences.reshape(self._group, -1).sum(axis=1)
            weights = np.exp(coded[:, 1:])
            change = (weights * self._is_coded) @ (v[head] - self._v[head]) + weights @ self._v[head] - out
            sums.error += float((change**2).sum(dtype=np.float64))
            sums.power += float((out**2).sum(dtype=np.float64))
        sums.num_queries += self._num_queries

    def _log_weights(self, head: int, scores: Floats) -> Floats:
        """Logarithms of the softmax of scores [n, tokens], -inf where hidden, behind that of the sink, -inf without."""
        scores = scores * np.float32(self._op.scale)
        if self._op.softcap:
            scores = np.float32(self._op.softcap) * np.tanh(scores / np.float32(self._op.softcap))
        scores = np.where(self._hidden, np.float32(-np.inf), scores)
        scores = np.concatenate([self._sinks[head][:, None], scores], axis=1)
        scores -= scores.max(axis=1, keepdims=True)
        result: Floats = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
        return result


def delicate_layers(rows: Sequence[KvLayerRow]) -> list[int]:
    """Layers one of whose heads suffers far more than the worst heads of most layers do; none where many are alike.

    By the worst head, since one that copies or that finds the beginning may be spoiled among eleven that are not.
    """
    if len(rows) < 4:
        return []
    worst = [row.worst_divergence for row in rows]
    limit = max(_DELICATE_NATS, _DELICATE_TIMES * float(np.median(worst)))
    found = [row.layer for row in rows if row.worst_divergence > limit]
    return found if len(found) <= len(rows) // 4 else []


def spoiling_layers(rows: Sequence[KvLayerRow]) -> list[int]:
    """The delicate layers if a good part of all that codes do to attention is theirs, so that leaving them exact may
    help."""
    layers = delicate_layers(rows)
    theirs = sum(row.divergence for row in rows if row.layer in layers)
    return layers if theirs > _SPOILING_SHARE * sum(row.divergence for row in rows) else []


def layers_text(layers: Sequence[int]) -> str:
    """Layers as kv= takes them: "0-1+5"."""
    spans: list[list[int]] = []
    for layer in sorted(layers):
        if spans and spans[-1][1] == layer - 1:
            spans[-1][1] = layer
        else:
            spans.append([layer, layer])
    return "+".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)
