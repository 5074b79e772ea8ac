"""The KV cache in tokens and bytes: how long a page is, and what a program's layers keep in how many bytes.

The same arithmetic as the native side's (native/state, native/include/kamado/attention.h); tests hold the two together.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..program import Pages, Program, Record, Source, Window
from ..program.state import is_by_position
from .budget import round_up
from .kv_presets import KvPlan

PAGE_TOKENS = 128  # tokens of one KV page: kPageTokens
SINK_TOKENS = 4  # of page 0, kept exactly beside its codes: kSinkTokens

_SYSTEM_PAGE_BYTES = 4096
_LINE_BYTES = 64


@dataclass(frozen=True, slots=True)
class KvLayer:
    """One layer's part of a page, in bytes; the same arithmetic as native/state."""

    window: int | None  # tokens whose pages are kept; None: all
    exact_bytes: int  # as f16 or f32
    code_bytes: int  # 0: not encoded
    sink_bytes: int


@dataclass(frozen=True, slots=True)
class KvNeeds:
    """Bytes of what a program's sequences keep. A page is 128 tokens of all layers that keep it equally long."""

    kept_page_bytes: int  # exact layers
    code_page_bytes: int  # encoded layers, past the exact pages
    recent_page_bytes: int  # encoded layers, f16, while a query still reads the page exactly
    sink_bytes: int  # a sequence
    windows: tuple[tuple[int, int], ...]  # (tokens, page bytes) of layers with a window
    record_bytes: int = 0  # all records at one length
    source_bytes: int = 0  # of a sequence

    @property
    def can_reuse_anywhere(self) -> bool:
        """Whether sequences may be cut and forked at any length."""
        return not self.code_page_bytes and not self.windows and not self.record_bytes

    def least_records(self, max_sequences: int, reuse_points: int) -> int:
        """Two for each sequence, since a step reads one and writes another, and one for each reuse point; 0 without."""
        return 2 * max_sequences + reuse_points if self.record_bytes else 0

    def records_bytes(self, max_sequences: int, max_records: int) -> int:
        """Of records, with one more for a scoring run to go back to, and of sources."""
        num_slots = max_records + 1 if max_records else 0
        return num_slots * self.record_bytes + max_sequences * self.source_bytes

    @property
    def state_traffic_bytes(self) -> int:
        """Of records, read and written for a decoded token."""
        return 2 * self.record_bytes

    @property
    def reuse_point_bytes(self) -> int:
        """What a place costs to which a conversation can go back; 0 where it can go back anywhere."""
        windows = sum((pages_for(window - 1) + 1) * page_bytes for window, page_bytes in self.windows)
        return 2 * self.recent_page_bytes + windows + self.record_bytes

    def conversation_bytes(self, num_tokens: int) -> int:
        """The most that one sequence of so many tokens takes, reuse points aside: pages, both records of a step, and
        sources."""
        pages = pages_for(num_tokens)
        total = pages * (self.kept_page_bytes + self.code_page_bytes) + 2 * self.record_bytes + self.source_bytes
        if self.code_page_bytes:
            total += min(pages, 3) * self.recent_page_bytes + self.sink_bytes
        return total + sum(min(pages, pages_for(window - 1) + 1) * size for window, size in self.windows)

    @property
    def token_bytes(self) -> float:
        """Bytes that one more token of a long sequence takes for good."""
        return (self.kept_page_bytes + self.code_page_bytes) / PAGE_TOKENS

    def bytes_of(self, *, kv_tokens: int, max_sequences: int, max_rows: int, reuse_points: int) -> int:
        """The most that `kv_tokens` tokens in whole pages take, with the exact pages of that many sequences, a step
        of `max_rows` and the reuse points."""
        pages = pages_for(kv_tokens)

        def transient(a_point: int) -> int:
            live = max_sequences * (a_point + 1) + max_rows // PAGE_TOKENS + 1
            return min(pages, live + a_point * (reuse_points + 2))

        total = pages * (self.kept_page_bytes + self.code_page_bytes)
        if self.code_page_bytes:
            total += transient(2) * self.recent_page_bytes + min(pages, max_sequences) * self.sink_bytes
        for window, page_bytes in self.windows:
            total += transient(pages_for(window - 1) + 1) * page_bytes
        return total

    def formula(self) -> str:
        """In words, for people: what a sequence of n tokens takes."""
        parts = []
        if self.token_bytes:
            parts.append(f"{self.token_bytes:,.0f} B a token")
        if self.recent_page_bytes:
            parts.append(f"2 to 3 exact pages of {self.recent_page_bytes:,} B for the end and 2 for a reuse point")
        for window, page_bytes in self.windows:
            parts.append(f"{pages_for(window - 1) + 1} pages of {page_bytes:,} B for windows of {window} tokens")
        if self.record_bytes:
            parts.append(f"1 to 2 records of {self.record_bytes:,} B and 1 for a reuse point")
        if self.source_bytes:
            parts.append(f"{self.source_bytes:,} B of sources")
        return " + ".join(parts) or "nothing"


def kv_layers(program: Program, plan: KvPlan) -> list[KvLayer]:
    """What each KV layer of the program keeps under a plan."""
    element = 4 if plan.element == "f32" else 2
    result = []
    for op, (k_bits, v_bits) in zip(_layers(program), plan.for_program(program).bits, strict=True):
        exact = _page_bytes(op, element)
        codes = sinks = 0
        if k_bits:
            codes = op.num_kv_heads * (
                round_up(2 * op.head_dim, _LINE_BYTES) + _codes(op.head_dim, k_bits) + _codes(op.v_dim, v_bits)
            )
            sinks = op.num_kv_heads * round_up((op.head_dim + op.v_dim) * SINK_TOKENS * 2, _LINE_BYTES)
        result.append(KvLayer(op.tokens if isinstance(op, Window) else None, exact, codes, sinks))
    return result


def kv_needs(program: Program, plan: KvPlan) -> KvNeeds:
    """Sizes of the program's cache under a plan."""
    layers = kv_layers(program, plan)
    windows: dict[int, int] = {}
    for layer in layers:
        if layer.window is not None:
            windows[layer.window] = windows.get(layer.window, 0) + layer.exact_bytes
    element = 4 if plan.element == "f32" else 2
    sources = [state for state in program.states if isinstance(state, Source)]
    records = [state for state in program.states if isinstance(state, Record)]
    return KvNeeds(
        record_bytes=_pages(sum(round_up(record.num_bytes, _LINE_BYTES) for record in records)),
        source_bytes=sum(_pages(_page_bytes(source, element) * pages_for(source.tokens)) for source in sources),
        kept_page_bytes=_pages(sum(la.exact_bytes for la in layers if la.window is None and not la.code_bytes)),
        code_page_bytes=_pages(sum(layer.code_bytes for layer in layers)),
        recent_page_bytes=_pages(sum(layer.exact_bytes for layer in layers if layer.code_bytes)),
        sink_bytes=_pages(sum(layer.sink_bytes for layer in layers)),
        windows=tuple((window, _pages(size)) for window, size in sorted(windows.items())),
    )


def _page_bytes(state: Pages, element: int) -> int:
    """128 tokens of one layer, kept exactly."""
    row = PAGE_TOKENS * element
    return state.num_kv_heads * (round_up(row * state.head_dim, _LINE_BYTES) + round_up(row * state.v_dim, _LINE_BYTES))


def num_kv_layers(program: Program) -> int:
    """KV layers of a program: what it keeps of every position, or of a window."""
    return len(_layers(program))


def pages_for(num_tokens: int) -> int:
    """Pages that `num_tokens` begin."""
    return -(-num_tokens // PAGE_TOKENS)


def _layers(program: Program) -> list[Pages]:
    return [state for state in program.states if is_by_position(state)]


def _codes(dim: int, bits: int) -> int:
    """Codes of a page, an f16 scale a vector and a 4-bit gain per 32 values: native/kernels/kv_codec_layout.h."""
    return 2 * PAGE_TOKENS + -(-dim // 32) * PAGE_TOKENS // 2 + dim * PAGE_TOKENS // 8 * bits


def _pages(num_bytes: int) -> int:
    return round_up(num_bytes, _SYSTEM_PAGE_BYTES)
