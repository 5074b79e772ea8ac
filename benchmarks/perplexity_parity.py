#!/usr/bin/env python3
"""Perplexity against llama.cpp on the same text, same windows: how much does our arithmetic change the model?

    perplexity_parity.py --peer DIR MODEL.gguf…   (DIR holds llama-perplexity)

Both score the second half of each window of --context tokens, with 16-bit keys and values. A ratio within 0.5 % of 1 is
what the engine promises.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from peers import call, circumstances, tool, write_json

TEXT = Path(__file__).resolve().parent / "data" / "hearth.txt"
TOLERANCE = 0.005


def peer_perplexity(program: Path, model: Path, text: Path, context: int) -> tuple[float, float]:
    """(perplexity, its standard error) as llama-perplexity prints them."""
    command = [
        str(program), "-m", str(model), "-f", str(text), "-c", str(context), "-b", str(context),
        "-fa", "on", "--no-warmup",
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"Final estimate: PPL = ([0-9.]+) \+/- ([0-9.]+)", result.stdout + result.stderr)
    if result.returncode != 0 or found is None:
        sys.exit(f"llama-perplexity failed:\n{result.stderr[-1500:]}")
    return float(found[1]), float(found[2])


def compare(options: argparse.Namespace, model: Path) -> dict[str, Any]:
    context = str(options.context)
    own = json.loads(
        call(
            [
                options.kamado,
                "perplexity",
                str(model),
                str(options.text),
                "--context",
                context,
                "--kv",
                "exact",
                "--json",
            ]
        )
    )
    peer, error = peer_perplexity(tool(options.peer, "llama-perplexity"), model, options.text, options.context)
    return {
        "model": model.name,
        "kamado": own["perplexity"],
        "kamado_error": own["standard_error"],
        "peer": peer,
        "peer_error": error,
        "ratio": own["perplexity"] / peer,
        "tokens": own["scored_tokens"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--peer", type=Path, required=True, help="folder with llama-perplexity")
    parser.add_argument("--kamado", default=shutil.which("kamado") or "kamado", help="the kamado program")
    parser.add_argument("--text", type=Path, default=TEXT)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = [compare(options, model) for model in options.models]
    print("| Model | Tokens scored | Kamado | llama.cpp | Ratio |\n|---|--:|--:|--:|--:|")
    for row in rows:
        print(
            f"| {row['model']} | {row['tokens']} | {row['kamado']:.4f} ± {row['kamado_error']:.3f} "
            f"| {row['peer']:.4f} ± {row['peer_error']:.3f} | {row['ratio']:.5f} |"
        )
    peers = [tool(options.peer, "llama-perplexity")]
    write_json({**circumstances(options.kamado, peers, [*options.models, options.text]), "results": rows}, options.json)
    return 0 if all(abs(row["ratio"] - 1) <= TOLERANCE for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
