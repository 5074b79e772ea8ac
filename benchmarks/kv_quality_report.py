#!/usr/bin/env python3
"""One result file and the tables of docs/kv-quality.md from several runs of kv_quality.py.

    kv_quality_report.py RUN.json… --json benchmarks/results/DATE-kv-quality.json

The tables go to standard output. A row that several runs have is taken from the last one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peers import write_json

Row = dict[str, Any]

KEYS = {
    "texts": ("model", "text", "kv"),
    "simulation": ("model", "text", "codes"),
    "peer": ("model", "cache"),
    "needles": ("model", "tokens", "questions", "kv"),
}


def merged(documents: list[Row]) -> Row:
    """All rows, and the circumstances of each run."""
    result: Row = {"circumstances": [document["circumstances"] for document in documents]}
    for part, keys in KEYS.items():
        rows: dict[tuple[Any, ...], Row] = {}
        for document in documents:
            for row in document.get(part, []):
                rows[tuple(row[key] for key in keys)] = row
        result[part] = list(rows.values())
    return result


def table(header: str, rows: Iterator[tuple[Any, ...]]) -> None:
    """A markdown table; columns but the first three are numbers."""
    names = header.split(" | ")
    lines = ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    if lines:
        print(f"| {header} |\n|" + "|".join("---" if i < 3 else "--:" for i in range(len(names))) + "|")
        print("\n".join(lines) + "\n")


def main() -> int:
    """Prints, and writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = merged([json.loads(path.read_text()) for path in options.runs])
    write_json(found, options.json)
    table(
        "Model | Text | Cache | perplexity | rise | ± | divergence | ± | same top token",
        (
            (
                row["model"].removesuffix(".gguf"),
                row["text"],
                row["kv"],
                f"{row['perplexity']:.3f}",
                f"{row['rise_percent']:+.2f} %",
                f"{row['rise_error_percent']:.2f}",
                f"{row['divergence']:.5f}",
                f"{row['divergence_error']:.5f}",
                f"{row['same_top_percent']:.1f} %",
            )
            for row in found["texts"]
            if row["kv"] != "exact"
        ),
    )
    table(
        "Model | Text | Bits of keys, values | tokens | ours | simulation | ratio | ± | of medians",
        (
            (
                row["model"].removesuffix(".gguf"),
                row["text"],
                row["codes"],
                row["tokens"],
                f"{row['ours']:.5f}",
                f"{row['simulation']:.5f}",
                f"{row['ratio']:.3f}",
                f"{row['ratio_error']:.3f}",
                f"{row['median_ratio']:.3f}",
            )
            for row in found["simulation"]
        ),
    )
    table(
        "Model | Cache | | divergence",
        ((row["model"].removesuffix(".gguf"), row["cache"], "", f"{row['divergence']:.5f}") for row in found["peer"]),
    )
    table(
        "Model | Cache | 95 % interval | tokens | right | of the exact cache's | share",
        (
            (
                row["model"].removesuffix(".gguf"),
                row["kv"],
                f"{row['interval'][0]:.3f} to {row['interval'][1]:.3f}",
                f"{row['tokens']:,}",
                f"{row['right']} of {row['questions']}",
                f"{row['kept']} of {row['exact_answers']}",
                f"{row['share']:.3f}",
            )
            for row in found["needles"]
        ),
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
