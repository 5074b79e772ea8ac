"""Connections on the wire: silent ones, dripped headers, too many, too large, too small pieces, no descriptors left."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import resource
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest

from kamado.serve.config import ServeConfig
from kamado.serve.http.connections import ACCEPT_BATCH, Damped, affordable_connections, loop_exception_handler
from kamado.serve.http.keys import KeyRing

from .fake import FakeWorld
from .processes import started
from .running import Running, running

GET = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"


@contextlib.contextmanager
def serving(**settings: object) -> Iterator[Running]:
    world = FakeWorld({})
    with running(world.library, world.loader, ServeConfig(port=0, **settings)) as found:  # type: ignore[arg-type]
        yield found


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    """Little time and few places."""
    with serving(header_timeout=0.3, idle_timeout=0.4, max_connections=40, max_silent_connections=16) as found:
        yield found


def connect(server: Running) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def read_all(line: socket.socket) -> bytes:
    """Until the other side closes."""
    found = b""
    with contextlib.suppress(ConnectionError):
        while chunk := line.recv(65536):
            found += chunk
    return found


def answer(line: socket.socket) -> bytes:
    """One answer that has a content-length."""
    found = b""
    while b"\r\n\r\n" not in found:
        chunk = line.recv(65536)
        if not chunk:
            return found
        found += chunk
    head, _, body = found.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    assert length is not None
    while len(body) < int(length[1]):
        body += line.recv(65536)
    return head + b"\r\n\r\n" + body


def is_open(line: socket.socket) -> bool:
    line.setblocking(False)
    try:
        return line.recv(1) != b""
    except BlockingIOError:
        return True
    except ConnectionError:
        return False


def wait_until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def closed(server: Running, reason: str) -> float:
    return server.server.connections._closed.value(reason)


# --- time -------------------------------------------------------------------------------------------------------------


def test_a_connection_that_says_nothing_is_closed(server: Running) -> None:
    before = closed(server, "header_time")
    with connect(server) as line:
        assert read_all(line) == b""
    assert closed(server, "header_time") == before + 1


def test_a_header_that_drips_is_not_waited_for(server: Running) -> None:
    with connect(server) as line:
        found = b""
        for letter in GET * 100:
            try:
                line.sendall(bytes([letter]))
                line.settimeout(0.05)
                found = line.recv(4096)
                break
            except TimeoutError:
                continue
        assert found.startswith(b"HTTP/1.1 408 ")
        assert b"connection: close" in found


def test_a_second_request_has_the_same_time(server: Running) -> None:
    with connect(server) as line:
        line.sendall(GET)
        assert answer(line).startswith(b"HTTP/1.1 200 ")
        line.sendall(b"GET /hea")
        assert read_all(line).startswith(b"HTTP/1.1 408 ")
    with connect(server) as line:  # the half came with the first request
        line.sendall(GET + b"GET /hea")
        assert answer(line).startswith(b"HTTP/1.1 200 ")
        assert read_all(line).startswith(b"HTTP/1.1 408 ")


def test_an_idle_connection_is_closed_in_its_time(server: Running) -> None:
    before = closed(server, "idle")
    with connect(server) as line:
        for _ in range(2):
            line.sendall(GET)
            assert answer(line).startswith(b"HTTP/1.1 200 ")
        wait_until(lambda: server.server.connections.count("idle") >= 1)
        assert read_all(line) == b""
    assert closed(server, "idle") == before + 1


def test_the_rest_of_a_body_that_was_answered_early_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kamado.serve.http.http1._LINGER_SECONDS", 0.3)
    keys = KeyRing()
    keys.add("kmd-0123456789abcdef-all")
    world = FakeWorld({})
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n"
    with running(world.library, world.loader, ServeConfig(port=0), keys) as server:
        with connect(server) as line:
            line.sendall(head + b"{")
            assert answer(line).startswith(b"HTTP/1.1 401 ")
            for _ in range(100):
                try:
                    line.sendall(b" ")
                except ConnectionError:
                    break
                time.sleep(0.02)
            else:
                raise AssertionError("it was waited for")
        with connect(server) as line:  # the rest comes: the connection serves on
            line.sendall(head)
            assert answer(line).startswith(b"HTTP/1.1 401 ")
            line.sendall(b" " * 100 + GET)
            assert answer(line).startswith(b"HTTP/1.1 200 ")
            wait_until(lambda: server.server.connections.count("idle") == 1)


# --- size -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        b"x: " + b"a" * (33 << 10),
        b"".join(b"x%d: %s\r\n" % (i, b"a" * 300) for i in range(110)),  # 33 kB in lines
        b"x: a\r\n" * 129,
        b"x: " + b"a" * (120 << 10),
    ],
)
def test_a_header_of_more_than_32_kib_is_refused_even_when_it_comes_whole(server: Running, header: bytes) -> None:
    with connect(server) as line:
        with contextlib.suppress(ConnectionError):
            line.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n" + header.rstrip(b"\r\n") + b"\r\n\r\n")
        assert read_all(line).startswith(b"HTTP/1.1 431 ")


def test_a_header_below_32_kib_is_taken(server: Running) -> None:
    with connect(server) as line:
        line.sendall(GET[:-2] + b"".join(b"x%d: %s\r\n" % (i, b"a" * 300) for i in range(100)) + b"\r\n")
        assert answer(line).startswith(b"HTTP/1.1 200 ")


def test_a_long_request_line_is_refused(server: Running) -> None:
    with connect(server) as line:
        with contextlib.suppress(ConnectionError):
            line.sendall(b"GET /" + b"a" * (64 << 10))
        assert read_all(line).startswith(b"HTTP/1.1 431 ")


def test_a_body_in_crumbs_is_refused(server: Running) -> None:
    with connect(server) as line:
        line.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            for _ in range(100):
                line.sendall(b"1\r\n \r\n" * 1000)
        assert read_all(line).startswith(b"HTTP/1.1 400 ")
    assert closed(server, "chunks") >= 1


def test_a_broken_body_after_the_answer_began_ends_the_connection(
    server: Running, caplog: pytest.LogCaptureFixture
) -> None:
    with connect(server) as line:
        line.sendall(
            b"POST /v1/nothing HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n not a chunk"
        )
        read_all(line)
    assert not [record for record in caplog.records if record.exc_info]


# --- number -----------------------------------------------------------------------------------------------------------


def test_silent_connections_never_lock_others_out() -> None:
    with serving(header_timeout=60, max_connections=100, max_silent_connections=20) as server:
        silent = [connect(server) for _ in range(60)]
        silent += [connect(server) for _ in range(60)]
        for line in silent[-3:]:
            line.sendall(b"G")  # a byte is no header
        assert httpx2.get(f"{server.url}/health").status_code == 200
        wait_until(lambda: server.server.connections.count("silent") <= 20)
        wait_until(lambda: sum(map(is_open, silent)) <= 20)
        assert not is_open(silent[0])  # the oldest went
        assert is_open(silent[-1])
        assert closed(server, "silent_limit") >= 100
        for line in silent:
            line.close()
        wait_until(lambda: server.server.connections.count("silent") == 0)
        assert server.server.connections._by_address.total() == len(server.server.connections)


def test_a_full_house_gives_up_idle_connections_first_and_then_says_when_to_come_back() -> None:
    with serving(max_connections=16, max_silent_connections=16, body_timeout=20, header_timeout=20) as server:
        idle = [connect(server) for _ in range(16)]
        for line in idle:
            line.sendall(GET)
            assert answer(line).startswith(b"HTTP/1.1 200 ")
        assert httpx2.get(f"{server.url}/health").status_code == 200  # in the place of the oldest idle one
        assert not is_open(idle[0])
        busy = [connect(server) for _ in range(16)]
        for line in busy:
            line.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{")
        wait_until(lambda: server.server.connections.count("busy") == 16)
        with connect(server) as line:
            found = read_all(line)
            assert found.startswith(b"HTTP/1.1 503 ")
            assert b"retry-after: " in found
            assert json.loads(found.partition(b"\r\n\r\n")[2])["error"]["type"] == "server_error"
        for line in [*busy, *idle]:
            line.close()
        wait_until(lambda: httpx2.get(f"{server.url}/health").status_code == 200)
        text = httpx2.get(f"{server.url}/metrics").text
        assert re.search(r'^kamado_connections\{state="busy"\} 1$', text, re.MULTILINE)
        assert re.search(r'^kamado_connections_closed_total\{reason="limit"\} [1-9]', text, re.MULTILINE)


def test_an_address_may_be_bounded() -> None:
    with serving(max_connections_per_address=3) as server:
        lines = [connect(server) for _ in range(3)]
        wait_until(lambda: len(server.server.connections) == 3)
        with connect(server) as line:
            assert read_all(line).startswith(b"HTTP/1.1 503 ")
        lines.pop().close()
        wait_until(lambda: len(server.server.connections) == 2)
        with connect(server) as line:
            line.sendall(GET)
            assert answer(line).startswith(b"HTTP/1.1 200 ")
        for line in lines:
            line.close()


def test_a_pipeline_is_answered_in_order(server: Running) -> None:
    with connect(server) as line:
        line.sendall(GET * 3 + GET.replace(b"GET", b"HEAD") + b"GET /v1/nothing HTTP/1.1\r\nhost: localhost\r\n\r\n")
        found = read_all(line)
    assert re.findall(rb"HTTP/1.1 (\d+) ", found) == [b"200", b"200", b"200", b"200", b"404"]


# --- descriptors ------------------------------------------------------------------------------------------------------


def test_connections_are_fewer_where_open_files_are_limited() -> None:
    assert affordable_connections(512, None) == 512
    assert affordable_connections(512, 1024) == 512
    assert affordable_connections(512, 300) == 172
    assert affordable_connections(512, 64) == 16
    assert ServeConfig().max_silent_connections > 3 * ACCEPT_BATCH  # who speaks at once is heard before he could go


def test_no_descriptors_left_is_one_line_in_a_while() -> None:
    records: list[logging.LogRecord] = []
    log = logging.Logger("test")
    log.addFilter(lambda record: records.append(record) is None)
    loop = asyncio.new_event_loop()
    handle = loop_exception_handler(log)
    for _ in range(1000):
        context = {"message": "socket.accept() out of system resource", "exception": OSError(24, "Too many open files")}
        handle(loop, context)
    assert len(records) == 1
    handle(loop, {"message": "something else", "exception": ValueError("x")})
    assert len(records) == 2
    loop.close()
    now = [0.0]
    damped = Damped(log, lambda: now[0])
    for _ in range(5):
        damped.warning("event", "reason")
    now[0] = 6.0
    damped.warning("event", "reason")
    assert [record.__dict__["count"] for record in records[2:]] == [1, 5]


@pytest.mark.skipif(sys.platform != "linux", reason="prlimit")
def test_a_server_without_descriptors_serves_again_when_there_are_some(tmp_path: Path) -> None:
    with started(tmp_path, KAMADO_SERVE_HEADER_TIMEOUT="60") as process:
        pid = process.popen.pid
        soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        assert soft == hard  # raised at the start
        used = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + 10, hard))
        host, _, port = process._url.removeprefix("http://").partition(":")
        lines = [socket.create_connection((host, int(port)), timeout=20) for _ in range(60)]
        time.sleep(1.3)  # asyncio tries again each second
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
        for line in lines:
            line.close()
        with httpx2.Client(timeout=20) as http:
            assert http.get(f"{process._url}/health").status_code == 200
        assert sum(map(len, process.lines)) < 5000, process.lines
        assert any("no connection can be taken" in line for line in process.lines)
