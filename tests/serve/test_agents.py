"""Requests as coding agents send them: Codex's namespaces, hosted tools that are not here, Claude Code's fields."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest

from kamado.serve.http.parameters import HEADER

from . import fake
from .compat import compat
from .fake import FakeWorld
from .running import Running

RESPONSES = "POST /v1/responses"
SCHEMA = {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]}
READ = {"type": "function", "name": "read", "description": "Reads a file.", "parameters": SCHEMA, "strict": False}
SHELL = {"type": "function", "name": "shell", "parameters": SCHEMA, "strict": False}
SPACE = {"type": "namespace", "name": "mcp__files", "description": "Files.", "tools": [READ]}
HTTP = httpx2.Client(timeout=30)


@pytest.fixture(scope="module")
def world() -> FakeWorld:
    return FakeWorld({"go": fake.calls(("mcp__files__read", '{"path": "a.txt"}'))})


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as found:
        yield found


def codex(**more: Any) -> dict[str, Any]:
    """A request of the shape that Codex CLI 0.171.0 sends."""
    return {
        "model": "fake",
        "instructions": "You are a coding agent.",
        "input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "go"}]}],
        "tools": [SHELL, SPACE, {"type": "web_search", "external_web_access": False}],
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "reasoning": None,
        "store": False,
        "stream": True,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "0199-aa",
        "client_metadata": {"x-codex-installation-id": "i"},
        "text": {"verbosity": "low"},
        **more,
    }


def events_of(response: httpx2.Response) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: ")]


@compat(RESPONSES, "tools: namespace")
@compat("POST /v1/responses/input_tokens", "tools: namespace")
def test_functions_of_a_namespace_go_out_under_its_name_and_come_back_with_both(
    server: Running, world: FakeWorld, client: openai.OpenAI
) -> None:
    response = HTTP.post(f"{server.url}/v1/responses", json=codex())
    assert response.status_code == 200, response.text
    assert response.headers[HEADER].split(", ") == ["tools: web_search", "client_metadata", "text.verbosity"]
    asked = world.model.requests[-1]
    assert [tool.name for tool in asked.tools] == ["shell", "mcp__files__read"]
    assert asked.tools[1].description == "Files.\nReads a file."
    events = events_of(response)
    (done,) = (e["item"] for e in events if e["type"] == "response.output_item.done")
    assert (done["type"], done["namespace"], done["name"]) == ("function_call", "mcp__files", "read")
    (arguments,) = (e for e in events if e["type"] == "response.function_call_arguments.done")
    assert (arguments["name"], json.loads(arguments["arguments"])) == ("read", {"path": "a.txt"})
    assert events[-1]["response"]["tools"][1]["tools"][0]["name"] == "read"
    # Codex sends its own history back.
    output = {"type": "function_call_output", "call_id": done["call_id"], "output": "text"}
    again = HTTP.post(f"{server.url}/v1/responses", json=codex(input=[*codex()["input"], done, output]))
    assert again.status_code == 200, again.text
    assert world.model.requests[-1].messages[-2].tool_calls[0].name == "mcp__files__read"
    assert client.responses.input_tokens.count(model="fake", input="a", tools=[SPACE]).input_tokens == 2  # type: ignore[list-item]


def test_namespaces_that_end_in_two_underscores_are_joined_without_more(server: Running, world: FakeWorld) -> None:
    space = {**SPACE, "name": "mcp__files__"}
    HTTP.post(f"{server.url}/v1/responses", json=codex(tools=[space]))
    assert [tool.name for tool in world.model.requests[-1].tools] == ["mcp__files__read"]


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ({"type": "function", "namespace": "mcp__files", "name": "read"}, {"mcp__files__read"}),
        (
            {
                "type": "allowed_tools",
                "mode": "required",
                "tools": [{"type": "function", "namespace": "mcp__files", "name": "read"}, {"type": "web_search"}],
            },
            {"mcp__files__read"},
        ),
    ],
)
def test_a_function_of_a_namespace_can_be_chosen(
    server: Running, world: FakeWorld, choice: dict[str, Any], names: set[str]
) -> None:
    response = HTTP.post(f"{server.url}/v1/responses", json=codex(tool_choice=choice))
    assert response.status_code == 200, response.text
    assert set(world.model.requests[-1].tool_choice.names or ()) == names


def test_two_functions_of_one_name_are_refused_whatever_they_stand_in(server: Running) -> None:
    twin = {**SHELL, "name": "mcp__files__read"}
    response = HTTP.post(f"{server.url}/v1/responses", json=codex(tools=[SPACE, twin]))
    assert response.status_code == 400
    assert "mcp__files__read" in response.json()["error"]["message"]


@pytest.mark.parametrize("choice", [{"type": "web_search"}, "required"])
def test_a_hosted_tool_that_must_be_used_is_refused(server: Running, choice: Any) -> None:
    response = HTTP.post(f"{server.url}/v1/responses", json=codex(tools=[{"type": "web_search"}], tool_choice=choice))
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "tool_choice"


CLAUDE = {
    "model": "fake",
    "max_tokens": 32000,
    "messages": [
        {
            "role": "user",
            "content": [{"type": "text", "text": "hello", "cache_control": {"type": "ephemeral", "scope": "global"}}],
        }
    ],
    "system": [
        {"type": "text", "text": "You help.", "cache_control": {"type": "ephemeral", "ttl": "1h", "scope": "global"}}
    ],
    "tools": [
        {"name": "Read", "description": "Reads.", "input_schema": SCHEMA, "eager_input_streaming": True},
        {"name": "Later", "input_schema": SCHEMA, "defer_loading": True},
        {"type": "web_search_20250305", "name": "web_search", "max_uses": 8},
    ],
    "metadata": {"user_id": "u"},
    "thinking": {"type": "adaptive"},
    "output_config": {"effort": "xhigh"},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    "stream": True,
}


def test_claude_codes_request_is_taken(server: Running, world: FakeWorld) -> None:
    headers = {
        "anthropic-version": "2023-06-01",
        "anthropic-beta": "claude-code-20250219,context-management-2025-06-27,prompt-caching-scope-2026-01-05",
        "x-api-key": "any",
    }
    for path in ("/v1/messages?beta=true", "/v1/messages/count_tokens?beta=true"):
        body = {k: v for k, v in CLAUDE.items() if "count" not in path or k not in ("max_tokens", "metadata", "stream")}
        response = HTTP.post(server.url + path, json=body, headers=headers)
        assert response.status_code == 200, response.text
        said = set(response.headers[HEADER].split(", "))
        assert said == {
            "context_management",
            "system.cache_control.scope",
            "messages.cache_control.scope",
            "tools: web_search_20250305",
            "tools.defer_loading",
        }
    asked = world.model.requests[-1]
    assert [tool.name for tool in asked.tools] == ["Read", "Later"]
    assert asked.think.effort == "high"
