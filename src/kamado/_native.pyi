"""The native executor (nanobind). Compared with the built module in the tests."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

class ReadError(OSError):
    """A streamed expert could not be had: errno, text with the expert's name and byte, filename.

    errno is ESTALE when the file was changed since it was opened, EBADMSG when verify_slots found that a slot does not
    hold the file's bytes, EIO when the file ends too early, else what the read gave.
    """

class NotFinite(FloatingPointError):
    """A step met a NaN or an infinity, which no healthy weights make; its sequences are as they were before it."""

class Cancelled(RuntimeError):
    """The cancel flag was set while a step ran; the sequences are as they were before it."""

def xxh64(data: bytes | bytearray | memoryview | NDArray[np.uint8], seed: int = 0) -> int:
    """XXH64 of the bytes, GIL released. Finds damage, not forgery."""

def tiers() -> list[str]:
    """Kernel tiers that this CPU can run, slowest first."""

def active_tier() -> str:
    """The tier in use: the best one, or what KAMADO_TIER lowered it to."""

def dequantize(layout: int, data: NDArray[np.uint8], num_values: int) -> NDArray[np.float32]:
    """Values of stored blocks, by the scalar reference."""

def packed_bytes(layout: int, rows: int, cols: int) -> int:
    """Bytes of a matrix once it is packed, resident or in a slot."""

def available_cpus() -> int:
    """Processors this process may use: affinity and cgroup quota considered."""

class Builder:
    """Takes a program one operation at a time, then packs the weights and returns an Executor; used once.

    Weight, vector and buffer ids are small integers. Every call checks shapes and raises ValueError with the tensor's
    name. Files are opened here; nothing is read before `build`. The same range of a file is one matrix.
    """

    def __init__(self) -> None: ...
    def matrix(
        self,
        name: str,
        path: str,
        offset: int,
        layout: int,
        rows: int,
        cols: int,
        block_rows: int = 0,
        block_stride: int = 0,
        is_by_column: bool = False,
        scales_path: str = "",
        scales_offset: int = 0,
    ) -> int: ...
    def vector(
        self, name: str, path: str, offset: int, layout: int, length: int, add: float = 0.0, step: int = 1
    ) -> int: ...
    def constant(self, values: NDArray[np.float64]) -> int: ...
    def buffer(self, name: str, width: int) -> int: ...
    def state(
        self,
        kind: str,
        num_kv_heads: int = 0,
        head_dim: int = 0,
        v_dim: int = 0,
        tokens: int = 0,
        num_bytes: int = 0,
    ) -> int:
        """The number of the next state, before the operations that name it: "pages", "window" (of `tokens`), "source"
        (of at most `tokens`), or "record" (of num_bytes, float32)."""
    def append(self, operation: str, fields: dict[str, object]) -> None:
        """The next operation, by its label and all its fields as `kamado.program.ops` has them, with ids in place of
        buffers and tensors. ValueError for what no operation has, or what its rules do not allow."""
    def build(
        self,
        num_threads: int,
        max_rows: int,
        max_logit_rows: int,
        max_kv_tokens: int,
        max_sequences: int,
        kv: str,
        tier: str | None = None,
        progress: Callable[[int, int], None] | None = None,
        expert_bytes: int | None = None,
        num_readers: int = 4,
        direct_io: str = "auto",
        verify_slots: bool = False,
        look_ahead: str = "auto",
        kv_bits: Sequence[tuple[int, int]] | None = None,
        kv_reuse_points: int = 0,
        drop_file_cache: bool = False,
        max_records: int = 0,
        record_rows: int = 1,
    ) -> Executor:
        """Packs all weights (GIL released; `progress(done_bytes, total_bytes)` is called from this thread at most
        every 50 ms; an exception it raises stops the build). kv is "f32" or "f16".

        kv_bits: None keeps every token of every layer exactly, and any length may be forked or truncated to. Else (key
        bits, value bits) of each KV layer, from {0 (exact), 2, 3, 4, 8}, both or neither 0 ("f16" only): pages that no
        next query reads exactly are kept as codes, and layers with a causal window (whose bits must be 0) keep their
        window only. Then a sequence can be forked or truncated only where its exact pages still are: see mark_reuse.
        kv_reuse_points: how many points, of all sequences together, certainly keep their pages. ValueError for bits
        that do not fit the program.
        max_records: of a program with records, how many are kept for sequences (two each while they step) and reuse
        points together; when they run out, the points used longest ago are given up. 0: as many as kv_reuse_points
        and max_sequences ask for. record_rows: a step keeps the records after each of its last record_rows rows, so
        that a sequence can be cut there until its next step.

        With drop_file_cache, and always with expert_bytes, loading leaves no more than a few MiB of the files in the
        page cache at any time, and nothing at its end; tables are read without read-ahead.

        With expert_bytes, experts are not loaded but read when they are needed, into slots that take at most
        expert_bytes together with their read buffers; ValueError names the least that works. direct_io "auto" reads by
        O_DIRECT where the file system takes it, else buffered, dropping what reads leave in the page cache; "on"
        insists, "off" never does. look_ahead reads what the next layer's router picks from the present hidden state:
        "auto" (while it pays), "on", "off". verify_slots compares every expert used with the file: slow, for tests.
        """

class Executor:
    """Runs the program. Not thread-safe but for `cancel`: one thread owns it."""

    @property
    def tier(self) -> str: ...
    @property
    def num_threads(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def hidden_width(self) -> int:
        """Of the head's input."""
    def create_sequence(self) -> int: ...
    def free_sequence(self, sequence: int) -> None: ...
    def fork_sequence(self, sequence: int, num_tokens: int) -> int:
        """A new sequence that begins with the first `num_tokens`: whole pages are shared, a partial one is copied. It
        has the parent's reuse points up to there, `num_tokens` itself included. ValueError when `num_tokens` is past
        the end or no exact pages are left there (`last_reusable` tells where), or when no sequence or page is free."""
    def truncate(self, sequence: int, num_tokens: int) -> None:
        """Forgets what comes after the first `num_tokens`, reuse points too. ValueError as fork_sequence."""
    def length(self, sequence: int) -> int: ...
    @property
    def num_pages(self) -> int:
        """Pages of 128 tokens that max_kv_tokens fill. Every 128 tokens of a sequence count as one, whatever is still
        kept of them; forks share theirs."""
    @property
    def num_free_pages(self) -> int:
        """Those that nobody holds. Steps of callers that do not reserve may take up to max_sequences - 1 more."""
    def reserve(self, sequence: int, num_tokens: int) -> bool:
        """Takes pages for positions below num_tokens, with the copy of a shared page that will be written; False, and
        nothing has changed, when there are not enough. A step to that length can then not run out of pages. They stay
        until give_back or truncate, through steps that were done or failed."""
    def give_back(self, sequence: int) -> None:
        """Returns what was reserved beyond the sequence's length."""
    def count_pages(self, sequences: Sequence[int]) -> int:
        """Distinct pages of these sequences; one that is being imported has all of its own."""
    def shared_pages(self, sequence: int, first_page: int) -> int:
        """Of the sequence's pages from first_page on, those that another sequence has too."""
    @property
    def num_free_records(self) -> int:
        """Of max_records, those that no sequence, reuse point or running step holds."""
    def set_source(self, sequence: int, state: int, k: NDArray[np.float32], v: NDArray[np.float32]) -> None:
        """Fills a source: k float32[n, kv_heads * head_dim], v float32[n, kv_heads * v_dim], for every step to read.
        Once for a sequence, before its first step, which is refused without it; forks share it, truncate leaves it.
        ValueError for anything else, and for values that are not finite."""
    @property
    def can_reuse_anywhere(self) -> bool:
        """Whether any length may be forked or truncated to: nothing is encoded, no layer keeps only a window, and the
        program has no record. With one only its end, 0 and reuse points may be."""
    def mark_reuse(self, sequence: int) -> None:
        """The present length becomes a reuse point: its last two pages (of a windowed layer, its window) stay exact,
        shared with the sequence while it needs them too. Nothing is copied or allocated. When exact pages run out,
        the points that were used longest ago are given up (never what a sequence needs to go on), so ask
        `reuse_points` or `last_reusable` right before a fork."""
    def unmark_reuse(self, sequence: int, num_tokens: int) -> None:
        """Gives a reuse point's pages back; ValueError when it is none."""
    def reuse_points(self, sequence: int) -> list[int]:
        """Lengths that were marked, inherited by a fork or imported, and are still kept; ascending."""
    def last_reusable(self, sequence: int, num_tokens: int) -> int:
        """The greatest length up to `num_tokens` that fork_sequence, truncate and export_tail take; at least 0.
        `num_tokens` itself where can_reuse_anywhere (or the sequence's length when that is less)."""
    @property
    def kv_fingerprint(self) -> str:
        """Names what exported bytes mean: codec version, element type, shapes, bits and windows; the same on all
        tiers. Import only what was exported under the same one."""
    def page_bytes(self) -> int:
        """Bytes of one page in export_pages."""
    def settled_pages(self, num_tokens: int) -> int:
        """Pages that export_pages has for a point: whole pages but the last, max(0, num_tokens // 128 - 1). What comes
        after them is in the tail."""
    def tail_bytes(self, num_tokens: int) -> int:
        """Bytes of export_tail at a point of that length."""
    def export_pages(self, sequence: int, first_page: int, last_page: int) -> bytes:
        """Pages [first_page, last_page) as they are kept, page_bytes() each, GIL released. last_page is at most
        settled_pages(length). A page's bytes depend on the tokens up to its end alone, so they may be stored once for
        all sequences that share them."""
    def export_tail(self, sequence: int, num_tokens: int) -> bytes:
        """The exact pages of a reuse point (any length that last_reusable gives), tail_bytes(num_tokens) long, from
        page settled_pages(num_tokens) on; of windowed layers, the window. Slots behind num_tokens are zero."""
    def begin_import(self, num_tokens: int) -> int:
        """A sequence of that length to be filled from what export_pages and export_tail gave, with all its pages taken
        at once; ValueError when they are not there. Until import_tail only import_pages and free_sequence take it."""
    def import_pages(
        self, sequence: int, first_page: int, last_page: int, pages: bytes | bytearray | memoryview | NDArray[np.uint8]
    ) -> None:
        """Pages [first_page, last_page), which must be the next ones. ValueError when they are not, or their size is
        another. The content is not checked: wrong bytes give wrong numbers, never a crash."""
    def import_tail(self, sequence: int, tail: bytes | bytearray | memoryview | NDArray[np.uint8]) -> None:
        """What comes after the settled pages. From now on it is a sequence like others, its length a reuse point.
        ValueError when a page is missing or the size is another."""
    def step(
        self,
        sequences: NDArray[np.int32],
        counts: NDArray[np.int32],
        tokens: NDArray[np.int32],
        logit_rows: NDArray[np.int32],
        hidden: bool = False,
    ) -> NDArray[np.float32]:
        """Appends `counts[i]` tokens to `sequences[i]` (tokens concatenated in that order; a sequence at most once)
        and returns float32[len(logit_rows), vocab] for those rows of `tokens`, a view valid until the next step; with
        `hidden` the head's input instead, float32[len(logit_rows), hidden_width], and the head is left out. One
        call, GIL released. Signals are checked about every 50 ms: Ctrl-C raises KeyboardInterrupt. After any error the
        sequences are as before. Wrong arguments are a ValueError; a table's file that shrank is a RuntimeError."""
    def score(self, sequence: int, tokens: NDArray[np.int32], targets: NDArray[np.int32]) -> NDArray[np.float64]:
        """Appends tokens and returns, per token, the log-probability of targets[i] (-1: skipped, 0.0); logits are
        reduced in the executor by blocks of max_logit_rows and never stored whole. Tokens are taken by max_rows."""
    def tile_kv(self, sequence: int, num_tokens: int) -> None:
        """Fills the cache up to num_tokens by repeating what it holds. For speed measurements only."""
    def record_queries(self, stride: int) -> None:
        """For measurements: from now on each step keeps, of every KV layer, the queries of its rows whose logits are
        wanted and whose position is a multiple of `stride` (0: none). What was kept before is forgotten."""
    def recorded_queries(self, layer: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Their positions, and float32[n, heads, head_dim] as attention takes them: positions applied, not scaled.
        ValueError when nothing is being recorded or it is no KV layer."""
    def read_kv(
        self, sequence: int, layer: int, k_bits: int, v_bits: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """For measurements: what a query right after the sequence would read of one KV layer if that was encoded with
        so many bits, pages that stay exact included; 0 and 0: all exactly. float32[kv_heads, length, dim] of keys and
        of values, GIL released. ValueError when the cache does not keep the layer as f16 for good, or its heads cannot
        be encoded so."""
    def cancel(self) -> None:
        """May be called from any thread: the running (or next) step raises Cancelled."""
    def stats(self) -> dict[str, float]:
        """weight_bytes, kv_bytes (in use) and its parts kv_bytes_exact and kv_bytes_encoded, kv_pages_shared (pages of
        any kind that several sequences hold), kv_reuse_points (of all sequences), kv_points_given_up (since it was
        built, when pages or records ran out), records_used, records_free, records_bytes (with sources),
        scratch_bytes, steps, rows,
        seconds_total and its parts: seconds_linear, _attend, _experts, _head, _rows (norms, rope, quantisation), each
        with the waiting that follows it; seconds_encode (part of _attend)."""
    def ledger(self) -> dict[str, Any]:
        """What experts cost: "layers", a list (by Experts operation) of dicts with layer; hits, misses and
        lookahead_hits, which sum to the experts that operations needed (in a slot, not, or read ahead),
        lookahead_wrong (read ahead in vain), bytes_read, requests, read_seconds (summed over requests), wait_seconds
        (with nothing to compute), compute_seconds; "resident"; and of streamed experts "slots", "slot_bytes" (all
        slots), "expert_bytes" (with read buffers), "least_expert_bytes", "expert_record_bytes" (the largest expert in
        the file), "direct_io", "readers", "busy_seconds" (with at least one read under way)."""
    def record_routing(self, enabled: bool) -> None: ...
    def routing(self) -> NDArray[np.int32]:
        """What was routed since recording began or this was last called, then forgotten: rows of step, layer, the
        step's row, and the experts picked in ascending order, -1 after them where another layer picks more."""
    def drop_file_cache(self) -> None:
        """Gives back what reading the model's files left in the page cache, where nothing else keeps it."""
    def swap_slots_for_test(self, layer: int, a: int, b: int) -> None:
        """Exchanges what the slots of two experts hold; for the test that verify_slots notices."""
    def shrink_experts(self, expert_bytes: int) -> None:
        """Between steps: slots and read buffers take at most that many bytes from now on, what was theirs goes back to
        the system. ValueError below the ledger's least_expert_bytes; never grows."""
    def delay_reads_for_test(self, milliseconds: int) -> None:
        """Each read of experts begins that much later, as on a slow disk."""
    def close(self) -> None: ...

def measure_bandwidth(num_threads: int, megabytes: int, seconds: float) -> float:
    """Sequential read bandwidth, bytes a second, all threads together, huge pages asked for."""

def measure_int8(num_threads: int, seconds: float) -> float:
    """int8 multiply-add operations a second (2 per product) from L1, the active tier's instructions."""

def measure_f32(num_threads: int, seconds: float) -> float:
    """float32 multiply-add operations a second (2 per product) in registers: what F16, BF16 and F32 weights and
    attention are bound by."""

class StringTable:
    """Strings of a GGUF array as bytes, 1 ms for 150 000 of them; Python strings are made when asked for."""

    def __init__(self, texts: list[str]) -> None: ...
    def __len__(self) -> int: ...
    def tolist(self) -> list[str]:
        """All strings; bytes that are no UTF-8 become surrogates (surrogateescape)."""

def scan_strings(data: bytes, begin: int, count: int) -> tuple[StringTable | None, int, int]:
    """The `count` length-prefixed strings at data[begin], where they end, and 0. When `data` ends before they do: None,
    where the first field that does not fit starts, and how many bytes it needs from there."""

class BytePairs:
    """Byte-pair merging by rank. Immutable; may be shared between threads."""

    def __init__(self, tokens: StringTable, is_hidden: bytes, merges: StringTable, whole_words: bool) -> None:
        """A byte a token says whether it is no result of anything. Merges are "left right", in order of rank; a wrong
        one is a ValueError that names the entry. GIL released."""
    def encode(self, words: list[tuple[str, tuple[int, int]]]) -> list[int]:
        """Ids of words as `pre_tokenize_str` gives them. Characters that are no token say nothing."""

class JsonCost:
    """What decoding a JSON text would cost, found in its bytes, which come in pieces: a nanosecond or two for one.
    Upper estimates. The text need not be valid."""

    def __init__(self) -> None: ...
    def take(self, data: bytes) -> None:
        """The next bytes. The GIL is kept."""
    @property
    def depth(self) -> int:
        """Lists and objects within each other."""
    @property
    def weight(self) -> int:
        """Values; a container counts as four, a key as sixteen, and so do four characters as one that are escaped or
        not ASCII."""
    @property
    def nbytes(self) -> int:
        """Memory while it is decoded, the text not included."""

def top_ids(logits: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Ids of the k largest logits, largest first, equal ones by lower id. No logit may be NaN."""
