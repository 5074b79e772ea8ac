"""Times the executor itself, without sampling and text, so that the figures compare with llama-bench's."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable
from dataclasses import KW_ONLY, InitVar, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..engine.schedule.ledger import Ledger, LedgerRow
from ..plan.kv_pages import KvLayer, kv_layers, kv_needs, num_kv_layers
from ..plan.kv_presets import parse_kv
from ..plan.machine import DeviceProfile
from ..plan.speed import kv_read_bytes
from ..program import Head, Program

if TYPE_CHECKING:
    from .._native import Executor

# Real keys and values that are repeated up to the wanted depth; llama.cpp's peer (kvdepth) tiles as many.
TILE_TOKENS = 256
WARM_UP_STEPS = 2
_SEED = 1
# Streamed decode is steady when a block of warm-up finds not even this much more of its experts in memory than the one
# before. Blocks have at least so many tokens; a hit rate that still climbs after the last one is taken as it is.
_STEADY_GAIN = 0.01
_SETTLE_TOKENS = 32
_MOST_SETTLE_BLOCKS = 8

Kind = Literal["prefill", "decode", "prefill_cold", "decode_cold"]


@dataclass(frozen=True, slots=True)
class Cost:
    """What one token takes, from the program alone."""

    weight_bytes: int  # read for one decoded token
    ops_without_head: int  # integer operations of one prefilled token, two a product
    head_ops: int
    kv_layers: tuple[KvLayer, ...]
    state_bytes: int = 0  # of records, read and written for one decoded token

    def sequence_bytes(self, depth: float) -> float:
        """What a decoded token at `depth` reads and writes of its own sequence: cache and records."""
        return kv_read_bytes(self.kv_layers, depth) + self.state_bytes


def cost_of(program: Program, weight_bytes: int, ops: int, kv: str) -> Cost:
    """The cost of a token, from the plan's `weight_bytes_per_token` and `ops_per_token`."""
    head_ops = sum(2 * op.weight.num_values for op in program.ops if isinstance(op, Head))
    plan = parse_kv(kv, num_kv_layers(program))
    state_bytes = kv_needs(program, plan).state_traffic_bytes
    return Cost(weight_bytes, ops - head_ops, head_ops, tuple(kv_layers(program, plan)), state_bytes)


@dataclass(frozen=True, slots=True)
class Measurement:
    """One figure: the median over `samples`, which are the repetitions' tokens a second.

    "prefill_cold" and "decode_cold" are of streamed models: the first tokens after loading, when no expert is in memory
    yet. "prefill" and "decode" of such a model are its steady state: experts in memory are what earlier, other tokens
    left there.
    """

    kind: Kind
    depth: int
    tokens: int
    batch: int
    samples: tuple[float, ...]
    kv_tiled: bool
    percent_of_bandwidth: float | None = None
    percent_of_int8_peak: float | None = None
    hit_rate: float | None = None  # of streamed experts, over all samples
    bytes_read_per_token: float | None = None  # from disk
    warm_up_tokens: int = 0  # a sequence, before the first sample

    @property
    def tokens_per_second(self) -> float:
        """The median of the repetitions; of a batch, all sequences together."""
        return statistics.median(self.samples)

    def to_dict(self) -> dict[str, Any]:
        """As `kamado bench --json` prints it."""
        values: dict[str, Any] = {
            "kind": self.kind,
            "depth": self.depth,
            "tokens": self.tokens,
            "batch": self.batch,
            "tokens_per_second": round(self.tokens_per_second, 3),
            "milliseconds_per_token": round(1000 * self.batch / self.tokens_per_second, 4),
            "samples": [round(sample, 3) for sample in self.samples],
            "percent_of_bandwidth": self.percent_of_bandwidth,
            "percent_of_int8_peak": self.percent_of_int8_peak,
        }
        if self.bytes_read_per_token is not None:
            values["hit_rate"] = None if self.hit_rate is None else round(self.hit_rate, 4)
            values["bytes_read_per_token"] = round(self.bytes_read_per_token)
            values["warm_up_tokens"] = self.warm_up_tokens
        if self.kv_tiled:
            values["kv"] = "tiled: for speed only"
        return values


@dataclass
class Bench:
    """Runs prefill and decode on an executor that it does not own.

    Tokens are random, and no repetition gets those of another: a streamed model would find their experts in memory.
    `ledger` reads what streamed experts cost so far, None when all are resident. `seed` makes another order of tokens;
    the same seed makes the same tokens in every process.
    """

    executor: Executor
    cost: Cost
    _: KW_ONLY
    max_rows: int
    profile: DeviceProfile | None
    repetitions: int = 3
    clock: Callable[[], float] = time.perf_counter
    ledger: Callable[[], Ledger | None] = lambda: None
    seed: InitVar[int] = _SEED

    def __post_init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)

    def prefill(self, tokens: int) -> Measurement:
        """`tokens` into an empty sequence, logits of the last one only. One untimed run goes before."""
        self._prefill_once(tokens)
        before = self.ledger()
        samples = [self._prefill_once(tokens) for _ in range(self.repetitions)]
        return self._prefill_result("prefill", tokens, samples, before, warm_up_tokens=tokens)

    def prefill_cold(self, tokens: int) -> Measurement:
        """As `prefill`, once, with nothing before it: the first thing that a freshly loaded model does."""
        before = self.ledger()
        return self._prefill_result("prefill_cold", tokens, [self._prefill_once(tokens)], before, warm_up_tokens=0)

    def _prefill_once(self, tokens: int) -> float:
        """Tokens a second."""
        sequence = self.executor.create_sequence()
        try:
            prompt = self._tokens(tokens)
            start = self.clock()
            self._append(sequence, prompt)
            return tokens / (self.clock() - start)
        finally:
            self.executor.free_sequence(sequence)

    def _prefill_result(
        self, kind: Kind, tokens: int, samples: list[float], before: Ledger | None, *, warm_up_tokens: int
    ) -> Measurement:
        rate = statistics.median(samples)
        added = self._added(before)
        ops = self.cost.ops_without_head * tokens + self.cost.head_ops
        peak = self.profile.int8_ops_per_second if self.profile else None
        return Measurement(
            kind,
            0,
            tokens,
            1,
            tuple(samples),
            False,
            percent_of_int8_peak=_percent(ops * rate / tokens, peak),
            hit_rate=None if added is None else added.hit_rate,
            bytes_read_per_token=None if added is None else added.bytes_read / (tokens * len(samples)),
            warm_up_tokens=warm_up_tokens,
        )

    def decode(self, tokens: int, depth: int, batch: int = 1) -> Measurement:
        """`tokens` steps of one token for each of `batch` sequences that hold `depth` tokens already.

        Of a streamed model, the steady state: other tokens go before until no more of their experts are found in
        memory than before.
        """
        return self._decode("decode", tokens, depth, batch)

    def decode_cold(self, tokens: int, batch: int = 1) -> Measurement:
        """The first `tokens` steps of a freshly loaded model, once, the very first step included."""
        return self._decode("decode_cold", tokens, 0, batch)

    def _decode(self, kind: Kind, tokens: int, depth: int, batch: int) -> Measurement:
        is_cold = kind == "decode_cold"
        warm_up = 0
        sequences = [self.executor.create_sequence() for _ in range(batch)]
        try:
            for sequence in sequences:
                self._fill(sequence, depth)
                self.executor.mark_reuse(sequence)
            samples = []
            if not is_cold:
                warm_up = self._settle(sequences, tokens, depth) + WARM_UP_STEPS
            before = self.ledger()
            for _ in range(1 if is_cold else self.repetitions):
                if not is_cold:
                    self._decode_steps(sequences, WARM_UP_STEPS)
                start = self.clock()
                self._decode_steps(sequences, tokens)
                samples.append(tokens * batch / (self.clock() - start))
                for sequence in sequences:
                    self.executor.truncate(sequence, depth)
        finally:
            for sequence in sequences:
                self.executor.free_sequence(sequence)
        rate = statistics.median(samples)
        added = self._added(before)
        num_steps = len(samples) * (tokens + (0 if is_cold else WARM_UP_STEPS))
        # A step reads the weights once and what each sequence keeps; a batch may read more experts than counted here.
        step_bytes = self.cost.weight_bytes + batch * self.cost.sequence_bytes(depth + tokens / 2)
        profile = self.profile
        return Measurement(
            kind,
            depth,
            tokens,
            batch,
            tuple(samples),
            kv_tiled=depth > TILE_TOKENS,
            percent_of_bandwidth=_percent(
                step_bytes * rate / batch, profile.read_bytes_per_second if profile else None
            ),
            percent_of_int8_peak=_percent(
                (self.cost.ops_without_head + self.cost.head_ops) * rate,
                profile.int8_ops_per_second if profile else None,
            ),
            hit_rate=None if added is None else added.hit_rate,
            bytes_read_per_token=None if added is None else added.bytes_read / (num_steps * batch),
            warm_up_tokens=warm_up,
        )

    def _settle(self, sequences: list[int], tokens: int, depth: int) -> int:
        """Decodes until the hit rate of streamed experts stops rising; tokens that each sequence decoded. 0 when all
        are resident."""
        if self.ledger() is None:
            return 0
        last = -1.0
        num_tokens = 0
        for _ in range(_MOST_SETTLE_BLOCKS):
            before = self.ledger()
            for done in range(0, max(tokens, _SETTLE_TOKENS), tokens):  # no sequence may grow beyond what was planned
                steps = min(tokens, max(tokens, _SETTLE_TOKENS) - done)
                self._decode_steps(sequences, steps)
                num_tokens += steps
                for sequence in sequences:
                    self.executor.truncate(sequence, depth)
            added = self._added(before)
            rate = (added.hit_rate if added is not None else None) or 0.0
            if rate < last + _STEADY_GAIN:
                break
            last = rate
        return num_tokens

    def _added(self, before: Ledger | None) -> LedgerRow | None:
        """What streamed experts cost since `before`; None when all are resident."""
        now = self.ledger()
        return None if now is None or before is None else now.since(before).total

    def _tokens(self, count: int) -> NDArray[np.int32]:
        return self._random.integers(0, self.executor.vocab_size, count, dtype=np.int32)

    def _fill(self, sequence: int, depth: int) -> None:
        if depth > 0:
            self._append(sequence, self._tokens(min(depth, TILE_TOKENS)))
        if depth > TILE_TOKENS:
            self.executor.tile_kv(sequence, depth)

    def _append(self, sequence: int, tokens: NDArray[np.int32]) -> None:
        ids = np.array([sequence], dtype=np.int32)
        for begin in range(0, len(tokens), self.max_rows):
            chunk = tokens[begin : begin + self.max_rows]
            is_last = begin + len(chunk) == len(tokens)
            logit_rows = np.array([len(chunk) - 1] if is_last else [], dtype=np.int32)
            self.executor.step(ids, np.array([len(chunk)], dtype=np.int32), chunk, logit_rows)

    def _decode_steps(self, sequences: list[int], steps: int) -> None:
        ids = np.array(sequences, dtype=np.int32)
        counts = np.ones(len(sequences), dtype=np.int32)
        rows = np.arange(len(sequences), dtype=np.int32)
        for tokens in self._tokens(steps * len(sequences)).reshape(steps, len(sequences)):
            self.executor.step(ids, counts, tokens, rows)


def _percent(rate: float, limit: float | None) -> float | None:
    return round(100 * rate / limit, 1) if limit else None


def reset_peak_rss() -> None:
    """Forgets the peak so far where the kernel can (Linux): measuring the limits took memory that is no model's."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as control:
        control.write("5")
