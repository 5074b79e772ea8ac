"""Where a server and the command line of one user meet: whose the socket is, and what is believed of it."""

from __future__ import annotations

import logging
import os
import socket
import stat
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

from kamado.errors import ServerError
from kamado.local import documents as d
from kamado.local import place
from kamado.serve.families import own_routes
from kamado.serve.http import http1
from kamado.serve.http.keys import KeyRing
from kamado.serve.ops.log_ring import MOST_BYTES, LogRing

from .fake import FakeWorld
from .running import running

KEY = "a-key-of-this-test"


@pytest.fixture
def listener() -> Any:
    found = place.listen()
    yield found
    found.close()


def test_only_the_user_can_enter(listener: place.Listener) -> None:
    assert stat.S_IMODE(listener.path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(listener.path.stat().st_mode) == 0o600
    folder = place.find()
    assert folder is not None
    folder.close()
    listener.close()
    assert not listener.path.exists()
    assert place.find() is None


def test_no_folder_is_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAMADO_HOME", str(tmp_path / "new"))
    assert place.find() is None
    assert not (tmp_path / "new").exists()


def test_without_a_home_of_its_own_the_run_time_folder_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KAMADO_HOME")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert place.socket_folder() == tmp_path / "kamado"


def test_without_a_run_time_folder_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """platformdirs warns then, which every command would show."""
    monkeypatch.delenv("KAMADO_HOME", raising=False)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(os, "access", lambda *_: False)  # nor has the system made one
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert place.socket_folder().is_absolute()
    assert said == []


def test_what_a_dead_server_left_is_replaced() -> None:
    dead = place.listen()
    dead.socket.close()  # as a kill leaves it
    assert dead.path.exists()
    assert place.find() is None
    second = place.listen()
    dead.close()  # knows that the name is another's by now
    folder = place.find()
    assert folder is not None
    folder.close()
    second.close()


def test_a_file_in_its_place_is_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = place.Folder(place.socket_folder(), make=True)
    (folder.path / place.NAME).write_text("no socket")
    assert place.find() is None
    place.listen().close()
    folder.close()


def test_a_living_server_is_left(listener: place.Listener) -> None:
    with pytest.raises(ServerError, match="another server of yours"):
        place.listen()
    assert listener.path.exists()


def test_another_users_folder_is_not_used(listener: place.Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = listener.path.parent
    monkeypatch.setattr(os, "getuid", lambda: os.geteuid() + 1)
    monkeypatch.setattr(place, "socket_folder", lambda: folder)
    with pytest.raises(ServerError, match="belongs to another user"):
        place.find()
    with pytest.raises(ServerError, match="belongs to another user"):
        place.listen()


def test_another_users_server_is_not_used(listener: place.Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "is_own_user", lambda connection: False)
    with pytest.raises(ServerError, match="another user's"):
        place.find()


def test_a_folder_that_others_can_enter_is_not_used_and_a_server_closes_it(listener: place.Listener) -> None:
    listener.path.parent.chmod(0o755)
    with pytest.raises(ServerError, match="chmod 700"):
        place.find()
    listener.close()
    again = place.listen()
    assert stat.S_IMODE(again.path.parent.stat().st_mode) == 0o700
    again.close()


def test_a_link_to_a_folder_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.setattr(place, "socket_folder", lambda: tmp_path / "link")
    with pytest.raises(ServerError, match="cannot be used"):
        place.listen()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the way round is Linux's")
def test_no_path_is_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAMADO_HOME", str(tmp_path / ("x" * 100) / ("y" * 100)))
    found = place.listen()
    folder = place.find()
    assert folder is not None
    folder.close()
    found.close()


def test_a_full_line_is_said(listener: place.Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody takes connections: after some wait, connecting would wait too."""
    monkeypatch.setattr(place, "_CONNECT_SECONDS", 0.01)
    listener.socket.listen(0)
    waiting = [socket.socket(socket.AF_UNIX) for _ in range(4)]
    folder = place.Folder(listener.path.parent, make=False)
    try:
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(folder.address)
        with pytest.raises(ServerError, match="takes no connections"):
            place.find()
    finally:
        for one in waiting:
            one.close()
        folder.close()


# --- what it opens ----------------------------------------------------------------------------------------------------


@pytest.fixture
def ask(listener: place.Listener) -> Any:
    """Over the socket, to a server that wants keys over TCP; `ask.url` is that side."""
    world, keys = FakeWorld(), KeyRing()
    keys.add(KEY)
    folder = place.Folder(listener.path.parent, make=False)
    with running(world.library, world.loader, None, keys, own=listener) as up:
        transport = httpx2.HTTPTransport(uds=folder.address)
        with httpx2.Client(transport=transport, base_url="http://localhost") as http:

            def found(method: str, path: str, **more: Any) -> httpx2.Response:
                return http.request(method, path, **more)

            found.url = up.url  # type: ignore[attr-defined]
            yield found
    folder.close()


def test_the_user_needs_no_key_there(ask: Callable[..., httpx2.Response]) -> None:
    assert ask("GET", "/v1/models").status_code == 200
    status = d.read(d.Status, ask("GET", d.STATUS_PATH).json())
    assert (status.protocol, status.pid) == (d.PROTOCOL, os.getpid())
    assert status.address == ask.url  # type: ignore[attr-defined]


def test_the_desk_is_not_there_over_tcp(ask: Callable[..., httpx2.Response]) -> None:
    headers = {"authorization": f"Bearer {KEY}"}
    for path in (d.STATUS_PATH, d.LOAD_PATH, d.UNLOAD_PATH, d.STOP_PATH, d.LOGS_PATH):
        for method in ("GET", "POST"):
            answer = httpx2.request(method, f"{ask.url}{path}", headers=headers, json={})  # type: ignore[attr-defined]
            assert answer.status_code == 404, path


def test_own_routes_need_a_key_over_tcp(ask: Callable[..., httpx2.Response]) -> None:
    for route in own_routes():
        answer = httpx2.request(route.method, f"{ask.url}{route.path}", json={})  # type: ignore[attr-defined]
        assert answer.status_code == 401, route.path


def test_another_user_is_hung_up_on(ask: Callable[..., httpx2.Response], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1, "is_own_user", lambda connection: False)
    with pytest.raises(httpx2.HTTPError):
        ask("GET", "/health")


# --- documents --------------------------------------------------------------------------------------------------------

STATUS = d.Status(
    1, "0.1", 7, "http://127.0.0.1:1", d.Settings("auto", allow_unknown=("a",)), (d.ModelState("m", "exact", 2, 512),),
    files={"m": "/m.gguf"},
)  # fmt: skip


def test_a_document_comes_back_as_it_was() -> None:
    import json

    assert d.read(d.Status, json.loads(json.dumps(d.write(STATUS)))) == STATUS


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"pid": "7"}, "pid"),
        ({"pid": True}, "pid"),
        ({"kamado": None}, "kamado"),
        ({"settings": []}, "settings"),
        ({"settings": {}}, "settings.kv"),
        ({"models": [{"name": "m"}]}, r"models\[0\].kv"),
        ({"models": {}}, "models"),
        ({"files": {"m": 1}}, "files.m"),
        ({"started_at": float("nan")}, "started_at"),
        ({"memory_bytes": 1.5}, "memory_bytes"),
    ],
)
def test_a_document_that_cannot_be_is_refused_by_name(change: dict[str, Any], named: str) -> None:
    plain = {**d.write(STATUS), "models": [], **change}
    with pytest.raises(ServerError, match=named):
        d.read(d.Status, plain)


def test_a_newer_server_may_say_more() -> None:
    assert d.read(d.Settings, {"kv": "auto", "colour": "red"}) == d.Settings("auto")


def test_the_log_in_memory_is_bounded_in_bytes() -> None:
    ring = LogRing()
    line = "竈" * 4000
    for _ in range(200):
        ring.emit(logging.LogRecord("kamado.serve", logging.INFO, __file__, 1, line, None, None))
    lines, gone, _ = ring.since(0)
    assert len(lines) == MOST_BYTES // (3 * 4000)
    assert gone == 200 - len(lines)
