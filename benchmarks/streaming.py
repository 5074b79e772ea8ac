#!/usr/bin/env python3
"""Everything that is claimed about models larger than memory, cell by cell, each from an empty page cache.

    benchmarks/streaming.py --out RESULTS.json --cell decode MODEL.gguf --peer DIR --budgets 6GiB,4GiB --rounds 3
    benchmarks/streaming.py --out RESULTS.json --cell decode qwen35moe.gguf --peer DIR --budgets 6GiB --least-ratio 3
    benchmarks/streaming.py --out RESULTS.json --cell report --markdown OUT.md --svg OUT.svg --docs docs/streaming.md

Runs are kept in RESULTS.json as they are made; what is there is not run again (--again: it is). kamado runs in a memory
cgroup, which counts cached pages, and finds its budget itself. The disk is probed right before and after each part of a
run, by reads of the size and number that kamado has under way, because shared disks drift by 2 to 3 times within a
minute. The peer is llama.cpp with mmap in the same cgroup, alternating, at read-ahead 128 KiB, its best, and as the
machine is set. Without the rights for cgroups, the cache or read-ahead a cell says what it could not do.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from capped import TIMED_OUT, Capped, NotPossibleError, capped, device_of, drop_caches, read_ahead, run_capped
from kamado.files import open_checkpoint
from kamado.files.atomic import write_atomically
from kamado.plan.budget import format_size, parse_size
from kamado.plan.disk import measure_disk
from peers import idle_share, tool
from replay import Belady, Lru, batches_of, hottest_half_share, replay
from stream_report import write_report

TUNED_READ_AHEAD_KIB = 128
WORKER = Path(__file__).with_name("stream_worker.py")
READERS = 4  # kamado's own number of reads under way
LARGEST_REQUEST_BYTES = 2 << 20  # kamado splits what is larger
ENGINES = ("kamado", "llama.cpp tuned", "llama.cpp as set")
Run = dict[str, Any]


class Results:
    """The file of runs, written anew after each."""

    def __init__(self, path: Path, again: bool) -> None:
        self.path = path
        self.again = again
        self.runs: list[Run] = json.loads(path.read_text(encoding="utf-8"))["runs"] if path.exists() else []

    def find(self, key: Run) -> Run | None:
        """The good run with these settings."""
        for run in reversed(self.runs):
            if "failed" not in run and all(run.get(name) == value for name, value in key.items()):
                return run
        return None

    def make(self, key: Run, run: Callable[[], Run]) -> Run:
        """The run of these settings, made now unless it is there. A run that fails is kept as that."""
        found = None if self.again else self.find(key)
        if found is not None:
            return found
        idle = idle_share()
        try:
            drop_caches()
            values = run()
        except NotPossibleError as error:
            values = {"failed": str(error)}
        made = key | {"date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "idle": round(idle, 3)} | values
        self.runs.append(made)
        write_atomically(self.path, json.dumps({"runs": self.runs}, indent=1), "\n")
        print(line(made), file=sys.stderr, flush=True)
        return made


class Bench:
    """Makes the runs of one model."""

    def __init__(self, options: argparse.Namespace, model: Path, results: Results) -> None:
        self.options = options
        self.model = model
        self.results = results
        self.device = device_of(model)
        self.request_bytes = expert_request_bytes(model)

    def key(self, cell: str, engine: str, budget: str, round_number: int = 0) -> Run:
        values = {"cell": cell, "model": self.model.name, "model_bytes": self.model.stat().st_size}
        return values | {"engine": engine, "budget": budget, "round": round_number}

    def probe(self) -> int:
        """Bytes a second of the disk now, by reads like kamado's."""
        seconds = self.options.probe_seconds
        return round(
            measure_disk(
                self.model, request_bytes=self.request_bytes, depth=READERS, seconds=seconds, seed=time.time_ns()
            )
        )

    def work(self, mode: str, limit: int | None, *arguments: object, samples: list[list[float]] | None = None) -> Run:
        """Runs the worker in a cgroup. `parts`: what it measured, each with the probes before and after it."""
        words = [sys.executable, str(WORKER), mode, str(self.model), "--threads", str(self.options.threads)]
        words += ["--context", str(self.options.context), *map(str, arguments)]
        with capped(limit, device=self.device) as group, tempfile.TemporaryFile("w+", errors="replace") as errors:
            process = group.start(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)
            with ending(group, process, self.options.timeout) as is_late, sampling(group, process, samples):
                parts, last = self._listen(process)
                code = process.wait()
            errors.seek(0)
            run = group.result("", errors.read(), TIMED_OUT if is_late.is_set() else code)
        charged = {
            "cgroup_bytes": limit,
            "cgroup_peak_bytes": run.peak_bytes,
            "limit_hits": run.limit_hits,
            "total_seconds": round(run.seconds, 2),
        }
        if last is None or run.code:
            return charged | {"failed": why(run.code, run.stderr), "code": run.code}
        return charged | {name: value for name, value in last.items() if name != "event"} | {"parts": parts}

    def _listen(self, process: subprocess.Popen[str]) -> tuple[list[Run], Run | None]:
        assert process.stdout is not None
        assert process.stdin is not None
        parts: list[Run] = []
        before = 0
        for text in process.stdout:
            with contextlib.suppress(json.JSONDecodeError):
                event = json.loads(text)
                if event["event"] == "end":
                    return parts, event
                if event["event"] != "pause":
                    continue
                now = self.probe()
                if "seconds" in event:
                    parts.append(
                        {name: v for name, v in event.items() if name != "event"}
                        | {"probe_bytes_per_second": [before or now, now]}
                    )
                before = now
                with contextlib.suppress(OSError):
                    process.stdin.write("\n")
                    process.stdin.flush()
        return parts, None

    def decode(
        self, cell: str, budget: str, limit: int | None, round_number: int = 0, *more: object, prompt: int = 0
    ) -> Run:
        """kamado decoding, with what an ideal LRU and Belady's would have read in the same slots."""
        options = self.options
        engine = "kamado" if not more else f"kamado {' '.join(map(str, more))}"

        def run() -> Run:
            with tempfile.TemporaryDirectory() as folder:
                routing = Path(folder) / "routing.npz"
                warm = options.warm if limit is not None else min(options.warm, 8)
                made = self.work(
                    "decode", limit, "--warm", warm, "--blocks", options.blocks, "--tokens", options.tokens,
                    "--seconds", options.seconds, "--routing", routing, "--prompt", prompt, *more,
                )  # fmt: skip
                return made if "failed" in made else made | decode_figures(made, routing)

        return self.results.make(self.key(cell, engine, budget, round_number), run)

    def peer(self, cell: str, budget: str, limit: int | None, round_number: int, kib: int | None) -> Run:
        """llama-bench with mmap. Its first repetition fills the cache; the median of the others counts."""
        engine = ENGINES[1] if kib is not None else ENGINES[2]

        def run() -> Run:
            tokens = self.options.peer_tokens if kib is not None else max(1, self.options.peer_tokens // 4)
            for _ in range(3):
                made = self._peer_once(limit, kib, tokens)
                if made.get("code") != TIMED_OUT or tokens == 1:
                    break
                tokens = max(1, tokens // 4)
            return made

        return self.results.make(self.key(cell, engine, budget, round_number), run)

    def _peer_once(self, limit: int | None, kib: int | None, tokens: int) -> Run:
        options = self.options
        # Repacked weights would be copies in anonymous memory: nothing is mapped then, and the cgroup kills it.
        command = [
            str(tool(options.peer, "llama-bench")), "-m", str(self.model), "-p", "0", "-n", str(tokens), "-r",
            str(options.peer_repeat), "-t", str(options.threads), *options.peer_flags, "--no-warmup", "-o", "json",
        ]  # fmt: skip
        before = self.probe()
        drop_caches()
        with read_ahead(self.device, kib) as in_force:
            run = run_capped(command, limit, timeout=options.timeout, device=self.device)
        made: Run = {
            "read_ahead_kib": in_force,
            "tokens": tokens,
            "cgroup_bytes": limit,
            "cgroup_peak_bytes": run.peak_bytes,
            "limit_hits": run.limit_hits,
            "total_seconds": round(run.seconds, 2),
            "probe_bytes_per_second": [before, self.probe()],
        }
        if options.least_ratio is not None and kib is not None:
            made["least_ratio"] = options.least_ratio
        try:
            samples = json.loads(run.stdout)[-1]["samples_ts"]
        except (ValueError, LookupError, TypeError):
            return made | {"failed": why(run.code, run.stderr), "code": run.code}
        return made | {
            "samples": samples,
            "tokens_per_second": statistics.median(samples[1:] or samples),
            # of the whole run, loading included, so an upper bound
            "bytes_per_token": run.disk_bytes / (tokens * len(samples)),
            "disk_bytes_per_second": statistics.mean(made["probe_bytes_per_second"]),
        }

    def plan(self) -> Run:
        """The least budget that the plan states, and what the model takes when it is resident."""
        return self.results.make(self.key("plan", "kamado", "none"), lambda: self.work("plan", None))

    def resident_bytes(self) -> int:
        planned = self.plan()
        if "failed" in planned:
            sys.exit(f"{self.model}: {planned['failed']}")
        return int(planned["resident_bytes"])

    def share(self) -> tuple[str, int]:
        """--share of what the model takes in memory: its name and bytes."""
        return f"{self.options.share}%", self.resident_bytes() * self.options.share // 100


# --- cells ------------------------------------------------------------------------------------------------------------


def cell_memory(bench: Bench) -> None:
    """All in memory, no cap: the compute limit of the other cells."""
    for round_number in range(bench.options.rounds):
        bench.decode("memory", "none", None, round_number)


def cell_decode(bench: Bench) -> None:
    """kamado and the peer at --budgets, alternating."""
    for budget in bench.options.budgets:
        limit = parse_size(budget)
        for round_number in range(bench.options.rounds):
            bench.decode("decode", budget, limit, round_number)
            if bench.options.peer is not None:
                bench.peer("decode", budget, limit, round_number, TUNED_READ_AHEAD_KIB)
                bench.peer("decode", budget, limit, round_number, None)


def cell_shares(bench: Bench) -> None:
    """kamado at budgets of 25, 50 and 75 % of what the model takes in memory."""
    for share in (25, 50, 75):
        for round_number in range(bench.options.rounds):
            bench.decode("shares", f"{share}%", bench.resident_bytes() * share // 100, round_number)


def cell_curve(bench: Bench) -> None:
    """kamado at --budgets, for the picture."""
    for budget in bench.options.budgets:
        bench.decode("curve", budget, parse_size(budget))


def cell_whole(bench: Bench) -> None:
    """A budget that holds everything, and streaming with a slot for every expert, against plain in-memory."""
    limit = bench.resident_bytes() * 115 // 100
    prompt = 256  # touches every expert, so that nothing is left to read
    for round_number in range(bench.options.rounds):
        bench.decode("whole", "none", None, round_number, prompt=prompt)
        bench.decode("whole", "all", limit, round_number, prompt=prompt)
        bench.decode("whole", "all", limit, round_number, "--all-slots", prompt=prompt)


def cell_prefill(bench: Bench) -> None:
    """A prompt of --prompt tokens at --share, and in memory."""
    for budget, limit in (("none", None), bench.share()):
        arguments = ("--prompt", bench.options.prompt, "--blocks", 1 + bench.options.rounds)
        bench.results.make(
            bench.key("prefill", "kamado", budget), lambda limit=limit, a=arguments: bench.work("prefill", limit, *a)
        )


def cell_soak(bench: Bench) -> None:
    """--minutes of generation at --share, its memory sampled from outside every second."""
    budget, limit = bench.share()
    options = bench.options
    options.timeout = max(options.timeout, 60 * options.minutes + 600)

    def run() -> Run:
        samples: list[list[float]] = []
        made = bench.work("generate", limit, "--seconds", 60 * options.minutes, samples=samples)
        return made | soak_figures(samples) | {"samples": samples[:: max(1, len(samples) // 600)]}

    bench.results.make(bench.key("soak", "kamado", budget), run)


def cell_least(bench: Bench) -> None:
    """The least budget that the plan states for --context, run at exactly that."""
    planned = bench.plan()
    least = int(planned["least_bytes"])
    arguments = ("--memory", least, "--warm", 2, "--blocks", 2, "--tokens", 4)
    bench.results.make(bench.key("least", "kamado", str(least)), lambda: bench.work("decode", least, *arguments))


def cell_beyond(bench: Bench) -> None:
    """1000 tokens of a model larger than the machine, no cgroup limit."""
    options = bench.options
    memory = () if options.memory is None else ("--memory", options.memory)

    def run() -> Run:
        samples: list[list[float]] = []
        made = bench.work("generate", None, "--tokens", options.long_tokens, *memory, samples=samples)
        return made | soak_figures(samples)

    bench.results.make(bench.key("beyond", "kamado", options.memory or "machine"), run)


CELLS: dict[str, Callable[[Bench], None]] = {
    "memory": cell_memory,
    "decode": cell_decode,
    "shares": cell_shares,
    "curve": cell_curve,
    "whole": cell_whole,
    "prefill": cell_prefill,
    "soak": cell_soak,
    "least": cell_least,
    "beyond": cell_beyond,
}


# --- helpers ----------------------------------------------------------------------------------------------------------


def expert_request_bytes(model: Path) -> int:
    """What kamado reads at once: an expert's largest matrix, or an even part of it."""
    refs = open_checkpoint(model).tensors.values()
    largest = max((ref.nbytes // ref.shape[0] for ref in refs if len(ref.shape) == 3), default=1 << 20)
    return largest // -(-largest // LARGEST_REQUEST_BYTES)


@contextlib.contextmanager
def ending(group: Capped, process: subprocess.Popen[str], timeout: float) -> Iterator[threading.Event]:
    """Kills the process when it takes too long, which the event then says, or when this is left by an exception."""
    is_late = threading.Event()

    def kill() -> None:
        is_late.set()
        group.kill(process)

    timer = threading.Timer(timeout, kill)
    timer.start()
    try:
        yield is_late
    finally:
        timer.cancel()
        if process.poll() is None:
            group.kill(process)


@contextlib.contextmanager
def sampling(group: Capped, process: subprocess.Popen[str], samples: list[list[float]] | None) -> Iterator[None]:
    """Appends [seconds, resident bytes, cgroup's bytes] every second."""
    is_over = threading.Event()
    begin = time.perf_counter()

    def sample() -> None:
        assert samples is not None
        while not is_over.wait(1.0):
            with contextlib.suppress(OSError, IndexError, ValueError):
                pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
                resident = pages * os.sysconf("SC_PAGE_SIZE")
                samples.append([round(time.perf_counter() - begin, 1), resident, group.usage_bytes()])

    thread = threading.Thread(target=sample, daemon=True)
    if samples is not None:
        thread.start()
    try:
        yield
    finally:
        is_over.set()
        if samples is not None:
            thread.join()


def why(code: int, stderr: str) -> str:
    """What a failed program said, in a line."""
    if code in (-9, 137):
        return "killed (out of memory)"
    return (stderr.strip().splitlines()[-1:] or [f"exit code {code}"])[0][:300]


def decode_figures(run: Run, routing: Path) -> Run:
    """Medians over the blocks, and bytes against a replay of the routing through as many slots."""
    parts = run["parts"]
    tokens = sum(part["tokens"] for part in parts)
    read = sum(part["ledger"]["bytes_read"] for part in parts)
    requests = sum(part["ledger"]["requests"] for part in parts)
    figures: Run = {
        "tokens_per_second": statistics.median(part["tokens"] / part["seconds"] for part in parts),
        "disk_bytes_per_second": statistics.mean(p for part in parts for p in part["probe_bytes_per_second"]),
        "bytes_per_token": read / tokens,
        "request_bytes": read / requests if requests else None,
    }
    with np.load(routing) as stored:
        rows, first = stored["routing"], int(stored["first"])
    cold = run.get("cold")
    if cold:
        figures["cold_tokens_per_second"] = cold["tokens"] / cold["seconds"]
        figures["cold_bytes_per_token"] = cold["ledger"]["bytes_read"] / cold["tokens"]
    if not len(rows):
        return figures
    figures["hottest_half"] = hottest_half_share(rows, run["num_experts"] // len(run["record_bytes"]))
    if not run["slots"]:
        return figures
    batches = batches_of(rows)
    layers = len(run["record_bytes"])
    for name, policy in (("ideal", Lru()), ("belady", Belady(batches))):
        missed: dict[int, int] = {}
        replay(batches, run["slots"], policy, first * layers, missed)
        figures[f"{name}_bytes_per_token"] = sum(run["record_bytes"][i] * n for i, n in missed.items()) / tokens
    if figures["ideal_bytes_per_token"]:
        figures["over_ideal"] = figures["bytes_per_token"] / figures["ideal_bytes_per_token"]
    return figures


def soak_figures(samples: list[list[float]]) -> Run:
    """Peaks, and the line through what was resident after the first fifth, when everything has been touched."""
    if len(samples) < 10:
        return {"sampled_seconds": len(samples)}
    times, resident, charged = np.array(samples).T
    late = slice(len(samples) // 5, None)
    slope = float(np.polyfit(times[late], resident[late], 1)[0])
    return {
        "sampled_seconds": float(times[-1]),
        "resident_peak_bytes": float(resident.max()),
        "charged_peak_bytes": float(charged.max()),
        "slope_bytes_per_hour": 3600 * slope,
        "grown_bytes": slope * float(times[-1] - times[late][0]),
    }


def line(run: Run) -> str:
    name = f"{run['cell']}: {run['model']}, {run['engine']} at {run['budget']}"
    if "failed" in run:
        return f"{name}: {run['failed']}"
    parts = [f"peak {format_size(run['cgroup_peak_bytes'])}"]
    if "tokens_per_second" in run:
        disk = format_size(round(run["disk_bytes_per_second"]))
        read = format_size(round(run["bytes_per_token"]))
        parts = [f"{run['tokens_per_second']:.3g} tokens/s", f"{read} a token", f"disk {disk}/s", *parts]
    if "over_ideal" in run:
        parts.append(f"{run['over_ideal']:.3f} of an ideal LRU's bytes")
    if "least_bytes" in run:
        parts.append(f"least {format_size(run['least_bytes'])}, resident {format_size(run['resident_bytes'])}")
    return f"{name}: {', '.join(parts)}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("models", nargs="*", type=Path, metavar="MODEL.gguf")
    parser.add_argument("--cell", required=True, choices=[*CELLS, "report"], help="what to measure")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="JSON file of all runs")
    parser.add_argument("--again", action="store_true", help="also what is in --out already")
    parser.add_argument("--peer", type=Path, metavar="DIR", help="folder of llama-bench; without it kamado runs alone")
    parser.add_argument(
        "--peer-flags", default="-lm mmap --repack 0", type=str.split, help="how llama-bench is told to map the file"
    )
    parser.add_argument("--peer-tokens", type=int, default=16, metavar="N", help="a repetition; a quarter as set")
    parser.add_argument("--peer-repeat", type=int, default=3, metavar="N", help="the first is not counted")
    parser.add_argument(
        "--least-ratio", type=float, metavar="X", help="what the tuned peer must be beaten by; kept with its runs"
    )
    parser.add_argument("--budgets", default="6GiB,4GiB", type=lambda text: text.split(","))
    parser.add_argument("--rounds", type=int, default=3, help="cold runs of each")
    parser.add_argument("--warm", type=int, default=64, metavar="N", help="tokens before measuring begins")
    parser.add_argument("--blocks", type=int, default=4, help="parts of a run, with a probe between")
    parser.add_argument("--tokens", type=int, default=8, help="tokens of a block")
    parser.add_argument("--seconds", type=float, default=120, help="after which no further block begins")
    parser.add_argument("--prompt", type=int, default=2048, help="tokens of the prefill cell")
    parser.add_argument("--share", type=int, default=25, help="per cent of prefill's and soak's budget")
    parser.add_argument("--minutes", type=float, default=30, help="of the soak cell")
    parser.add_argument("--long-tokens", type=int, default=1000, help="of the beyond cell")
    parser.add_argument("--memory", help="budget of the beyond cell; without it the machine's")
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--probe-seconds", type=float, default=0.7)
    parser.add_argument("--timeout", type=float, default=1200, help="seconds of one run")
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--svg", type=Path, help="the curve of the first model (or the one that is named)")
    parser.add_argument("--docs", type=Path, help="page whose figures between the marks are written anew")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: cgroup and read-ahead are put back
    results = Results(options.out, options.again)
    if options.cell == "report":
        return write_report(results.runs, options)
    if not options.models:
        parser.error("name a model")
    for model in options.models:
        CELLS[options.cell](Bench(options, model, results))
    mine = [r for r in results.runs if r["cell"] == options.cell and r["model"] in {m.name for m in options.models}]
    return 0 if mine and "failed" not in mine[-1] else 1


if __name__ == "__main__":
    sys.exit(main())
