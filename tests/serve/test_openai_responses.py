"""/v1/responses as OpenAI's own client sees it."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import openai
import pytest

from kamado.errors import NativeError
from kamado.serve.config import ServeConfig
from kamado.serve.models.contract import TextDelta

from . import fake
from .compat import compat
from .fake import Fail, FakeWorld
from .running import Running

RESPONSES = "POST /v1/responses"
TOOL = {"type": "function", "name": "weather", "parameters": {"type": "object", "properties": {}}, "strict": True}


@pytest.fixture(scope="module")
def world() -> FakeWorld:
    return FakeWorld(
        {
            "think": fake.thought("Let me see.", "Four."),
            "call": fake.calls(("weather", '{"city": "Oslo"}'), before="Well:"),
            "break": [TextDelta("Half"), Fail(NativeError("the executor fell over"))],
        }
    )


CONFIG = ServeConfig(port=0, max_stored_responses=5)


@compat(
    RESPONSES, "input", "model", "instructions", "temperature", "top_p", "max_output_tokens", "metadata", "user",
    "safety_identifier", "prompt_cache_key", "service_tier", "service_tier: auto, default, flex", "store",
)  # fmt: skip
def test_an_answer(client: openai.OpenAI, world: FakeWorld) -> None:
    response = client.responses.create(
        model="fake",
        input="good morning all",
        instructions="be brief",
        temperature=0.5,
        top_p=0.5,
        max_output_tokens=2,
        metadata={"a": "b"},
        user="u",
        safety_identifier="s",
        prompt_cache_key="k",
        service_tier="flex",
        store=False,
    )
    assert response.output_text == "GOOD MORNING"
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.metadata == {"a": "b"}
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens) == (5, 2)
    asked = world.model.requests[-1]
    assert [m.role for m in asked.messages] == ["system", "user"]
    assert (asked.options.get("temperature"), asked.options.get("top_p"), asked.owner) == (0.5, 0.5, "local/k")
    assert asked.options["background"]
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(response.id)


@compat(RESPONSES, "stream")
def test_the_lifecycle_of_events(client: openai.OpenAI) -> None:
    events = list(client.responses.create(model="fake", input="think", stream=True))
    assert [event.type for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.reasoning_text.delta",
        "response.reasoning_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    last: Any = events[-1]
    assert [item.type for item in last.response.output] == ["reasoning", "message"]
    assert last.response.output_text == "Four."
    assert last.response.usage.output_tokens_details.reasoning_tokens == 1


@compat(RESPONSES, "tools", "tool_choice", "parallel_tool_calls", "previous_response_id")
def test_calls_and_their_results_go_on_from_the_response(client: openai.OpenAI, world: FakeWorld) -> None:
    first = client.responses.create(
        model="fake",
        input="call",
        tools=[TOOL],  # type: ignore[list-item]
        tool_choice={"type": "function", "name": "weather"},
        parallel_tool_calls=False,
    )
    assert [item.type for item in first.output] == ["message", "function_call"]
    call: Any = first.output[1]
    assert json.loads(call.arguments) == {"city": "Oslo"}
    assert world.model.requests[-1].tool_choice.names == {"weather"}
    second = client.responses.create(
        model="fake",
        previous_response_id=first.id,
        input=[{"type": "function_call_output", "call_id": call.call_id, "output": "rain there"}],
        tools=[TOOL],  # type: ignore[list-item]
    )
    asked = world.model.requests[-1]
    assert [m.role for m in asked.messages] == ["user", "assistant", "tool"]
    assert asked.messages[1].tool_calls[0].id == call.call_id
    assert asked.messages[1].text == "Well:"
    assert second.previous_response_id == first.id
    assert second.output_text == "RAIN THERE"


def test_the_clients_own_assembly_of_a_stream(client: openai.OpenAI) -> None:
    with client.responses.stream(model="fake", input="call", tools=[TOOL]) as stream:  # type: ignore[list-item]
        deltas = [event.delta for event in stream if event.type == "response.function_call_arguments.delta"]
        final = stream.get_final_response()
    assert "".join(deltas) == '{"city": "Oslo"}'
    assert final.output[-1].type == "function_call"


@compat(RESPONSES, "reasoning", "include: reasoning.encrypted_content")
def test_reasoning_comes_back_sealed_or_open(client: openai.OpenAI, world: FakeWorld) -> None:
    response = client.responses.create(
        model="fake",
        input="think",
        reasoning={"effort": "high"},
        include=["reasoning.encrypted_content"],
    )
    assert world.model.requests[-1].think.effort == "high"
    sealed = response.output[0].to_dict()
    assert sealed["content"] == [{"type": "reasoning_text", "text": "Let me see."}]
    sealed["content"] = []
    client.responses.create(
        model="fake",
        input=[
            {"role": "user", "content": "think"},
            sealed,  # type: ignore[list-item]
            response.output[1].to_dict(),  # type: ignore[list-item]
            {"role": "user", "content": "and then"},
        ],
    )
    assert world.model.requests[-1].messages[1].reasoning == "Let me see."
    assert world.model.requests[-1].messages[1].text == "Four."


@compat(RESPONSES, "top_logprobs", "include: message.output_text.logprobs")
def test_log_probabilities(client: openai.OpenAI) -> None:
    response = client.responses.create(
        model="fake", input="a b", top_logprobs=2, include=["message.output_text.logprobs"]
    )
    part: Any = response.output[0].content[0]  # type: ignore[union-attr]
    assert [lp.token for lp in part.logprobs] == ["A", " B"]
    assert [len(lp.top_logprobs) for lp in part.logprobs] == [2, 2]


@compat(RESPONSES, "text.format")
def test_the_answers_format(client: openai.OpenAI, world: FakeWorld) -> None:
    client.responses.create(
        model="fake",
        input="a",
        text={"format": {"type": "json_schema", "name": "n", "schema": {"type": "integer"}, "strict": True}},
    )
    assert world.model.requests[-1].output.schema == {"type": "integer"}


@compat(RESPONSES, "truncation")
def test_truncation(client: openai.OpenAI) -> None:
    items: Any = [
        {"role": "user", "content": "o " * 70},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "last"},
    ]
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="fake", input=items)
    assert caught.value.code == "context_length_exceeded"
    response = client.responses.create(model="fake", input=items, truncation="auto")
    assert response.to_dict()["kamado"]["truncated"]["messages"] == 1  # type: ignore[index]


@compat("GET /v1/responses/{id}")
@compat("GET /v1/responses/{id}/input_items")
@compat("DELETE /v1/responses/{id}")
def test_stored_responses_are_read_listed_and_forgotten(client: openai.OpenAI) -> None:
    made = client.responses.create(model="fake", input="keep me")
    assert client.responses.retrieve(made.id).output_text == "KEEP ME"
    items = client.responses.input_items.list(made.id).data
    assert items[0].to_dict()["content"][0]["text"] == "keep me"  # type: ignore[index]
    client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)


def test_only_the_latest_are_kept(client: openai.OpenAI) -> None:
    made = [client.responses.create(model="fake", input=str(i)).id for i in range(6)]
    with pytest.raises(openai.NotFoundError) as caught:
        client.responses.create(model="fake", input="x", previous_response_id=made[0])
    assert caught.value.param == "previous_response_id"
    assert client.responses.retrieve(made[1]).id == made[1]


@compat("POST /v1/responses/input_tokens", "model", "input")
def test_tokens_of_an_input(client: openai.OpenAI) -> None:
    assert client.responses.input_tokens.count(model="fake", input="one two three").input_tokens == 3


def test_a_fault_in_the_middle_fails_the_response(client: openai.OpenAI) -> None:
    events = list(client.responses.create(model="fake", input="break", stream=True))
    last: Any = events[-1]
    assert last.type == "response.failed"
    assert last.response.error.code == "server_error"


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("background", True),
        ("access_programs", [{"type": "x"}]),
        ("context_management", [{"type": "compaction"}]),
        ("conversation", "conv_1"),
        ("image", {"size": "auto"}),
        ("moderation", {"model": "m"}),
        ("prompt", {"id": "p"}),
        ("include[0]", ["soul"]),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(client: openai.OpenAI, parameter: str, value: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="fake", input="a", extra_body={parameter.partition("[")[0]: value})
    assert caught.value.param == parameter


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tools": [{"type": "telepathy"}]}, "tools[0]"),
        ({"text": {"loudness": "low"}}, "text.loudness"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
        ({"input": [{"type": "computer_call"}]}, "input[0].type"),
        ({"input": [{"type": "function_call_output", "call_id": "x", "output": "y"}]}, "input[0].call_id"),
        ({"input": []}, "input"),
    ],
)
def test_what_is_wrong_is_named(client: openai.OpenAI, body: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="fake", input="a", extra_body=body)
    assert caught.value.param == param


@compat(RESPONSES, "stream_options", note="include_obfuscation: false; true is refused")
def test_padding_is_refused_not_left_out(server: Running, client: openai.OpenAI) -> None:
    options: Any = {"include_obfuscation": False}
    events = list(client.responses.create(model="fake", input="hello", stream=True, stream_options=options))
    assert events[-1].type == "response.completed"
    for path, body in (
        ("responses", {"input": "a"}),
        ("chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
    ):
        answer = httpx2.post(
            f"{server.url}/v1/{path}",
            json={"model": "fake", "stream": True, "stream_options": {"include_obfuscation": True}, **body},
        )
        assert answer.status_code == 400
        assert "include_obfuscation" in answer.json()["error"]["message"]
