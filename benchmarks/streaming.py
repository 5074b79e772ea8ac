#!/usr/bin/env python3
"""Tokens a second against memory: kamado and llama.cpp (mmap) in the same cgroup, alternating, from a cold page cache.

    benchmarks/streaming.py MODEL.gguf --peer DIR --budgets 6GiB,4GiB --json OUT.json --markdown OUT.md --svg OUT.svg

Each run is in a memory cgroup of the budget's size, which counts cached pages. kamado is given no budget of its own: it
finds the cgroup's. The disk is probed right before and after each run, with as many requests at once and of the size
kamado uses, because shared disks drift by 2 to 3 times within a minute. The peer runs at read-ahead 128 KiB, its best,
and with the machine's own. Without the rights for cgroups, the cache or read-ahead, what cannot be done is skipped and
said so.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from capped import CappedRun, NotPossibleError, device_of, drop_caches, read_ahead, run_capped
from curve import Curve, svg
from kamado.memory.budget import format_size, parse_size
from kamado.memory.disk import measure_disk
from peers import call, circumstances, idle_share, tool, write_json

TUNED_READ_AHEAD_KIB = 128


def run_kamado(options: argparse.Namespace, model: Path, limit: int | None) -> dict[str, Any]:
    """One cold run; figures are of the last repetition, when the slots are full."""
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        settings = {
            "prefill": options.prefill, "decode": options.decode, "depth": options.depth, "repeat": options.repeat,
            "context": options.context, "threads": options.threads, "trace": trace,
        }  # fmt: skip
        words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
        command = [*options.kamado, "bench", str(model), "--json", *words]
        run = run_capped(command, limit, timeout=options.timeout, device=options.device)
        if run.code != 0:
            return failed(run)
        document = json.loads(run.stdout)
        steps = [event for event in json.loads(trace.read_text()) if event.get("name") == "decode"]
    by_kind = {result["kind"]: result for result in document["results"]}
    last = steps[-options.decode :]
    sums = {name: sum(step["args"].get(name, 0) for step in last) for name in ("bytes_read", "hits", "misses")}
    ledger = document["ledger"]
    return outcome(run) | {
        "decode_tokens_per_second": by_kind["decode"]["samples"][-1],
        "prefill_tokens_per_second": by_kind["prefill"]["samples"][-1] if "prefill" in by_kind else None,
        "bytes_per_token": sums["bytes_read"] / options.decode,
        "hit_rate": sums["hits"] / max(1, sums["hits"] + sums["misses"]),
        "request_bytes": None if ledger is None else ledger["total"]["request_bytes"],
        "overlap": None if ledger is None else ledger["total"]["overlap"],
        "slots": None if ledger is None else ledger["slots"],
        "planned_bytes": document["planned_peak_bytes"],
        "process_peak_bytes": document["peak_bytes"],
        "budget_bytes": document["budget_bytes"],
        "has_held": document["has_held"],
        "load_seconds": document["load_seconds"],
    }


def run_peer(options: argparse.Namespace, model: Path, limit: int | None, kib: int | None) -> dict[str, Any]:
    """llama-bench with mmap, its default; the last repetition counts for it too."""
    command = [
        str(tool(options.peer, "llama-bench")), "-m", str(model), "-p", "0", "-n", str(options.decode), "-r",
        str(options.repeat), "-t", str(options.threads), *options.peer_mmap, "--no-warmup", "-o", "json",
    ]  # fmt: skip
    with read_ahead(options.device, kib) as in_force:
        run = run_capped(command, limit, timeout=options.timeout, device=options.device)
    if run.code != 0:
        return failed(run) | {"read_ahead_kib": in_force}
    result = json.loads(run.stdout)[-1]
    samples = result["samples_ts"]
    tokens = options.decode * options.repeat
    return outcome(run) | {
        "decode_tokens_per_second": samples[-1],
        "bytes_per_token": run.disk_bytes / tokens,
        "read_ahead_kib": in_force,
    }


def outcome(run: CappedRun) -> dict[str, Any]:
    return {
        "seconds": round(run.seconds, 2),
        "cgroup_peak_bytes": run.peak_bytes,
        "limit_hits": run.limit_hits,
        "disk_bytes": run.disk_bytes,
    }


def failed(run: CappedRun) -> dict[str, Any]:
    last = (run.stderr.strip() or run.stdout.strip()).splitlines()[-1:] or ["no message"]
    reason = "killed (out of memory)" if run.code in (-9, 137) else last[0][:300]
    return outcome(run) | {"failed": reason, "code": run.code}


def probed(options: argparse.Namespace, model: Path, run: Any) -> dict[str, Any]:
    """`run` between two probes of the disk, from an empty page cache."""
    drop_caches()
    before = measure_disk(model, request_bytes=options.request, seconds=options.probe_seconds)
    drop_caches()
    result: dict[str, Any] = run()
    after = measure_disk(model, request_bytes=options.request, seconds=options.probe_seconds)
    return result | {"probe_bytes_per_second": [round(before), round(after)]}


def measure(options: argparse.Namespace, model: Path) -> dict[str, Any]:
    """All runs of one model. Skips are listed, not hidden."""
    skipped: list[str] = []
    runs: list[dict[str, Any]] = []
    kinds: list[tuple[str, Any]] = [("kamado", lambda limit: run_kamado(options, model, limit))]
    if options.peer is not None:
        kinds += [
            ("llama.cpp tuned", lambda limit: run_peer(options, model, limit, TUNED_READ_AHEAD_KIB)),
            ("llama.cpp as set", lambda limit: run_peer(options, model, limit, None)),
        ]
    try:
        in_memory = probed(options, model, lambda: run_kamado(options, model, None)) if options.in_memory else None
    except NotPossibleError as error:
        skipped.append(f"in memory: {error}")
        in_memory = None
    for budget in options.budgets:
        limit = parse_size(budget)
        for round_number in range(options.rounds):
            for name, run in kinds:
                idle = idle_share()
                try:
                    result = probed(options, model, lambda run=run, limit=limit: run(limit))
                except NotPossibleError as error:
                    skipped.append(f"{name} at {budget}: {error}")
                    continue
                result |= {"engine": name, "budget": budget, "budget_bytes": limit, "round": round_number, "idle": idle}
                runs.append(result)
                print(line(result), file=sys.stderr, flush=True)
    return {
        "model": model.name,
        "bytes": model.stat().st_size,
        "in_memory": in_memory,
        "runs": runs,
        "skipped": skipped,
    }


def line(run: dict[str, Any]) -> str:
    if "failed" in run:
        return f"{run['engine']} at {run['budget']}: {run['failed']}"
    return (
        f"{run['engine']} at {run['budget']}: {run['decode_tokens_per_second']:.2f} tokens/s, "
        f"{format_size(round(run['bytes_per_token']))} a token, disk "
        f"{'/'.join(format_size(p) for p in run['probe_bytes_per_second'])} a second, "
        f"cgroup peak {format_size(run['cgroup_peak_bytes'])}"
    )


def summary(part: dict[str, Any]) -> list[dict[str, Any]]:
    """Medians of each engine and budget, kamado's with its bound."""
    rows = []
    keys = dict.fromkeys((run["budget"], run["budget_bytes"], run["engine"]) for run in part["runs"])
    ceiling = (part["in_memory"] or {}).get("decode_tokens_per_second")
    for budget, limit, engine in keys:
        runs = [r for r in part["runs"] if (r["budget"], r["engine"]) == (budget, engine)]
        good = [r for r in runs if "failed" not in r]
        row: dict[str, Any] = {"budget": budget, "budget_bytes": limit, "engine": engine, "runs": len(runs)}
        if good:
            disk = statistics.median(statistics.mean(r["probe_bytes_per_second"]) for r in good)
            row |= {
                name: statistics.median(r[name] for r in good)
                for name in ("decode_tokens_per_second", "bytes_per_token", "cgroup_peak_bytes")
            }
            row["disk_bytes_per_second"] = disk
            if engine == "kamado":
                row["disk_limit"] = disk / row["bytes_per_token"] if row["bytes_per_token"] else None
                limits = [value for value in (row["disk_limit"], ceiling) if value]
                row["of_limit"] = row["decode_tokens_per_second"] / min(limits) if limits else None
                row["hit_rate"] = statistics.median(r["hit_rate"] for r in good)
                row["has_held"] = all(r["has_held"] for r in good)
        else:
            row["failed"] = runs[0]["failed"]
        rows.append(row)
    for row in rows:
        ours = [r for r in rows if (r["budget"], r["engine"]) == (row["budget"], "kamado")]
        speed, other = ours[0].get("decode_tokens_per_second") if ours else None, row.get("decode_tokens_per_second")
        row["kamado_is_faster_by"] = speed / other if speed and other and row["engine"] != "kamado" else None
    return rows


def markdown(document: dict[str, Any]) -> str:
    """The tables for docs/streaming.md."""

    def number(value: float | None, form: str = ".2f") -> str:
        return "–" if value is None else format(value, form)

    parts = []
    for part in document["models"]:
        parts += [f"### {part['model']} ({format_size(part['bytes'])})", ""]
        in_memory = (part["in_memory"] or {}).get("decode_tokens_per_second")
        if in_memory:
            parts += [f"In memory, no cap: {in_memory:.2f} tokens/s.", ""]
        parts.append(
            "| Cgroup | Engine | Tokens/s | Read a token | Disk, GB/s | Of the limit | Hits | Cgroup peak | kamado is |"
        )
        parts.append("|---|---|---|---|---|---|---|---|---|")
        for row in part["summary"]:
            if "failed" in row:
                parts.append(f"| {row['budget']} | {row['engine']} | {row['failed']} | | | | | | |")
                continue
            share, hits, faster = row.get("of_limit"), row.get("hit_rate"), row["kamado_is_faster_by"]
            cells = (
                row["budget"], row["engine"], number(row["decode_tokens_per_second"]),
                format_size(round(row["bytes_per_token"])), number(row["disk_bytes_per_second"] / 1e9),
                number(share, ".0%"), number(hits, ".1%"), format_size(round(row["cgroup_peak_bytes"])),
                f"{faster:.1f}× faster" if faster else "",
            )  # fmt: skip
            parts.append("| " + " | ".join(cells) + " |")
        parts += ["", *(f"Skipped: {reason}" for reason in part["skipped"]), ""]
    return "\n".join(parts)


def picture(part: dict[str, Any]) -> str:
    """The curve of one model."""
    rows = [row for row in part["summary"] if "failed" not in row]

    def points(engine: str, name: str) -> list[tuple[float, float]]:
        found = [(row["budget_bytes"] / 2**30, row.get(name)) for row in rows if row["engine"] == engine]
        return sorted((x, y) for x, y in found if y)

    curves = [
        Curve("kamado", points("kamado", "decode_tokens_per_second"), "#c2410c", 3),
        Curve("disk limit", points("kamado", "disk_limit"), "#0369a1", 1.5, is_dashed=True),
        Curve(
            "llama.cpp mmap, read-ahead 128 KiB", points("llama.cpp tuned", "decode_tokens_per_second"), "#4d7c0f", 2
        ),
        Curve("llama.cpp mmap, as set", points("llama.cpp as set", "decode_tokens_per_second"), "#a1a1aa", 2),
    ]
    in_memory = (part["in_memory"] or {}).get("decode_tokens_per_second")
    if in_memory and rows:
        xs = [row["budget_bytes"] / 2**30 for row in rows]
        curves.append(Curve("in memory", [(min(xs), in_memory), (max(xs), in_memory)], "#57534e", 1.5, is_dashed=True))
    title = f"{part['model']}, {format_size(part['bytes'])}: decode in a memory cgroup"
    return svg(title, "cgroup, GiB (page cache included)", "tokens a second", curves)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL.gguf")
    parser.add_argument("--kamado", default="kamado", help="the command, e.g. 'python -m kamado'")
    parser.add_argument("--peer", type=Path, metavar="DIR", help="folder of llama-bench; without it kamado runs alone")
    parser.add_argument(
        "--peer-mmap", default="-lm mmap", type=str.split, help="how llama-bench is told to map; older ones: '-mmp 1'"
    )
    parser.add_argument("--budgets", default="6GiB,4GiB", type=lambda text: text.split(","))
    parser.add_argument("--decode", type=int, default=32, metavar="N")
    parser.add_argument("--depth", type=int, default=0, metavar="D")
    parser.add_argument("--prefill", default="", metavar="N", help="also measure a prompt of N tokens")
    parser.add_argument("--context", type=int, default=2048, metavar="N")
    parser.add_argument("--repeat", type=int, default=2, help="repetitions in a run; the last counts")
    parser.add_argument("--rounds", type=int, default=1, help="cold runs of each; the median counts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--request", type=parse_size, default="1MiB", help="size of the probe's reads")
    parser.add_argument("--probe-seconds", type=float, default=1.0)
    parser.add_argument("--timeout", type=float, default=1800)
    parser.add_argument("--in-memory", action="store_true", help="also run without a cap, as the compute limit")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--svg", type=Path, help="the first model's curve")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: cgroup and read-ahead are put back
    options.kamado = options.kamado.split()
    options.device = device_of(options.models[0])
    parts = []
    for model in options.models:
        part = measure(options, model)
        parts.append(part | {"summary": summary(part)})
    peers = [] if options.peer is None else [tool(options.peer, "llama-bench")]
    document = {"models": parts} | {"circumstances": facts(options, peers)}
    write_json(document, options.json)
    text = markdown(document)
    print(text)
    if options.markdown:
        options.markdown.write_text(text + "\n", encoding="utf-8")
    if options.svg and parts[0]["summary"]:
        options.svg.write_text(picture(parts[0]), encoding="utf-8")
    return 0 if all(part["runs"] for part in parts) else 1


def facts(options: argparse.Namespace, peers: list[Path]) -> dict[str, Any]:
    """What the figures need beside them; files of many gigabytes are named by size, not hashed."""
    if len(options.kamado) == 1:
        return circumstances(options.kamado[0], peers, [])
    return {"command": sys.argv, "kamado": call([*options.kamado, "--version"]).strip()}


if __name__ == "__main__":
    sys.exit(main())
