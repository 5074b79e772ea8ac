"""How a budget is split: all resident where it fits, else experts through slots that take what the rest leaves."""

from __future__ import annotations

import dataclasses
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass

from ..program import Program
from . import sizes
from .kv_pages import PAGE_TOKENS, KvNeeds, kv_needs, pages_for
from .kv_presets import KvPlan
from .overhead import CONSTRAINT_LIBRARY_BYTES, LIBRARY_BYTES, planned_kernel_bytes
from .sizes import ExpertNeeds

DEFAULT_CONTEXT = 4096
DEFAULT_MAX_ROWS = 512
_ENCODER_KV_TOKENS = 8 * PAGE_TOKENS  # of the texts that a step of an encoder embeds together: a page each at least
LEAST_CONTEXT = 256  # what the message of a budget that is too small falls back to

MAX_SEQUENCES = 64  # of one executor
# Each sequence of a cache with codes or windows holds exact pages, so fewer of them: one for every so many tokens.
_SEQUENCE_TOKENS = 2048
_LEAST_SEQUENCES = 4
_REUSE_POINTS = 8  # places to which conversations go back, kept exactly
_MARKS_A_SEQUENCE = 4  # records beyond: a system prompt, a turn's start, a prompt's and an answer's end
# Both are halved, twice at most, where their records would take more than this part of the budget.
_RECORD_SHARE = 8
_FEWER = (1, 2, 4)

_LOGIT_BYTES = 32 << 20  # scratch for logits: 16 rows at the least, whatever the vocabulary
_STREAMED_LOGIT_BYTES = 8 << 20  # where every byte is wanted for slots
_MIN_LOGIT_ROWS = 16

# Rows of a prefill step that a plan chooses from. Each expert a step needs is read once a layer, so larger steps read
# less; smaller ones leave more for slots.
_STEP_ROWS = (2048, 1024, 512, 256, 128, 64, 32)
_SCRATCH_SHARE = 8  # the step's buffers take at most this part of what they share with the slots

# Pages of model files that loading and reading leave behind before they are dropped.
_FILE_CACHE_BYTES = 8 << 20


def choose_logit_rows(vocab_size: int, max_rows: int, max_bytes: int = _LOGIT_BYTES) -> int:
    """Rows of logits a step may return: 32 MiB of them, 16 at the least."""
    return min(max_rows, max(_MIN_LOGIT_ROWS, max_bytes // (4 * vocab_size)))


@dataclass(frozen=True, slots=True)
class Split:
    """Who gets how many bytes."""

    context: int
    kv_tokens: int
    max_rows: int
    max_logit_rows: int
    max_sequences: int
    max_records: int
    reuse_points: int
    num_threads: int
    cpus: int  # of the machine
    owners: Mapping[str, int]  # as they are told; of the experts and the kernel, which depend on the rest, 0
    expert_bytes: int | None = None  # None: resident

    @property
    def fixed(self) -> int:
        """All but the experts, and the kernel's share, which grows with them."""
        return sum(self.owners.values())

    def with_more(self, owner: str, num_bytes: int) -> Split:
        """The same, but that an owner takes so much more."""
        return dataclasses.replace(self, owners={**self.owners, owner: self.owners[owner] + num_bytes})

    def kernel(self, resident_bytes: int) -> int:
        """The kernel's share beside `resident_bytes` of everything else."""
        return planned_kernel_bytes(resident_bytes, self.num_threads, self.cpus)

    def resident_bytes(self, needs: ExpertNeeds) -> int:
        """All but the kernel's share."""
        return self.fixed + (needs.packed_bytes if self.expert_bytes is None else self.expert_bytes)

    def most_resident_bytes(self, memory_bytes: int) -> int:
        """The most that fits into `memory_bytes` with the kernel's share of it, to the byte."""
        low = memory_bytes - self.kernel(max(0, memory_bytes))
        high = memory_bytes - self.kernel(max(0, low))
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if middle + self.kernel(middle) <= memory_bytes else (low, middle - 1)
        return low

    def peak_bytes(self, needs: ExpertNeeds) -> int:
        """All, at the worst moment."""
        resident = self.resident_bytes(needs)
        return resident + self.kernel(resident)

    def bytes_by_owner(self, needs: ExpertNeeds) -> dict[str, int]:
        """The owners with their bytes, of experts and the kernel too."""
        resident = self.resident_bytes(needs)
        return {**self.owners, "experts": resident - self.fixed, "kernel": self.kernel(resident)}


class Planner:
    """Tries splits of a budget, the most useful one first."""

    def __init__(
        self,
        program: Program,
        kv: KvPlan,
        beside: Mapping[str, int],
        num_threads: int,
        cpus: int,
        kv_tokens: int | None,
        max_rows: int | None,
        max_logit_rows: int | None,
        max_sequences: int | None,
    ) -> None:
        """`beside`: what the interpreter, constraints and the worker take."""
        self.needs = sizes.expert_needs(program)
        self.num_threads = num_threads
        self._cpus = cpus
        self._program = program
        self._given_rows = max_rows
        self._given_logit_rows = max_logit_rows
        self._default_kv_tokens = 0 if program.is_causal else _ENCODER_KV_TOKENS
        self._kv_tokens = kv_tokens
        self._scratch = sizes.scratch_needs(program)
        self._given_sequences = max_sequences
        self.kv: KvNeeds = kv_needs(program, kv)
        self._weights = sizes.dense_weight_bytes(program)
        self._beside = beside

    def best(self, memory_bytes: int, context: int | None) -> Split:
        """The split to load with; the first one tried when none fits."""
        return self._with_records(self._best(memory_bytes, context), memory_bytes)

    def num_conversations(self, split: Split, memory_bytes: int) -> int:
        """How many conversations of the split's context fit at once, with steps, slots and reuse points as they are."""
        page_tokens = round_to_pages(split.context)

        def fits(count: int) -> bool:
            owners = self._owners(split.context, count * page_tokens, count, split.reuse_points, split.max_rows,
                                  split.max_logit_rows)  # fmt: skip
            return dataclasses.replace(split, owners=owners).peak_bytes(self.needs) <= memory_bytes

        return bisect_left(range(1, MAX_SEQUENCES + 1), True, key=lambda count: not fits(count))

    def _with_records(self, split: Split, memory_bytes: int) -> Split:
        """With as many more records as are left room for: marks of conversations that can be gone back to."""
        free_bytes = split.most_resident_bytes(memory_bytes) - split.resident_bytes(self.needs)
        if not split.max_records or free_bytes <= 0:
            return split
        more = min(_MARKS_A_SEQUENCE * split.max_sequences, free_bytes // self.kv.record_bytes)
        split = split.with_more("records", more * self.kv.record_bytes)
        return dataclasses.replace(split, max_records=split.max_records + more)

    def _best(self, memory_bytes: int, context: int | None) -> Split:
        contexts = [context] if context is not None else self._contexts()
        limits = [memory_bytes // _RECORD_SHARE, 0] if self.kv.record_bytes else [0]
        first: Split | None = None
        for tokens in contexts:
            for record_bytes in limits:
                # Everything resident, if need be with smaller steps and fewer rows of logits.
                for logit_bytes in (_LOGIT_BYTES, _STREAMED_LOGIT_BYTES):
                    for rows in self._rows(DEFAULT_MAX_ROWS):
                        split = self._split(tokens, rows, logit_bytes, record_bytes)
                        first = first or split
                        if split.peak_bytes(self.needs) <= memory_bytes:
                            return split
                # One token's experts at least: with less, each token would find none of the last one's.
                streamed = self._streamed(tokens, memory_bytes, self.needs.cycle_expert_bytes, record_bytes)
                if streamed is not None:
                    return streamed
        for tokens in contexts:
            streamed = self._streamed(tokens, memory_bytes, self.needs.least_bytes, 0)
            if streamed is not None:
                return streamed
        assert first is not None
        return self.least(first.context) if self.needs.num_experts else first

    def least(self, context: int) -> Split:
        """The split with the smallest peak."""
        split = self._split(context, min(self._rows(DEFAULT_MAX_ROWS)), _STREAMED_LOGIT_BYTES, 0)
        if self.needs.num_experts and self.needs.least_bytes < self.needs.packed_bytes:
            split = dataclasses.replace(split, expert_bytes=self.needs.least_bytes)
        # In whole pages, since a cgroup rounds its limit down to them.
        return split.with_more("file_cache", -split.resident_bytes(self.needs) % sizes.FILE_PAGE_BYTES)

    def _streamed(self, context: int, memory_bytes: int, least_expert_bytes: int, record_bytes: int) -> Split | None:
        """Streamed with what the rest leaves; None when that is less than `least_expert_bytes`, or all would fit."""
        if not self.needs.num_experts or least_expert_bytes >= self.needs.packed_bytes:
            return None
        for rows in self._rows(_STEP_ROWS[0], at_most=round_to_pages(context)):
            split = self._split(context, rows, _STREAMED_LOGIT_BYTES, record_bytes)
            expert_bytes = split.most_resident_bytes(memory_bytes) - split.fixed
            scratch = split.owners["scratch"]
            is_smallest = rows == _STEP_ROWS[-1] or self._given_rows is not None
            if expert_bytes >= least_expert_bytes and (
                scratch * _SCRATCH_SHARE <= expert_bytes + scratch or is_smallest
            ):
                # The executor takes whole huge pages.
                expert_bytes = min(expert_bytes, self.needs.most_useful_bytes)
                return dataclasses.replace(
                    split, expert_bytes=max(least_expert_bytes, expert_bytes & -sizes.HUGE_PAGE_BYTES)
                )
        return None

    def _contexts(self) -> list[int]:
        tokens = [min(self._program.context_length, DEFAULT_CONTEXT)]
        while tokens[-1] // 2 >= LEAST_CONTEXT:
            tokens.append(tokens[-1] // 2)
        return tokens

    def _rows(self, largest: int, at_most: int | None = None) -> list[int]:
        if self._given_rows is not None:
            return [self._given_rows]
        if not self._program.is_causal:  # a text is computed in one step
            return [round_to_pages(min(self._program.context_length, DEFAULT_CONTEXT))]
        return [n for n in _STEP_ROWS if n <= largest and (at_most is None or n <= max(at_most, _STEP_ROWS[-1]))]

    def _kept(self, kv_tokens: int, record_bytes: int) -> tuple[int, int]:
        """(sequences, reuse points): the usual ones, or fewer where their records take more than `record_bytes`."""
        if self.kv.can_reuse_anywhere:
            return self._given_sequences or MAX_SEQUENCES, 0
        usual = min(MAX_SEQUENCES, max(_LEAST_SEQUENCES, kv_tokens // _SEQUENCE_TOKENS))
        for divisor in _FEWER:
            sequences = self._given_sequences or max(1, usual // divisor)
            points = max(2, _REUSE_POINTS // divisor)
            records = self.kv.least_records(sequences, points)
            if self.kv.records_bytes(sequences, records) <= record_bytes or not self.kv.record_bytes:
                break
        return sequences, points

    def _split(self, context: int, rows: int, logit_bytes: int, record_bytes: int) -> Split:
        kv_tokens = round_to_pages(max(context, self._kv_tokens or self._default_kv_tokens))
        sequences, points = self._kept(kv_tokens, record_bytes)
        logit_rows = self._given_logit_rows or choose_logit_rows(self._program.output_width, rows, logit_bytes)
        owners = self._owners(context, kv_tokens, sequences, points, rows, logit_rows)
        records = self.kv.least_records(sequences, points)
        return Split(
            context, kv_tokens, rows, logit_rows, sequences, records, points, self.num_threads, self._cpus, owners
        )

    def _owners(
        self, context: int, kv_tokens: int, sequences: int, points: int, rows: int, logit_rows: int
    ) -> dict[str, int]:
        """Who takes how many bytes, experts and the kernel aside."""
        constraints, worker = self._beside["constraints"], self._beside["worker"]
        records = self.kv.records_bytes(sequences, self.kv.least_records(sequences, points))
        kv_bytes = self.kv.bytes_of(kv_tokens=kv_tokens, max_sequences=sequences, max_rows=rows, reuse_points=points)
        return {
            "weights": self._weights,
            "experts": 0,
            "kv": kv_bytes,
            **({"records": records} if records else {}),
            "scratch": self._scratch.bytes_of(rows, logit_rows, self.num_threads),
            "interpreter": self._beside["interpreter"] + sizes.transcript_bytes(kv_tokens),
            **({"constraints": constraints} if constraints else {}),
            "file_cache": sizes.table_page_bytes(self._program, context) + _FILE_CACHE_BYTES,
            "libraries": LIBRARY_BYTES + (CONSTRAINT_LIBRARY_BYTES if constraints else 0),
            "kernel": 0,
            **({"worker": worker} if worker else {}),
        }


def round_to_pages(num_tokens: int) -> int:
    """`num_tokens` rounded up to whole KV pages."""
    return pages_for(num_tokens) * PAGE_TOKENS
