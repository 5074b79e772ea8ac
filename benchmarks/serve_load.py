#!/usr/bin/env python3
"""Many clients that behave badly, for minutes: does the server leak, grow, or answer anyone differently?

    python3 benchmarks/serve_load.py --model smollm2:135m --clients 64 --minutes 10 --json

Every question is first asked alone. Then each client asks at random, and by lot reads on, leaves in the middle, reads
slowly, or sends a body that is no request. Checked at the end, exit code 1 when one does not hold:

  identical   every complete answer is the one that the same question got alone
  refusals    malformed bodies get 4xx; nothing gets 5xx but 503; 429 and 503 have Retry-After
  nothing left  no request runs, no session is live, no page is lost, descriptors are as before
  memory flat   resident memory of the last third is at most 16 MiB above that of the second
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

sys.path.insert(0, str(Path(__file__).resolve().parent))
from serving import Answer, Served, ask, served

GROWTH_BYTES = 16 << 20
SAMPLE_SECONDS = 2.0
TIMEOUT_SECONDS = 600.0  # of one answer: 64 share two cores
SETTLE_SECONDS = 60.0
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
    b'{"model": "MODEL", "messages": [{"role": "user", "content": "a"}], "max_tokens": -1}',
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
    if answer.finish is not None:
        tally.num_tokens += (answer.usage or {}).get("completion_tokens", 0)
        if answer.text != alone:
            tally.different.append(f"question {i}: {alone[:60]!r} … alone, {answer.text[:60]!r} … in company")
    elif lot != "leaves":
        tally.faults.append(f"{lot}: the stream ended without a reason")


async def watch(server: Served, begun: float, tally: Tally) -> None:
    """Samples memory until cancelled."""
    while True:
        tally.memory.append((time.monotonic() - begun, server.resident_bytes()))
        await asyncio.sleep(SAMPLE_SECONDS)


async def run(server: Served, options: argparse.Namespace) -> dict[str, Any]:
    """The whole run."""
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
    await asyncio.gather(*(client(i, server, asked, alone, end, tally) for i in range(options.clients)))
    watcher.cancel()
    seconds = time.monotonic() - begun
    left = await settled(server, files)
    again = []
    async with httpx2.AsyncClient(timeout=TIMEOUT_SECONDS) as http:
        again = [(await ask(http, server.url, body)).text for body in asked[:4]]
    return report(server, tally, seconds, left, files, threads, again == alone[:4])


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
    parser.add_argument("--json", action="store_true", help="the whole report, else the checks")
    options = parser.parse_args()
    arguments = ("--context", str(options.context), "--memory", options.memory)
    with served(options.model, *arguments, log=options.log) as server:
        result = asyncio.run(run(server, options))
    checks: dict[str, bool] = result["checks"]
    print(json.dumps(result, indent=1) if options.json else json.dumps(checks))
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
