"""The plan: what a model will take before it is loaded, whether that fits, and how fast this machine could run it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from ..errors import MemoryBudgetError, UsageError
from ..files.types import Checkpoint
from ..program import Program
from . import sizes
from .budget import format_size, format_size_up
from .kv_pages import PAGE_TOKENS, KvLayer, KvNeeds, kv_layers, kv_needs, num_kv_layers, pages_for
from .kv_presets import Bits, KvPlan, parse_kv
from .machine import DeviceProfile, Machine, machine
from .overhead import CONSTRAINT_LIBRARY_BYTES, LIBRARY_BYTES, WORKER_BYTES, planned_kernel_bytes
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

_LOGIT_BYTES = 32 << 20  # scratch for logits: 16 rows at the least, whatever the vocabulary
_STREAMED_LOGIT_BYTES = 8 << 20  # where every byte is wanted for slots
_MIN_LOGIT_ROWS = 16

# Rows of a prefill step that a plan chooses from. Each expert a step needs is read once a layer, so larger steps read
# less; smaller ones leave more for slots.
_STEP_ROWS = (2048, 1024, 512, 256, 128, 64, 32)
_SCRATCH_SHARE = 8  # the step's buffers take at most this part of what they share with the slots

# CPython with NumPy and the engine, then the tokenizer's tables while they are built; mapped files are the libraries'
# (overhead.py). Measured resident peaks on Linux x86-64, CPython 3.11, 22 MiB of mapped files included: 78 MiB with 49k
# entries and 49k merges, 166 with 152k and 151k, 109 with 262k and none.
_INTERPRETER_BYTES = 24 << 20
_TOKEN_BYTES = 270
_SCORED_TOKEN_BYTES = 410  # entries with scores, which have no merges: 125 MiB in all with 262k, KV given back included
_MERGE_BYTES = 590
# Pages of model files that loading and reading leave behind before they are dropped.
_FILE_CACHE_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Plan:
    """The forecast that `load()` made. Bytes are of memory as a container counts it: this process, the cached pages of
    the model's files and of the libraries that run it, and the kernel's share.

    The two speeds are estimates from measured limits of this machine (`kamado bench --limits`): the least time that
    memory and integer units allow, so an upper bound; None when the limits were never measured.
    """

    model: str
    architecture: str
    context: int  # tokens of one conversation
    kv_tokens: int  # tokens of all conversations together
    kv: str  # the whole name: see kv_presets.parse_kv
    num_threads: int
    max_rows: int  # rows of a step
    max_logit_rows: int
    # weights, experts, kv, scratch, interpreter, constraints if planned for, file_cache, libraries, kernel,
    # worker where there may be one
    bytes_by_owner: dict[str, int]
    memory_bytes: int  # what may be used
    memory_limited_by: str  # "budget", "machine" or a cgroup's path
    least_bytes: int  # the least budget that works for the context that was asked for, else for `least_context`
    weight_bytes_per_token: int  # weights that one decoded token reads
    ops_per_token: int  # integer operations of one token, two a product, without attention
    decode_tokens_per_second: float | None = None  # estimate
    prefill_tokens_per_second: float | None = None  # estimate
    least_bytes_by_owner: Mapping[str, int] = field(default_factory=dict)
    least_context: int = LEAST_CONTEXT  # tokens that `least_bytes` is for
    shortest_bytes: int = 0  # the least budget for LEAST_CONTEXT tokens
    num_experts: int = 0  # in all layers together; 0: dense
    expert_bytes: int | None = None  # for slots and read buffers when experts are streamed; None: all are resident
    expert_slots: int = 0  # experts that are in memory at once, roughly when layers differ in size
    expert_bytes_per_token: int = 0  # read from disk for a token that finds none of its experts in memory
    miss_bytes_per_token: int = 0  # with flat routing, the worst for a cache
    kv_element: str = "f16"  # of exact pages: "f16" or "f32"
    kv_bits: tuple[Bits, ...] = ()  # (keys, values) of each KV layer, (0, 0): exact
    kv_formula: str = ""  # what a sequence takes, in words
    kv_bytes_per_token: float = 0.0  # of a long sequence, past its exact pages
    max_sequences: int = MAX_SEQUENCES
    kv_reuse_points: int = 0  # of all sequences together, certainly kept
    max_records: int = 0  # of sequences and reuse points, where steps replace state
    overridden: tuple[str, ...] = ()  # settings of the file that are not applied, since `allow_unknown` said so
    notes: tuple[str, ...] = ()  # what else to know of the program that runs with this context

    @property
    def is_streamed(self) -> bool:
        """Whether experts are read from disk while the model runs."""
        return self.expert_bytes is not None

    @property
    def peak_bytes(self) -> int:
        """Bytes at the worst moment."""
        return sum(self.bytes_by_owner.values())

    @property
    def fits(self) -> bool:
        """Whether the peak is within what may be used."""
        return self.peak_bytes <= self.memory_bytes

    def to_dict(self) -> dict[str, object]:
        """Plain data, as `kamado plan --json` prints it."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values["bytes_by_owner"] = dict(self.bytes_by_owner)
        values["least_bytes_by_owner"] = dict(self.least_bytes_by_owner)
        return {
            **values,
            "peak_bytes": self.peak_bytes,
            "fits": self.fits,
            "is_streamed": self.is_streamed,
            "speeds_are": "estimates",
        }

    def require_fit(self) -> None:
        """Raises MemoryBudgetError, with the least budget that works and what would use it, unless the plan fits."""
        if self.fits:
            return
        limit = {
            "budget": f"the budget is {format_size(self.memory_bytes)}",
            "machine": f"this machine has {format_size(self.memory_bytes)} to give",
        }.get(self.memory_limited_by, f"{self.memory_limited_by} has {format_size(self.memory_bytes)} to give")
        text = f"{self.model} needs {format_size(self.peak_bytes)} ({self.peak_bytes} bytes: "
        text += f"{_owners(self.bytes_by_owner)}) and {limit}"
        owners = f" ({_owners(self.least_bytes_by_owner)})" if self.least_bytes_by_owner else ""
        text += f": the least that works is {format_size_up(self.least_bytes)}{owners}, with a context of "
        text += f"{self.least_context} tokens"
        if self.least_context > LEAST_CONTEXT:
            if self.shortest_bytes <= self.memory_bytes:
                text += f"; or load it with a smaller context than {self.least_context}"
            else:
                text += f", and {format_size_up(self.shortest_bytes)} with {LEAST_CONTEXT}"
        raise MemoryBudgetError(text)


def _owners(bytes_by_owner: Mapping[str, int]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {format_size(size)}" for name, size in bytes_by_owner.items() if size)


def check_context(program: Program, context: object) -> None:
    """Raises UsageError below 2 or above what the model was trained for."""
    if isinstance(context, bool) or not isinstance(context, int) or not 2 <= context <= program.context_length:
        raise UsageError(
            f"context={context!r} is out of range: from 2 to {program.context_length}, which this model was trained for"
        )


def choose_logit_rows(vocab_size: int, max_rows: int, max_bytes: int = _LOGIT_BYTES) -> int:
    """Rows of logits a step may return: 32 MiB of them, 16 at the least."""
    return min(max_rows, max(_MIN_LOGIT_ROWS, max_bytes // (4 * vocab_size)))


def plan(
    checkpoint: Checkpoint,
    program: Program,
    *,
    context: int | None = None,
    kv: str = "auto",
    threads: int | None = None,
    memory: int | None = None,
    kv_tokens: int | None = None,
    max_rows: int | None = None,
    max_logit_rows: int | None = None,
    max_sequences: int | None = None,
    kv_recommended: str | None = None,
    reserved_bytes: int = 0,
    constraints: bool = False,
    worker: bool = True,
    profile: DeviceProfile | None = None,
    on: Machine | None = None,
) -> Plan:
    """Forecasts memory and speed of `program` on this machine (or `on`), within `memory` bytes when given.

    `memory` None: what the machine and its cgroups really have to give, less a margin. `context` None: the model's own
    length up to 4096, halved until the plan fits, down to 256. `max_rows` None: 512, less when that does not fit, up to
    2048 when experts are streamed. When everything fits, everything is resident; when it does not, and the model has
    experts, they are streamed through slots that take what is left of the budget. `kv_recommended` is what kv="auto"
    stands for, "exact" when None. `max_sequences` None: 64, or fewer where each holds exact pages beside codes.
    `reserved_bytes`: what the engine takes beside, counted with the interpreter. `constraints`: answers may be given a
    form, which takes a trie of the vocabulary, an owner of its own. `worker`: so may the
    process that tries templates and grammars, if the model makes text. Nothing is loaded. Raises
    UsageError for values out of range; a plan that does not fit is returned, not raised.
    """
    on = on or machine()
    if context is not None:
        check_context(program, context)
    kv_plan = parse_kv(kv, num_kv_layers(program), kv_recommended).for_program(program)
    beside = {
        "interpreter": _INTERPRETER_BYTES + _tokenizer_bytes(checkpoint, program.vocab_size) + reserved_bytes,
        "constraints": sizes.constraint_bytes(program.vocab_size) if constraints else 0,
        "worker": WORKER_BYTES if worker and not program.is_encoder else 0,
    }
    planner = _Planner(
        program, kv_plan, beside, threads or on.cpus, on.cpus_online, kv_tokens, max_rows, max_logit_rows, max_sequences
    )
    memory_bytes, limited_by = (on.usable_bytes or on.memory_bytes), on.memory_limited_by
    if memory is not None:
        memory_bytes, limited_by = min((memory, "budget"), (on.memory_bytes, on.memory_limited_by))
    split = planner.best(memory_bytes, context)
    shortest = planner.least(min(context or LEAST_CONTEXT, LEAST_CONTEXT, program.context_length))
    least = shortest if context is None else planner.least(context)
    needs = planner.needs
    is_streamed = split.expert_bytes is not None
    expert_slots, miss_share = needs.num_experts, 0.0
    if split.expert_bytes is not None:
        slots_bytes = needs.slots_of(split.expert_bytes)
        expert_slots = min(needs.num_experts, needs.num_experts * slots_bytes // max(1, needs.slots_bytes))
        # An LRU that holds less than one token's experts finds none of them again.
        miss_share = 1.0 if slots_bytes < needs.cycle_bytes else 1 - expert_slots / needs.num_experts
    active_bytes, active_values = sizes.active_weights(program)
    miss_bytes = int(needs.cycle_file_bytes * miss_share)
    decode_speed = prefill_speed = None
    if profile is not None:
        # A decoded token reads every active weight and, halfway through the context, half of the cache.
        cache_bytes = kv_read_bytes(kv_layers(program, kv_plan), split.context / 2)
        cache_bytes += 2 * planner.kv.record_bytes + planner.kv.source_bytes
        seconds = (active_bytes + cache_bytes) / profile.read_bytes_per_second
        disk_speed = profile.disk_bytes_per_second
        if miss_bytes and disk_speed:
            seconds = max(seconds, miss_bytes / disk_speed)
        decode_speed = 1 / seconds
        seconds = 2 * active_values / profile.int8_ops_per_second
        if profile.f32_ops_per_second:
            seconds += sizes.scan_ops(program) / profile.f32_ops_per_second
        if is_streamed and disk_speed:  # a full step needs nearly every expert
            seconds = max(seconds, needs.file_bytes / disk_speed / split.max_rows)
        prefill_speed = 1 / seconds
    return Plan(
        model=checkpoint.name or checkpoint.path.name,
        architecture=program.architecture,
        context=split.context,
        kv_tokens=split.kv_tokens,
        kv=kv_plan.name,
        num_threads=planner.num_threads,
        max_rows=split.max_rows,
        max_logit_rows=split.max_logit_rows,
        bytes_by_owner=split.bytes_by_owner(needs),
        memory_bytes=memory_bytes,
        memory_limited_by=limited_by,
        least_bytes=least.peak_bytes(needs),
        weight_bytes_per_token=active_bytes,
        ops_per_token=2 * active_values,
        decode_tokens_per_second=decode_speed,
        prefill_tokens_per_second=prefill_speed,
        least_bytes_by_owner=MappingProxyType(least.bytes_by_owner(needs)),
        least_context=least.context,
        shortest_bytes=shortest.peak_bytes(needs),
        num_experts=needs.num_experts,
        expert_bytes=split.expert_bytes,
        expert_slots=expert_slots,
        expert_bytes_per_token=needs.cycle_file_bytes if is_streamed else 0,
        miss_bytes_per_token=miss_bytes,
        kv_element=kv_plan.element,
        kv_bits=kv_plan.bits,
        kv_formula=planner.kv.formula(),
        kv_bytes_per_token=planner.kv.token_bytes,
        max_sequences=split.max_sequences,
        kv_reuse_points=planner.reuse_points,
        max_records=split.max_records,
        overridden=program.overridden,
        notes=program.for_context(split.context).notes,
    )


@dataclass(frozen=True, slots=True)
class _Split:
    """Who gets how many bytes."""

    context: int
    kv_tokens: int
    max_rows: int
    max_logit_rows: int
    max_sequences: int
    max_records: int
    num_threads: int
    cpus: int  # of the machine
    owners: Mapping[str, int]  # as they are told; of the experts and the kernel, which depend on the rest, 0
    expert_bytes: int | None = None  # None: resident

    @property
    def fixed(self) -> int:
        """All but the experts, and the kernel's share, which grows with them."""
        return sum(self.owners.values())

    def with_more(self, owner: str, num_bytes: int) -> _Split:
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
        resident = self.resident_bytes(needs)
        return resident + self.kernel(resident)

    def bytes_by_owner(self, needs: ExpertNeeds) -> dict[str, int]:
        resident = self.resident_bytes(needs)
        return {**self.owners, "experts": resident - self.fixed, "kernel": self.kernel(resident)}


class _Planner:
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
        self.reuse_points = 0 if self.kv.can_reuse_anywhere else _REUSE_POINTS
        self._weights = sizes.dense_weight_bytes(program)
        self._beside = beside

    def best(self, memory_bytes: int, context: int | None) -> _Split:
        """The split to load with; the first one tried when none fits."""
        return self._with_records(self._best(memory_bytes, context), memory_bytes)

    def _with_records(self, split: _Split, memory_bytes: int) -> _Split:
        """With as many more records as are left room for: marks of conversations that can be gone back to."""
        free_bytes = split.most_resident_bytes(memory_bytes) - split.resident_bytes(self.needs)
        if not split.max_records or free_bytes <= 0:
            return split
        more = min(_MARKS_A_SEQUENCE * split.max_sequences, free_bytes // self.kv.record_bytes)
        split = split.with_more("records", more * self.kv.record_bytes)
        return dataclasses.replace(split, max_records=split.max_records + more)

    def _best(self, memory_bytes: int, context: int | None) -> _Split:
        contexts = [context] if context is not None else self._contexts()
        first: _Split | None = None
        for tokens in contexts:
            # Everything resident, if need be with smaller steps and fewer rows of logits.
            for logit_bytes in (_LOGIT_BYTES, _STREAMED_LOGIT_BYTES):
                for rows in self._rows(DEFAULT_MAX_ROWS):
                    split = self._split(tokens, rows, logit_bytes)
                    first = first or split
                    if split.peak_bytes(self.needs) <= memory_bytes:
                        return split
            # One token's experts at least: with less, each token would find none of the last one's.
            streamed = self._streamed(tokens, memory_bytes, self.needs.cycle_expert_bytes)
            if streamed is not None:
                return streamed
        for tokens in contexts:
            streamed = self._streamed(tokens, memory_bytes, self.needs.least_bytes)
            if streamed is not None:
                return streamed
        assert first is not None
        return self.least(first.context) if self.needs.num_experts else first

    def least(self, context: int) -> _Split:
        """The split with the smallest peak."""
        split = self._split(context, min(self._rows(DEFAULT_MAX_ROWS)), _STREAMED_LOGIT_BYTES)
        if self.needs.num_experts and self.needs.least_bytes < self.needs.packed_bytes:
            split = dataclasses.replace(split, expert_bytes=self.needs.least_bytes)
        # In whole pages, since a cgroup rounds its limit down to them.
        return split.with_more("file_cache", -split.resident_bytes(self.needs) % sizes.FILE_PAGE_BYTES)

    def _streamed(self, context: int, memory_bytes: int, least_expert_bytes: int) -> _Split | None:
        """Streamed with what the rest leaves; None when that is less than `least_expert_bytes`, or all would fit."""
        if not self.needs.num_experts or least_expert_bytes >= self.needs.packed_bytes:
            return None
        for rows in self._rows(_STEP_ROWS[0], at_most=round_to_pages(context)):
            split = self._split(context, rows, _STREAMED_LOGIT_BYTES)
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

    def _sequences(self, kv_tokens: int) -> int:
        if self.kv.can_reuse_anywhere:
            return MAX_SEQUENCES
        return min(MAX_SEQUENCES, max(_LEAST_SEQUENCES, kv_tokens // _SEQUENCE_TOKENS))

    def _split(self, context: int, rows: int, logit_bytes: int = _LOGIT_BYTES) -> _Split:
        kv_tokens = round_to_pages(max(context, self._kv_tokens or self._default_kv_tokens))
        max_sequences = self._given_sequences or self._sequences(kv_tokens)
        max_records = self.kv.least_records(max_sequences, self.reuse_points)
        logit_rows = self._given_logit_rows or choose_logit_rows(self._program.output_width, rows, logit_bytes)
        kv_bytes = self.kv.bytes_of(
            kv_tokens=kv_tokens, max_sequences=max_sequences, max_rows=rows, reuse_points=self.reuse_points
        )
        constraints, worker = self._beside["constraints"], self._beside["worker"]
        records = self.kv.records_bytes(max_sequences, max_records)
        owners = {
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
        return _Split(
            context, kv_tokens, rows, logit_rows, max_sequences, max_records, self.num_threads, self._cpus, owners
        )


def round_to_pages(num_tokens: int) -> int:
    """`num_tokens` rounded up to whole KV pages."""
    return pages_for(num_tokens) * PAGE_TOKENS


def kv_read_bytes(layers: Iterable[KvLayer], depth: float) -> float:
    """Bytes of the cache that a decoded token at `depth` reads: at most two pages as f16 where there are codes."""
    total = 0.0
    for layer in layers:
        exact_tokens = min(depth, layer.window or depth)
        if layer.code_bytes:
            exact_tokens = min(depth, 1.5 * PAGE_TOKENS)
            total += layer.code_bytes / PAGE_TOKENS * (depth - exact_tokens)
        total += layer.exact_bytes / PAGE_TOKENS * exact_tokens
    return total


def _tokenizer_bytes(checkpoint: Checkpoint, vocab_size: int) -> int:
    source = checkpoint.tokenizer
    if source is None:
        return 0
    # tokenizer.json is not read for a forecast: byte-pair vocabularies have about as many merges as entries.
    merges = source.data.get("tokenizer.ggml.merges", ()) if source.kind == "gguf" else range(vocab_size)
    # What is no array is reported when the tokenizer is loaded.
    num_merges = len(merges) if isinstance(merges, Sequence) else 0
    has_scores = not num_merges and "tokenizer.ggml.scores" in source.data
    return vocab_size * (_SCORED_TOKEN_BYTES if has_scores else _TOKEN_BYTES) + num_merges * _MERGE_BYTES
