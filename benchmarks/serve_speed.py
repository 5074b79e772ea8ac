#!/usr/bin/env python3
"""What the server costs over the engine it wraps.

  python3 benchmarks/serve_speed.py batch    --model qwen2.5-coder-1.5b.gguf --batch 8 [--peer DIR]
  python3 benchmarks/serve_speed.py turn     --model smollm2:135m --prompt-tokens 4000
  python3 benchmarks/serve_speed.py overhead --model smollm2:135m

batch     tokens a second of N chats at once (from the last one's first token to the first one's last), over that of
          `kamado bench --batch N` at the depth that the chats have then, and of llama.cpp's llama-batched-bench
          (in --peer) with prompts and answers of the same lengths, before and after `bench`
turn      how long the second turn of a long conversation waits for its first piece: at once, and after a restart
overhead  what HTTP adds to the time to the first piece and to decoding: the same prompts by kamado.load in a process
          of its own and over HTTP, taking turns, medians; see serve_overhead.py
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx2

sys.path.insert(0, str(Path(__file__).resolve().parent))
from peers import call, tool
from serve_overhead import Engine, Sample, ask_over_http, report
from serving import Answer, Served, ask, served

TIMEOUT_SECONDS = 1800.0
WORDS = ("hearth", "iron", "river", "seven", "window", "bread", "winter", "maps", "glass", "owl", "salt", "engine")
FILLER = 6  # words a line of the long prompt


def prompt(number: int, num_words: int) -> str:
    """Text that no other number shares the beginning of."""
    lines = [f"Conversation {number}. Read this list and remember it."]
    for i in range(num_words // FILLER):
        lines.append(" ".join(WORDS[(number * 7 + i * 5 + k * (i % 11 + 1)) % len(WORDS)] for k in range(FILLER)))
    return "\n".join([*lines, "Now write a long story with these words."])


def request(server: Served, text: str, tokens: int, **more: Any) -> dict[str, Any]:
    """A greedy question whose answer does not end by itself too soon."""
    body = {"model": server.model, "messages": [{"role": "user", "content": text}], "max_tokens": tokens}
    return {**body, "temperature": 0, **more}


async def together(server: Served, bodies: list[dict[str, Any]]) -> list[Answer]:
    """All at once."""
    async with httpx2.AsyncClient(timeout=TIMEOUT_SECONDS) as http:
        return await asyncio.gather(*(ask(http, server.url, body) for body in bodies))


def kamado_json(*arguments: str) -> dict[str, Any]:
    """What a command of ours prints."""
    command = [sys.executable, "-m", "kamado", *arguments, "--json"]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def batch(options: argparse.Namespace) -> dict[str, Any]:
    """See the top."""
    with served(options.model, "--context", "1024", log=options.log) as server:
        asyncio.run(together(server, [request(server, "Hello.", 4)]))
        rates = []
        for repetition in range(options.repeat):
            bodies = [request(server, prompt(1000 * repetition + i, 30), options.tokens) for i in range(options.batch)]
            answers = asyncio.run(together(server, bodies))
            begin = max(answer.times[0] for answer in answers)
            end = min(answer.times[-1] for answer in answers)
            if end <= begin:
                raise SystemExit("one answer was over before another began: give more --tokens")
            pieces = sum(begin < moment <= end for answer in answers for moment in answer.times)
            # pieces are not quite tokens: some tokens have no text of their own yet
            per_piece = statistics.mean((a.usage or {})["completion_tokens"] / len(a.times) for a in answers)
            rates.append(pieces * per_piece / (end - begin))
        depth = int(statistics.mean((a.usage or {})["prompt_tokens"] for a in answers)) + options.tokens // 2
    peer_rates = batched_bench(options, depth)
    work = ("--prefill", "16", "--decode", "32", "--depth", str(depth), "--batch", str(options.batch))
    found = kamado_json("bench", options.model, *work)
    peer_rates += batched_bench(options, depth)
    bench = next(r["tokens_per_second"] for r in found["results"] if r["kind"] == "decode")
    served_rate = statistics.median(rates)
    peer: dict[str, Any] = {}
    if peer_rates:
        peer_rate = statistics.median(peer_rates)
        peer = {"peer_tokens_per_second": peer_rates, "ratio_to_peer": round(served_rate / peer_rate, 3)}
    return {
        "chats": options.batch,
        "depth": depth,
        "served_tokens_per_second": round(served_rate, 2),
        "samples": [round(rate, 2) for rate in rates],
        "bench_tokens_per_second": bench,
        "ratio": round(served_rate / bench, 3),
        **peer,
    }


def batched_bench(options: argparse.Namespace, depth: int) -> list[float]:
    """Tokens a second of llama.cpp with as many sequences of the same length; nothing without --peer."""
    if options.peer is None:
        return []
    num_prompt = depth - options.tokens // 2
    command = [
        str(tool(options.peer, "llama-batched-bench")), "-m", options.model, "-t", str(os.cpu_count()), "-fa", "on",
        "-c", str(options.batch * (num_prompt + options.tokens) + 64), "-npp", str(num_prompt),
        "-ntg", str(options.tokens), "-npl", str(options.batch), "--output-format", "jsonl",
    ]  # fmt: skip
    return [json.loads(line)["speed_tg"] for line in call(command).splitlines() if line.startswith("{")]


def turn(options: argparse.Namespace) -> dict[str, Any]:
    """See the top."""
    context = str(options.prompt_tokens + 1024)
    results: dict[str, Any] = {"first_turn": [], "second_turn": []}
    body: dict[str, Any] = {}
    with served(options.model, "--context", context, log=options.log) as server:
        for i in range(options.repeat):
            text = prompt(i, options.prompt_tokens)
            text = text[: int(len(text) * options.prompt_tokens / max(1, count(server, text)))]
            body = request(server, text, 24)
            (first,) = asyncio.run(together(server, [body]))
            results["first_turn"].append(summary(first))
            said = [{"role": "assistant", "content": first.text}, {"role": "user", "content": "And then?"}]
            body = {**body, "messages": [*body["messages"], *said]}
            (second,) = asyncio.run(together(server, [body]))
            results["second_turn"].append(summary(second))
    with served(options.model, "--context", context, log=options.log) as server:
        asyncio.run(together(server, [request(server, "Hello.", 4)]))  # pages the weights in
        (after,) = asyncio.run(together(server, [body]))
        results["second_turn_after_a_restart"] = summary(after)
    results["second_turn_median_ms"] = statistics.median(item["first_ms"] for item in results["second_turn"])
    return results


def count(server: Served, text: str) -> int:
    """Tokens of a question."""
    body = {"model": server.model, "messages": [{"role": "user", "content": text}]}
    answer = httpx2.post(f"{server.url}/v1/messages/count_tokens", json=body, timeout=TIMEOUT_SECONDS)
    return int(answer.raise_for_status().json()["input_tokens"])


def summary(answer: Answer) -> dict[str, Any]:
    """Waiting, and what the cache had."""
    if answer.status != 200:
        raise SystemExit(f"{answer.status}: {answer.error}")
    usage = answer.usage or {}
    return {
        "first_ms": round(1000 * answer.first_seconds, 1),
        "prompt_tokens": usage.get("prompt_tokens"),
        "cached_tokens": (usage.get("prompt_tokens_details") or {}).get("cached_tokens"),
    }


def overhead(options: argparse.Namespace) -> dict[str, Any]:
    """See the top. Both processes are loaded throughout and only one works at a time."""
    engine: list[Sample] = []
    http: list[Sample] = []
    with Engine(options.model) as own, served(options.model, "--context", "1024", log=options.log) as server:
        for i in range(options.repeat + 1):  # the first is a warm-up
            text = f"{prompt(i, 40)} Rather not: count from {i + 1} to 1000 instead, a number a line, nothing else."
            body = request(server, text, options.tokens)
            samples = (own.ask(body), ask_over_http(server, body))
            if i:
                engine.append(samples[0])
                http.append(samples[1])
            time.sleep(0.2)
    return report(engine, http)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("batch", "turn", "overhead"))
    parser.add_argument("--model", required=True, help="a name or a GGUF file")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=96, help="of an answer")
    parser.add_argument("--prompt-tokens", type=int, default=4000)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--peer", type=Path, help="batch: the folder of llama-batched-bench")
    parser.add_argument("--log", type=Path, help="the server's log goes there")
    options = parser.parse_args()
    work = {"batch": batch, "turn": turn, "overhead": overhead}[options.what]
    print(json.dumps({"model": Path(options.model).name, "what": options.what, **work(options)}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
