"""`kamado bench` on a scripted executor: what is run, what is counted, what is printed."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kamado.engine.executor_protocol import Ids
from kamado.engine.schedule.ledger import read_ledger
from kamado.measure.speed import Bench, Cost, cost_of
from kamado.plan.kv_pages import KvLayer
from kamado.plan.machine import DeviceProfile

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
        self.tokens: list[list[int]] = []

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

    def step(self, sequences: Ids, counts: Ids, tokens: Ids, logit_rows: Ids) -> NDArray[np.float32]:
        assert sequences.dtype == counts.dtype == tokens.dtype == logit_rows.dtype == np.int32
        assert counts.sum() == len(tokens)
        assert tokens.max() < self.vocab_size
        self.tokens.append(tokens.tolist())
        for sequence, count in zip(sequences.tolist(), counts.tolist(), strict=True):
            self.lengths[sequence] += count
        self.steps.append((sequences.tolist(), counts.tolist(), logit_rows.tolist()))
        self.now += len(tokens)
        return np.zeros((len(logit_rows), self.vocab_size), np.float32)


class StreamingExecutor(ScriptedExecutor):
    """One expert a token of a vocabulary of 50 000, read in 9 seconds when it was never needed before; the first
    `capacity` of them stay. A token's expert is the token modulo `experts`."""

    vocab_size = 50_000

    def __init__(self, experts: int = 40, capacity: int = 30) -> None:
        super().__init__()
        self.experts, self.capacity = experts, capacity
        self.resident: set[int] = set()
        self.hits = self.misses = 0

    def step(self, sequences: Any, counts: Any, tokens: NDArray[np.int32], logit_rows: Any) -> NDArray[np.float32]:
        for token in tokens.tolist():
            if token % self.experts in self.resident:
                self.hits += 1
                continue
            self.misses += 1
            self.now += 9
            if len(self.resident) < self.capacity:
                self.resident.add(token % self.experts)
        return super().step(sequences, counts, tokens, logit_rows)

    def ledger(self) -> dict[str, Any]:
        row = dict.fromkeys(("requests", "lookahead_hits", "lookahead_wrong"), 0)
        row |= dict.fromkeys(("read_seconds", "wait_seconds", "compute_seconds"), 0)
        row |= {"layer": 0, "hits": self.hits, "misses": self.misses, "bytes_read": 1000 * self.misses}
        return {
            "layers": [row], "resident": False, "slots": self.capacity, "slot_bytes": 0, "expert_record_bytes": 1000,
            "direct_io": True, "readers": 1, "busy_seconds": 0.0,
        }  # fmt: skip


def make_streamed(executor: StreamingExecutor, repetitions: int = 3) -> Bench:
    cost = Cost(weight_bytes=100, ops_without_head=1000, head_ops=200, kv_layers=())
    return Bench(
        executor, cost, max_rows=8, profile=None, repetitions=repetitions, clock=executor.clock,
        ledger=lambda: read_ledger(executor),
    )  # type: ignore[arg-type]  # fmt: skip


def test_no_repetition_decodes_the_tokens_of_another() -> None:
    for executor, bench in ((e := StreamingExecutor(), make_streamed(e)), (s := ScriptedExecutor(), make(s))):
        executor.vocab_size = 1 << 30
        bench.prefill(20)
        bench.decode(10, 4)
        tokens = [token for step in executor.tokens for token in step]
        assert len(set(tokens)) == len(tokens) > 80
        assert not executor.tiled


def test_a_streamed_model_is_measured_cold_and_steady() -> None:
    """By hand: a token takes 1 s when its expert is in memory, else 10; 30 of 40 experts stay."""
    executor = StreamingExecutor()
    cold = make_streamed(executor).decode_cold(16)
    assert (cold.kind, cold.depth, cold.tokens, cold.warm_up_tokens) == ("decode_cold", 0, 16, 0)
    assert len(executor.tokens) == 16  # the very first step counts, and nothing goes before it
    assert len(cold.samples) == 1
    misses = executor.misses
    assert misses >= 10  # 16 draws of 40
    assert cold.samples[0] == pytest.approx(16 / (16 + 9 * misses))
    assert cold.bytes_read_per_token == pytest.approx(1000 * misses / 16)
    assert cold.hit_rate == pytest.approx(1 - misses / 16)

    steady = make_streamed(executor).decode(64, 0)
    assert (steady.kind, len(steady.samples)) == ("decode", 3)
    assert steady.warm_up_tokens > 64  # blocks until the hit rate rises no more
    assert steady.hit_rate == pytest.approx(0.75, abs=0.1)
    assert steady.tokens_per_second > 1.5 * cold.tokens_per_second
    # The samples are of one state: no repetition finds what the one before it left.
    assert max(steady.samples) < 1.5 * min(steady.samples)
    document = json.loads(json.dumps(steady.to_dict()))
    assert document["kind"] == "decode"
    assert {"depth", "tokens", "tokens_per_second", "hit_rate", "bytes_read_per_token"} <= set(document)
    assert set(executor.lengths.values()) == {-1}


def test_a_resident_model_is_not_warmed_up_and_says_nothing_of_reading() -> None:
    executor = ScriptedExecutor()
    result = make(executor).decode(4, 0)
    assert len(executor.tokens) == 2 * (2 + 4)
    assert "hit_rate" not in result.to_dict()


def test_prefill_of_a_streamed_model_cold_and_steady() -> None:
    executor = StreamingExecutor()
    bench = make_streamed(executor, repetitions=2)
    cold, steady = bench.prefill_cold(40), bench.prefill(40)
    assert (cold.kind, steady.kind, len(cold.samples), len(steady.samples)) == ("prefill_cold", "prefill", 1, 2)
    assert cold.bytes_read_per_token is not None
    assert steady.bytes_read_per_token is not None
    assert cold.bytes_read_per_token > steady.bytes_read_per_token > 0
    assert executor.lengths == {0: -1, 1: -1, 2: -1, 3: -1}


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

    from kamado.files.types import Layout, TensorRef
    from kamado.program import Attend, Buffer, Head, Program, Record

    x = Buffer("x", 8)
    head = TensorRef("head", Path("f"), 0, 4 * 8 * 10, (10, 8), Layout.F32)
    attend = Attend(x, x, x, x, 0, num_heads=2, num_kv_heads=1, head_dim=4, v_dim=4, scale=1.0, window=16)
    program = Program("a", (attend, Head(x, head)), 1, 8, 10, 64)
    cost = cost_of(program, 320, 1000, "exact")
    assert (cost.head_ops, cost.ops_without_head, cost.sequence_bytes(100)) == (160, 840, 16 * 16)
    # A state is read and written whole, whatever the depth.
    kept = dataclasses.replace(program, states=(*program.states, Record("state", 4096)))
    deep = cost_of(kept, 320, 1000, "exact")
    assert (deep.state_bytes, deep.sequence_bytes(100)) == (8192, 16 * 16 + 8192)
