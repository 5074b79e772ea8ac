"""What measurements need beside `kamado.load`: for `kamado bench`, `kv`, `perplexity`, `plan`, `show` and the server's
choice of a context.

    program_of       the forward pass of a file, from its header: what it computes and which settings were left out
    supported_architectures    the names of architectures that it knows
    executor_of      the native executor of a program, without sampling and text
    Bench, cost_of   prefill and decode of such an executor, timed; `reset_peak_rss` before it
    read_ledger      what streamed experts cost so far; `Tracer` writes an executor's steps for Perfetto
    measure_kv       what smaller KV caches cost on a model, recorded; `is_safe` and `delicate_layers` judge it, and
                     `recommended_for` is what `kv="auto"` then takes
    kept_schema_bytes, KEPT_SCHEMA_BYTES   what compiled schemas take in this process, and the most they may
    prefix_store_bytes                     what a program's prefix store takes in memory

Perplexity is `Model.perplexity`.

Nothing is imported until it is asked for.

    checkpoint = kamado.files.open_checkpoint(path)
    plan = kamado.plan.forecast.plan(checkpoint, program_of(checkpoint), kv_recommended=recommended_for(checkpoint))
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .._native import Executor
    from ..engine.forms.json_schema import KEPT_BYTES as KEPT_SCHEMA_BYTES
    from ..engine.forms.json_schema import kept_bytes as kept_schema_bytes
    from ..engine.load import prefix_store_bytes
    from ..engine.measure.kv_attention import delicate_layers
    from ..engine.measure.kv_measure import MAX_DIVERGENCE, MAX_RISE_PERCENT, is_safe, measure_kv
    from ..engine.measure.kv_results import KvLayerRow, recommended_for
    from ..engine.measure.trace import Tracer
    from ..engine.schedule.ledger import Ledger, LedgerRow, read_ledger
    from ..lower import build_executor as executor_of
    from ..models import build_program as program_of
    from ..models import supported_architectures
    from .speed import WARM_UP_STEPS, Bench, Cost, Measurement, cost_of, reset_peak_rss

__all__ = [
    "KEPT_SCHEMA_BYTES",
    "MAX_DIVERGENCE",
    "MAX_RISE_PERCENT",
    "WARM_UP_STEPS",
    "Bench",
    "Cost",
    "Executor",
    "KvLayerRow",
    "Ledger",
    "LedgerRow",
    "Measurement",
    "Tracer",
    "cost_of",
    "delicate_layers",
    "executor_of",
    "is_safe",
    "kept_schema_bytes",
    "measure_kv",
    "prefix_store_bytes",
    "program_of",
    "read_ledger",
    "recommended_for",
    "reset_peak_rss",
    "supported_architectures",
]

# Where each is, and its name there.
_LAZY = {
    "Executor": (".._native", "Executor"),
    "Bench": (".speed", "Bench"),
    "Cost": (".speed", "Cost"),
    "KEPT_SCHEMA_BYTES": ("..engine.forms.json_schema", "KEPT_BYTES"),
    "KvLayerRow": ("..engine.measure.kv_results", "KvLayerRow"),
    "Ledger": ("..engine.schedule.ledger", "Ledger"),
    "LedgerRow": ("..engine.schedule.ledger", "LedgerRow"),
    "MAX_DIVERGENCE": ("..engine.measure.kv_measure", "MAX_DIVERGENCE"),
    "MAX_RISE_PERCENT": ("..engine.measure.kv_measure", "MAX_RISE_PERCENT"),
    "Measurement": (".speed", "Measurement"),
    "prefix_store_bytes": ("..engine.load", "prefix_store_bytes"),
    "Tracer": ("..engine.measure.trace", "Tracer"),
    "WARM_UP_STEPS": (".speed", "WARM_UP_STEPS"),
    "cost_of": (".speed", "cost_of"),
    "delicate_layers": ("..engine.measure.kv_attention", "delicate_layers"),
    "executor_of": ("..lower", "build_executor"),
    "is_safe": ("..engine.measure.kv_measure", "is_safe"),
    "kept_schema_bytes": ("..engine.forms.json_schema", "kept_bytes"),
    "measure_kv": ("..engine.measure.kv_measure", "measure_kv"),
    "program_of": ("..models", "build_program"),
    "read_ledger": ("..engine.schedule.ledger", "read_ledger"),
    "recommended_for": ("..engine.measure.kv_results", "recommended_for"),
    "reset_peak_rss": (".speed", "reset_peak_rss"),
    "supported_architectures": ("..models", "supported_architectures"),
}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module, attribute = _LAZY[name]
    return getattr(import_module(module, __name__), attribute)
