"""The plan: what a model will take before it is loaded, whether that fits, and how fast this machine could run it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from ..checkpoint.types import Checkpoint, Layout, TensorRef
from ..errors import MemoryBudgetError, UsageError
from ..program import Attend, Buffer, Embed, Experts, Head, Linear, Norm, Program, Route
from .budget import format_size
from .profile import DeviceProfile, Machine, machine

PAGE_TOKENS = 128  # tokens of one KV page
DEFAULT_CONTEXT = 4096
DEFAULT_MAX_ROWS = 512
LEAST_CONTEXT = 256  # what the message of a budget that is too small falls back to

_KV_BYTES = {"f32": 4, "exact": 2, "auto": 2}
_LATER_PRESETS = ("safe", "balanced", "small")

_LOGIT_BYTES = 32 << 20  # scratch for logits: 16 rows at the least, whatever the vocabulary
_MIN_LOGIT_ROWS = 16

# Packed tiles take up to 4 % more than the file's blocks (scales widened), and rows are padded to whole tiles.
_TILE_ROWS = 16
_PACKING = 1.04

# CPython with NumPy and the engine, then the tokenizer's tables while they are built. Measured resident peaks on Linux
# x86-64, CPython 3.11: 78 MiB with 49k entries and 49k merges, 166 with 152k and 151k, 109 with 262k and none.
_INTERPRETER_BYTES = 44 << 20
_TOKEN_BYTES = 270
_MERGE_BYTES = 590
_THREAD_BYTES = 1 << 20  # stack and kernel scratch of one thread, touched part
_FILE_PAGE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Plan:
    """The forecast that `load()` made. Bytes are of memory, this process and the cached pages of the model's files.

    The two speeds are estimates from measured limits of this machine (`kamado bench --limits`): the least time that
    memory and integer units allow, so an upper bound; None when the limits were never measured.
    """

    model: str
    architecture: str
    context: int  # tokens of one conversation
    kv_tokens: int  # tokens of all conversations together
    kv: str
    num_threads: int
    max_rows: int  # rows of a step
    max_logit_rows: int
    bytes_by_owner: dict[str, int]  # "weights", "kv", "scratch", "interpreter"
    memory_bytes: int  # what may be used
    memory_limited_by: str  # "budget", "machine" or a cgroup's path
    least_bytes: int  # peak with the smallest useful context
    weight_bytes_per_token: int  # weights that one decoded token reads
    ops_per_token: int  # integer operations of one token, two a product, without attention
    decode_tokens_per_second: float | None = None  # estimate
    prefill_tokens_per_second: float | None = None  # estimate

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
        return {**dataclasses.asdict(self), "peak_bytes": self.peak_bytes, "fits": self.fits, "speeds_are": "estimates"}

    def require_fit(self) -> None:
        """Raises MemoryBudgetError, with the least budget that works and what would use it, unless the plan fits."""
        if self.fits:
            return
        owners = ", ".join(f"{owner} {format_size(size)}" for owner, size in self.bytes_by_owner.items())
        limit = {
            "budget": f"the budget is {format_size(self.memory_bytes)}",
            "machine": f"this machine has {format_size(self.memory_bytes)}",
        }.get(self.memory_limited_by, f"{self.memory_limited_by} allows {format_size(self.memory_bytes)}")
        text = f"{self.model} needs {format_size(self.peak_bytes)} ({self.peak_bytes} bytes: {owners}) and {limit}"
        if self.least_bytes <= self.memory_bytes:
            text += f": load it with a smaller context than {self.context}"
        else:
            text += (
                f": the least that works is {format_size(self.least_bytes)}, with a context of {LEAST_CONTEXT} tokens"
            )
        raise MemoryBudgetError(text)


def kv_element_bytes(kv: str) -> int:
    """Bytes of one cached number under a KV preset. Raises UsageError for an unknown one."""
    size = _KV_BYTES.get(kv)
    if size is None:
        if kv in _LATER_PRESETS or "=" in kv:
            raise UsageError(f"kv={kv!r} is not in this version: choose from {', '.join(_KV_BYTES)}")
        raise UsageError(f"kv={kv!r} is no KV preset: choose from {', '.join(_KV_BYTES)}")
    return size


def check_context(program: Program, context: object) -> None:
    """Raises UsageError below 2 or above what the model was trained for."""
    if isinstance(context, bool) or not isinstance(context, int) or not 2 <= context <= program.context_length:
        raise UsageError(
            f"context={context!r} is out of range: from 2 to {program.context_length}, which this model was trained for"
        )


def choose_logit_rows(vocab_size: int, max_rows: int) -> int:
    """Rows of logits a step may return: 32 MiB of them, 16 at the least."""
    return min(max_rows, max(_MIN_LOGIT_ROWS, _LOGIT_BYTES // (4 * vocab_size)))


def plan(
    checkpoint: Checkpoint,
    program: Program,
    *,
    context: int | None = None,
    kv: str = "auto",
    threads: int | None = None,
    memory: int | None = None,
    kv_tokens: int | None = None,
    max_rows: int = DEFAULT_MAX_ROWS,
    max_logit_rows: int | None = None,
    profile: DeviceProfile | None = None,
    on: Machine | None = None,
) -> Plan:
    """Forecasts memory and speed of `program` on this machine (or `on`), within `memory` bytes when given.

    `context` None: the model's own length up to 4096, halved until the plan fits, down to 256. Nothing is loaded.
    Raises UsageError for values out of range; a plan that does not fit is returned, not raised.
    """
    on = on or machine()
    if context is None:
        largest = chosen = min(program.context_length, DEFAULT_CONTEXT)
        while True:
            result = plan(
                checkpoint, program, context=chosen, kv=kv, threads=threads, memory=memory, kv_tokens=kv_tokens,
                max_rows=max_rows, max_logit_rows=max_logit_rows, profile=profile, on=on,
            )  # fmt: skip
            if result.fits:
                return result
            if chosen // 2 < LEAST_CONTEXT:
                break
            chosen //= 2
        context = largest
    check_context(program, context)
    kv_tokens = round_to_pages(max(context, kv_tokens or context))
    if max_logit_rows is None:
        max_logit_rows = choose_logit_rows(program.vocab_size, max_rows)
    num_threads = threads or on.cpus
    token_bytes = kv_token_bytes(program, kv)
    fixed = {
        "weights": _weight_bytes(program, context),
        "scratch": _scratch_bytes(program, max_rows, max_logit_rows, num_threads),
        "interpreter": _INTERPRETER_BYTES + _tokenizer_bytes(checkpoint, program.vocab_size),
    }
    least_context = min(context, LEAST_CONTEXT)
    least = {"weights": _weight_bytes(program, least_context), "kv": token_bytes * round_to_pages(least_context)}
    active_bytes, active_values = _active_weights(program)
    decode_speed = prefill_speed = None
    if profile is not None:
        # A decoded token reads every active weight and, halfway through the context, half of the cache.
        decode_speed = profile.read_bytes_per_second / (active_bytes + token_bytes * context // 2)
        prefill_speed = profile.int8_ops_per_second / (2 * active_values)
    limits = [(on.memory_bytes, on.memory_limited_by)] + ([(memory, "budget")] if memory is not None else [])
    memory_bytes, limited_by = min(limits)
    return Plan(
        model=checkpoint.name or checkpoint.path.name,
        architecture=program.architecture,
        context=context,
        kv_tokens=kv_tokens,
        kv=kv,
        num_threads=num_threads,
        max_rows=max_rows,
        max_logit_rows=max_logit_rows,
        bytes_by_owner={
            "weights": fixed["weights"],
            "kv": token_bytes * kv_tokens,
            "scratch": fixed["scratch"],
            "interpreter": fixed["interpreter"],
        },
        memory_bytes=memory_bytes,
        memory_limited_by=limited_by,
        least_bytes=sum({**fixed, **least}.values()),
        weight_bytes_per_token=active_bytes,
        ops_per_token=2 * active_values,
        decode_tokens_per_second=decode_speed,
        prefill_tokens_per_second=prefill_speed,
    )


def round_to_pages(num_tokens: int) -> int:
    """`num_tokens` rounded up to whole KV pages."""
    return -(-num_tokens // PAGE_TOKENS) * PAGE_TOKENS


def kv_token_bytes(program: Program, kv: str) -> int:
    """Bytes that one token takes in the cache, all layers."""
    shapes = {op.layer: op.num_kv_heads * (op.head_dim + op.v_dim) for op in program.ops if isinstance(op, Attend)}
    return sum(shapes.values()) * kv_element_bytes(kv)


def _tokenizer_bytes(checkpoint: Checkpoint, vocab_size: int) -> int:
    source = checkpoint.tokenizer
    if source is None:
        return 0
    # tokenizer.json is not read for a forecast: byte-pair vocabularies have about as many merges as entries.
    merges = source.data.get("tokenizer.ggml.merges", ()) if source.kind == "gguf" else range(vocab_size)
    return vocab_size * _TOKEN_BYTES + len(merges) * _MERGE_BYTES


def _matrices(program: Program) -> Iterator[tuple[TensorRef, float]]:
    """Every matrix that is multiplied with, and the share of it that one token uses."""
    for op in program.ops:
        if isinstance(op, Linear):
            yield from ((weight, 1.0) for weight in op.weights)
        elif isinstance(op, Head):
            yield op.weight, 1.0
        elif isinstance(op, Experts):
            share = program.top_k / max(1, len(op.gate))
            yield from ((weight, share) for weight in (*op.gate, *op.up, *op.down))


def _packed_bytes(ref: TensorRef) -> int:
    row_bytes = ref.layout.nbytes(ref.cols)
    if ref.layout not in (Layout.F32, Layout.F16, Layout.BF16):
        row_bytes = int(row_bytes * _PACKING)
    return -(-ref.rows // _TILE_ROWS) * _TILE_ROWS * row_bytes


def _weight_bytes(program: Program, context: int) -> int:
    packed = {ref.name: _packed_bytes(ref) for ref, _ in _matrices(program)}
    vectors: dict[str, int] = {}
    tables: dict[str, int] = {}
    for op in program.ops:
        if isinstance(op, Norm):
            refs = [op.weight, op.bias]
        elif isinstance(op, Linear):
            refs = list(op.biases)
        elif isinstance(op, Head | Route):
            refs = [op.bias]
        else:
            refs = []
        vectors.update((ref.name, 4 * ref.num_values) for ref in refs if ref is not None)
        if isinstance(op, Embed):
            # The table is read from the mapped file row by row: at worst each token of a conversation is another row.
            row_pages = -(-op.table.layout.nbytes(op.table.cols) // _FILE_PAGE_BYTES) + 1
            tables[op.table.name] = min(op.table.nbytes, context * row_pages * _FILE_PAGE_BYTES)
    return sum(packed.values()) + sum(vectors.values()) + sum(tables.values())


def _active_weights(program: Program) -> tuple[int, int]:
    """Bytes and values of the weights that one token multiplies with."""
    num_bytes = num_values = 0.0
    for ref, share in _matrices(program):
        num_bytes += ref.nbytes * share
        num_values += ref.num_values * share
    return max(1, int(num_bytes)), max(1, int(num_values))


def _scratch_bytes(program: Program, max_rows: int, max_logit_rows: int, num_threads: int) -> int:
    widths: dict[str, int] = {}
    for op in program.ops:
        for name in op.__dataclass_fields__:
            value = getattr(op, name)
            for buffer in value if isinstance(value, tuple) else (value,):
                if isinstance(buffer, Buffer):
                    widths[buffer.name] = max(widths.get(buffer.name, 0), buffer.width)
    # Gate, up and the result of each picked expert.
    experts = (
        program.top_k * (2 * op.gate[0].rows + op.out.width)
        for op in program.ops
        if isinstance(op, Experts) and op.gate
    )
    per_row = 4 * (sum(widths.values()) + max(experts, default=0))
    per_row += 2 * max(widths.values(), default=0)  # int8 codes, scales and sums of the widest input
    return per_row * max_rows + 4 * max_logit_rows * program.vocab_size + num_threads * _THREAD_BYTES
