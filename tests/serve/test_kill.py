"""kill -9 at the worst moments: a new server starts clean, and nothing is lost but the answer in flight."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from library.servers import COMMITS, Hub, serve  # tests/library

from .processes import GREEDY, Process, started

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="no SIGKILL there")]

NAME = "hf:owner/repo"


@pytest.fixture
def tiny(tmp_path: Path, tiny_checkpoint: Path) -> Path:
    return Path(shutil.copy(tiny_checkpoint, tmp_path / "tiny.gguf"))


def talk(seed: int, words: int = 60) -> list[dict[str, str]]:
    return [{"role": "user", "content": " ".join(f"{(seed * 31 + i) % 97}" for i in range(words))}]


def errors(process: Process) -> list[dict[str, Any]]:
    return [event for event in process.events() if event["level"] in ("error", "critical")]


def test_a_pull_goes_on_where_it_was_killed(tmp_path: Path, tiny_checkpoint: Path) -> None:
    home = tmp_path / "home"
    content = tiny_checkpoint.read_bytes()
    with serve() as web:
        hub = Hub(web)
        hub.publish({"m-Q4_K_M.gguf": content})
        reply = hub.reply("m-Q4_K_M.gguf")
        stop = len(content) // 2
        reply.pauses.append(stop)  # half arrives, then nothing
        environment = {"HF_ENDPOINT": web.url, "HF_HOME": str(tmp_path / "hf")}
        with started(home, **environment) as first:
            body = {"model": NAME}
            with first.http.stream("POST", "/api/pull", json=body) as stream:
                for line in stream.iter_lines():
                    if json.loads(line).get("completed", 0) >= stop:
                        break
                first.kill()
        (part,) = (home / "downloads").rglob("*.part")
        assert part.stat().st_size >= stop - (1 << 20)
        kept = part.stat().st_size
        assert kept > 0
        with started(home, **environment) as second:
            assert second.http.get("/v1/models").json()["data"] == []
            steps = second.http.post("/api/pull", json=body).text.splitlines()
            assert json.loads(steps[-1])["status"] == "success"
            assert web.ranges_of(f"/owner/repo/resolve/{COMMITS[0]}/m-Q4_K_M.gguf")[-1] == f"bytes={kept}-"
            (model,) = second.http.get("/v1/models").json()["data"]
            assert model["id"] == NAME
            assert second.answer(talk(1), model=NAME)["usage"]["completion_tokens"] > 0
            assert errors(second) == []
    (blob,) = (home / "blobs").iterdir()
    assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name
    assert list((home / "downloads").rglob("*.part")) == []


def test_a_stream_that_was_killed_is_answered_the_same_afterwards(tmp_path: Path, tiny: Path) -> None:
    home = tmp_path / "home"
    with started(home, tiny) as first:
        first.answer(talk(0))
        body = {"model": "tiny", "messages": talk(1), **GREEDY, "max_tokens": 300, "stream": True}
        said = ""
        with first.http.stream("POST", "/v1/chat/completions", json=body) as stream:
            for line in stream.iter_lines():
                if line.startswith("data: {"):
                    delta = json.loads(line[6:])["choices"][0]["delta"]
                    said += delta.get("content") or ""
                if len(said) > 20:
                    break
            first.kill()
    with started(home, tiny) as second:
        answer = second.answer(talk(1), max_tokens=300)["choices"][0]["message"]["content"]
        assert answer.startswith(said)
        assert len(answer) > len(said)
        assert errors(second) == []
        again = second.answer(talk(1), max_tokens=300)["choices"][0]["message"]["content"]
        assert again == answer


def test_prefixes_are_whole_or_gone_after_kills_while_they_are_written(tmp_path: Path, tiny: Path) -> None:
    """Several servers in a row, each killed at another moment of storing; answers are those of a server without."""
    home = tmp_path / "home"
    with started(tmp_path / "other", tiny, "--prefix-cache", "off") as plain:
        right = {seed: plain.answer(talk(seed))["choices"][0]["message"]["content"] for seed in range(12)}
    for round_ in range(4):
        with started(home, tiny) as process:
            for seed in range(3 * round_, 3 * round_ + 3):
                process.answer(talk(seed))
            time.sleep(0.02 * round_)  # the writer is at another place each time
            process.kill()
    with started(home, tiny) as last:
        for seed, expected in right.items():
            assert last.answer(talk(seed))["choices"][0]["message"]["content"] == expected
        assert errors(last) == []
    # What was half written is no entry. It counts to the cap and goes when room is needed and it is an hour old.
    assert len(list(home.rglob("*.tmp"))) <= 4, "one a kill at the most"
