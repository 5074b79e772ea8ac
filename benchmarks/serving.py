"""A `kamado serve` of its own, and streams of its answers, for the benchmarks of the server."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

START_SECONDS = 300.0
STOP_SECONDS = 60.0


@dataclass
class Served:
    """A server that runs as a process of its own."""

    url: str
    process: subprocess.Popen[bytes]
    model: str  # its name in requests

    def metrics(self) -> dict[str, float]:
        """All samples of /metrics by name, those of several labels added up; states also as `name.state`."""
        found: dict[str, float] = {}
        for line in httpx2.get(f"{self.url}/metrics", timeout=60).text.splitlines():
            if line and not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                key = name.partition("{")[0]
                found[key] = found.get(key, 0.0) + float(value)
                if state := re.search(r'state="(\w+)"', name):
                    state_key = f"{key}.{state[1]}"
                    found[state_key] = found.get(state_key, 0.0) + float(value)
        return found

    def resident_bytes(self) -> int:
        """Resident memory of the process."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def num_files(self) -> int:
        """Open file descriptors: sockets among them."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def num_threads(self) -> int:
        """Threads."""
        return len(os.listdir(f"/proc/{self.process.pid}/task"))


def free_port() -> int:
    """A port of loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def borrowed_store(home: Path) -> dict[str, str]:
    """Environment of a server that has the models of this user's store, and keeps all else (recipes, …) in `home`."""
    from kamado.library.store import Store

    own = Store()
    for name in ("models", "blobs"):
        (own.root / name).mkdir(parents=True, exist_ok=True)
        (home / name).symlink_to(own.root / name)
    return {"KAMADO_HOME": str(home)}


@contextmanager
def served(
    model: str, *options: str, log: Path | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[Served]:
    """`kamado serve MODEL` on a free port, ready; ended by SIGTERM."""
    port = free_port()
    command = [sys.executable, "-m", "kamado", "serve", model, "--port", str(port), "--keep-alive", "-1", *options]
    with open(log or os.devnull, "wb") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=errors, env={**os.environ, **(environment or {})}
        )
        url = f"http://127.0.0.1:{port}"
        try:
            end = time.monotonic() + START_SECONDS
            while True:
                if process.poll() is not None:
                    raise SystemExit(f"kamado serve ended with {process.returncode}: see {log or '--log FILE'}")
                try:
                    if httpx2.get(f"{url}/ready", timeout=5).status_code == 200:
                        break
                except httpx2.TransportError:
                    pass
                if time.monotonic() > end:
                    raise SystemExit("kamado serve was not ready in time")
                time.sleep(0.1)
            names = [found["id"] for found in httpx2.get(f"{url}/v1/models", timeout=30).json()["data"]]
            yield Served(url, process, model if model in names else names[0])
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@dataclass
class Answer:
    """One streamed answer: its text, and when each piece came (seconds of time.perf_counter)."""

    asked: float
    status: int = 0
    text: str = ""
    times: list[float] = field(default_factory=list)
    finish: str | None = None
    usage: dict[str, Any] | None = None
    error: str = ""
    retry_after: float | None = None

    @property
    def first_seconds(self) -> float:
        """From asking to the first piece."""
        return self.times[0] - self.asked if self.times else float("nan")


async def pieces(response: httpx2.Response) -> AsyncIterator[dict[str, Any]]:
    """The events of a stream of chat completions."""
    async for line in response.aiter_lines():
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line[6:])


async def ask(
    client: httpx2.AsyncClient, url: str, body: dict[str, Any], *, leave_after: int | None = None, pause: float = 0.0
) -> Answer:
    """Streams one answer. `leave_after` pieces the connection is dropped; `pause` seconds after each piece (a slow
    reader)."""
    answer = Answer(time.perf_counter())
    body = {**body, "stream": True, "stream_options": {"include_usage": True}}
    async with client.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
        answer.status = response.status_code
        if response.status_code != 200:
            answer.error = (await response.aread()).decode("utf-8", "replace")
            after = response.headers.get("retry-after")
            answer.retry_after = float(after) if after else None
            return answer
        async for event in pieces(response):
            if "error" in event:
                answer.error = json.dumps(event["error"])
                return answer
            answer.usage = event.get("usage") or answer.usage
            for choice in event.get("choices", ()):
                answer.finish = choice.get("finish_reason") or answer.finish
                text = choice.get("delta", {}).get("content")
                if text:
                    answer.times.append(time.perf_counter())
                    answer.text += text
            if leave_after is not None and len(answer.times) >= leave_after:
                return answer
            if pause:
                await asyncio.sleep(pause)
    return answer
