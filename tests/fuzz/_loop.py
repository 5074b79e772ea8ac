"""Runs a fuzz target for a bounded time: the kept corpus first, then mutations of it."""

from __future__ import annotations

import argparse
import faulthandler
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

_MAX_BYTES = 4096
_MAX_SECONDS_AN_INPUT = 60  # a target that takes longer hangs, on any machine


def run(name: str, fuzz_one: Callable[[bytes], None], tokens: tuple[bytes, ...]) -> None:
    """Call `fuzz_one` until `--seconds` are over. `tokens` are fragments worth inserting.

    An input that fails is written to the working directory, and its exception is raised.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else time.time_ns() % 1_000_000
    corpus = [path.read_bytes() for path in sorted((Path(__file__).parent / "corpus" / name).iterdir())]
    generator = random.Random(seed)
    end = time.monotonic() + options.seconds
    count = 0
    while count < len(corpus) or time.monotonic() < end:
        data = corpus[count] if count < len(corpus) else _mutate(generator, corpus, tokens)
        faulthandler.dump_traceback_later(_MAX_SECONDS_AN_INPUT, exit=True)
        try:
            fuzz_one(data)
        except BaseException:
            Path(f"crash-{name}").write_bytes(data)
            print(f"{name}: input {count} of seed {seed} failed; it is in crash-{name}", file=sys.stderr)
            raise
        count += 1
    faulthandler.cancel_dump_traceback_later()
    print(f"{name}: {count} inputs, seed {seed}")


def _mutate(generator: random.Random, corpus: list[bytes], tokens: tuple[bytes, ...]) -> bytes:
    data = bytearray(generator.choice(corpus))
    for _ in range(generator.choice((1, 1, 2, 4, 8))):
        at = generator.randrange(len(data) + 1)
        span = generator.randrange(1, 16)
        kind = generator.randrange(5)
        if kind == 0:
            data[at : at + span] = b""
        elif kind == 1:
            data[at:at] = generator.choice(tokens)
        elif kind == 2:
            data[at : at + span] = generator.randbytes(span)
        elif kind == 3:
            other = generator.choice(corpus)
            begin = generator.randrange(len(other) + 1)
            data[at:at] = other[begin : begin + 64]
        else:
            data[at:at] = data[at : at + span] * generator.randrange(1, 20)
    return bytes(data[:_MAX_BYTES])
