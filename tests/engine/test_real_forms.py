"""Schemas, tools and vectors with real models and their real vocabularies. Run with -m real."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import kamado
from kamado.engine.turns.chat_types import Finish, Message, TextPart, Tool, ToolCallDelta, ToolCallStart, ToolChoice

pytestmark = pytest.mark.real

RealModel = Callable[[str], Path]

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 30},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
WEATHER = Tool(
    "get_weather",
    "Weather of a city",
    {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 30}, "unit": {"enum": ["C", "F"]}},
        "required": ["city", "unit"],
    },
)


@pytest.mark.parametrize("name", ["smollm2:135m", "gemma3:270m", "qwen2.5-coder:1.5b"])
def test_every_vocabulary_keeps_a_schema(real_model: RealModel, name: str) -> None:
    with kamado.load(real_model(name), context=512) as model:
        for seed in range(3):
            pieces = list(model.generate("A person, as JSON: ", schema=PERSON, seed=seed, temperature=1.5, top_k=0))
            value = json.loads("".join(piece.text for piece in pieces))
            assert set(value) == {"name", "age", "tags"}
            assert 0 <= value["age"] <= 150


@pytest.mark.parametrize(("name", "wanted"), [("smollm2:135m", "generic"), ("qwen2.5-coder:1.5b", "hermes")])
def test_a_tool_is_called_in_the_models_own_form(real_model: RealModel, name: str, wanted: str) -> None:
    with kamado.load(real_model(name), context=1024) as model:
        assert (model.chat_format.name, model.chat_format.refusal) == (wanted, "")
        turn = model.prepare_chat(
            (Message("user", (TextPart("How warm is it in Paris, in Celsius?"),)),),
            tools=(WEATHER,),
            tool_choice=ToolChoice("required", parallel=False),
        )
        events = list(model.chat(turn, temperature=0, max_tokens=100))
        assert [e.name for e in events if isinstance(e, ToolCallStart)] == ["get_weather"]
        arguments = json.loads("".join(e.arguments for e in events if isinstance(e, ToolCallDelta)))
        assert set(arguments) == {"city", "unit"}
        assert events[-1] == Finish("tool_calls")


def test_minilm_knows_what_is_alike(real_model: RealModel) -> None:
    with kamado.load(real_model("minilm:l6")) as model:
        texts = ["A man is eating food.", "A man eats a piece of bread.", "The girl is carrying a baby."]
        vectors = model.embed(texts)
        # transformers 5 and torch 2.13 in float32 give these cosines.
        assert vectors @ vectors[0] == pytest.approx([1.0, 0.7374121, -0.1049585], abs=1e-5)
        assert np.array_equal(vectors[1], model.embed([texts[1]])[0])
