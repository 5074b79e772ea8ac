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

    metrics.read_counter(
        "kamado_engine_tokens_total",
        "Tokens by kind: prompt, reused from the cache, computed in prefill and in decode.",
        by_key("tokens"),
        ("model", "kind"),
    )
    metrics.read_counter(
        "kamado_engine_seconds_total", "Seconds of steps by kind.", by_key("seconds"), ("model", "kind")
    )
    metrics.read_counter(
        "kamado_operation_seconds_total",
        "Seconds by kind of operation.",
        by_key("executor_seconds"),
        ("model", "operation"),
    )

    def by_owner() -> Iterable[Sample]:
        yield from by_key("bytes_by_owner")()
        for owner, nbytes in own().items():
            yield ("", owner), float(nbytes)

    metrics.gauge(
        "kamado_memory_bytes", "Memory by owner; the server's own has no model.", by_owner, ("model", "owner")
    )
    metrics.gauge("kamado_engine_requests", "Requests by state.", by_key("requests"), ("model", "state"))
    metrics.gauge(
        "kamado_kv_pages",
        "Pages of the KV cache by state: live, kept for reuse, free, lost (0 unless there is a fault).",
        by_key("kv_pages"),
        ("model", "state"),
    )
    metrics.gauge(
        "kamado_prefix_store", "Totals of the prefix store since the model was loaded.", by_key("prefix_store"),
        ("model", "what"),
    )  # fmt: skip
    metrics.read_counter("kamado_engine_steps_total", "Steps of the executor.", single("num_steps"), ("model",))
    metrics.read_counter(
        "kamado_engine_aborted_steps_total",
        "Steps done again for another's sake.",
        single("num_aborted_steps"),
        ("model",),
    )
    metrics.read_counter(
        "kamado_engine_preempted_total",
        "Requests that lost their pages for a while.",
        single("num_preempted"),
        ("model",),
    )
    metrics.gauge("kamado_peak_bytes", "The largest memory use so far.", single("peak_bytes"), ("model",))
    metrics.gauge(
        "kamado_budget_bytes", "Memory that was promised not to be exceeded.", single("budget_bytes"), ("model",)
    )
    for name, text in (
        ("hits", "Experts that were in memory when needed."),
        ("misses", "Experts that were read from disk."),
        ("bytes_read", "Bytes of experts read from disk."),
    ):
        metrics.read_counter(f"kamado_expert_{name}_total", text, ledger(name), ("model",))
