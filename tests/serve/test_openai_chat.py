"""The chat endpoint as OpenAI's own client sees it, its answers validated strictly."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import openai
import pytest

from . import fake
from .compat import compat
from .fake import FakeWorld
from .running import Running

CHAT = "POST /v1/chat/completions"
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@pytest.fixture(scope="module")
def world() -> FakeWorld:
    return FakeWorld(
        {
            "think": fake.thought("Let me see.", "Four."),
            "call": fake.calls(("weather", '{"city": "Oslo"}')),
            "two calls": fake.calls(("weather", '{"city": "Oslo"}'), ("weather", '{"city": "Rome"}'), before="Well:"),
        }
    )


def ask(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


@compat(
    CHAT, "messages", "model", "temperature", "top_p", "seed", "presence_penalty", "frequency_penalty", "logit_bias"
)
def test_an_answer_and_how_it_was_asked_for(client: openai.OpenAI, world: FakeWorld) -> None:
    answer = client.chat.completions.create(
        model="fake",
        messages=ask("good morning"),
        temperature=0.5,
        top_p=0.9,
        seed=-3,
        presence_penalty=0.25,
        frequency_penalty=-0.5,
        logit_bias={"17": -100},
    )
    assert answer.choices[0].message.content == "GOOD MORNING"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (2, 2, 4)
    asked = world.model.requests[-1].options
    assert asked == {
        "temperature": 0.5, "top_p": 0.9, "seed": (1 << 64) - 3,
        "presence_penalty": 0.25, "frequency_penalty": -0.5, "logit_bias": {17: -100},
        "background": False, "owner": "local",
    }  # fmt: skip


@compat(CHAT, "stream", "stream_options")
def test_a_stream_says_the_same_in_pieces(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="fake", messages=ask("a b c"), stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "A B C"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == ["stop"]
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 3
    assert len({chunk.id for chunk in chunks}) == 1


@compat(CHAT, "n")
@pytest.mark.parametrize("stream", [False, True])
def test_several_answers(client: openai.OpenAI, stream: bool) -> None:
    if not stream:
        answer = client.chat.completions.create(model="fake", messages=ask("x y"), n=3)
        assert [c.message.content for c in answer.choices] == ["X Y"] * 3
        assert [c.index for c in answer.choices] == [0, 1, 2]
        return
    texts = ["", "", ""]
    for chunk in client.chat.completions.create(model="fake", messages=ask("x y"), n=3, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == ["X Y"] * 3


@compat(CHAT, "max_tokens", "max_completion_tokens")
def test_a_limit_ends_the_answer_and_says_so(client: openai.OpenAI) -> None:
    for limit in ({"max_tokens": 1}, {"max_completion_tokens": 1}):
        answer = client.chat.completions.create(model="fake", messages=ask("a b c"), **limit)  # type: ignore[call-overload]
        assert answer.choices[0].message.content == "A"
        assert answer.choices[0].finish_reason == "length"


@compat(CHAT, "stop")
def test_stop_sequences(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="fake", messages=ask("abc def"), stop=["E"])
    assert answer.choices[0].message.content == "ABC D"
    assert answer.choices[0].finish_reason == "stop"


@compat(CHAT, "logprobs", "top_logprobs")
def test_log_probabilities(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="fake", messages=ask("né b"), logprobs=True, top_logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert [t.token for t in logprobs.content] == ["NÉ", " B"]
    assert bytes(logprobs.content[0].bytes or []) == "NÉ".encode()
    assert [len(t.top_logprobs) for t in logprobs.content] == [2, 2]


@compat(CHAT, "reasoning_effort")
def test_reasoning_is_apart_under_both_names(client: openai.OpenAI, world: FakeWorld) -> None:
    answer = client.chat.completions.create(model="fake", messages=ask("think"), reasoning_effort="low")
    message = answer.choices[0].message.to_dict()
    assert message["content"] == "Four."
    assert message["reasoning_content"] == message["reasoning"] == "Let me see."
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None
    assert answer.usage.completion_tokens_details.reasoning_tokens == 1
    assert world.model.requests[-1].think.effort == "low"
    back = [*ask("think"), message, {"role": "user", "content": "and then"}]
    client.chat.completions.create(model="fake", messages=back)  # type: ignore[arg-type]
    assert world.model.requests[-1].messages[1].reasoning == "Let me see."


@compat(CHAT, "tools")
def test_calls_whole_and_answered(client: openai.OpenAI, world: FakeWorld) -> None:
    answer = client.chat.completions.create(model="fake", messages=ask("two calls"), tools=[WEATHER])  # type: ignore[list-item]
    message = answer.choices[0].message
    assert answer.choices[0].finish_reason == "tool_calls"
    assert message.content == "Well:"
    assert message.tool_calls is not None
    assert [json.loads(c.function.arguments)["city"] for c in message.tool_calls] == ["Oslo", "Rome"]  # type: ignore[union-attr]
    results = [{"role": "tool", "tool_call_id": call.id, "content": "rain"} for call in message.tool_calls]
    client.chat.completions.create(
        model="fake",
        messages=[*ask("two calls"), message.to_dict(), *results],  # type: ignore[list-item]
        tools=[WEATHER],  # type: ignore[list-item]
    )
    asked = world.model.requests[-1]
    assert [m.role for m in asked.messages] == ["user", "assistant", "tool", "tool"]
    assert asked.messages[1].tool_calls[0].name == "weather"
    assert asked.tools[0].parameters["required"] == ["city"]


def test_calls_streamed_by_the_clients_own_assembly(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="fake", messages=ask("call"), tools=[WEATHER]) as stream:  # type: ignore[list-item]
        deltas = [event.arguments_delta for event in stream if event.type == "tool_calls.function.arguments.delta"]
        final = stream.get_final_completion()
    assert len(deltas) > 2
    assert "".join(deltas) == '{"city": "Oslo"}'
    assert final.choices[0].message.tool_calls is not None
    assert final.choices[0].message.tool_calls[0].function.name == "weather"


@compat(CHAT, "tool_choice", "parallel_tool_calls")
@pytest.mark.parametrize(
    ("choice", "mode", "names"),
    [
        ("none", "none", set()),
        ("required", "required", set()),
        ({"type": "function", "function": {"name": "weather"}}, "required", {"weather"}),
        (
            {
                "type": "allowed_tools",
                "allowed_tools": {
                    "mode": "auto",
                    "tools": [{"type": "function", "function": {"name": "weather"}}],
                },
            },
            "auto",
            {"weather"},
        ),
    ],
)
def test_tool_choice(client: openai.OpenAI, world: FakeWorld, choice: Any, mode: str, names: set[str]) -> None:
    client.chat.completions.create(
        model="fake",
        messages=ask("call"),
        tools=[WEATHER],  # type: ignore[list-item]
        tool_choice=choice,
        parallel_tool_calls=False,
    )
    asked = world.model.requests[-1].tool_choice
    assert (asked.mode, set(asked.names), asked.parallel) == (mode, names, False)


@compat(CHAT, "response_format")
@pytest.mark.parametrize(
    ("form", "kind"),
    [
        ({"type": "text"}, "text"),
        ({"type": "json_object"}, "json"),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "integer"}}}, "json_schema"),
        ({"type": "regex", "pattern": "a+"}, "regex"),
        ({"type": "lark", "grammar": 'start: "a"'}, "lark"),
    ],
)
def test_response_format(client: openai.OpenAI, world: FakeWorld, form: Any, kind: str) -> None:
    client.chat.completions.create(model="fake", messages=ask("hello"), response_format=form)
    assert world.model.requests[-1].output.kind == kind


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("audio", {"voice": "alloy", "format": "wav"}),
        ("functions", [{"name": "f"}]),
        ("function_call", "auto"),
        ("moderation", {"model": "m"}),
        ("modalities", ["audio"]),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(client: openai.OpenAI, parameter: str, value: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="fake", messages=ask("a"), extra_body={parameter: value})
    assert caught.value.param == parameter
    assert parameter in str(caught.value.message)
    assert caught.value.code == "unsupported_parameter"


@compat(CHAT, "user", "safety_identifier", "prompt_cache_key", "service_tier: auto, default, flex")
def test_labels_and_lanes(client: openai.OpenAI, world: FakeWorld) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="fake",
        messages=ask("a"),
        user="u",
        safety_identifier="s",
        prompt_cache_key="k",
        service_tier="flex",
        store=False,
    )
    assert raw.headers["x-kamado-lane"] == "background"
    assert world.model.requests[-1].options["background"]
    assert world.model.requests[-1].owner == "local/k"


def test_what_a_chat_page_asks_for_itself_waits_behind_people(client: openai.OpenAI, world: FakeWorld) -> None:
    client.chat.completions.create(model="fake", messages=ask("### Task:\nGenerate a title for the chat."))
    assert world.model.requests[-1].options["background"]
    client.chat.completions.create(model="fake", messages=ask("What is the task?"))
    assert not world.model.requests[-1].options["background"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"temprature": 1}, "temprature"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 17}, "n"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": "x", "colour": 1}]}, "messages[0].colour"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "a"}]}, "messages[0].tool_call_id"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [WEATHER, WEATHER]}, "tools"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image_url", "image_url": {"url": "http://x/a.png"}}],
                    }
                ]
            },
            "messages[0].content[0].image_url",
        ),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
    ],
)
def test_what_is_wrong_is_named(client: openai.OpenAI, body: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="fake", messages=ask("a"), extra_body=body)
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"


def test_a_prompt_that_does_not_fit_is_refused_with_both_numbers(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="fake", messages=ask("w " * 70))
    assert caught.value.code == "context_length_exceeded"
    assert "71" in caught.value.message
    assert "64" in caught.value.message
    body: Any = caught.value.body
    assert (body["num_prompt_tokens"], body["context_tokens"]) == (71, 64)


def test_truncation_only_when_asked_for_and_reported(client: openai.OpenAI) -> None:
    messages = [*ask("o " * 60), {"role": "assistant", "content": "yes"}, *ask("last words")]
    answer = client.chat.completions.create(model="fake", messages=messages, extra_body={"truncation": "auto"})  # type: ignore[arg-type]
    account = answer.to_dict()["kamado"]
    assert account["truncated"] == {"messages": 1, "tokens": 61, "rule": "drop_oldest"}  # type: ignore[index]
    assert answer.choices[0].message.content == "LAST WORDS"
    chunks = list(
        client.chat.completions.create(
            model="fake",
            messages=messages,  # type: ignore[arg-type]
            extra_body={"truncation": "auto"},
            stream=True,
        )
    )
    assert chunks[-1].to_dict()["kamado"]["truncated"]["messages"] == 1  # type: ignore[index]


def test_an_unknown_model(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="../../etc/passwd", messages=ask("a"))
    assert caught.value.code == "model_not_found"


def test_a_model_without_a_template(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="no chat template"):
        client.chat.completions.create(model="other", messages=ask("a"))


def test_every_answer_has_a_request_id(server: Running) -> None:
    given = httpx2.get(f"{server.url}/v1/models", headers={"x-request-id": "mine-1"})
    assert given.headers["x-request-id"] == "mine-1"
    made = httpx2.get(f"{server.url}/v1/models", headers={"x-request-id": "not <allowed>"})
    assert made.headers["x-request-id"].startswith("req_")
