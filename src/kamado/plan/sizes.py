"""How many bytes the executor takes for a program: the same arithmetic as the native side, without loading anything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from ..files.layouts import TILE_ROWS
from ..files.types import TensorRef
from ..program import Conv, DeltaScan, Embed, Experts, Program, reads, writes
from ..program.operation import Kind, each, fields_of
from .budget import round_up

FILE_PAGE_BYTES = 4096
# Slots are whole pages. Pieces of experts on their way from the disk to a slot are paid for by expert_bytes too:
# native/experts/stream.cpp.
_SLOT_ALIGN_BYTES = 4096
_REQUEST_BYTES = 2 << 20
_LEAST_BUFFERS, _MOST_BUFFERS = 2, 24
_NUM_READERS = 4  # a buffer more for each
HUGE_PAGE_BYTES = 2 << 20
# Assignments (row, expert) whose results are held at once: kMaxAssignments of native/executor/memory.h.
_MAX_ASSIGNMENTS = 1024
# What answers of a given form take (llguidance 1.9, measured on Linux x86-64): the package 3.4 MB, 32 compiled grammars
# of ten fields 6.5 MB, and the vocabulary's trie with the bytes of every token, of which 10 % only while it is made:
# 24 MB for 49k tokens, 73 for 152k, 132 for 262k.
_CONSTRAINT_BYTES = 12 << 20
_CONSTRAINT_PEAK_TOKEN_BYTES = 560
_CONSTRAINT_TOKEN_BYTES = 500
# Ids of conversations that may come back: sixteen times what the cache holds.
_TRANSCRIPT_TOKEN_BYTES = 64
_MAX_TRANSCRIPT_BYTES = 8 << 20
_TABLE_CACHE_BYTES = 128 << 20  # of rows in the page cache: Gemma 4's own embeddings have 11 KB a token
_THREAD_BYTES = 1 << 20  # stack and kernel scratch of one thread, touched part


@dataclass(frozen=True, slots=True)
class ExpertNeeds:
    """What the experts of a program take, resident and streamed. All zero for a dense program."""

    num_layers: int = 0  # that have experts
    num_experts: int = 0  # in all layers together
    top_k: int = 0
    file_bytes: int = 0  # of all expert records as they lie in the file
    packed_bytes: int = 0  # of all of them in memory, resident
    slots_bytes: int = 0  # of a slot for each of them
    cycle_bytes: int = 0  # slots for the experts that one token picks, all layers
    cycle_file_bytes: int = 0  # what one token reads when nothing is cached
    least_bytes: int = 0  # slots and read buffers below which a single layer's picks have no room
    largest_record_bytes: int = 0
    buffer_bytes: int = 0  # of one read buffer
    least_slots_bytes: int = 0  # of `least_bytes`, the slots
    most_buffers: int = _LEAST_BUFFERS

    @property
    def request_bytes(self) -> int:
        """Of the largest read, rounded up to whole pages; 0 for a dense program."""
        return max(0, self.buffer_bytes - FILE_PAGE_BYTES)

    def slots_of(self, expert_bytes: int) -> int:
        """Bytes that are left for slots of `expert_bytes`."""
        if expert_bytes >= HUGE_PAGE_BYTES:
            expert_bytes = expert_bytes // HUGE_PAGE_BYTES * HUGE_PAGE_BYTES
        for_buffers = min(expert_bytes // 16, expert_bytes - self.least_slots_bytes)
        num_buffers = max(_LEAST_BUFFERS, min(self.most_buffers, for_buffers // max(1, self.buffer_bytes)))
        return max(0, expert_bytes - num_buffers * self.buffer_bytes)

    @property
    def most_useful_bytes(self) -> int:
        """`expert_bytes` that hold every expert: more is of no use."""
        return self.slots_bytes + self.most_buffers * self.buffer_bytes + HUGE_PAGE_BYTES

    @property
    def cycle_expert_bytes(self) -> int:
        """`expert_bytes` whose slots hold what one token picks."""
        return self.cycle_bytes + max(_LEAST_BUFFERS * self.buffer_bytes, self.cycle_bytes // 12) + HUGE_PAGE_BYTES


_RESIDENT = frozenset({Kind.MATRIX, Kind.TAPS, Kind.VECTOR})


def constraint_bytes(vocab_size: int, *, is_peak: bool = True) -> int:
    """What answers of a given form take for a vocabulary, at the worst moment or afterwards."""
    return _CONSTRAINT_BYTES + vocab_size * (_CONSTRAINT_PEAK_TOKEN_BYTES if is_peak else _CONSTRAINT_TOKEN_BYTES)


def transcript_bytes(kv_tokens: int) -> int:
    """Most bytes for the token ids of conversations, beside a cache of `kv_tokens`."""
    return min(_MAX_TRANSCRIPT_BYTES, _TRANSCRIPT_TOKEN_BYTES * kv_tokens)


def packed_bytes(ref: TensorRef) -> int:
    """Bytes of a matrix once it is packed into tiles of 16 rows."""
    return ref.layout.packed_nbytes(ref.rows, ref.cols)


def slot_bytes(gate: TensorRef, up: TensorRef, down: TensorRef) -> int:
    """Bytes of the slot of one expert: its three matrices, packed as when resident, in whole pages."""
    return round_up(sum(map(packed_bytes, (gate, up, down))), _SLOT_ALIGN_BYTES)


def expert_needs(program: Program) -> ExpertNeeds:
    """Sizes of the program's experts, by layer where layers differ."""
    layers = [op for op in program.ops if isinstance(op, Experts) and op.gate]
    if not layers:
        return ExpertNeeds()
    top_k = max(1, program.top_k)
    num = stored = packed = slots = cycle = cycle_file = largest = request = requests = 0
    classes: dict[int, int] = {}
    for op in layers:
        alike = _alike(op)
        sizes = [slot_bytes(*record) for record in alike]
        files = [sum(ref.nbytes + ref.scales_nbytes for ref in record) for record in alike]
        counts = alike.values()
        num += len(op.gate)
        stored += sum(size * count for size, count in zip(files, counts, strict=True))
        packed += sum(sum(map(packed_bytes, record)) * count for record, count in alike.items())
        slots += sum(size * count for size, count in zip(sizes, counts, strict=True))
        picks = min(top_k, len(op.gate))
        cycle += picks * max(sizes)
        cycle_file += picks * max(files)
        largest = max(largest, *files)
        for record in alike:
            pieces = list(_pieces(*record))
            requests = max(requests, sum(count for count, _ in pieces))
            request = max(request, *(largest for _, largest in pieces))
        classes[max(sizes)] = max(classes.get(max(sizes), 0), picks)
    # Layers of mixed layouts have slots of several sizes, and each size must hold one layer's picks.
    buffer = round_up(request, FILE_PAGE_BYTES) + FILE_PAGE_BYTES
    least_slots = sum(size * picks for size, picks in classes.items())
    least = least_slots + _LEAST_BUFFERS * buffer
    least = round_up(least, HUGE_PAGE_BYTES if least >= HUGE_PAGE_BYTES else FILE_PAGE_BYTES)
    most_buffers = min(top_k * requests, _MOST_BUFFERS) + _NUM_READERS
    return ExpertNeeds(
        len(layers), num, top_k, stored, packed, slots, cycle, cycle_file, least, largest, buffer, least_slots,
        most_buffers,
    )  # fmt: skip


def _alike(op: Experts) -> dict[tuple[TensorRef, TensorRef, TensorRef], int]:
    """The first expert of each size, and how many have it: of hundreds in a layer nearly always all."""
    first: dict[tuple[object, ...], tuple[TensorRef, TensorRef, TensorRef]] = {}
    counts: Counter[tuple[object, ...]] = Counter()
    for gate, up, down in zip(op.gate, op.up, op.down, strict=True):
        size = (
            gate.layout, gate.shape, gate.blocks, gate.by_column, up.layout, up.shape, up.blocks, up.by_column,
            down.layout, down.shape, down.blocks, down.by_column,
        )  # fmt: skip
        first.setdefault(size, (gate, up, down))
        counts[size] += 1
    return {record: counts[size] for size, record in first.items()}


def _pieces(gate: TensorRef, up: TensorRef, down: TensorRef) -> Iterator[tuple[int, int]]:
    """Of each run of an expert's bytes in a file: number of reads, and bytes of the largest (executor/stored.h)."""
    alternate = gate.blocks is not None  # of both one read takes all
    for ref, times in ((gate, 2), (down, 1)) if alternate else ((gate, 1), (up, 1), (down, 1)):
        units = ref.cols if ref.by_column else -(-ref.rows // TILE_ROWS)
        items = ref.cols if ref.by_column else ref.rows
        for nbytes in filter(None, (ref.nbytes, ref.scales_nbytes)):
            unit = times * nbytes // items * (1 if ref.by_column else TILE_ROWS)
            at_most = min(max(_REQUEST_BYTES // unit, 1), units)
            count = -(-units // at_most)
            yield count, min(-(-units // count) * unit, times * nbytes)


def dense_weight_bytes(program: Program) -> int:
    """Bytes of all weights but the experts', packed, and of vectors as floats, the experts' biases among them."""
    packed: dict[tuple[str, int], int] = {}
    vectors: dict[str, int] = {}
    for op in program.ops:
        resident = _RESIDENT - {Kind.MATRIX} if isinstance(op, Experts) else _RESIDENT
        for field in fields_of(type(op)):
            for ref in each(op, field) if field.kind in resident else ():
                if field.kind is Kind.MATRIX:
                    packed[ref.name, ref.offset] = packed_bytes(ref)
                elif field.kind is Kind.TAPS:
                    vectors[ref.name] = 4 * ref.cols * round_up(ref.rows, 16)
                else:
                    vectors[ref.name] = 4 * round_up(ref.num_values, 16)
    return sum(packed.values()) + sum(vectors.values())


def table_page_bytes(program: Program, context: int) -> int:
    """Cached file pages of embedding tables, which are read row by row: at worst each token is another row."""
    rows = rows_until_forgotten(program, context)
    return sum(min(table.nbytes, rows * _row_page_bytes(table)) for table in _tables(program))


def rows_until_forgotten(program: Program, context: int) -> int:
    """Tokens after which a model under a limit gives back what the page cache has of its tables."""
    return max(1, min(context, _TABLE_CACHE_BYTES // max(1, sum(map(_row_page_bytes, _tables(program))))))


def _tables(program: Program) -> list[TensorRef]:
    return list({op.table.name: op.table for op in program.ops if isinstance(op, Embed)}.values())


def _row_page_bytes(table: TensorRef) -> int:
    return (-(-table.layout.nbytes(table.cols) // FILE_PAGE_BYTES) + 1) * FILE_PAGE_BYTES


def active_weights(program: Program) -> tuple[int, int]:
    """Bytes and values of the weights that one token multiplies with."""
    num_bytes = num_values = 0.0
    for ref, share in _matrices(program):
        num_bytes += (ref.nbytes + ref.scales_nbytes) * share
        num_values += ref.num_values * share
    return max(1, int(num_bytes)), max(1, int(num_values))


def scan_ops(program: Program) -> int:
    """float32 operations, two a multiply-add, of one token in convolutions and scans, which no product does."""
    scans = sum(7 * op.num_v_heads * op.k_dim * op.v_dim for op in program.ops if isinstance(op, DeltaScan))
    return scans + sum(2 * op.weight.num_values for op in program.ops if isinstance(op, Conv))


@dataclass(frozen=True, slots=True)
class ScratchNeeds:
    """What a step's buffers take, apart from how many rows it has."""

    row_bytes: int
    assignment_bytes: int  # the inner row of a picked expert, its codes, and its result
    top_k: int
    output_width: int  # of a row of logits

    def bytes_of(self, max_rows: int, max_logit_rows: int, num_threads: int) -> int:
        """Row buffers, logits and threads."""
        assignments = min(max_rows * self.top_k, _MAX_ASSIGNMENTS)
        rows = max(max_rows, max_logit_rows)
        return (
            self.row_bytes * rows
            + self.assignment_bytes * assignments
            + 4 * max_logit_rows * self.output_width
            + num_threads * _THREAD_BYTES
        )


def scratch_needs(program: Program) -> ScratchNeeds:
    """The buffers of a program."""
    widths: dict[str, int] = {}
    inner = 0
    for op in program.ops:
        if isinstance(op, Experts) and op.gate:
            inner = max(inner, 6 * op.gate[0].rows + 4 * op.out.width)
        for buffer in (*reads(op), *writes(op)):
            widths[buffer.name] = max(widths.get(buffer.name, 0), buffer.width)
    row_bytes = 4 * sum(widths.values())
    row_bytes += 2 * max(widths.values(), default=0)  # int8 codes, scales and sums of the widest input
    return ScratchNeeds(row_bytes, inner, program.top_k, program.output_width)


def _matrices(program: Program) -> Iterator[tuple[TensorRef, float]]:
    """Every matrix that is multiplied with, and the share of it that one token uses: of experts that are alike one."""
    for op in program.ops:
        if isinstance(op, Experts) and op.gate:
            for record, count in _alike(op).items():
                yield from ((ref, program.top_k * count / len(op.gate)) for ref in record)
            continue
        for field in fields_of(type(op)):
            if field.kind is Kind.MATRIX:
                yield from ((ref, 1.0) for ref in each(op, field))
