"""Speed after a change over speed before it: two trees, alternating short runs, ratios with 95 % intervals.

    python benchmarks/before_after.py OLD/src NEW/src --pairs 15 --json out.json

Both trees hold a built native module. For each model one process of each tree stays loaded and they take turns, so that
whatever else the machine does hits both. A ratio is the geometric mean of after/before in tokens/s (or of before/after
in seconds), its interval by Student's t over the logarithms of the pairs. Cells whose interval is wider than ±2 % get
more pairs, up to --most. A cell is a miss when its whole interval lies below 0.98.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

SMALL, MIDDLE, LARGE = "smollm2:135m", "gemma3:270m", "qwen2.5-coder:1.5b"
CELLS = (
    (SMALL, ("prefill", "decode", "chats")),
    (MIDDLE, ("prefill", "decode")),
    (LARGE, ("prefill", "decode")),
    ("streamed", ("decode",)),
    (SMALL, ("import", "first")),
)
# Student's t, two-sided 95 %, by degrees of freedom (the last row for all above).
_T95 = {14: 2.145, 19: 2.093, 24: 2.064, 29: 2.045, 39: 2.023, 49: 2.010, 59: 2.001}


class Side:
    """One tree's process for one model."""

    def __init__(self, src: Path, model: str, home: str) -> None:
        self._env = {**os.environ, "PYTHONPATH": str(src), "XDG_CACHE_HOME": home}
        command = [sys.executable, __file__, "--worker", model]
        self._process = subprocess.Popen(
            command, env=self._env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, cell: str, seed: int) -> float:
        """What one short run of the cell gave: higher is better."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(cell, seed, file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"the worker for {cell} ended: exit code {self._process.wait()}")
        return float(line)

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


def worker(name: str) -> None:
    """Answers lines "cell seed" with a number, until its input ends."""
    import random

    import kamado

    where, memory = (os.environ["KAMADO_STREAMED"], "704MiB") if name == "streamed" else (name, None)
    given: dict[str, Any] = {"context": 2048, "kv_tokens": 8192, "prefix_cache": None}
    model: Any = None
    for line in sys.stdin:
        cell, seed = line.split()
        rng = random.Random(int(seed))

        def tokens(count: int, rng: Any = rng) -> list[int]:
            return [rng.randrange(1000, 20000) for _ in range(count)]

        if cell in ("import", "first"):
            if model is not None:
                model.close()
                model = None
            print(_cold(kamado, where, cell, tokens(1024)), flush=True)
            continue
        if model is None:
            if memory is not None:
                memory = os.environ.get("KAMADO_STREAMED_BUDGET", memory)
            model = kamado.load(where, memory=memory, **given)
            list(model.generate(tokens(64), max_tokens=8))
        print(_warm(model, cell, tokens), flush=True)
    if model is not None:
        model.close()


def _warm(model: Any, cell: str, tokens: Any) -> float:
    """Tokens a second of a loaded model."""
    if cell == "prefill":
        seconds = 0.0
        count = 0
        while seconds < 1.0:
            prompt = tokens(512)
            begin = time.perf_counter()
            list(model.generate(prompt, max_tokens=1))
            seconds += time.perf_counter() - begin
            count += 512
        return count / seconds
    if cell == "decode":
        times: list[float] = []
        while len(times) < 17:  # an answer may end early
            times = [time.perf_counter() for _ in model.generate(tokens(32), max_tokens=49)]
        return (len(times) - 1) / (times[-1] - times[0])

    counts = []

    def chat() -> None:
        counts.append(sum(1 for _ in model.generate(tokens(32), max_tokens=32)))

    threads = [threading.Thread(target=chat) for _ in range(8)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - begin)


def _cold(kamado: Any, where: str, cell: str, prompt: list[int]) -> float:
    """1 / seconds: to the first token after loading, without a kept prefix, or of a prompt that was kept on disk."""
    if cell == "first":
        begin = time.perf_counter()
        with kamado.load(where, context=2048, prefix_cache=None) as model:
            next(iter(model.generate(prompt[:16], max_tokens=1)))
        return 1 / (time.perf_counter() - begin)
    with kamado.load(where, context=2048, prefix_cache="1GiB") as model:
        list(model.generate(prompt, max_tokens=2))
    with kamado.load(where, context=2048, prefix_cache="1GiB") as model:
        begin = time.perf_counter()
        list(model.generate(prompt, max_tokens=1))
        return 1 / (time.perf_counter() - begin)


def interval(ratios: list[float]) -> tuple[float, float, float]:
    """(geometric mean, low, high) of the ratios, 95 %."""
    logs = [math.log(ratio) for ratio in ratios]
    t = next((value for freedom, value in sorted(_T95.items(), reverse=True) if len(logs) - 1 >= freedom), 2.776)
    mean, half = statistics.mean(logs), t * statistics.stdev(logs) / math.sqrt(len(logs))
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, nargs="?")
    parser.add_argument("after", type=Path, nargs="?")
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--most", type=int, default=30)
    parser.add_argument("--only", help="cells whose model or name has this in it")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker")
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.worker)
        return 0
    rows = []
    with tempfile.TemporaryDirectory() as home:
        if "KAMADO_STREAMED" not in os.environ:
            os.environ["KAMADO_STREAMED"] = os.path.join(home, "streamed.gguf")
            command = [sys.executable, "-m", "kamado", "synth", os.environ["KAMADO_STREAMED"], "--upcycle", SMALL]
            env = {**os.environ, "PYTHONPATH": str(arguments.before)}
            subprocess.run([*command, "--experts", "16", "--top-k", "2", "--jitter", "1"], env=env, check=True)
        for model, cells in CELLS:
            wanted = [cell for cell in cells if arguments.only is None or arguments.only in f"{model} {cell}"]
            if not wanted:
                continue
            sides = [Side(src, model, f"{home}/{i}") for i, src in enumerate((arguments.before, arguments.after))]
            for cell in wanted:
                ratios: list[float] = []
                values: list[list[float]] = [[], []]
                for side in sides:
                    side.run(cell, 0)
                while len(ratios) < arguments.most:
                    seed = len(ratios) + 1
                    order = (0, 1) if seed % 2 else (1, 0)
                    got = {i: sides[i].run(cell, seed * 2 + i) for i in order}
                    for i in (0, 1):
                        values[i].append(got[i])
                    ratios.append(got[1] / got[0])
                    if len(ratios) >= arguments.pairs:
                        mean, low, high = interval(ratios)
                        if high / low < 1.04:
                            break
                mean, low, high = interval(ratios)
                row = {
                    "model": model, "cell": cell, "pairs": len(ratios), "ratio": mean, "low": low, "high": high,
                    "before": statistics.median(values[0]), "after": statistics.median(values[1]),
                    "holds": high >= 0.98,
                }  # fmt: skip
                rows.append(row)
                print(
                    f"{model:<20} {cell:<8} {mean:.3f} ({low:.3f} to {high:.3f}), {len(ratios)} pairs; "
                    f"{row['before']:.4g} -> {row['after']:.4g}" + ("" if row["holds"] else "  MISS"),
                    flush=True,
                )
            for side in sides:
                side.close()
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0 if all(row["holds"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
