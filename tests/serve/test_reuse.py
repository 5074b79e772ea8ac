"""What is reused between requests over HTTP, and what never is: the engine itself behind the server, on a scripted
executor."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import httpx
import pytest
from engine.fakes import FakeExecutor
from engine.spelling import Speller

from kamado.serve.config import ServeConfig
from kamado.serve.http.keys import KeyRing

from .fake import FakeLibrary
from .running import Running, running
from .spelled import INFO, SpellerLoader

KEYS = {name: f"kmd-key-of-{name}-0123456789" for name in "ab"}


class Asker:
    """Sends requests; `say` is what the model answers next."""

    def __init__(self, server: Running, speller: Speller) -> None:
        self._client = httpx.Client(base_url=server.url, timeout=60)
        self._speller = speller

    @property
    def executor(self) -> FakeExecutor:
        """What computes."""
        return self._speller.executor

    def close(self) -> None:
        self._client.close()

    def post(self, path: str, body: Mapping[str, Any], key: str = "a") -> Any:
        answer = self._client.post(path, json=body, headers={"authorization": f"Bearer {KEYS[key]}"})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def say(self, text: str, messages: Sequence[Mapping[str, Any]], key: str = "a", **more: Any) -> None:
        """The next answer to `messages` of OpenAI's shape."""
        body = {"model": "m", "messages": messages, **more}
        counted = self.post("/v1/chat/completions", {**body, "max_tokens": 1, "temperature": 0}, key)
        self._speller.say(text, counted["usage"]["prompt_tokens"])


@pytest.fixture
def asker() -> Iterator[Asker]:
    keys = KeyRing()
    for name, key in KEYS.items():
        keys.add(key, name=name)
    loader = SpellerLoader()
    library = FakeLibrary({"m": INFO})
    with running(library, loader, ServeConfig(port=0), keys) as server:
        found = Asker(server, loader.speller)
        yield found
        found.close()


def cached(answer: Any) -> int:
    return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])


@pytest.mark.parametrize(
    ("path", "prompt"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "tell me of the sea " * 30}]}),
        ("/v1/completions", {"prompt": "once upon a time there was a sea " * 20}),
        ("/v1/completions", {"prompt": "once upon a time there was a sea " * 20, "echo": True, "logprobs": 1}),
    ],
)
def test_prefixes_are_never_shared_between_keys(asker: Asker, path: str, prompt: dict[str, Any]) -> None:
    body = {"model": "m", **prompt, "max_tokens": 1, "temperature": 0}
    answers = [asker.post(path, body, key) for key in "aba"]
    size = answers[0]["usage"]["prompt_tokens"]
    assert [cached(answer) for answer in answers] == [0, 0, size - 1]


def test_one_conversation_through_three_protocols(asker: Asker) -> None:
    """The ids that one protocol's answer had are found by the next one's request."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": "tell me of the sea"}]
    asker.say("the sea is deep and cold", messages)
    first = asker.post("/v1/chat/completions", {"model": "m", "messages": messages, "temperature": 0})
    total = first["usage"]["total_tokens"]
    messages += [first["choices"][0]["message"], {"role": "user", "content": "and the land"}]

    asker.say("the land is wide", messages)
    plain = [{"role": m["role"], "content": m["content"]} for m in messages]
    second = asker.post("/v1/messages", {"model": "m", "messages": plain, "temperature": 0, "max_tokens": 100})
    assert second["content"][0]["text"] == "the land is wide"
    usage = second["usage"]
    # All but the last id, which ends the turn and was never computed; the count above has computed the prompt.
    assert usage["cache_read_input_tokens"] >= total - 1
    total = usage["cache_read_input_tokens"] + usage["input_tokens"] + usage["output_tokens"]
    plain += [{"role": "assistant", "content": second["content"][0]["text"]}, {"role": "user", "content": "why"}]

    answer = asker.post("/api/chat", {"model": "m", "messages": plain, "stream": False, "options": {"temperature": 0}})
    third = asker.post("/v1/chat/completions", {"model": "m", "messages": plain, "max_tokens": 1})
    assert answer["prompt_eval_count"] == third["usage"]["prompt_tokens"] > total
    other = asker.post("/v1/chat/completions", {"model": "m", "messages": plain, "max_tokens": 1}, "b")
    # Another key's ids are the tokenizer's, which writes two letters as one.
    assert other["usage"]["prompt_tokens"] < third["usage"]["prompt_tokens"]
    assert cached(other) == 0


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "number"}},
                "required": ["city", "days"],
            },
        },
    }
]


def test_an_agents_calls_cost_no_prefill(asker: Asker) -> None:
    """Three calls in a row, each sent back as a client in another language writes JSON."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": "how is it in oslo"}]
    total = 0
    for step in range(3):
        more = {"tools": TOOLS, "tool_choice": "required"}
        call = (
            f'<tool_call>\n{{"name": "get_weather", "arguments": {{"city": "oslo", "days": {step}.0}}}}\n</tool_call>'
        )
        before = asker.post("/v1/chat/completions", {"model": "m", "messages": messages, "max_tokens": 1, **more})
        if step:
            assert cached(before) == total - 1
        asker.say(call, messages, **more)
        answer = asker.post("/v1/chat/completions", {"model": "m", "messages": messages, "temperature": 0, **more})
        message = answer["choices"][0]["message"]
        arguments = message["tool_calls"][0]["function"]["arguments"]
        assert json.loads(arguments) == {"city": "oslo", "days": float(step)}
        message["tool_calls"][0]["function"]["arguments"] = f'{{"days":{step},"city":"oslo"}}'
        total = answer["usage"]["total_tokens"]
        messages += [message, {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "sunny"}]


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_an_evaluations_prompts_compute_what_they_share_once(asker: Asker, max_tokens: int) -> None:
    """Few-shot prompts by the batch: the shots are computed once, each ending once, and an answer adds its own row."""
    shots = "question 1: what is the capital of norway? answer: oslo. " * 6
    prompts = [f"{shots}{i} + {i} = {1000000000000 + i}" for i in range(10, 18)]
    body = {"model": "m", "prompt": prompts, "echo": True, "logprobs": 1, "temperature": 0, "max_tokens": max_tokens}
    asker.post("/v1/completions", {**body, "prompt": "warm", "max_tokens": 0})  # loads the model
    executor = asker.executor
    before = executor.num_rows
    answer = asker.post("/v1/completions", body)
    size = answer["usage"]["prompt_tokens"] // len(prompts)
    num_ending = len("0 + 10 = 1000000000010")  # what follows the shots and the "1" that all endings begin with
    num_shared = size - num_ending - 1  # rows; the next one scores where they part
    computed = executor.num_rows - before
    assert computed == num_shared + len(prompts) * (num_ending + (max_tokens > 0))
    assert cached(answer) == len(prompts) * (size - 1) - (num_shared + len(prompts) * num_ending)
    for prompt, choice in zip(prompts, answer["choices"], strict=True):
        assert choice["text"].startswith(prompt)
        assert choice["logprobs"]["token_logprobs"][0] is None
        assert all(value < 0 for value in choice["logprobs"]["token_logprobs"][1:size])
    # The same again computes nothing for the scores.
    again = executor.num_rows
    answer = asker.post("/v1/completions", body)
    assert executor.num_rows - again == len(prompts) * (max_tokens > 0)
    assert cached(answer) == len(prompts) * (size - 1)
