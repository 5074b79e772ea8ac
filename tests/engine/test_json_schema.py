"""What the grammars of schemas take and refuse, keyword by keyword."""

from __future__ import annotations

import contextlib
import json
import random
import re
import time
from decimal import Decimal
from typing import Any

import llguidance
import pytest

from kamado.engine.forms.constraint import _make_trie
from kamado.engine.forms.json_schema import Checker, CheckError, compile_schema, compiled, kept_bytes
from kamado.engine.forms.json_schema import numbers as number_texts
from kamado.engine.forms.json_schema.document import Document, plain
from kamado.engine.forms.json_schema.formats import format_language
from kamado.engine.forms.json_schema.numbers import Range
from kamado.engine.forms.json_schema.pattern import PatternError, language
from kamado.engine.forms.json_schema.trees import is_nothing, matches
from kamado.errors import ConstraintError
from kamado.isolated import WorkerNeededError, without_worker

from .fakes import VOCAB, ByteTokenizer
from .schema_proof.walks import Walker

TRIE = _make_trie(llguidance, ByteTokenizer(), VOCAB)
EMAIL = r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$"
OBJECT = {"type": "object"}


def takes(schema: Any, value: Any, **separators: str) -> bool:
    """Whether an answer of the schema may be this value, written compactly (a text is taken as it is)."""
    compiled = compile_schema(schema, **separators)
    assert not compiled.open, compiled.open
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return Walker(TRIE, compiled.lark).refused_at(text) is None


def closed(**properties: Any) -> dict[str, Any]:
    return {**OBJECT, "properties": properties, "required": list(properties), "additionalProperties": False}


TABLE: dict[str, tuple[Any, list[Any], list[Any]]] = {
    # data is never read as keywords
    "const with a format": (closed(o={"const": {"format": "pdf"}}), [{"o": {"format": "pdf"}}], [{"o": {}}]),
    "const with a reference": ({"const": {"$ref": "#/nowhere"}}, [{"$ref": "#/nowhere"}], [{}]),
    "const with a wrong type": ({"const": {"type": "banana", "enum": 3}}, [{"type": "banana", "enum": 3}], []),
    "const of options": ({"const": {"x-guidance": {"lenient": True}}}, [{"x-guidance": {"lenient": True}}], [{}]),
    "enum of schemas": ({"enum": [{"format": "pdf"}, ["required"]]}, [{"format": "pdf"}, ["required"]], [{}, []]),
    "default and examples": ({"default": {"type": 3}, "examples": [{"$ref": "x"}], "type": "null"}, ["null"], [1]),
    "properties called like keywords": (
        closed(**{name: {"type": "integer"} for name in ("properties", "const", "enum", "$ref", "required", "format")}),
        [dict.fromkeys(("properties", "const", "enum", "$ref", "required", "format"), 1)],
        [{}],
    ),
    "a property called $id": (closed(**{"$id": {"const": "x"}, "$anchor": {}}), [{"$id": "x", "$anchor": 1}], []),
    "definitions in data": ({"const": {"$defs": {"a": {"$anchor": "b"}}}}, [{"$defs": {"a": {"$anchor": "b"}}}], []),
    "x-guidance is a remark": ({"x-guidance": {"whitespace_flexible": True}, "type": "array"}, ["[1,2]"], ["[1, 2]"]),
    # exact numbers
    "a number of 61 bits": ({"enum": [1234567890123456789]}, ["1234567890123456789"], ["1234567890123456768"]),
    "minimum past 2^53": ({"type": "integer", "minimum": 9007199254740993}, ["9007199254740993"], ["9007199254740992"]),
    "maximum past 2^53": ({"type": "integer", "maximum": 9007199254740993}, ["9007199254740993"], ["9007199254740994"]),
    "const past 2^53": ({"const": -9223372036854775808}, ["-9223372036854775808"], ["-9223372036854775807"]),
    "u64": ({"type": "integer", "minimum": 0, "maximum": (1 << 64) - 1}, ["18446744073709551615", "0"],
            ["18446744073709551616", "-1"]),
    "exclusive past 2^53": ({"type": "integer", "exclusiveMinimum": (1 << 62)}, [(1 << 62) + 1], [1 << 62]),
    "64 bits": ({"type": "integer"}, [(1 << 63) - 1, -(1 << 63), 0], [1 << 63, -(1 << 63) - 1, "-0", "007", "1.0"]),
    "digits end": ({"type": "number"}, [1.5, -0.25, 1e300, 5e-324, "0." + "1" * 17], ["1" * 20, "0." + "1" * 18,
                   "1e1000", "1e309"]),
    "a range of fractions": ({"type": "number", "minimum": 0, "exclusiveMaximum": 1}, [0, 0.5, 1e-9, 0.999], [1, "1.0",
                             "0.99999999999999999", -0.1, 1e2]),
    "a bound past 2^53": ({"type": "number", "maximum": 9223372036854775807}, [0.5, "6.22e+16", (1 << 63) - 1],
                          ["9223372036854775807.5", "9.9e18", 1 << 63]),
    "multipleOf": ({"type": "integer", "multipleOf": 7, "minimum": 0}, [0, 7, 70007], [8, -7]),
    "multipleOf 1000": ({"type": "integer", "multipleOf": 1000}, [0, -5000, 1234567890123456000], [500, 1001]),
    "multipleOf 0.01": ({"type": "number", "multipleOf": 0.01}, [19.99, 3], ["0.001"]),
    "multipleOf 1.5": ({"type": "number", "multipleOf": 1.5}, [1.5, 3, -4.5], [1, "5332552796181325.5"]),
    "not whole": ({"type": "number", "not": {"type": "integer"}}, [1.5], [1, "1.0", "7210759514116835007.138"]),
    # P2
    "zod's email": ({"type": "string", "pattern": EMAIL}, ['"a.b@c.de"'], ['".a@c.de"', '"a..b@c.de"', '"a@b"']),
    "uniqueItems of few": ({"type": "array", "items": {"enum": ["a", "b"]}, "uniqueItems": True}, [[], ["b", "a"]],
                           [["a", "a"]]),
    "uniqueItems with minItems": ({"items": {"type": "boolean"}, "type": "array", "uniqueItems": True, "minItems": 2},
                                  [[True, False]], [[True], [True, True]]),
    "propertyNames": ({**OBJECT, "propertyNames": {"pattern": "^[a-z]+$"}, "additionalProperties": {"type": "integer"}},
                      [{}, {"ab": 1}], [{"A": 1}, {"a": "x"}]),
    "zod's record of an enum": (
        {**OBJECT, "propertyNames": {"enum": ["x", "y"]}, "additionalProperties": {"type": "null"}, "required": ["x"]},
        [{"x": None}, {"x": None, "y": None}], [{}, {"z": None}],
    ),
    "not of values": ({"type": "string", "not": {"enum": ["a", "b"]}}, ['"c"', '""', '"ab"'], ['"a"', '"b"']),
    "not of a type": ({"not": {"type": ["object", "array", "string"]}}, [1, True, "null"], [[], {}, '""']),
    "not required": ({**OBJECT, "properties": {"a": {}, "b": {}}, "not": {"required": ["a"]}}, [{"b": 1}], [{"a": 1}]),
    "not a number": ({"type": "integer", "not": {"const": 5}}, [4, 55], [5]),
    "if and then": (
        {**closed(k={"enum": ["a", "b"]}, v={"type": "integer"}),
         "if": {"properties": {"k": {"const": "a"}}}, "then": {"properties": {"v": {"maximum": 0}}}},
        [{"k": "a", "v": 0}, {"k": "b", "v": 9}], [{"k": "a", "v": 9}],
    ),
    "if required": (
        {**OBJECT, "properties": {"a": {"type": "null"}, "b": {"type": "null"}}, "if": {"required": ["a"]},
         "then": {"required": ["b"]}, "else": {"maxProperties": 0}},
        [{}, {"a": None, "b": None}], [{"a": None}, {"b": None}],
    ),
    "overlapping oneOf": ({"oneOf": [{"type": "integer", "maximum": 5}, {"type": "integer", "minimum": 3}]}, [2, 6],
                          [3, 4, 5]),
    "oneOf by constants": (
        {"oneOf": [closed(t={"const": "x"}, v={"type": "null"}), closed(t={"const": "y"}, v={"type": "boolean"})]},
        [{"t": "x", "v": None}, {"t": "y", "v": True}], [{"t": "x", "v": True}],
    ),
    "oneOf by keys": ({**OBJECT, "properties": {"a": {}, "b": {}}, "oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
                      [{"a": 1}, {"b": 1}], [{}, {"a": 1, "b": 1}]),
    "dependentRequired": ({**OBJECT, "properties": {"a": {}, "b": {}}, "dependentRequired": {"a": ["b"]}},
                          [{}, {"b": 1}, {"a": 1, "b": 1}], [{"a": 1}]),
    "dependentSchemas": ({**OBJECT, "properties": {"a": {}, "b": {}}, "dependentSchemas": {"a": {"required": ["b"]}}},
                         [{}, {"b": 1}], [{"a": 1}]),
    "contains": ({"type": "array", "items": {"type": "integer"}, "contains": {"const": 5}}, [[5], [1, 5]], [[], [1]]),
    "contains counted": (
        {"type": "array", "items": {"type": "integer"}, "contains": {"const": 5}, "minContains": 1, "maxContains": 2},
        [[5], [5, 1, 5]], [[5, 5, 5], [1]],
    ),
    "minContains below maxContains": (
        {"type": "array", "items": {"enum": [1, 2]}, "contains": {"const": 1}, "minContains": 1, "maxContains": 3},
        [[1], [1, 1, 1, 2]], [[1, 1, 1, 1], [2]],
    ),
    "enum null is not given": ({"type": "string", "enum": None}, ['"x"'], [1]),
    "enum of null": ({"enum": [None]}, ["null"], [1, '""']),
    "nullable type": ({"type": ["string", "null"], "maxLength": 2}, ['"ab"', "null"], ['"abc"', 1]),
    "required null is not given": ({**OBJECT, "properties": {"a": {}}, "required": None}, [{}], []),
    "recursion": (
        {"$ref": "#/$defs/n", "$defs": {"n": {**OBJECT, "properties": {"v": {"type": "integer"},
         "next": {"anyOf": [{"$ref": "#/$defs/n"}, {"type": "null"}]}}, "required": ["v"]}}},
        [{"v": 1}, {"v": 1, "next": {"v": 2, "next": None}}], [{"v": 1, "next": {}}],
    ),
    "additionalProperties": ({**OBJECT, "properties": {"a": {"const": 0}}, "additionalProperties": {"type": "integer"}},
                             [{"a": 0, "b": 1}, {"b": 1, "c": 2}], [{"b": "x"}, {"a": 1}]),
    "a declared key does not come by its escapes": (
        {**OBJECT, "properties": {"é": {"type": "null"}}, "additionalProperties": {"type": "integer"}},
        ['{"é":null}', '{"è":1}'], ['{"\\u00e9":1}'],
    ),
    "patternProperties": (
        {**OBJECT, "patternProperties": {"^a": {"type": "integer"}, "z$": {"maximum": 3}},
         "additionalProperties": False},
        [{"ab": 9}, {"az": 3}, {"z": "text"}], [{"b": 1}, {"az": 4}],
    ),
    "prefixItems": ({"type": "array", "prefixItems": [{"type": "integer"}, {"type": "null"}], "items": False},
                    [[], [1], [1, None]], [[None], [1, None, 2]]),
    "a tuple of older drafts": ({"type": "array", "items": [{"type": "integer"}], "additionalItems": {"type": "null"},
                                 "minItems": 1}, [[1], [1, None]], [[], [1, 1]]),
    "minProperties": ({**OBJECT, "properties": {"a": {}, "b": {}}, "additionalProperties": False, "minProperties": 1},
                      [{"a": 1}, {"b": 1}], [{}]),
    "maxProperties": ({**OBJECT, "additionalProperties": {"type": "null"}, "maxProperties": 1}, [{}, {"x": None}],
                      [{"x": None, "y": None}]),
    "unevaluatedProperties": (
        {"allOf": [{"properties": {"a": {"type": "null"}}}], "properties": {"b": {"type": "null"}}, "type": "object",
         "unevaluatedProperties": False},
        [{"b": None, "a": None}, {}], [{"c": 1}],
    ),
    "allOf merges": (
        {"allOf": [{**OBJECT, "properties": {"a": {"type": "integer"}}, "required": ["a"]},
                   {"properties": {"a": {"maximum": 3}, "b": {"type": "null"}}}]},
        [{"a": 3}, {"a": 1, "b": None}], [{"a": 4}, {}],
    ),
    "anchors and identifiers": (
        {"$id": "https://x.test/root", "$ref": "item#name", "$defs": {"i": {"$id": "item", "$defs": {
            "n": {"$anchor": "name", "type": "null"}}}}}, ["null"], [1],
    ),
    "draft 4": ({"type": "integer", "minimum": 3, "exclusiveMinimum": True}, [4], [3]),
    # P8
    "compact": (closed(a={"type": "array"}), ['{"a":[1,{"b":2}]}'],
                ['{"a": [1]}', '{ "a":[]}', '{"a":[1, 2]}', '{"a":[]} ']),
    "declared keys only": ({**OBJECT, "properties": {"a": {"type": "null"}}}, [{}, {"a": None}], [{"b": 1}]),
    "a free object stays free": (OBJECT, [{"anything": [1]}], []),
    "in the order of the schema": (closed(b={}, a={}), ['{"b":1,"a":2}'], ['{"a":2,"b":1}']),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_keywords(name: str) -> None:
    schema, goods, bads = TABLE[name]
    for value in goods:
        assert takes(schema, value), value
    for value in bads:
        assert not takes(schema, value), value


def test_separators_are_those_of_the_template() -> None:
    schema = closed(a={"type": "array", "items": {"const": {"b": [1, 2]}}})
    assert takes(schema, '{"a": [{"b": [1, 2]}, {"b": [1, 2]}]}', item_separator=", ", key_separator=": ")
    assert not takes(schema, '{"a":[{"b":[1,2]}]}', item_separator=", ", key_separator=": ")


@pytest.mark.parametrize(
    ("schema", "place", "good", "bad"),
    [
        ({"type": "array", "items": {"type": "integer"}, "uniqueItems": True}, "/uniqueItems", [1, 2], [1, 1]),
        ({"type": "array", "items": {}, "uniqueItems": True}, "/uniqueItems", [1, True], [1, 1.0]),
        (closed(**{"a/b~": {"type": "string", "pattern": "(?<=x)y"}}), "/properties/a~1b~0/pattern", None, None),
        ({"anyOf": [{"type": "integer"}, {"not": {"multipleOf": 3}}]}, "/anyOf/1/not", 3, None),
        ({**OBJECT, "additionalProperties": {"type": "integer"}, "minProperties": 2}, "/minProperties",
         {"a": 1, "b": 2}, {"a": 1}),
        ({"type": "string", "$ref": "other.json"}, "/$ref", None, None),
        (closed(a={"type": ["string", "banana"]}), "/properties/a/type", None, None),
    ],
)  # fmt: skip
def test_what_is_left_open_has_its_place(schema: Any, place: str, good: Any, bad: Any) -> None:
    compiled = compile_schema(schema)
    assert [one.place for one in compiled.open] == [place]
    with pytest.raises(ConstraintError, match=re.escape(f"it is strict and cannot be enforced: {place} (")):
        compiled.refuse_open("it")
    if good is not None:
        assert compiled.violations(json.dumps(good)) == ()
    if bad is not None:
        assert any(place in one for one in compiled.violations(json.dumps(bad)))


def test_a_check_that_cannot_be_made_is_told() -> None:
    compiled = compile_schema(closed(a={"type": "string", "pattern": r"(a)\1"}))
    (told,) = compiled.violations('{"a":"aa"}')
    assert told.startswith("not checked: the pattern")


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "const": 3},
        {"allOf": [{"type": "string"}, {"type": "number"}]},
        {"type": "string", "allOf": [{"pattern": "^[A-Z]+$"}, {"pattern": "^[0-9]+$"}]},
        {"type": "integer", "minimum": 3, "exclusiveMaximum": 3},
        {"$ref": "#/$defs/a", "$defs": {"a": closed(next={"$ref": "#/$defs/a"})}},
        {"not": {}},
        closed(a=False),
        {"type": "array", "minItems": 2, "maxItems": 1},
        {"allOf": [closed(a={}), closed(b={})]},
    ],
)
def test_what_nothing_matches_is_refused_and_never_a_dead_end(schema: Any) -> None:
    with pytest.raises(ConstraintError, match="nothing matches"):
        compile_schema(schema)


def test_properties_that_nothing_matches_are_left_out() -> None:
    schema = {
        **OBJECT,
        "properties": {"a": False, "b": {"type": "null"}, "c": {"allOf": [{"type": "null"}, {"const": 1}]}},
    }
    assert takes(schema, {"b": None})
    assert not takes(schema, '{"a":1}')


def test_ranges_of_numbers_are_exact() -> None:
    rng = random.Random(1)
    for _ in range(60):
        low, high = sorted(rng.randrange(-(10 ** rng.randrange(1, 20)), 10 ** rng.randrange(1, 20)) for _ in "ab")
        tree = number_texts.whole_between(low, high)
        for number in (low, high, low - 1, high + 1, 0, rng.randint(low, high)):
            assert matches(tree, str(number)) == (low <= number <= high)
    for _ in range(40):
        ends = [None, Decimal(rng.randrange(-20, 20)), Decimal(repr(round(rng.uniform(-20, 20), rng.randrange(5))))]
        bounds = Range(rng.choice(ends), rng.choice(ends), rng.random() < 0.5, rng.random() < 0.5)
        tree = number_texts.numbers_in(bounds)
        for _ in range(10):
            text = rng.choice([repr(round(rng.uniform(-25, 25), rng.randrange(4))), str(rng.randrange(1, 25))])
            assert matches(tree, text) == bounds.has(Decimal(text)), (bounds, text)
        for text in ("1e300", "-1e-300", "5e-324", "0.99999999999999999", "-9.9999999999999999e2"):
            if matches(tree, text):
                assert bounds.has(Decimal(repr(float(text)))), (bounds, text)


@pytest.mark.parametrize(
    ("pattern", "goods", "bads"),
    [
        (EMAIL, ["a@b.com"], [".a@b.com", "a..b@c.de"]),
        (r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$", ["1.5", "+3", ".5"], ["+", ".", ""]),  # pydantic's Decimal
        (r"\bfoo\b", ["foo", "a foo b", "foo!"], ["afoo", "foob", "ßfoo", "foo㢼"]),
        (r"a|^b$|c$", ["xax", "b", "zc"], ["bb", "cd"]),
        (r"^(?=.*\d)(?=.*[a-z]).{4,8}$", ["abc1", "1234567a"], ["abcd", "1234", "ab1"]),
        (r"(?i)^abc$", ["ABC", "aBc"], ["abd"]),
        (r"^\D+$", ["ab"], ["a1", "a٣"]),
        (r"^\d$", ["3"], ["٣", "3\n"]),
        (r"^\u{1F600}$|^\ud83d\ude01$", ["\U0001f600", "\U0001f601"], ["x"]),
        (r"^[\w-]{2,3}?$", ["a-", "abc"], ["a", "abcd", "ä-"]),
        (r"^\p{Lu}$", ["Ä"], ["ä"]),
        (r"", ["", "x"], []),
    ],
)
def test_patterns(pattern: str, goods: list[str], bads: list[str]) -> None:
    tree = language(pattern)
    for text in goods:
        assert matches(tree, text), text
    for text in bads:
        assert not matches(tree, text), text


@pytest.mark.parametrize(
    "pattern", ["(", "a)", "[a", r"(a)\1", "(?<=a)b", "(?:(?!a).)*b", "a{3,2}", "*", "[z-a]", "(" * 99]
)
def test_patterns_that_cannot_be_kept(pattern: str) -> None:
    with pytest.raises(PatternError):
        language(pattern)


def test_formats() -> None:
    table = {
        "date": (["2024-02-29", "2000-02-29"], ["2023-02-29", "1900-02-29", "2024-13-01"]),
        "date-time": (["2024-02-29T01:02:03Z", "2024-01-01T00:00:00.5+01:00"], ["2024-02-29", "2024-01-01T24:00:00Z"]),
        "uuid": (["123e4567-e89b-12d3-a456-426614174000"], ["123e4567"]),
        "ipv4": (["1.2.3.255"], ["1.2.3.256", "01.2.3.4"]),
        "ipv6": (["::1", "1:2:3:4:5:6:7:8", "::ffff:1.2.3.4"], [":::", "1::2::3"]),
        "uri": (["http://a.b/c?d#e", "mailto:x@y", "http://[::1]:80/"], ["abc", "http://a b"]),
        "email": (["joe@example.com"], ["joe", "joe@x"]),
        "hostname": (["a-b.c"], ["-a", "a" * 64]),
        "duration": (["P1DT2H", "PT5M", "P2W"], ["P", "P1DT", "1D"]),
    }
    for name, (goods, bads) in table.items():
        tree = format_language(name)
        assert tree is not None
        assert all(matches(tree, text) for text in goods), name
        assert not any(matches(tree, text) for text in bads), name
    assert format_language("shoe-size") is None


def test_a_pattern_of_a_stranger_takes_no_time_to_check() -> None:
    schema = plain({"type": "string", "pattern": "^(a+)+$", "not": {"multipleOf": 3}})
    checker = Checker(Document(schema))
    began = time.perf_counter()
    assert not checker.is_valid(schema, "a" * 200 + "!")
    assert time.perf_counter() - began < 5
    assert is_nothing(language("[^a]b(?!b)$c"))


def test_a_check_of_too_much_ends() -> None:
    schema: Any = {"$defs": {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 3} for i in range(15)}}
    schema["$defs"]["d15"] = {"type": "null"}
    root = plain({**schema, "$ref": "#/$defs/d0"})
    with pytest.raises(CheckError):
        Checker(Document(root)).is_valid(root, 1)


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": [{"anyOf": [{"required": [f"{i}{j}"]} for j in range(4)]} for i in range(20)]},
        {"oneOf": [{"properties": {f"p{i}": {"type": "integer"}}} for i in range(40)]},
        {"dependentRequired": {f"p{i}": [f"q{i}"] for i in range(60)}},
        {"not": {"allOf": [{"not": {"anyOf": [{"const": i}, {"minimum": i}]}} for i in range(60)]}},
        {"type": "string", "allOf": [{"pattern": f"(a.{{{n}}}b|b.{{{n}}}a)"} for n in range(3, 40)]},
        {"type": "array", "contains": {"type": "integer"}, "minContains": 5000},
        {"type": "object", "minProperties": 10**9, "properties": {"a": {}}},
        {"type": "array", "prefixItems": [{}] * 5000},
        {"properties": {f"p{i}": {"anyOf": [{"const": j} for j in range(30)]} for i in range(400)}},
        {"$defs": {f"d{i}": {"items": {"$ref": f"#/$defs/d{i + 1}"}} for i in range(600)} | {"d600": {}},
         "$ref": "#/$defs/d0"},
        {"enum": [[[[[i]]]] for i in range(2000)]},
        {"type": "array", "items": {"enum": list(range(60))}, "uniqueItems": True},
        {
            "anyOf": [{"type": "object", "properties": {f"a{i}": {"type": "string"}}} for i in range(300)],
            "oneOf": [{"type": "object", "properties": {f"b{i}": {"type": "string"}}} for i in range(300)],
        },
        {
            "$defs": {
                f"{name}{i}": {"type": "object", "properties": {"x": {"$ref": f"#/$defs/{name}{(i + 1) % length}"}}}
                for name, length in (("a", 97), ("b", 101))
                for i in range(length)
            },
            "allOf": [{"$ref": "#/$defs/a0"}, {"$ref": "#/$defs/b0"}],
        },
        {"patternProperties": {f"{c}+": {"minimum": i} for i, c in enumerate("abcdefgh")}},
    ],
)  # fmt: skip
def test_hostile_schemas_are_made_or_refused_in_bounded_time(schema: Any) -> None:
    began = time.process_time()
    try:
        compiled = compile_schema(schema)
    except ConstraintError:
        pass
    else:
        assert len(compiled.lark) < 4 << 20
    assert time.process_time() - began < 10  # about a tenth of it on an idle machine


# --- where it is worked out -------------------------------------------------------------------------------------------


def long_schema(last: object) -> dict[str, object]:
    """Of 30,000 characters, which nothing but the last property makes impossible."""
    properties: dict[str, object] = {f"property_{i}": {"type": "string", "maxLength": i + 1} for i in range(480)}
    return {"type": "object", "properties": properties | {"last": last}, "required": ["last"]}


def test_a_long_schema_is_worked_out_by_the_worker_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    schema = long_schema({"type": "integer", "minimum": 7})
    with without_worker(), pytest.raises(WorkerNeededError):
        compile_schema(schema)
    made = compile_schema(schema)
    with without_worker():
        assert compile_schema(schema) is made  # no second time
    monkeypatch.setattr(compiled, "_HERE_CHARACTERS", 1 << 20)
    monkeypatch.setattr(compiled, "_HERE_SECONDS", 60.0)
    with without_worker():  # in this process it is the same grammar
        assert compile_schema({"title": "", **schema}).lark == made.lark


def test_a_refusal_is_kept_as_well() -> None:
    schema = long_schema(False)
    for attempt in range(2):
        with without_worker() if attempt else contextlib.nullcontext(), pytest.raises(ConstraintError, match="nothing"):
            compile_schema(schema)


def test_a_short_schema_that_takes_long_goes_to_the_worker_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_HERE_SECONDS", -1.0)
    schema = {"type": "object", "properties": {"takes_long": {"type": "boolean"}}}
    with without_worker(), pytest.raises(WorkerNeededError):
        compile_schema(schema)
    assert "takes_long" in compile_schema(schema).lark


def test_what_is_kept_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "KEPT_BYTES", 4000)
    for i in range(40):
        compile_schema({"const": f"{i}" * 100})
        assert kept_bytes() <= 4000
