#!/usr/bin/env python3
"""One model's run, as `benchmarks/streaming.py` starts it inside a memory cgroup. Prints one JSON object a line.

Between measured parts it says {"event": "pause", …} and waits for a line on stdin, so that the disk can be probed by a
process whose memory is not charged to this one. The budget is what the cgroup leaves, unless --memory names one.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import kamado
from kamado.engine.schedule.ledger import Ledger, LedgerRow, read_ledger
from kamado.files import open_checkpoint
from kamado.lower import build_executor
from kamado.models import build_program
from kamado.plan import sizes
from kamado.plan.budget import parse_size
from kamado.plan.forecast import Plan, plan
from kamado.plan.usage import BudgetWatch
from kamado.program import Experts

GENERATED_AT_ONCE = 512  # tokens of an answer before the next prompt, in runs that last
COLD_TOKENS = 16  # the first ones after loading, whose speed is told apart


def say(event: str, **values: Any) -> None:
    print(json.dumps({"event": event} | values), flush=True)


def pause(**values: Any) -> None:
    """Tells what was measured and waits until the disk has been probed."""
    say("pause", **values)
    if not sys.stdin.readline():
        sys.exit("nobody is listening any more")


class Runner:
    """An executor that is stepped directly: no sampling and no text, as llama-bench does it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.checkpoint = open_checkpoint(options.model)
        program = build_program(self.checkpoint)
        tokens = options.prompt + options.warm + options.blocks * options.tokens + 1
        context = min(max(options.context, tokens), program.context_length)
        memory = parse_size(options.memory) if options.memory else None
        forecast = plan(
            self.checkpoint, program, context=context, threads=options.threads, memory=memory, max_logit_rows=16,
            max_rows=options.chunk, max_sequences=1,
        )  # fmt: skip
        forecast.require_fit()
        expert_bytes = sizes.expert_needs(program).most_useful_bytes if options.all_slots else forecast.expert_bytes
        self.forecast = forecast
        is_strict = memory is not None or forecast.is_streamed
        self.watch = BudgetWatch(forecast.memory_bytes, self.checkpoint.files if is_strict else ())
        begin = time.perf_counter()
        self.executor = build_executor(
            program, num_threads=forecast.num_threads, max_rows=forecast.max_rows,
            max_logit_rows=forecast.max_logit_rows, max_kv_tokens=forecast.kv_tokens, max_sequences=1, kv="f16",
            kv_reuse_points=forecast.kv_reuse_points, max_records=forecast.max_records or None,
            expert_bytes=expert_bytes, look_ahead=options.look_ahead, drop_file_cache=is_strict,
        )  # fmt: skip
        self.watch.forget_files()
        self.load_seconds = time.perf_counter() - begin
        self.random = np.random.default_rng(options.seed)
        self.vocab_size = program.vocab_size
        self.record_bytes = [
            max(sum(ref.nbytes for ref in record) for record in zip(op.gate, op.up, op.down, strict=True))
            for op in program.ops
            if isinstance(op, Experts) and op.gate
        ]

    def tokens(self, count: int) -> NDArray[np.int32]:
        return self.random.integers(0, self.vocab_size, count, dtype=np.int32)

    def step(self, sequence: int, tokens: NDArray[np.int32]) -> None:
        one = np.array([sequence], np.int32)
        self.executor.step(one, np.array([len(tokens)], np.int32), tokens, np.array([len(tokens) - 1], np.int32))

    def added(self, before: Ledger | None) -> dict[str, Any]:
        """What the ledger counted since `before`; zeros when all experts are resident."""
        now = read_ledger(self.executor)
        if now is None:
            return LedgerRow().to_dict() | {"most_misses_a_layer": 0}
        ledger = now if before is None else now.since(before)
        most = max(row.misses for row in ledger.layers.values())
        return ledger.total.to_dict() | {"most_misses_a_layer": most}

    def facts(self) -> dict[str, Any]:
        """What the run was, and whether it kept its budget."""
        self.watch.sample()
        ledger = read_ledger(self.executor)
        return planned(self.forecast) | {
            "load_seconds": round(self.load_seconds, 3),
            "slots": None if ledger is None else ledger.slots,
            "slot_bytes": None if ledger is None else ledger.slot_bytes,
            "readers": None if ledger is None else ledger.num_readers,
            "is_direct": None if ledger is None else ledger.is_direct,
            "record_bytes": self.record_bytes,
            "peak_bytes": self.watch.peak_bytes,
            "has_held": self.watch.has_held,
        }


def planned(forecast: Plan) -> dict[str, Any]:
    return {
        "budget_bytes": forecast.memory_bytes,
        "planned_bytes": forecast.peak_bytes,
        "planned_by_owner": dict(forecast.bytes_by_owner),
        "is_streamed": forecast.is_streamed,
        "num_experts": forecast.num_experts,
        "expert_slots": forecast.expert_slots,
        "max_rows": forecast.max_rows,
        "context": forecast.context,
    }


def decode(options: argparse.Namespace) -> None:
    """Warms up until the slots are in their usual state, then `blocks` times `tokens` tokens with a pause between. No
    token comes twice but by chance: all are drawn anew. The first COLD_TOKENS of the warm-up are the cold start."""
    runner = Runner(options)
    try:
        runner.executor.record_routing(True)
        sequence = runner.executor.create_sequence()
        if options.prompt:
            runner.step(sequence, runner.tokens(options.prompt))
        cold: dict[str, Any] = {}
        empty, begin = read_ledger(runner.executor), time.perf_counter()
        for count, token in enumerate(runner.tokens(options.warm), 1):
            runner.step(sequence, np.array([token], np.int32))
            if count == COLD_TOKENS and not options.prompt:
                cold = {"tokens": count, "seconds": time.perf_counter() - begin, "ledger": runner.added(empty)}
        num_before = options.warm + bool(options.prompt)
        pause(step=num_before)
        deadline = time.perf_counter() + options.seconds
        for _ in range(options.blocks):
            before = read_ledger(runner.executor)
            seconds = []
            for token in runner.tokens(options.tokens):
                begin = time.perf_counter()
                runner.step(sequence, np.array([token], np.int32))
                seconds.append(time.perf_counter() - begin)
            pause(tokens=options.tokens, seconds=sum(seconds), step_seconds=seconds, ledger=runner.added(before))
            if time.perf_counter() > deadline:
                break
        if options.routing:
            np.savez_compressed(options.routing, routing=runner.executor.routing(), first=num_before)
        say("end", **runner.facts(), cold=cold or None)
    finally:
        runner.executor.close()


def prefill(options: argparse.Namespace) -> None:
    """`prompt` tokens into an empty sequence, `blocks` times, with a pause before each; every step's ledger counts."""
    runner = Runner(options)
    rows = runner.forecast.max_rows
    try:
        for _ in range(options.blocks):
            pause()
            prompt = runner.tokens(options.prompt)
            sequence = runner.executor.create_sequence()
            first = read_ledger(runner.executor)
            steps = []
            begin = time.perf_counter()
            for at in range(0, len(prompt), rows):
                before = read_ledger(runner.executor)
                runner.step(sequence, prompt[at : at + rows])
                steps.append(runner.added(before))
            seconds = time.perf_counter() - begin
            runner.executor.free_sequence(sequence)
            pause(tokens=len(prompt), seconds=seconds, steps=steps, ledger=runner.added(first))
        say("end", experts_a_layer=runner.forecast.num_experts // len(runner.record_bytes), **runner.facts())
    finally:
        runner.executor.close()


def generate(options: argparse.Namespace) -> None:
    """The public engine, with sampling and text, until `--seconds` are over or `--tokens` are made."""
    with kamado.load(options.model, memory=options.memory, context=options.context, threads=options.threads) as model:
        say("loaded", **planned(model.plan))
        begin = time.perf_counter()
        count = seed = 0
        while time.perf_counter() - begin < options.seconds and not 0 < options.tokens <= count:
            seed += 1
            left = options.tokens - count if options.tokens else GENERATED_AT_ONCE
            answer = model.generate(
                f"Story number {seed}:", temperature=1.0, seed=seed, max_tokens=min(left, GENERATED_AT_ONCE)
            )
            for _ in answer:
                if time.perf_counter() - begin >= options.seconds:
                    answer.close()
                    break
            count += max(1, answer.usage.num_generated_tokens)
        stats = model.stats
        ledger = None if stats.ledger is None else stats.ledger.total.to_dict()
        say(
            "end",
            **planned(model.plan),
            tokens=count,
            seconds=time.perf_counter() - begin,
            peak_bytes=stats.peak_bytes,
            has_held=stats.has_held,
            ledger=ledger,
        )


def forecast_only(options: argparse.Namespace) -> None:
    """The least budget that the plan says works with this context, found by bisection to a MiB."""
    checkpoint = open_checkpoint(options.model)
    program = build_program(checkpoint)

    def within(num_bytes: int) -> Plan:
        return plan(
            checkpoint, program, context=options.context, threads=options.threads, max_sequences=1, memory=num_bytes
        )

    low, high = 1, 1 << 20
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if within(middle << 20).fits else (middle, high)
    found, in_memory = within(high << 20), within(1 << 50)
    records = sizes.expert_needs(program)
    say(
        "end",
        least_bytes=high << 20,
        resident_bytes=in_memory.peak_bytes if not in_memory.is_streamed else found.peak_bytes + records.packed_bytes,
        **planned(found),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    modes = {"decode": decode, "prefill": prefill, "generate": generate, "plan": forecast_only}
    parser.add_argument("mode", choices=modes)
    parser.add_argument("model", type=Path)
    parser.add_argument("--memory", help="budget; without it what the cgroup has to give")
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--chunk", type=int, help="rows of a step; without it the plan's")
    parser.add_argument("--prompt", type=int, default=0, help="tokens that go first in one go")
    parser.add_argument("--warm", type=int, default=0, help="tokens decoded before measuring begins")
    parser.add_argument("--blocks", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=0, help="of a block; of generate: all")
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--all-slots", action="store_true", help="stream, with a slot for every expert")
    parser.add_argument("--look-ahead", default="auto", choices=("auto", "on", "off"))
    parser.add_argument("--routing", type=Path, help="where to keep what was routed")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    modes[options.mode](options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
