#!/usr/bin/env python3
"""Where the time of a step goes, by kind of operation: for prefill and for decode, and what records carry a second.

    step_shares.py MODEL.gguf… [--prefill 512] [--decode 64] [--runs 5] [--threads 2] [--tier avx2] [--json out.json]

Medians of the runs. The bandwidth that the records' traffic is held against is probed before and after each model in the
same process, by as many threads. What a decoded token reads and writes of records is counted once each.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np

from kamado.files import open_checkpoint
from kamado.measure import Bench, cost_of, executor_of, program_of
from kamado.plan.forecast import plan
from kamado.plan.machine import measure_device

MARGIN_TOKENS = 128  # beside the measured ones, so that no run ends at the cache's last page


def shares_of(executor: Any, work: Any, runs: int) -> dict[str, Any]:
    """Medians over `runs` of the share of each kind, and of the seconds of records a row."""
    samples = []
    for _ in range(runs):
        before = executor.stats()
        work()
        after = executor.stats()
        samples.append({name: after[name] - before[name] for name in after if name.startswith("seconds_") or name == "rows"})
    kinds = [name for name in samples[0] if name.startswith("seconds_") and name != "seconds_total"]
    return {
        "ms_a_row": statistics.median(1e3 * s["seconds_total"] / s["rows"] for s in samples),
        "records_ms_a_row": statistics.median(1e3 * s["seconds_records"] / s["rows"] for s in samples),
        "shares": {
            kind.removeprefix("seconds_"): round(statistics.median(s[kind] / s["seconds_total"] for s in samples), 4)
            for kind in kinds
        },
    }


def measure(path: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Prefill's and decode's shares of one model."""
    checkpoint = open_checkpoint(path)
    program = program_of(checkpoint)
    tokens = max(options.prefill, options.decode) + MARGIN_TOKENS
    forecast = plan(checkpoint, program, context=tokens, threads=options.threads, max_sequences=2, worker=False)
    forecast.require_fit()
    cost = cost_of(program, forecast.weight_bytes_per_token, forecast.ops_per_token, forecast.kv)
    bandwidth = [measure_device(options.threads).read_bytes_per_second]
    executor = executor_of(
        program.for_context(forecast.context), num_threads=options.threads, max_rows=options.prefill, max_logit_rows=16,
        max_kv_tokens=forecast.kv_tokens, max_sequences=2, kv="f16", **({"tier": options.tier} if options.tier else {}),
    )  # fmt: skip
    with contextlib.closing(executor):
        bench = Bench(executor, cost, max_rows=options.prefill, profile=None, repetitions=1)
        bench.prefill(options.prefill)
        result: dict[str, Any] = {
            "model": path.name,
            "tier": options.tier or "best",
            "prefill": shares_of(executor, lambda: bench.prefill(options.prefill), options.runs),
            "decode": shares_of(executor, lambda: bench.decode(options.decode, 0), options.runs),
            "state_bytes_a_token": cost.state_bytes,
        }
    bandwidth.append(measure_device(options.threads).read_bytes_per_second)
    result["bandwidth_bytes_per_second"] = bandwidth
    seconds = result["decode"]["records_ms_a_row"] / 1e3
    if cost.state_bytes and seconds:
        result["records_share_of_bandwidth"] = cost.state_bytes / seconds / float(np.mean(bandwidth))
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--decode", type=int, default=64)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tier", help="avx2, avx512; without it this machine's best")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = [measure(path, options) for path in options.models]
    for result in results:
        for kind in ("prefill", "decode"):
            shares = ", ".join(f"{name} {100 * share:.1f} %" for name, share in result[kind]["shares"].items() if share)
            print(f"{result['model']} ({result['tier']}), {kind}: {result[kind]['ms_a_row']:.3f} ms a token; {shares}")
        if "records_share_of_bandwidth" in result:
            print(f"  records: {result['state_bytes_a_token'] / 1e6:.1f} MB a token in "
                  f"{result['decode']['records_ms_a_row']:.3f} ms, {100 * result['records_share_of_bandwidth']:.0f} % of "
                  f"{np.mean(result['bandwidth_bytes_per_second']) / 1e9:.1f} GB/s")  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps(results, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
