"""What each protocol makes of an answer that ends inside a call, reasoning or nothing; on a scripted model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from kamado.errors import NativeError
from kamado.serve.models.contract import (
    Finish,
    Message,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
)

from .fake import Fail, FakeWorld
from .running import running

# With the event that ends a cut call, and without it: no protocol may rest on a model that says it.
CUT = [ToolCallStart(0, "call_0", "f"), ToolCallDelta(0, '{"a": 1, "text": "f'), Finish("length")]
ENDED = [*CUT[:-1], ToolCallEnd(0, is_cut=True), CUT[-1]]
SECOND = [
    *(ToolCallStart(0, "call_0", "f"), ToolCallDelta(0, "{}"), ToolCallEnd(0)),
    *(ToolCallStart(1, "call_1", "f"), Finish("length")),
]
SCRIPTS: dict[str, Any] = {
    "cut": CUT,
    "ended": ENDED,
    "second": SECOND,
    "thinking": [ReasoningDelta("Hm"), Finish("length")],
    "nothing": [Finish("length")],
    "breaks": [*CUT[:-1], Fail(NativeError("the executor fell over"))],
}
TOOL = {"name": "f", "description": "F.", "parameters": {"type": "object"}}


@pytest.fixture(scope="module")
def world() -> FakeWorld:
    return FakeWorld({name: list(script) for name, script in SCRIPTS.items()})


@pytest.fixture(scope="module")
def client(world: FakeWorld) -> Iterator[httpx.Client]:
    with running(world.library, world.loader) as up, httpx.Client(base_url=up.url, timeout=60) as found:
        yield found


def ask(client: httpx.Client, path: str, history: list[Any], **more: Any) -> Any:
    name = "input" if path.endswith("responses") else "messages"
    body: dict[str, Any] = {"model": "fake", name: history, **more}
    if path == "/v1/messages":
        body["max_tokens"] = 100
    if path.startswith("/api"):
        body["stream"] = False
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def said(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize("name", ["cut", "ended"])
def test_anthropic_shows_what_came_whole(client: httpx.Client, world: FakeWorld, name: str) -> None:
    answer = ask(client, "/v1/messages", said(name))
    assert answer["stop_reason"] == "max_tokens" or answer["stop_reason"] == "model_context_window_exceeded"
    assert answer["content"] == [{"type": "tool_use", "id": "call_0", "name": "f", "input": {"a": 1}}]
    back = {"role": "assistant", "content": answer["content"]}
    ask(client, "/v1/messages", [*said(name), back, *said("and now")])
    assert world.model.requests[-1].messages[1].tool_calls[0].arguments == '{"a": 1}'


@pytest.mark.parametrize("name", ["cut", "ended"])
def test_ollama_leaves_the_call_out_and_says_it(client: httpx.Client, name: str) -> None:
    for stream in (False, True):
        body = {"model": "fake", "messages": said(name), "stream": stream}
        lines = [json.loads(line) for line in client.post("/api/chat", json=body).text.splitlines()]
        assert not any("tool_calls" in line["message"] for line in lines)
        assert lines[-1]["done_reason"] == "length"
        assert lines[-1]["cut_call"] == {
            "id": "call_0",
            "function": {"name": "f", "arguments": '{"a": 1, "text": "f'},
        }
    answer = ask(client, "/api/chat", [*said(name), lines[0]["message"], *said("and now")])
    assert "cut_call" not in answer


def test_a_whole_call_before_it_stays(client: httpx.Client) -> None:
    answer = ask(client, "/api/chat", said("second"))
    assert [call["id"] for call in answer["message"]["tool_calls"]] == ["call_0"]
    assert answer["cut_call"] == {"id": "call_1", "function": {"name": "f", "arguments": ""}}
    blocks = ask(client, "/v1/messages", said("second"))["content"]
    assert [block["input"] for block in blocks] == [{}, {}]
    items = ask(client, "/v1/responses", said("second"))["output"]
    assert [item["status"] for item in items] == ["completed", "incomplete"]


@pytest.mark.parametrize("name", ["cut", "ended"])
def test_openai_shows_the_text_that_came(client: httpx.Client, world: FakeWorld, name: str) -> None:
    choice = ask(client, "/v1/chat/completions", said(name))["choices"][0]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["content"] is None
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"a": 1, "text": "f'
    ask(client, "/v1/chat/completions", [*said(name), choice["message"], *said("and now")])
    assert world.model.requests[-1].messages[1].tool_calls[0].arguments == '{"a": 1, "text": "f'

    response = ask(client, "/v1/responses", said(name))
    assert response["status"] == "incomplete"
    assert [(item["type"], item["status"]) for item in response["output"]] == [("function_call", "incomplete")]
    ask(client, "/v1/responses", [*said(name), *response["output"], *said("and now")])
    ask(client, "/v1/responses", said("and now"), previous_response_id=response["id"])
    assert world.model.requests[-1].messages[1].tool_calls[0].arguments == '{"a": 1, "text": "f'


def test_reasoning_that_was_cut_is_a_turn_of_its_own(client: httpx.Client, world: FakeWorld) -> None:
    """It went to the next answer in the history."""
    output = ask(client, "/v1/responses", said("thinking"))["output"]
    history = [*said("thinking"), *output, *said("again"), {"role": "assistant", "content": "Yes."}, *said("so")]
    ask(client, "/v1/responses", history)
    turns = [(m.role, m.reasoning, m.text) for m in world.model.requests[-1].messages]
    assert turns[1:4] == [("assistant", "Hm", ""), ("user", "", "again"), ("assistant", "", "Yes.")]
    ask(client, "/v1/responses", [*said("thinking"), *output])
    assert world.model.requests[-1].messages[-1] == Message("assistant", reasoning="Hm")


def test_an_empty_answer_comes_back(client: httpx.Client) -> None:
    for name in ("nothing", "thinking"):
        message = ask(client, "/v1/chat/completions", said(name))["choices"][0]["message"]
        ask(client, "/v1/chat/completions", [*said(name), message, *said("and now")])
        blocks = ask(client, "/v1/messages", said(name))["content"]
        back = {"role": "assistant", "content": blocks}
        ask(client, "/v1/messages", [*said(name), back, *said("and now")])
        ask(client, "/api/chat", [*said(name), ask(client, "/api/chat", said(name))["message"], *said("and now")])
    answer = client.post("/v1/messages", json={"model": "fake", "max_tokens": 9, "messages": [
        {"role": "user", "content": []}]})  # fmt: skip
    assert answer.status_code == 400


def test_a_response_that_breaks_in_a_call_closes_it(client: httpx.Client) -> None:
    body = {"model": "fake", "input": "breaks", "stream": True}
    lines = client.post("/v1/responses", json=body).text.splitlines()
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
    assert events[-1]["type"] == "response.failed"
    assert events[-2]["type"] == "response.output_item.done"
    item = events[-1]["response"]["output"][0]
    assert (item["status"], item["arguments"]) == ("incomplete", '{"a": 1, "text": "f')


def test_text_before_a_cut_call_stays(client: httpx.Client, world: FakeWorld) -> None:
    world.scripts["both"] = [TextDelta("Let me see."), *ENDED]
    choice = ask(client, "/v1/chat/completions", said("both"))["choices"][0]
    assert choice["message"]["content"] == "Let me see."
    assert ask(client, "/api/chat", said("both"))["message"]["content"] == "Let me see."


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [(None, "{}"), ("", "{}"), ({"a": 1}, '{"a": 1}'), ('{"a": ', '{"a": '), ("{}", "{}"), ("null", "null")],
)
def test_arguments_of_a_call_in_a_history(client: httpx.Client, world: FakeWorld, arguments: Any, wanted: str) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    back = {"role": "assistant", "content": None, "tool_calls": [call]}
    ask(client, "/v1/chat/completions", [*said("hello"), back, *said("and now")])
    assert world.model.requests[-1].messages[1].tool_calls[0].arguments == wanted
    if not isinstance(arguments, str):
        ask(client, "/api/chat", [*said("hello"), {**back, "content": ""}, *said("and now")])
        assert world.model.requests[-1].messages[1].tool_calls[0].arguments == wanted


def test_each_of_two_answers_is_finished(client: httpx.Client) -> None:
    body = {"model": "fake", "messages": said("ended"), "n": 2}
    whole = client.post("/v1/chat/completions", json=body).json()["choices"]
    assert [c["message"]["tool_calls"][0]["function"]["arguments"] for c in whole] == ['{"a": 1, "text": "f'] * 2
    assert [c["finish_reason"] for c in whole] == ["length"] * 2
    lines = client.post("/v1/chat/completions", json={**body, "stream": True}).text.splitlines()
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    arguments = ["", ""]
    for choice in (choice for event in events for choice in event["choices"]):
        for call in choice["delta"].get("tool_calls", ()):
            arguments[choice["index"]] += call["function"]["arguments"]
    assert arguments == ['{"a": 1, "text": "f'] * 2
