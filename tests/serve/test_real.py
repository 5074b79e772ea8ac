"""The server over real models, driven by OpenAI's own client."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from kamado.library.store import Store
from kamado.serve.config import ServeConfig
from kamado.serve.models.library import StoreLibrary
from kamado.serve.models.loader import EngineLoader, EngineSettings

from .running import Running, running

pytestmark = pytest.mark.real

FILES = {"smollm2": "smollm2:135m", "minilm": "minilm:l6"}
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}, "days": {"type": "integer", "maximum": 7}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def server(find_real: Callable[[str], Path | None], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    found_files = {name: find_real(model) for name, model in FILES.items()}
    files = {name: path for name, path in found_files.items() if path is not None}
    if "smollm2" not in files:
        pytest.skip("no smollm2:135m: pull it, or set KAMADO_TEST_MODELS")
    library = StoreLibrary(Store(tmp_path_factory.mktemp("home")), files)
    loader = EngineLoader(library, EngineSettings(context=1024))
    with running(library, loader, ServeConfig(port=0)) as found:
        yield found


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{server.url}/v1", api_key="any", max_retries=0, timeout=120, _strict_response_validation=True
    ) as found:
        yield found


def ask(text: str) -> Any:
    return [{"role": "user", "content": text}]


def test_many_at_once_say_what_each_says_alone(client: openai.OpenAI) -> None:
    questions = [f"Name {n} animals" for n in range(2, 6)]

    def answer(question: str) -> str:
        stream = client.chat.completions.create(
            model="smollm2", messages=ask(question), max_tokens=12, temperature=0.7, seed=3, stream=True
        )
        return "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    alone = [answer(question) for question in questions]
    with ThreadPoolExecutor(len(questions)) as pool:
        assert list(pool.map(answer, questions)) == alone
    assert len(set(alone)) > 1


def test_the_second_turn_reuses_the_first(client: openai.OpenAI) -> None:
    first = client.chat.completions.create(model="smollm2", messages=ask("Tell me of Oslo"), max_tokens=8)
    turns = [*ask("Tell me of Oslo"), first.choices[0].message.to_dict(), *ask("And Rome?")]
    second = client.chat.completions.create(model="smollm2", messages=turns, max_tokens=4)
    assert first.usage is not None
    assert second.usage is not None
    assert second.usage.prompt_tokens_details is not None
    assert (second.usage.prompt_tokens_details.cached_tokens or 0) >= first.usage.prompt_tokens - 1


@pytest.mark.parametrize("stream", [False, True])
def test_calls_always_match_their_schema(client: openai.OpenAI, stream: bool) -> None:
    for seed in range(3):
        arguments: dict[str, Any] = {
            "model": "smollm2",
            "messages": ask("What will the weather be in Oslo for 3 days?"),
            "tools": [WEATHER],
            "tool_choice": {"type": "function", "function": {"name": "get_weather"}},
            "seed": seed,
            "temperature": 1.5,
        }
        if stream:
            with client.chat.completions.stream(**arguments) as events:
                done: Any = events.get_final_completion()
        else:
            done = client.chat.completions.create(**arguments)
        assert done.choices[0].finish_reason == "tool_calls"
        (call,) = done.choices[0].message.tool_calls
        found = json.loads(call.function.arguments)
        assert set(found) == {"city", "days"}
        assert len(found["city"]) <= 20
        assert found["days"] <= 7


def test_an_answer_has_the_form_that_was_asked_for(client: openai.OpenAI) -> None:
    sky = {"sky": {"enum": ["blue", "grey"]}}
    schema = {"type": "object", "properties": sky, "required": ["sky"], "additionalProperties": False}
    done = client.chat.completions.create(
        model="smollm2",
        messages=ask("The sky?"),
        response_format={"type": "json_schema", "json_schema": {"name": "s", "schema": schema}},
        temperature=0,
    )
    assert json.loads(done.choices[0].message.content or "")["sky"] in ("blue", "grey")


def test_prompt_log_probabilities_are_those_of_generating(server: Running) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
        made = client.completions.create(
            model="smollm2", prompt="The capital of France is", max_tokens=6, temperature=0, logprobs=1
        )
        assert made.choices[0].logprobs is not None
        text = "The capital of France is" + made.choices[0].text
        runs = [
            client.completions.create(model="smollm2", prompt=text, max_tokens=0, echo=True, logprobs=1)
            for _ in range(2)
        ]
        for scored in runs:
            logprobs = scored.choices[0].logprobs
            assert logprobs is not None
            assert scored.choices[0].text == text
            assert logprobs.token_logprobs is not None
            assert logprobs.token_logprobs[-6:] == made.choices[0].logprobs.token_logprobs
            assert logprobs.tokens is not None
            assert "".join(logprobs.tokens) == text


def test_responses_go_on(client: openai.OpenAI) -> None:
    first = client.responses.create(model="smollm2", input="Say hello", max_output_tokens=8)
    second = client.responses.create(model="smollm2", input="Again", previous_response_id=first.id, max_output_tokens=4)
    assert second.usage is not None
    assert second.usage.input_tokens_details.cached_tokens > 0


def test_a_long_prompt_is_refused_and_truncated_on_request(client: openai.OpenAI) -> None:
    turns = [*ask("word " * 700), {"role": "assistant", "content": "yes " * 300}, *ask("Say hello")]
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="smollm2", messages=turns)
    assert caught.value.code == "context_length_exceeded"
    assert "1024" in caught.value.message
    done = client.chat.completions.create(
        model="smollm2", messages=turns, max_tokens=4, extra_body={"truncation": "auto"}
    )
    assert done.to_dict()["kamado"]["truncated"]["messages"] >= 1  # type: ignore[index]


def test_embeddings_of_an_encoder(client: openai.OpenAI, real_model: Callable[[str], Path]) -> None:
    real_model(FILES["minilm"])
    texts = ["a cat sits on the mat", "a kitten rests on a rug", "stock markets fell today"]
    done = client.embeddings.create(model="minilm", input=texts, encoding_format="float")
    vectors = np.array([row.embedding for row in done.data])
    assert vectors.shape == (3, 384)
    assert vectors[0] @ vectors[1] > 0.5 > vectors[0] @ vectors[2]
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="minilm", messages=ask("hi"))


def test_metrics_show_the_engine(server: Running) -> None:
    import httpx2

    text = httpx2.get(f"{server.url}/metrics", timeout=30).text
    assert 'kamado_engine_tokens_total{model="smollm2",kind="decode"}' in text
    assert 'kamado_memory_bytes{model="smollm2",owner="kv"}' in text
