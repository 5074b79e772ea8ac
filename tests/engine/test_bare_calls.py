"""Calls with bare keys and texts between marks (Gemma 4): any cut gives the same events, values come back as they were,
what the grammar lets through matches the schema, and marks that mean nothing are left out."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kamado.engine.forms.json_schema import Bare
from kamado.engine.forms.json_schema.compiled import _compile, _Form, in_worker
from kamado.engine.turns import chat_types as ct
from kamado.engine.turns.tool_format import gemma4
from kamado.engine.turns.tool_format.bare_reader import BareReader
from kamado.engine.turns.tool_format.reasoning import find_tags
from kamado.engine.turns.tool_format.syntax import Call, Marks

from .chat_families import FAMILIES, GEMMA4_TOKENS, FamilyTokenizer
from .test_keyword_calls import arguments_of_calls, grown
from .test_tagged_calls import GOOD, SCHEMAS, Bound, calls_in, check_walks, places
from .test_tool_parser import NAMES, cut, cut_events, events
from .test_turn import ASK, NO_SAMPLING, family_model, run

SYNTAX = gemma4.FORMAT.syntaxes[0]
TAGS = find_tags(FAMILIES["gemma4"].template, FamilyTokenizer(GEMMA4_TOKENS))
MARKS = Marks(FamilyTokenizer(GEMMA4_TOKENS), (*SYNTAX.texts(), TAGS.open, TAGS.close))
HOW = {"tags": TAGS.bind(MARKS.encode), "syntax": SYNTAX.bind(MARKS), "names": NAMES}
PIECES = [
    *GEMMA4_TOKENS, "call:", "call:f{", "f", "{", "}", "a:", "b", ":", ",", "[", "]", "x", "null", "None", "true", "-1",
    "2.5", "thought\n", "thought", "\n", " ", "é", "}<tool_call|>", '<|tool_call>call:f{a:<|"|>', "text",
]  # fmt: skip
outputs = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=18).map("".join)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(output=outputs, places=places, is_reasoning=st.booleans(), is_call=st.booleans())
def test_any_cut_gives_the_same_events(output, places, is_reasoning, is_call) -> None:
    text = MARKS.encode(f"<|tool_call>call:f{{a:{output}" if is_call else output)
    for how in (HOW, {**HOW, "syntax": None}):
        whole = events([text], **how, is_reasoning=is_reasoning)
        assert events(cut(text, places), **how, is_reasoning=is_reasoning) == whole
        assert events(list(text), **how, is_reasoning=is_reasoning) == whole


@settings(max_examples=100, deadline=None, derandomize=True)
@given(arguments=arguments_of_calls, places=places)
def test_any_arguments_come_back(arguments, places) -> None:
    """Names of nested objects too, which must stand bare."""

    def is_bare(value) -> bool:
        if isinstance(value, dict):
            return all(key.isidentifier() and is_bare(item) for key, item in value.items())
        return all(map(is_bare, value)) if isinstance(value, list) else True

    arguments = [{key: item for key, item in one.items() if is_bare(item)} for one in arguments]
    text = HOW["syntax"].render([Call("get.weather", value) for value in arguments])
    assert calls_in(events(cut(text, places), **HOW)) == [("get.weather", value) for value in arguments]


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        ("", {}),
        ('a:<|"|><|"|>', {"a": ""}),
        ('a:<|"|>it\'s "b" \\n {c}, [d]:\n<|"|>,b:-1', {"a": 'it\'s "b" \\n {c}, [d]:\n', "b": -1}),
        ("a:None,b:null,c:[true,False,{d:{e:2.5}}]", {"a": None, "b": None, "c": [True, False, {"d": {"e": 2.5}}]}),
        ('a:{<|"|>k l<|"|>:1}, b : [ ]', {"a": {"k l": 1}, "b": []}),
        ("file-path:1,größe:2", {"file-path": 1, "größe": 2}),
    ],
)
def test_what_is_read(written, wanted) -> None:
    assert json.loads(read(written)) == wanted


@pytest.mark.parametrize(
    "written",
    [",", "a", "a:", "a=1", ":1", "a:x", 'a:"x"', "a:1 2", "a:[1", "a:{1}", "a:{b}", 'a:<|"|>x', "{}", "a:01"],
)
def test_what_is_no_value_is_refused(written) -> None:
    assert read(written) is None


def read(text: str) -> str | None:
    """JSON of the arguments `text}`; None where they are none."""
    reader = BareReader(",", ":", MARKS.encode('<|"|>'))
    text = MARKS.encode(text)
    size, out = reader.push(f"{text}}}")
    if reader.is_broken or not reader.is_done:
        return None
    assert size == len(text)
    return out


@pytest.mark.parametrize(
    ("answer", "reasoning", "text"),
    [
        ("<|channel>thought\nHm.\n<channel|>So.", "Hm.", "So."),
        ("<|channel>thought\n<channel|>So.", "", "So."),
        ("<|channel><|channel>thought\nHm.\n<channel|>So.", "Hm.", "So."),
        ("<|channel><|channel><|channel>thought\nHm.<channel|>So.", "Hm.", "So."),
        ("thought\n<channel|>So.", "", "So."),
        ("thought\nis what I had", "", "thought\nis what I had"),
        ("So.<channel|>", "", "So."),
        ("<channel|>So.", "", "So."),
        ("So.\n<|channel>thought\nHm.\n<channel|>So.", "Hm.", "So.So."),
        ("<|channel>So.", "", "So."),
    ],
)
def test_marks_that_mean_nothing_are_left_out(answer, reasoning, text) -> None:
    """What the 26B writes now and then (llama.cpp#21760)."""
    for syntax in (HOW["syntax"], None):
        found = events(list(MARKS.encode(answer)), **{**HOW, "syntax": syntax})
        assert "".join(e.text for e in found if isinstance(e, ct.ReasoningDelta)) == reasoning
        assert "".join(e.text for e in found if isinstance(e, ct.TextDelta)) == text


def test_a_cut_answer_shows_no_half_mark() -> None:
    answer = MARKS.encode('<|channel>thought\nHm.\n<channel|>So.<|tool_call>call:f{a:<|"|>x<|"|>}<tool_call|>')
    for size in range(len(answer)):
        found = cut_events(answer[:size], **HOW)
        assert "".join(e.text for e in found if isinstance(e, ct.TextDelta)) in "So."
        assert "".join(e.text for e in found if isinstance(e, ct.ReasoningDelta)) in "Hm."


def test_what_the_grammar_lets_through_is_read_back_and_matches() -> None:
    check_walks(SCHEMAS, lambda schema: Bound(SYNTAX, schema, specials=GEMMA4_TOKENS, tools=1), 6, 30)


def test_the_grammar_takes_what_matches_as_the_template_writes_it() -> None:
    for key, schema in SCHEMAS.items():
        made = Bound(SYNTAX, schema, specials=GEMMA4_TOKENS)
        for arguments in grown(GOOD)[key]:
            text = made.syntax.render([Call("f", arguments), Call("get.weather", {})])
            assert made.takes(text), text
            assert calls_in(made.events(text)) == [("f", arguments), ("get.weather", {})]


def test_keys_come_in_their_order_whatever_the_schema_says() -> None:
    schema = {"properties": {"b": {"type": "integer"}, "C": {"type": "integer"}, "a": {"type": "integer"}}}
    made = Bound(SYNTAX, {**schema, "required": ["b", "a", "C"]}, specials=GEMMA4_TOKENS)
    assert made.takes(made.marks.encode("<|tool_call>call:f{a:1,b:2,C:3}<tool_call|>"))
    assert not made.takes(made.marks.encode("<|tool_call>call:f{b:2,C:3,a:1}<tool_call|>"))


@pytest.mark.parametrize(
    ("schema", "arguments"),
    [
        ("texts", {"a": "x", "c": "6"}),
        ("texts", {"a": "x", "b": "four", "c": "x"}),
        ("numbers", {"a": 21, "b": 1}),
        ("words", {"a": "yes"}),
        ("nested", {"a": ["q", "r", "s"], "b": {"x": 1}}),
        ("nothing", {"a": 1}),
        ("given", {"a": "x", "b": 2}),
    ],
)
def test_the_grammar_refuses_what_does_not_match(schema, arguments) -> None:
    made = Bound(SYNTAX, SCHEMAS[schema], specials=GEMMA4_TOKENS)
    assert not made.takes(made.syntax.render([Call("f", arguments)]))


def test_given_values_with_names_that_cannot_stand_bare_are_left_out() -> None:
    made = Bound(
        SYNTAX, {"properties": {"a": {"enum": [{"b c": 1}, {"d": "e"}]}}, "required": ["a"]}, specials=GEMMA4_TOKENS
    )
    assert made.takes(made.syntax.render([Call("f", {"a": {"d": "e"}})]))
    assert not made.takes(made.syntax.render([Call("f", {"a": {"b c": 1}})]))


def test_the_worker_gives_the_same_grammar() -> None:
    schema = {"type": "object", **SCHEMAS["either"]}
    form = {"item_separator": ",", "key_separator": ":", "is_object": True}
    bare = {"between": ",", "assign": ":", "quote": 300}
    assert in_worker({"text": json.dumps(schema), **form, "tagged": bare}) == _compile(
        schema, _Form(**form, tagged=Bare(**bare))
    )


def test_reasoning_ends_at_its_budget() -> None:
    thought = FamilyTokenizer(GEMMA4_TOKENS).encode("<|channel>thought\nI wonder and wonder", special=True)
    with family_model(FAMILIES["gemma4"], thought) as model:
        turn = model.prepare_chat(ASK, think=ct.Think(True, max_tokens=10))
        found = run(model, turn, max_tokens=40, **NO_SAMPLING)
        assert found[0] == ct.ReasoningDelta("I wonder a")
