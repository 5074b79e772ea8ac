"""What the engine did since it was loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...plan.forecast import Plan
from ...plan.usage import BudgetWatch
from ..cache.prefix_saver import PrefixSaver
from ..cache.sequences import SequenceCache
from .ledger import Ledger, read_ledger

# The executor's names of owners and ours.
_OWNERS = {"weight_bytes": "weights", "expert_bytes": "experts"}


@dataclass(slots=True)
class Counters:
    """Totals that the scheduler's thread adds to."""

    num_requests: int = 0
    num_prompt_tokens: int = 0  # tokens of all prompts
    num_reused_tokens: int = 0  # of those, found in the cache
    num_prefill_tokens: int = 0  # rows computed that no token was picked after, or that ended a prompt
    num_decode_tokens: int = 0  # rows that one token went in and one came out
    num_steps: int = 0
    num_aborted_steps: int = 0  # cancelled while they ran, and done again for the others
    num_preempted: int = 0  # requests that lost their pages to older ones and were computed again
    prefill_seconds: float = 0.0  # a step with both kinds is divided by rows
    decode_seconds: float = 0.0
    sample_seconds: float = 0.0  # picking tokens and making text

    def add_step(self, num_decode: int, num_rows: int, step_seconds: float, sample_seconds: float) -> None:
        """One more step, of `num_rows` rows."""
        self.num_steps += 1
        self.sample_seconds += sample_seconds
        self.num_decode_tokens += num_decode
        self.num_prefill_tokens += num_rows - num_decode
        self.decode_seconds += step_seconds * num_decode / num_rows
        self.prefill_seconds += step_seconds * (num_rows - num_decode) / num_rows


@dataclass(frozen=True, slots=True)
class Stats:
    """A copy of the totals, and the bytes of each owner. Seconds are of wall clock, bytes of memory."""

    tokens: dict[str, int]  # prompt, reused, prefill, decode
    seconds: dict[str, float]  # prefill, decode, sample
    executor_seconds: dict[str, float]  # by kind of operation: linear, attend, …
    prefill_tokens_per_second: float
    decode_tokens_per_second: float  # all conversations together
    bytes_by_owner: dict[str, int]  # weights, experts, kv, scratch as the executor counts them; interpreter, …
    peak_bytes: int  # the most so far of all that a container counts: see `kamado.plan.usage.BudgetWatch`
    requests: dict[str, int]  # finished and running together; waiting, live, sequences ("sessions")
    kv_pages: dict[str, int]  # of PAGE_TOKENS tokens: live, kept for reuse, free; lost is 0, or pages leak
    num_steps: int
    num_aborted_steps: int
    num_preempted: int
    # Lengths that sequences can be gone back to: held now; given_up since the model was loaded, when room ran out.
    reuse_points: dict[str, int] = field(default_factory=dict)
    records: dict[str, int] = field(default_factory=dict)  # used, free; empty where steps replace no state
    budget_bytes: int = 0  # what the plan promised not to exceed
    has_held: bool = True  # whether the peak is within it
    planned_by_owner: dict[str, int] = field(default_factory=dict)
    file_cache_bytes: int | None = None  # of the model's files now; None: not known
    cgroup_cache_bytes: int | None = None  # of all files that our cgroup was charged for
    cgroup_peak_bytes: int | None = None  # what our cgroup counted, others in it included, since it was made
    ledger: Ledger | None = None  # of streamed experts
    prefix_store: dict[str, float] | None = None  # prefixes saved, restored, refused, given up; None: it is off

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return values | {"ledger": None if self.ledger is None else self.ledger.to_dict()}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the scheduler's thread hands out when asked."""

    counters: Counters
    executor: dict[str, float]
    requests: dict[str, int] = field(default_factory=dict)
    kv_pages: dict[str, int] = field(default_factory=dict)
    ledger: Ledger | None = None


def snapshot_of(counters: Counters, sequences: SequenceCache, *, num_waiting: int, num_live: int) -> Snapshot:
    """A copy of what there is now. On the scheduler's thread."""
    requests = {
        "total": counters.num_requests,
        "waiting": num_waiting,
        "live": num_live,
        "sessions": sequences.num_sequences,
    }
    executor = sequences.executor
    return Snapshot(
        dataclasses.replace(counters), executor.stats(), requests, sequences.count_pages(), read_ledger(executor)
    )


def make_stats(
    snapshot: Snapshot, plan: Plan, watch: BudgetWatch, saver: PrefixSaver | None = None, *, constraint_bytes: int = 0,
    unplanned: Mapping[str, int] | None = None,
) -> Stats:  # fmt: skip
    """Turns a snapshot into what callers see, and looks at the memory in use. `unplanned`: bytes that owners got, or
    lost, since the plan was made."""
    c = snapshot.counters
    use = watch.sample()
    owners = {
        _OWNERS.get(name, name.removesuffix("_bytes")): int(value)
        for name, value in snapshot.executor.items()
        if name.endswith("_bytes")
    }
    if not owners.get("records"):
        owners.pop("records", None)  # a program without state that steps replace
    if snapshot.ledger is not None:
        owners.setdefault("experts", snapshot.ledger.slot_bytes)
    if constraint_bytes:
        owners["constraints"] = constraint_bytes
    mapped_bytes = use.mapped_file_bytes if use.library_bytes is not None else 0  # then the libraries have them
    owners["interpreter"] = max(0, use.resident_bytes - mapped_bytes - sum(owners.values()))
    if use.file_cache_bytes is not None:
        owners["file_cache"] = use.file_cache_bytes
    if use.library_bytes is not None:
        owners["libraries"] = max(use.library_bytes, mapped_bytes)
    owners["kernel"] = use.kernel_bytes
    if "worker" in plan.bytes_by_owner:
        owners["worker"] = use.worker_bytes
    records = _counts(snapshot.executor, used="records_used", free="records_free")
    executor_seconds = {
        name.removeprefix("seconds_"): value for name, value in snapshot.executor.items() if name.startswith("seconds_")
    }
    return Stats(
        tokens={
            "prompt": c.num_prompt_tokens,
            "reused": c.num_reused_tokens,
            "prefill": c.num_prefill_tokens,
            "decode": c.num_decode_tokens,
        },
        seconds={"prefill": c.prefill_seconds, "decode": c.decode_seconds, "sample": c.sample_seconds},
        executor_seconds=executor_seconds,
        prefill_tokens_per_second=c.num_prefill_tokens / c.prefill_seconds if c.prefill_seconds > 0 else 0.0,
        decode_tokens_per_second=c.num_decode_tokens / c.decode_seconds if c.decode_seconds > 0 else 0.0,
        bytes_by_owner=owners,
        peak_bytes=watch.peak_bytes,
        requests=dict(snapshot.requests),
        kv_pages=dict(snapshot.kv_pages),
        num_steps=c.num_steps,
        num_aborted_steps=c.num_aborted_steps,
        num_preempted=c.num_preempted,
        reuse_points=_counts(snapshot.executor, held="kv_reuse_points", given_up="kv_points_given_up"),
        records=records if any(records.values()) else {},
        budget_bytes=watch.budget_bytes,
        has_held=watch.has_held,
        planned_by_owner=dict(plan.bytes_by_owner)
        | {name: plan.bytes_by_owner.get(name, 0) + more for name, more in (unplanned or {}).items()},
        file_cache_bytes=use.file_cache_bytes,
        cgroup_cache_bytes=use.cgroup_cache_bytes,
        cgroup_peak_bytes=use.cgroup_peak_bytes,
        ledger=snapshot.ledger,
        prefix_store=None if saver is None else dataclasses.asdict(saver.stats),
    )


def _counts(executor: Mapping[str, float], **names: str) -> dict[str, int]:
    """Of what the executor counted, that of these names; nothing of those it does not count."""
    return {key: int(executor[name]) for key, name in names.items() if name in executor}
