#!/usr/bin/env python3
"""Speed and memory of the encoded KV cache: decode at depth against our f16 and llama.cpp's caches, what encoding costs
a prefill, what a restored prefix saves, and whether memory grows as the formula says.

    kv_speed.py MODEL.gguf… [--peer DIR] [--depth 1024,8192,32768] [--kv exact,balanced,small]   (DIR holds kvdepth)

Decoding runs alternate between the programs; medians are compared. Both sides fill a deep cache by repeating 256
tokens' real keys and values. Every other part runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from peers import call, called_object, circumstances, idle_share, tool, write_json

PEER_TYPES = ("f16", "q4_0")

# Run in a process of its own, so that resident memory is this part's alone.
RESTORE = """
import json, sys, time, kamado
model, kv, num_tokens, threads, text = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
with kamado.load(model, kv=kv, context=num_tokens + 64, threads=threads, prefix_cache="64GiB") as loaded:
    filler = loaded.tokenize(open(text).read(), add_bos=False)
    tokens = [filler[(i * 7 + i // len(filler)) % len(filler)] for i in range(num_tokens)]
    began = time.perf_counter()
    generation = loaded.generate(tokens, max_tokens=2, temperature=0)
    first = next(generation)
    seconds = time.perf_counter() - began
    rest = [piece.token for piece in generation]
    stats = loaded.stats
    began = time.perf_counter()
print(json.dumps({
    "seconds_to_first_token": seconds, "reused": generation.usage.num_reused_tokens, "close_seconds":
    time.perf_counter() - began, "tokens": [first.token, *rest], "store": stats.prefix_store,
    "executor_seconds": stats.executor_seconds,
}))
"""

SLOPE = """
import json, sys
import numpy as np
from pathlib import Path
from kamado.files import open_checkpoint
from kamado.lower import build_executor
from kamado.plan.forecast import plan
from kamado.models import build_program
checkpoint = open_checkpoint(Path(sys.argv[1]))
program = build_program(checkpoint)
lengths = [int(n) for n in sys.argv[3].split(",")]
p = plan(checkpoint, program, context=min(max(lengths), program.context_length), kv=sys.argv[2], max_sequences=1,
         kv_tokens=max(lengths), max_rows=256, max_logit_rows=16, memory=1 << 46)
executor = build_executor(program, num_threads=1, max_rows=256, max_logit_rows=16, max_kv_tokens=p.kv_tokens,
    max_sequences=1, kv="f32" if p.kv_element == "f32" else "f16", kv_bits=p.kv_bits, kv_reuse_points=1)
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
sequence = executor.create_sequence()
ids = np.arange(256, dtype=np.int32) % program.vocab_size
executor.step(np.array([sequence], np.int32), np.array([256], np.int32), ids, np.array([255], np.int32))
found = []
for length in lengths:
    executor.tile_kv(sequence, length)
    found.append({"tokens": length, "resident": resident(), "kv": executor.stats()["kv_bytes"]})
print(json.dumps({"formula": p.kv_bytes_per_token, "words": p.kv_formula, "samples": found}))
"""


def decode(options: argparse.Namespace, model: Path) -> list[dict[str, Any]]:
    """Tokens a second at each depth: ours by preset, the peer's by type of cache; runs alternate."""
    samples: dict[tuple[int, str], list[float]] = defaultdict(list)
    for _ in range(options.runs):
        for kv in options.kv:
            for depth in options.depth:
                command = [
                    options.kamado, "bench", str(model), "--json", "--repeat", "1", "--threads", str(options.threads),
                    "--prefill", "1", "--decode", str(options.tokens), "--depth", str(depth), "--kv", kv,
                ]  # fmt: skip
                [result] = [r for r in json.loads(call(command))["results"] if r["kind"] == "decode"]
                samples[depth, kv].append(result["tokens_per_second"])
        for kind in PEER_TYPES if options.peer else ():
            for depth in options.depth:
                command = [str(tool(options.peer, "kvdepth")), str(model), kind, str(depth), str(options.threads)]
                found = re.search(r"= ([0-9.]+) tok/s", call([*command, str(options.tokens)]))
                if found is None:
                    sys.exit("kvdepth printed no tok/s")
                samples[depth, f"llama.cpp {kind}"].append(float(found[1]))
    medians = {key: statistics.median(values) for key, values in samples.items()}
    rows = []
    for (depth, name), value in sorted(medians.items()):
        ratios = {
            other: round(value / medians[depth, other], 3)
            for other in ("exact", *(f"llama.cpp {kind}" for kind in PEER_TYPES))
            if (depth, other) in medians and not name.startswith("llama")
        }
        row = {"model": model.name, "depth": depth, "cache": name, "tokens_per_second": round(value, 3)}
        rows.append(row | {"times": ratios, "samples": samples[depth, name]})
        print(f"{model.stem:28} depth {depth:6} {name:16} {value:8.2f} tok/s  {ratios}", flush=True)
    return rows


def restore(options: argparse.Namespace, model: Path, kv: str) -> dict[str, Any]:
    """The first token of a long prompt, computed and after a restart; and what encoding took of the prefill."""
    text = Path(__file__).resolve().parent / "data" / "hearth.txt"
    with tempfile.TemporaryDirectory(dir=options.scratch) as home:
        environment = {**os.environ, "KAMADO_HOME": home}
        arguments = [str(model), kv, str(options.restore), str(options.threads), str(text)]
        runs = [_python(RESTORE, arguments, environment) for _ in range(3)]
        stored = sum(path.stat().st_size for path in Path(home).rglob("*.kv"))
    computed, restored = runs[0], runs[1:]
    if any(run["reused"] < options.restore - 1 or run["tokens"] != computed["tokens"] for run in restored):
        sys.exit("the restored prefix was not used, or gave other tokens")
    seconds = statistics.median(run["seconds_to_first_token"] for run in restored)
    spent = computed["executor_seconds"]
    row = {
        "model": model.name,
        "kv": kv,
        "tokens": options.restore,
        "recompute_seconds": round(computed["seconds_to_first_token"], 3),
        "restore_seconds": round(seconds, 3),
        "times_faster": round(computed["seconds_to_first_token"] / seconds, 1),
        "save_at_close_seconds": round(computed["close_seconds"], 3),
        "stored_bytes": stored,
        "encode_percent_of_prefill": round(100 * spent.get("encode", 0.0) / spent["total"], 2),
    }
    print(
        f"{model.stem:28} {kv:10} {options.restore} tokens: recompute {row['recompute_seconds']} s, restore "
        f"{row['restore_seconds']} s, {row['times_faster']}x; encoding {row['encode_percent_of_prefill']} % of prefill",
        flush=True,
    )
    return row


def slope(options: argparse.Namespace, model: Path, kv: str) -> dict[str, Any]:
    """Resident bytes that a token of a long sequence adds, against the formula."""
    lengths = options.slope
    found = _python(SLOPE, [str(model), kv, ",".join(map(str, lengths))], dict(os.environ))
    first, last = found["samples"][0], found["samples"][-1]
    measured = (last["resident"] - first["resident"]) / (last["tokens"] - first["tokens"])
    row = {"model": model.name, "kv": kv, "bytes_per_token": round(measured, 1), "formula": found["formula"]}
    row |= {"ratio": round(measured / found["formula"], 4), "words": found["words"], "samples": found["samples"]}
    print(
        f"{model.stem:28} {kv:10} {measured:,.0f} bytes a token resident, {found['formula']:,.0f} by the formula: "
        f"{row['ratio']:.3f}",
        flush=True,
    )
    return row


def _python(code: str, arguments: list[str], environment: dict[str, str]) -> dict[str, Any]:
    run = [sys.executable, "-c", code, *arguments]
    return called_object(run, environment)


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--kamado", default="kamado")
    parser.add_argument("--peer", type=Path, help="folder with kvdepth")
    parser.add_argument("--kv", type=lambda text: text.split(","), default=["exact", "balanced", "small"])
    parser.add_argument("--depth", type=_numbers, default=[512, 1024, 8192, 16384, 32768])
    parser.add_argument("--tokens", type=int, default=32, help="decoded in a run")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--restore", type=int, default=16384, help="tokens that are restored; 0: leave it out")
    parser.add_argument("--slope", type=_numbers, default=[4096, 16384, 32000], help="lengths; empty: leave it out")
    parser.add_argument("--scratch", type=Path, help="folder for large temporary files, on the disk to be measured")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    peers = [tool(options.peer, "kvdepth")] if options.peer else []
    document: dict[str, Any] = {"circumstances": circumstances(options.kamado, peers, options.models)}
    document |= {"idle": idle_share(), "decode": [], "restore": [], "slope": []}
    for model in options.models:
        if options.depth:
            document["decode"] += decode(options, model)
        for kv in options.kv:
            if options.restore:
                document["restore"].append(restore(options, model, kv))
            if options.slope:
                document["slope"].append(slope(options, model, kv))
        write_json(document, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
