#!/usr/bin/env python3
"""Speed against llama.cpp: alternating runs on one machine, medians, and the ratio to the peer's best setting.

    against_llamacpp.py --peer DIR MODEL.gguf…   (DIR holds llama-bench and kvdepth)

The peer runs with flash attention, with and without run-time repacking; what is faster in the median counts. Both
fill a deep cache by repeating 256 tokens' real keys and values; with --deep llama-bench the peer computes them all, for
models with a state beside attention, which kvdepth does not know. What a step at a depth takes above one at 0 has a
table of its own. A run is one call of each program; who goes first alternates.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peers import call, circumstances, idle_share, tool, write_json

# Programs whose threads spin for each other lose more to a busy machine than others: ratios are then worthless.
QUIET = 0.9

WORDS = {"prefill": "prefill {}", "decode": "decode at {}", "batch": "decode, {} sequences"}


@dataclass(frozen=True, order=True)
class Cell:
    """One figure of the table."""

    model: str
    kind: str  # "prefill", "decode" or "batch"
    size: int  # prompt tokens, depth, or sequences decoded together
    threads: int


@dataclass
class Samples:
    """Tokens a second, one entry a run; the peer's by setting."""

    kamado: list[float] = field(default_factory=list)
    peer: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    of_bandwidth: list[float] = field(default_factory=list)
    of_int8: list[float] = field(default_factory=list)

    def row(self, cell: Cell) -> dict[str, Any]:
        setting, best = max(((name, statistics.median(v)) for name, v in self.peer.items()), key=lambda pair: pair[1])
        own = statistics.median(self.kamado)
        return {
            "model": cell.model,
            "kind": cell.kind,
            "size": cell.size,
            "threads": cell.threads,
            "kamado": round(own, 2),
            "peer": round(best, 2),
            "peer_setting": setting,
            "ratio": round(own / best, 3),
            "percent_of_bandwidth": _median(self.of_bandwidth),
            "percent_of_int8_peak": _median(self.of_int8),
            "samples": {"kamado": self.kamado, **self.peer},
        }


def _cell_of(model: Path, result: dict[str, Any], threads: int) -> Cell:
    if result["kind"] == "prefill":
        return Cell(model.name, "prefill", result["tokens"], threads)
    if result["batch"] > 1:
        return Cell(model.name, "batch", result["batch"], threads)
    return Cell(model.name, "decode", result["depth"], threads)


def _median(values: list[float]) -> float | None:
    return round(statistics.median(values), 1) if values else None


def run_kamado(options: argparse.Namespace, model: Path, threads: int, table: dict[Cell, Samples]) -> None:
    command = [
        options.kamado, "bench", str(model), "--json", "--repeat", "1", "--threads", str(threads),
        "--prefill", _join(options.prefill), "--decode", str(options.decode), "--depth", _join(options.depth),
        "--chunk", "512", "--kv", "exact", "--batch", _join([1, *options.batch]),
    ]  # fmt: skip
    for result in json.loads(call(command))["results"]:
        samples = table[_cell_of(model, result, threads)]
        samples.kamado.append(result["tokens_per_second"])
        if result["percent_of_bandwidth"] is not None:
            samples.of_bandwidth.append(result["percent_of_bandwidth"])
        if result["percent_of_int8_peak"] is not None:
            samples.of_int8.append(result["percent_of_int8_peak"])


def run_peer(options: argparse.Namespace, model: Path, threads: int, table: dict[Cell, Samples]) -> None:
    command = [
        str(tool(options.peer, "llama-bench")), "-m", str(model), "-t", str(threads), "-fa", "1", "-r", "1",
        "-o", "json", "--repack", _join(options.repack),
    ]  # fmt: skip
    is_deep = options.deep == "llama-bench"
    depths = options.depth if is_deep else [depth for depth in options.depth if depth == 0]
    work = []
    if options.prefill:
        work.append(["-p", _join(options.prefill), "-n", "0"])
    if depths and options.decode:
        work.append(["-p", "0", "-n", str(options.decode), "-d", _join(depths)])
    for words in work:
        for result in json.loads(call([*command, *words])):
            kind, size = ("prefill", result["n_prompt"]) if result["n_prompt"] else ("decode", result["n_depth"])
            setting = f"repack {int(result['repack'])}"
            table[Cell(model.name, kind, size, threads)].peer[setting].append(result["avg_ts"])
    for depth in options.depth:
        if depth and not is_deep:
            kvdepth = [
                str(tool(options.peer, "kvdepth")),
                str(model),
                "f16",
                str(depth),
                str(threads),
                str(options.decode),
            ]
            found = re.search(r"= ([0-9.]+) tok/s", call(kvdepth))
            if found is None:
                sys.exit("kvdepth printed no tok/s")
            table[Cell(model.name, "decode", depth, threads)].peer["kvdepth"].append(float(found[1]))

    for batch in options.batch:
        command = [
            str(tool(options.peer, "llama-batched-bench")), "-m", str(model), "-t", str(threads), "-fa", "on",
            "-c", str(batch * (8 + options.decode) + 64), "-npp", "8", "-ntg", str(options.decode), "-npl", str(batch),
            "--output-format", "jsonl",
        ]  # fmt: skip
        for line in call(command).splitlines():
            if line.startswith("{"):
                samples = table[Cell(model.name, "batch", batch, threads)]
                samples.peer["batched-bench"].append(json.loads(line)["speed_tg"])


def above_depth_0(table: dict[Cell, Samples]) -> list[dict[str, Any]]:
    """What a step at each depth takes above one of the same run and setting at 0, in milliseconds; medians."""
    rows = []
    for cell in sorted(table):
        base = table.get(Cell(cell.model, "decode", 0, cell.threads))
        if cell.kind != "decode" or not cell.size or base is None:
            continue
        deep = table[cell]
        pairs = {"kamado": (base.kamado, deep.kamado)}
        pairs |= {name: (base.peer[name], samples) for name, samples in deep.peer.items() if name in base.peer}
        above = {
            name: statistics.median(1000 / b - 1000 / a for a, b in zip(*pair, strict=True))
            for name, pair in pairs.items()
            if all(pair) and len(pair[0]) == len(pair[1])
        }
        own, theirs = above.pop("kamado", None), sorted(above.items(), key=lambda item: item[1])
        if own is None or not theirs:
            continue
        setting, best = theirs[0]
        rows.append({
            "model": cell.model, "depth": cell.size, "threads": cell.threads, "kamado_ms": round(own, 3),
            "peer_ms": round(best, 3), "peer_setting": setting, "ratio": round(own / best, 3) if best > 0 else None,
        })  # fmt: skip
    return rows


def _join(values: Iterable[int]) -> str:
    return ",".join(map(str, values))


def markdown(rows: list[dict[str, Any]], document: dict[str, Any]) -> str:
    machine = document["machine"]
    quiet = min(document["idle"])
    circumstance = f"{document['kamado']}, commit {document['commit']}; {machine.get('cpu_model')}, {document['date']}"
    lines = [
        f"{circumstance}; medians of {document['runs']} alternating runs, tokens/s.",
        "" if quiet >= QUIET else f"\n**Not to be used: the machine was busy ({quiet:.0%} idle before a run).**\n",
        "| Model | Work | Threads | Kamado | llama.cpp | Ratio | Of bandwidth | Of int8 peak |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        work = WORDS[row["kind"]].format(row["size"])
        peer = f"{row['peer']:.1f} ({row['peer_setting']})"
        limits = f"{_cell(row['percent_of_bandwidth'])} | {_cell(row['percent_of_int8_peak'])}"
        cells = f"{row['model']} | {work} | {row['threads']} | {row['kamado']:.1f} | {peer} | **{row['ratio']:.2f}×**"
        lines.append(f"| {cells} | {limits} |")
    if document["above_depth_0"]:
        lines += ["", "| Model | Depth | Threads | Kamado, ms above depth 0 | llama.cpp | Ratio |"]
        lines += ["|---|--:|--:|--:|--:|--:|"]
    for row in document["above_depth_0"]:
        peer = f"{row['peer_ms']:.2f} ({row['peer_setting']})"
        ratio = "" if row["ratio"] is None else f"**{row['ratio']:.2f}**"
        place = f"{row['model']} | {row['depth']} | {row['threads']}"
        lines.append(f"| {place} | {row['kamado_ms']:.2f} | {peer} | {ratio} |")
    return "\n".join(lines) + "\n"


def _cell(percent: float | None) -> str:
    return "" if percent is None else f"{percent:.0f} %"


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--peer", type=Path, required=True, help="folder with llama-bench and kvdepth")
    parser.add_argument("--kamado", default=shutil.which("kamado") or "kamado", help="the kamado program")
    parser.add_argument("--prefill", type=numbers, default=[512, 2048])
    parser.add_argument("--decode", type=int, default=64, help="tokens decoded in a run")
    parser.add_argument("--depth", type=numbers, default=[0], help="tokens already in the cache, e.g. 0,4096,16384")
    parser.add_argument(
        "--deep",
        choices=("kvdepth", "llama-bench"),
        default="kvdepth",
        help="the peer's program for deep decode",
    )
    parser.add_argument("--batch", type=numbers, default=[], help="sequences decoded together, e.g. 8")
    parser.add_argument("--threads", type=numbers, default=[1, 2])
    parser.add_argument("--repack", type=numbers, default=[0, 1])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write everything, every sample included")
    parser.add_argument("--markdown", type=Path, help="write the table here as well")
    options = parser.parse_args()
    names = ["llama-bench"] + (["kvdepth"] if any(options.depth) and options.deep == "kvdepth" else [])
    names += ["llama-batched-bench"] if options.batch else []
    peers = [tool(options.peer, name) for name in names]
    limits: dict[int, list[dict[str, Any]]] = {threads: [] for threads in options.threads}
    table: dict[Cell, Samples] = defaultdict(Samples)
    idle: list[float] = []
    for run in range(options.runs):
        for model in options.models:
            for threads in options.threads:
                idle.append(idle_share())
                # Neighbours on the host move bandwidth by half within a minute: shares need limits of the same one.
                probe = [options.kamado, "bench", "--limits", "--threads", str(threads), "--json"]
                limits[threads] += json.loads(call(probe))["limits"]
                order = (run_kamado, run_peer) if run % 2 == 0 else (run_peer, run_kamado)
                for program in order:
                    program(options, model, threads, table)
                print(f"run {run + 1} of {options.runs}: {model.name}, {threads} threads", file=sys.stderr, flush=True)
    rows = [table[cell].row(cell) for cell in sorted(table) if table[cell].kamado and table[cell].peer]
    document = {
        **circumstances(options.kamado, peers, options.models),
        "runs": options.runs,
        "idle": idle,
        "limits": limits,
        "results": rows,
        "above_depth_0": above_depth_0(table),
    }
    text = markdown(rows, document)
    print(text, end="")
    write_json(document, options.json)
    if options.markdown is not None:
        options.markdown.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
