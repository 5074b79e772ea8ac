"""`kamado serve` in processes of their own, for tests that kill them or send them signals."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2

from .running import wait_until

GREEDY = {"temperature": 0, "max_tokens": 40}


class Process:
    """`kamado serve` in a process of its own."""

    def __init__(self, home: Path, *arguments: str | Path, **environment: str) -> None:
        words = [sys.executable, "-m", "kamado", "serve", *map(str, arguments), "--port", "0", "--threads", "1"]
        env = {**os.environ, "KAMADO_HOME": str(home), **environment}
        self.popen = subprocess.Popen(words, env=env, stderr=subprocess.PIPE, text=True)
        self.lines: list[str] = []
        self._url = ""
        self._is_up = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()
        assert self._is_up.wait(120), "".join(self.lines)
        assert self._url, "".join(self.lines)
        self.http = httpx2.Client(base_url=self._url, timeout=120)
        wait_until(lambda: self.http.get("/ready").status_code == 200)

    def _read(self) -> None:
        assert self.popen.stderr is not None
        for line in self.popen.stderr:
            self.lines.append(line)
            match = re.search(r"kamado serves on (http://\S+)", line)
            if match is not None:
                self._url = match[1]
                self._is_up.set()
        self._is_up.set()

    def kill(self) -> None:
        self.popen.send_signal(signal.SIGKILL)
        assert self.popen.wait(30) == -signal.SIGKILL

    def answer(self, messages: list[dict[str, str]], **more: Any) -> dict[str, Any]:
        body = {"model": "tiny", "messages": messages, **GREEDY, **more}
        found = self.http.post("/v1/chat/completions", json=body)
        assert found.status_code == 200, found.text
        return dict(found.json())

    def events(self) -> list[dict[str, Any]]:
        """Its log."""
        return [json.loads(line) for line in self.lines if line.startswith("{")]


@contextmanager
def started(home: Path, *arguments: str | Path, **environment: str) -> Iterator[Process]:
    process = Process(home, *arguments, **environment)
    try:
        yield process
    finally:
        process.http.close()
        if process.popen.poll() is None:
            process.popen.terminate()
            process.popen.wait(60)
