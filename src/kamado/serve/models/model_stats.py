"""What the engines of loaded models counted, as metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ..metrics import Labels, Registry, Sample

AllStats = Callable[[], Mapping[str, Mapping[str, Any]]]  # by model: engine/schedule/stats.py's Stats.to_dict


def register_model_stats(metrics: Registry, read: AllStats, own: Callable[[], Mapping[str, int]] = dict) -> None:
    """Adds the metrics; each reads what `read` gives at that moment. `own`: bytes by owner that are no model's."""

    def numbers(pick: Callable[[Mapping[str, Any]], Mapping[Labels, Any]]) -> Callable[[], Iterable[Sample]]:
        """A series a model for each number that `pick` finds in its stats, by the labels besides the model's."""

        def samples() -> Iterable[Sample]:
            for model, stats in read().items():
                for labels, value in pick(stats).items():
                    if isinstance(value, (int, float)):
                        yield (model, *labels), float(value)

        return samples

    def by_key(group: str) -> Callable[[], Iterable[Sample]]:
        return numbers(lambda stats: {(str(key),): value for key, value in (stats.get(group) or {}).items()})

    def single(name: str) -> Callable[[], Iterable[Sample]]:
        return numbers(lambda stats: {(): stats.get(name)})

    def ledger(name: str) -> Callable[[], Iterable[Sample]]:
        return numbers(lambda stats: {(): ((stats.get("ledger") or {}).get("total") or {}).get(name)})

    def by_owner() -> Iterable[Sample]:
        yield from by_key("bytes_by_owner")()
        for owner, nbytes in own().items():
            yield ("", owner), float(nbytes)

    counter, gauge = metrics.read_counter, metrics.gauge
    kinds = "Tokens by kind: prompt, reused from the cache, computed in prefill and in decode."
    pages = "Pages of the KV cache by state: live, kept for reuse, free, lost (0 unless there is a fault)."
    records = "Records (state that steps replace): used by conversations and reuse points, free."
    points = "Lengths that conversations can be gone back to: held now, given_up (a total) when room ran out."
    store = "Totals of the prefix store since the model was loaded."
    for add, name, text, samples, *label in (
        (counter, "kamado_engine_tokens_total", kinds, by_key("tokens"), "kind"),
        (counter, "kamado_engine_seconds_total", "Seconds of steps by kind.", by_key("seconds"), "kind"),
        (
            counter, "kamado_operation_seconds_total", "Seconds by kind of operation.", by_key("executor_seconds"),
            "operation",
        ),
        (gauge, "kamado_memory_bytes", "Memory by owner; the server's own has no model.", by_owner, "owner"),
        (gauge, "kamado_engine_requests", "Requests by state.", by_key("requests"), "state"),
        (gauge, "kamado_kv_pages", pages, by_key("kv_pages"), "state"),
        (gauge, "kamado_records", records, by_key("records"), "state"),
        (gauge, "kamado_reuse_points", points, by_key("reuse_points"), "state"),
        (gauge, "kamado_prefix_store", store, by_key("prefix_store"), "what"),
        (counter, "kamado_engine_steps_total", "Steps of the executor.", single("num_steps")),
        (
            counter, "kamado_engine_aborted_steps_total", "Steps done again for another's sake.",
            single("num_aborted_steps"),
        ),
        (
            counter, "kamado_engine_preempted_total", "Requests that lost their pages for a while.",
            single("num_preempted"),
        ),
        (gauge, "kamado_peak_bytes", "The largest memory use so far.", single("peak_bytes")),
        (gauge, "kamado_budget_bytes", "Memory that was promised not to be exceeded.", single("budget_bytes")),
        (counter, "kamado_expert_hits_total", "Experts that were in memory when needed.", ledger("hits")),
        (counter, "kamado_expert_misses_total", "Experts that were read from disk.", ledger("misses")),
        (counter, "kamado_expert_bytes_read_total", "Bytes of experts read from disk.", ledger("bytes_read")),
    ):  # fmt: skip
        add(name, text, samples, ("model", *label))
