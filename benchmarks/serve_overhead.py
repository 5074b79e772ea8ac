"""What HTTP and the server's event loop add to the engine: the same prompts to both, each in a process of its own.

For `serve_speed.py overhead`, which calls it.

The client must cost nothing, since the machine's cores are what the model runs on: it reads whatever the socket has
into memory and notes the time of each read; what it read is taken apart when the answer is over. The engine's side
takes the text of each piece, as a program that uses `kamado.load` does.

Processor time is read beside wall time, because it says the same on a busy machine: of the server's main thread alone,
which is its event loop and reads and writes all HTTP (serve/http), and of all threads over those of the engine's
process.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from serving import Served

_READ_BYTES = 1 << 16
_TIMEOUT_SECONDS = 600.0

# Answers prompts one a line of standard input, in a process whose only work is that.
_ENGINE = """
import json, sys, time
import kamado
with kamado.load(sys.argv[1], context=1024) as model:
    print("ready", flush=True)
    for line in sys.stdin:
        ask = json.loads(line)
        times, texts, begun = [], [], time.perf_counter()
        for piece in model.chat(ask["messages"], max_tokens=ask["max_tokens"], temperature=0):
            if piece.text:
                times.append(time.perf_counter() - begun)
                texts.append(piece.text)
        print(json.dumps({"times": times, "text": "".join(texts)}), flush=True)
"""


@dataclass
class Sample:
    """One answer. Seconds; processor time is of the whole answer, the prompt included."""

    first: float  # from asking to the first piece
    step: float  # from the first piece to the last, a piece
    num_pieces: int
    text: str
    main_cpu: float  # of the process's main thread
    all_cpu: float  # of all its threads

    @property
    def main_cpu_us(self) -> float:
        """Microseconds a piece of the main thread."""
        return 1e6 * self.main_cpu / self.num_pieces

    @property
    def all_cpu_us(self) -> float:
        """Microseconds a piece of all threads."""
        return 1e6 * self.all_cpu / self.num_pieces


def cpu_seconds(pid: int) -> tuple[float, float]:
    """Processor time of the main thread of a process and of all its living threads, to the nanosecond (Linux)."""
    main = whole = 0.0
    for name in os.listdir(f"/proc/{pid}/task"):
        with suppress(FileNotFoundError):  # the thread has ended since
            seconds = int(Path(f"/proc/{pid}/task/{name}/schedstat").read_text().split()[0]) / 1e9
            whole += seconds
            main += seconds if int(name) == pid else 0.0
    return main, whole


class Engine:
    """A process that answers through `kamado.load`. Use it in a `with` statement."""

    def __init__(self, model: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _ENGINE, model], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._line()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the engine's process ended with {self._process.wait()}")
        return line

    def ask(self, body: dict[str, Any]) -> Sample:
        """One answer."""
        assert self._process.stdin is not None
        before = cpu_seconds(self._process.pid)
        self._process.stdin.write(json.dumps(body) + "\n")
        self._process.stdin.flush()
        found = json.loads(self._line())
        after = cpu_seconds(self._process.pid)
        return _sample(found["times"], found["text"], before, after)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


def ask_over_http(server: Served, body: dict[str, Any]) -> Sample:
    """The same from a server, by POST /v1/chat/completions on a new connection."""
    at = urlsplit(server.url)
    content = json.dumps({**body, "stream": True}).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: {at.netloc}\r\nconnection: close\r\n"
        f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    reads: list[tuple[float, bytes]] = []
    before = cpu_seconds(server.process.pid)
    with socket.create_connection((at.hostname or "", at.port or 80), timeout=_TIMEOUT_SECONDS) as connection:
        begun = time.perf_counter()
        connection.sendall(head.encode() + content)
        while data := connection.recv(_READ_BYTES):
            reads.append((time.perf_counter() - begun, data))
    after = cpu_seconds(server.process.pid)
    times, texts = _pieces(reads)
    return _sample(times, "".join(texts), before, after)


def _pieces(reads: list[tuple[float, bytes]]) -> tuple[list[float], list[str]]:
    """When each piece of text was there, and the pieces. A piece counts from the read that had its end."""
    whole = b"".join(data for _, data in reads)
    if not whole.startswith(b"HTTP/1.1 200 "):
        raise SystemExit(whole.decode("utf-8", "replace"))
    times, texts, end, place = [], [], 0, whole.index(b"\r\n\r\n")
    for moment, data in reads:
        end += len(data)
        while (stop := whole.find(b"\n\n", place, end)) >= 0:
            begin = whole.find(b"data: ", place, stop) + len(b"data: ")
            place = stop + 2
            event = whole[begin:stop]
            if event == b"[DONE]":
                return times, texts
            for choice in json.loads(event)["choices"]:
                if text := choice["delta"].get("content"):
                    times.append(moment)
                    texts.append(text)
    raise SystemExit("the server's answer has no end")


def _sample(times: list[float], text: str, before: tuple[float, float], after: tuple[float, float]) -> Sample:
    step = (times[-1] - times[0]) / (len(times) - 1)
    return Sample(times[0], step, len(times), text, after[0] - before[0], after[1] - before[1])


def report(engine: list[Sample], http: list[Sample]) -> dict[str, Any]:
    """Medians, and medians of the differences of answers to the same prompt."""

    def middle(values: list[float], digits: int = 1) -> float:
        return round(statistics.median(values), digits)

    pairs = list(zip(engine, http, strict=True))
    if any(e.text != h.text for e, h in pairs):
        raise SystemExit("the server's answers are not the engine's")
    sides = {"engine": engine, "http": http}
    return {
        "first_piece_ms": {name: middle([1e3 * s.first for s in samples], 2) for name, samples in sides.items()},
        "first_piece_added_ms": middle([1e3 * (h.first - e.first) for e, h in pairs], 2),
        "decode_ms_per_piece": {name: middle([1e3 * s.step for s in samples], 3) for name, samples in sides.items()},
        "decode_added_percent": middle([100 * (h.step / e.step - 1) for e, h in pairs], 2),
        "main_thread_cpu_us_per_piece": {name: middle([s.main_cpu_us for s in ss]) for name, ss in sides.items()},
        "all_threads_cpu_us_per_piece": {name: middle([s.all_cpu_us for s in ss]) for name, ss in sides.items()},
        "cpu_added_us_per_piece": middle([h.all_cpu_us - e.all_cpu_us for e, h in pairs]),
    }
