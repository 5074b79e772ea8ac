"""Paths as clients write them, paths that are not here, tokens of texts, and requests that name no model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx2
import openai
import pytest

from kamado.serve.config import ServeConfig
from kamado.serve.http.keys import KeyRing
from kamado.serve.http.parameters import HEADER
from kamado.serve.http.paths import ABSENT, canonical
from kamado.serve.protocols.tokens import _piece

from . import fake
from .compat import compat
from .fake import INFO, FakeWorld
from .running import Running, running

TOKENIZE, DETOKENIZE = "POST /tokenize", "POST /detokenize"
ASK = [{"role": "user", "content": "hello there"}]
HTTP = httpx2.Client(timeout=30)


@pytest.fixture(scope="module")
def world() -> FakeWorld:
    found = FakeWorld({"think": fake.thought("hm", "yes")})
    found.library.infos["plain"] = replace(INFO, name="plain", capabilities=INFO.capabilities - {"thinking"})
    return found


@pytest.fixture(scope="module")
def server(world: FakeWorld) -> Iterator[Running]:
    config = ServeConfig(port=0, aliases={"gpt-4o": "fake", "lost": "nothing"})
    with running(world.library, world.loader, config) as up:
        yield up


@pytest.fixture(scope="module")
def single(world: FakeWorld) -> Iterator[Running]:
    """A server that was started for one model."""
    with running(world.library, world.loader, ServeConfig(port=0, models=["fake"])) as up:
        yield up


def post(server: Running, path: str, **body: Any) -> httpx2.Response:
    return HTTP.post(server.url + path, json=body)


# --- paths ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("/chat/completions", "/v1/chat/completions"),
        ("/completions", "/v1/completions"),
        ("/embeddings", "/v1/embeddings"),
        ("/models", "/v1/models"),
        ("/models/hf:a/b", "/v1/models/hf:a/b"),
        ("/messages", "/v1/messages"),
        ("/messages/count_tokens", "/v1/messages/count_tokens"),
        ("/responses", "/v1/responses"),
        ("/responses/x/input_items", "/v1/responses/x/input_items"),
        ("/v1/v1/chat/completions", "/v1/chat/completions"),
        ("/api/v1/chat/completions", "/v1/chat/completions"),
        ("/api/v0/models", "/v1/models"),
        ("/openai/v1/models", "/v1/models"),
        ("/v1/models/", "/v1/models"),
        ("/v1/tokenize", "/tokenize"),
        ("/v1/chat/completions", "/v1/chat/completions"),
        ("/api/chat", "/api/chat"),
        ("/", "/"),
        ("/completionsx", "/completionsx"),
    ],
)
def test_the_path_that_is_meant(written: str, meant: str) -> None:
    assert canonical(written) == meant


@pytest.mark.parametrize("prefix", ["", "/v1", "/v1/v1", "/api/v1", "/api/v0", "/openai/v1"])
def test_every_way_to_write_a_path_works(server: Running, prefix: str) -> None:
    chat = post(server, f"{prefix}/chat/completions", model="fake", messages=ASK)
    assert chat.json()["choices"][0]["message"]["content"] == "HELLO THERE"
    assert post(server, f"{prefix}/completions", model="fake", prompt="a").json()["choices"][0]["text"] == "A"
    assert post(server, f"{prefix}/embeddings", model="fake", input="a").json()["data"][0]["embedding"]
    assert post(server, f"{prefix}/responses", model="fake", input="a").json()["status"] == "completed"
    assert post(server, f"{prefix}/messages", model="fake", messages=ASK, max_tokens=9).json()["type"] == "message"
    assert HTTP.get(f"{server.url}{prefix}/models").json()["data"]
    wrong = post(server, f"{prefix}/messages", model="fake", messages=ASK)
    assert wrong.json()["type"] == "error", "errors have the shape of the API that is meant"


def test_scopes_hold_on_every_way_to_write_a_path(world: FakeWorld) -> None:
    keys = KeyRing()
    keys.add("kmd-reader-0123456789abcdef", name="reader", scopes=("read",))
    with running(world.library, world.loader, keys=keys) as up:
        headers = {"authorization": "Bearer kmd-reader-0123456789abcdef"}
        for path in ("/chat/completions", "/api/v1/chat/completions", "/tokenize", "/detokenize", "/v1/tokenize"):
            assert HTTP.post(up.url + path, json={}, headers=headers).status_code == 403
            assert HTTP.post(up.url + path, json={}).status_code == 401
        assert HTTP.get(f"{up.url}/models", headers=headers).status_code == 200


@pytest.mark.parametrize("path", ABSENT)
def test_paths_that_are_not_here_say_what_to_use(server: Running, records: Any, path: str) -> None:
    for answer in (post(server, path), HTTP.get(server.url + path), HTTP.get(f"{server.url}{path}/more")):
        assert answer.status_code == 404
        error = answer.json()["error"]
        assert ABSENT[path] in (error if isinstance(error, str) else error["message"])
    records(f"POST {path}", status="absent", note=ABSENT[path])


# --- tokens -----------------------------------------------------------------------------------------------------------


@compat(TOKENIZE, "model", "content", "add_special", "parse_special", "with_pieces")
@compat(DETOKENIZE, "model", "tokens")
def test_tokens_in_llama_cpps_shape(server: Running) -> None:
    found = post(server, "/tokenize", model="fake", content="one two").json()
    assert list(found) == ["tokens"]
    assert len(found["tokens"]) == 2
    assert post(server, "/detokenize", model="fake", tokens=found["tokens"]).json()["content"] == "one two"
    assert post(server, "/tokenize", model="fake", content="one", add_special=True).json()["tokens"][0] == 1
    special = post(server, "/tokenize", model="fake", content="<s>one").json()["tokens"]
    plain = post(server, "/tokenize", model="fake", content="<s>one", parse_special=False).json()["tokens"]
    assert special[0] == 1
    assert plain[0] != 1
    pieces = post(server, "/tokenize", model="fake", content="one two", with_pieces=True).json()["tokens"]
    assert pieces == [{"id": t, "piece": p} for t, p in zip(found["tokens"], ["one", " two"], strict=True)]
    assert [_piece(data) for data in ("é".encode(), "é".encode()[:1])] == ["é", [195]]


@compat(TOKENIZE, "prompt", "add_special_tokens", "return_token_strs")
def test_tokens_in_vllms_shape(server: Running) -> None:
    found = post(server, "/tokenize", model="fake", prompt="one two").json()
    assert (found["count"], found["max_model_len"], found["tokens"][0]) == (3, 64, 1)
    bare = post(server, "/tokenize", model="fake", prompt="one two", add_special_tokens=False, return_token_strs=True)
    assert (bare.json()["count"], bare.json()["token_strs"]) == (2, ["one", " two"])
    assert post(server, "/detokenize", model="fake", tokens=bare.json()["tokens"]).json()["prompt"] == "one two"


@pytest.mark.parametrize("body", [{}, {"content": "a", "prompt": "b"}, {"content": 5}, {"tokens": [1]}])
def test_tokenize_says_what_is_wrong(server: Running, body: Any) -> None:
    assert post(server, "/tokenize", model="fake", **body).status_code == 400


# --- which model ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": ASK}),
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/responses", {"input": "a"}),
        ("/v1/responses/input_tokens", {"input": "a"}),
        ("/v1/embeddings", {"input": "a"}),
        ("/v1/messages", {"messages": ASK, "max_tokens": 9}),
        ("/v1/messages/count_tokens", {"messages": ASK}),
        ("/api/chat", {"messages": ASK, "stream": False}),
        ("/api/generate", {"prompt": "a", "stream": False}),
        ("/api/embed", {"input": "a"}),
        ("/tokenize", {"content": "a"}),
        ("/detokenize", {"tokens": [1]}),
    ],
)
def test_without_a_model_the_one_that_was_named_is_meant(
    single: Running, server: Running, world: FakeWorld, path: str, body: dict[str, Any]
) -> None:
    for more in ({}, {"model": None}, {"model": ""}):
        assert post(single, path, **body, **more).status_code == 200
        assert post(server, path, **body, **more).status_code in (400, 404)
    with running(world.library, world.loader, ServeConfig(port=0, models=["fake", "other"])) as two:
        assert post(two, path, **body).status_code in (400, 404)
    assert post(single, "/api/show").status_code == 400, "nothing is shown, deleted or made by guess"


def test_a_body_may_begin_with_a_bom(server: Running) -> None:
    raw = b"\xef\xbb\xbf" + json.dumps({"model": "fake", "messages": ASK}).encode()
    answer = HTTP.post(f"{server.url}/v1/chat/completions", content=raw, headers={"content-type": "application/json"})
    assert answer.status_code == 200


# --- what is said -----------------------------------------------------------------------------------------------------


def test_aliases_are_listed_and_contexts_known_before_loading(world: FakeWorld, server: Running) -> None:
    fresh = FakeWorld()
    fresh.library.infos["fake"] = replace(INFO, context=0)
    with running(fresh.library, fresh.loader, ServeConfig(port=0, aliases={"gpt-4o": "fake"})) as up:
        listed = {m["id"]: m for m in HTTP.get(f"{up.url}/v1/models").json()["data"]}
        assert set(listed) == {"fake", "other", "gpt-4o"}
        assert listed["fake"]["context_length"] == listed["gpt-4o"]["context_length"] == 2048
        assert not listed["gpt-4o"]["is_loaded"]
    post(server, "/v1/completions", model="gpt-4o", prompt="a")
    listed = {m["id"]: m for m in HTTP.get(f"{server.url}/v1/models").json()["data"]}
    assert set(listed) == {"fake", "other", "plain", "gpt-4o"}, "an alias of nothing is no model"
    assert listed["gpt-4o"]["is_loaded"]
    assert listed["gpt-4o"]["context_length"] == 64
    names = {m["name"] for m in HTTP.get(f"{server.url}/api/tags").json()["models"]}
    assert "gpt-4o" in names
    headers = {"anthropic-version": "2023-06-01"}
    claude = {m["id"] for m in HTTP.get(f"{server.url}/v1/models", headers=headers).json()["data"]}
    assert "gpt-4o" in claude


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/v1/chat/completions", {"messages": ASK, "reasoning_effort": "high"}, "reasoning_effort"),
        ("/v1/chat/completions", {"messages": ASK, "thinking_budget": 100}, "thinking_budget"),
        ("/v1/chat/completions", {"messages": ASK, "enable_thinking": True}, "enable_thinking"),
        ("/v1/responses", {"input": "a", "reasoning": {"effort": "low"}}, "reasoning"),
        (
            "/v1/messages",
            {"messages": ASK, "max_tokens": 20, "thinking": {"type": "enabled", "budget_tokens": 10}},
            "thinking",
        ),
        (
            "/v1/messages",
            {"messages": ASK, "max_tokens": 20, "output_config": {"effort": "low"}},
            "output_config.effort",
        ),
        ("/api/chat", {"messages": ASK, "think": True}, "think"),
        ("/api/chat", {"messages": ASK, "think": "low"}, "think"),
        ("/api/generate", {"prompt": "a", "think": True}, "think"),
    ],
)
def test_a_model_that_cannot_think_says_so(
    server: Running, path: str, body: dict[str, Any], said: str, stream: bool
) -> None:
    answer = post(server, path, model="plain", stream=stream, **body)
    assert answer.status_code == 200, answer.text
    assert answer.headers[HEADER] == said
    assert HEADER not in post(server, path, model="fake", stream=stream, **body).headers
    off: dict[str, Any] = {"think": False} if "think" in body else {}
    if off:
        assert HEADER not in post(server, path, model="plain", stream=stream, **{**body, **off}).headers


def test_the_request_that_loads_a_model_says_how_long_it_took() -> None:
    world = FakeWorld()
    with running(world.library, world.loader) as up:
        for path, body in (
            ("/api/chat", {"messages": ASK}),
            ("/api/generate", {"prompt": "a"}),
            ("/api/embed", {"input": "a"}),
        ):
            post(up, "/api/chat", model="fake", messages=[], keep_alive=0)
            first = (
                post(up, path, model="fake", stream=False, **body)
                if "embed" not in path
                else post(up, path, model="fake", **body)
            )
            again = post(up, path, model="fake", **({} if "embed" in path else {"stream": False}), **body)
            assert first.json()["load_duration"] > 0
            assert first.json()["total_duration"] >= first.json()["load_duration"]
            assert again.json()["load_duration"] == 0


# --- stored responses -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as found:
        yield found


@compat("GET /v1/responses/{id}/input_items", "limit", "after", "order", "include")
def test_input_items_page_by_page(server: Running, client: openai.OpenAI) -> None:
    said: Any = [{"role": "user" if i % 2 == 0 else "assistant", "content": f"turn {i}"} for i in range(5)]
    made = client.responses.create(model="fake", input=said)

    def texts(**query: Any) -> list[str]:
        page = client.responses.input_items.list(made.id, **query)
        return [item.to_dict()["content"][0]["text"] for item in page]  # the client asks for the next pages itself

    assert texts() == [f"turn {i}" for i in (4, 3, 2, 1, 0)]
    assert texts(order="asc", limit=2) == [f"turn {i}" for i in range(5)]
    assert texts(order="asc", after="item_2") == ["turn 3", "turn 4"]
    assert texts(include=["file_search_call.results"]) == texts()
    url = f"{server.url}/v1/responses/{made.id}/input_items"
    page = HTTP.get(url, params={"limit": 2, "order": "asc"}).json()
    assert (page["first_id"], page["last_id"], page["has_more"]) == ("item_0", "item_1", True)
    for wrong in (
        {"limit": 0},
        {"limit": "x"},
        {"after": "nothing"},
        {"order": "up"},
        {"include[]": "soul"},
        {"no": 1},
    ):
        answer = HTTP.get(url, params=wrong)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == next(iter(wrong))


@compat("GET /v1/responses/{id}", "stream", "starting_after", "include")
@pytest.mark.parametrize("ask", ["think", "hello there"])
def test_a_stored_response_as_its_events(client: openai.OpenAI, ask: str) -> None:
    made = client.responses.create(model="fake", input=ask)
    events = list(client.responses.retrieve(made.id, stream=True, include=["file_search_call.results"]))
    live = list(client.responses.create(model="fake", input=ask, stream=True))
    kinds = [event.type for event in live]
    assert [event.type for event in events] == [k for i, k in enumerate(kinds) if k != kinds[i - 1] or "delta" not in k]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-1].response.output_text == made.output_text  # type: ignore[union-attr]
    later = list(client.responses.retrieve(made.id, stream=True, starting_after=3))
    assert [event.sequence_number for event in later] == list(range(4, len(events)))


def test_a_called_function_is_among_the_events(server: Running, world: FakeWorld, client: openai.OpenAI) -> None:
    world.scripts["call"] = fake.calls(("f", '{"a": 1}'))
    tool: Any = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": False}
    made = client.responses.create(model="fake", input="call", tools=[tool])
    kinds = [event.type for event in client.responses.retrieve(made.id, stream=True)]
    assert "response.function_call_arguments.done" in kinds
    refused = HTTP.get(f"{server.url}/v1/responses/{made.id}", params={"include_obfuscation": "true", "stream": "true"})
    assert refused.status_code == 400
