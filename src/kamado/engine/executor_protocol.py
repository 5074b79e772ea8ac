"""What the engine needs of an executor: the native one, or a scripted one in tests."""

from __future__ import annotations

from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Ids: TypeAlias = NDArray[np.int32]
Rows: TypeAlias = NDArray[np.float32]


class ExecutorProtocol(Protocol):
    """The part of `_native.Executor` that the engine calls. One thread owns it; only `cancel` may come from others."""

    @property
    def vocab_size(self) -> int:
        """Width of a row of logits."""

    @property
    def hidden_width(self) -> int:
        """Width of a row from which logits are made."""

    def create_sequence(self) -> int:
        """A new empty sequence's id."""

    def free_sequence(self, sequence: int) -> None:
        """Gives the sequence's pages back; the id may come again."""

    def fork_sequence(self, sequence: int, num_tokens: int) -> int:
        """A new sequence that begins with the first `num_tokens`; full pages are shared, a partial one is copied.

        ValueError where `last_reusable` gives less.
        """

    def truncate(self, sequence: int, num_tokens: int) -> None:
        """Forgets what comes after the first `num_tokens`."""

    @property
    def num_pages(self) -> int:
        """Pages of 128 tokens, of all sequences together."""

    @property
    def num_free_pages(self) -> int:
        """Pages that no sequence holds."""

    def reserve(self, sequence: int, num_tokens: int) -> bool:
        """Takes pages for the first `num_tokens`, and for the copy of a shared one that will be written; False, and
        nothing has changed, when there are not enough."""

    def give_back(self, sequence: int) -> None:
        """Returns what was reserved beyond the sequence's length."""

    def count_pages(self, sequences: list[int]) -> int:
        """Distinct pages of these sequences, those being imported included."""

    def shared_pages(self, sequence: int, first_page: int) -> int:
        """Of the sequence's pages from `first_page` on, those that another one holds too."""

    @property
    def num_free_records(self) -> int:
        """Records that no sequence, reuse point or running step holds; 0 in a program without."""

    def set_source(self, sequence: int, state: int, k: NDArray[np.float32], v: NDArray[np.float32]) -> None:
        """Fills a Source once, before the sequence's first step: float32[n, heads · dimensions] each."""

    @property
    def can_reuse_anywhere(self) -> bool:
        """Whether any length may be forked or truncated to: not so where pages are encoded or behind a window, or
        where a step replaces what the sequence keeps (a record)."""

    def mark_reuse(self, sequence: int) -> None:
        """The present length becomes a reuse point, kept while exact pages and records last. Copies nothing."""

    def unmark_reuse(self, sequence: int, num_tokens: int) -> None:
        """That length is no reuse point any more; ValueError when it is none, or was given up."""

    def last_reusable(self, sequence: int, num_tokens: int) -> int:
        """The greatest length up to `num_tokens` that may be forked, truncated to or exported."""

    @property
    def kv_fingerprint(self) -> str:
        """Names what exported bytes mean."""

    def page_bytes(self) -> int:
        """Bytes of one exported page."""

    def settled_pages(self, num_tokens: int) -> int:
        """Pages that `export_pages` has for a prefix of that length."""

    def tail_bytes(self, num_tokens: int) -> int:
        """Bytes of `export_tail` at that length."""

    def export_pages(self, sequence: int, first_page: int, last_page: int) -> bytes:
        """Pages [first_page, last_page) as they are kept."""

    def export_tail(self, sequence: int, num_tokens: int) -> bytes:
        """What comes after the settled pages at a reusable length."""

    def begin_import(self, num_tokens: int) -> int:
        """A sequence to be filled from what the two exports gave; ValueError when there are no pages for it."""

    def import_pages(self, sequence: int, first_page: int, last_page: int, pages: memoryview) -> None:
        """The next settled pages; ValueError when they are not, or a size is wrong."""

    def import_tail(self, sequence: int, tail: memoryview) -> None:
        """The rest. Until then the sequence can only be freed; ValueError as `import_pages`."""

    def length(self, sequence: int) -> int:
        """Tokens in the cache."""

    def step(self, sequences: Ids, counts: Ids, tokens: Ids, logit_rows: Ids, hidden: bool = False) -> Rows:
        """Appends `counts[i]` tokens to `sequences[i]`; float32[len(logit_rows), vocab], valid until the next step.

        With `hidden`, the rows from which logits would be made: float32[len(logit_rows), hidden_width].

        When it raises, the sequences are as before it.
        """

    def score(self, sequence: int, tokens: NDArray[np.int32], targets: NDArray[np.int32]) -> NDArray[np.float64]:
        """Appends tokens; per token the log-probability of `targets[i]`, 0.0 where that is -1."""

    def tile_kv(self, sequence: int, num_tokens: int) -> None:
        """Fills the cache up to `num_tokens` with repetitions, for speed measurements."""

    def record_queries(self, stride: int) -> None:
        """Steps keep the queries of wanted rows at multiples of `stride`; 0: no longer. Forgets those kept before."""

    def recorded_queries(self, layer: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Positions, and float32[n, heads, head_dim] as attention takes them, of one KV layer."""

    def read_kv(
        self, sequence: int, layer: int, k_bits: int, v_bits: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Keys and values of an exact layer, float32[kv_heads, length, dim], by way of codes unless bits are 0."""

    def cancel(self) -> None:
        """The running or the next step raises the executor's Cancelled. From any thread."""

    def stats(self) -> dict[str, float]:
        """Bytes by owner, and seconds by kind of operation."""

    def close(self) -> None:
        """Gives all memory back."""
