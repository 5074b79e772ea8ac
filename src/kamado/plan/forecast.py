"""The plan: what a model will take before it is loaded, whether that fits, and how fast this machine could run it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from ..errors import MemoryBudgetError, UsageError
from ..files.types import Checkpoint
from ..program import Program
from . import sizes
from .budget import format_size, format_size_up
from .kv_pages import kv_layers, num_kv_layers
from .kv_presets import Bits, parse_kv
from .machine import DeviceProfile, Machine, machine
from .overhead import WORKER_BYTES
from .planner import LEAST_CONTEXT, MAX_SEQUENCES, Planner
from .speed import UNKNOWN, decode_bound, kv_read_bytes, prefill_bound

# CPython with NumPy and the engine, then the tokenizer's tables while they are built; mapped files are the libraries'
# (overhead.py). Measured resident peaks on Linux x86-64, CPython 3.11, 22 MiB of mapped files included: 78 MiB with 49k
# entries and 49k merges, 166 with 152k and 151k, 109 with 262k and none.
_INTERPRETER_BYTES = 24 << 20
_TOKEN_BYTES = 270
_SCORED_TOKEN_BYTES = 410  # entries with scores, which have no merges: 125 MiB in all with 262k, KV given back included
_MERGE_BYTES = 590


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
    record_bytes: int = 0  # of all state that steps replace, of one sequence at one length
    state_bytes_per_token: int = 0  # of that, read and written for a decoded token
    conversation_bytes: int = 0  # of a conversation of `context` tokens, without reuse points
    reuse_point_bytes: int = 0  # 0: a conversation can go back anywhere for nothing
    num_conversations: int = 0  # of `context` tokens that fit at once, with everything else as planned
    decode_limited_by: str | None = None  # "memory" or "disk"
    prefill_limited_by: str | None = None  # "arithmetic" or "disk"
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
    planner = Planner(
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
    decode = prefill = UNKNOWN
    if profile is not None:
        # A decoded token reads every active weight and, halfway through the context, half of the cache; all its state.
        cache_bytes = kv_read_bytes(kv_layers(program, kv_plan), split.context / 2)
        cache_bytes += planner.kv.state_traffic_bytes + planner.kv.source_bytes
        disk_speed = profile.disk_speed(needs.request_bytes)
        decode = decode_bound(profile, active_bytes + cache_bytes, miss_bytes, disk_speed)
        # A full step needs nearly every expert.
        step_bytes = needs.file_bytes if is_streamed else 0
        ops = 2 * active_values, sizes.scan_ops(program)
        prefill = prefill_bound(profile, *ops, step_bytes / split.max_rows, disk_speed)
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
        decode_tokens_per_second=decode.tokens_per_second,
        prefill_tokens_per_second=prefill.tokens_per_second,
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
        kv_reuse_points=split.reuse_points,
        max_records=split.max_records,
        record_bytes=planner.kv.record_bytes,
        state_bytes_per_token=planner.kv.state_traffic_bytes,
        conversation_bytes=planner.kv.conversation_bytes(split.context),
        reuse_point_bytes=planner.kv.reuse_point_bytes,
        num_conversations=planner.num_conversations(split, memory_bytes),
        decode_limited_by=decode.limited_by,
        prefill_limited_by=prefill.limited_by,
        overridden=program.overridden,
        notes=program.for_context(split.context).notes,
    )


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
