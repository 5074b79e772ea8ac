"""A conversation that comes back as text goes on from the ids that were generated."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kamado.engine.cache.prefix_store import PrefixStore
from kamado.engine.turns.chat_types import (
    Finish,
    Message,
    ReasoningDelta,
    TextDelta,
    TextPart,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolCallStart,
)
from kamado.engine.turns.tool_format.syntax import Call
from kamado.engine.turns.transcripts import Transcripts

from . import chat_families
from .chat_families import CHATML, FAMILIES
from .fakes import BOS, EOS, IM_END, IM_START
from .spelling import PairTokenizer, Speller

ASK = [{"role": "user", "content": "tell me of the sea"}]
MORE = {"role": "user", "content": "and now of the land"}


def answered(text: str, more: dict[str, str] = MORE) -> list[dict[str, str]]:
    return [*ASK, {"role": "assistant", "content": text}, more]


def canonical(speller: Speller, messages: list[dict[str, str]]) -> list[int]:
    """The ids of the template's text, by one who remembers nothing."""
    return speller.model.encode_chat(messages, owner="nobody")


def text_of(speller: Speller, ids: list[int]) -> str:
    return speller.tokenizer.decode(ids, skip_special=False)


@pytest.mark.parametrize("end", [IM_END, EOS])
def test_the_second_turn_computes_nothing_but_the_new_message(end: int) -> None:
    speller = Speller(CHATML)
    with speller.model:
        text, prompt, usage = speller.chat(ASK, "the sea is deep and the wind is cold", end=end)
        cached = len(prompt) + usage.num_generated_tokens - 1
        messages = answered(text)
        _, prompt, usage = speller.chat(messages, "fine", end=end)
        assert usage.num_reused_tokens == cached
        # The text is the same to the letter; the ids are not what it is tokenized to.
        assert text_of(speller, prompt) == text_of(speller, canonical(speller, messages))
        assert prompt != canonical(speller, messages)
        # And the turn after that, with both answers in it.
        cached = len(prompt) + usage.num_generated_tokens - 1
        longer = [*messages, {"role": "assistant", "content": "fine"}, MORE]
        assert speller.chat(longer, "done")[2].num_reused_tokens == cached


def test_an_answer_that_was_cut_goes_on() -> None:
    speller = Speller(CHATML)
    with speller.model:
        text, prompt, usage = speller.chat(ASK, "the sea is deep", end=None, max_tokens=9)
        assert text == "the sea i"
        _, _, second = speller.chat(answered(text), "x")
        assert second.num_reused_tokens == len(prompt) + usage.num_generated_tokens - 1


def test_a_stop_string_is_left_out_and_what_came_before_it_is_reused() -> None:
    speller = Speller(CHATML)
    with speller.model:
        text, prompt, _ = speller.chat(ASK, "the sea is STOP deep", stop="STOP")
        assert text == "the sea is "
        _, _, usage = speller.chat(answered(text), "x")
        assert usage.num_reused_tokens == len(prompt) + len("the sea is ")


def test_what_the_template_trims_stays_as_it_was_said() -> None:
    speller = Speller(CHATML.replace("m.content", "m.content | trim"))
    with speller.model:
        text, prompt, usage = speller.chat(ASK, "\n the sea is deep \n\n")
        _, again, second = speller.chat(answered(text), "x")
        assert second.num_reused_tokens == len(prompt) + usage.num_generated_tokens - 1
        assert text_of(speller, again).count("the sea is deep") == 1


def test_bytes_that_are_no_text_come_back_as_their_replacement() -> None:
    speller = Speller(CHATML)
    with speller.model:
        text, prompt, usage = speller.chat(ASK, b"the sea \xc3\xff is deep")
        assert "\ufffd" in text
        assert speller.chat(answered(text), "x")[2].num_reused_tokens == len(prompt) + usage.num_generated_tokens - 1


def test_an_answer_that_was_edited_is_used_as_far_as_it_is_the_same() -> None:
    speller = Speller(CHATML)
    with speller.model:
        _, prompt, _ = speller.chat(ASK, "the sea is deep and cold")
        edited = answered("the sea is warm and wide")
        _, again, usage = speller.chat(edited, "x")
        assert len(prompt) + len("the sea is ") <= usage.num_reused_tokens <= len(prompt) + len("the sea is w")
        assert text_of(speller, again) == text_of(speller, canonical(speller, edited))


def test_a_question_asked_again_finds_the_answer_that_was_chosen() -> None:
    speller = Speller(CHATML)
    with speller.model:
        said = {}
        for answer in ("aa bb cc dd ee", "aa bb cc", "aa bb xx yy zz qq"):
            text, prompt, _ = speller.chat(ASK, answer)
            said[text] = [*prompt, *answer.encode()]
        for text, ids in said.items():
            assert speller.model.encode_chat(answered(text))[: len(ids)] == ids


def test_nothing_is_taken_from_another_owner() -> None:
    speller = Speller(CHATML)
    with speller.model:
        text, prompt, usage = speller.chat(ASK, "the sea is deep", owner="a")
        messages = answered(text)
        for owner in ("b", ""):
            _, seen, other = speller.chat(messages, "x", owner=owner)
            assert other.num_reused_tokens == 0
            assert seen == canonical(speller, messages)
        cached = len(prompt) + usage.num_generated_tokens - 1
        assert speller.chat(messages, "x", owner="a")[2].num_reused_tokens == cached


def test_what_a_user_wrote_keeps_its_usual_ids() -> None:
    # The same words as an answer and as a question: ids are the model's own in its turn only.
    speller = Speller(CHATML)
    with speller.model:
        user = [{"role": "user", "content": "aabb"}]
        text, prompt, _ = speller.chat(ASK, "aabb")
        kept = Transcripts(speller.model.vocab_size, max_bytes=1 << 16)
        # Ids that a client made up itself, as another of its kind may have stored them.
        kept.remember("", [IM_START, *b"user\naabb", IM_END, 10, *prompt[-11:]])
        usual = speller.model.encode_chat(user)
        assert kept.match("", usual, lambda: speller.model._prompts.same_text) == usual == canonical(speller, user)
        messages = answered(text, user[0])
        ids = speller.model.encode_chat(messages)
        assert ids[len(prompt) : len(prompt) + 4] == [*b"aabb"]
        assert ids[len(prompt) + 4 :] == canonical(speller, messages)[len(prompt) + 2 :]


def test_special_tokens_and_their_names_are_never_the_same() -> None:
    speller = Speller(CHATML.replace("m.content", "m.content | trim"))
    with speller.model:
        # The model writes out the name of a special token, byte by byte.
        written = b"so <|im_end|>\n<|im_start|>user\nhi"
        text, _, usage = speller.chat(ASK, written)
        assert usage.num_generated_tokens == len(written) + 1
        messages = answered(text)
        ids = speller.model.encode_chat(messages)
        assert [i for i in ids if i in PairTokenizer.special_ids] == [IM_START, IM_END] * 3 + [IM_START]
        assert ids != canonical(speller, messages)
        assert text_of(speller, ids) == text_of(speller, canonical(speller, messages))
        # It generates the special token itself in the middle: a client who writes its name gets plain text.
        speller.chat(ASK, [*b"so ", BOS, *b"deep"], owner="a")
        messages = answered("so <|bos|>deep")
        ids = speller.model.encode_chat(messages, owner="a")
        assert text_of(speller, ids) == text_of(speller, canonical(speller, messages))
        assert BOS not in ids


def turns_of(tokenizer: PairTokenizer, ids: list[int]) -> list[int | str]:
    """Special tokens, and the texts between them without the white space around a turn's content."""
    found: list[int | str] = []
    plain: list[int] = []
    for token in [*ids, EOS]:
        if token in tokenizer.special_ids:
            header, _, content = tokenizer.decode(plain).partition("\n")
            found += [f"{header}\n{content.strip()}", token]
            plain = []
        else:
            plain.append(token)
    return found


@pytest.fixture(scope="module")
def speller() -> Iterator[Speller]:
    speller = Speller(CHATML)
    with speller.model:
        yield speller


letters = st.text(alphabet="ab <|>im_end\n\u00e9", max_size=12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(letters, letters), min_size=1, max_size=4), st.data())
def test_ids_always_stand_for_the_text_of_the_template(
    speller: Speller, turns: list[tuple[str, str]], data: st.DataObject
) -> None:
    """Whatever was said and comes back changed: the same text and special tokens, but for white space around turns."""
    tokenizer = speller.tokenizer
    owner = f"{data.draw(st.integers(0, 1 << 60))}"
    messages: list[dict[str, str]] = []
    for question, answer in turns:
        messages.append({"role": "user", "content": question})
        text, prompt, _ = speller.chat(messages, (answer or "a").encode(), owner=owner, max_tokens=40)
        assert turns_of(tokenizer, prompt) == turns_of(tokenizer, canonical(speller, messages))
        messages.append({"role": "assistant", "content": data.draw(st.sampled_from([text, text[:2], text + "ab"]))})


@pytest.mark.parametrize("encodes", [False, True])
def test_after_a_restart_the_stored_prefixes_are_the_memory(tmp_path: Path, encodes: bool) -> None:
    ask = [{"role": "user", "content": "tell me of the sea " * 20}]
    store = PrefixStore(tmp_path)
    speller = Speller(CHATML, store=store)
    speller.executor.encodes = encodes
    with speller.model:
        text, prompt, usage = speller.chat(ask, "the sea is deep " * 10, owner="a")
    cached = len(prompt) + usage.num_generated_tokens - 1
    messages = [*ask, {"role": "assistant", "content": text}, MORE]
    again = Speller(CHATML, store=PrefixStore(tmp_path))
    again.executor.encodes = encodes
    with again.model:
        assert again.model.encode_chat(messages, owner="b") == canonical(again, messages)
        assert again.chat(messages, "x", owner="a")[2].num_reused_tokens == cached


# --- turns with tools -------------------------------------------------------------------------------------------------

WEATHER = Tool(
    "get_weather",
    "Weather of a city",
    {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "number"}, "now": {}},
        "required": ["city"],
    },
)
QUESTION = Message("user", (TextPart("how is it"),))
TOOL_RESULT = "sunny and warm"


def turn(speller: Speller, messages: list[Message], answer: str):
    """(the assistant's message as a client would send it, the prompt, usage)"""
    prepared = speller.model.prepare_chat(messages, tools=(WEATHER,))
    marked = speller.model.chat_format.marks
    speller.say(marked.decode(answer), len(prepared.tokens), EOS)
    stream = speller.model.chat(prepared, temperature=0, max_tokens=200)
    text = reasoning = ""
    calls: list[list[str]] = []
    for event in stream:
        if isinstance(event, TextDelta):
            text += event.text
        elif isinstance(event, ReasoningDelta):
            reasoning += event.text
        elif isinstance(event, ToolCallStart):
            calls.append([event.id, event.name, ""])
        elif isinstance(event, ToolCallDelta):
            calls[-1][2] += event.arguments
        elif isinstance(event, Finish):
            pass
    message = Message(
        "assistant",
        (TextPart(text),) if text else (),
        reasoning=reasoning,
        tool_calls=tuple(ToolCall(*call) for call in calls),
    )
    return message, prepared.tokens, stream.usage


def result_of(message: Message, text: str = TOOL_RESULT) -> Message:
    return Message("tool", (TextPart(text),), tool_call_id=message.tool_calls[0].id, name="get_weather")


def reserialised(message: Message, arguments: str) -> Message:
    call = message.tool_calls[0]
    return Message("assistant", message.parts, message.reasoning, (ToolCall(call.id, call.name, arguments),))


def call_text(speller: Speller, arguments: str) -> str:
    syntax = speller.model.chat_format.syntax
    assert syntax is not None
    return (
        syntax.begin
        + syntax.open
        + syntax.head
        + "get_weather"
        + syntax.middle
        + arguments
        + syntax.tail
        + syntax.close
    )


CALLING = ["qwen", "qwen_tokens", "qwen3", "qwen3_tokens", "llama3", "granite", "granite_text", "gemma", "generic"]


@pytest.mark.parametrize("name", CALLING)
def test_a_call_that_is_written_out_again_keeps_its_ids(name: str) -> None:
    family = FAMILIES[name]
    speller = Speller(family.template, family.specials)
    with speller.model:
        syntax = speller.model.chat_format.syntax
        assert syntax is not None
        pair, item = syntax.key_separator, syntax.item_separator
        # A number as clients do not send it back.
        arguments = f'{{"city"{pair}"oslo"{item}"days"{pair}2.0{item}"now"{pair}true}}'
        message, prompt, usage = turn(speller, [QUESTION], call_text(speller, arguments))
        assert message.tool_calls[0].arguments == arguments
        cached = len(prompt) + usage.num_generated_tokens - 1
        sent = reserialised(message, '{"now":true,   "days":2, "city":"oslo"}')
        following = [QUESTION, sent, result_of(message)]
        assert turn(speller, following, "so it is")[2].num_reused_tokens == cached
        # A value that means something else is another call, if only in its type.
        other = reserialised(message, '{"now":1, "days":2, "city":"oslo"}')
        assert turn(speller, [QUESTION, other, result_of(message)], "so")[2].num_reused_tokens < cached


@pytest.mark.parametrize(("name", "before"), [("glm", "\n<think></think>\n"), ("seed", "")])
def test_a_call_between_tags_keeps_its_ids(name: str, before: str) -> None:
    family = FAMILIES[name]
    speller = Speller(family.template, family.specials)
    with speller.model:
        syntax = speller.model.chat_format.syntax
        assert syntax is not None
        arguments = {"city": "oslo", "days": 2, "now": True}
        message, prompt, usage = turn(speller, [QUESTION], before + syntax.render([Call("get_weather", arguments)]))
        assert json.loads(message.tool_calls[0].arguments) == arguments
        cached = len(prompt) + usage.num_generated_tokens - 1
        sent = reserialised(message, '{"now":true,   "days":2, "city":"oslo"}')
        assert turn(speller, [QUESTION, sent, result_of(message)], "so it is")[2].num_reused_tokens == cached
        other = reserialised(message, '{"now":1, "days":2, "city":"oslo"}')
        assert turn(speller, [QUESTION, other, result_of(message)], "so")[2].num_reused_tokens < cached


def test_a_text_that_looks_like_a_call_is_none() -> None:
    family = FAMILIES["qwen_tokens"]
    speller = Speller(family.template, family.specials)
    with speller.model:
        written = call_text(speller, '{"city": "oslo"}')
        message, prompt, _ = turn(speller, [QUESTION], written)
        assert message.tool_calls
        imitation = Message("assistant", (TextPart(written),))
        _, again, usage = turn(speller, [QUESTION, imitation, QUESTION], "x")
        assert usage.num_reused_tokens == len(prompt)
        assert not {speller.tokenizer.token_to_id(name) for name in family.specials} & {*again[len(prompt) :]}


def test_text_before_a_call_and_blanks_between_them() -> None:
    speller = Speller(chat_families.QWEN)
    with speller.model:
        answer = "let me see  \n\n\n" + call_text(speller, '{"city": "oslo"}')
        message, prompt, usage = turn(speller, [QUESTION], answer)
        assert message.text == "let me see"
        cached = len(prompt) + usage.num_generated_tokens - 1
        assert turn(speller, [QUESTION, message, result_of(message)], "fine")[2].num_reused_tokens == cached


def test_results_that_name_a_call_by_its_id_keep_the_call_with_the_id() -> None:
    family = FAMILIES["mistral"]
    speller = Speller(family.template, family.specials)
    with speller.model:
        message, prompt, _ = turn(speller, [QUESTION], call_text(speller, '{"city": "oslo"}'))
        following = [QUESTION, message, result_of(message)]
        _, again, usage = turn(speller, following, "fine")
        assert '"id": "' in text_of(speller, list(again))
        assert usage.num_reused_tokens >= len(prompt)


SHOWS_REASONING = chat_families.QWEN.replace(
    "<|im_start|>{{ m.role }}\n{{ m.content }}",
    "<|im_start|>{{ m.role }}\n{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"
    "{{ m.content }}",
)


@pytest.mark.parametrize("specials", [(), ("<think>", "</think>")])
def test_reasoning_counts_where_the_template_shows_it(specials: tuple[str, ...]) -> None:
    speller = Speller(SHOWS_REASONING, specials)
    with speller.model:
        message, prompt, usage = turn(speller, [QUESTION], "<think>\n\nwe must see\n </think>\n\n\nit is fine")
        assert (message.reasoning, message.text) == ("we must see", "it is fine")
        cached = len(prompt) + usage.num_generated_tokens - 1
        assert turn(speller, [QUESTION, message, QUESTION], "x")[2].num_reused_tokens == cached
        # A client that sends none back gets a prompt without it.
        silent = Message("assistant", message.parts)
        _, again, usage = turn(speller, [QUESTION, silent, QUESTION], "x")
        assert "we must see" not in text_of(speller, list(again))
        assert usage.num_reused_tokens < cached


def test_reasoning_that_the_template_drops_stays_dropped() -> None:
    family = FAMILIES["qwen3"]
    speller = Speller(family.template)
    with speller.model:
        message, prompt, _ = turn(speller, [QUESTION], "<think>\nwe must see\n</think>\n\nit is fine")
        _, again, usage = turn(speller, [QUESTION, message, QUESTION], "x")
        assert "we must see" not in text_of(speller, list(again))
        assert usage.num_reused_tokens == len(prompt)


# --- the memory -------------------------------------------------------------------------------------------------------


def never(*_: object) -> None:
    raise AssertionError("nothing is compared")


def test_memory_is_bounded_and_the_least_used_goes_first() -> None:
    kept = Transcripts(1000, max_bytes=4 * 30)
    for first in range(4):
        kept.remember("a", [first] * 10)
    assert kept.nbytes == 120
    with pytest.raises(AssertionError):
        kept.match("a", [1, 1, 5], never)
    assert kept.match("a", [0, 0, 5], never) == [0, 0, 5]
    kept.remember("a", [9] * 31)
    assert kept.nbytes == 120


def test_a_conversation_that_goes_on_is_kept_once() -> None:
    kept = Transcripts(1000, max_bytes=1 << 16)
    kept.remember("a", [1, 2, 3, 7])  # the last id ended the turn; the template ends it otherwise
    kept.remember("a", [1, 2, 3, 8, 4])
    kept.remember("a", [1, 2, 3, 8])
    kept.remember("b", [1, 2])
    assert kept.nbytes == 4 * 7


def test_stored_ids_that_the_vocabulary_has_not_are_left() -> None:
    stored = [array("i", [1, 2, 1000]), array("i", [1, -2]), array("i", [1, 3])]
    kept = Transcripts(1000, max_bytes=1 << 16, stored=lambda owner: stored if owner == "a" else [])
    assert kept.match("a", [1, 3], never) == [1, 3]
    assert kept.nbytes == 8
