"""Whatever the cut, the same events; whatever the arguments, the same call back; never half a tag."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kamado.engine.turns.chat_types import ReasoningDelta, TextDelta, ToolCallDelta, ToolCallEnd, ToolCallStart
from kamado.engine.turns.tool_format import gemma, generic, granite, hermes, llama3, mistral
from kamado.engine.turns.tool_format.parser import AnswerParser
from kamado.engine.turns.tool_format.reasoning import ReasoningTags
from kamado.engine.turns.tool_format.syntax import Call, Marks

from .chat_families import FamilyTokenizer

THINK = ReasoningTags("<think>", "</think>")
FORMATS = [hermes.FORMAT, llama3.FORMAT, mistral.FORMAT, granite.FORMAT, gemma.FORMAT, generic.FORMAT]
SYNTAXES = [(f"{f.name}-{i}", syntax) for f in FORMATS for i, syntax in enumerate(f.syntaxes)]
TOKENS = ("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|tool_call|>", "<|python_tag|>")
NAMES = frozenset({"f", "get.weather"})


def events(parts, **kwargs):
    """The events of text that comes in `parts`, neighbours joined; ids are numbers."""
    ids = iter(range(100))
    parser = AnswerParser(new_id=lambda: f"id{next(ids)}", **kwargs)
    out: list = []
    for step in (*(parser.push(part) for part in parts), parser.finish()):
        for event in step:
            last = out[-1] if out else None
            if type(last) is type(event) and isinstance(event, TextDelta | ReasoningDelta):
                out[-1] = type(event)(last.text + event.text)
            elif type(last) is type(event) and isinstance(event, ToolCallDelta):
                out[-1] = ToolCallDelta(event.index, last.arguments + event.arguments)
            else:
                out.append(event)
    return out


def cut(text: str, places: list[int]) -> list[str]:
    marks = sorted({p % (len(text) + 1) for p in places} | {0, len(text)})
    return [text[a:b] for a, b in itertools.pairwise(marks)]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8", exclude_categories=["Cn", "Cs"]), max_size=12)
    | st.sampled_from(['"', "\\", '}"', "</tool_call>", "{", "]}", "\\\\\"", "<think>", "\n</tool_call>"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
argument_objects = st.dictionaries(st.text(max_size=8), json_values, max_size=4)
PIECES = [
    "<think>", "</think>", "<thi", "nk>", "<tool_call>", "<tool_", "call>", "</tool_call>", "[TOOL_CALLS]", "[", "]",
    '\n{"name": "f", "arguments": ', '{"name": "f", "arguments": ', '{"name": "f", "parameters": ', '{"name": "',
    "f", '"', "[ARGS]", '{"a": [1, "}"]}', "{}", "}", "}\n</tool_call>", "\n<tool_call>", ", ", ', "id": "x1"',
    " ", "\n", "  \n\n", "word", "é", "\\", "<|tool_call|>", " " * 300,
]  # fmt: skip
outputs = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=14).map("".join)


@pytest.mark.parametrize(("name", "syntax"), SYNTAXES, ids=[name for name, _ in SYNTAXES])
@pytest.mark.parametrize("is_token", [False, True])
@settings(max_examples=20, deadline=None, derandomize=True)
@given(output=outputs, places=st.lists(st.integers(0, 10**6), max_size=12), is_reasoning=st.booleans())
def test_any_cut_gives_the_same_events(name, syntax, is_token, output, places, is_reasoning) -> None:
    marks = Marks(FamilyTokenizer(TOKENS if is_token else ()), syntax.texts())
    bound = syntax.bind(marks)
    text = marks.encode(output)
    how = {"tags": THINK, "syntax": bound, "names": NAMES, "is_reasoning": is_reasoning}
    whole = events([text], **how)
    assert events(cut(text, places), **how) == whole
    assert events(list(text), **how) == whole


@settings(max_examples=60, deadline=None, derandomize=True)
@given(output=outputs, places=st.lists(st.integers(0, 10**6), max_size=12))
@example(output="<think>a</think>b", places=[3, 9, 12])
def test_without_tools_only_tags_and_the_space_around_them_are_left_out(output, places) -> None:
    found = events(cut(output, places), tags=THINK)
    assert all(isinstance(event, TextDelta | ReasoningDelta) for event in found)
    shown = "".join(event.text for event in found)
    if not output.lstrip().startswith("<think>"):
        assert shown == output.lstrip(" \t\r\n")
    assert events(cut(output, places)) == ([TextDelta(output)] if output else [])


@pytest.mark.parametrize(("name", "syntax"), SYNTAXES, ids=[name for name, _ in SYNTAXES])
@settings(max_examples=20, deadline=None, derandomize=True)
@given(arguments=st.lists(argument_objects, min_size=1, max_size=3), places=st.lists(st.integers(0, 10**6), max_size=9))
def test_any_arguments_come_back(name, syntax, arguments, places) -> None:
    marks = Marks(FamilyTokenizer(TOKENS), syntax.texts())
    if syntax.between is None:
        arguments = arguments[:1]
    calls = [Call("get.weather", value, f"id{i}") for i, value in enumerate(arguments)]
    # What a string says is never a mark: tokens alone are.
    text = syntax.bind(marks).render(calls)
    found = events(cut(text, places), syntax=syntax.bind(marks), names=NAMES, tags=THINK)
    assert [type(event) for event in found] == [ToolCallStart, ToolCallDelta, ToolCallEnd] * len(calls)
    assert [event.name for event in found[::3]] == ["get.weather"] * len(calls)
    assert [json.loads(event.arguments) for event in found[1::3]] == arguments
    assert [event.index for event in found[2::3]] == list(range(len(calls)))


def test_text_before_a_call_keeps_its_words_and_loses_its_last_space() -> None:
    text = 'Let me see.\n\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
    assert events(list(text), syntax=hermes.FORMAT.syntaxes[0], names=NAMES) == [
        TextDelta("Let me see."),
        ToolCallStart(0, "id0", "f"),
        ToolCallDelta(0, '{"a": 1}'),
        ToolCallEnd(0),
    ]


def test_arguments_come_as_they_are_written() -> None:
    parser = AnswerParser(syntax=hermes.FORMAT.syntaxes[0], names=NAMES, new_id=lambda: "x")
    parser.push('<tool_call>\n{"name": "f", "arguments": ')
    assert parser.push('{"ci') == [ToolCallDelta(0, '{"ci')]
    assert parser.push('ty": "P') == [ToolCallDelta(0, 'ty": "P')]
    assert parser.push('"}') == [ToolCallDelta(0, '"}'), ToolCallEnd(0)]
    assert parser.push("}\n</tool_call>") == parser.finish() == []


def test_a_cut_call_has_no_end() -> None:
    found = events(['<tool_call>\n{"name": "f", "arguments": {"a": '], syntax=hermes.FORMAT.syntaxes[0], names=NAMES)
    assert [type(event) for event in found] == [ToolCallStart, ToolCallDelta]


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>\n{"name": "unknown", "arguments": {}}\n</tool_call>',
        "<tool_call>f()</tool_call>",
        '<tool_call>\n{"name": "' + "f" * 1000,
        "A tag <tool_call is no call",
        "the tag <tool_",
    ],
)
def test_what_is_no_call_is_text(text) -> None:
    assert events(list(text), syntax=hermes.FORMAT.syntaxes[0], names=NAMES) == [TextDelta(text)]


def test_reasoning_is_told_from_the_answer() -> None:
    text = "<think>\nHm, <b>.\n</think>\n\nYes </think> <think>x"
    wanted = [ReasoningDelta("Hm, <b>."), TextDelta("Yes </think> <think>x")]
    assert events(list(text), tags=THINK) == wanted
    assert events(list(text.removeprefix("<think>")), tags=THINK, is_reasoning=True) == wanted
    assert events(["<thinking> is a word"], tags=THINK) == [TextDelta("<thinking> is a word")]
    assert events(["<think>never ends</thi"], tags=THINK) == [ReasoningDelta("never ends</thi")]


def test_a_token_is_not_its_text() -> None:
    syntax = granite.FORMAT.syntaxes[0]
    marks = Marks(FamilyTokenizer(TOKENS), syntax.texts())
    call = '[{"name": "f", "arguments": {}}]'
    bound = syntax.bind(marks)
    found = events([marks.of_token(264) + call], syntax=bound, names=NAMES)
    assert isinstance(found[0], ToolCallStart)
    assert events(["<|tool_call|>" + call], syntax=bound, names=NAMES) == [TextDelta("<|tool_call|>" + call)]


def cut_events(text: str, **kwargs) -> list:
    parser = AnswerParser(new_id=lambda: "id", **kwargs)
    return [event for step in (parser.push(text), parser.finish(is_cut=True)) for event in step]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('<tool_call>\n{"name": "f", "arguments": ', [ToolCallStart(0, "id", "f"), ToolCallEnd(0, is_cut=True)]),
        (
            '<tool_call>\n{"name": "f", "arguments": {"a": ',
            [ToolCallStart(0, "id", "f"), ToolCallDelta(0, '{"a": '), ToolCallEnd(0, is_cut=True)],
        ),
        ("text\n\n<tool_ca", [TextDelta("text")]),
        ("a < b", [TextDelta("a < b")]),
        ("a <", [TextDelta("a")]),
        ("a\n", [TextDelta("a"), TextDelta("\n")]),
        ("<thi", []),
        ("<think>never ends</thi", [ReasoningDelta("never ends")]),
        ('<tool_call>\n{"na', []),
        ('<tool_call>\n{"name": "f', []),
    ],
)
def test_what_a_cut_leaves(text, wanted) -> None:
    assert cut_events(text, syntax=hermes.FORMAT.syntaxes[0], names=NAMES, tags=THINK) == wanted


@pytest.mark.parametrize(("name", "syntax"), SYNTAXES, ids=[name for name, _ in SYNTAXES])
@pytest.mark.parametrize("is_token", [False, True])
def test_where_a_call_must_come_a_cut_leaves_no_text(name, syntax, is_token) -> None:
    marks = Marks(FamilyTokenizer(TOKENS if is_token else ()), syntax.texts())
    calls = [Call("f", {"a": "}"}, "i1"), Call("get.weather", {}, "i2")][: 2 if syntax.between is not None else 1]
    text = "\n" + syntax.bind(marks).render(calls)
    for size in range(len(text) + 1):
        found = cut_events(text[:size], syntax=syntax.bind(marks), names=NAMES, is_required=True)
        assert not [event for event in found if isinstance(event, TextDelta)]
        starts = [event for event in found if isinstance(event, ToolCallStart)]
        ends = [event for event in found if isinstance(event, ToolCallEnd)]
        assert [event.index for event in starts] == [event.index for event in ends] == list(range(len(starts)))
        assert not any(event.is_cut for event in ends[:-1])


@pytest.mark.parametrize(("name", "syntax"), SYNTAXES, ids=[name for name, _ in SYNTAXES])
def test_after_whole_calls_a_cut_leaves_no_text(name, syntax) -> None:
    if syntax.between is None:
        return
    one = syntax.render([Call("f", {})])
    two = syntax.render([Call("f", {}), Call("f", {})])
    for size in range(len(one) - len(syntax.close), len(two)):
        found = cut_events(two[:size], syntax=syntax, names=NAMES)
        assert not [event for event in found if isinstance(event, TextDelta)]
