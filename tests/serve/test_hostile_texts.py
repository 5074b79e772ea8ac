"""Grammars and templates that kill or stall, sent to the real engine over every protocol: each gets its answer or a 400
that says why, and the server goes on. It runs in a process of its own, which a fault would end."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits are Linux's")

_SERVE = """
import json, sys, threading, time
import httpx
from engine.test_hostile_grammars import HOSTILE, lark_chain, schema_chain
from kamado.isolated import WORKER
from kamado.serve.config import ServeConfig
from serve.fake import FakeLibrary
from serve.running import running
from serve.test_reuse import INFO, SpellerLoader

WORKER._nice = 0
loader = SpellerLoader()
chain, short = schema_chain(1500, "objects"), {"type": "object", "properties": {"a": {"type": "integer"}}}
user = [{"role": "user", "content": "Q"}]
tool = {"name": "f", "description": "d", "parameters": chain}
openai = lambda **more: ("/v1/chat/completions", {"model": "m", "messages": user, "max_tokens": 1, **more})
form = lambda schema: {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": schema}}
ask = {
    "response_format": openai(response_format=form(chain)),
    "strict tool": openai(tools=[{"type": "function", "function": {**tool, "strict": True}}]),
    "required tool": openai(
        tools=[{"type": "function", "function": {**tool, "strict": True}}], tool_choice="required"
    ),
    "either: ollama": ("/api/chat", {"model": "m", "messages": user, "format": chain, "stream": False}),
    "either: ollama generate": ("/api/generate", {"model": "m", "prompt": "Q", "format": chain, "stream": False}),
    "responses": ("/v1/responses", {"model": "m", "input": "Q", "text": {
        "format": {"type": "json_schema", "name": "n", "strict": True, "schema": chain}}}),
    # Of forms and tools that are not strict, what cannot be bound may be left open, and is checked and said.
    "either: tool": openai(tools=[{"type": "function", "function": tool}]),
    "either: anthropic tool": ("/v1/messages", {"model": "m", "messages": user, "max_tokens": 1, "tools": [
        {"name": "f", "description": "d", "input_schema": chain}]}),
    "open: short": openai(response_format=form(short)),
}
found = {}
with running(FakeLibrary({"m": INFO}), loader, ServeConfig(port=0)) as server:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        client.post(*[openai()[0]], json=openai()[1])
        for name, (path, body) in ask.items():
            answer = client.post(path, json=body)
            found[name] = [answer.status_code, answer.text[:600]]
        worst = 0.0
        is_done = threading.Event()
        def look():
            global worst
            while not is_done.is_set():
                began = time.perf_counter()
                assert client.get("/health").status_code == 200
                worst = max(worst, time.perf_counter() - began)
                time.sleep(0.005)
        watcher = threading.Thread(target=look)
        watcher.start()
        for name in ("very ambiguous", "many states", "many expressions"):
            text = HOSTILE[name].text
            wanted = {"type": "lark", "grammar": text} if HOSTILE[name].kind == "lark" else {
                "type": "regex", "pattern": text}
            path, body = openai(response_format=wanted)
            answer = client.post(path, json=body)
            assert answer.status_code in (200, 400), (name, answer.text)
        is_done.set()
        watcher.join()
        found["open: after"] = [client.post(openai()[0], json=openai()[1]).status_code, ""]
print(json.dumps({"found": found, "worst": worst}))
"""


def test_every_protocol_refuses_a_chain_and_lives() -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, "-c", _SERVE], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, f"it ended with {done.returncode}\n{done.stderr[-3000:]}"
    said = json.loads(done.stdout.splitlines()[-1])
    for name, (status, text) in said["found"].items():
        if name.startswith("open") or (name.startswith("either") and status == 200):
            assert status == 200, (name, text)
        else:
            assert status == 400, (name, text)
            is_long = "context_length_exceeded" in text or "prompt is too long" in text  # a tool, written out
            assert is_long or "references form too long a chain" in text, (name, text)
    assert said["worst"] < 5.0  # 0.01 s on an idle machine
