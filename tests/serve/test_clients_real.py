"""The official Ollama and Anthropic clients against a real model: SmolLM2-135M, loaded by the server itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kamado.library.store import Store
from kamado.serve.config import ServeConfig
from kamado.serve.models.library import StoreLibrary
from kamado.serve.models.loader import EngineLoader, EngineSettings

from .running import Running, running

pytestmark = [pytest.mark.real, pytest.mark.slow]

NAME = "smollm2:135m"
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
GREEDY = {"temperature": 0, "num_predict": 24}


@pytest.fixture(scope="module")
def server(real_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    library = StoreLibrary(Store(tmp_path_factory.mktemp("store")), {NAME: real_model(NAME)})
    loader = EngineLoader(library, EngineSettings(context=1024))
    with running(library, loader, ServeConfig(port=0, context=1024)) as up:
        yield up


@pytest.fixture(scope="module")
def ollama_client(server: Running) -> Any:
    ollama = pytest.importorskip("ollama")
    return ollama.Client(host=server.url)


@pytest.fixture(scope="module")
def claude(server: Running) -> Any:
    anthropic = pytest.importorskip("anthropic")
    return anthropic.Anthropic(base_url=server.url, api_key="x", max_retries=0, _strict_response_validation=True)


def test_one_answer_by_every_way(ollama_client: Any, claude: Any) -> None:
    """The same question with temperature 0: two protocols, whole and streamed, one text."""
    whole = ollama_client.chat(NAME, QUESTION, options=GREEDY)
    assert whole.message.content
    streamed = ollama_client.chat(NAME, QUESTION, options=GREEDY, stream=True)
    texts = {whole.message.content, "".join(part.message.content for part in streamed)}
    texts.add(ollama_client.generate(NAME, QUESTION[0]["content"], options=GREEDY).response)
    body: dict[str, Any] = {"model": NAME, "max_tokens": 24, "messages": QUESTION, "extra_body": {"temperature": 0}}
    texts.add(claude.messages.create(**body).content[0].text)
    with claude.messages.stream(**body) as stream:
        texts.add("".join(stream.text_stream))
        counted = stream.get_final_message().usage
    assert len(texts) == 1
    assert whole.prompt_eval_count == counted.input_tokens + counted.cache_read_input_tokens
    count = claude.messages.count_tokens(model=NAME, messages=QUESTION)
    assert count.input_tokens == whole.prompt_eval_count


def test_a_second_turn_finds_the_first_in_the_cache(claude: Any) -> None:
    talk: list[dict[str, Any]] = [{"role": "user", "content": "Name three colours. " * 20}]
    body: dict[str, Any] = {"model": NAME, "max_tokens": 16, "extra_body": {"temperature": 0}}
    first = claude.messages.create(**body, messages=talk)
    talk += [{"role": "assistant", "content": first.content[0].text}, {"role": "user", "content": "And one more."}]
    second = claude.messages.create(**body, messages=talk)
    assert second.usage.cache_read_input_tokens > 100


@pytest.mark.parametrize(
    ("what", "asked"),
    [("json", "Name a city and its country, as JSON."), (SCHEMA, "A trip to Rome for three days, as JSON.")],
)
def test_a_format_is_kept(ollama_client: Any, what: Any, asked: str) -> None:
    question = [{"role": "user", "content": asked}]
    answer = ollama_client.chat(NAME, question, format=what, options={"temperature": 0, "num_predict": 200})
    value = json.loads(answer.message.content)
    if what is SCHEMA:
        assert set(value) == {"city", "days"}
        assert isinstance(value["days"], int)


def test_a_prompt_that_does_not_fit_is_refused_with_both_numbers(ollama_client: Any, claude: Any) -> None:
    import anthropic
    import ollama

    long = [{"role": "user", "content": "word " * 3000}]
    with pytest.raises(ollama.ResponseError, match="1024"):
        ollama_client.chat(NAME, long)
    with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: \d+ tokens > 1024 maximum"):
        claude.messages.create(model=NAME, max_tokens=5, messages=long)


def test_a_model_made_from_a_modelfile(ollama_client: Any) -> None:
    template = (
        "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}"
        "<|im_start|>user\n{{ .Prompt }}<|im_end|>\n<|im_start|>assistant\n{{ .Response }}<|im_end|>\n"
    )
    ollama_client.create("mine", from_=NAME, template=template, parameters=GREEDY, system="You are a helpful AI.")
    assert ollama_client.show("mine").details.parent_model == NAME
    answer = ollama_client.chat("mine", QUESTION)
    assert "Paris" in answer.message.content
    assert answer.eval_count <= 24, "PARAMETER num_predict"
    ollama_client.delete("mine")


def test_ps_and_unloading(ollama_client: Any) -> None:
    ollama_client.generate(NAME)
    (model,) = (model for model in ollama_client.ps().models if model.model == NAME)
    assert model.size > 50 << 20
    assert model.context_length == 1024
    ollama_client.generate(NAME, keep_alive=0)
    assert NAME not in [model.model for model in ollama_client.ps().models]
