"""What every request passes before a handler sees it, and what becomes of it when its client leaves."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from kamado.errors import NativeError, UsageError
from kamado.serve.config import ServeConfig
from kamado.serve.families import all_routes
from kamado.serve.http.keys import KeyRing
from kamado.serve.models.contract import TextDelta
from kamado.serve.run import make_server

from . import fake
from .fake import Fail, FakeWorld, Wait
from .running import Running, running

KEY, READER = "kmd-0123456789abcdef-all", "kmd-0123456789abcdef-read"


def body_of(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "fake", "messages": [{"role": "user", "content": text}], **more}


@pytest.fixture(scope="module")
def world() -> FakeWorld:
    return FakeWorld(
        {
            "slow": [TextDelta("First"), Wait(60), *fake.text(" last")],
            "break": [TextDelta("Half"), Fail(NativeError("secret path /x/y"))],
            "break at once": [Fail(NativeError("secret path /x/y"))],
        }
    )


CONFIG = ServeConfig(
    port=0, max_requests=2, max_body_bytes=4096, max_json_depth=8, keep_alive_comment=0.05, body_timeout=0.5,
    origins=["https://chat.example"], hosts=["box.lan"],
)  # fmt: skip


@pytest.fixture
def http(server: Running) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.url, timeout=30) as found:
        yield found


@pytest.fixture(scope="module")
def locked(world: FakeWorld) -> Iterator[Running]:
    keys = KeyRing()
    keys.add(KEY, name="all")
    keys.add(READER, name="reader", scopes=["read"])
    with running(world.library, world.loader, ServeConfig(port=0), keys) as found:
        yield found


def wait_until(is_so: Any, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


# --- who may ask ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("localhost:8417", 200),
        ("127.0.0.1:1", 200),
        ("[::1]:80", 200),
        ("box.lan", 200),
        ("app.localhost", 200),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("192.168.1.5", 403),
        ("a b", 400),
        ("", 400),
    ],
)
def test_only_our_own_names_are_answered_to(http: httpx2.Client, host: str, status: int) -> None:
    assert http.get("/v1/models", headers={"host": host}).status_code == status


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("https://chat.example", True),
        ("http://localhost:3000", True),
        ("http://127.0.0.1:8080", True),
        ("https://evil.example", False),
        ("https://chat.example.evil.example", False),
        ("http://localhost.evil.example", False),
        ("null", False),
        ("file://", False),
    ],
)
def test_foreign_pages_are_refused(http: httpx2.Client, origin: str, allowed: bool) -> None:
    answer = http.get("/v1/models", headers={"origin": origin})
    assert answer.status_code == (200 if allowed else 403)
    assert answer.headers.get("access-control-allow-origin") == (origin if allowed else None)
    assert "access-control-allow-credentials" not in answer.headers


def test_a_page_may_ask_beforehand(http: httpx2.Client) -> None:
    ask = {"origin": "https://chat.example", "access-control-request-method": "POST"}
    answer = http.request("OPTIONS", "/v1/chat/completions", headers=ask)
    assert answer.status_code == 204
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert "authorization" in answer.headers["access-control-allow-headers"]
    refused = http.request("OPTIONS", "/v1/chat/completions", headers={**ask, "origin": "https://evil.example"})
    assert refused.status_code == 403


def test_a_foreign_image_tag_is_refused(http: httpx2.Client) -> None:
    headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}
    assert http.get("/v1/models", headers=headers).status_code == 403


def test_every_route_is_closed_without_a_key(locked: Running) -> None:
    public = set()
    for route in all_routes():
        path = re.sub(r"\{[a-z_]+(:path)?\}", "x", route.path)
        answer = httpx2.request(route.method, locked.url + path, json={} if route.body else None)
        if answer.status_code == 401:
            assert answer.headers["www-authenticate"].startswith("Bearer")
        else:
            assert route.scope == "public", f"{route.method} {route.path} answers without a key"
            public.add(route.path)
    assert {"/health", "/ready"} <= public
    assert not any(path.startswith("/v1/") for path in public)


def test_a_key_opens_what_its_scopes_say(locked: Running) -> None:
    def ask(method: str, path: str, key: str, header: str = "authorization") -> int:
        value = f"Bearer {key}" if header == "authorization" else key
        body = body_of("hi") if method == "POST" else None
        return httpx2.request(method, locked.url + path, headers={header: value}, json=body).status_code

    assert ask("GET", "/v1/models", READER) == 200
    assert ask("POST", "/v1/chat/completions", READER) == 403
    assert ask("DELETE", "/v1/models/fake", READER) == 403
    assert ask("POST", "/v1/chat/completions", KEY) == 200
    assert ask("POST", "/v1/chat/completions", KEY, "x-api-key") == 200
    assert ask("GET", "/v1/models", KEY + "x") == 401


def test_prefixes_and_responses_belong_to_one_key(locked: Running, world: FakeWorld) -> None:
    head = {"authorization": f"Bearer {KEY}"}
    made = httpx2.post(f"{locked.url}/v1/responses", headers=head, json={"model": "fake", "input": "a"}).json()
    owner = locked.server.service.pool.slots[0].model.requests[-1].owner  # type: ignore[union-attr]
    assert owner.startswith("key-")
    assert KEY not in owner
    other = KeyRing()
    second = other.add("kmd-another-key-of-this-server")
    locked.server.keys._keys.update(other._keys)
    answer = httpx2.get(
        f"{locked.url}/v1/responses/{made['id']}", headers={"authorization": "Bearer kmd-another-key-of-this-server"}
    )
    assert answer.status_code == 404
    assert second.id != owner


def test_nobody_else_gets_in_without_a_key(world: FakeWorld) -> None:
    with pytest.raises(UsageError, match="API key"):
        make_server(ServeConfig(host="0.0.0.0"), world.library, world.loader, keys=KeyRing())


# --- what may be asked ------------------------------------------------------------------------------------------------


def test_unknown_paths_and_methods_have_each_familys_shape(http: httpx2.Client) -> None:
    assert http.get("/v1/nothing").json()["error"]["type"] == "invalid_request_error"
    assert isinstance(http.get("/api/nothing").json()["error"], str)
    wrong = http.get("/v1/chat/completions")
    assert wrong.status_code == 405
    assert wrong.headers["allow"] == "POST"
    assert http.request("HEAD", "/v1/models").content == b""


@pytest.mark.parametrize(
    ("content", "headers", "status", "words"),
    [
        (b"", {}, 400, "empty"),
        (b"{", {}, 400, "JSON"),
        (b"[]", {}, 400, "object"),
        (b'{"model": "\xff"}', {}, 400, "JSON"),
        (b'{"model": "\\ud800"}', {}, 400, "JSON"),
        (b'{"metadata": ' + b"[" * 1000 + b"]" * 1000 + b"}", {}, 400, "nested"),
        (b'{"metadata": ' + b'{"a":' * 9 + b"1" + b"}" * 9 + b"}", {}, 400, "nested"),
        (b'{"model": "' + b"x" * 5000 + b'"}', {}, 413, "larger"),
        (b"<a/>", {"content-type": "text/xml"}, 415, "JSON"),
        (b"{}", {"content-type": "text/plain", "origin": "http://localhost"}, 415, "JSON"),
        (b"{}", {"content-type": "application/json", "content-encoding": "gzip"}, 415, "compressed"),
        (b'{"temperature": NaN}', {}, 400, "JSON"),
    ],
)
def test_bodies_are_bounded_and_checked(
    http: httpx2.Client, content: bytes, headers: dict[str, str], status: int, words: str
) -> None:
    answer = http.post("/v1/chat/completions", content=content, headers=headers)
    assert answer.status_code == status
    assert words in answer.json()["error"]["message"]


def test_a_body_without_a_length_is_bounded_too(server: Running) -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield b" " * 1024

    with contextlib.suppress(httpx2.WriteError, httpx2.ReadError):  # the rest is not read
        answer = httpx2.post(f"{server.url}/v1/chat/completions", content=endless(), timeout=30)
        assert answer.status_code == 413


def test_a_body_that_never_comes_is_not_waited_for(server: Running) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as line:
        line.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{")
        assert b" 408 " in line.recv(4096)


def test_a_query_is_checked(http: httpx2.Client) -> None:
    assert http.get("/v1/models?sort=x").status_code == 400
    assert http.get("/v1/models", params={"a": "b" * 9000}).status_code == 400


def test_faults_inside_say_nothing_of_the_inside(http: httpx2.Client) -> None:
    whole = http.post("/v1/chat/completions", json=body_of("break at once"))
    assert whole.status_code == 500
    assert "secret" not in whole.text
    streamed = http.post("/v1/chat/completions", json=body_of("break", stream=True))
    assert streamed.status_code == 200
    last = streamed.text.strip().split("\n\n")[-1]
    assert json.loads(last.removeprefix("data: "))["error"]["type"] == "server_error"
    assert "secret" not in streamed.text


# --- what becomes of it -----------------------------------------------------------------------------------------------


def test_a_client_that_leaves_frees_the_model(server: Running, world: FakeWorld) -> None:
    for stream in (True, False):
        before = world.model.num_closed_early if "fake" in world.loader.models else 0
        with contextlib.suppress(httpx2.ReadTimeout), httpx2.Client(timeout=0.5) as client:
            if stream:
                with client.stream("POST", f"{server.url}/v1/chat/completions", json=body_of("slow", stream=True)) as r:
                    next(r.iter_lines())
            else:
                client.post(f"{server.url}/v1/chat/completions", json=body_of("slow"))
        wait_until(lambda before=before: world.model.num_closed_early > before)  # type: ignore[misc]
        wait_until(lambda: server.server.service.num_active == 0)
        assert world.model.num_live == 0


def test_a_silent_stream_shows_signs_of_life(server: Running) -> None:
    with (
        httpx2.Client(timeout=30) as client,
        client.stream("POST", f"{server.url}/v1/chat/completions", json=body_of("slow", stream=True)) as answer,
    ):
        seen = 0
        for line in answer.iter_lines():
            seen += line == ": keep-alive"
            if seen == 3:
                break
    wait_until(lambda: server.server.service.num_active == 0)


def test_a_full_queue_says_when_to_come_back(server: Running, http: httpx2.Client) -> None:
    with contextlib.ExitStack() as stack:
        lines = []
        for _ in range(2):
            client = stack.enter_context(httpx2.Client(timeout=30))
            answer = stack.enter_context(
                client.stream("POST", f"{server.url}/v1/chat/completions", json=body_of("slow", stream=True))
            )
            lines.append(answer.iter_lines())  # kept: a stream whose iterator is gone is closed
            next(lines[-1])
        refused = http.post("/v1/chat/completions", json=body_of("hi"))
        assert refused.status_code == 429
        assert 1 <= int(refused.headers["retry-after"]) <= 120
        assert refused.json()["error"]["code"] == "queue_full"
        assert http.get("/health").status_code == 200
    wait_until(lambda: server.server.service.num_active == 0)
    assert http.post("/v1/chat/completions", json=body_of("hi")).status_code == 200


def test_a_deadline_ends_an_answer(server: Running, http: httpx2.Client, world: FakeWorld) -> None:
    late = http.post("/v1/chat/completions", json=body_of("slow", deadline_seconds=0.2))
    assert late.status_code == 504
    assert late.json()["error"]["code"] == "deadline_exceeded"
    streamed = http.post("/v1/chat/completions", json=body_of("slow", deadline_seconds=0.2, stream=True))
    assert streamed.status_code == 200
    assert "deadline_exceeded" in streamed.text
    wait_until(lambda: world.model.num_live == 0)


def test_metrics_count_what_happened(server: Running, http: httpx2.Client) -> None:
    http.post("/v1/chat/completions", json=body_of("one two"))
    text = http.get("/metrics").text
    assert re.search(r'^kamado_prompt_tokens_total\{model="fake"\} [1-9]', text, re.MULTILINE)
    assert re.search(r'^kamado_time_to_first_token_seconds_bucket\{model="fake",le="\+Inf"\} [1-9]', text, re.MULTILINE)
    assert re.search(
        r'^kamado_http_requests_total\{route="POST /v1/chat/completions",status="200"\} [1-9]', text, re.MULTILINE
    )
    assert 'kamado_memory_bytes{model="fake",owner="kv"} 400' in text
    for line in text.splitlines():
        assert line.startswith("#") or re.fullmatch(r"[a-z_]+(\{.*\})? [-+0-9.eInfNa]+", line), line


def test_the_document_describes_what_is_there(http: httpx2.Client) -> None:
    document = http.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    operations = {f"{m.upper()} {p}" for p, methods in document["paths"].items() for m in methods}
    assert {"POST /v1/chat/completions", "POST /v1/messages", "POST /api/chat", "GET /health"} <= operations
    ids = [o["operationId"] for methods in document["paths"].values() for o in methods.values()]
    assert len(set(ids)) == len(ids)


def test_going_down_lets_streams_end_with_a_word(world: FakeWorld) -> None:
    with (
        running(world.library, world.loader, ServeConfig(port=0)) as found,
        httpx2.Client(timeout=30) as client,
        client.stream("POST", f"{found.url}/v1/chat/completions", json=body_of("slow", stream=True)) as answer,
    ):
        lines = answer.iter_lines()
        next(lines)
        found.server.drain()
        refused = httpx2.post(f"{found.url}/v1/chat/completions", json=body_of("hi"))
        assert refused.status_code == 503
        assert "retry-after" in refused.headers
        assert httpx2.get(f"{found.url}/ready").status_code == 503
        assert httpx2.get(f"{found.url}/health").status_code == 200
        found.loop.call_soon_threadsafe(lambda: asyncio.ensure_future(found.server.service.close()))
