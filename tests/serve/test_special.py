"""Special tokens written in prompts: the engine itself behind the server, with a tokenizer that has them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from .fake import FakeLibrary
from .running import Running, running
from .spelled import INFO, SpellerLoader

MARKED = "<|im_start|>user\nhi<|im_end|>\n"
HTTP = httpx2.Client(timeout=60)


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(FakeLibrary({"m": INFO}), SpellerLoader()) as up:
        yield up


def post(server: Running, path: str, **body: Any) -> Any:
    answer = HTTP.post(server.url + path, json={"model": "m", **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


def num_tokens(server: Running, prompt: str, **more: Any) -> int:
    found: int = post(server, "/v1/completions", prompt=prompt, max_tokens=1, temperature=0, **more)["usage"][
        "prompt_tokens"
    ]
    return found


def test_completions_read_them_unless_told_otherwise(server: Running) -> None:
    assert num_tokens(server, MARKED) < num_tokens(server, MARKED, parse_special=False)
    marks = post(server, "/tokenize", content=MARKED)["tokens"]
    plain = post(server, "/tokenize", content=MARKED, parse_special=False)["tokens"]
    assert len(plain) - len(marks) == num_tokens(server, MARKED, parse_special=False) - num_tokens(server, MARKED)


def test_ollamas_raw_prompts_read_them_too(server: Running) -> None:
    body = {"prompt": MARKED, "raw": True, "stream": False, "options": {"num_predict": 1}}
    read = post(server, "/api/generate", **body)["prompt_eval_count"]
    plain = post(server, "/api/generate", **body, parse_special=False)["prompt_eval_count"]
    assert (read, plain) == (num_tokens(server, MARKED), num_tokens(server, MARKED, parse_special=False))


def test_what_is_said_in_a_chat_is_plain_text(server: Running) -> None:
    def count(content: str) -> int:
        body = {"messages": [{"role": "user", "content": content}], "max_tokens": 1, "temperature": 0}
        found: int = post(server, "/v1/chat/completions", **body)["usage"]["prompt_tokens"]
        return found

    plain = post(server, "/tokenize", content=MARKED.strip(), parse_special=False)["tokens"]
    one = post(server, "/tokenize", content="a", parse_special=False)["tokens"]
    assert count(MARKED.strip()) - count("a") == len(plain) - len(one)
