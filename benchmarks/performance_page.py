#!/usr/bin/env python3
"""docs/performance.md and its picture from the JSON files that against_llamacpp.py wrote.

    performance_page.py RESULTS.json… [--docs DIR]

The text of the page is written by hand; everything between its pair of markers is replaced. The picture is the
machine's roofline with each two-thread workload on it.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import sys
import textwrap
from collections import defaultdict
from pathlib import Path
from typing import Any

from against_llamacpp import WORDS

CHUNK_ROWS = 512  # of a prefill step in both programs: weights are read once for so many rows
WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 860, 520, 70, 60, 30, 20
COLOURS = ("#c0392b", "#2471a3", "#1e8449", "#9a7d0a", "#6c3483", "#117a65", "#a04000", "#515a5a")


def table(document: dict[str, Any]) -> str:
    """One document's results as Markdown, with what a figure needs beside it."""
    machine = document["machine"]
    limits = "; ".join(
        (
            f"{item['num_threads']} thread{'s' if item['num_threads'] > 1 else ''}: "
            f"reads {item['read_bytes_per_second'] / 1e9:.1f} GB/s, int8 {item['int8_ops_per_second'] / 1e9:.0f} GOPS"
            + (f", f32 {item['f32_ops_per_second'] / 1e9:.0f} GFLOPS" if item["f32_ops_per_second"] else "")
        )
        for item in _limits(document)
    )
    measured = f"Limits measured in the same run: {limits}. " if limits else ""
    peers = ", ".join(f"{name} {digest[:12]}" for name, digest in document["peers"].items())
    lines = [
        *textwrap.wrap(
            f"{document['date']}, commit {document['commit']}, {machine.get('cpu_model')} ({machine.get('tier')} "
            f"tier), medians of {document['runs']} alternating runs, tokens/s. "
            f"{measured}Peer files (sha256): {peers}.",
            120,
        ),
        "",
        "| Model | Work | Threads | Kamado | llama.cpp, its best setting | Ratio | Of bandwidth | Of int8 peak |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in document["results"]:
        shares = [row["percent_of_bandwidth"], row["percent_of_int8_peak"]]
        cells = [
            row["model"].removesuffix(".gguf"), WORDS[row["kind"]].format(row["size"]), str(row["threads"]),
            f"{row['kamado']:.1f}", f"{row['peer']:.1f} ({row['peer_setting']})", f"**{row['ratio']:.2f}×**",
            *("" if share is None else f"{share:.0f} %" for share in shares),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _limits(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The measured limits by thread count, medians over the runs."""
    found: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for items in document.get("limits", {}).values():
        for item in items:
            found[item["num_threads"]].append(item)
    keys = ("read_bytes_per_second", "int8_ops_per_second", "f32_ops_per_second")
    return [
        {
            "num_threads": threads,
            **{key: statistics.median(item.get(key) or 0.0 for item in found[threads]) for key in keys},
        }
        for threads in sorted(found)
    ]


def points(documents: list[dict[str, Any]]) -> list[tuple[str, str, float, float, float]]:
    """(model, work, operations a byte, Kamado's GOPS, the peer's) of every two-thread cell that has both shares."""
    out = []
    for document in documents:
        limit = next((item for item in _limits(document) if item["num_threads"] == 2), None)
        if limit is None:
            continue
        intensity: dict[str, float] = {}
        for row in document["results"]:
            is_base = row["kind"] == "decode" and row["size"] == 0
            if is_base and row["percent_of_int8_peak"] and row["percent_of_bandwidth"]:
                ops = row["percent_of_int8_peak"] * limit["int8_ops_per_second"]
                intensity[row["model"]] = ops / (row["percent_of_bandwidth"] * limit["read_bytes_per_second"])
        for row in document["results"]:
            base = intensity.get(row["model"])
            is_deep = row["kind"] == "decode" and row["size"] > 0
            if base is None or row["threads"] != 2 or not row["percent_of_int8_peak"] or is_deep:
                continue
            rows = {"decode": 1, "batch": row["size"], "prefill": min(row["size"], CHUNK_ROWS)}[row["kind"]]
            gops = row["percent_of_int8_peak"] / 100 * limit["int8_ops_per_second"] / 1e9
            work = WORDS[row["kind"]].format(row["size"])
            out.append((row["model"].removesuffix(".gguf"), work, base * rows, gops, gops / row["ratio"]))
    return out


def roofline(documents: list[dict[str, Any]]) -> str:
    """The picture, as SVG text: log-log, bandwidth slope and int8 ceiling, a dot a workload, a ring the peer's."""
    limits = [item for document in documents for item in _limits(document) if item["num_threads"] == 2]
    bandwidth = max(item["read_bytes_per_second"] for item in limits) / 1e9
    peak = max(item["int8_ops_per_second"] for item in limits) / 1e9
    dots = points(documents)
    x_low, x_high, y_low, y_high = 1.0, 10000.0, 10.0, 1000.0

    def place(x: float, y: float) -> tuple[float, float]:
        across = (math.log10(max(x, x_low)) - math.log10(x_low)) / (math.log10(x_high) - math.log10(x_low))
        up = (math.log10(max(y, y_low)) - math.log10(y_low)) / (math.log10(y_high) - math.log10(y_low))
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - BOTTOM - TOP)

    size = f'viewBox="0 0 {WIDTH} {HEIGHT}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for exponent in range(5):
        x, _ = place(10.0**exponent, y_low)
        parts.append(f'<line x1="{x:.0f}" y1="{TOP}" x2="{x:.0f}" y2="{HEIGHT - BOTTOM}" stroke="#eee"/>')
        parts.append(f'<text x="{x:.0f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{10**exponent}</text>')
    for value in (10, 30, 100, 300, 1000):
        _, y = place(x_low, value)
        parts.append(f'<line x1="{LEFT}" y1="{y:.0f}" x2="{WIDTH - RIGHT}" y2="{y:.0f}" stroke="#eee"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.0f}" text-anchor="end">{value}</text>')
    (x0, y0), (x1, y1), (x2, y2) = place(x_low, bandwidth), place(peak / bandwidth, peak), place(x_high, peak)
    corners = f"{x0:.0f},{y0:.0f} {x1:.0f},{y1:.0f} {x2:.0f},{y2:.0f}"
    parts.append(f'<polyline points="{corners}" fill="none" stroke="#333" stroke-width="2"/>')
    parts.append(f'<text x="{x2 - 4:.0f}" y="{y2 - 8:.0f}" text-anchor="end">int8 peak {peak:.0f} GOPS</text>')
    parts.append(f'<text x="{x0 + 12:.0f}" y="{y0 - 16:.0f}">reads {bandwidth:.0f} GB/s</text>')
    models = sorted({dot[0] for dot in dots})
    for model, work, x, own, peer in dots:
        colour = COLOURS[models.index(model) % len(COLOURS)]
        (ax, ay), (_, py) = place(x, own), place(x, peer)
        gap = f'x1="{ax:.0f}" y1="{ay:.0f}" x2="{ax:.0f}" y2="{py:.0f}"'
        own_title, peer_title = f"{model}, {work}: {own:.0f} GOPS", f"<title>llama.cpp: {peer:.0f} GOPS</title>"
        parts += [
            f'<line {gap} stroke="{colour}" stroke-dasharray="2 3"/>',
            f'<circle cx="{ax:.0f}" cy="{ay:.0f}" r="5" fill="{colour}"><title>{own_title}</title></circle>',
            f'<circle cx="{ax:.0f}" cy="{py:.0f}" r="4" fill="white" stroke="{colour}">{peer_title}</circle>',
        ]
    for i, model in enumerate(models):
        y = TOP + 14 + 16 * i
        parts.append(f'<circle cx="{LEFT + 16}" cy="{y - 4}" r="5" fill="{COLOURS[i % len(COLOURS)]}"/>')
        parts.append(f'<text x="{LEFT + 28}" y="{y}">{model}</text>')
    y = TOP + 14 + 16 * len(models)
    parts.append(
        f'<text x="{LEFT + 10}" y="{y}">dot: Kamado; ring below or above it: llama.cpp at its best setting</text>'
    )
    middle, across = (WIDTH + LEFT) / 2, "operations a byte of weights read"
    parts.append(f'<text x="{middle:.0f}" y="{HEIGHT - 16}" text-anchor="middle">{across}</text>')
    turn = f'text-anchor="middle" transform="rotate(-90 18 {HEIGHT / 2:.0f})"'
    parts.append(f'<text x="18" y="{HEIGHT / 2:.0f}" {turn}>10⁹ operations a second</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("--docs", type=Path, default=Path(__file__).resolve().parent.parent / "docs")
    options = parser.parse_args()
    documents = [json.loads(path.read_text(encoding="utf-8")) for path in options.results]
    page = options.docs / "performance.md"
    text = page.read_text(encoding="utf-8")
    body = "\n".join(table(document) for document in documents)
    pattern = re.compile(r"(<!-- results begin -->\n).*?(<!-- results end -->)", re.DOTALL)
    if not pattern.search(text):
        sys.exit(f"{page} has no pair of result markers")
    page.write_text(pattern.sub(lambda found: found[1] + "\n" + body + "\n" + found[2], text), encoding="utf-8")
    (options.docs / "roofline.svg").write_text(roofline(documents), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
