"""Calls whose arguments stand between tags: any cut gives the same events, values come back as they were, and what the
grammar lets through parses and matches the schema."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kamado.engine.forms.constraint import ConstraintCompiler
from kamado.engine.forms.json_schema import Checker, compile_schema
from kamado.engine.forms.json_schema.document import Document, plain
from kamado.engine.turns.chat_types import (
    OutputFormat,
    ReasoningDelta,
    TextDelta,
    Tool,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
)
from kamado.engine.turns.tool_format import glm, minimax, mistral, qwen_xml
from kamado.engine.turns.tool_format.argument_readers import read_value
from kamado.engine.turns.tool_format.call_grammar import AnswerGrammar
from kamado.engine.turns.tool_format.reasoning import ReasoningTags, tags_around
from kamado.engine.turns.tool_format.syntax import Call, Marks, without_marks

from .chat_families import FamilyTokenizer
from .fakes import EOS, IM_END
from .spelling import PairTokenizer
from .test_tool_parser import NAMES, THINK, cut, cut_events, events, json_values

FORMATS = (qwen_xml.FORMAT, qwen_xml.SEED, glm.FORMAT, minimax.FORMAT)
SYNTAXES = [
    (f"{f.name}-{i}", replace(syntax, arguments=replace(syntax.arguments, has_python_words=f.name == "qwen_xml")))
    for f in FORMATS
    for i, syntax in enumerate(f.syntaxes)
]
IDS = [name for name, _ in SYNTAXES]
TOKENS = (
    "<tool_call>", "</tool_call>", "<think>", "</think>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>",
    "<minimax:tool_call>", "</minimax:tool_call>", "<seed:tool_call>", "</seed:tool_call>", "<tool_sep:opensource>",
)  # fmt: skip
PIECES = [
    "<think>", "</think>", "<tool_call>", "\n<function=f>\n", "<function=", "=f>", "f", "f\n", "f<arg_key>", "\n",
    "<parameter=a>\n", "<parameter=a>", '<parameter name="a">', "1", "[1, ", "]", '{"b": "', '"}', "null", "True",
    "\n</parameter>\n", "</parameter>\n", "</parameter", "<arg_key>", "k", "</arg_key>\n<arg_value>",
    "</arg_key><arg_value>", "</arg_value>\n", "</arg_value>", "</function>\n</tool_call>", "</function>",
    "</tool_call>",
    "\n<tool_call>", '\n<invoke name="f">\n', "</invoke>\n", "<minimax:tool_call>", "</minimax:tool_call>", "é", '"',
    "\\", "<seed:tool_call>", "</function>\n</seed:tool_call>", "  ", " " * 300,
]  # fmt: skip
outputs = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=16).map("".join)
places = st.lists(st.integers(0, 10**6), max_size=12)
KINDS = {"f": {"a": ("string",), "k": ("integer", "string")}}


def bound(syntax, is_token: bool):
    marks = Marks(FamilyTokenizer(TOKENS if is_token else ()), (*syntax.texts(), "<think></think>"))
    return syntax.bind(marks), marks


def tags_of(marks: Marks) -> ReasoningTags:
    return ReasoningTags(marks.encode("<think>"), marks.encode("</think>"))


@pytest.mark.parametrize(("name", "syntax"), SYNTAXES, ids=IDS)
@pytest.mark.parametrize("is_token", [False, True])
@settings(max_examples=40, deadline=None, derandomize=True)
@given(output=outputs, places=places, is_reasoning=st.booleans())
def test_any_cut_gives_the_same_events(name, syntax, is_token, output, places, is_reasoning) -> None:
    syntax, marks = bound(syntax, is_token)
    text = marks.encode(output)
    how = {"tags": tags_of(marks), "syntax": syntax, "names": NAMES, "kinds": KINDS, "is_reasoning": is_reasoning}
    whole = events([text], **how)
    assert events(cut(text, places), **how) == whole
    assert events(list(text), **how) == whole


@pytest.mark.parametrize(("name", "syntax"), SYNTAXES, ids=IDS)
def test_every_cut_of_a_call_gives_the_same_events(name, syntax) -> None:
    syntax, marks = bound(syntax, True)
    calls = [Call("f", {"a": '</x>\n "é" <', "k": 3, "l": [1, {"b": None}]}), Call("get.weather", {})]
    text = marks.encode("<think>Hm") + marks.encode("</think>") + "\nSo:\n\n" + syntax.render(calls)
    how = {"tags": tags_of(marks), "syntax": syntax, "names": NAMES, "kinds": KINDS}
    whole = events([text], **how)
    assert whole[:2] == [ReasoningDelta("Hm"), TextDelta("So:")]
    assert [json.loads(e.arguments) for e in whole if isinstance(e, ToolCallDelta)] == [c.arguments for c in calls]
    for i in range(len(text)):
        assert events([text[:i], text[i:]], **how) == whole
    for i in range(len(text) + 1):  # where it is cut, what was shown stays a beginning, and no half tag is
        found = cut_events(text[:i], **how)
        shown = "".join(e.text for e in found if isinstance(e, TextDelta))
        assert "So:".startswith(shown.strip())
        arguments = "".join(e.arguments for e in found if isinstance(e, ToolCallDelta))
        assert "".join(e.arguments for e in whole if isinstance(e, ToolCallDelta)).startswith(arguments)


def kinds_of(value) -> tuple[str, ...]:
    if isinstance(value, bool) or value is None:
        return ("null",) if value is None else ("boolean",)
    one = {str: "string", int: "integer", float: "number", list: "array", dict: "object"}[type(value)]
    return (one,)


names = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cs", "Cn", "Cc"], exclude_characters='<>"'), min_size=1
)


@pytest.mark.parametrize(("name", "syntax"), SYNTAXES, ids=IDS)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(arguments=st.lists(st.dictionaries(names, json_values, max_size=4), min_size=1, max_size=3), places=places)
def test_any_arguments_come_back(name, syntax, arguments, places) -> None:
    bound_syntax, _ = bound(syntax, True)
    after = syntax.arguments.after
    for one in arguments:
        for key, value in one.items():
            if isinstance(value, str) and (value + after).find(after) != len(value):
                one[key] = "a text has everything but its own end"
    calls = [Call("f", value) for value in arguments]
    for one, call in zip(arguments, calls, strict=True):
        kinds = {"f": {key: kinds_of(value) for key, value in one.items()}}
        found = events(cut(bound_syntax.render([call]), places), syntax=bound_syntax, names=NAMES, kinds=kinds)
        assert [type(event) for event in found] == [ToolCallStart, ToolCallDelta, ToolCallEnd]
        assert json.loads(found[1].arguments) == one
    found = events(cut(bound_syntax.render(calls), places), syntax=bound_syntax, names=NAMES)
    assert [event.index for event in found if isinstance(event, ToolCallEnd)] == list(range(len(calls)))
    assert [list(json.loads(e.arguments)) for e in found if isinstance(e, ToolCallDelta)] == [
        list(a) for a in arguments
    ]


@pytest.mark.parametrize(
    ("text", "kinds", "wanted"),
    [
        ("5", ("string",), '"5"'),
        ("5", ("integer", "string"), "5"),
        ("5.5", ("integer", "string"), '"5.5"'),
        ("3.0", ("integer",), "3"),
        ("3.0", ("number",), "3.0"),
        ("3.0", ("integer", "number"), "3.0"),
        (" 7 ", ("integer",), "7"),
        (" 7 ", ("integer", "string"), '" 7 "'),
        ("null", ("null", "string"), "null"),
        ("null", ("integer", "string"), '"null"'),
        ("None", ("null",), "null"),
        ("None", ("null", "string"), '"None"'),
        ("True", ("boolean",), "true"),
        ('"a"', ("string",), '"\\"a\\""'),
        ("[1", ("array",), '"[1"'),
        ("[1]", ("array", "string"), "[1]"),
        ("[1]", ("object", "string"), '"[1]"'),
        ("NaN", ("number",), '"NaN"'),
        ("[NaN]", ("array",), '"[NaN]"'),
        ("[" * 100_000, ("array",), None),
        ("9" * 5000, ("integer",), "9" * 5000),
        ("", ("array",), '""'),
    ],
)
def test_a_value_is_read_by_what_it_may_be(text, kinds, wanted) -> None:
    found = read_value(text, kinds, has_python_words=False)
    assert found == (json.dumps(text) if wanted is None else wanted)


def test_python_words_are_words_where_the_template_writes_them() -> None:
    assert read_value("None", ("null", "string"), has_python_words=True) == "null"
    assert read_value("True", ("null", "string"), has_python_words=True) == '"True"'


# --- what the grammar lets through ------------------------------------------------------------------------------------

SCHEMAS = {
    "texts": {"properties": {"a": {"type": "string"}, "b": {"type": "string", "maxLength": 3},
                             "c": {"enum": ["x", "5", ""]},
                             "d": {"type": "string", "pattern": "^[a-c]+$"},
                             "e": {"type": "string", "minLength": 2, "maxLength": 4}}, "required": ["a", "c"]},
    "numbers": {"properties": {"a": {"type": "integer", "minimum": -5, "maximum": 20}, "b": {"type": "number"},
                               "c": {"type": "integer", "multipleOf": 7}}, "required": ["a", "b"]},
    "words": {"properties": {"a": {"type": "boolean"}, "b": {"type": "null"}, "c": {"const": True}}, "required": ["a"]},
    "nested": {"properties": {"a": {"type": "array", "items": {"type": "string", "maxLength": 4}, "maxItems": 2},
                              "b": {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}},
               "required": ["a", "b"]},
    "either": {"properties": {"a": {"type": ["string", "null"], "maxLength": 5},
                              "b": {"anyOf": [{"type": "integer"}, {"type": "string", "maxLength": 3}]},
                              "c": {"anyOf": [{"type": "array", "items": {"type": "integer"}, "maxItems": 2},
                                              {"type": "string", "maxLength": 3}]},
                              "d": {"enum": ["null", None, "1", 1, "a"]}},
               "required": ["a", "b", "c", "d"]},
    "anything": {"properties": {"a": {}}, "required": ["a"]},
    "undeclared": {"additionalProperties": {"type": "string", "maxLength": 3}, "minProperties": 1, "maxProperties": 2},
    "nothing": {"properties": {}, "additionalProperties": False},
    "given": {"enum": [{"a": "x", "b": 1}, {"a": "y", "b": [2]}]},
}  # fmt: skip


class Bound:
    """A syntax, its tokens and tools; walks through the grammar by random tokens of those that may follow."""

    def __init__(self, syntax, schema, *, specials=TOKENS, tokenizer=FamilyTokenizer, is_reasoning=False, tags=False,
                 tools=2):  # fmt: skip
        self.tokenizer = tokenizer(specials)
        self.tokenizer.vocab_size = max(self.tokenizer.vocab_size, 260 + len(specials))
        self.marks = Marks(self.tokenizer, (*syntax.texts(), "<think></think>"))
        self.syntax = syntax.bind(self.marks)
        self.tags = tags_of(self.marks) if tags else None
        self.is_reasoning = is_reasoning
        self.schema = {"type": "object", **schema}
        maker = AnswerGrammar(
            self.marks, tags=self.tags, is_reasoning=is_reasoning, syntax=self.syntax,
            tools=(Tool("f", "", self.schema, strict=True), Tool("get.weather", "", {}))[:tools],
            is_required=not tags, is_parallel=tools > 1, output=OutputFormat(),
        )  # fmt: skip
        self.grammar = maker.build()
        self.kinds = {name: one.kinds for name, one in maker.schemas.items()}
        self.compiler = ConstraintCompiler(self.tokenizer, self.tokenizer.vocab_size)

    def events(self, text: str):
        return events(
            [text], tags=self.tags, syntax=self.syntax, names=NAMES, kinds=self.kinds, is_reasoning=self.is_reasoning
        )

    def takes(self, text: str) -> bool:
        """Whether the grammar lets a whole answer through, its marks being tokens."""
        constraint = self.compiler.compile(self.grammar)
        for c in text:
            ids = [self.marks.token(c)] if "\ufdd0" <= c <= "\ufdef" else list(c.encode())
            for token in ids:
                if token not in constraint.allowed():
                    return False
                constraint.accept(token)
        return constraint.is_accepting

    def walk(self, rng: np.random.Generator, limit: int = 400) -> str | None:
        """A random answer; None when it has not ended in time. What ends values and calls is preferred."""
        constraint = self.compiler.compile(self.grammar)
        favourites = set("".join(self.syntax.texts()).encode()) | set(b'0123"[]{}:,')
        out: list[str] = []
        held = b""
        for _ in range(limit):
            allowed = constraint.allowed()
            ends = [i for i in allowed if i in (EOS, IM_END)]
            if ends and rng.random() < 0.5:
                return "".join(out)
            rest = [i for i in allowed if i not in (EOS, IM_END)]
            liked = [i for i in rest if i in favourites or i >= 260]
            token = int(rng.choice(liked if liked and rng.random() < 0.9 else rest))
            constraint.accept(token)
            if mark := self.marks.of_token(token):
                out.append(mark)
            else:
                held += self.tokenizer.token_bytes(token)
                try:
                    out.append(without_marks(held.decode()))
                    held = b""
                except UnicodeDecodeError:
                    continue
            if constraint.is_complete:
                return "".join(out)
        return None


def calls_in(found) -> list[tuple[str, object]]:
    starts = [e for e in found if isinstance(e, ToolCallStart)]
    ends = [e for e in found if isinstance(e, ToolCallEnd)]
    assert len(starts) == len(ends), "a call is not whole"
    arguments = [json.loads(e.arguments) for e in found if isinstance(e, ToolCallDelta)]
    return list(zip([e.name for e in starts], arguments, strict=True))


def check_walks(schemas, bound, num_walks=4, least=20) -> None:
    """What the grammar lets through parses and matches the schema. `bound`: (schema) -> Bound."""
    rng = np.random.default_rng(0)
    num_calls = 0
    for schema in schemas.values():
        made = bound(schema)
        root = plain(made.schema)
        checker = Checker(Document(root))
        for _ in range(num_walks):
            text = made.walk(rng)
            if text is None:
                continue
            found = made.events(text)
            assert not [e for e in found if isinstance(e, TextDelta)], text
            for called, arguments in calls_in(found):
                num_calls += 1
                assert called == "f"
                assert not list(checker.violations(root, arguments)), (text, arguments)
    assert num_calls >= least


@pytest.mark.parametrize(("name", "syntax"), SYNTAXES, ids=IDS)
@pytest.mark.parametrize("is_token", [False, True])
def test_what_the_grammar_lets_through_is_read_back_and_matches(name, syntax, is_token) -> None:
    check_walks(SCHEMAS, lambda schema: Bound(syntax, schema, specials=TOKENS if is_token else (), tools=1))


GOOD = {
    "texts": [{"a": 'x\n</parameter> "<b>\n', "c": "5"}, {"a": "", "b": "é", "c": "", "d": "abc"}],
    "numbers": [{"a": -5, "b": 2.5}, {"a": 20, "b": 1, "c": 14}],
    "words": [{"a": True}, {"a": False, "b": None, "c": True}],
    "nested": [{"a": [], "b": {"x": 1}}, {"a": ["q", '"'], "b": {"x": 0}}],
    "either": [{"a": None, "b": 7, "c": [1, 2], "d": 1}, {"a": "nul", "b": "7x", "c": "x[", "d": "a"}],
    "anything": [{"a": v} for v in ("text", 5, None, True, [1, "a"], {"b": {}}, 2.5)],
    "undeclared": [{"k": "v"}, {"x y": "", "z": "1a"}],
    "nothing": [{}],
    "given": [{"a": "x", "b": 1}, {"a": "y", "b": [2]}],
}
# What the schemas do not allow.
BAD = [
    ("texts", {"a": "x", "c": "6"}),
    ("texts", {"a": "x", "c": "x", "e": "1"}),
    ("texts", {"a": "x", "c": "x", "e": "12345"}),
    ("texts", {"c": "x"}),
    ("texts", {"a": "x", "b": "four", "c": "x"}),
    ("texts", {"a": "x", "c": "x", "z": "more"}),
    ("numbers", {"a": 21, "b": 1}),
    ("numbers", {"a": 1.5, "b": 1}),
    ("words", {"a": "yes"}),
    ("nested", {"a": ["q", "r", "s"], "b": {"x": 1}}),
    ("nothing", {"a": 1}),
    ("given", {"a": "x", "b": 2}),
]
# Texts that would be read as another type.
LOST = {
    "either": [{"a": "null", "b": 7, "c": "x", "d": 1}, {"a": "x", "b": "7", "c": "x", "d": 1},
               {"a": "x", "b": 7, "c": "[1", "d": 1}],
    "anything": [{"a": "5"}, {"a": "{"}],
}  # fmt: skip


@pytest.mark.parametrize(("name", "syntax"), SYNTAXES, ids=IDS)
@pytest.mark.parametrize("is_token", [False, True])
def test_the_grammar_takes_what_matches_as_the_template_writes_it(name, syntax, is_token) -> None:
    for key, schema in SCHEMAS.items():
        made = Bound(syntax, schema, specials=TOKENS if is_token else ())
        for arguments in GOOD[key]:
            if any(isinstance(v, str) and syntax.arguments.after in v + syntax.arguments.after[:-1] for v in
                   arguments.values()):  # fmt: skip
                continue
            text = made.syntax.render([Call("f", arguments), Call("get.weather", {})])
            assert made.takes(text), text
            assert calls_in(made.events(text))[0] == ("f", arguments)
        for arguments in LOST.get(key, ()):
            text = made.syntax.render([Call("f", arguments)])
            if made.takes(text):  # as another value, which the schema allows as well
                ((_, read),) = calls_in(made.events(text))
                assert read != arguments
                assert not list(Checker(Document(plain(made.schema))).violations(plain(made.schema), read))


@pytest.mark.parametrize(("name", "syntax"), SYNTAXES, ids=IDS)
@pytest.mark.parametrize(("schema", "arguments"), BAD)
def test_the_grammar_refuses_what_does_not_match(name, syntax, schema, arguments) -> None:
    made = Bound(syntax, SCHEMAS[schema])
    assert not made.takes(made.syntax.render([Call("f", arguments)]))


@pytest.mark.parametrize(("name", "syntax"), SYNTAXES, ids=IDS)
@pytest.mark.parametrize("is_null", [False, True])
@pytest.mark.parametrize(
    "more", [{}, {"minLength": 3}, {"maxLength": 5000}, {"pattern": "a"}, {"minLength": 2, "maxLength": 90}]
)
def test_the_first_end_is_the_values(name, syntax, is_null, more) -> None:
    """Whatever else a text must be: what is read ends there, so what is let through must."""
    made = Bound(
        syntax, {"properties": {"a": {"type": ["string", "null"] if is_null else "string", **more}}}, specials=()
    )
    for begin in ("", "1", "null", "xyz"):
        value = f"{begin}{syntax.arguments.after}{'abc' * 3}"
        assert not made.takes(made.syntax.render([Call("f", {"a": value})])), value
    assert made.takes(made.syntax.render([Call("f", {"a": "xayz"})]))


def test_a_name_that_no_tag_can_hold_is_left_out_or_leaves_the_schema_open() -> None:
    odd = {"type": "object", "properties": {"a>b": {"type": "string"}, "c": {"type": "string"}}}
    syntax = SYNTAXES[0][1]
    made = Bound(syntax, odd)
    assert made.kinds["f"] == {"c": ("string",)}
    with pytest.raises(Exception, match="nothing matches"):
        Bound(syntax, {**odd, "required": ["a>b"]})


def test_a_walk_through_the_worker_gives_the_same_grammar() -> None:
    """A schema that is too long to be worked out here; the tags' tokens go with it."""
    from kamado.engine.forms.json_schema import Tagged
    from kamado.engine.forms.json_schema.compiled import _compile, _Form, in_worker

    tagged = Tagged("\ufdd0", "\ufdd1\n", "\n\ufdd2", True, (("\ufdd0", 7), ("\ufdd1", 8), ("\ufdd2", 9)))
    schema = {"type": "object", **SCHEMAS["either"]}
    form = {"item_separator": ", ", "key_separator": ": ", "is_object": True}
    request = {"text": json.dumps(schema), **form, "tagged": {
        "before": "\ufdd0", "middle": "\ufdd1\n", "after": "\n\ufdd2", "has_python_words": True,
        "tokens": [["\ufdd0", 7], ["\ufdd1", 8], ["\ufdd2", 9]]}}  # fmt: skip
    assert in_worker(request) == _compile(schema, _Form(**form, tagged=tagged))
    made = compile_schema(schema, ", ", ": ", is_object=True, tagged=tagged)
    assert "<[7]>" in made.lark
    assert made.kinds["a"] == ("null", "string")


# --- what models do ---------------------------------------------------------------------------------------------------

QWEN = SYNTAXES[0][1]
BODY = "<function=f>\n<parameter=a>\n1\n</parameter>\n</function>"
ANY = {"properties": {"a": {"type": "integer"}}, "required": ["a"]}


@pytest.mark.parametrize("specials", [(), ("<tool_call>", "</tool_call>")])
@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (BODY, ""),
        (f"{BODY}\n</tool_call>", ""),
        (f"I look:\n\n{BODY}\n</tool_call>", "I look:"),
        (f"{BODY}\n</tool_call>\n<tool_call>\n{BODY}\n</tool_call>", ""),
        (f"{BODY}\n<tool_call>\n{BODY}\n</tool_call>", ""),
        (f"<tool_call>\n{BODY}\n</tool_call>", ""),
    ],
)
def test_coder_may_leave_out_the_outer_tag(specials, text, shown) -> None:
    made = Bound(QWEN, ANY, specials=(*specials, "<think>", "</think>"), tags=True)
    text = made.marks.encode(text)
    assert made.takes(text)
    found = made.events(text)
    assert calls_in(found) == [("f", {"a": 1})] * text.count("<function=")
    assert "".join(e.text for e in found if isinstance(e, TextDelta)) == shown
    assert events(list(text), syntax=made.syntax, names=NAMES, kinds=made.kinds, tags=made.tags) == found


@pytest.mark.parametrize("syntax", [QWEN, *(s for n, s in SYNTAXES if n in ("glm-0", "glm-1", "minimax-0"))])
@pytest.mark.parametrize("is_token", [False, True])
@pytest.mark.parametrize("is_open", [False, True])
def test_a_call_may_end_reasoning_that_is_open(syntax, is_token, is_open) -> None:
    made = Bound(syntax, ANY, specials=TOKENS if is_token else (), tags=True, is_reasoning=is_open)
    call = made.syntax.render([Call("f", {"a": 1})])
    text = ("" if is_open else made.tags.open) + "I <b> need a < tool\n" + call
    assert made.takes(text)
    found = made.events(text)
    assert found[0] == ReasoningDelta("I <b> need a < tool")
    assert calls_in(found) == [("f", {"a": 1})]
    closed = text.replace(call, f"{made.tags.close}\n\n{call}")
    assert made.takes(closed)
    assert made.events(closed) == found


def test_the_function_tag_may_be_cut_into_any_tokens() -> None:
    """`<function` and `=name` may each be one token; here two letters are."""
    made = Bound(QWEN, ANY, tokenizer=PairTokenizer, specials=("<tool_call>", "</tool_call>"))
    constraint = made.compiler.compile(made.grammar)
    for token in made.tokenizer.encode(f"<tool_call>\n{BODY}\n</tool_call>", special=True):
        assert token in constraint.allowed()
        constraint.accept(token)
    assert constraint.is_accepting


def test_several_invocations_stand_in_one_block() -> None:
    syntax = minimax.FORMAT.syntaxes[0]
    text = (
        'Both.\n<minimax:tool_call>\n<invoke name="f">\n<parameter name="a">x</parameter>\n</invoke>\n'
        '<invoke name="get.weather">\n</invoke>\n</minimax:tool_call>'
    )
    found = events(list(text), syntax=syntax, names=NAMES)
    assert found[0] == TextDelta("Both.")
    assert calls_in(found) == [("f", {"a": "x"}), ("get.weather", {})]


def test_a_name_may_end_in_a_line_break() -> None:
    dense = glm.FORMAT.syntaxes[1]
    text = "<tool_call>f\n<arg_key>a</arg_key><arg_value>x</arg_value></tool_call><tool_call>get.weather\n</tool_call>"
    assert calls_in(events(list(text), syntax=dense, names=NAMES)) == [("f", {"a": "x"}), ("get.weather", {})]


@pytest.mark.parametrize("call_id", ["", "[CALL_ID]a1B2c3D4e"])
def test_mistral_may_give_its_call_an_id(call_id) -> None:
    syntax = mistral.FORMAT.syntaxes[3]
    made = Bound(syntax, ANY, specials=("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]", "<think>", "</think>"), tags=True)
    text = made.marks.encode(f'[TOOL_CALLS]f{call_id}[ARGS]{{"a": 1}}[TOOL_CALLS]get.weather[ARGS]{{}}')
    assert made.takes(text)
    assert calls_in(made.events(text)) == [("f", {"a": 1}), ("get.weather", {})]
    assert not made.takes(made.marks.encode('[TOOL_CALLS]f[CALL_ID]short[ARGS]{"a": 1}'))


def test_what_is_written_between_tags_is_never_read_twice() -> None:
    """A long value that may be JSON comes in many pieces; each is looked at once."""
    syntax = SYNTAXES[0][1]
    text = "<tool_call>\n<function=f>\n<parameter=x>\n[" + '"</parameter", ' * 20_000 + '""]\n</parameter>\n'
    rng = random.Random(1)
    pieces = cut(text, [rng.randrange(len(text)) for _ in range(20_000)])
    (delta,) = [e for e in events(pieces, syntax=syntax, names=NAMES) if isinstance(e, ToolCallDelta)]
    assert len(json.loads(delta.arguments + "}")["x"]) == 20_001


@pytest.mark.parametrize(
    ("rendered", "wanted"),
    [
        ("<a><think:x>\nW\n</think:x>", ReasoningTags("<think:x>", "</think:x>")),
        ("[THINK]W[/THINK]", ReasoningTags("[THINK]", "[/THINK]")),
        ("<b>W</b>", None),
        ("[{'thinking': 'W'}]", None),
    ],
)
def test_tags_are_seen_around_reasoning(rendered, wanted) -> None:
    assert tags_around(rendered, "W") == wanted


def test_reasoning_ends_where_it_is_closed_though_calls_follow() -> None:
    text = f"<think>a</think>b <tool_call>\n{BODY}\n</tool_call>"
    found = events(list(text), tags=THINK, syntax=QWEN, names=NAMES)
    assert found[:2] == [ReasoningDelta("a"), TextDelta("b")]
