"""What an error, a log line or a header repeats of a client's words: little, and nothing that a terminal obeys."""

from __future__ import annotations

import json
import logging
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest

from kamado.errors import CorruptFileError, ModelNotFoundError, UsageError
from kamado.library.store import Store
from kamado.serve.config import KeyConfig, ServeConfig, exposed_keys, load_config
from kamado.serve.families import all_routes
from kamado.serve.faults import MAX_MESSAGE_CHARACTERS, RequestError, fault_of, shown
from kamado.serve.models.contract import Recipe
from kamado.serve.models.library import StoreLibrary
from kamado.serve.ops.logs import JsonFormatter, TextFormatter

from .fake import FakeWorld
from .running import Running, running

MARK = "Zq"  # in no message of ours
LONG = (MARK * 2000, f"{MARK} " * 1000, f"{MARK}' \"{MARK}` " * 500, f"\x1b]0;{MARK}\x07\n" * 500, MARK * 20_000)
BASE: dict[str, Any] = {
    "model": "fake",
    "messages": [{"role": "user", "content": "hi"}],
    "prompt": "hi",
    "input": "hi",
    "max_tokens": 4,
    "source": "fake",
    "destination": "x",
    "from": "fake",
}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    world = FakeWorld({})
    with running(world.library, world.loader, ServeConfig(port=0)) as found:
        yield found


def bodies(kind: type, long: str) -> Iterator[dict[str, Any]]:
    """Bodies of a route with `long` in one place each: a key, a value, a key or a value one and two levels down."""
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    base = {name: BASE[name] for name in fields if name in BASE}
    yield {**base, long: 1}
    for name in fields:
        yield {**base, name: long}
        yield {**base, name: {long: 1}}
        yield {**base, name: {"type": long}}
        yield {**base, name: [long]}
        yield {**base, name: [{long: 1}]}
        yield {**base, name: [{"type": long, "name": long, "role": long}]}
    if "messages" in fields:
        yield {**base, "messages": [{"role": "user", "content": "a", long: 1}]}
        yield {**base, "messages": [{"role": "user", "content": [{"type": long}]}]}
        yield {**base, "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": long}}]}]}
    if "tools" in fields:
        for parameters in ({"type": long}, {"properties": {long: {"type": "nothing"}}}, {"$ref": long}, {long: 1}):
            function = {"name": "f", "parameters": {"type": "object", **parameters}}
            yield {**base, "tools": [{"type": "function", "function": function}]}
            yield {**base, "tools": [{"type": "function", **function, "strict": True}]}
            yield {**base, "tools": [{"name": "f", "input_schema": parameters}]}


def test_no_error_repeats_more_than_200_characters(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "kamado.serve")
    with httpx2.Client(base_url=server.url, timeout=60) as http:
        seen = 0
        for route in all_routes():
            path = re.sub(r"\{[a-z_]+(:path)?\}", "fake", route.path)
            each = [list(bodies(route.body, long)) for long in LONG] if route.body is not None else [[]]
            for i in range(len(each[0])):
                body = each[(i + seen) % len(each)][i]
                answer = http.request(route.method, path, json=body)
                if answer.status_code == 200:
                    continue
                seen += 1
                assert answer.status_code < 500, answer.text[:500]
                assert len(answer.text) < 2 * MAX_MESSAGE_CHARACTERS + 300, (route.path, answer.text[:300])
                assert answer.text.count(MARK) <= 2 * 200 // len(MARK), (route.path, answer.text)  # message and param
                assert all(value.isprintable() and len(value) < 2000 for value in answer.headers.values())
        assert seen > 100
    for record in caplog.records:
        line = JsonFormatter().format(record)
        assert len(line) < 4000, line[:300]
        assert "\x1b" not in TextFormatter().format(record)


def test_paths_queries_and_headers_are_not_repeated_either(server: Running) -> None:
    long = MARK * 1000
    with httpx2.Client(base_url=server.url, timeout=60) as http:
        answers = [
            http.get(f"/v1/{long[:1500]}"),
            http.get(f"/v1/models/{long[:1500]}"),
            http.get("/v1/models", params={long: "1"}),
            http.get("/v1/models", headers={"host": long[:250]}),
            http.get("/v1/models", headers={"authorization": f"Bearer {long}"}),
            http.get("/v1/models", headers={"x-request-id": long}),
            http.get(f"/v1/responses/{long}"),
            http.post("/v1/chat/completions", content=b"{}", headers={"content-type": f"text/{long}"}),
            http.request(MARK * 300, "/v1/models"),
        ]
    for answer in answers:
        told = answer.text if answer.status_code != 200 else ""
        assert told.count(MARK) <= 125, answer.text
        assert all(value.count(MARK) <= 125 for value in answer.headers.values())


def test_messages_are_cut_however_they_were_made() -> None:
    for error in (
        RequestError(f"tools: there are two called {MARK * 900!r}", param=MARK * 900),
        UsageError(f"there is no {'a ' * 900!r}"),
        UsageError(f"there is no '{'a ' * 900}"),
        ModelNotFoundError("x" * 5000),
    ):
        fault = fault_of(error)
        assert len(fault.message) < 260
        assert len(fault.param or "") <= 201
    ours = "this model's file, which it's about, " * 12  # apostrophes are no quotes
    assert fault_of(UsageError(ours)).message == ours
    names = f"there is no model called 'x'; there are: {', '.join(f'model-{i}' for i in range(30))}"
    assert fault_of(UsageError(names)).message == names
    assert shown("a\x1b[31m\n" + "b" * 300) == "a\\x1b[31m\\n" + "b" * 193 + "…"


def test_directories_of_this_machine_are_not_told() -> None:
    fault = fault_of(CorruptFileError("/home/anna/.local/share/kamado/models/x/m.gguf: the header ends early"))
    assert fault.message == "…/m.gguf: the header ends early"


def test_a_traceback_gives_no_orders_to_a_terminal() -> None:
    try:
        raise ValueError("\x1b]0;title\x07")
    except ValueError:
        record = logging.LogRecord("x", 40, __file__, 1, "failed", (), __import__("sys").exc_info())
    record.path = "a\nb"
    text = TextFormatter().format(record)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert text.splitlines()[0].endswith("path=a\\nb")


# --- names and files --------------------------------------------------------------------------------------------------


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StoreLibrary:
    """A store with nothing in it; secrets lie in the working directory."""
    work = tmp_path / "work"
    (work / "secrets").mkdir(parents=True)
    (work / "secrets" / "payroll-2026.gguf").write_bytes(b"GGUF")
    (work / "payroll.gguf").write_bytes(b"GGUF")
    monkeypatch.chdir(work)
    monkeypatch.setenv("HOME", str(work))
    return StoreLibrary(Store(tmp_path / "home"))


@pytest.mark.parametrize(
    "name",
    [
        "payroll.ggu", "payroll", "./payroll.ggu", "secrets/payroll", "secrets", "secrets/payroll-2026.gguf",
        "payroll.gguf", "~/payroll.ggu", "/etc/passw", "..", ".", "secrets/../payroll", "hf:../work",
        "hf:secrets/payroll@..", "file:payroll.gguf", "a/b/payroll", "payroll.safetensors",
        "C:\\payroll", "", "pay\0roll",
    ],
)  # fmt: skip
def test_a_name_over_http_is_never_a_path(library: StoreLibrary, name: str) -> None:
    from kamado.serve.http.keys import KeyRing
    from kamado.serve.run import make_server

    world = FakeWorld({})
    with running(library, world.loader, ServeConfig(port=0)) as server, httpx2.Client(base_url=server.url) as http:
        asked: list[tuple[str, str, dict[str, Any]]] = [
            ("POST", "/api/pull", {"model": name, "stream": False}),
            ("POST", "/api/pull", {"model": name}),
            ("POST", "/api/show", {"model": name}),
            ("POST", "/api/create", {"model": "new", "from": name, "stream": False}),
            ("POST", "/api/create", {"model": name, "from": "payroll", "stream": False}),
            ("POST", "/api/create", {"model": "new", "modelfile": f"FROM {name}", "stream": False}),
            ("POST", "/api/copy", {"source": name, "destination": "new"}),
            ("POST", "/api/copy", {"source": "payroll", "destination": name or "x"}),
            ("DELETE", "/api/delete", {"model": name}),
            ("POST", "/api/chat", {"model": name, "messages": [{"role": "user", "content": "hi"}]}),
            ("POST", "/api/generate", {"model": name, "prompt": "hi"}),
            ("POST", "/api/embed", {"model": name, "input": "hi"}),
            ("POST", "/v1/chat/completions", {"model": name, "messages": [{"role": "user", "content": "hi"}]}),
            ("POST", "/v1/messages", {"model": name, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}),
        ]
        for method, path, body in asked:
            answer = http.request(method, path, json=body)
            told = answer.text.replace(json.dumps(name)[1:-1], "").replace(repr(name)[1:-1], "")
            assert answer.status_code in (400, 404, 502) or '"error"' in answer.text, (path, answer.text)
            assert "payroll-2026" not in told
            assert "payroll.gguf" not in told
            assert "passwd" not in told
            assert "work" not in told.replace("network", "")
    assert make_server(ServeConfig(), library, world.loader, keys=KeyRing()) is not None
    assert sorted(p.name for p in Path.cwd().rglob("*")) == ["payroll-2026.gguf", "payroll.gguf", "secrets"]


@pytest.mark.skipif(os.name == "nt", reason="no modes there")
def test_recipes_are_nobody_elses(tmp_path: Path, tiny_checkpoint: Path) -> None:
    library = StoreLibrary(Store(tmp_path), {"base": tiny_checkpoint})
    (tmp_path / "recipes").mkdir(mode=0o755)  # as an older version left it
    old = os.umask(0o022)
    try:
        library._create("mine", Recipe(base="base", system="a secret"))
        library._copy("mine", "yours")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "recipes").stat().st_mode) == 0o700
    found = list((tmp_path / "recipes").iterdir())
    assert len(found) == 2
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in found)


@pytest.mark.skipif(os.name == "nt", reason="no modes there")
def test_a_key_that_others_can_read_is_told(tmp_path: Path) -> None:
    path = tmp_path / "serve.toml"
    path.write_text('[[api_keys]]\nname = "a"\nkey = "kmd-0123456789abcdef"\n', "utf-8")
    config, _ = load_config(file=path, environment={}, flags={})
    path.chmod(0o644)
    warning = exposed_keys(path, config)
    assert "chmod 600" in warning
    assert "0123456789" not in warning
    path.chmod(0o640)
    assert exposed_keys(path, config)
    path.chmod(0o600)
    assert not exposed_keys(path, config)
    path.chmod(0o644)
    hashed = ServeConfig(api_keys=[KeyConfig(sha256="ab" * 32)])
    assert not exposed_keys(path, hashed)
    other = tmp_path / "keys.json"
    other.write_text("[]", "utf-8")
    assert not exposed_keys(other, config)  # the key is another file's


# --- pages of other sites ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_form_of_another_site_is_refused_even_without_an_origin(server: Running, site: str) -> None:
    world = server.server.service
    headers = {"sec-fetch-site": site, "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    body = json.dumps(BASE | {"messages": [{"role": "user", "content": "from a form"}]}).encode()
    with httpx2.Client(base_url=server.url) as http:
        for method, path in (
            ("POST", "/v1/chat/completions"), ("POST", "/api/pull"), ("POST", "/api/create"), ("DELETE", "/api/delete"),
            ("DELETE", "/v1/models/fake"),
        ):  # fmt: skip
            for media_type in ("text/plain", "application/x-www-form-urlencoded", "application/json"):
                answer = http.request(method, path, content=body, headers={**headers, "content-type": media_type})
                assert answer.status_code == 403, path
        assert http.get("/", headers=headers).status_code == 200  # a link may lead here
        assert http.get("/health", headers={**headers, "sec-fetch-mode": "cors"}).status_code == 403
        own = {"sec-fetch-site": "none", "sec-fetch-mode": "navigate"}
        assert http.get("/", headers=own).status_code == 200
    assert world.num_active == 0
