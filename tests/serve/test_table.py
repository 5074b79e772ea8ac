"""The table of parameters, row by row, over HTTP: what is left out is said and changes nothing, what is refused named.

Rows that are honoured have tests of their effect elsewhere; the last test of all, tools/compatibility.py, counts that
every row has one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx2
import msgspec
import pytest

from kamado.serve.app import Server
from kamado.serve.config import ServeConfig
from kamado.serve.families import all_routes
from kamado.serve.http.parameters import HEADER, Row, tidy
from kamado.serve.models.contract import PullProgress
from kamado.serve.protocols.table import TABLE

from .fake import FakeWorld
from .running import Running, running

ASK = [{"role": "user", "content": "hello there"}]
BASES: dict[str, dict[str, Any]] = {
    "POST /v1/chat/completions": {"model": "fake", "messages": ASK},
    "POST /v1/completions": {"model": "fake", "prompt": "hello there"},
    "POST /v1/responses": {"model": "fake", "input": "hello there"},
    "POST /v1/responses/input_tokens": {"model": "fake", "input": "hello there"},
    "POST /v1/embeddings": {"model": "fake", "input": "hello"},
    "POST /tokenize": {"model": "fake", "prompt": "hello"},
    "POST /detokenize": {"model": "fake", "tokens": [1]},
    "POST /v1/messages": {"model": "fake", "messages": ASK, "max_tokens": 20},
    "POST /v1/messages/count_tokens": {"model": "fake", "messages": ASK},
    "POST /api/chat": {"model": "fake", "messages": ASK, "stream": False},
    "POST /api/generate": {"model": "fake", "prompt": "hello there", "stream": False},
    "POST /api/embed": {"model": "fake", "input": "hello"},
    "POST /api/embeddings": {"model": "fake", "prompt": "hello"},
    "POST /api/show": {"model": "fake"},
    "POST /api/pull": {"model": "fake", "stream": False},
    "POST /api/copy": {"source": "fake", "destination": "copied"},
    "POST /api/create": {"model": "made", "from": "fake", "stream": False},
    "DELETE /api/delete": {"model": "fake"},
}


def rows(*kinds: str, happens: bool = False) -> list[Any]:
    """A parameter for each example of the table's rows."""
    return [
        pytest.param(row, example, id=f"{row.endpoint.split('/', 1)[1]}-{row.label}-{i}")
        for row in TABLE.rows
        if row.kind in kinds and row.happens == happens
        for i, example in enumerate(row.examples)
    ]


def body_with(row: Row, value: Any) -> dict[str, Any]:
    """The endpoint's body with a value in the row's place; None: without it."""
    base = json.loads(json.dumps(BASES[row.endpoint]))
    if row.within is not None:
        return {**base, **row.within(value)}
    if value is None:
        return base
    *outer, last = row.place.split(".")
    holder = base
    for name in outer:
        holder = holder.setdefault(name, {})
    holder[last] = value
    return base


@pytest.fixture(scope="module")
def world() -> FakeWorld:
    found = FakeWorld()
    found.library.pulls["fake"] = [PullProgress("success")]
    return found


CONFIG = ServeConfig(port=0, log="json")


@pytest.fixture
def send(server: Running, http: httpx2.Client) -> Callable[..., httpx2.Response]:
    def send(endpoint: str, body: dict[str, Any]) -> httpx2.Response:
        method, path = endpoint.split(" ")
        return http.request(method, server.url + path, json=body)

    return send


def asked(world: FakeWorld) -> Any:
    """What the model was asked last, without what differs from request to request; the recipe that was made last."""
    models = world.loader.models
    found = models["fake"].requests[-1] if "fake" in models and models["fake"].requests else None
    request = replace(found, request_id="", deadline_seconds=None) if found is not None else None
    return request, world.library.recipes.get("made")


def content(response: httpx2.Response) -> Any:
    """An answer without ids, times and the echo of what was asked."""

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(item) for item in value]
        if not isinstance(value, dict):
            return value
        drop = ("id", "created", "created_at", "completed_at", "kamado", "tools", "tool_choice")
        return {
            name: plain(item) for name, item in value.items() if name not in drop and not name.endswith("_duration")
        }

    return plain(response.json())


def check_no_difference(
    send: Callable[..., httpx2.Response], world: FakeWorld, row: Row, example: Any
) -> httpx2.Response:
    without = send(row.endpoint, body_with(row, None))
    assert without.status_code == 200, without.text
    assert HEADER not in without.headers or row.within is not None
    asked_without = asked(world)
    given = send(row.endpoint, body_with(row, example))
    assert given.status_code == 200, given.text
    assert asked(world) == asked_without
    assert content(given) == content(without)
    return given


@pytest.mark.parametrize(("row", "example"), rows("left out"))
def test_what_is_left_out_is_said_and_changes_nothing(
    send: Callable[..., httpx2.Response], world: FakeWorld, server: Running, records: Any, row: Row, example: Any
) -> None:
    given = check_no_difference(send, world, row, example)
    said = given.headers[HEADER].split(", ")
    assert any(name == row.name or name.startswith(f"{row.name}: ") for name in said), said
    assert all(name.isascii() for name in said)
    assert set(said) <= server.server._logged
    records(row.endpoint, row.label, status="left out")


@pytest.mark.parametrize(("row", "example"), rows("honoured", happens=True))
def test_what_happens_anyway_is_taken_without_a_word(
    send: Callable[..., httpx2.Response], world: FakeWorld, records: Any, row: Row, example: Any
) -> None:
    given = check_no_difference(send, world, row, example)
    assert HEADER not in given.headers
    records(row.endpoint, row.label)


@pytest.mark.parametrize(("row", "example"), rows("refused"))
def test_what_is_refused_is_named_with_the_reason(
    send: Callable[..., httpx2.Response], world: FakeWorld, records: Any, row: Row, example: Any
) -> None:
    assert send(row.endpoint, body_with(row, None)).status_code == 200 or row.by_code
    response = send(row.endpoint, body_with(row, example))
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    message = error if isinstance(error, str) else error["message"]
    assert row.place.split("[]")[0].split(".")[-1] in message
    assert row.by_code or row.why in message
    records(row.endpoint, row.label, status="refused")


def test_every_row_that_is_left_out_or_refused_has_an_example() -> None:
    assert [row.label for row in TABLE.rows if row.kind != "honoured" and not row.examples] == []
    assert [row.label for row in TABLE.rows if row.happens and not row.examples] == []


def test_no_row_is_there_twice() -> None:
    names = [(row.endpoint, row.label, row.kind) for row in TABLE.rows]
    assert sorted({name for name in names if names.count(name) > 1}) == []


BODIES = {f"{route.method} {route.path}": route.body for route in all_routes() if route.body is not None}


@pytest.mark.parametrize("endpoint", BODIES)
def test_the_table_knows_every_field_and_no_other(endpoint: str) -> None:
    """What is honoured is a field of the body, and every field is a row: neither can be forgotten."""
    kind: Any = BODIES[endpoint]
    fields = {field.encode_name for field in msgspec.structs.fields(kind)}
    known = {
        row.name
        for row in TABLE.rows
        if row.endpoint == endpoint and row.kind == "honoured" and not row.happens and "." not in row.name
    }
    assert known == fields


@pytest.mark.parametrize("endpoint", BASES)
def test_null_is_as_good_as_not_given(send: Callable[..., httpx2.Response], world: FakeWorld, endpoint: str) -> None:
    """Of every field that has a row, honoured or not, at once and nested ones too."""
    if endpoint in ("DELETE /api/delete", "POST /api/pull"):
        pytest.skip("it would do what it says")
    send(endpoint, BASES[endpoint])
    plain = asked(world)
    kind: Any = BODIES[endpoint]
    nulls: dict[str, Any] = {f.encode_name: None for f in msgspec.structs.fields(kind) if not f.required}
    nulls |= {
        row.name: None for row in TABLE.rows if row.endpoint == endpoint and "." not in row.name and not row.by_code
    }
    stream = {"stream": False} if endpoint.split(" ")[1].startswith("/api/") and "stream" in nulls else {}
    response = send(endpoint, {**nulls, **BASES[endpoint], **stream})
    assert response.status_code == 200, response.text
    assert HEADER not in response.headers
    assert asked(world) == plain


def test_tidying_reaches_nested_structs_and_leaves_data_alone() -> None:
    kind: Any = BODIES["POST /v1/chat/completions"]
    body: dict[str, Any] = {
        "model": None,
        "messages": [],
        "max_tokens": 2.0,
        "temperature": 1,
        "user": "",
        "tools": [{"type": "function", "function": {"name": "f", "description": None, "parameters": {"a": None}}}],
        "chat_template_kwargs": {"a": None, "b": ""},
        "stream_options": {"include_usage": None},
        "keep_alive": 3.0,
    }
    tidy(body, kind)
    assert body == {
        "model": None,
        "messages": [],
        "max_tokens": 2,
        "temperature": 1,
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"a": None}}}],
        "chat_template_kwargs": {"a": None, "b": ""},
        "stream_options": {},
        "keep_alive": 3.0,
    }
    assert type(body["max_tokens"]) is int


def test_an_unknown_parameter_is_still_refused_by_name(send: Callable[..., httpx2.Response]) -> None:
    for endpoint, base in BASES.items():
        response = send(endpoint, {**base, "temprature": 1})
        assert response.status_code == 400, endpoint
        assert "temprature" in response.text


def test_the_log_says_a_name_once(caplog: pytest.LogCaptureFixture) -> None:
    world = FakeWorld()
    with running(world.library, world.loader) as up, caplog.at_level("INFO", logger="kamado.serve"):
        for _ in range(3):
            body = {**BASES["POST /v1/chat/completions"], "store": True, "provider": {"order": ["a"]}}
            response = httpx2.post(f"{up.url}/v1/chat/completions", json=body)
            assert response.headers[HEADER] == "store, provider" or response.headers[HEADER] == "provider, store"
        assert isinstance(up.server, Server)
    lines = [record.parameter for record in caplog.records if record.message == "left out"]  # type: ignore[attr-defined]
    assert sorted(lines) == ["provider", "store"]


@pytest.mark.parametrize("stream", [False, True])
def test_the_header_is_there_for_streams_too(server: Running, http: httpx2.Client, stream: bool) -> None:
    for endpoint, extra in (
        ("POST /v1/chat/completions", {"metadata": {"a": "b"}}),
        ("POST /v1/completions", {"metadata": {"a": "b"}}),
        ("POST /v1/responses", {"client_metadata": {"a": "b"}}),
        ("POST /v1/messages", {"context_management": {"edits": []}}),
        ("POST /api/chat", {"options": {"num_thread": 4}}),
    ):
        path = endpoint.split(" ")[1]
        response = http.post(server.url + path, json={**BASES[endpoint], **extra, "stream": stream})
        assert response.status_code == 200, response.text
        assert response.headers[HEADER] == (next(iter(extra)) if "options" not in extra else "options.num_thread")
