#!/usr/bin/env python3
"""Many clients that behave badly, for minutes: does the server leak, grow, or answer anyone differently?

    python3 benchmarks/serve_load.py --model smollm2:135m --clients 64 --minutes 10 --json
    python3 benchmarks/serve_load.py --hostile 16 --minutes 10 --json soak.json

With `--hostile N`, N of the clients attack the server all the time (benchmarks/hostile.py, its own process: grammars
and templates that are too deep or too costly, bodies of 27 MB, silent connections, paths, names of a megabyte). Before
that the same run is made with those N doing nothing, on a server of its own, and gaps between pieces are compared.

Every question is first asked alone. Then each client asks at random, and by lot reads on, leaves in the middle, reads
slowly, or sends a body that is no request. Checked at the end, exit code 1 when one does not hold:

  identical   every complete answer is the one that the same question got alone
  refusals    malformed bodies get 4xx; nothing gets 5xx but 503; 429 and 503 have Retry-After
  nothing left  no request runs, no session is live, no page is lost, descriptors are as before
  memory flat   resident memory of the last third is at most 16 MiB above that of the second
  alive         the process is the one that was started
  attacks       each is refused, closed, or answered as it asks (hostile runs)
  gaps          the 99th percentile of gaps between pieces is at most 25 % above the silent run's (`--gap-limit`)
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2

sys.path.insert(0, str(Path(__file__).resolve().parent))
from serving import Answer, Served, ask, borrowed_store, served

GROWTH_BYTES = 16 << 20
SAMPLE_SECONDS = 2.0
TIMEOUT_SECONDS = 600.0  # of one answer: 64 share two cores
SETTLE_SECONDS = 60.0
ATTACK_END_SECONDS = 300.0
SUBJECTS = ("the sea", "iron", "bread", "a river in winter", "old maps", "the number seven", "glass", "owls")
TASKS = ("Write a sentence about {}.", "List three facts about {}.", "Tell a short story about {}.", "What is {}?")
LOTS = (("reads", 70), ("leaves", 12), ("slow", 8), ("malformed", 10))
BODIES: tuple[bytes, ...] = (
    b"",
    b"{",
    b"[]",
    b"null",
    b'{"model": 5}',
    b'{"model": "MODEL"}',
    b'{"model": "MODEL", "messages": []}',
    b'{"model": "MODEL", "messages": "hi"}',
    b'{"model": "MODEL", "messages": [{"role": "user"}], "temperature": "hot"}',
    b'{"model": "MODEL", "messages": [{"role": "user", "content": "a"}], "max_tokens": -2}',
    b'{"model": "../../etc/passwd", "messages": [{"role": "user", "content": "a"}]}',
    b'{"model": "MODEL", "messages": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    b'{"model": "MODEL", "messages": [{"role": "user", "content": "\xff\xfe"}]}',
)


@dataclass
class Tally:
    """What happened."""

    lots: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    different: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    num_tokens: int = 0
    firsts: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)  # between pieces of answers that were read as they came, seconds
    memory: list[tuple[float, int]] = field(default_factory=list)  # seconds, bytes


def questions(model: str, count: int, max_tokens: int) -> list[dict[str, Any]]:
    """Different questions, half of them with a seed and a temperature, half greedy; some are second turns."""
    out = []
    for i in range(count):
        text = TASKS[i % len(TASKS)].format(SUBJECTS[i // len(TASKS) % len(SUBJECTS)])
        messages = [{"role": "user", "content": text}]
        if i % 3 == 0:
            messages += [
                {"role": "assistant", "content": "Let me think about that."},
                {"role": "user", "content": "Go on, please."},
            ]
        out.append(
            {
                "model": model,
                "messages": messages,
                "max_tokens": max_tokens - i % 7,
                "temperature": 0.0 if i % 2 else 0.8,
                "seed": i,
            }
        )
    return out


async def client(
    number: int, server: Served, asked: list[dict[str, Any]], alone: list[str], end: float, tally: Tally
) -> None:
    """One client until `end`."""
    lots = random.Random(number)
    limits = httpx2.Limits(max_connections=1)
    async with httpx2.AsyncClient(timeout=TIMEOUT_SECONDS, limits=limits) as http:
        while time.monotonic() < end:
            lot = lots.choices([name for name, _ in LOTS], [weight for _, weight in LOTS])[0]
            tally.lots[lot] += 1
            try:
                if lot == "malformed":
                    await malformed(http, server, lots, tally)
                else:
                    i = lots.randrange(len(asked))
                    answer = await ask(
                        http,
                        server.url,
                        asked[i],
                        leave_after=lots.randrange(1, 12) if lot == "leaves" else None,
                        pause=lots.choice((0.05, 0.2, 0.5)) if lot == "slow" else 0.0,
                    )
                    await judge(answer, lot, i, alone[i], tally)
            except httpx2.HTTPError as error:
                tally.faults.append(f"{lot}: {type(error).__name__}: {error}")
                if server.process.poll() is not None:
                    return


async def malformed(http: httpx2.AsyncClient, server: Served, lots: random.Random, tally: Tally) -> None:
    """A body that is no request: 4xx."""
    body = lots.choice(BODIES).replace(b"MODEL", server.model.encode())
    headers = {"content-type": "application/json"}
    response = await http.post(f"{server.url}/v1/chat/completions", content=body, headers=headers)
    tally.statuses[str(response.status_code)] += 1
    if not 400 <= response.status_code < 500:
        tally.faults.append(f"{response.status_code} for the body {body[:60]!r}")


async def judge(answer: Answer, lot: str, i: int, alone: str, tally: Tally) -> None:
    """Counts an answer, and compares it when it is complete."""
    tally.statuses[str(answer.status)] += 1
    if answer.status in (429, 503):
        if answer.retry_after is None:
            tally.faults.append(f"{answer.status} without Retry-After")
        await asyncio.sleep(min(answer.retry_after or 1.0, 5.0))
        return
    if answer.status != 200 or answer.error:
        tally.faults.append(f"{lot}: {answer.status} {answer.error[:200]}")
        return
    tally.firsts.append(answer.first_seconds)
    if lot == "reads":
        tally.gaps += [b - a for a, b in pairwise(answer.times)]
    if answer.finish is not None:
        tally.num_tokens += (answer.usage or {}).get("completion_tokens", 0)
        if answer.text != alone:
            tally.different.append(f"question {i}: {alone[:60]!r} … alone, {answer.text[:60]!r} … in company")
    elif lot != "leaves":
        tally.faults.append(f"{lot}: the stream ended without a reason")


async def watch(server: Served, begun: float, tally: Tally) -> None:
    """Samples memory until cancelled."""
    while server.process.poll() is None:
        tally.memory.append((time.monotonic() - begun, server.resident_bytes()))
        await asyncio.sleep(SAMPLE_SECONDS)


@contextmanager
def attackers(
    server: Served, number: int, seconds: float, pause: float, only: str
) -> Iterator[subprocess.Popen[str] | None]:
    """So many of them, for so long; None when there are none. `only`: a kind of attack, "" for all."""
    if not number:
        yield None
        return
    command = [sys.executable, str(Path(__file__).with_name("hostile.py")), "--url", server.url]
    command += ["--model", server.model, "--clients", str(number), "--seconds", str(seconds), "--pause", str(pause)]
    command += ["--only", only] if only else []
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def run(server: Served, options: argparse.Namespace, hostile: int = 0) -> dict[str, Any]:
    """The whole run, with so many attackers."""
    asked = questions(server.model, options.questions, options.tokens)
    alone = []
    async with httpx2.AsyncClient(timeout=TIMEOUT_SECONDS) as http:
        for body in asked:
            answer = await ask(http, server.url, body)
            if answer.finish is None:
                raise SystemExit(f"alone, {body['messages'][-1]} got {answer.status}: {answer.error}")
            alone.append(answer.text)
    files, threads = server.num_files(), server.num_threads()
    tally = Tally()
    begun = time.monotonic()
    watcher = asyncio.create_task(watch(server, begun, tally))
    end = begun + options.minutes * 60
    attack: dict[str, Any] = {}
    with attackers(server, hostile, options.minutes * 60, options.pause, options.only) as process:
        honest = options.clients - options.hostile
        await asyncio.gather(*(client(i, server, asked, alone, end, tally) for i in range(honest)))
        seconds = time.monotonic() - begun
        if process is not None:
            out, _ = await asyncio.to_thread(process.communicate, timeout=ATTACK_END_SECONDS)
            attack = json.loads(out or '{"faults": ["the attackers said nothing"], "num_faults": 1}')
    watcher.cancel()
    if server.process.poll() is not None:
        return {
            "ended_with": server.process.returncode,
            "seconds": round(seconds, 1),
            "hostile": attack,
            "faults": tally.faults[:20],
            "gap_p99_ms": 0.0,
            "checks": {"alive": False},
        }
    left = await settled(server, files)
    again = []
    async with httpx2.AsyncClient(timeout=TIMEOUT_SECONDS) as http:
        again = [(await ask(http, server.url, body)).text for body in asked[:4]]
    result = report(server, tally, seconds, left, files, threads, again == alone[:4])
    if hostile:
        result["hostile"] = attack
        result["checks"]["attacks"] = not attack["num_faults"]
    return result


async def settled(server: Served, files: int) -> dict[str, float]:
    """What is left once everybody has gone: looked at until nothing is, for a minute at most."""
    end = time.monotonic() + SETTLE_SECONDS
    while True:
        metrics = await asyncio.to_thread(server.metrics)
        left = {
            "requests_active": metrics.get("kamado_requests_active", -1.0),
            "http_open": metrics.get("kamado_http_open", 1.0) - 1.0,  # the request for the metrics itself
            "files": float(max(0, server.num_files() - files)),
        }
        for name in ("engine_requests.live", "engine_requests.waiting", "kv_pages.live", "kv_pages.lost"):
            left[name] = metrics.get(f"kamado_{name}", -1.0)
        if not any(left.values()) or time.monotonic() > end:
            return left
        await asyncio.sleep(0.5)


def report(
    server: Served, tally: Tally, seconds: float, left: dict[str, float], files: int, threads: int, same_after: bool
) -> dict[str, Any]:
    """Figures and checks."""
    third = len(tally.memory) // 3
    second = [nbytes for _, nbytes in tally.memory[third : 2 * third]] or [0]
    last = [nbytes for _, nbytes in tally.memory[2 * third :]] or [0]
    growth = int(statistics.median(last) - statistics.median(second))
    firsts = sorted(tally.firsts) or [0.0]
    gaps = sorted(tally.gaps) or [0.0]
    return {
        "seconds": round(seconds, 1),
        "lots": dict(tally.lots),
        "statuses": dict(sorted(tally.statuses.items())),
        "complete_answer_tokens": tally.num_tokens,
        "tokens_per_second": round(tally.num_tokens / seconds, 2),
        "first_piece_seconds": {
            "median": round(statistics.median(firsts), 3),
            "p95": round(firsts[int(0.95 * (len(firsts) - 1))], 3),
        },
        "gaps": len(tally.gaps),
        "gap_p50_ms": round(1000 * statistics.median(gaps), 2),
        "gap_p99_ms": round(1000 * gaps[int(0.99 * (len(gaps) - 1))], 2),
        "gap_longest_ms": round(1000 * gaps[-1], 1),
        "resident_mib": {
            "second_third": round(statistics.median(second) / 2**20, 1),
            "growth": round(growth / 2**20, 2),
        },
        "files": [files, server.num_files()],
        "threads": [threads, server.num_threads()],
        "left": left,
        "different": tally.different[:20],
        "faults": tally.faults[:20],
        "checks": {
            "identical": not tally.different and same_after,
            "refusals": not tally.faults,
            "nothing_left": not any(left.values()),
            "memory_flat": growth <= GROWTH_BYTES,
            "alive": True,
        },
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2:135m", help="a name or a GGUF file")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--questions", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=48, help="of an answer, at most")
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--memory", default="2GiB")
    parser.add_argument("--log", type=Path, help="the server's log goes there")
    parser.add_argument(
        "--hostile", type=int, default=0, help="so many of the clients attack; compared with a silent run"
    )
    parser.add_argument("--pause", type=float, default=0.5, help="between two attacks of a client, seconds in the mean")
    parser.add_argument("--only", default="", help="one kind of attack, A1 or lists: which one makes the gaps")
    parser.add_argument("--gap-limit", type=float, default=1.25, help="of hostile over silent gaps; 0: none")
    parser.add_argument("--json", nargs="?", const="-", help="the whole report, into a file if one is named")
    options = parser.parse_args()
    options.load_before = round(os.getloadavg()[0], 2)
    if not 0 <= options.hostile < options.clients:
        parser.error("--hostile must leave some honest clients")
    arguments = ("--context", str(options.context), "--memory", options.memory)

    def one_run(hostile: int) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as home:
            environment = borrowed_store(Path(home))
            if hostile:  # they make models of it
                arguments_here = (*arguments, "--all")
            else:
                arguments_here = arguments
            with served(options.model, *arguments_here, log=options.log, environment=environment) as server:
                return asyncio.run(run(server, options, hostile))

    if not options.hostile:
        result = one_run(0)
        checks: dict[str, bool] = result["checks"]
    else:
        silent, hostile = one_run(0), one_run(options.hostile)
        ratio = hostile["gap_p99_ms"] / silent["gap_p99_ms"] if silent["gap_p99_ms"] else 0.0
        checks = dict(hostile["checks"])
        checks |= {f"silent_{name}": is_so for name, is_so in silent["checks"].items()}
        if options.gap_limit:
            checks["gaps"] = 0 < ratio <= options.gap_limit
        result = {"silent": silent, "hostile": hostile, "gap_p99_ratio": round(ratio, 3), "checks": checks}
        result["machine"] = {"cpus": os.cpu_count(), "load_before": options.load_before}
    if options.json:
        text = json.dumps(result, indent=1)
        if options.json == "-":
            print(text)
        else:
            Path(options.json).write_text(text + "\n", "utf-8")
    if options.json != "-":
        print(table(result) if options.hostile else json.dumps(checks))
    return 0 if all(checks.values()) else 1


def table(result: dict[str, Any]) -> str:
    """The two runs side by side, as Markdown."""
    silent, hostile = result["silent"], result["hostile"]
    rows = [("", "silent", "hostile")]
    for name, label in (
        ("seconds", "seconds"),
        ("tokens_per_second", "tokens/s of complete answers"),
        ("gaps", "gaps between pieces"),
        ("gap_p50_ms", "gap, median, ms"),
        ("gap_p99_ms", "gap, 99th percentile, ms"),
        ("gap_longest_ms", "gap, longest, ms"),
    ):
        rows.append((label, str(silent.get(name, "-")), str(hostile.get(name, "-"))))
    for run_ in (silent, hostile):
        run_.setdefault("resident_mib", {"second_third": "-", "growth": "-"})
    growths = [str(run_["resident_mib"]["growth"]) for run_ in (silent, hostile)]
    rows.append(("growth of memory in the last third, MiB", *growths))
    rows.append(("answers unlike alone", *(str(len(run_.get("different", []))) for run_ in (silent, hostile))))
    attacks = hostile.get("hostile", {})
    rows.append(("attacks", "0", str(sum(attacks.get("sent", {}).values()))))
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines.insert(1, "|---|--:|--:|")
    lines.append("")
    lines.append(f"99th percentile of gaps, hostile over silent: {result['gap_p99_ratio']}")
    lines.append(f"Answers to attacks: {attacks.get('statuses')}")
    lines += [f"FAULT {fault}" for fault in attacks.get("faults", [])]
    failed = [name for name, is_so in result["checks"].items() if not is_so]
    lines.append(f"Checks that failed: {', '.join(failed) or 'none'}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
