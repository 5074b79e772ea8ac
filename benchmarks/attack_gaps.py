#!/usr/bin/env python3
"""One honest stream while one kind of attack goes on: the longest pause between two of its pieces.

    python3 benchmarks/attack_gaps.py --model smollm2:135m --seconds 8
    python3 benchmarks/attack_gaps.py --only A2,A3,A6,A7

The row `tokenizer` (A5) is no request: tokenizer.json files that grow texts a hundredfold several times, or
ask for 8 GiB, are loaded beside the server again and again, each in a process of its own.

For each attack of benchmarks/hostile.py: a client sends it again and again, from a process of its own, while another
client streams answers one after the other. Prints a table; exit code 1 when a pause is longer than `--limit-ms` or the
server dies. The first row is without an attack: what the machine itself does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx2

sys.path.insert(0, str(Path(__file__).resolve().parent))
from hostile import ATTACKS
from serving import Served, ask, borrowed_store, served

A5 = "tokenizer"
_HUNDREDFOLD = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 100}
_NORMALIZERS = (
    *({"type": "Sequence", "normalizers": [_HUNDREDFOLD] * count} for count in (3, 4)),
    {"type": "Precompiled", "precompiled_charsmap": "/P///wAA"},
)
_LOAD = """
import sys
from pathlib import Path
from kamado import KamadoError
from kamado.files.types import TokenizerSource
from kamado.text.tokenizer import load_tokenizer
try:
    load_tokenizer(TokenizerSource("hf", {}, Path(sys.argv[1])))
except KamadoError:
    sys.exit(9)
"""


def load_tokenizers(seconds: float, report: dict[str, Any]) -> None:
    """A5: loads hostile tokenizers, each in a new process, for so long; counts them in `report`."""
    end, outcomes = time.monotonic() + seconds, Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{i}" / "tokenizer.json" for i in range(len(_NORMALIZERS))]
        for path, normalizer in zip(paths, _NORMALIZERS, strict=True):
            path.parent.mkdir()
            nothing = {
                "pre_tokenizer": None,
                "post_processor": None,
                "decoder": None,
                "truncation": None,
                "padding": None,
            }
            model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2}, "merges": []}
            path.write_text(
                json.dumps({"version": "1.0", "added_tokens": [], **nothing, "normalizer": normalizer, "model": model})
            )
        while time.monotonic() < end:
            path = paths[sum(outcomes.values()) % len(paths)]
            ended = subprocess.run([sys.executable, "-c", _LOAD, str(path)], check=False, capture_output=True)
            outcomes["refused" if ended.returncode == 9 else f"ended with {ended.returncode}"] += 1
    report.update(sent={A5: sum(outcomes.values())}, statuses=dict(outcomes))


async def longest_gaps(server: Served, seconds: float) -> list[float]:
    """Gaps between the pieces of answers that are asked one after the other, seconds."""
    gaps: list[float] = []
    end = time.monotonic() + seconds
    body = {"model": server.model, "messages": [{"role": "user", "content": "Count."}], "temperature": 0.8, "seed": 1}
    async with httpx2.AsyncClient(timeout=120) as http:
        while time.monotonic() < end:
            answer = await ask(http, server.url, {**body, "max_tokens": 300})
            if answer.error:
                raise SystemExit(f"the honest stream got {answer.status}: {answer.error[:300]}")
            gaps += [b - a for a, b in zip(answer.times, answer.times[1:], strict=False)]
    return sorted(gaps)


def measure(server: Served, name: str, seconds: float) -> dict[str, Any]:
    """One row."""
    attack = None
    report: dict[str, Any] = {}
    beside = threading.Thread(target=load_tokenizers, args=(seconds, report)) if name == A5 else None
    if beside is not None:
        beside.start()
    elif name:
        script = str(Path(__file__).with_name("hostile.py"))
        command = [sys.executable, script, "--url", server.url, "--model", server.model, "--pause", "0.05"]
        attack = subprocess.Popen(
            [*command, "--only", name, "--seconds", str(seconds)], stdout=subprocess.PIPE, text=True
        )
        time.sleep(0.5)
    gaps = asyncio.run(longest_gaps(server, seconds))
    if beside is not None:
        beside.join()
    if attack is not None:
        out, _ = attack.communicate(timeout=300)
        report = json.loads(out or "{}")
    return {
        "attack": name or "none",
        "sent": sum(report.get("sent", {}).values()),
        "statuses": report.get("statuses", {}),
        "faults": report.get("faults", []),
        "pieces": len(gaps),
        "p50_ms": round(1000 * gaps[len(gaps) // 2], 1),
        "p99_ms": round(1000 * gaps[int(0.99 * (len(gaps) - 1))], 1),
        "longest_ms": round(1000 * gaps[-1], 1),
        "resident_mib": round(server.resident_bytes() / 2**20, 1),
        "is_alive": server.process.poll() is None,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2:135m", help="a name or a GGUF file")
    parser.add_argument("--seconds", type=float, default=8.0, help="an attack")
    parser.add_argument("--only", default="", help="cases (A2) or names (lists), separated by commas")
    parser.add_argument("--limit-ms", type=float, default=250.0)
    parser.add_argument("--memory", default="2GiB")
    parser.add_argument("--log", type=Path, help="the server's log goes there")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    wanted = set(filter(None, options.only.split(",")))
    names = [attack.name for attack in ATTACKS if not wanted or wanted & {attack.case, attack.name}]
    names += [A5] if not wanted or wanted & {"A5", A5} else []
    rows = []
    with tempfile.TemporaryDirectory() as home:
        environment = borrowed_store(Path(home))
        arguments = ("--context", "1024", "--memory", options.memory)
        with served(options.model, *arguments, log=options.log, environment=environment) as server:
            for name in ["", *names]:
                rows.append(measure(server, name, options.seconds))
                if not options.json:
                    row = rows[-1]
                    print(
                        f"{row['attack']:14} sent {row['sent']:4}  p50 {row['p50_ms']:6.1f}  p99 {row['p99_ms']:7.1f}  "
                        f"longest {row['longest_ms']:7.1f} ms  {row['resident_mib']:6.1f} MiB  {row['statuses']} "
                        f"{' '.join(row['faults'][:2])[:200]}",
                        flush=True,
                    )
    if options.json:
        print(json.dumps(rows, indent=1))
    is_fine = all(row["is_alive"] and row["longest_ms"] <= options.limit_ms for row in rows[1:])
    return 0 if is_fine else 1


if __name__ == "__main__":
    sys.exit(main())
