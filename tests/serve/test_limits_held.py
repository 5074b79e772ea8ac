"""Attacks that never worked, so that they never will: smuggled requests, many cancels, two servers on one store."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from kamado.serve.config import ServeConfig
from kamado.serve.http.keys import KeyRing
from kamado.serve.models.contract import TextDelta

from .fake import FakeWorld, Wait, text
from .processes import GREEDY, started
from .running import Running, running, wait_until

CHAT = "/v1/chat/completions"
HIDDEN = b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    world = FakeWorld({"slow": [TextDelta("First"), Wait(60), *text(" last")]})
    with running(world.library, world.loader, ServeConfig(port=0, body_timeout=0.5, header_timeout=0.5)) as found:
        yield found


def tell(server: Running, request: bytes) -> bytes:
    """Everything that comes back until the server closes, or two seconds have passed."""
    host, port = server.url.removeprefix("http://").split(":")
    found = b""
    with socket.create_connection((host, int(port)), timeout=2) as line:
        line.sendall(request)
        with contextlib.suppress(TimeoutError, ConnectionError):
            while chunk := line.recv(65536):
                found += chunk
    return found


POST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"


@pytest.mark.parametrize(
    "request_bytes",
    [
        POST + b"content-length: %d\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" % (5 + len(HIDDEN)) + HIDDEN,
        POST + b"transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n" + HIDDEN,
        POST + b"content-length: 0\r\ncontent-length: %d\r\n\r\n" % len(HIDDEN) + HIDDEN,
        POST + b"content-length: 0, %d\r\n\r\n" % len(HIDDEN) + HIDDEN,
        POST + b"content-length: +0\r\n\r\n" + HIDDEN,
        POST + b"content-length: 0x0\r\n\r\n" + HIDDEN,
        POST + b"content-length: -1\r\n\r\n" + HIDDEN,
        POST + b"transfer-encoding: xchunked\r\n\r\n" + HIDDEN,
        POST + b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n" + HIDDEN,
        POST + b"transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n0\r\n\r\n" + HIDDEN,
        POST + b"transfer-encoding : chunked\r\n\r\n0\r\n\r\n" + HIDDEN,
        POST + b"transfer-encoding: chunked\r\n\r\n-1\r\n" + HIDDEN,
        POST + b"transfer-encoding: chunked\r\n\r\nfffffffffffffffffffff\r\n" + HIDDEN,
        POST + b"transfer-encoding: chunked\r\n\r\n2;" + b"a" * 70_000 + b"\r\n{}\r\n0\r\n\r\n" + HIDDEN,
        POST + b"x: a\0b\r\ncontent-length: 0\r\n\r\n" + HIDDEN,
        b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: a\rGET /v1/models HTTP/1.1\r\n\r\n",
        b"GET http://evil.example/v1/models HTTP/1.1\r\nhost: evil.example\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nhost: evil.example\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\n",
    ],
)
def test_no_request_hides_in_another(server: Running, request_bytes: bytes) -> None:
    found = tell(server, request_bytes)
    statuses = re.findall(rb"HTTP/1\.1 (\d{3}) ", found)
    assert len(statuses) <= 1
    assert all(400 <= int(status) < 500 for status in statuses), found
    assert b'"data"' not in found


def test_three_hundred_cancels_leave_nothing(server: Running) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    body = json.dumps({"model": "fake", "stream": True, "messages": [{"role": "user", "content": "slow"}]}).encode()
    request = POST + b"content-length: %d\r\n\r\n" % len(body) + body
    for i in range(300):
        with socket.create_connection((host, int(port)), timeout=20) as line:
            line.sendall(request[: len(request) - i % 40 * (i % 3 == 0)])
            if i % 3 == 1:
                assert line.recv(10)
            if i % 5 == 0:  # a reset and no end
                line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    end = time.monotonic() + 20
    while server.server.service.num_active or len(server.server.connections):
        assert time.monotonic() < end
        time.sleep(0.01)
    assert server.server._bodies.used_bytes == 0
    assert httpx2.post(server.url + CHAT, json={**json.loads(body), "stream": False, "messages": [
        {"role": "user", "content": "hi"}]}).status_code == 200  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="signals")
def test_two_servers_share_one_store(tmp_path: Path, tiny_checkpoint: Path) -> None:
    home = tmp_path / "home"
    with started(home, tiny_checkpoint, "--all") as one, started(home, tiny_checkpoint, "--all") as two:
        asked = [[{"role": "user", "content": f"{i} and {i + 1}"}] for i in range(6)]
        alone = [one.answer(messages, **GREEDY)["choices"][0]["message"]["content"] for messages in asked]
        found: dict[tuple[int, int], str] = {}

        def ask(number: int, process: object) -> None:
            for i, messages in enumerate(asked):
                answer = (one, two)[number].answer(messages, **GREEDY)
                found[number, i] = answer["choices"][0]["message"]["content"]

        threads = [threading.Thread(target=ask, args=(number, None)) for number in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [found[number, i] for number in (0, 1) for i in range(6)] == alone * 2
        made = {"model": "mine", "from": "tiny", "system": "Be brief.", "stream": False}
        assert one.http.post("/api/create", json=made).status_code == 200
        assert two.http.post("/api/show", json={"model": "mine"}).json()["system"] == "Be brief."
        assert two.http.request("DELETE", "/api/delete", json={"model": "mine"}).status_code == 200
        assert one.http.post("/api/show", json={"model": "mine"}).status_code == 404


SALTS = [
    ("/v1/chat/completions", "prompt_cache_key"),
    ("/v1/chat/completions", "cache_salt"),
    ("/v1/completions", "cache_salt"),
    ("/v1/responses", "prompt_cache_key"),
]


def test_a_key_s_limit_holds_however_its_requests_are_salted() -> None:
    world = FakeWorld({"slow": [TextDelta("First"), Wait(60), *text(" last")]})
    keys = KeyRing()
    first, other = "first-key-of-this-test", "other-key-of-this-test"
    for key in (first, other):
        keys.add(key)
    config = ServeConfig(port=0, max_requests_per_key=1)

    def body(path: str, words: str, **more: str) -> dict[str, object]:
        if path == "/v1/chat/completions":
            return {"model": "fake", "messages": [{"role": "user", "content": words}], **more}
        return {"model": "fake", "prompt" if path == "/v1/completions" else "input": words, **more}

    with running(world.library, world.loader, config, keys) as server, httpx2.Client(base_url=server.url) as http:

        def post(key: str, path: str, content: dict[str, object]) -> int:
            headers = {"authorization": f"Bearer {key}"}
            return http.post(path, json=content, headers=headers, timeout=30).status_code

        for path, name in SALTS:
            asked = {**body(path, "slow", **{name: "one"}), "stream": True}
            with http.stream("POST", path, json=asked, headers={"authorization": f"Bearer {first}"}) as held:
                chunks = held.iter_text()
                assert next(chunks)
                for other_path, other_name in SALTS:
                    again = body(other_path, "hi", **{other_name: "two"})
                    assert post(first, other_path, again) == 429, (path, other_path, other_name)
                assert post(first, "/api/generate", {"model": "fake"}) == 429  # which only loads
                assert post(first, "/tokenize", {"model": "fake", "content": "hi"}) == 429
                assert post(other, path, body(path, "hi", **{name: "one"})) == 200
                assert post(other, "/api/generate", {"model": "fake"}) == 200
            wait_until(lambda: server.server.service.num_active == 0)
        owners = [request.owner.partition("/")[2] for request in world.model.requests]
        assert owners == ["one"] * 2 * len(SALTS)  # prefixes are parted all the same
