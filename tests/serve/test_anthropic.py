"""Anthropic's Messages API with its official client, over a real socket and a scripted model."""

from __future__ import annotations

import base64
import inspect
import json
from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from kamado.serve.http.keys import KeyRing
from kamado.serve.models.contract import (
    Finish,
    ImagePart,
    Message,
    OutputFormat,
    ReasoningDelta,
    TextDelta,
    TextPart,
    Think,
    Tool,
    ToolCall,
    ToolChoice,
)

from .compat import compat
from .fake import Fail, FakeWorld, Wait, calls, text, thought
from .running import Running, running, wait_until

anthropic = pytest.importorskip("anthropic")

MESSAGES = "POST /v1/messages"
COUNT = "POST /v1/messages/count_tokens"
PIXEL = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(20)).decode()
WEATHER = {
    "name": "weather",
    "description": "Weather of a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


@pytest.fixture(scope="module")
def client(server: Running) -> Any:
    return anthropic.Anthropic(
        base_url=server.url, api_key="none needed", max_retries=0, _strict_response_validation=True
    )


@pytest.fixture
def ask(client: Any) -> Callable[..., Any]:
    def ask(content: Any = "hello there", **more: Any) -> Any:
        body: dict[str, Any] = {"model": "fake", "max_tokens": 100, **more}
        body.setdefault("messages", [{"role": "user", "content": content}])
        extra = {name: body.pop(name) for name in list(body) if name not in CREATE_PARAMETERS}
        return client.messages.create(**body, extra_body=extra or None)

    return ask


CREATE_PARAMETERS = set(inspect.signature(anthropic.resources.Messages.create).parameters)


def last(world: FakeWorld) -> Any:
    return world.model.requests[-1]


@compat(MESSAGES, "model", "messages", "max_tokens")
def test_a_whole_answer(ask: Callable[..., Any], world: FakeWorld) -> None:
    message = ask("hello there")
    assert [block.text for block in message.content] == ["HELLO THERE"]
    assert (message.stop_reason, message.role, message.type) == ("end_turn", "assistant", "message")
    assert (message.usage.input_tokens, message.usage.output_tokens) == (2, 2)
    assert last(world).options["max_tokens"] == 100
    assert message.model == "fake"


@compat(MESSAGES, "stream")
def test_a_stream_gives_what_the_whole_answer_has(client: Any, ask: Callable[..., Any], world: FakeWorld) -> None:
    world.scripts["mixed"] = [
        ReasoningDelta("let me "),
        ReasoningDelta("think"),
        TextDelta("so "),
        TextDelta("then"),
        *calls(("weather", '{"city": "Kyoto"}'), ("weather", '{"city": "Nara"}')),
    ]
    whole = ask("mixed", tools=[WEATHER])
    kinds = []
    body = {"model": "fake", "max_tokens": 100, "messages": [{"role": "user", "content": "mixed"}], "tools": [WEATHER]}
    with client.messages.stream(**body) as stream:
        for event in stream:
            kinds.append(event.type)
        streamed = stream.get_final_message()
    assert [block.type for block in whole.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert [block.to_dict() for block in streamed.content] == [block.to_dict() for block in whole.content]
    assert streamed.stop_reason == whole.stop_reason == "tool_use"
    assert streamed.usage.output_tokens == whole.usage.output_tokens
    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 4


def test_the_order_of_events(server: Running, world: FakeWorld) -> None:
    """Every block is opened, filled and closed before the next, and numbered from 0."""
    world.scripts["two blocks"] = thought("hm", "yes")
    body = {"model": "fake", "max_tokens": 9, "stream": True, "messages": [{"role": "user", "content": "two blocks"}]}
    response = httpx2.post(f"{server.url}/v1/messages", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["request-id"].startswith("req_")
    events = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: ")]
    names = [line[7:] for line in response.text.splitlines() if line.startswith("event: ")]
    assert names == [event["type"] for event in events]
    assert [(e["type"], e.get("index"), e.get("delta", {}).get("type")) for e in events] == [
        ("message_start", None, None),
        ("content_block_start", 0, None),
        ("content_block_delta", 0, "thinking_delta"),
        ("content_block_delta", 0, "signature_delta"),
        ("content_block_stop", 0, None),
        ("content_block_start", 1, None),
        ("content_block_delta", 1, "text_delta"),
        ("content_block_stop", 1, None),
        ("message_delta", None, None),
        ("message_stop", None, None),
    ]


@compat(MESSAGES, "system")
def test_system_prompts(ask: Callable[..., Any], world: FakeWorld) -> None:
    ask(system="be brief")
    assert last(world).messages[0] == Message("system", (TextPart("be brief"),))
    ask(system=[{"type": "text", "text": "one"}, {"type": "text", "text": "two"}])
    assert last(world).messages[0].text == "one\ntwo"


@compat(MESSAGES, "messages: roles user, assistant and system; turns of one role in a row")
def test_turns(ask: Callable[..., Any], world: FakeWorld) -> None:
    said = [("user", "a"), ("user", "b"), ("assistant", "c"), ("user", "d")]
    ask(messages=[{"role": role, "content": content} for role, content in said])
    assert [(m.role, m.text) for m in last(world).messages] == [("user", "a\nb"), ("assistant", "c"), ("user", "d")]
    assert not last(world).continue_last


@compat(MESSAGES, "messages: a last assistant turn is continued")
def test_prefill(ask: Callable[..., Any], world: FakeWorld) -> None:
    ask(messages=[{"role": "user", "content": "a"}, {"role": "assistant", "content": "The answer is ("}])
    assert last(world).continue_last
    assert last(world).messages[-1].text == "The answer is ("


@compat(MESSAGES, "messages: text and image blocks")
def test_images(ask: Callable[..., Any], world: FakeWorld) -> None:
    source = {"type": "base64", "media_type": "image/png", "data": PIXEL}
    ask([{"type": "text", "text": "what is"}, {"type": "image", "source": source}])
    parts = last(world).messages[0].parts
    assert parts == (TextPart("what is"), ImagePart(base64.b64decode(PIXEL), "image/png"))


@compat(MESSAGES, "messages: plain-text documents")
def test_documents(ask: Callable[..., Any], world: FakeWorld) -> None:
    source = {"type": "text", "media_type": "text/plain", "data": "the text"}
    ask([{"type": "document", "source": source, "title": "Title"}, {"type": "text", "text": "sum up"}])
    assert last(world).messages[0].text == "Title\nthe text\nsum up"


@compat(MESSAGES, "messages: tool_use, tool_result and thinking blocks")
def test_a_turn_with_tools_goes_back(ask: Callable[..., Any], world: FakeWorld) -> None:
    history = [
        {"role": "user", "content": "weather?"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "I should look", "signature": "x"},
                {"type": "text", "text": "Looking."},
                {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Kyoto"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "rain"}]},
                {"type": "text", "text": "and now?"},
            ],
        },
    ]
    ask(messages=history, tools=[WEATHER])
    _, assistant, result, user = last(world).messages
    assert assistant.reasoning == "I should look"
    assert assistant.text == "Looking."
    assert assistant.tool_calls == (ToolCall("t1", "weather", '{"city": "Kyoto"}'),)
    assert result == Message("tool", (TextPart("rain"),), tool_call_id="t1", name="weather")
    assert (user.role, user.text) == ("user", "and now?")
    history[-1]["content"][0]["is_error"] = True  # type: ignore[index]
    ask(messages=history, tools=[WEATHER])
    assert last(world).messages[2].text == "Error: rain"


@compat(MESSAGES, "tools", "tools: strict", "tools: input_examples")
def test_tools(ask: Callable[..., Any], world: FakeWorld) -> None:
    world.scripts["call"] = calls(("weather", '{"city": "Kyoto"}'))
    message = ask(
        "call", tools=[{**WEATHER, "input_examples": [{"city": "Nara"}]}, {**WEATHER, "name": "w2", "strict": True}]
    )
    (block,) = message.content
    assert (block.type, block.name, block.input) == ("tool_use", "weather", {"city": "Kyoto"})
    assert message.stop_reason == "tool_use"
    first, second = last(world).tools
    assert first == Tool(
        "weather", 'Weather of a city.\nExample of its input: {"city": "Nara"}', WEATHER["input_schema"], strict=False
    )
    assert second.strict


@compat(MESSAGES, "tool_choice", "tool_choice: disable_parallel_tool_use")
@pytest.mark.parametrize(
    ("choice", "meant"),
    [
        ({"type": "auto"}, ToolChoice("auto")),
        ({"type": "any"}, ToolChoice("required", parallel=False)),  # of one tool: one call
        ({"type": "any", "disable_parallel_tool_use": False}, ToolChoice("required")),
        ({"type": "none"}, ToolChoice("none")),
        ({"type": "tool", "name": "weather"}, ToolChoice("required", frozenset({"weather"}), parallel=False)),
        ({"type": "auto", "disable_parallel_tool_use": True}, ToolChoice("auto", parallel=False)),
    ],
)
def test_tool_choice(ask: Callable[..., Any], world: FakeWorld, choice: Any, meant: ToolChoice) -> None:
    ask(tools=[WEATHER], tool_choice=choice)
    assert last(world).tool_choice == meant


@compat(MESSAGES, "thinking", "thinking: budget_tokens")
@pytest.mark.parametrize(
    ("thinking", "meant"),
    [
        ({"type": "enabled", "budget_tokens": 50}, Think(enabled=True, max_tokens=50)),
        ({"type": "disabled"}, Think(enabled=False)),
        ({"type": "adaptive"}, Think()),
        (None, Think()),
    ],
)
def test_thinking(ask: Callable[..., Any], world: FakeWorld, thinking: Any, meant: Think) -> None:
    world.scripts["think"] = thought("hm", "yes")
    message = ask("think", **({} if thinking is None else {"thinking": thinking}))
    assert last(world).think == meant
    assert [(b.type, getattr(b, "thinking", None) or b.text) for b in message.content] == [
        ("thinking", "hm"),
        ("text", "yes"),
    ]
    assert message.usage.output_tokens_details.thinking_tokens == 1


@compat(MESSAGES, "thinking: display omitted")
def test_thinking_can_be_left_out(ask: Callable[..., Any], world: FakeWorld) -> None:
    world.scripts["think"] = thought("hm", "yes")
    message = ask("think", thinking={"type": "adaptive", "display": "omitted"})
    assert [getattr(b, "thinking", None) for b in message.content] == ["", None]


@compat(MESSAGES, "stop_sequences")
def test_stop_sequences(ask: Callable[..., Any], world: FakeWorld) -> None:
    message = ask("one two three", stop_sequences=["TWO", "NEVER"])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "TWO")
    assert message.content[0].text == "ONE "
    assert last(world).options["stop"] == ("TWO", "NEVER")


@compat(MESSAGES, "temperature", "top_k", "top_p")
def test_sampling(ask: Callable[..., Any], world: FakeWorld) -> None:
    ask(temperature=0.25, top_k=7, top_p=0.5)
    assert last(world).options == {
        "temperature": 0.25, "top_k": 7, "top_p": 0.5, "max_tokens": 100, "owner": "local",
    }  # fmt: skip


def test_max_tokens_and_the_context_end_an_answer_for_reasons_of_their_own(
    ask: Callable[..., Any], world: FakeWorld
) -> None:
    assert ask("one two three", max_tokens=2).stop_reason == "max_tokens"
    world.scripts["full"] = [TextDelta("so far"), Finish("length")]
    assert ask("full", max_tokens=50).stop_reason == "model_context_window_exceeded"


@compat(MESSAGES, "max_tokens: 0", note="the prompt is computed and cached, nothing is answered")
def test_max_tokens_0_only_fills_the_cache(ask: Callable[..., Any], world: FakeWorld) -> None:
    message = ask("one two", max_tokens=0)
    assert message.content == []
    assert (message.stop_reason, message.usage.output_tokens) == ("max_tokens", 0)
    assert last(world).options["max_tokens"] == 1


@compat(MESSAGES, "output_config: format")
def test_a_schema_for_the_answer(ask: Callable[..., Any], world: FakeWorld) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    ask(output_config={"format": {"type": "json_schema", "schema": schema}})
    assert last(world).output == OutputFormat("json_schema", schema, is_strict=False)


@compat(MESSAGES, "output_config: effort low, medium, high")
def test_effort(ask: Callable[..., Any], world: FakeWorld) -> None:
    ask(output_config={"effort": "low"})
    assert last(world).think.effort == "low"


@compat(MESSAGES, "cache_control", note="every beginning is cached, marked or not")
def test_cache_marks_are_taken_and_the_cache_is_reported(ask: Callable[..., Any], world: FakeWorld) -> None:
    mark = {"type": "ephemeral", "ttl": "1h"}
    world.model.cached_tokens = 1
    try:
        message = ask([{"type": "text", "text": "hello there", "cache_control": mark}], cache_control=mark)
    finally:
        world.model.cached_tokens = 0
    assert (message.usage.input_tokens, message.usage.cache_read_input_tokens) == (1, 1)


@compat(MESSAGES, "metadata", note="user_id goes to the log")
@compat(MESSAGES, "service_tier", note="there is one tier, standard")
def test_metadata_and_tier(ask: Callable[..., Any], server: Running, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="kamado.serve"):
        message = ask(metadata={"user_id": "u-17"}, service_tier="auto")
        wait_until(lambda: "u-17" in [getattr(record, "user", None) for record in caplog.records])
    assert message.usage.service_tier == "standard"


@compat(MESSAGES, "speed", note="standard; fast is left out")
@compat(COUNT, "speed", note="standard; fast is left out")
def test_speed(ask: Callable[..., Any], client: Any) -> None:
    assert ask(speed="standard").content
    body = {"speed": "standard"}
    assert client.messages.count_tokens(model="fake", messages=[{"role": "user", "content": "a"}], extra_body=body)


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("user_profile_id", {"user_profile_id": "u"}, "user profiles"),
    ("workspace_id", {"workspace_id": "w"}, "workspaces"),
    (
        "messages: images by URL or file id",
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "http://x/"}}]}]},
        "fetches nothing",
    ),
    (
        "messages: PDF documents",
        {
            "messages": [
                {"role": "user", "content": [{"type": "document", "source": {"type": "base64", "data": ""}}]},
            ]
        },
        "plain text",
    ),
    (
        "messages: citations",
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "document",
                            "source": {"type": "text", "media_type": "text/plain", "data": "x"},
                            "citations": {"enabled": True},
                        }
                    ],
                }
            ]
        },
        "no citations",
    ),
    (
        "messages: search results, server tool blocks, redacted thinking",
        {"messages": [{"role": "user", "content": [{"type": "search_result"}]}]},
        "cannot be read here",
    ),
    ("a parameter that is not documented", {"extra": {"n": 3}}, "unknown parameter 'n'"),
]


@pytest.mark.parametrize(("name", "given", "reason"), REFUSED, ids=[name for name, _, _ in REFUSED])
def test_what_cannot_be_honoured_is_refused_with_the_reason(
    ask: Callable[..., Any], records: Callable[..., None], name: str, given: dict[str, Any], reason: str
) -> None:
    extra = given.pop("extra", {}) if "extra" in given else {}
    with pytest.raises(anthropic.BadRequestError) as caught:
        ask(**given, **extra)
    error = caught.value.body["error"]
    assert error["type"] == "invalid_request_error"
    assert reason in error["message"]
    records(MESSAGES, name, status="refused", note=error["message"])


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"messages": []}, "messages"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"tool_choice": {"type": "any"}}, "no tools that can be called"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "nothing"}}, "no tool 'nothing'"),
        ({"tools": [WEATHER, WEATHER]}, "two tools"),
        ({"thinking": {"type": "enabled"}}, "budget_tokens is missing"),
        ({"thinking": {"type": "enabled", "budget_tokens": 100}}, "must be smaller"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "x"}]}]}, "has the id 'x'"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]}, "messages[0].content[0].text"),
    ],
)
def test_malformed_requests_name_the_place(ask: Callable[..., Any], given: dict[str, Any], reason: str) -> None:
    with pytest.raises(anthropic.BadRequestError) as caught:
        ask(**given)
    assert reason in caught.value.body["error"]["message"]


@compat(MESSAGES, "errors: invalid_request_error with both numbers for a prompt that is too long")
def test_a_prompt_that_does_not_fit(ask: Callable[..., Any]) -> None:
    with pytest.raises(anthropic.BadRequestError) as caught:
        ask("w" + " w" * 69)
    assert caught.value.body["error"]["message"] == "prompt is too long: 70 tokens > 64 maximum"


@compat(MESSAGES, "errors: not_found_error, api_error, overloaded_error, also inside streams")
def test_errors_have_anthropics_shape(ask: Callable[..., Any], client: Any, world: FakeWorld) -> None:
    with pytest.raises(anthropic.NotFoundError) as missing:
        ask(model="missing")
    assert missing.value.body["error"]["type"] == "not_found_error"
    world.scripts["breaks"] = [TextDelta("half"), Fail(ValueError("a secret of our inside"))]
    with pytest.raises(anthropic.InternalServerError) as broken:
        ask("breaks")
    assert broken.value.body["error"]["type"] == "api_error"
    assert "secret" not in json.dumps(broken.value.body)
    body = {"model": "fake", "max_tokens": 9, "messages": [{"role": "user", "content": "breaks"}]}
    with pytest.raises(anthropic.APIStatusError, match="api_error"), client.messages.stream(**body) as stream:
        for _ in stream:
            pass


@compat(MESSAGES, "x-api-key")
def test_the_key_header() -> None:
    world = FakeWorld()  # its own: a second server would load a second model
    keys = KeyRing()
    keys.add("kmd-a-key-for-this-test", scopes=["infer"])
    with running(world.library, world.loader, keys=keys) as up:
        body: dict[str, Any] = {"model": "fake", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
        good = anthropic.Anthropic(base_url=up.url, api_key="kmd-a-key-for-this-test", max_retries=0)
        assert good.messages.create(**body).content
        for bad in (anthropic.Anthropic(base_url=up.url, api_key="wrong", max_retries=0),):
            with pytest.raises(anthropic.AuthenticationError) as caught:
                bad.messages.create(**body)
            assert caught.value.body["error"]["type"] == "authentication_error"
        raw = httpx2.post(f"{up.url}/v1/messages", json=body, headers={"x-api-key": "kmd-a-key-for-this-test"})
        assert raw.status_code == 200


@compat(COUNT, "model", "messages", "system", "tools", "tool_choice", "thinking", "output_config", "cache_control")
def test_counting_tokens(client: Any) -> None:
    count = client.messages.count_tokens(
        model="fake",
        messages=[{"role": "user", "content": "one two three"}],
        system="be brief",
        tools=[WEATHER],
        tool_choice={"type": "auto"},
        thinking={"type": "disabled"},
        output_config={"effort": "low"},
        cache_control={"type": "ephemeral"},
    )
    assert count.input_tokens == 6


@pytest.mark.parametrize("name", ["user_profile_id", "workspace_id"])
def test_counting_refuses_headers(client: Any, records: Callable[..., None], name: str) -> None:
    with pytest.raises(anthropic.BadRequestError) as caught:
        client.messages.count_tokens(model="fake", messages=[{"role": "user", "content": "a"}], **{name: "x"})
    message = caught.value.body["error"]["message"]
    assert "keys are this server's own" in message
    records(COUNT, name, status="refused", note=message)


def test_a_client_that_leaves_ends_the_work(ask: Callable[..., Any], server: Running, world: FakeWorld) -> None:
    ask()
    world.scripts["long"] = [TextDelta("a"), Wait(30.0), *text("b")]
    before = world.model.num_closed_early
    body = {"model": "fake", "max_tokens": 9, "stream": True, "messages": [{"role": "user", "content": "long"}]}
    with httpx2.stream("POST", f"{server.url}/v1/messages", json=body) as response:
        next(line for line in response.iter_lines() if "text_delta" in line)
    wait_until(lambda: world.model.num_closed_early == before + 1)
    assert world.model.num_live == 0


# --- models -----------------------------------------------------------------------------------------------------------


@compat(
    "GET /v1/models", "limit", "after_id", "before_id", "beta", note="Anthropic's clients: an anthropic-version header"
)
@compat("GET /v1/models", "anthropic-version", note="the answer has Anthropic's shape")
@compat("GET /v1/models/{model}", "anthropic-version", note="the answer has Anthropic's shape")
def test_models_in_anthropics_shape_page_by_page(client: Any, server: Running) -> None:
    found = client.models.list(limit=1)
    assert (found.data[0].id, found.has_more, found.data[0].max_input_tokens) == ("fake", True, 64)
    assert [model.id for model in found] == ["fake", "other"]  # the client asks for the next page
    assert [model.id for model in client.models.list(before_id="other").data] == ["fake"]
    assert client.models.retrieve("other").display_name == "other"
    assert [model.id for model in client.beta.models.list()] == ["fake", "other"]
    assert client.beta.models.retrieve("other").display_name == "other"
    for wrong in ({"limit": 0}, {"after_id": "nobody"}, {"after_id": "fake", "before_id": "other"}):
        with pytest.raises(anthropic.BadRequestError, match=next(iter(wrong)) if len(wrong) == 1 else "exclude"):
            client.models.list(**wrong)
    with pytest.raises(anthropic.NotFoundError) as caught:
        client.models.retrieve("nothing")
    assert caught.value.body["error"]["type"] == "not_found_error"
    plain = httpx2.get(f"{server.url}/v1/models", params={"limit": 1})
    assert (plain.status_code, plain.json()["error"]["param"]) == (400, "limit")
