"""The beginning of an object, made whole: by what came whole for clients, with all that came for prompts."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kamado.engine.turns.cut_json import closed, whole_members
from kamado.engine.turns.tool_format.template_turns import arguments_of

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8) | st.sampled_from(['"', "\\", "\U0001f600", "}", "{[", "\\u12"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
_REST = re.compile(r'\{?|(, ?)?("([^"\\]|\\.)*\\?"?:? ?)?-?|[-+.0-9eE]+|\\(u[0-9a-f]{0,4})?(\\(u[0-9a-f]{0,3})?)?')
OBJECTS = st.dictionaries(st.text(max_size=5), VALUES, max_size=4)


@pytest.mark.parametrize(
    ("text", "members", "all_of_it"),
    [
        ("", {}, {}),
        (" {", {}, {}),
        ('{"pa', {}, {}),
        ('{"path"', {}, {}),
        ('{"path": ', {}, {}),
        ('{"path": "a.py", "text": "de', {"path": "a.py"}, {"path": "a.py", "text": "de"}),
        ('{"a": "b\\', {}, {"a": "b"}),
        ('{"a": "b\\u00e', {}, {"a": "b"}),
        ('{"a": "b\\ud83d', {}, {"a": "b"}),
        ('{"a": "b\\ud83d\\ude0', {}, {"a": "b"}),
        ('{"a": "\\\\ud83d', {}, {"a": "\\ud83d"}),
        ('{"a": tr', {}, {"a": True}),
        ('{"a": n', {}, {"a": None}),
        ('{"a": 12', {"a": 12}, {"a": 12}),
        ('{"a": -', {}, {}),
        ('{"a": 1.', {}, {"a": 1}),
        ('{"a": 1e', {}, {"a": 1}),
        ('{"a": [1, {"b": 2, "c": "x', {"a": [1, {"b": 2}]}, {"a": [1, {"b": 2, "c": "x"}]}),
        ('{"a": [1,', {"a": [1]}, {"a": [1]}),
        ('{"a": 1, ', {"a": 1}, {"a": 1}),
        ('{"a": 1}', {"a": 1}, {"a": 1}),
    ],
)
def test_a_beginning_is_made_whole(text, members, all_of_it) -> None:
    assert whole_members(text) == members
    assert closed(text) == all_of_it


@pytest.mark.parametrize(
    "text",
    [
        "[1]", "null", "7", "x", "f()", "{x", '{"a" 1', '{"a": x', '{"a": 1 2', '{"a": 1}}', '{"a": 1} x', "{,", "{]",
        '{"a": [1}', '{"a": "\x01', '{"a": "\\x', '{"a": "\\u12g', '{"a": 01', '{"a": 1-', '{"a": 1.5.', "{'a': 1}",
        '{"a":' + "[" * 200_000, '{"a": "' + "x" * (1 << 20),
    ],
)  # fmt: skip
def test_what_begins_no_object_is_none(text) -> None:
    assert closed(text) is None
    assert whole_members(text) == {}


def test_null_is_no_argument_at_all() -> None:
    assert arguments_of(0, "f", "null") == arguments_of(0, "f", "") == {}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(value=OBJECTS, is_ascii=st.booleans())
def test_every_cut_of_an_object_gives_its_beginning(value, is_ascii) -> None:
    text = json.dumps(value, ensure_ascii=is_ascii)
    for size in range(len(text) + 1):
        cut = text[:size]
        assert _is_part(whole_members(cut), value)
        found = closed(cut)
        assert found is not None
        # What is rendered again shares all that was generated but for an unfinished key, number or escape.
        again = json.dumps(found, ensure_ascii=is_ascii)
        shared = next((i for i, (a, b) in enumerate(zip(again, cut, strict=False)) if a != b), min(len(again), size))
        assert _REST.fullmatch(cut[shared:]), (cut, again)
    assert whole_members(text) == closed(text) == value


def _is_part(part, whole) -> bool:
    if isinstance(part, dict) and isinstance(whole, dict):
        return all(key in whole and _is_part(item, whole[key]) for key, item in part.items())
    if isinstance(part, list) and isinstance(whole, list):
        return len(part) <= len(whole) and all(map(_is_part, part, whole))
    if isinstance(part, int | float) and isinstance(whole, int | float):
        return True  # a number may be cut: more digits, or an exponent, were to come
    return part == whole


@settings(max_examples=40, deadline=None, derandomize=True)
@given(value=OBJECTS, is_ascii=st.booleans())
def test_clients_that_read_a_cut_stream_find_the_same(value, is_ascii) -> None:
    jiter = pytest.importorskip("jiter")
    text = json.dumps(value, ensure_ascii=is_ascii)
    for size in range(1, len(text) + 1):
        assert whole_members(text[:size]) == jiter.from_json(text[:size].encode(), partial_mode=True)
