"""`kamado bench` on a scripted executor: what is run, what is counted, what is printed."""

from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.typing import NDArray

from kamado.cli.measure import Bench, Cost, cost_of
from kamado.memory.kv_presets import KvLayer
from kamado.memory.profile import DeviceProfile

PROFILE = DeviceProfile("cpu", 2, "avx2", read_bytes_per_second=1000.0, int8_ops_per_second=4000.0)


class ScriptedExecutor:
    """Every row takes one second of a clock that only it moves."""

    vocab_size = 50

    def __init__(self) -> None:
        self.now = 0.0
        self.lengths: dict[int, int] = {}
        self.steps: list[tuple[list[int], list[int], list[int]]] = []
        self.tiled: list[tuple[int, int]] = []
        self.marked: list[int] = []

    def clock(self) -> float:
        return self.now

    def create_sequence(self) -> int:
        self.lengths[len(self.lengths)] = 0
        return len(self.lengths) - 1

    def free_sequence(self, sequence: int) -> None:
        self.lengths[sequence] = -1

    def truncate(self, sequence: int, num_tokens: int) -> None:
        assert num_tokens <= self.lengths[sequence]
        self.lengths[sequence] = num_tokens

    def mark_reuse(self, sequence: int) -> None:
        self.marked.append(self.lengths[sequence])

    def tile_kv(self, sequence: int, num_tokens: int) -> None:
        self.tiled.append((self.lengths[sequence], num_tokens))
        self.lengths[sequence] = num_tokens

    def step(
        self,
        sequences: NDArray[np.int32],
        counts: NDArray[np.int32],
        tokens: NDArray[np.int32],
        logit_rows: NDArray[np.int32],
    ) -> NDArray[np.float32]:
        assert sequences.dtype == counts.dtype == tokens.dtype == logit_rows.dtype == np.int32
        assert counts.sum() == len(tokens)
        assert tokens.max() < self.vocab_size
        for sequence, count in zip(sequences.tolist(), counts.tolist(), strict=True):
            self.lengths[sequence] += count
        self.steps.append((sequences.tolist(), counts.tolist(), logit_rows.tolist()))
        self.now += len(tokens)
        return np.zeros((len(logit_rows), self.vocab_size), np.float32)


def make(executor: ScriptedExecutor, profile: DeviceProfile | None = PROFILE) -> Bench:
    layers = (KvLayer(None, 4 * 128, 0, 0), KvLayer(8, 4 * 128, 0, 0))
    cost = Cost(weight_bytes=100, ops_without_head=1000, head_ops=200, kv_layers=layers)
    return Bench(executor, cost, max_rows=8, profile=profile, repetitions=2, clock=executor.clock)  # type: ignore[arg-type]


def test_prefill_asks_for_one_row_of_logits_in_chunks() -> None:
    executor = ScriptedExecutor()
    result = make(executor).prefill(20)
    assert [(counts, rows) for _, counts, rows in executor.steps[:3]] == [([8], []), ([8], []), ([4], [3])]
    assert len(executor.steps) == 9  # one warm-up and two timed runs
    assert result.samples == (1.0, 1.0)
    # 1000 operations a token, and the head once for all 20: 1010 a second of 4000.
    assert result.percent_of_int8_peak == pytest.approx(100 * 1010 / 4000, abs=0.1)
    assert result.percent_of_bandwidth is None
    assert set(executor.lengths.values()) == {-1}


def test_decode_at_depth_tiles_real_tokens_and_says_so() -> None:
    executor = ScriptedExecutor()
    result = make(executor).decode(4, 1000)
    assert executor.tiled == [(256, 1000)]
    assert executor.marked == [1000]  # what every repetition goes back to
    assert result.kv_tiled
    assert result.to_dict()["kv"] == "tiled: for speed only"
    assert result.tokens_per_second == 1.0
    # weights, one layer's keys of 1002 tokens on average, the other's window of 8
    assert result.percent_of_bandwidth == pytest.approx(100 * (100 + 4 * 1002 + 4 * 8) / 1000, abs=0.1)


def test_a_batch_shares_the_weights() -> None:
    executor = ScriptedExecutor()
    result = make(executor).decode(4, 0, batch=3)
    assert executor.steps[0] == ([0, 1, 2], [1, 1, 1], [0, 1, 2])
    assert not result.kv_tiled
    assert result.tokens_per_second == 1.0
    assert result.to_dict()["milliseconds_per_token"] == 3000.0
    kv = 4 * 2 + 4 * 2
    assert result.percent_of_bandwidth == pytest.approx(100 * (100 + 3 * kv) / 3 / 1000, abs=0.1)


def test_without_limits_there_are_no_percentages() -> None:
    result = make(ScriptedExecutor(), None).decode(4, 0)
    assert json.loads(json.dumps(result.to_dict()))["percent_of_bandwidth"] is None


def test_cost_counts_head_and_cache() -> None:
    from pathlib import Path

    from kamado.checkpoint.types import Layout, TensorRef
    from kamado.program import Attend, Buffer, Head, Program

    x = Buffer("x", 8)
    head = TensorRef("head", Path("f"), 0, 4 * 8 * 10, (10, 8), Layout.F32)
    attend = Attend(x, x, x, x, 0, num_heads=2, num_kv_heads=1, head_dim=4, v_dim=4, scale=1.0, window=16)
    program = Program("a", (attend, Head(x, head)), 1, 8, 10, 64)
    cost = cost_of(program, 320, 1000, "exact")
    assert (cost.head_ops, cost.ops_without_head, cost.kv_bytes(100)) == (160, 840, 16 * 16)
