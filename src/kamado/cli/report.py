"""What `--stats` prints after the work: memory by owner against the plan, and the ledger of streamed experts."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..plan.budget import format_size
from .terminal import aligned, note, styled

if TYPE_CHECKING:
    from .. import Ledger, Stats
    from .connection import Answering


def report_stats(model: Answering) -> None:
    """Both tables on stderr."""
    stats = model.stats
    for line in memory_lines(stats):
        note(line)
    if stats.ledger is not None:
        for line in ledger_lines(stats.ledger):
            note(line)


def memory_lines(stats: Stats) -> list[str]:
    """Bytes by owner, planned and in use, and whether the budget was kept."""
    rows = owner_rows(stats.planned_by_owner, stats.bytes_by_owner)
    lines = aligned(("memory", "planned", "in use"), rows, right=(1, 2))
    verdict = styled("kept", sys.stderr, fg="green") if stats.has_held else styled("exceeded", sys.stderr, fg="red")
    line = f"peak {format_size(stats.peak_bytes)} of {format_size(stats.budget_bytes)}: the budget was {verdict}"
    lines.append(line)
    if stats.cgroup_peak_bytes is not None:
        line = f"this cgroup counted at most {format_size(stats.cgroup_peak_bytes)}, others in it included"
        if stats.cgroup_cache_bytes is not None:
            line += f"; page cache of all files now {format_size(stats.cgroup_cache_bytes)}"
        lines.append(line)
    return lines


def owner_rows(planned: Mapping[str, int], used: Mapping[str, int]) -> list[Sequence[str]]:
    """A row for every owner that has bytes in the plan or in use."""

    def cell(size: int | None) -> str:
        return "-" if size is None else format_size(size)

    names = [name for name in dict.fromkeys((*planned, *used)) if planned.get(name) or used.get(name)]
    return [(name.replace("_", " "), cell(planned.get(name)), cell(used.get(name))) for name in names]


def ledger_lines(ledger: Ledger) -> list[str]:
    """One line a layer, the total, and what the columns mean."""
    header, rows = ledger.table()
    kind = "direct reads" if ledger.is_direct else "buffered reads"
    return [
        f"experts: {ledger.slots} slots in {format_size(ledger.slot_bytes)}, {kind} by {ledger.num_readers} threads",
        *aligned(header, rows, right=tuple(range(len(header)))),
    ]
