"""Answers of several messages (Harmony, Solar Open): any cut gives the same events, headers in any order are read, and
what the grammar lets through is read by a parser that is not ours."""

from __future__ import annotations

import importlib.util
import json
import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kamado.engine.turns import chat_types as ct
from kamado.engine.turns.tool_format.channel_parser import ChannelParser
from kamado.engine.turns.tool_format.channels import HARMONY, SOLAR, find_channels
from kamado.engine.turns.tool_format.syntax import Marks
from kamado.engine.turns.tool_format.template_turns import one_call_each
from kamado.errors import MissingPackageError, UsageError

from .chat_families import FAMILIES, HARMONY_TOKENS, SOLAR_TOKENS, FamilyTokenizer
from .test_tool_parser import cut
from .test_turn import (
    ASK,
    NO_SAMPLING,
    REQUIRED,
    TOOLS,
    calls_of,
    check_arguments,
    family_model,
    joined,
    run,
    shown,
    user,
)

NAMES = frozenset({"f", "get.weather"})
CHANNELS = {"harmony": (HARMONY, HARMONY_TOKENS), "solar": (SOLAR, SOLAR_TOKENS)}
PIECES = [
    *HARMONY_TOKENS, *SOLAR_TOKENS, "assistant", "analysis", "commentary", "final", " to=functions.f",
    " to=get.weather",
    " json", "json", '{"a": [1, "}"]}', "{}", "word", " ", "\n", "é", "f", "a1b2c3d4e5", "x" * 300,
]  # fmt: skip
outputs = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=16).map("".join)


def harmony_reader() -> ModuleType:
    """benchmarks/harmony_reader.py."""
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "harmony_reader.py"
    spec = importlib.util.spec_from_file_location("harmony_reader", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


READER = harmony_reader()


def events(name: str, parts: list[str], *, is_cut: bool = False, **how) -> list:
    """The events of an answer that comes in `parts`, neighbours joined; ids are numbers."""
    channels, tokens = CHANNELS[name]
    marks = Marks(FamilyTokenizer(tokens), channels.texts())
    ids = iter(range(100))
    parser = ChannelParser(channels.bind(marks), names=NAMES, new_id=lambda: f"id{next(ids)}", **how)
    steps = [parser.push(part) for part in parts]
    return joined([event for step in (*steps, parser.finish(is_cut=is_cut)) for event in step])


def encoded(name: str, text: str) -> str:
    channels, tokens = CHANNELS[name]
    return Marks(FamilyTokenizer(tokens), channels.texts()).encode(text)


@pytest.mark.parametrize("name", CHANNELS)
@settings(max_examples=150, deadline=None, derandomize=True)
@given(output=outputs, places=st.lists(st.integers(0, 10**6), max_size=12), is_continued=st.booleans())
def test_any_cut_gives_the_same_events(name, output, places, is_continued) -> None:
    text = encoded(name, output)
    whole = events(name, [text], is_continued=is_continued)
    assert events(name, cut(text, places), is_continued=is_continued) == whole
    assert events(name, list(text), is_continued=is_continued) == whole
    assert all(type(a) is not type(b) or not isinstance(a, ct.TextDelta) for a, b in pairwise(whole))


CALL = [ct.ToolCallStart(0, "id0", "f"), ct.ToolCallDelta(0, '{"a": 1}'), ct.ToolCallEnd(0)]
THOUGHT, SAID = ct.ReasoningDelta("Hm."), ct.TextDelta("So.")
MORE = "<|end|><|start|>assistant"


@pytest.mark.parametrize(
    "head",
    [
        " to=functions.f<|channel|>commentary json<|message|>",
        " to=functions.f<|channel|>commentary <|constrain|>json<|message|>",
        "<|channel|>commentary to=functions.f <|constrain|>json<|message|>",
        "<|channel|>commentary to=functions.f<|constrain|>json<|message|>",
        "<|channel|>commentary to=functions.f json<|message|>",
        "<|channel|>commentary to=functions.f<|message|>",
        "<|channel|>analysis to=functions.f code<|message|>",
        "<|channel|>commentary to=f <|constrain|>json<|message|>",
    ],
)
def test_a_tool_is_named_in_the_role_or_in_the_channel(head) -> None:
    call = f'{head}{{"a": 1}}<|call|>'
    assert events("harmony", list(encoded("harmony", call))) == CALL
    answer = f"<|channel|>analysis<|message|>Hm.{MORE}<|channel|>commentary<|message|>So.{MORE}{call}"
    assert events("harmony", list(encoded("harmony", answer))) == [THOUGHT, SAID, *CALL]


def test_messages_come_in_any_order() -> None:
    def said(text: str) -> list:
        return events("harmony", list(encoded("harmony", text)))

    final, thought = "<|channel|>final<|message|>So.", "<|channel|>analysis<|message|>Hm."
    assert said(f"{final}<|return|>") == [SAID]
    assert said(f"{final}{MORE}{thought}{MORE}{final}<|return|>") == [SAID, THOUGHT, ct.TextDelta("\n\nSo.")]
    assert said(f"{thought}{MORE}{thought}{MORE}{final}<|return|>") == [ct.ReasoningDelta("Hm.\n\nHm."), SAID]
    assert said(f"<|channel|>commentary to=python<|message|>So.{MORE}{thought}<|end|>") == [
        SAID,
        THOUGHT,
    ]  # no tool of ours
    assert said("So.") == [SAID]  # nothing that is bound writes so
    think = "<|think|>Hm.<|end|><|begin|>assistant"
    call = '<|tool_call:begin|>a1b2c3d4e5<|tool_call:name|>f<|tool_call:args|>{"a": 1}<|tool_call:end|>'
    answer = f"{think}<|content|>So.<|end|><|begin|>assistant<|tool_calls|>{call}{call}<|calls|>"
    second = [ct.ToolCallStart(1, "id1", "f"), ct.ToolCallDelta(1, '{"a": 1}'), ct.ToolCallEnd(1)]
    assert events("solar", list(encoded("solar", answer))) == [THOUGHT, SAID, *CALL, *second]


def test_an_answer_that_was_cut_shows_no_half_header() -> None:
    answer = encoded("harmony", f"<|channel|>analysis<|message|>Hm.{MORE}{' to=functions.f<|channel|>commentary json'}"
                                '<|message|>{"a": 1}')  # fmt: skip
    for size in range(len(answer)):
        found = events("harmony", [answer[:size]], is_cut=True)
        assert "".join(e.text for e in found if isinstance(e, ct.ReasoningDelta)) in "Hm."
        assert not [e for e in found if isinstance(e, ct.TextDelta)]
        assert not [e for e in found if isinstance(e, ct.ToolCallEnd) and not e.is_cut]


def test_a_template_without_its_tokens_has_no_channels() -> None:
    assert find_channels(FAMILIES["harmony"].template, FamilyTokenizer(HARMONY_TOKENS)) is HARMONY
    assert find_channels(FAMILIES["harmony"].template, FamilyTokenizer(HARMONY_TOKENS[1:])) is None
    assert find_channels(FAMILIES["qwen"].template, FamilyTokenizer(HARMONY_TOKENS)) is None


def items_of(tokens: list[int]) -> list[tuple[bool, str]]:
    tokenizer = FamilyTokenizer(HARMONY_TOKENS)
    return [(token >= 260, tokenizer.token_bytes(token).decode("latin-1")) for token in tokens]


@pytest.mark.parametrize("kind", ["auto", "required", "json", "plain", "no reasoning"])
def test_whatever_the_logits_another_reader_reads_every_turn(kind) -> None:
    """Logits that love marks and what headers are made of: bound, nothing is malformed; not bound, much is."""
    with family_model(FAMILIES["harmony"]) as model:
        rng = np.random.default_rng(5)
        loved = [*range(260, 260 + len(HARMONY_TOKENS)), *b" to=functions.json assistant"]

        def logits_of(tokens) -> np.ndarray:
            row = rng.standard_normal(model.vocab_size, np.float32)
            row[loved] += 3.0
            return row

        model._executor.logits_of = logits_of
        options: dict = {"think": ct.Think(kind != "no reasoning")}
        if kind in ("auto", "required"):
            options |= {"tools": TOOLS, "tool_choice": kind}
        elif kind == "json":
            options["schema"] = {"type": "object", "properties": {"x": {"enum": [1, 22]}}, "required": ["x"]}
        turn = model.prepare_chat(ASK, **options)
        counts = {True: [0, 0], False: [0, 0]}  # malformed and cut, bound and not
        for is_bound in (True, False):
            for seed in range(60):
                form = turn.compiled if is_bound else None
                pieces = list(
                    model.generate(
                        list(turn.tokens), form=form, seed=seed, temperature=1, top_k=0, top_p=1, max_tokens=160
                    )
                )
                is_cut = pieces[-1].finish_reason == "length"
                counts[is_bound][1] += is_cut
                try:
                    messages = READER.read(items_of([piece.token for piece in pieces]), is_cut=is_cut)
                except READER.MalformedError:
                    counts[is_bound][0] += 1
                    continue
                if kind == "no reasoning" and is_bound:
                    assert "analysis" not in {m.channel for m in messages if not m.recipient}
                if not is_cut and is_bound and kind == "json":
                    assert json.loads(messages[-1].text)["x"] in (1, 22)
                for message in messages:
                    if is_bound and message.recipient and message.end:
                        check_arguments(
                            message.recipient.removeprefix("functions."), json.loads(message.text.encode("latin-1"))
                        )
                if kind == "required" and is_bound and not is_cut:
                    assert messages[-1].recipient
        assert counts[True][0] == 0
        assert counts[True][1] < 60
        assert counts[False][0] > 30


def test_every_header_that_the_format_has_can_be_written() -> None:
    """The grammar takes each of them, as a model may write it."""
    call = '{"city": "Bern", "unit": "C"}<|call|>'
    answers = [
        f"{head}<|message|>{call}"
        for name in (" to=functions.get_weather<|channel|>commentary", "<|channel|>commentary to=functions.get_weather")
        for head in (f"{name} json", f"{name} <|constrain|>json", f"{name}<|constrain|>json", name)
    ]
    thought = f"<|channel|>analysis<|message|>Hm.{MORE}<|channel|>commentary<|message|>I look.{MORE}"
    tokenizer = FamilyTokenizer(HARMONY_TOKENS)
    for answer in (*answers, thought + answers[0], f"{thought}<|channel|>final<|message|>So.<|return|>"):
        with family_model(FAMILIES["harmony"], tokenizer.encode(answer, special=True)) as model:
            turn = model.prepare_chat(ASK, tools=TOOLS)
            pieces = model.generate(list(turn.tokens), form=turn.compiled, temperature=0)
            model.begin = turn.num_prompt_tokens
            assert tokenizer.decode([p.token for p in pieces], skip_special=False) == answer


def test_reasoning_ends_at_its_budget_and_does_not_begin_again() -> None:
    tokenizer = FamilyTokenizer(HARMONY_TOKENS)
    for answer in ("<|channel|>analysis<|message|>" + "I wonder. " * 20, "<|channel|>analysis<|message|>" * 12):
        with family_model(FAMILIES["harmony"], tokenizer.encode(answer, special=True)) as model:
            model._executor.logits_of = _loving(model, tokenizer.encode(answer, special=True))
            turn = model.prepare_chat(ASK, think=ct.Think(max_tokens=12))
            found = run(model, turn, max_tokens=200, **NO_SAMPLING)
            thought = "".join(e.text for e in found if isinstance(e, ct.ReasoningDelta))
            assert len(thought) <= 12
            said = model._executor.written
            assert said.count("<|channel|>analysis") <= 2
            assert "<|channel|>final" in said or "<|channel|>commentary" in said


def _loving(model, answer: list[int]):
    """Logits that write `answer`, and go on to love reasoning."""
    model._executor.written = ""
    tokenizer = FamilyTokenizer(HARMONY_TOKENS)

    def logits_of(tokens) -> np.ndarray:
        row = np.zeros(model.vocab_size, np.float32)
        i = len(tokens) - model.begin
        model._executor.written = tokenizer.decode(tokens[model.begin :], skip_special=False)
        row[list(b"analysis")] = 1.0
        if i < len(answer):
            row[answer[i]] = 10.0
        row[tokenizer.token_to_id("<|end|>")] = 0.5
        return row

    return logits_of


def test_effort_and_no_reasoning_are_told_as_the_template_knows_them() -> None:
    with family_model(FAMILIES["harmony"]) as model:
        for think, word in ((ct.Think(), "medium"), (ct.Think(effort="high"), "high"),
                            (ct.Think(effort="minimal"), "low"),
                            (ct.Think(enabled=False), "low")):  # fmt: skip
            assert f"Reasoning: {word}" in shown(model, model.prepare_chat(ASK, think=think))
    with family_model(FAMILIES["solar"]) as model:
        turn = model.prepare_chat(ASK, think=ct.Think(enabled=False))
        assert shown(model, turn).endswith("<|begin|>assistant<|think|><|end|><|begin|>assistant")


def test_text_alone_is_the_final_message() -> None:
    answer = f"<|channel|>analysis<|message|>Hm, é.{MORE}<|channel|>final<|message|>So é <|return|>"
    for key, said in (("harmony", answer), ("solar", "<|think|>Hm.<|end|><|begin|>assistant<|content|>So é <|end|>")):
        tokenizer = FamilyTokenizer(FAMILIES[key].specials)
        with family_model(FAMILIES[key], tokenizer.encode(said, special=True)) as model:
            model.begin = model.prepare_chat(ASK).num_prompt_tokens
            pieces = list(model.chat([{"role": "user", "content": "How is the weather?"}], **NO_SAMPLING))
            assert "".join(piece.text for piece in pieces) == "So é "
            assert pieces[-1].finish_reason == "stop"
            stopped = list(model.chat([{"role": "user", "content": "How is the weather?"}], stop=["é"], **NO_SAMPLING))
            assert "".join(piece.text for piece in stopped) == "So "


def test_one_call_a_message_for_templates_that_know_no_more() -> None:
    calls = (ct.ToolCall("1", "add", '{"a": 1}'), ct.ToolCall("2", "add", '{"a": 2}'))
    results = [ct.Message("tool", (ct.TextPart(f"r{i}"),), tool_call_id=i, name="add") for i in ("2", "1")]
    said = ct.Message("assistant", (ct.TextPart("I add."),), "Because.", calls)
    found = one_call_each([*ASK, said, *results, user("And?")])
    assert [m.role for m in found] == ["user", "assistant", "tool", "assistant", "tool", "user"]
    assert [(m.reasoning, m.text) for m in found[1:5]] == [("Because.\n\nI add.", ""), ("", "r1"), ("", ""), ("", "r2")]
    with family_model(FAMILIES["harmony"]) as model:
        text = shown(model, model.prepare_chat((*ASK, said, *results), tools=TOOLS))
        assert text.count("<|call|>") == 2
        assert text.index('{"a": 1}<|call|>') < text.index('"r1"<|end|>') < text.index('{"a": 2}<|call|>')
        assert "<|channel|>analysis<|message|>Because.\n\nI add.<|end|>" in text


def test_a_call_that_was_written_otherwise_is_not_computed_again() -> None:
    """The model names its tool in the channel, the template in the role: the prompt goes on from what was generated."""
    tokenizer = FamilyTokenizer(HARMONY_TOKENS)
    answer = (
        f"<|channel|>analysis<|message|>Hm.{MORE}"
        '<|channel|>commentary to=functions.add <|constrain|>json<|message|>{"a": 7}<|call|>'
    )
    with family_model(FAMILIES["harmony"], tokenizer.encode(answer, special=True)) as model:
        turn = model.prepare_chat(ASK, tools=TOOLS)
        model.begin = turn.num_prompt_tokens
        stream = model.chat(turn, **NO_SAMPLING)
        assert calls_of(joined(stream)) == [("add", {"a": 7})]
        message = stream.message
        result = ct.Message("tool", (ct.TextPart("7"),), tool_call_id=message.tool_calls[0].id, name="add")
        after = model.prepare_chat((*ASK, message, result), tools=TOOLS)
        text = shown(model, after)
        assert text.startswith(shown(model, turn) + answer)
        assert text.endswith(
            '<|start|>functions.add to=assistant<|channel|>commentary<|message|>"7"<|end|><|start|>assistant'
        )


def test_without_the_package_only_plain_answers_are_not_bound(monkeypatch, caplog) -> None:
    with family_model(FAMILIES["harmony"], list(b"<")) as model:

        def refuse(grammar):
            raise MissingPackageError("no package")

        monkeypatch.setattr(model._forms, "compiled", refuse)
        for _ in range(2):
            assert model.prepare_chat(ASK).form is None
        assert len([r for r in caplog.records if "may be malformed" in r.message]) == 1
        with pytest.raises(MissingPackageError):
            model.prepare_chat(ASK, tools=TOOLS, tool_choice=REQUIRED)


@pytest.mark.parametrize("text", [
    "<|channel|>final<|message|>a<|call|>", "<|channel|>analysis<|message|>a<|return|>", "final<|message|>a<|return|>",
    "<|channel|>other<|message|>a<|return|>", "<|channel|>final<|message|>a<|start|>b<|return|>",
    "<|channel|>commentary to=functions.f<|message|>{}<|end|>", "<|channel|>final json x<|message|>a<|return|>",
    "<|channel|>analysis<|message|>a<|end|>", " to=a<|channel|>commentary to=b<|message|>a<|call|>", "a", "",
])  # fmt: skip
def test_the_other_reader_refuses(text) -> None:
    with pytest.raises(READER.MalformedError):
        READER.read(items_of(FamilyTokenizer(HARMONY_TOKENS).encode(text, special=True)), is_cut=False)


def test_an_answer_goes_on_in_the_final_message_that_was_begun() -> None:
    begun = (*ASK, ct.Message("assistant", (ct.TextPart("One, two,"),)))
    call = ' to=functions.add<|channel|>commentary json<|message|>{"a": 7}<|call|>'
    for answer, calls in ((" three<|return|>", []), (f" three{MORE}{call}", [("add", {"a": 7})])):
        tokens = FamilyTokenizer(HARMONY_TOKENS).encode(answer, special=True)
        with family_model(FAMILIES["harmony"], tokens) as model:
            turn = model.prepare_chat(begun, tools=TOOLS, continue_last=True)
            assert shown(model, turn).endswith("<|start|>assistant<|channel|>final<|message|>One, two,")
            found = run(model, turn, **NO_SAMPLING)
            assert found[0] == ct.TextDelta(" three")
            assert calls_of(found) == calls


def test_text_alone_has_the_form_that_is_asked_for() -> None:
    tokens = FamilyTokenizer(HARMONY_TOKENS).encode('<|channel|>final<|message|>{"x":1}<|return|>', special=True)
    question = [{"role": "user", "content": "How is the weather?"}]
    for form in ({"schema": {"type": "object"}}, {"regex": r'\{"x":[0-9]\}'}, {"grammar": 'start: "{\\"x\\":1}"'}):
        with family_model(FAMILIES["harmony"], tokens) as model:
            model.begin = model.prepare_chat(ASK).num_prompt_tokens
            assert "".join(piece.text for piece in model.chat(question, **form, **NO_SAMPLING)) == '{"x":1}'
            with pytest.raises(UsageError, match="tool_choice goes with"):
                model.chat(question, tool_choice="auto")
