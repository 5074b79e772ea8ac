"""What stands for nothing: null, empty texts and lists, Ollama's zeroes. It is as good as not given, everywhere."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import httpx2
import pytest

from kamado.serve.http.parameters import HEADER

from .fake import FakeWorld
from .running import Running

ASK = [{"role": "user", "content": "hello there"}]
HTTP = httpx2.Client(timeout=30)


def asked(server: Running, world: FakeWorld, path: str, body: dict[str, Any]) -> Any:
    """What the model is asked by a body, without the id."""
    answer = HTTP.post(server.url + path, json={"model": "fake", **body})
    assert answer.status_code == 200, answer.text
    assert HEADER not in answer.headers
    return replace(world.model.requests[-1], request_id="")


# What ollama-python 0.1 to 0.4 and clients written in Go send whether it was set or not.
GENERATE_ZEROES = {
    "suffix": "", "template": "", "context": [], "system": "", "format": "", "images": [], "raw": False, "options": {},
    "think": "", "logprobs": False, "top_logprobs": 0, "width": 0, "height": 0, "steps": 0, "keep_alive": "",
}  # fmt: skip
CHAT_ZEROES = {
    "tools": [], "format": "", "options": {}, "keep_alive": "", "think": "", "logprobs": False, "top_logprobs": 0,
    "messages": [
        {
            "role": "user", "content": "hello there", "thinking": "", "images": [], "tool_calls": [], "tool_name": "",
            "tool_call_id": "",
        }
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("path", "plain", "zeroes"),
    [
        ("/api/generate", {"prompt": "hello there", "stream": False}, GENERATE_ZEROES),
        ("/api/generate", {"prompt": "hello there", "stream": False}, dict.fromkeys(GENERATE_ZEROES)),
        ("/api/generate", {"prompt": "hello there", "stream": False, "raw": True}, {"suffix": "", "system": ""}),
        ("/api/chat", {"messages": ASK, "stream": False}, CHAT_ZEROES),
        ("/api/embed", {"input": "a"}, {"options": {}, "dimensions": 0, "keep_alive": "", "truncate": None}),
        ("/api/embeddings", {"prompt": "a"}, {"options": {}, "keep_alive": ""}),
        (
            "/v1/chat/completions",
            {"messages": ASK},
            {
                "stop": "", "tools": [], "logit_bias": {}, "functions": [], "user": "", "metadata": {}, "stream": None,
                "modalities": [], "chat_template_kwargs": {}, "plugins": [], "transforms": [], "tool_choice": "",
            },
        ),
        (
            "/v1/completions",
            {"prompt": "hello there"},
            {"suffix": "", "stop": [], "logit_bias": {}, "user": "", "stream": None, "lora": [], "bad_words": []},
        ),
        (
            "/v1/responses",
            {"input": "hello there"},
            {
                "instructions": "", "tools": [], "include": [], "metadata": {}, "previous_response_id": "",
                "conversation": "", "prompt_cache_key": "", "tool_choice": "", "context_management": [],
                "text": {"format": None, "verbosity": None}, "reasoning": {"effort": None, "summary": None},
            },
        ),
        (
            "/v1/messages",
            {"messages": ASK, "max_tokens": 9},
            {
                "system": "", "tools": [], "stop_sequences": [], "mcp_servers": [], "container": "", "metadata": {},
                "stream": None, "output_config": {"effort": None, "format": None}, "tool_choice": None,
            },
        ),
    ],
)  # fmt: skip
def test_the_same_is_asked_with_and_without(
    server: Running, world: FakeWorld, path: str, plain: dict[str, Any], zeroes: dict[str, Any]
) -> None:
    assert asked(server, world, path, {**plain, **zeroes}) == asked(server, world, path, plain)


def test_zeroes_that_mean_something_still_do(server: Running, world: FakeWorld) -> None:
    assert "\n" in HTTP.post(f"{server.url}/api/generate", json={"model": "fake", "prompt": "a"}).text.strip()
    one = HTTP.post(f"{server.url}/api/generate", json={"model": "fake", "prompt": "a", "stream": False})
    assert "\n" not in one.text.strip()
    assert asked(server, world, "/api/chat", {"messages": ASK, "stream": False, "think": False}).think.enabled is False
    assert not asked(server, world, "/api/embed", {"input": "a", "truncate": False}).truncate
    options = {"temperature": 0, "seed": 0, "repeat_last_n": 0}
    found = asked(server, world, "/api/chat", {"messages": ASK, "stream": False, "options": options}).options
    assert found == {"temperature": 0, "seed": 0, "penalty_window": 0, "owner": "local"}
    HTTP.post(f"{server.url}/api/generate", json={"model": "fake", "prompt": "", "keep_alive": 0})
    assert HTTP.get(f"{server.url}/api/ps").json() == {"models": []}


def test_making_showing_and_fetching_with_zeroes(server: Running, world: FakeWorld) -> None:
    zeroes = {
        "system": "", "template": "", "license": [], "parameters": {}, "messages": [], "files": {}, "adapters": {},
        "quantize": "", "modelfile": "", "path": "", "renderer": "", "parser": "", "info": {}, "name": "",
    }  # fmt: skip
    made = HTTP.post(f"{server.url}/api/create", json={"model": "made", "from": "fake", "stream": False, **zeroes})
    assert made.json() == {"status": "success"}
    assert world.library.recipes["made"].template is None
    shown = HTTP.post(
        f"{server.url}/api/show", json={"model": "fake", "name": "", "system": "", "template": "", "options": {}}
    )
    assert shown.status_code == 200
    HTTP.request("DELETE", f"{server.url}/api/delete", json={"model": "made", "name": ""})


def test_a_modelfile_with_what_is_left_out(server: Running, world: FakeWorld) -> None:
    text = (
        "FROM fake\nPARAMETER repeat_last_n 64\nPARAMETER num_thread 8\nPARAMETER num_gpu 99\nPARAMETER num_ctx 32.0\n"
    )
    made = HTTP.post(f"{server.url}/api/create", json={"model": "made", "modelfile": text, "stream": False})
    assert made.json() == {"status": "success"}
    assert made.headers[HEADER] == "parameters.num_gpu, parameters.num_thread"
    assert world.library.recipes["made"].parameters == {"repeat_last_n": 64, "num_ctx": 32}
    HTTP.request("DELETE", f"{server.url}/api/delete", json={"model": "made"})


NULLS_IN_TOOLS = {"description": None, "strict": None}
SCHEMA = {"type": "object", "properties": {"a": {"default": None}}}


def test_nulls_in_anthropics_blocks(server: Running, world: FakeWorld) -> None:
    mark = {"type": "ephemeral", "ttl": None, "scope": None}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": None, "citations": None}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": None},
                {"type": "tool_use", "id": "t", "name": "f", "input": None, "cache_control": mark, "caller": None},
            ],
        },
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": "t", "content": None, "is_error": None}],
        },
    ]
    tools = [{"name": "f", "type": None, "input_schema": SCHEMA, **NULLS_IN_TOOLS, "defer_loading": None}]
    found = asked(server, world, "/v1/messages", {"messages": messages, "tools": tools, "max_tokens": 9})
    assert found.messages[1].tool_calls[0].arguments == "{}"
    assert found.messages[2].text == ""
    assert found.tools[0].parameters == SCHEMA, "what is data is left as it is"


def test_nulls_in_openais_messages(server: Running, world: FakeWorld) -> None:
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": None}], "name": None},
        {
            "role": "assistant", "content": None, "refusal": None, "audio": None, "function_call": None,
            "annotations": None, "reasoning_details": None, "unheard_of": None,
            "tool_calls": [
                {"id": "t", "type": None, "index": None, "function": {"name": "f", "arguments": None, "strict": None}}
            ],
        },
        {"role": "tool", "tool_call_id": "t", "content": "x", "name": None},
    ]  # fmt: skip
    tools = [{"type": "function", "function": {"name": "f", "parameters": SCHEMA, **NULLS_IN_TOOLS}}]
    found = asked(server, world, "/v1/chat/completions", {"messages": messages, "tools": tools})
    assert found.messages[1].tool_calls[0].arguments == "{}"
    assert found.tools[0].parameters == SCHEMA


def test_nulls_in_items_of_responses(server: Running, world: FakeWorld) -> None:
    items = [
        {"type": None, "id": None, "status": None, "role": "user", "content": "a"},
        {"type": "reasoning", "id": None, "summary": [], "content": None, "encrypted_content": None, "status": None},
        {"type": "function_call", "id": None, "call_id": "c", "name": "f", "arguments": "{}", "namespace": None},
        {"type": "function_call_output", "id": None, "call_id": "c", "output": "x", "status": None},
    ]
    tools = [{"type": "function", "name": "f", "parameters": SCHEMA, **NULLS_IN_TOOLS, "defer_loading": None}]
    found = asked(server, world, "/v1/responses", {"input": items, "tools": tools})
    assert [message.role for message in found.messages] == ["user", "assistant", "tool"]
    assert found.tools[0].parameters == SCHEMA
