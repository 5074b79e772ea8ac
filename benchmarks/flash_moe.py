#!/usr/bin/env python3
"""What the plan says of Flash-MoE's machine and model, beside what Flash-MoE measured there.

    benchmarks/flash_moe.py --tokenizer-from MODEL [--docs docs/plan-device.md]

Writes a header of Qwen3.5-397B-A17B (all layers, experts and tokens; no weights) and runs `kamado plan --device` on it
for the profiles in benchmarks/devices/. Flash-MoE's figures are published ones (github.com/danveloper/flash-moe, README
and results.tsv); what it reads comes from the page cache or the disk. A forecast is an upper bound, counts all ten
experts, and assumes flat routing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kamado.files import open_checkpoint
from kamado.synth.synthesize import synthesize

FAMILY = "qwen35moe-397b"
DEVICES = Path(__file__).with_name("devices")
MARKS = "<!-- flash-moe -->\n", "<!-- /flash-moe -->"


@dataclass(frozen=True)
class Published:
    """One figure of Flash-MoE."""

    experts: int
    bits: int
    token_bytes: float  # of experts, from the page cache or the disk
    tokens_per_second: float


PUBLISHED = (
    Published(4, 4, 240 * 7_077_888, 4.36),  # README; 60 layers of 4 records
    Published(10, 2, 2359e6, 1.20),  # results.tsv
)


def planned(header: Path, device: Path) -> tuple[dict[str, Any], float]:
    """(the plan, seconds of user time of the whole command)."""
    before = os.times().children_user
    command = [sys.executable, "-m", "kamado", "plan", str(header), "--device", str(device), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout), os.times().children_user - before


def table(rows: list[tuple[dict[str, Any], float]]) -> str:
    """Markdown."""
    lines = [
        "| | Experts a token | Bits a weight | Experts' bytes a token | Tokens/s |",
        "|---|--:|--:|--:|--:|",
    ]
    for one in PUBLISHED:
        name = f"Flash-MoE, published | {one.experts} of 10 | {one.bits} | {one.token_bytes / 1e9:.2f} GB"
        lines.append(f"| {name} | {one.tokens_per_second:.2f} |")
    for plan, _ in rows:
        disk = plan["device"]["figures"]["disk_bytes_per_second"]["value"] / 1e9
        read = (
            f"{plan['miss_bytes_per_token'] / 1e9:.2f} of {plan['expert_bytes_per_token'] / 1e9:.2f} GB from the disk"
        )
        bits = 8 * plan["expert_bytes_per_token"] / (60 * 10 * 3 * 4096 * 1024)
        speed = f"at most {plan['decode_tokens_per_second']:.2f}, by {plan['decode_limited_by']}"
        lines.append(f"| Kamado, forecast, disk {disk:g} GB/s | 10 of 10 | {bits:.2f} | {read} | {speed} |")
    first = rows[0][0]
    seconds = max(seconds for _, seconds in rows)
    note = f"The forecast has {first['expert_slots']:,} of {first['num_experts']:,} experts in "
    note += f"{first['bytes_by_owner']['experts'] / 1e9:.1f} of {first['peak_bytes'] / 1e9:.1f} GB; the plan took "
    lines += ["", f"{note}{seconds:.2f} s of user time."]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer-from", required=True, type=Path, help="a GGUF file whose tokenizer is lent")
    parser.add_argument("--docs", type=Path, help="page whose table between the marks is written anew")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        header = Path(folder) / "qwen3.5-397b-a17b.gguf"
        synthesize(
            header, FAMILY, tokenizer_from=open_checkpoint(options.tokenizer_from), part=1.0, layout="q4_k_m",
            header_only=True,
        )  # fmt: skip
        text = table([planned(header, DEVICES / name) for name in ("flash-moe.toml", "flash-moe-cold.toml")])
    print(text, end="")
    if options.docs is not None:
        before, begin, rest = options.docs.read_text(encoding="utf-8").partition(MARKS[0])
        _, end, after = rest.partition(MARKS[1])
        if not begin or not end:
            sys.exit(f"{options.docs} has no {MARKS[0].strip()} … {MARKS[1]}")
        options.docs.write_text(before + begin + text + end + after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
