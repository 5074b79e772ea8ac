#!/usr/bin/env python3
"""Which experts to keep: recorded routing replayed through replacement policies, with Belady's as the bound.

    benchmarks/replay.py record MODEL.gguf TRACE.npz --prompt FILE --tokens 512     (needs memory for a streamed run)
    benchmarks/replay.py replay TRACE.npz --shares 0.1,0.25,0.5 --json OUT.json

An access is one expert that one operation needed. Slots are shared by all layers, as in the executor; what an operation
needs at once is not given up for itself. Policies see the past only, Belady's (no online policy can do better) the
future. A policy is worth having in the executor only if it beats LRU here on traces it was not tuned on.
"""

from __future__ import annotations

import argparse
import bisect
import heapq
import json
import sys
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Batch = tuple[int, ...]  # experts that one operation needs, (layer << 16) | expert, ascending


class Policy(Protocol):
    """What to give up."""

    def use(self, key: int, now: int) -> None:
        """`key` was found or put in at access number `now`."""

    def victim(self, pinned: set[int], now: int) -> int:
        """The key to give up, not one of `pinned`; it is forgotten by this call."""


class Lru:
    """The one that was used longest ago."""

    def __init__(self) -> None:
        self.keys: OrderedDict[int, None] = OrderedDict()

    def use(self, key: int, now: int) -> None:
        self.keys[key] = None
        self.keys.move_to_end(key)

    def victim(self, pinned: set[int], now: int) -> int:
        found = next(key for key in self.keys if key not in pinned)
        del self.keys[found]
        return found


class Fifo(Lru):
    """The one that came first."""

    def use(self, key: int, now: int) -> None:
        self.keys.setdefault(key)


class Scored:
    """The one with the lowest score, by a lazy heap: an entry counts only while it is the key's latest."""

    def __init__(self) -> None:
        self.scores: dict[int, tuple[float, int]] = {}
        self.heap: list[tuple[float, int, int]] = []
        self.counts: defaultdict[int, int] = defaultdict(int)

    def score(self, key: int, now: int) -> float:
        raise NotImplementedError

    def use(self, key: int, now: int) -> None:
        self.counts[key] += 1
        score = self.score(key, now)
        self.scores[key] = (score, now)
        heapq.heappush(self.heap, (score, now, key))

    def victim(self, pinned: set[int], now: int) -> int:
        kept = []
        while True:
            entry = heapq.heappop(self.heap)
            score, at, key = entry
            if self.scores.get(key) != (score, at):
                continue
            if key in pinned:
                kept.append(entry)
                continue
            break
        for entry in kept:
            heapq.heappush(self.heap, entry)
        del self.scores[key]
        self.given_up(key, score)
        return key

    def given_up(self, key: int, score: float) -> None:
        """Told what goes."""


class Lfu(Scored):
    """The one used least often since the beginning, the oldest of equals."""

    def score(self, key: int, now: int) -> float:
        return self.counts[key]


class LfuAging(Scored):
    """LFU with dynamic aging: counts begin at the score of what was last given up (LFUDA)."""

    def __init__(self) -> None:
        super().__init__()
        self.age = 0.0

    def score(self, key: int, now: int) -> float:
        return self.age + self.counts[key]

    def given_up(self, key: int, score: float) -> None:
        self.age = score
        self.counts[key] = 0


class LfuDecay(Scored):
    """Counts that halve every `half_life` operations. Comparing logarithms at time 0 keeps all scores comparable."""

    def __init__(self, half_life: float) -> None:
        super().__init__()
        self.half_life = half_life
        self.values: dict[int, tuple[float, int]] = {}

    def score(self, key: int, now: int) -> float:
        value, at = self.values.get(key, (0.0, now))
        value = value * 0.5 ** ((now - at) / self.half_life) + 1
        self.values[key] = (value, now)
        return float(np.log2(value) + now / self.half_life)


class Belady(Scored):
    """The one needed again last: the bound."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        super().__init__()
        self.uses: defaultdict[int, list[int]] = defaultdict(list)
        for now, batch in enumerate(batches):
            for key in batch:
                self.uses[key].append(now)

    def score(self, key: int, now: int) -> float:
        uses = self.uses[key]
        i = bisect.bisect_right(uses, now)
        return -uses[i] if i < len(uses) else -np.inf


def policies(batches: Sequence[Batch], num_experts: int) -> dict[str, Callable[[], Policy]]:
    """All of them. A decayed LFU's half-life is given in uses of an average expert; the executor's is 4."""
    uses_in_operations = num_experts * len(batches) / max(1, sum(len(batch) for batch in batches))
    return {
        "LRU": Lru,
        "FIFO": Fifo,
        "LFU": Lfu,
        "LFUDA": LfuAging,
        **{f"decayed LFU, {n} uses": lambda n=n: LfuDecay(n * uses_in_operations) for n in (0.5, 1, 2, 4, 8, 32)},
        "Belady": lambda: Belady(batches),
    }


def replay(
    batches: Sequence[Batch], num_slots: int, policy: Policy, warm: int, missed: dict[int, int] | None = None
) -> tuple[int, int]:
    """(hits, misses) of the operations from number `warm` on, with `num_slots` slots that begin empty.

    `missed` gets the misses of each layer. What an operation needs beyond the slots is read and not kept.
    """
    held: set[int] = set()
    hits = misses = 0
    for now, batch in enumerate(batches):
        pinned = set(batch)
        found = pinned & held
        if now >= warm:
            hits += len(found)
            misses += len(pinned) - len(found)
            if missed is not None:
                for key in pinned - found:
                    missed[key >> 16] = missed.get(key >> 16, 0) + 1
        for key in batch:
            if key not in held:
                if len(pinned) > num_slots <= len(held) and held <= pinned:
                    continue
                if len(held) >= num_slots:
                    held.discard(policy.victim(pinned, now))
                held.add(key)
            policy.use(key, now)
    return hits, misses


def batches_of(rows: NDArray[np.int32]) -> list[Batch]:
    """Operations in the order they ran, from rows (step, layer, row, ids…) as the executor records them."""
    out: list[Batch] = []
    begin = 0
    for end in range(1, len(rows) + 1):
        if end == len(rows) or (rows[end, :2] != rows[begin, :2]).any():
            ids = rows[begin:end, 3:]
            layer = int(rows[begin, 1])
            out.append(tuple((layer << 16) | int(i) for i in np.unique(ids[ids >= 0])))
            begin = end
    return out


def hottest_half_share(rows: NDArray[np.int32], num_experts: int | None = None) -> float:
    """Share of the picks that falls on each layer's hottest half of experts, the mean over layers.

    Which half is the hottest is told by one half of the tokens and judged by the other, and the other way round: in a
    short trace of flat routing the half that happened to be picked most would take far more than 50 %.
    """
    num = num_experts or int(rows[:, 3:].max()) + 1
    shares = []
    for layer in np.unique(rows[:, 1]):
        ids = rows[rows[:, 1] == layer, 3:]
        counts = [np.bincount(part[part >= 0], minlength=num) for part in (ids[0::2], ids[1::2])]
        for told, judged in (counts, counts[::-1]):
            hottest = np.argsort(-told, kind="stable")[: num // 2]
            shares.append(judged[hottest].sum() / max(1, judged.sum()))
    return float(np.mean(shares))


def record(options: argparse.Namespace) -> int:
    """Decodes greedily after the prompt and keeps what was routed."""
    from kamado.files import open_checkpoint
    from kamado.lower import build_executor
    from kamado.models import build_program
    from kamado.plan.budget import parse_size
    from kamado.plan.forecast import plan
    from kamado.text.tokenizer import load_tokenizer

    checkpoint = open_checkpoint(options.model)
    program = build_program(checkpoint)
    if checkpoint.tokenizer is None:
        sys.exit(f"{options.model} has no tokenizer")
    text = options.prompt.read_text(encoding="utf-8") if options.prompt else "Once upon a time"
    prompt = load_tokenizer(checkpoint.tokenizer).encode(text)[: options.prompt_tokens]
    context = len(prompt) + options.tokens + 1
    memory = parse_size(options.memory) if options.memory else None
    forecast = plan(checkpoint, program, context=context, memory=memory)
    forecast.require_fit()
    executor = build_executor(
        program, num_threads=forecast.num_threads, max_rows=forecast.max_rows, max_logit_rows=16,
        max_kv_tokens=forecast.kv_tokens, max_sequences=1, kv="f16", expert_bytes=forecast.expert_bytes,
    )  # fmt: skip
    rng = np.random.default_rng(options.seed)
    try:
        sequence = np.array([executor.create_sequence()], np.int32)
        executor.record_routing(True)
        logits = np.zeros((1, 1), np.float32)
        for begin in range(0, len(prompt), forecast.max_rows):
            chunk = np.array(prompt[begin : begin + forecast.max_rows], np.int32)
            rows = np.array([len(chunk) - 1], np.int32)
            logits = executor.step(sequence, np.array([len(chunk)], np.int32), chunk, rows)
        prefill = executor.routing()
        before = executor.ledger()
        for _ in range(options.tokens):
            if options.random_tokens:
                token = int(rng.integers(program.vocab_size))
            else:
                token = _pick(logits[0], rng)
            logits = executor.step(
                sequence, np.array([1], np.int32), np.array([token], np.int32), np.array([0], np.int32)
            )
        decode = executor.routing()
        after = executor.ledger()
    finally:
        executor.close()
    misses, slots = 0, 0
    if not after["resident"]:
        misses = sum(a["misses"] - b["misses"] for a, b in zip(after["layers"], before["layers"], strict=True))
        slots = after["slots"]
    np.savez_compressed(
        options.trace, prefill=prefill, decode=decode, num_experts=forecast.num_experts, slots=slots, misses=misses
    )
    print(f"{len(decode)} rows in {options.trace}; hottest half of each layer: {hottest_half_share(decode):.1%}")
    return 0


def _pick(logits: NDArray[np.float32], rng: np.random.Generator) -> int:
    """A token at temperature 0.8 from the best 40, so that greedy loops do not flatter the cache."""
    best = np.argpartition(logits, -40)[-40:]
    weights = np.exp((logits[best] - logits[best].max()).astype(np.float64) / 0.8)
    return int(rng.choice(best, p=weights / weights.sum()))


def compare(options: argparse.Namespace) -> int:
    """A table of hit rates, policy by share of experts held."""
    with np.load(options.trace) as stored:
        trace = {name: stored[name] for name in stored.files}
    decode: NDArray[np.int32] = trace["decode"]
    batches = batches_of(decode)
    num_experts = int(trace["num_experts"])
    layers = len(np.unique(decode[:, 1]))
    cycle = sum(len(batch) for batch in batches[:layers])
    warm = len(batches) // 4
    results = []
    for num_slots, name in _slot_counts(options.shares, num_experts, int(trace["slots"])):
        for policy_name, make in policies(batches, num_experts).items():
            hits, misses = replay(batches, num_slots, make(), warm)
            rate = hits / max(1, hits + misses)
            results.append({"slots": num_slots, "share": name, "policy": policy_name, "hit_rate": rate})
    document = {
        "trace": str(options.trace),
        "operations": len(batches),
        "experts": num_experts,
        "experts_a_token": cycle,
        "hottest_half": hottest_half_share(decode),
        "results": results,
    }
    if int(trace["misses"]):
        # The executor's slots held what prefill left when decoding began: the replay begins the same way.
        before = batches_of(trace["prefill"])
        joined = [*before, *batches]
        _, ideal = replay(joined, int(trace["slots"]), Lru(), len(before))
        document["executor_misses"] = int(trace["misses"])
        document["ideal_lru_misses"] = ideal
        document["executor_over_ideal"] = int(trace["misses"]) / max(1, ideal)
    print(_table(document))
    if options.json:
        options.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return 0


def _slot_counts(shares: Iterable[float], num_experts: int, recorded: int) -> list[tuple[int, str]]:
    counts = [(max(1, round(share * num_experts)), f"{share:.0%}") for share in shares]
    return counts + ([(recorded, "as recorded")] if recorded else [])


def _table(document: dict[str, object]) -> str:
    results: list[dict[str, object]] = document["results"]  # type: ignore[assignment]
    columns = list(dict.fromkeys((r["slots"], r["share"]) for r in results))
    about = f"{document['operations']} operations, {document['experts']} experts, {document['experts_a_token']} a token"
    lines = [
        f"{about}, hottest half takes {document['hottest_half']:.1%}",
        "",
        "| Policy | " + " | ".join(f"{slots} slots ({share})" for slots, share in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for policy in dict.fromkeys(r["policy"] for r in results):
        cells = [f"{r['hit_rate']:.1%}" for r in results if r["policy"] == policy]
        lines.append(f"| {policy} | " + " | ".join(cells) + " |")
    if "executor_over_ideal" in document:
        lines += ["", f"The executor missed {document['executor_over_ideal']:.3f} times what an ideal LRU would have."]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    actions = parser.add_subparsers(required=True)
    recording = actions.add_parser("record", help="run a model and keep its routing")
    recording.add_argument("model", type=Path)
    recording.add_argument("trace", type=Path)
    recording.add_argument("--prompt", type=Path)
    recording.add_argument("--prompt-tokens", type=int, default=128)
    recording.add_argument("--tokens", type=int, default=256)
    recording.add_argument("--random-tokens", action="store_true", help="as kamado bench does, for random weights")
    recording.add_argument("--memory", help="budget; with too little for all experts they are streamed")
    recording.add_argument("--seed", type=int, default=1)
    recording.set_defaults(run=record)
    replaying = actions.add_parser("replay", help="compare policies on a trace")
    replaying.add_argument("trace", type=Path)
    replaying.add_argument("--shares", type=lambda text: [float(n) for n in text.split(",")], default=[0.1, 0.25, 0.5])
    replaying.add_argument("--json", type=Path)
    replaying.set_defaults(run=compare)
    options = parser.parse_args()
    return int(options.run(options))


if __name__ == "__main__":
    sys.exit(main())
