"""Calls whose arguments are written as in Python: any cut gives the same events, literals are read as JSON, and what
the grammar lets through parses and matches the schema."""

from __future__ import annotations

import ast
import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kamado.engine.forms.json_schema import Keywords, compile_schema
from kamado.engine.forms.json_schema.compiled import _compile, _Form, in_worker
from kamado.engine.turns.chat_types import ReasoningDelta, TextDelta, ToolCallDelta
from kamado.engine.turns.tool_format import pythonic
from kamado.engine.turns.tool_format.keyword_reader import KeywordReader
from kamado.engine.turns.tool_format.syntax import Call, Marks

from .chat_families import FamilyTokenizer
from .test_tagged_calls import BAD, GOOD, SCHEMAS, Bound, calls_in, check_walks, places, tags_of
from .test_tool_parser import NAMES, cut, cut_events, events, json_values

SYNTAXES = dict(zip(("olmo", "lfm-shown", "lfm"), pythonic.FORMAT.syntaxes, strict=True))
TOKENS = ("<function_calls>", "</function_calls>", "<|tool_call_start|>", "<|tool_call_end|>", "<think>", "</think>")
PIECES = [
    "<function_calls>", "</function_calls>", "<|tool_call_start|>[", "]<|tool_call_end|>", "]", "[", "f(", "f", "(",
    ")", "a=", "b", "=", ", ", ",", "'", '"', "\\", "\\'", "\\n", "\\x41", "\\u00e9", "\\101", "\\0", "x", "it's",
    "None",
    "True", "false", "-1", "2.5", "1e9", "{", "}", ":", "'k': ", "\n", " ", "get.weather()", "f(a=1)", "<think>",
    "</think>",
]  # fmt: skip
outputs = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=18).map("".join)
names = st.from_regex(r"[A-Za-z_äß][A-Za-z0-9_.-]{0,8}", fullmatch=True)
arguments_of_calls = st.lists(st.dictionaries(names, json_values, max_size=4), min_size=1, max_size=3)


def bound(syntax, is_token: bool):
    marks = Marks(FamilyTokenizer(TOKENS if is_token else ()), (*syntax.texts(), "<think></think>"))
    return syntax.bind(marks), marks


def read(text: str) -> str | None:
    """JSON of the arguments `text)`; None where they are none."""
    reader = KeywordReader(", ", ": ")
    size, out = reader.push(f"{text})")
    if reader.is_broken or not reader.is_done:
        return None
    assert size == len(text)
    return out


@pytest.mark.parametrize("name", SYNTAXES)
@pytest.mark.parametrize("is_token", [False, True])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(output=outputs, places=places, is_reasoning=st.booleans())
def test_any_cut_gives_the_same_events(name, is_token, output, places, is_reasoning) -> None:
    syntax, marks = bound(SYNTAXES[name], is_token)
    for begun in (output, f"{syntax.begin}{syntax.open}f(a={output}"):
        text = marks.encode(begun)
        how = {"tags": tags_of(marks), "syntax": syntax, "names": NAMES, "is_reasoning": is_reasoning}
        whole = events([text], **how)
        assert events(cut(text, places), **how) == whole
        assert events(list(text), **how) == whole


@pytest.mark.parametrize("name", SYNTAXES)
def test_every_cut_of_a_call_gives_the_same_events(name) -> None:
    syntax, marks = bound(SYNTAXES[name], True)
    calls = [
        Call("f", {"a": 'it\'s "é" \\ )\n', "k": -3, "l": [1.5, {"b": None, "c": [True]}]}),
        Call("get.weather", {}),
    ]
    text = marks.encode("<think>Hm") + marks.encode("</think>") + "\nSo:\n\n" + syntax.render(calls)
    how = {"tags": tags_of(marks), "syntax": syntax, "names": NAMES}
    whole = events([text], **how)
    assert whole[:2] == [ReasoningDelta("Hm"), TextDelta("So:")]
    assert [json.loads(e.arguments) for e in whole if isinstance(e, ToolCallDelta)] == [c.arguments for c in calls]
    everything = "".join(e.arguments for e in whole if isinstance(e, ToolCallDelta))
    for i in range(len(text) + 1):
        assert events([text[:i], text[i:]], **how) == whole
        found = cut_events(text[:i], **how)
        assert "So:".startswith("".join(e.text for e in found if isinstance(e, TextDelta)).strip())
        assert everything.startswith("".join(e.arguments for e in found if isinstance(e, ToolCallDelta)))


@pytest.mark.parametrize("name", SYNTAXES)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(arguments=arguments_of_calls, places=places)
def test_any_arguments_come_back(name, arguments, places) -> None:
    syntax, _ = bound(SYNTAXES[name], True)
    calls = [Call("f", value) for value in arguments]
    found = events(cut(syntax.render(calls), places), syntax=syntax, names=NAMES)
    assert calls_in(found) == [("f", value) for value in arguments]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(value=json_values)
def test_what_python_writes_is_read(value) -> None:
    assert json.loads(read(f"a={value!r}")) == {"a": value}
    assert json.loads(read(f"a={value!a}")) == {"a": value}


@pytest.mark.filterwarnings("ignore:invalid escape")
@pytest.mark.parametrize(
    "literal",
    [
        "'it\\'s'", '"a\\"b"', r"'\x41\u00e9\U0001F600\101\0\a\v\b\f\t\r'", r"'\q\d'", "'a\\\nb'", "''", "-0",
        "-1.5e-7",
        "+3", "1_000", ".5", "5.", "-.5e3", "[1, 'a', ]", "{'k': {'l': None,},}", "[[], {}]", "[ True , False ]",
    ],
)  # fmt: skip
def test_literals_are_read_as_python_reads_them(literal) -> None:
    text = f"a = {literal} , "
    whole = read(text)
    assert json.loads(whole) == {"a": ast.literal_eval(literal)}
    for i in range(len(text)):
        reader = KeywordReader(", ", ": ")
        size, first = reader.push(text[:i])
        assert first + reader.push(f"{text[size:]})")[1] == whole


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        ("", {}),
        ("a=null, b=true, c=[false]", {"a": None, "b": True, "c": [False]}),
        (r'a="\ud83d\ude00\/"', {"a": "😀/"}),
        ("a='line\nbreak\ttab'", {"a": "line\nbreak\ttab"}),
        (r"a='\u12'", {"a": r"\u12"}),
        ("file-path='x', größe=1", {"file-path": "x", "größe": 1}),
        ("a\u202fb=1, \u2003=2", {"a\u202fb": 1, "\u2003": 2}),
    ],
)
def test_more_than_python_is_read(written, wanted) -> None:
    assert json.loads(read(written)) == wanted


@pytest.mark.parametrize(
    "written",
    [
        ",", "a", "a=", "a=,", "=1", "a=x", "a=nan", "a=1 2", "a=01", "a=0x10", "a='x' 'y'", "a=[1", "a=[1}",
        "a={1: 2}", "a={'k' 1}", "a={'k': }", "a=[,]", "a=[1,,2]", "1", "'a'", "a=f(1)", "a=1+2", "a=(1, 2)", "a=r'x'",
        "a=--1",
        "a=1__0",
        "a=" + "[" * 300 + "]" * 300, "a=" + "1" * 5000, "a" * 5000 + "=1",
    ],
)  # fmt: skip
def test_what_is_no_literal_is_refused(written) -> None:
    assert read(written) is None


def test_a_long_text_is_read_once() -> None:
    text = "a='" + "\\'x\"" * 100_000 + "'"
    assert json.loads(read(text)) == {"a": "'x\"" * 100_000}


# --- what the grammar lets through ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SYNTAXES)
@pytest.mark.parametrize("is_token", [False, True])
def test_what_the_grammar_lets_through_is_read_back_and_matches(name, is_token) -> None:
    specials = TOKENS if is_token else ()
    check_walks(SCHEMAS, lambda schema: Bound(SYNTAXES[name], schema, specials=specials, tools=1))


def grown(schemas: dict) -> dict:
    """Names with blanks cannot stand before `=`."""
    return {**schemas, "undeclared": [{"k": "v"}, {"xy": "", "z": "1a"}]}


@pytest.mark.parametrize("name", SYNTAXES)
@pytest.mark.parametrize("is_token", [False, True])
def test_the_grammar_takes_what_matches_however_it_is_spelled(name, is_token) -> None:
    spellings = [SYNTAXES[name]]
    if name != "olmo":
        spellings = [
            SYNTAXES["lfm"],
            SYNTAXES["lfm-shown"],
            replace(SYNTAXES["lfm"], arguments=SYNTAXES["olmo"].arguments),
        ]
    for key, schema in SCHEMAS.items():
        made = Bound(SYNTAXES[name], schema, specials=TOKENS if is_token else ())
        texts = [{"a": "null", "b": 7, "c": "[1", "d": "1"}] if key == "either" else []
        for arguments in [*grown(GOOD)[key], *texts]:
            for spelled in spellings:
                text = spelled.bind(made.marks).render([Call("f", arguments), Call("get.weather", {})])
                assert made.takes(text), text
                assert calls_in(made.events(text)) == [("f", arguments), ("get.weather", {})]


@pytest.mark.parametrize("name", SYNTAXES)
@pytest.mark.parametrize(
    ("schema", "arguments"), [*BAD, ("words", {"a": "True"}), ("either", {"a": None, "b": 7, "c": "x", "d": "b"})]
)
def test_the_grammar_refuses_what_does_not_match(name, schema, arguments) -> None:
    made = Bound(SYNTAXES[name], SCHEMAS[schema])
    assert not made.takes(made.syntax.render([Call("f", arguments)]))


def test_a_complement_holds_in_either_quote() -> None:
    made = Bound(SYNTAXES["lfm"], {"properties": {"a": {"type": "string", "not": {"enum": ["it's", "no"]}}}})
    for text in ("'it\\'s'", '"it\'s"', "'no'", '"no"', '"n\\u006f"'):
        assert not made.takes(f"{made.syntax.begin}[f(a={text}){made.syntax.close}"), text
    for text in ("'it\\''", '"it"', "'No'", "'\"'", '"\'"'):
        assert made.takes(f"{made.syntax.begin}[f(a={text}){made.syntax.close}"), text


def test_a_name_that_cannot_stand_before_its_value_is_left_out_or_leaves_the_schema_open() -> None:
    odd = {"type": "object", "properties": {"a=b": {"type": "string"}, "c": {"type": "string"}}}
    made = Bound(SYNTAXES["olmo"], odd)
    assert made.takes('<function_calls>f(c="x")</function_calls>')
    assert not made.takes('<function_calls>f(a=b="x")</function_calls>')
    with pytest.raises(Exception, match="nothing matches"):
        Bound(SYNTAXES["olmo"], {**odd, "required": ["a=b"]})


@pytest.mark.parametrize("is_python", [False, True])
def test_the_worker_gives_the_same_grammar(is_python) -> None:
    schema = {"type": "object", **SCHEMAS["either"]}
    form = {"item_separator": ", ", "key_separator": ": ", "is_object": True}
    keywords = Keywords(", ", is_python)
    request = {"text": json.dumps(schema), **form, "tagged": {"between": ", ", "is_python": is_python}}
    assert in_worker(request) == _compile(schema, _Form(**form, tagged=keywords))
    assert ("None" in compile_schema(schema, ", ", ": ", is_object=True, tagged=keywords).lark) == is_python


@pytest.mark.parametrize("is_token", [False, True])
def test_a_call_of_lfm_may_end_reasoning_that_is_open(is_token) -> None:
    schema = {"properties": {"a": {"type": "integer"}}, "required": ["a"]}
    made = Bound(SYNTAXES["lfm"], schema, specials=TOKENS if is_token else (), tags=True, is_reasoning=True)
    text = "I need a tool\n" + made.syntax.render([Call("f", {"a": 1})])
    assert made.takes(text)
    found = made.events(text)
    assert found[0] == ReasoningDelta("I need a tool")
    assert calls_in(found) == [("f", {"a": 1})]
