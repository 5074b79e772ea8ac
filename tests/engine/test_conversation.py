"""One way to talk to a model: `chat` yields pieces, or events when tools or thinking are asked for."""

from __future__ import annotations

import pytest

import kamado
from kamado.engine.turns.conversations import ConversationStore
from kamado.errors import ConstraintError, UsageError

from .chat_families import FAMILIES, FamilyTokenizer
from .test_turn import family_model

WEATHER = {
    "name": "get_weather",
    "description": "Weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
ASK = [{"role": "user", "content": "How is the weather?"}]
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'


def hermes(answer: str):
    family = FAMILIES["qwen"]
    return family_model(family, FamilyTokenizer(family.specials).encode(answer, special=True))


def test_chat_with_tools_yields_events_and_its_message_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    with hermes(CALL) as model:
        model.begin = model.prepare_chat(ASK, tools=[WEATHER]).num_prompt_tokens
        events = model.chat(ASK, tools=[WEATHER], temperature=0, session="trip")
        found = list(events)
        assert found[-1] == kamado.Finish("tool_calls")
        call = events.message.tool_calls[0]
        assert (call.name, call.arguments) == ("get_weather", '{"city": "Oslo"}')

        kept = ConversationStore().load("trip")
        assert kept is not None
        assert model.conversation("trip") == kept.messages
        assert kept.messages[1]["tool_calls"] == [{"id": call.id, "name": call.name, "arguments": call.arguments}]

        result = kamado.Message("tool", (kamado.TextPart("rain"),), tool_call_id=call.id, name=call.name)
        after = [model.prepare_chat([*before, result], tools=[WEATHER]).tokens for before in (
            kept.messages, [*ASK, events.message])]  # fmt: skip
        assert after[0] == after[1], "what was kept and what was returned are the same messages"


def test_without_tools_and_thinking_it_yields_pieces_of_dictionaries_and_messages() -> None:
    with hermes("Rain.") as model:
        model.begin = len(model.encode_chat(ASK))
        texts = [
            "".join(piece.text for piece in model.chat(messages, temperature=0))
            for messages in (ASK, [kamado.Message("user", (kamado.TextPart("How is the weather?"),))])
        ]
        assert texts == ["Rain.", "Rain."]


def test_a_session_keeps_an_answer_with_events_as_far_as_it_was_taken() -> None:
    with hermes("Rain.") as model:
        model.begin = model.prepare_chat(ASK, tools=()).num_prompt_tokens
        events = model.chat(ASK, tools=(), temperature=0, session="s")
        first = next(events)
        assert isinstance(first, kamado.TextDelta)
        events.close()
        assert model.conversation("s") == [*ASK, {"role": "assistant", "content": first.text}]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tool_choice": "auto"}, "tool_choice goes with tools="),
        ({"tools": [{"description": "no name"}]}, "a tool: .*name"),
        ({"tools": [], "tool_choice": "maybe"}, "auto, none, required"),
        ({"think": "deeply"}, "think must be"),
        ({"tools": ["x"]}, "must be a Tool or a dict"),
        ({"tools": [], "session": ""}, "no name for a session"),
    ],
)
def test_what_is_wrong_is_said(options: dict, words: str) -> None:
    with hermes("") as model, pytest.raises(UsageError, match=words):
        model.chat(ASK, **options)


def test_two_forms_and_pictures_are_refused_in_both_kinds() -> None:
    picture = kamado.Message("user", (kamado.ImagePart(b"", "image/png"),))
    with hermes("") as model:
        for more in ({}, {"tools": []}):
            with pytest.raises(ConstraintError, match="one form"):
                model.chat(ASK, schema=True, regex="a", **more)
            with pytest.raises(UsageError, match="picture"):
                model.chat([picture], **more)
            with pytest.raises(UsageError, match="message 0"):
                model.chat([{"role": "user"}], **more)


@pytest.mark.parametrize("more", [{"tools": []}, {"think": False}, {"session": "trip"}])
def test_what_a_prepared_prompt_cannot_take_is_refused(more: dict[str, object]) -> None:
    with hermes("Rain.") as model:
        turn = model.prepare_chat(ASK)
        with pytest.raises(UsageError, match=next(iter(more))):
            model.chat(turn, **more)


def test_a_choice_without_a_prepared_prompt_is_refused() -> None:
    with hermes("Rain.") as model, pytest.raises(UsageError, match="choice"):
        model.chat(ASK, choice=1)
