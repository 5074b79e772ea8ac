"""Times the executor itself, without sampling and text, so that the figures compare with llama-bench's."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..memory.forecast import kv_read_bytes
from ..memory.kv_presets import KvLayer, kv_layers, num_kv_layers, parse_kv
from ..memory.profile import DeviceProfile
from ..program import Head, Program

if TYPE_CHECKING:
    from .._native import Executor

# Real keys and values that are repeated up to the wanted depth; llama.cpp's peer (kvdepth) tiles as many.
TILE_TOKENS = 256
WARM_UP_STEPS = 2
_SEED = 1


@dataclass(frozen=True, slots=True)
class Cost:
    """What one token takes, from the program alone."""

    weight_bytes: int  # read for one decoded token
    ops_without_head: int  # integer operations of one prefilled token, two a product
    head_ops: int
    kv_layers: tuple[KvLayer, ...]

    def kv_bytes(self, depth: float) -> float:
        """Cache bytes that a decoded token at `depth` reads."""
        return kv_read_bytes(self.kv_layers, depth)


def cost_of(program: Program, weight_bytes: int, ops: int, kv: str) -> Cost:
    """The cost of a token, from the plan's `weight_bytes_per_token` and `ops_per_token`."""
    head_ops = sum(2 * op.weight.num_values for op in program.ops if isinstance(op, Head))
    layers = kv_layers(program, parse_kv(kv, num_kv_layers(program)))
    return Cost(weight_bytes, ops - head_ops, head_ops, tuple(layers))


@dataclass(frozen=True, slots=True)
class Measurement:
    """One figure: the median over `samples`, which are the repetitions' tokens a second."""

    kind: Literal["prefill", "decode"]
    depth: int
    tokens: int
    batch: int
    samples: tuple[float, ...]
    kv_tiled: bool
    percent_of_bandwidth: float | None = None
    percent_of_int8_peak: float | None = None

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
        if self.kv_tiled:
            values["kv"] = "tiled: for speed only"
        return values


class Bench:
    """Runs prefill and decode on an executor that it does not own. Tokens are random, the same in every run."""

    def __init__(
        self,
        executor: Executor,
        cost: Cost,
        *,
        max_rows: int,
        profile: DeviceProfile | None,
        repetitions: int = 3,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._executor = executor
        self._cost = cost
        self._max_rows = max_rows
        self._profile = profile
        self._repetitions = repetitions
        self._clock = clock
        self._random = np.random.default_rng(_SEED)

    def prefill(self, tokens: int) -> Measurement:
        """`tokens` into an empty sequence, logits of the last one only. One untimed run goes before."""
        samples: list[float] = []
        for repetition in range(self._repetitions + 1):
            sequence = self._executor.create_sequence()
            try:
                prompt = self._tokens(tokens)
                start = self._clock()
                self._append(sequence, prompt)
                seconds = self._clock() - start
            finally:
                self._executor.free_sequence(sequence)
            if repetition:
                samples.append(tokens / seconds)
        rate = statistics.median(samples)
        ops = self._cost.ops_without_head * tokens + self._cost.head_ops
        peak = self._profile.int8_ops_per_second if self._profile else None
        return Measurement(
            "prefill", 0, tokens, 1, tuple(samples), False, percent_of_int8_peak=_percent(ops * rate / tokens, peak)
        )

    def decode(self, tokens: int, depth: int, batch: int = 1) -> Measurement:
        """`tokens` steps of one token for each of `batch` sequences that hold `depth` tokens already."""
        sequences = [self._executor.create_sequence() for _ in range(batch)]
        try:
            for sequence in sequences:
                self._fill(sequence, depth)
                self._executor.mark_reuse(sequence)
            samples = []
            for _ in range(self._repetitions):
                self._decode_steps(sequences, WARM_UP_STEPS)
                start = self._clock()
                self._decode_steps(sequences, tokens)
                samples.append(tokens * batch / (self._clock() - start))
                for sequence in sequences:
                    self._executor.truncate(sequence, depth)
        finally:
            for sequence in sequences:
                self._executor.free_sequence(sequence)
        rate = statistics.median(samples)
        # A step reads the weights once and each sequence's cache; a batch may read more experts than are counted here.
        step_bytes = self._cost.weight_bytes + batch * self._cost.kv_bytes(depth + tokens / 2)
        profile = self._profile
        return Measurement(
            "decode",
            depth,
            tokens,
            batch,
            tuple(samples),
            kv_tiled=depth > TILE_TOKENS,
            percent_of_bandwidth=_percent(
                step_bytes * rate / batch, profile.read_bytes_per_second if profile else None
            ),
            percent_of_int8_peak=_percent(
                (self._cost.ops_without_head + self._cost.head_ops) * rate,
                profile.int8_ops_per_second if profile else None,
            ),
        )

    def _tokens(self, count: int) -> NDArray[np.int32]:
        return self._random.integers(0, self._executor.vocab_size, count, dtype=np.int32)

    def _fill(self, sequence: int, depth: int) -> None:
        if depth > 0:
            self._append(sequence, self._tokens(min(depth, TILE_TOKENS)))
        if depth > TILE_TOKENS:
            self._executor.tile_kv(sequence, depth)

    def _append(self, sequence: int, tokens: NDArray[np.int32]) -> None:
        ids = np.array([sequence], dtype=np.int32)
        for begin in range(0, len(tokens), self._max_rows):
            chunk = tokens[begin : begin + self._max_rows]
            is_last = begin + len(chunk) == len(tokens)
            logit_rows = np.array([len(chunk) - 1] if is_last else [], dtype=np.int32)
            self._executor.step(ids, np.array([len(chunk)], dtype=np.int32), chunk, logit_rows)

    def _decode_steps(self, sequences: list[int], steps: int) -> None:
        ids = np.array(sequences, dtype=np.int32)
        counts = np.ones(len(sequences), dtype=np.int32)
        rows = np.arange(len(sequences), dtype=np.int32)
        for tokens in self._tokens(steps * len(sequences)).reshape(steps, len(sequences)):
            self._executor.step(ids, counts, tokens, rows)


def _percent(rate: float, limit: float | None) -> float | None:
    return round(100 * rate / limit, 1) if limit else None


def reset_peak_rss() -> None:
    """Forgets the peak so far where the kernel can (Linux): measuring the limits took memory that is no model's."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as control:
        control.write("5")
