"""Schemas over HTTP, in every protocol: what is refused, what is left open and said, what an answer may be.

The engine itself stands behind the server, on a scripted executor that says what a test tells it, as far as the
answer's form lets it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import pytest

from kamado.serve.config import ServeConfig
from kamado.serve.http.keys import KeyRing

from .fake import FakeLibrary
from .running import running
from .test_reuse import INFO, SpellerLoader

HELLO = [{"role": "user", "content": "hello"}]
# Whether items are alike cannot be seen by a grammar.
TAGS = {
    "type": "object",
    "properties": {"tags": {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}},
    "required": ["tags"],
}
PLACE = "#/properties/tags/uniqueItems"
VIOLATION = "/tags violates /properties/tags/uniqueItems"


class World:
    """A server, and a model that says what it is told."""

    def __init__(self, url: str, loader: SpellerLoader) -> None:
        self.client = httpx.Client(base_url=url, timeout=60)
        self.speller = loader.speller

    def ask(self, path: str, body: Mapping[str, Any], says: str = "") -> httpx.Response:
        """One request; the model prefers to say `says`."""
        body = {"model": "m", **body}
        self.speller.say(says, 0)
        counting = {"max_tokens": 1} if path != "/api/chat" else {"options": {"num_predict": 1}}
        if path == "/v1/responses":
            counting = {"max_output_tokens": 1}
        counted = self.client.post(path, json={**body, "stream": False, **counting})
        if counted.status_code != 200:
            return counted
        usage = counted.json().get("usage", counted.json())
        num_prompt = usage.get("prompt_tokens", usage.get("prompt_eval_count"))
        if num_prompt is None:
            num_prompt = usage["input_tokens"] + usage.get("cache_read_input_tokens", 0)
        self.speller.say(says, num_prompt)
        return self.client.post(path, json=body)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    loader = SpellerLoader()
    with running(FakeLibrary({"m": INFO}), loader, ServeConfig(port=0), KeyRing()) as server:
        found = World(server.url, loader)
        yield found
        found.client.close()


def call_of(arguments: str, name: str = "f") -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def chat_tool(schema: Any, name: str = "f", **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": schema, **more}}


def flat_tool(schema: Any, **more: Any) -> dict[str, Any]:
    return {"type": "function", "name": "f", "parameters": schema, **more}


def claude_tool(schema: Any, **more: Any) -> dict[str, Any]:
    return {"name": "f", "input_schema": schema, **more}


PROTOCOLS: dict[str, tuple[str, Any]] = {
    "chat": ("/v1/chat/completions", lambda s, **m: {"messages": HELLO, "tools": [chat_tool(s, **m)]}),
    "responses": ("/v1/responses", lambda s, **m: {"input": "hello", "tools": [flat_tool(s, **m)]}),
    "anthropic": (
        "/v1/messages",
        lambda s, **m: {"messages": HELLO, "max_tokens": 200, "tools": [claude_tool(s, **m)]},
    ),
    "ollama": ("/api/chat", lambda s, **m: {"messages": HELLO, "stream": False, "tools": [chat_tool(s, **m)]}),
}


def said(name: str, answer: Any) -> Any:
    """What an answer's own account says."""
    return answer.get("schema_violations") if name == "ollama" else answer["kamado"].get("schema_violations")


@pytest.mark.parametrize("name", PROTOCOLS)
def test_what_is_left_open_is_said_and_a_violation_too(world: World, name: str) -> None:
    path, body_of = PROTOCOLS[name]
    answer = world.ask(path, {**body_of(TAGS), "temperature": 0} if name != "ollama" else
                       {**body_of(TAGS), "options": {"temperature": 0}}, call_of('{"tags": [7, 7]}'))  # fmt: skip
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-kamado-schema"] == f"declared-keys, open=f{PLACE}, violated"
    assert said(name, answer.json()) == [f"call 0 of f: {VIOLATION}"]
    assert "7" in answer.text


@pytest.mark.parametrize("name", PROTOCOLS)
def test_an_answer_that_keeps_what_was_left_open_says_no_more(world: World, name: str) -> None:
    path, body_of = PROTOCOLS[name]
    answer = world.ask(path, {**body_of(TAGS), "temperature": 0} if name != "ollama" else
                       {**body_of(TAGS), "options": {"temperature": 0}}, call_of('{"tags": [7, 8]}'))  # fmt: skip
    assert answer.headers["x-kamado-schema"] == f"declared-keys, open=f{PLACE}"
    assert "violations" not in answer.text


@pytest.mark.parametrize("name", ["chat", "responses", "anthropic", "ollama"])
def test_a_stream_says_a_violation_at_its_end(world: World, name: str) -> None:
    path, body_of = PROTOCOLS[name]
    own = {"options": {"temperature": 0}} if name == "ollama" else {"temperature": 0}
    answer = world.ask(path, {**body_of(TAGS), **own, "stream": True}, call_of('{"tags": [7, 7]}'))
    assert answer.headers["x-kamado-schema"] == f"declared-keys, open=f{PLACE}"
    assert VIOLATION in answer.text[-2500:]


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_strict_tool_is_refused_by_name_and_place(world: World, name: str) -> None:
    path, body_of = PROTOCOLS[name]
    answer = world.ask(path, body_of(TAGS, strict=True))
    assert answer.status_code == 400
    assert "'f'" in answer.text
    assert "/properties/tags/uniqueItems" in answer.text


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "https://example.com/x"},
        {"type": "object", "properties": {"a": {"type": "banana"}}},
        {"type": "object", "properties": {"a": {"pattern": r"(a)\1"}}},
        {"type": "string"},
        {"allOf": [{"type": "object", "additionalProperties": False}, {"required": ["x"]}]},
        {"type": "object", "properties": {"a": {"pattern": "é+", "format": "email"}}},  # more than the compiler's fuel
    ],
)
@pytest.mark.parametrize("name", PROTOCOLS)
def test_one_bad_tool_never_refuses_the_request(world: World, name: str, schema: Any) -> None:
    path, body_of = PROTOCOLS[name]
    answer = world.ask(path, body_of(schema))
    assert answer.status_code == 200, answer.text
    assert "open=f#" in answer.headers["x-kamado-schema"]
    assert world.ask(path, body_of(schema, strict=True)).status_code == 400


def form(schema: Any, **more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, **more}}


FORMS: dict[str, tuple[str, Any]] = {
    "chat": ("/v1/chat/completions", lambda s: {"messages": HELLO, "response_format": form(s)}),
    "completions": ("/v1/completions", lambda s: {"prompt": "hello", "max_tokens": 200, "response_format": form(s)}),
    "responses": (
        "/v1/responses",
        lambda s: {"input": "hello", "text": {"format": {"type": "json_schema", "name": "x", "schema": s}}},
    ),
    "anthropic": (
        "/v1/messages",
        lambda s: {"messages": HELLO, "max_tokens": 200,
                   "output_config": {"format": {"type": "json_schema", "schema": s}}},
    ),
    "ollama": ("/api/chat", lambda s: {"messages": HELLO, "stream": False, "format": s}),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_forms_are_compact_exact_and_of_declared_keys(world: World, name: str) -> None:
    schema = {
        "type": "object",
        "properties": {"o": {"const": {"format": "pdf"}}, "id": {"enum": [1234567890123456789]}},
        "required": ["o", "id"],
    }
    path, body_of = FORMS[name]
    answer = world.ask(path, body_of(schema), '{ "invented": 1, ')
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-kamado-schema"] == "declared-keys"
    wanted = '{"o":{"format":"pdf"},"id":1234567890123456789}'
    assert json.dumps(wanted)[1:-1] in answer.text


@pytest.mark.parametrize("name", FORMS)
def test_a_form_that_is_violated_says_so(world: World, name: str) -> None:
    path, body_of = FORMS[name]
    own = {"options": {"temperature": 0}} if name == "ollama" else {"temperature": 0}
    answer = world.ask(path, {**body_of(TAGS), **own}, '{"tags":[7,7]}')
    assert answer.headers["x-kamado-schema"] == f"declared-keys, open=answer{PLACE}, violated"
    assert said(name, answer.json()) == [VIOLATION]


def test_a_strict_form_is_refused_by_place(world: World) -> None:
    body = {"messages": HELLO, "response_format": form(TAGS, strict=True)}
    answer = world.ask("/v1/chat/completions", body)
    assert answer.status_code == 400
    assert "/properties/tags/uniqueItems" in answer.json()["error"]["message"]
    body = {"input": "x", "text": {"format": {"type": "json_schema", "name": "x", "schema": TAGS, "strict": True}}}
    assert world.ask("/v1/responses", body).status_code == 400


def test_without_a_schema_nothing_is_said(world: World) -> None:
    for form in ({}, {"response_format": {"type": "json_object"}}):
        answer = world.ask("/v1/chat/completions", {"messages": HELLO, **form}, "hi")
        assert "x-kamado-schema" not in answer.headers
        answer = world.ask("/v1/completions", {"prompt": "hello", "max_tokens": 50, **form}, "hi")
        assert "x-kamado-schema" not in answer.headers


COUNT = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


@pytest.mark.parametrize(
    ("more", "count"),
    [({}, 1), ({"parallel_tool_calls": False}, 1), ({"parallel_tool_calls": True}, 2)],
)
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "f"}}])
def test_one_tool_that_must_be_called_is_called_once_unless_more_were_asked_for(
    world: World, more: dict[str, Any], count: int, choice: Any
) -> None:
    body = {"messages": HELLO, "tools": [chat_tool(COUNT)], "tool_choice": choice, "temperature": 0, **more}
    twice = call_of('{"n": 1}') + "\n" + call_of('{"n": 1}')
    answer = world.ask("/v1/chat/completions", body, twice).json()
    calls = [call["function"]["arguments"] for call in answer["choices"][0]["message"]["tool_calls"]]
    assert calls == ['{"n": 1}'] * count  # equal calls are two calls


def test_of_two_tools_several_may_be_called(world: World) -> None:
    tools = [chat_tool(COUNT), chat_tool(COUNT, "g")]
    body = {"messages": HELLO, "tools": tools, "tool_choice": "required", "temperature": 0}
    both = call_of('{"n": 1}') + "\n" + call_of('{"n": 2}', "g")
    answer = world.ask("/v1/chat/completions", body, both).json()
    assert [c["function"]["name"] for c in answer["choices"][0]["message"]["tool_calls"]] == ["f", "g"]


def test_nothing_stands_before_a_form(world: World) -> None:
    answer = world.ask("/v1/chat/completions", {"messages": HELLO, "response_format": form(COUNT)}, '\n\n {"n":1}')
    text = answer.json()["choices"][0]["message"]["content"]
    assert json.dumps(json.loads(text), separators=(",", ":")) == text
