"""Completions, embeddings and models as OpenAI's own client sees them."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest

from kamado.serve.config import ServeConfig

from .compat import compat
from .fake import FakeWorld, token_of
from .running import Running

COMPLETIONS = "POST /v1/completions"
EMBEDDINGS = "POST /v1/embeddings"


CONFIG = ServeConfig(port=0, aliases={"gpt-4o": "fake"})


@pytest.fixture(scope="module")
def lenient(server: Running) -> Iterator[openai.OpenAI]:
    """The client's types know no null where OpenAI itself sends it: unfinished choices, a prompt's first token."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as found:
        yield found


@compat(
    COMPLETIONS, "prompt", "model", "max_tokens", "temperature", "top_p", "n", "seed", "stop", "user", "suffix",
    "presence_penalty", "frequency_penalty", "logit_bias",
)  # fmt: skip
def test_a_completion(client: openai.OpenAI, world: FakeWorld) -> None:
    done = client.completions.create(
        model="fake",
        prompt="a b c",
        max_tokens=2,
        n=2,
        seed=5,
        stop=["#"],
        user="u",
        suffix="end",
        temperature=0.1,
        top_p=0.5,
        presence_penalty=1,
        frequency_penalty=1,
        logit_bias={"3": 5},
    )
    assert [c.text for c in done.choices] == ["A B", "A B"]
    assert [c.finish_reason for c in done.choices] == ["length", "length"]
    asked = world.model.requests[-1]
    assert (asked.suffix, asked.options["stop"], asked.options["seed"], asked.options["logit_bias"]) == (
        "end",
        ("#",),
        5,
        {3: 5},
    )


@compat(COMPLETIONS, "stream", "stream_options")
def test_a_streamed_completion(lenient: openai.OpenAI) -> None:
    chunks = list(
        lenient.completions.create(
            model="fake", prompt=["a b", "c"], stream=True, stream_options={"include_usage": True}
        )
    )
    texts = ["", ""]
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == ["A B", "C"]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.prompt_tokens == 3


@compat(COMPLETIONS, "echo", "logprobs", "prompt: token ids")
def test_what_evaluation_harnesses_ask(lenient: openai.OpenAI, world: FakeWorld) -> None:
    world.model.known.update({token_of(w): w for w in ("good", " morning")})
    ids = [token_of("good"), token_of(" morning")]
    done = lenient.completions.create(model="fake", prompt=[ids, ids], echo=True, logprobs=1, max_tokens=0)
    for choice in done.choices:
        assert choice.text == "good morning"
        assert choice.logprobs is not None
        assert choice.logprobs.tokens == ["good", " morning"]
        assert choice.logprobs.token_logprobs == [None, -0.5]
        assert choice.logprobs.text_offset == [0, 4]
        assert choice.logprobs.top_logprobs == [None, {" morning": -0.5}]
    more = lenient.completions.create(model="fake", prompt="x y", echo=True, logprobs=0, max_tokens=1)
    assert more.choices[0].text == "x yX"
    assert more.choices[0].logprobs is not None
    assert more.choices[0].logprobs.token_logprobs == [None, -0.5, -0.5]
    plain = lenient.completions.create(model="fake", prompt=ids, echo=True, max_tokens=1)
    assert plain.choices[0].text == "good morningGOOD"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"best_of": 3}, "best_of"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [1, -2]}, "prompt[0]"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": ["a"] * 300}, "prompt"),
        ({"echo": True, "suffix": "x"}, "echo"),
        ({"logprobs": 21}, "logprobs"),
        ({"wisdom": 1}, "wisdom"),
    ],
)
def test_what_is_wrong_with_a_completion_is_named(client: openai.OpenAI, body: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="fake", prompt="a", extra_body=body)
    assert caught.value.param == param


@compat(COMPLETIONS, "best_of")
def test_best_of(client: openai.OpenAI) -> None:
    assert len(client.completions.create(model="fake", prompt="a", n=2, best_of=2).choices) == 2
    with pytest.raises(openai.BadRequestError, match="best_of"):
        client.completions.create(model="fake", prompt="a", best_of=2)


@compat(EMBEDDINGS, "input", "model", "encoding_format", "user")
@pytest.mark.parametrize("value", ["one text", ["one text", "two"], [1, 2, 3], [[1, 2], [3]]])
def test_embeddings_are_the_same_as_numbers_and_as_base64(client: openai.OpenAI, value: Any) -> None:
    numbers = client.embeddings.create(model="fake", input=value, encoding_format="float", user="u")
    packed = client.embeddings.with_raw_response.create(model="fake", input=value, encoding_format="base64")
    raw = packed.http_response.json()
    for row, text in zip(numbers.data, raw["data"], strict=True):
        vector = np.frombuffer(base64.b64decode(text["embedding"]), "<f4")
        assert np.array_equal(np.array(row.embedding, np.float32), vector)
        assert np.isclose(np.linalg.norm(vector), 1)
    assert numbers.usage.prompt_tokens > 0


@compat(EMBEDDINGS, "dimensions")
def test_fewer_dimensions(client: openai.OpenAI) -> None:
    short = client.embeddings.create(model="fake", input="a", dimensions=4, encoding_format="float")
    assert len(short.data[0].embedding) == 4
    with pytest.raises(openai.BadRequestError, match="dimensions"):
        client.embeddings.create(model="fake", input="a", dimensions=400)


def test_an_input_that_is_too_long_is_refused_with_both_numbers(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model="fake", input="w " * 100)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="no embeddings"):
        client.embeddings.create(model="other", input="a")


@compat("GET /v1/models")
@compat("GET /v1/models/{model}")
def test_models_say_what_they_can(client: openai.OpenAI) -> None:
    listed = {model.id: model.to_dict() for model in client.models.list()}
    assert list(listed) == ["fake", "other", "gpt-4o"]
    assert listed["fake"]["context_length"] == 64
    assert "tools" in listed["fake"]["capabilities"]  # type: ignore[operator]
    assert client.models.retrieve("fake").created == 1_700_000_000
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nothing")


def test_an_alias_stands_for_a_model(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "hi"}])
    assert answer.choices[0].message.content == "HI"
    assert answer.model == "gpt-4o"


@compat("DELETE /v1/models/{model}")
def test_a_model_can_be_deleted(client: openai.OpenAI, world: FakeWorld) -> None:
    assert client.models.delete("other").deleted
    assert "other" not in world.library.infos
