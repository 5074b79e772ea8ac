"""What the engine did since it was loaded."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass, field


@dataclass(slots=True)
class Counters:
    """Totals that the scheduler's thread adds to."""

    num_requests: int = 0
    num_prompt_tokens: int = 0  # tokens of all prompts
    num_reused_tokens: int = 0  # of those, found in the cache
    num_prefill_tokens: int = 0  # rows computed that no token was picked after, or that ended a prompt
    num_decode_tokens: int = 0  # rows that one token went in and one came out
    num_steps: int = 0
    num_aborted_steps: int = 0  # cancelled while they ran, and done again for the others
    num_preempted: int = 0  # requests that lost their pages to older ones and were computed again
    prefill_seconds: float = 0.0  # a step with both kinds is divided by rows
    decode_seconds: float = 0.0
    sample_seconds: float = 0.0  # picking tokens and making text


@dataclass(frozen=True, slots=True)
class Stats:
    """A copy of the totals, and the bytes of each owner. Seconds are of wall clock, bytes of memory."""

    tokens: dict[str, int]  # prompt, reused, prefill, decode
    seconds: dict[str, float]  # prefill, decode, sample
    executor_seconds: dict[str, float]  # by kind of operation: linear, attend, …
    prefill_tokens_per_second: float
    decode_tokens_per_second: float  # all conversations together
    bytes_by_owner: dict[str, int]  # weights, kv, scratch as the executor counts them
    peak_bytes: int  # the process's largest resident size so far
    requests: dict[str, int]  # finished and running together; waiting, live, sessions kept
    num_steps: int
    num_aborted_steps: int
    num_preempted: int

    def to_dict(self) -> dict[str, object]:
        """Plain data, for JSON."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the scheduler's thread hands out when asked."""

    counters: Counters
    executor: dict[str, float]
    requests: dict[str, int] = field(default_factory=dict)


def make_stats(snapshot: Snapshot) -> Stats:
    """Turns a snapshot into what callers see."""
    c = snapshot.counters
    executor_seconds = {
        name.removeprefix("seconds_"): value for name, value in snapshot.executor.items() if name.startswith("seconds_")
    }
    return Stats(
        tokens={
            "prompt": c.num_prompt_tokens,
            "reused": c.num_reused_tokens,
            "prefill": c.num_prefill_tokens,
            "decode": c.num_decode_tokens,
        },
        seconds={"prefill": c.prefill_seconds, "decode": c.decode_seconds, "sample": c.sample_seconds},
        executor_seconds=executor_seconds,
        prefill_tokens_per_second=c.num_prefill_tokens / c.prefill_seconds if c.prefill_seconds > 0 else 0.0,
        decode_tokens_per_second=c.num_decode_tokens / c.decode_seconds if c.decode_seconds > 0 else 0.0,
        bytes_by_owner={
            owner: int(snapshot.executor.get(key, 0))
            for owner, key in (("weights", "weight_bytes"), ("kv", "kv_bytes"), ("scratch", "scratch_bytes"))
        },
        peak_bytes=peak_resident_bytes(),
        requests=dict(snapshot.requests),
        num_steps=c.num_steps,
        num_aborted_steps=c.num_aborted_steps,
        num_preempted=c.num_preempted,
    )


def peak_resident_bytes() -> int:
    """The largest resident size this process had (file pages that it mapped included)."""
    try:
        import resource
    except ImportError:  # not on Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
