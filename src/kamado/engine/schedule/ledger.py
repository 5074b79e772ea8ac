"""The ledger of streamed experts: what was read, found in memory and waited for, per layer and in total."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_COUNTS = ("hits", "misses", "bytes_read", "requests", "lookahead_hits", "lookahead_wrong")
_SECONDS = ("read_seconds", "wait_seconds", "compute_seconds")
_ADDED = (*_COUNTS, *_SECONDS, "busy_seconds")


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """One layer, or all of them. Seconds of reading are summed over requests, which overlap."""

    hits: int = 0  # experts that an operation needed and found in memory, once each however many rows picked them
    misses: int = 0
    bytes_read: int = 0
    requests: int = 0
    lookahead_hits: int = 0  # read ahead and then needed
    lookahead_wrong: int = 0  # read ahead and given up unused
    read_seconds: float = 0.0
    wait_seconds: float = 0.0  # with nothing left to compute
    compute_seconds: float = 0.0
    busy_seconds: float = 0.0  # with at least one read under way; of a layer, its reading shared out over the readers

    @property
    def hit_rate(self) -> float | None:
        """Share of needed experts that were in memory, not only read ahead; None before any was needed."""
        return _share(self.hits, self.hits + self.misses + self.lookahead_hits)

    @property
    def request_bytes(self) -> float | None:
        """Mean size of a read."""
        return _share(self.bytes_read, self.requests)

    @property
    def overlap(self) -> float | None:
        """Share of the disk's time that computing did not wait for."""
        share = _share(self.wait_seconds, self.busy_seconds)
        return None if share is None else max(0.0, 1 - share)

    @property
    def lookahead_recall(self) -> float | None:
        """Of the experts that had to be read, the share that had been read ahead; None when look-ahead read nothing."""
        if not self.lookahead_hits + self.lookahead_wrong:
            return None
        return _share(self.lookahead_hits, self.lookahead_hits + self.misses)

    def to_dict(self) -> dict[str, Any]:
        """Plain data with the derived figures."""
        names = ("hit_rate", "request_bytes", "overlap", "lookahead_recall")
        values = {name: getattr(self, name) for name in _ADDED}
        return values | {name: None if (v := getattr(self, name)) is None else round(v, 4) for name in names}


@dataclass(frozen=True, slots=True)
class Ledger:
    """What `Executor.ledger()` counted since the model was loaded."""

    layers: Mapping[int, LedgerRow]
    slots: int
    slot_bytes: int  # of all slots
    record_bytes: int  # of the largest expert in the file
    is_direct: bool  # reads go past the page cache
    num_readers: int
    busy_seconds: float = 0.0

    @property
    def total(self) -> LedgerRow:
        """All layers together."""
        rows = list(self.layers.values())
        sums = {name: sum(getattr(row, name) for row in rows) for name in (*_COUNTS, *_SECONDS)}
        return LedgerRow(**sums, busy_seconds=self.busy_seconds)

    def since(self, earlier: Ledger) -> Ledger:
        """What was added after `earlier`."""
        layers = {}
        for layer, row in self.layers.items():
            before = earlier.layers.get(layer, LedgerRow())
            layers[layer] = LedgerRow(**{name: getattr(row, name) - getattr(before, name) for name in _ADDED})
        return dataclasses.replace(self, layers=layers, busy_seconds=self.busy_seconds - earlier.busy_seconds)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "slots": self.slots,
            "slot_bytes": self.slot_bytes,
            "record_bytes": self.record_bytes,
            "direct_io": self.is_direct,
            "readers": self.num_readers,
            "total": self.total.to_dict(),
            "layers": [{"layer": layer} | row.to_dict() for layer, row in self.layers.items()],
        }

    def table(self) -> tuple[Sequence[str], list[Sequence[str]]]:
        """Header and rows as text, one row a layer and the total last."""
        header = ("layer", "read", "reads", "a read", "hits", "compute", "wait", "overlap", "ahead")
        rows = [_cells(str(layer), row) for layer, row in self.layers.items()]
        return header, [*rows, _cells("all", self.total)]


def read_ledger(executor: object) -> Ledger | None:
    """The executor's ledger; None when all experts are resident, or there are none."""
    read = getattr(executor, "ledger", None)  # scripted executors have none
    raw: Mapping[str, Any] | None = read() if read is not None else None
    if raw is None or raw["resident"] or not raw["layers"]:
        return None
    num_readers = max(1, int(raw["readers"]))
    names = (*_COUNTS, *_SECONDS)
    layers = {
        int(row["layer"]): LedgerRow(
            **{name: row[name] for name in names}, busy_seconds=row["read_seconds"] / num_readers
        )
        for row in raw["layers"]
    }
    return Ledger(
        layers=layers,
        slots=int(raw["slots"]),
        slot_bytes=int(raw["slot_bytes"]),
        record_bytes=int(raw["expert_record_bytes"]),
        is_direct=bool(raw["direct_io"]),
        num_readers=num_readers,
        busy_seconds=float(raw["busy_seconds"]),
    )


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None


def _cells(name: str, row: LedgerRow) -> Sequence[str]:
    from ...plan.budget import format_size

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{value:.1%}"

    size = row.request_bytes
    return (
        name,
        format_size(row.bytes_read),
        f"{row.requests}",
        "-" if size is None else format_size(round(size)),
        percent(row.hit_rate),
        f"{row.compute_seconds:.2f}s",
        f"{row.wait_seconds:.2f}s",
        percent(row.overlap),
        percent(row.lookahead_recall),
    )
