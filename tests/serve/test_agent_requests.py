"""First requests of Claude Code, Codex CLI, opencode and aider, through every layer: template, grammars, parser.

`agents/*.json` are skeletons of what claude-code 2.1.197, codex 0.171.0, opencode 1.18.33 and aider 0.86.2 sent here:
the same fields, blocks, tools and schema keywords, with other words. test_agents_npm.py runs the programs themselves.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from engine.chat_families import FAMILIES

from .test_cut_answers import PROTOCOLS, Post, WritingModel, encode, server_events, serving

AGENTS = Path(__file__).parent / "agents"
CONTEXT = 65536  # of bytes, which are the tokens here


def skeleton(name: str) -> dict[str, Any]:
    return {**json.loads((AGENTS / f"{name}.json").read_text(encoding="utf-8")), "model": "m", "temperature": 0}


def call(model: WritingModel, name: str, arguments: dict[str, Any]) -> list[int]:
    from kamado.engine.turns.tool_format.syntax import Call

    syntax = model.engine.chat_format.syntax
    assert syntax is not None
    return encode(model.family, syntax.render([Call(name, arguments)]))


async def post(to: Post, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    answer = await to(path, body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    return server_events(answer)


def converse(family: str, talk: Callable[[WritingModel, Post], Coroutine[Any, Any, None]]) -> None:
    """Runs `talk` with a model of the family and a way to ask it."""

    async def run() -> None:
        model = WritingModel(FAMILIES[family], context=CONTEXT)
        async with serving(model) as to:
            await talk(model, to)
        await model.close()

    asyncio.run(run())


@pytest.mark.parametrize("family", ["qwen", "generic", "glm", "seed"])
def test_claude_code_is_answered_with_a_call_and_goes_on(family: str) -> None:
    async def talk(model: WritingModel, to: Post) -> None:
        body = skeleton("claude_code")
        assert len(body["tools"]) == 24
        arguments = {"file_path": "/calc.py"}
        model.answer = call(model, "Read", arguments)
        events = await post(to, "/v1/messages?beta=true", body)
        blocks = [e["content_block"] for e in events if e["type"] == "content_block_start"]
        said = "".join(e["delta"].get("partial_json", "") for e in events if e["type"] == "content_block_delta")
        assert [(block["type"], block["name"]) for block in blocks] == [("tool_use", "Read")]
        assert json.loads(said) == arguments
        result = {"type": "tool_result", "tool_use_id": blocks[0]["id"], "content": "1\tdef add(a, b):"}
        body["messages"] += [
            {"role": "assistant", "content": [{**blocks[0], "input": arguments}]},
            {"role": "user", "content": [{**result, "cache_control": {"type": "ephemeral"}}]},
        ]
        model.answer = list(b"Done.")
        events = await post(to, "/v1/messages?beta=true", body)
        assert "".join(e["delta"].get("text", "") for e in events if e["type"] == "content_block_delta") == "Done."

    converse(family, talk)


@pytest.mark.parametrize("family", ["qwen", "generic"])
def test_codex_is_answered_with_a_call_and_goes_on(family: str) -> None:
    async def talk(model: WritingModel, to: Post) -> None:
        body = skeleton("codex")
        arguments = {"cmd": "cat calc.py"}
        model.answer = call(model, "exec_command", arguments)
        events = await post(to, "/v1/responses", body)
        assert events[-1]["type"] == "response.completed"
        (item,) = events[-1]["response"]["output"]
        assert (item["type"], item["name"], json.loads(item["arguments"])) == (
            "function_call", "exec_command", arguments,
        )  # fmt: skip
        result = {"type": "function_call_output", "call_id": item["call_id"], "output": "def add(a, b):"}
        body["input"] += [item, result]
        model.answer = list(b"Done.")
        events = await post(to, "/v1/responses", body)
        assert events[-1]["response"]["output"][0]["content"][0]["text"] == "Done."

    converse(family, talk)


@pytest.mark.parametrize("family", ["qwen", "generic"])
def test_opencode_is_answered_with_a_call_and_goes_on(family: str) -> None:
    async def talk(model: WritingModel, to: Post) -> None:
        body = skeleton("opencode")
        arguments = {"filePath": "/calc.py"}
        model.answer = call(model, "read", arguments)
        said = PROTOCOLS["chat"].streamed(await to("/v1/chat/completions", body))
        assert [(name, json.loads(text)) for name, text in said.calls] == [("read", arguments)]
        body["messages"] += [*said.back, *PROTOCOLS["chat"].results(said)]
        model.answer = list(b"Done.")
        assert PROTOCOLS["chat"].streamed(await to("/v1/chat/completions", body)).text == "Done."

    converse(family, talk)


def test_aider_is_answered_with_text() -> None:
    async def talk(model: WritingModel, to: Post) -> None:
        model.answer = list(b"calc.py\n```\ndef add(a, b):\n    return a + b\n```\n")
        events = await post(to, "/v1/chat/completions", skeleton("aider"))
        said = "".join(event["choices"][0]["delta"].get("content", "") for event in events)
        assert said.encode() == bytes(model.answer)

    converse("qwen", talk)
