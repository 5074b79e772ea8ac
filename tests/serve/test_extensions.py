"""Parameters that clients of other local servers send, and several names of one thing: each with its effect."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from kamado.options import check_options
from kamado.serve.models.contract import ChatRequest, OutputFormat, Think
from kamado.serve.protocols.openai.answer_forms import _choice

from . import fake
from .compat import compat
from .fake import FakeWorld
from .running import Running

CHAT, COMPLETIONS = "POST /v1/chat/completions", "POST /v1/completions"
RESPONSES, COUNT_INPUT = "POST /v1/responses", "POST /v1/responses/input_tokens"
MESSAGES, COUNT = "POST /v1/messages", "POST /v1/messages/count_tokens"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
AS_JSON = OutputFormat("json_schema", SCHEMA, is_strict=False)
ASK = [{"role": "user", "content": "hello there"}]
BASES: dict[str, dict[str, Any]] = {
    CHAT: {"model": "fake", "messages": ASK},
    COMPLETIONS: {"model": "fake", "prompt": "hello there"},
    RESPONSES: {"model": "fake", "input": "hello there"},
    MESSAGES: {"model": "fake", "messages": ASK, "max_tokens": 30},
    "POST /v1/embeddings": {"model": "fake", "input": "hello"},
    COUNT_INPUT: {"model": "fake", "input": "hello there"},
    COUNT: {"model": "fake", "messages": ASK},
}
Post = Callable[..., httpx2.Response]


@pytest.fixture(scope="module")
def world() -> FakeWorld:
    return FakeWorld({"think": fake.thought("hm", "yes")})


@pytest.fixture
def post(server: Running, http: httpx2.Client) -> Post:
    def post(endpoint: str, **more: Any) -> httpx2.Response:
        return http.post(server.url + endpoint.split(" ")[1], json={**BASES[endpoint], **more})

    return post


def option(name: str) -> Callable[[Any], Any]:
    return lambda request: request.options.get(name)


def said(name: str) -> Callable[[Any], Any]:
    """As `option`, but None only when it is said that there is none."""
    return lambda request: request.options.get(name, "not said")


def field(name: str) -> Callable[[Any], Any]:
    return lambda request: getattr(request, name)


TEXT, ALL = (CHAT, COMPLETIONS), (CHAT, COMPLETIONS, RESPONSES)
# endpoints, the row's label, what is sent, where it arrives, as what
EFFECTS: list[tuple[tuple[str, ...], str, dict[str, Any], Callable[[Any], Any], Any]] = [
    (ALL, "top_k", {"top_k": 7}, option("top_k"), 7),
    (ALL, "top_k: -1", {"top_k": -1}, option("top_k"), 0),
    (ALL, "min_p", {"min_p": 0.1}, option("min_p"), 0.1),
    (ALL, "repetition_penalty", {"repetition_penalty": 1.2}, option("repetition_penalty"), 1.2),
    (ALL, "repeat_penalty", {"repeat_penalty": 1.3}, option("repetition_penalty"), 1.3),
    (ALL, "repeat_last_n", {"repeat_last_n": 64}, option("penalty_window"), 64),
    (ALL, "stop_on_repeat", {"stop_on_repeat": 64}, option("stop_on_repeat"), 64),
    (ALL, "deadline_seconds", {"deadline_seconds": 99}, field("deadline_seconds"), 99),
    (TEXT, "background", {"background": True}, option("background"), True),
    ((RESPONSES,), "background", {"background": False}, option("background"), False),
    (TEXT, "cache_salt", {"cache_salt": "s"}, field("owner"), "local/s"),
    (TEXT, "n_predict", {"n_predict": 3}, option("max_tokens"), 3),
    (TEXT, "n_predict", {"n_predict": -1}, said("max_tokens"), None),
    (TEXT, "max_tokens: -1", {"max_tokens": -1}, said("max_tokens"), None),
    (TEXT, "max_tokens: 2.0", {"max_tokens": 2.0}, option("max_tokens"), 2),
    ((CHAT,), "max_completion_tokens: -1", {"max_completion_tokens": -1}, said("max_tokens"), None),
    ((RESPONSES,), "max_output_tokens: -1", {"max_output_tokens": -1}, said("max_tokens"), None),
    (TEXT, "stop: empty", {"stop": ""}, option("stop"), None),
    (TEXT, "stop: empty", {"stop": []}, option("stop"), None),
    (TEXT, "stop: empty", {"stop": ["", "END"]}, option("stop"), ("END",)),
    (TEXT, "json_schema", {"json_schema": SCHEMA}, field("output"), AS_JSON),
    (TEXT, "guided_json", {"guided_json": SCHEMA}, field("output"), AS_JSON),
    (TEXT, "guided_json", {"guided_json": json.dumps(SCHEMA)}, field("output"), AS_JSON),
    (TEXT, "guided_regex", {"guided_regex": "a+"}, field("output"), OutputFormat("regex", grammar="a+")),
    (
        TEXT, "guided_choice", {"guided_choice": ["a", "b.\n"]}, field("output"),
        OutputFormat("regex", grammar=r"a|b\.\n"),
    ),
    (TEXT, "structured_outputs", {"structured_outputs": {"json": SCHEMA}}, field("output"), AS_JSON),
    (TEXT, "structured_outputs", {"structured_outputs": {"json_object": True}}, field("output"), OutputFormat("json")),
    (
        TEXT, "structured_outputs", {"structured_outputs": {"choice": ["a"]}}, field("output"),
        OutputFormat("regex", grammar="a"),
    ),
    (
        TEXT, "structured_outputs", {"structured_outputs": {"regex": "a"}}, field("output"),
        OutputFormat("regex", grammar="a"),
    ),
    (TEXT, "structured_outputs", {"structured_outputs": True}, field("output"), OutputFormat()),
    (TEXT, "response_format", {"response_format": {"type": "json_object", "schema": SCHEMA}}, field("output"), AS_JSON),
    (TEXT, "response_format", {"response_format": {"type": "json_schema", "schema": SCHEMA}}, field("output"), AS_JSON),
    (TEXT, "top_p", {"top_p": 0}, option("top_p"), 5e-324),
    ((CHAT,), "truncation", {"truncation": "auto"}, field("truncation"), "drop_oldest"),
    ((CHAT,), "transforms", {"transforms": ["middle-out"]}, field("truncation"), "drop_middle"),
    ((CHAT,), "transforms", {"transforms": []}, field("truncation"), "refuse"),
    ((COMPLETIONS,), "truncation", {"truncation": "auto"}, field("truncation"), "keep_end"),
    ((CHAT,), "chat_template_kwargs", {"chat_template_kwargs": {"a": None}}, field("template_options"), {"a": None}),
    ((CHAT,), "thinking_budget", {"thinking_budget": 9}, field("think"), Think(max_tokens=9)),
    ((CHAT,), "thinking_budget", {"thinking_budget": 0}, field("think"), Think(enabled=False)),
    ((CHAT,), "reasoning_effort", {"reasoning_effort": "max"}, field("think"), Think(enabled=True, effort="high")),
    ((CHAT,), "enable_thinking", {"enable_thinking": False}, field("think"), Think(enabled=False)),
    (
        (CHAT,), "reasoning", {"reasoning": {"effort": "low", "max_tokens": 5}}, field("think"),
        Think(enabled=True, effort="low", max_tokens=5),
    ),
    ((CHAT,), "reasoning", {"reasoning": {"enabled": False}}, field("think"), Think(enabled=False)),
    (
        (CHAT,), "thinking", {"thinking": {"type": "enabled", "budget_tokens": 5}}, field("think"),
        Think(enabled=True, max_tokens=5),
    ),
    ((CHAT,), "thinking", {"thinking": {"type": "disabled"}}, field("think"), Think(enabled=False)),
    ((CHAT,), "add_generation_prompt", {"add_generation_prompt": True}, field("continue_last"), False),
    (
        (CHAT,), "add_generation_prompt",
        {
            "add_generation_prompt": False, "continue_final_message": True,
            "messages": [*ASK, {"role": "assistant", "content": "I"}],
        },
        field("continue_last"), True,
    ),
    (
        (CHAT,), "continue_final_message",
        {"continue_final_message": True, "messages": [*ASK, {"role": "assistant", "content": "I"}]},
        field("continue_last"), True,
    ),
    ((COMPLETIONS,), "parse_special", {}, field("special"), True),
    ((COMPLETIONS,), "parse_special", {"parse_special": False}, field("special"), False),
    ((COMPLETIONS,), "add_special_tokens", {"add_special_tokens": False}, field("add_bos"), False),
    ((COMPLETIONS,), "add_special_tokens", {"add_special_tokens": True}, field("add_bos"), None),
    ((COMPLETIONS,), "best_of", {"best_of": 2, "n": 2}, field("n"), 2),
    (
        (RESPONSES,), "text: format", {"text": {"format": {"type": "json_object"}}}, field("output"),
        OutputFormat("json"),
    ),
    ((RESPONSES,), "text", {"text": {"format": {"type": "text"}}}, field("output"), OutputFormat()),
    (
        (RESPONSES,), "include", {"include": ["message.output_text.logprobs"]}, option("logprobs"), 0,
    ),
    ((MESSAGES,), "output_config", {"output_config": {"effort": "low"}}, field("think"), Think(effort="low")),
    ((MESSAGES,), "output_config: effort", {"output_config": {"effort": "max"}}, field("think"), Think(effort="high")),
    (
        (MESSAGES,), "output_format", {"output_format": {"type": "json_schema", "schema": SCHEMA}}, field("output"),
        AS_JSON,
    ),
    ((MESSAGES,), "stop_sequences", {"stop_sequences": ["", "X"]}, option("stop"), ("X",)),
    ((MESSAGES,), "top_k", {"top_k": -1}, option("top_k"), 0),
    (("POST /v1/embeddings",), "truncate", {"truncate": True}, field("truncate"), True),
]  # fmt: skip


@pytest.mark.parametrize(
    ("endpoint", "label", "sent", "look", "meant"),
    [
        pytest.param(endpoint, label, sent, look, meant, id=f"{endpoint.split('/v1/')[1]}-{json.dumps(sent)[:70]}")
        for endpoints, label, sent, look, meant in EFFECTS
        for endpoint in endpoints
    ],
)
def test_it_arrives(
    post: Post, world: FakeWorld, records: Any, endpoint: str, label: str, sent: dict[str, Any],
    look: Callable[[Any], Any], meant: Any,
) -> None:  # fmt: skip
    response = post(endpoint, **sent)
    assert response.status_code == 200, response.text
    request = world.model.requests[-1]
    assert look(request) == meant
    options = getattr(request, "options", {})  # embeddings have none
    check_options(options)
    lifted = {"max_tokens"} if -1 in sent.values() else set()  # said to be without
    assert {name for name, value in options.items() if value is None} <= lifted
    records(endpoint, label)


@pytest.mark.parametrize("name", ["keep_alive", "ttl"])
@pytest.mark.parametrize("endpoint", ALL)
def test_how_long_a_model_stays(post: Post, server: Running, records: Any, endpoint: str, name: str) -> None:
    assert post(endpoint, **{name: 77}).status_code == 200
    slot = server.server.service.pool.find("fake")
    assert slot is not None
    assert slot.keep_alive == 77
    records(endpoint, name)


@compat("POST /v1/embeddings", "keep_alive")
def test_how_long_an_embedder_stays(post: Post, server: Running) -> None:
    post("POST /v1/embeddings", keep_alive="78s")
    slot = server.server.service.pool.find("fake")
    assert slot is not None
    assert slot.keep_alive == 78


@compat(CHAT, "include_reasoning", "reasoning_format", "reasoning")
@pytest.mark.parametrize(
    ("hidden", "shown"),
    [
        ({"include_reasoning": False}, {"include_reasoning": True}),
        ({"reasoning_format": "hidden"}, {"reasoning_format": "auto"}),
        ({"reasoning": {"exclude": True}}, {"reasoning": {"exclude": False}}),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_reasoning_can_be_hidden(post: Post, hidden: Any, shown: Any, stream: bool) -> None:
    ask = {"messages": [{"role": "user", "content": "think"}], "stream": stream}
    assert "hm" not in post(CHAT, **ask, **hidden).text
    assert "yes" in post(CHAT, **ask, **hidden).text
    assert "hm" in post(CHAT, **ask, **shown).text


@compat(CHAT, "usage")
def test_usage_at_the_end_of_a_stream(post: Post) -> None:
    assert '"usage":{' in post(CHAT, stream=True, usage={"include": True}).text
    assert '"usage":{' not in post(CHAT, stream=True, usage={"include": False}).text


@pytest.mark.parametrize(
    ("endpoint", "body", "named"),
    [
        (CHAT, {"guided_json": SCHEMA, "json_schema": SCHEMA}, "guided_json"),
        (CHAT, {"guided_json": "{"}, "guided_json"),
        (CHAT, {"guided_json": "[]"}, "guided_json"),
        (CHAT, {"max_tokens": 3, "n_predict": 4}, "max_tokens"),
        (CHAT, {"max_tokens": 2.5}, "max_tokens"),
        (CHAT, {"max_tokens": "2"}, "max_tokens"),
        (CHAT, {"max_tokens": -2}, "max_tokens"),
        (CHAT, {"top_k": -2}, "top_k"),
        (CHAT, {"add_generation_prompt": False}, "add_generation_prompt"),
        (CHAT, {"enable_thinking": False, "reasoning_effort": "high"}, "reasoning_effort"),
        (CHAT, {"response_format": {"type": "regex", "pattern": "a", "schema": {}}}, "response_format.schema"),
        (COMPLETIONS, {"max_tokens": -2}, "max_tokens"),
        (RESPONSES, {"max_output_tokens": 0}, "max_output_tokens"),
        (RESPONSES, {"max_output_tokens": "9"}, "max_output_tokens"),
        (MESSAGES, {"max_tokens": -1}, "max_tokens"),
        (MESSAGES, {"max_tokens": "9"}, "max_tokens"),
        (
            MESSAGES,
            {
                "output_format": {"type": "json_schema", "schema": SCHEMA},
                "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
            },
            "output_format",
        ),
    ],
)
def test_contradictions_and_wrong_values_are_named(post: Post, endpoint: str, body: Any, named: str) -> None:
    response = post(endpoint, **body)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert named in (error.get("param") or error["message"])


# --- counting ---------------------------------------------------------------------------------------------------------

WEATHER = {"type": "function", "name": "weather", "parameters": SCHEMA}
# What a count depends on, by how much; and what has no part in it.
COUNTED: list[tuple[str, dict[str, Any], int]] = [
    ("input", {"input": "one two three"}, 3),
    ("instructions", {"instructions": "be brief"}, 4),
    ("tools", {"tools": [WEATHER]}, 3),
    ("tool_choice", {"tools": [WEATHER], "tool_choice": "none"}, 3),
    ("parallel_tool_calls", {"tools": [WEATHER], "parallel_tool_calls": False}, 3),
    ("text: format", {"text": {"format": {"type": "json_object"}}}, 2),
    *(
        (label, body, 2)
        for label, body in {
            "text": {"text": {"format": {"type": "text"}}},
            "reasoning": {"reasoning": {"effort": "low"}},
            "truncation": {"truncation": "auto"},
            "background": {"background": False},
            "deadline_seconds": {"deadline_seconds": 9},
            "include": {"include": ["reasoning.encrypted_content"]},
            "include: reasoning.encrypted_content": {"include": ["reasoning.encrypted_content"]},
            "include: message.output_text.logprobs": {"include": ["message.output_text.logprobs"]},
            "keep_alive": {"keep_alive": 9},
            "ttl": {"ttl": 9},
            "max_output_tokens": {"max_output_tokens": 9},
            "max_output_tokens: -1": {"max_output_tokens": -1},
            "metadata": {"metadata": {"a": "b"}},
            "prompt_cache_key": {"prompt_cache_key": "k"},
            "safety_identifier": {"safety_identifier": "s"},
            "service_tier": {"service_tier": "auto"},
            "service_tier: auto, default, flex": {"service_tier": "flex"},
            "store": {"store": True},
            "stream": {"stream": False},
            "stream_options": {"stream_options": {"include_obfuscation": False}},
            "temperature": {"temperature": 0},
            "top_p": {"top_p": 0.5},
            "top_k": {"top_k": 3},
            "top_k: -1": {"top_k": -1},
            "min_p": {"min_p": 0.1},
            "repetition_penalty": {"repetition_penalty": 1.1},
            "repeat_penalty": {"repeat_penalty": 1.1},
            "repeat_last_n": {"repeat_last_n": 3},
            "stop_on_repeat": {"stop_on_repeat": 64},
            "top_logprobs": {"top_logprobs": 1},
            "user": {"user": "u"},
        }.items()
    ),
]


@pytest.mark.parametrize(("label", "body", "count"), COUNTED)
def test_tokens_of_an_input(post: Post, records: Any, label: str, body: dict[str, Any], count: int) -> None:
    response = post(COUNT_INPUT, **body)
    assert response.status_code == 200, response.text
    assert response.json()["input_tokens"] == count
    records(COUNT_INPUT, label)


@compat(COUNT_INPUT, "previous_response_id")
def test_tokens_of_what_came_before_count_too(post: Post) -> None:
    made = post(RESPONSES).json()["id"]
    assert post(COUNT_INPUT, previous_response_id=made).json()["input_tokens"] == 6


@compat(COUNT, "output_format", "output_config: effort")
def test_counting_takes_what_answering_takes(post: Post) -> None:
    body = {"output_format": {"type": "json_schema", "schema": SCHEMA}, "output_config": {"effort": "xhigh"}}
    assert post(COUNT, **body).json() == {"input_tokens": 2}


@compat(MESSAGES, "context_management: clear_thinking")
@compat(COUNT, "context_management: clear_thinking")
@pytest.mark.parametrize(
    ("keep", "left"),
    [
        ({}, ["", "", "three"]),
        ({"keep": {"type": "thinking_turns", "value": 2}}, ["", "two", "three"]),
        ({"keep": {"type": "thinking_turns", "value": 0}}, ["", "", ""]),
        ({"keep": {"type": "thinking_turns", "value": 9}}, ["one", "two", "three"]),
    ],
)
def test_earlier_thinking_is_cleared(post: Post, world: FakeWorld, keep: dict[str, Any], left: list[str]) -> None:
    said: list[Any] = []
    for thought in ("one", "two", "three"):
        block = [{"type": "thinking", "thinking": thought, "signature": ""}, {"type": "text", "text": "x"}]
        said += [{"role": "user", "content": "a"}, {"role": "assistant", "content": block}]
    body = {
        "messages": [*said, {"role": "user", "content": "b"}],
        "context_management": {"edits": [{"type": "clear_thinking_20251015", **keep}]},
    }
    response = post(MESSAGES, **body)
    assert response.status_code == 200, response.text
    assert [m.reasoning for m in world.model.requests[-1].messages if m.role == "assistant"] == left
    assert post(COUNT, **body).status_code == 200


def test_choices_are_the_only_answers() -> None:
    llguidance = pytest.importorskip("llguidance")
    choices = ["red apple", "blue.sky\n\tx", "a-b/c~d#e&f 'g' \"h\" \\ é 日本 $1^{2}(3)[4]|*+?", "0"]
    grammar = llguidance.LLMatcher.grammar_from_regex(_choice(choices).pattern)
    tokenizer = llguidance.LLTokenizer("byte")
    for choice in choices:
        matcher = llguidance.LLMatcher(tokenizer, grammar)
        assert matcher.consume_tokens(tokenizer.tokenize_str(choice))
        assert matcher.is_accepting()
    for wrong in ("red", "red apples", "blue-sky\n\tx", "1"):
        matcher = llguidance.LLMatcher(tokenizer, grammar)
        assert not matcher.consume_tokens(tokenizer.tokenize_str(wrong)) or not matcher.is_accepting()


def test_the_requests_are_chats_where_they_should_be(world: FakeWorld, post: Post) -> None:
    post(CHAT)
    assert isinstance(world.model.requests[-1], ChatRequest)
