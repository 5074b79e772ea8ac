"""`kamado connect`: what each program's file says, what is written, and a server that lies."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import socketserver
import stat
import threading
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from serve.fake import FakeWorld
from serve.running import Running, running
from test_cli_commands import kamado

from kamado.cli.clients import proof
from kamado.cli.clients.files import json_file, json_list_file, toml_file, yaml_file
from kamado.cli.clients.programs import Target, programs
from kamado.cli.clients.proof import Connection, Served
from kamado.cli.connect import _reachable, address, choose, running_server
from kamado.errors import ServerError, UsageError
from kamado.serve.http.keys import KeyRing

NAMES = list(programs())


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The programs' files of the test, and a folder to be in."""
    for name in ("CODEX_HOME", "CLAUDE_CONFIG_DIR", "OPENCODE_CONFIG", "KAMADO_API_KEY", "APPDATA"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / ".config"))
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    """Kamado's own server on a scripted model."""
    world = FakeWorld()
    with running(world.library, world.loader) as up:
        yield up


# --- against Kamado's own server --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_settings_are_printed_and_proved(name: str, server: Running) -> None:
    result = kamado("connect", name, "--server", f"{server.url}/v1/", "-m", "fake")
    assert result.exit_code == 0, result.output
    assert server.url in result.stdout
    assert f"tried as {programs()[name].title} asks: POST " in result.stderr
    assert "start it with: " in result.stderr
    document = json.loads(kamado("connect", name, "--server", server.url, "-m", "fake", "--json").stdout)
    assert document["check"]["ok"] is True
    assert document["written"] is False
    assert not Path(document["path"]).exists()


@pytest.mark.parametrize("name", NAMES)
def test_settings_are_written_and_what_was_there_stays(name: str, server: Running, home: Path) -> None:
    target = Target(server.url, "fake", None, 4096)
    file = programs()[name].settings(target, {"HOME": str(home), "XDG_CONFIG_HOME": str(home / ".config")})
    old = {
        "json": '{\n    "mine": [1]\n}\n',
        "toml": "# mine\n[mine]\nx = 1\n",
        "yaml": "# mine\nmine: 1\n",
        "env": "MINE=1\n",
    }
    text = '[{"name": "Other", "vendor": "x"}]' if name == "vscode" else old[file.format]
    file.path.parent.mkdir(parents=True, exist_ok=True)
    file.path.write_text(text)
    file.path.chmod(0o640)
    result = kamado("connect", name, "--server", server.url, "-m", "fake", "--write")
    assert result.exit_code == 0, result.output
    assert "\n+" in result.stdout
    written = file.path.read_text()
    assert "mine" in written.lower() or "Other" in written
    assert server.url in written
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o640
    backup = file.path.with_name(file.path.name + ".before-kamado")
    assert backup.read_text() == text
    assert stat.S_IMODE(backup.stat().st_mode) == 0o600
    again = kamado("connect", name, "--server", server.url, "-m", "fake", "--write")
    assert "says so already" in again.stdout
    assert file.path.read_text() == written


def test_what_each_file_says(home: Path) -> None:
    target = Target("http://h:1", "a/b:1", "sk-1", 40_000)
    found = {name: program.settings(target, {"HOME": str(home)}) for name, program in programs().items()}
    codex = tomllib.loads(found["codex"].alone)
    assert codex["model_providers"]["kamado"]["base_url"] == "http://h:1/v1"
    assert codex["model_providers"]["kamado"]["env_key"] == "KAMADO_API_KEY"
    assert (codex["model"], codex["model_provider"]) == ("a/b:1", "kamado")
    assert "sk-1" not in found["codex"].alone
    claude = json.loads(found["claude-code"].alone)
    assert claude["env"]["ANTHROPIC_BASE_URL"] == "http://h:1"
    assert claude["env"]["ANTHROPIC_AUTH_TOKEN"] == "sk-1"
    opencode = json.loads(found["opencode"].alone)["provider"]["kamado"]
    assert opencode["options"] == {"baseURL": "http://h:1/v1", "apiKey": "sk-1"}
    assert opencode["models"]["a/b:1"]["limit"]["context"] == 40_000
    (vscode,) = json.loads(found["vscode"].alone)
    assert "apiKey" not in vscode, "a real key is typed into the editor"
    (entry,) = vscode["models"]
    assert entry["maxInputTokens"] + entry["maxOutputTokens"] == 40_000
    aider = yaml.safe_load(found["aider"].alone)
    assert aider == {"openai-api-base": "http://h:1/v1", "openai-api-key": "sk-1", "model": "openai/a/b:1"}
    assert "OPENAI_API_KEY=sk-1\n" in found["open-webui"].alone
    assert found["codex"].path == home / ".codex" / "kamado.config.toml"
    paths = programs()["codex"].settings(target, {"HOME": str(home), "CODEX_HOME": "/c"}).path
    assert paths == Path("/c/kamado.config.toml")


def test_a_server_with_keys(home: Path) -> None:
    world = FakeWorld()
    keys = KeyRing()
    keys.add("sk-right-and-long")
    with running(world.library, world.loader, keys=keys) as up:
        result = kamado("connect", "codex", "--server", up.url, "--write")
        assert (result.exit_code, result.stderr.count("\n")) == (9, 1)
        assert "needs another API key" in result.stderr
        assert not (home / ".codex").exists(), "nothing is written that was not proved"
        for name in NAMES:
            result = kamado("connect", name, "--server", up.url, "-m", "fake", "--api-key", "sk-right-and-long")
            assert result.exit_code == 0, result.output
    assert kamado("connect", "codex", "--api-key", "two words").exit_code == 2


def test_a_small_context_is_said(server: Running) -> None:
    result = kamado("connect", "codex", "--server", server.url, "-m", "fake")
    context = json.loads(kamado("connect", "codex", "--server", server.url, "-m", "fake", "--json").stdout)["context"]
    assert context is None or context >= 32_768 or "--context 32768" in result.stderr


# --- files that are not ours ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("claude-code", '{\n // mine\n "a": 1 }'),
        ("claude-code", "[1]"),
        ("claude-code", '{"env": 3}'),
        ("opencode", "{"),
        ("vscode", '{"a": 1}'),
        ("codex", "model_providers = 3\n"),
        ("codex", "["),
        ("aider", "{model: x}\n"),
        ("aider", "model:\n  - x\n"),
        ("aider", "model: a\nmodel: b\n"),
        ("aider", "model: |\n  text\n"),
        ("aider", "\xff\xfe"),
    ],
)
def test_a_file_that_cannot_be_changed_is_left_alone(name: str, text: str, server: Running, tmp_path: Path) -> None:
    path = tmp_path / "their.file"
    path.write_bytes(text.encode("latin-1"))
    result = kamado("connect", name, "--server", server.url, "-m", "fake", "--write", "--file", str(path))
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.output
    assert str(path) in result.stderr
    assert path.read_bytes() == text.encode("latin-1")
    assert list(tmp_path.glob("*.before-kamado")) == []


def test_a_second_copy_does_not_take_the_firsts_place(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_text('{"a": 1}')
    assert json_file(path, {("b",): 2}).write() == tmp_path / "s.json.before-kamado"
    assert json_file(path, {("b",): 3}).write() == tmp_path / "s.json.before-kamado-2"
    assert json.loads((tmp_path / "s.json.before-kamado").read_text()) == {"a": 1}
    link = tmp_path / "link.json"
    link.symlink_to(path)
    json_file(link, {("b",): 4}).write()
    assert link.is_symlink()
    assert json.loads(path.read_text()) == {"a": 1, "b": 4}


documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.text(max_size=4), documents, max_size=4), st.sampled_from([None, 2, 4, "\t"]))
def test_any_json_keeps_its_other_keys(document: dict[str, Any], indent: Any) -> None:
    text = json.dumps(document, indent=indent)
    changed = json.loads(json_file(Path("x"), {("our key",): {"a": 1}}).changed(text))
    assert changed.pop("our key") == {"a": 1}
    assert changed == document
    entries = json.loads(json_list_file(Path("x"), {"name": "K"}, ("name",)).changed(json.dumps([document])))
    assert entries[0] == document or document.get("name") == "K"


printable = st.text(max_size=8).filter(str.isprintable)
plain_values = st.none() | st.booleans() | st.integers() | printable | st.lists(st.integers(), max_size=2)


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(st.from_regex(r"[a-z]-?[a-z]{0,4}", fullmatch=True), plain_values, max_size=4), printable)
def test_any_plain_yaml_keeps_its_other_keys(document: dict[str, Any], value: str) -> None:
    lines = [f"{key}: {json.dumps(inner, ensure_ascii=False)} # why\n" for key, inner in document.items()]
    text = "# mine\n" + "".join(lines)
    changed = yaml_file(Path("x"), {"model": value}).changed(text)
    assert yaml.safe_load(changed) == {**(yaml.safe_load(text) or {}), "model": value}


def test_a_models_name_that_acts_is_refused_where_it_cannot_stand() -> None:
    target = Target("http://h", "m\nOPENAI_API_KEY: x", None)
    for name in ("aider", "open-webui"):
        with pytest.raises(UsageError, match="cannot"):
            programs()[name].settings(target, {"HOME": "/h"})
    assert json.loads(programs()["claude-code"].settings(target, {"HOME": "/h"}).alone)["model"] == target.model
    assert programs()["opencode"].start(Target("http://h", "a b", None)) == "opencode --model 'kamado/a b'"


# --- servers that lie -------------------------------------------------------------------------------------------------

MODELS = json.dumps({"data": [{"id": "m", "context_length": 4096}]}).encode()
CHAT = (
    b'data: {"choices":[{"delta":{"content":"Earth"}}]}\n\n'
    b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
)


class Liar(socketserver.ThreadingTCPServer):
    """Answers what a test says, by path, and keeps the requests."""

    allow_reuse_address = daemon_threads = True

    def __init__(self, answers: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers = answers
        self.requests: list[bytes] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        server: Any = self.server
        head = b""
        while b"\r\n\r\n" not in head:
            piece = self.request.recv(65536)
            if not piece:
                return
            head += piece
        length = re.search(rb"content-length: (\d+)", head.lower())
        while length is not None and len(head.partition(b"\r\n\r\n")[2]) < int(length[1]):
            head += self.request.recv(65536)
        server.requests.append(head)
        path = head.split(b" ")[1].decode()
        with contextlib.suppress(OSError):
            self.wfile.write(server.answers.get(path, http(b"no", status="404 Not Found")))


def http(body: bytes, kind: str = "application/json", *, status: str = "200 OK", more: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nConnection: close\r\n{more}\r\n".encode() + body


def stream(body: bytes) -> bytes:
    return http(body, "text/event-stream")


@pytest.fixture
def lie() -> Iterator[Callable[..., Liar]]:
    with contextlib.ExitStack() as stack:

        def start(**answers: bytes) -> Liar:
            paths = {"models": "/v1/models", "chat": "/v1/chat/completions", "responses": "/v1/responses",
                     "messages": "/v1/messages"}  # fmt: skip
            server = stack.enter_context(Liar({paths[name]: text for name, text in answers.items()}))
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
            stack.callback(server.shutdown)
            return server

        yield start


def said(name: str, server: Liar, code: int = 9) -> str:
    result = kamado("connect", name, "--server", server.url, "--wait", "20", "--write")
    assert result.exit_code == code, result.output
    assert result.stderr.count("\n") == 1
    assert len(result.stderr) < 600
    return result.stderr


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (http(b"<html>hello"), "its list of models is no JSON object: <html>hello"),
        (http(b""), "it is empty"),
        (http(b"[1]"), "is no JSON object"),
        (http(b'{"models": []}'), "lists no models"),
        (http(b'{"data": [3]}'), "without an id"),
        (http(b'{"data": [{"id": 3}]}'), "without an id"),
        (http(b'{"data": []}'), "no model that can chat"),
        (http(b'{"data": [{"id": "a"}, {"id": "b"}]}'), "several models: choose one with -m (a, b)"),
        (http(b"[" * 100_000), "is no JSON object"),
        (http(b"x" * (5 << 20)), "more than 4 MiB"),
        (http(b"", status="302 Found", more="Location: http://127.0.0.1:9/\r\n"), "a redirect"),
        (http(b'{"error": {"message": "broken"}}', status="500 Oops"), "/v1/models answered 500: broken"),
        (http(b"\xff\xfe", status="503 Full"), "answered 503"),
        (b"SSH-2.0-OpenSSH_9\r\n", "broke off its answer"),
        (http(b"{", more="Content-Length: 100\r\n"), "broke off its answer"),
        (http(b"nonsense", more="Content-Encoding: gzip\r\n"), "is no JSON object"),
    ],
)
def test_a_list_of_models_that_is_none(answer: bytes, says: str, lie: Callable[..., Liar]) -> None:
    assert says in said("aider", lie(models=answer))


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "ended its stream in the middle: after 0 events"),
        (b"data: {}\n\n", "an event without choices"),
        (b"data: [1]\n\n", "an event of its stream is no JSON object"),
        (b'data: {"choices": [3]}\n\n', "a choice without a delta"),
        (b'data: {"choices": [{"delta": {"tool_calls": [3]}}]}\n\n', "a call that is none"),
        (b'data: {"error": {"message": "out of\\nmemory"}}\n\n', "failed in its stream: out of memory"),
        (CHAT.replace(b"data: [DONE]\n\n", b""), "ended its stream in the middle"),
        (b"data: [DONE]\n\n", "without saying why"),
        (CHAT.replace(b"Earth", b""), "answered with nothing"),
        (b": ping\n\n" * 600_000, "more than 4 MiB"),
        (b"data: " + b"x" * (1 << 20), "one line of it has more than"),
    ],
)
def test_a_stream_that_is_none(body: bytes, says: str, lie: Callable[..., Liar], home: Path) -> None:
    assert says in said("aider", lie(models=http(MODELS), chat=stream(body)))
    assert not (home / ".aider.conf.yml").exists()


def test_an_answer_that_is_no_stream(lie: Callable[..., Liar]) -> None:
    for answer, says in (
        (http(b'{"choices": []}'), "a stream was asked for, and this came"),
        (http(b"no such model", status="404 Not Found"), "/v1/chat/completions answered 404: no such model"),
        (http(b'{"error": "this model cannot use tools"}', status="400 Bad"), "400: this model cannot use tools"),
        (http(b"{}", status="401 No"), "needs another API key"),
    ):
        assert says in said("aider", lie(models=http(MODELS), chat=answer))


@pytest.mark.parametrize(
    ("name", "body", "says"),
    [
        ("codex", CHAT, "an event without a type"),
        ("codex", b"data: [DONE]\n\n", "is no JSON object: [DONE]"),
        (
            "codex",
            b'data: {"type":"response.failed","response":{"error":{"message":"sad"}}}\n\n',
            "stream: sad",
        ),
        ("codex", b'data: {"type":"response.completed"}\n\n', "without saying why"),
        ("claude-code", b'event: error\ndata: {"type":"error","error":{"message":"sad"}}\n\n', "stream: sad"),
        ("claude-code", b'data: {"type":"content_block_delta","delta":3}\n\n', "a delta that is none"),
        ("claude-code", b'data: {"type":"content_block_start"}\n\n', "a block that is none"),
        ("claude-code", b'data: {"type":"message_stop"}\n\n', "without saying why"),
    ],
)
def test_streams_of_the_other_protocols(name: str, body: bytes, says: str, lie: Callable[..., Liar]) -> None:
    assert says in said(name, lie(models=http(MODELS), responses=stream(body), messages=stream(body)))


def test_json_says_what_failed_too(lie: Callable[..., Liar]) -> None:
    server = lie(models=http(MODELS), chat=stream(b""))
    result = kamado("connect", "aider", "--server", server.url, "--json")
    assert result.exit_code == 9
    check = json.loads(result.stdout)["check"]
    assert check["ok"] is False
    assert "in the middle" in check["error"]


def test_requests_are_those_of_the_programs(lie: Callable[..., Liar]) -> None:
    server = lie(models=http(MODELS), chat=stream(CHAT))
    assert kamado("connect", "opencode", "--server", server.url).exit_code == 0
    assert kamado("connect", "aider", "--server", server.url).exit_code == 0
    _, opencode, _, aider = server.requests
    assert b'"stream":true' in opencode.replace(b": ", b":")
    assert b"get_time" in opencode
    assert b"get_time" not in aider
    assert b"authorization: bearer none-needed" in aider.lower()


def test_nobody_is_there() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        result = kamado("connect", "codex", "--server", f"127.0.0.1:{port}")
    assert (result.exit_code, result.stderr.count("\n")) == (9, 1)
    assert f"no server answers at http://127.0.0.1:{port}: start one with 'kamado serve MODEL'" in result.stderr


def test_a_server_that_says_nothing_is_not_waited_for_for_ever() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with Connection(url, None, seconds=0.05) as connection, pytest.raises(ServerError, match="said nothing for"):
            connection.models()


@pytest.mark.parametrize(
    "text",
    ["", "ftp://h", "http://", "http://u:p@h", "h?q", "h#f", "h:99999", "h:x", "http://[::1", "a\nb", "x" * 2000],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UsageError, match="is no address"):
        address(text)


def test_addresses() -> None:
    assert address("h:1") == "http://h:1"
    assert address("https://h/kamado/v1/") == "https://h/kamado"
    assert address("[::1]:80") == "http://[::1]:80"


def test_where_the_server_here_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _reachable("0.0.0.0:8417") == "http://127.0.0.1:8417"
    assert _reachable("http://[::]:1") == "http://127.0.0.1:1"
    assert _reachable("10.0.0.2:8417") == "10.0.0.2:8417"
    assert running_server() == "http://127.0.0.1:8417", "nobody is here: where one usually is"
    line = SimpleNamespace(status=lambda: SimpleNamespace(address="http://0.0.0.0:9"), close=lambda: None)
    monkeypatch.setattr("kamado.cli.link.Link.own", lambda: line)
    assert running_server() == "http://127.0.0.1:9"


def test_which_model() -> None:
    a, b, vectors = (
        Served("a", 1, False, ("chat",)),
        Served("b", 1, True, ("chat",)),
        Served("v", 1, True, ("embedding",)),
    )
    assert choose([a, vectors], None, "u") is a
    assert choose([a, b], None, "u") is b, "the one in memory"
    assert choose([a, b, vectors], "v", "u") is vectors
    kamado("config", "set", "model", "short")
    kamado("config", "set", "aliases.short", "a")
    assert choose([a, b], None, "u") is a
    assert choose([a, b], "short", "u") is a
    with pytest.raises(ServerError, match="has no model 'x'; it has a, b"):
        choose([a, b], "x", "u")


@given(st.binary(max_size=400))
def test_any_bytes_are_events_or_one_error(data: bytes) -> None:
    with contextlib.suppress(ServerError):
        for _ in proof._events(iter([data[:7], data[7:]])):
            pass


def test_toml_and_yaml_keep_comments() -> None:
    assert toml_file(Path("x"), {("a",): 1}).changed("# mine\nb = 2\n") == "# mine\nb = 2\na = 1\n"
    changed = yaml_file(Path("x"), {"model": "m"}).changed("# mine\nmodel: old # why\n# more\nread:\n  - a\n")
    assert changed == '# mine\nmodel: "m"\n# more\nread:\n  - a\n'
