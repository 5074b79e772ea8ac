"""Grammars that were written to kill or stall the compiler: each is refused by name or compiled, in bounded time, and
the process lives. All of it runs in a process of its own, which a fault would end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from kamado.engine.forms.grammar import Grammar, lark_grammar, regex_grammar, schema_grammar
from kamado.engine.forms.grammar_bounds import MAX_RULE_DEPTH, MAX_RULES, check_bounds
from kamado.errors import ConstraintError


def schema_chain(num: int, kind: str) -> dict[str, Any]:
    """`num` references, each to the next."""
    links: dict[str, Any] = {f"d{num}": {"type": "integer"}}
    for i in range(num):
        link = {"$ref": f"#/$defs/d{i + 1}"}
        links[f"d{i}"] = {
            "objects": {"type": "object", "properties": {"a": link}, "required": ["a"], "additionalProperties": False},
            "arrays": {"type": "array", "items": link},
            "tuples": {"type": "array", "prefixItems": [link], "items": False},
            "allOf": {"allOf": [link]},
            "anyOf": {"anyOf": [link, {"type": "null"}]},
            "refs": link,
        }[kind]
    return {"$defs": links, "$ref": "#/$defs/d0"}


def lark_chain(num: int, kind: str) -> str:
    """`num` rules or terminals, each naming the next."""
    line, last = {
        "rules": ('r{i}: "a" r{j}', '"b"'),
        "names": ("r{i}: r{j}", '"b"'),
        "cycle": ('r{i}: "a" r{j}', 'r0 | "b"'),
        "lists": ("r{i}: (r{j} | /x/)*", '"b"'),
        "terminals": ('T{i}: ("a" T{j})?', '"b"'),
        "inlined": ("?r{i} : r{j}", '"b"'),
    }[kind]
    letter = line.lstrip("?")[0]
    rules = [line.format(i=i, j=i + 1) for i in range(num)]
    return "\n".join([f"start: {letter}0", *rules, f"{letter}{num}: {last}"])


SCHEMA_KINDS = ("objects", "arrays", "tuples", "allOf", "anyOf", "refs")
LARK_KINDS = ("rules", "names", "cycle", "lists", "terminals", "inlined")

_RUN = """
import json, sys, time
from engine.fakes import VOCAB, ByteTokenizer
from kamado.engine.forms import grammar_bounds
from kamado.engine.forms.constraint import ConstraintCompiler
from kamado.engine.forms.grammar import Grammar
from kamado.errors import ConstraintError
from kamado.isolated import WORKER
WORKER._nice = 0
if sys.argv[1] == "unbounded":  # what if a chain hides from the static bounds: the worker alone must hold
    grammar_bounds.MAX_RULE_DEPTH = grammar_bounds.MAX_RULES = 1 << 30
compiler = ConstraintCompiler(ByteTokenizer(), VOCAB)
for kind, text in json.load(sys.stdin):
    began = time.process_time()
    try:
        compiler.compile(Grammar(kind, text))
        said = ""
    except ConstraintError as error:
        said = str(error)
    print(json.dumps([said, time.process_time() - began]), flush=True)
"""


def compile_all(grammars: list[Grammar], how: str = "bounded") -> list[str]:
    """What the compiler says of each, "" for one that can be used."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    texts = json.dumps([(grammar.kind, grammar.text) for grammar in grammars])
    done = subprocess.run(
        [sys.executable, "-c", _RUN, how], env=environment, input=texts, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"it ended with {done.returncode}\n{done.stderr[-2000:]}"
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(said) == len(grammars)
    assert all(seconds < 3 for _, seconds in said), said
    return [words for words, _ in said]


def test_long_chains_are_refused_by_name() -> None:
    grammars = [lark_grammar(lark_chain(num, kind)) for kind in LARK_KINDS for num in (2700, 6000)]
    grammars.append(Grammar("parts", json.dumps({"grammars": [
        {"name": "answer", "lark_grammar": "start: @form"},
        {"name": "form", "lark_grammar": lark_chain(1500, "rules")},
    ]})))  # fmt: skip
    for words in compile_all(grammars):
        assert "chain of more than" in words or "more than 4096 rules" in words


@pytest.mark.parametrize("num", [900, 2000])
@pytest.mark.parametrize("kind", SCHEMA_KINDS)
def test_long_chains_of_references_are_refused_before_any_compiler(kind: str, num: int) -> None:
    with pytest.raises(ConstraintError, match="form too long a chain"):
        schema_grammar(schema_chain(num, kind))


def test_chains_of_usual_length_compile() -> None:
    grammars = [schema_grammar(schema_chain(50, kind)) for kind in SCHEMA_KINDS]
    grammars += [lark_grammar(lark_chain(60, kind)) for kind in LARK_KINDS if kind != "names"]
    assert compile_all(grammars) == [""] * len(grammars)


def test_a_chain_that_no_bound_sees_ends_the_worker_only() -> None:
    grammars = [lark_grammar(lark_chain(8000, kind)) for kind in ("rules", "names", "cycle", "terminals")]
    grammars.append(regex_grammar("[ab]+"))
    *said, last = compile_all(grammars, "unbounded")
    assert all("nested too deeply" in words for words in said)
    assert last == ""


HOSTILE = {
    "many states": regex_grammar("(a|b)*a(a|b){18}(c|d)"),
    "huge repeats": regex_grammar("(a{0,2000}b{0,2000}){0,2000}"),
    "nested expression": regex_grammar("(" * 5000 + "a" + ")*" * 5000),
    "ambiguous": lark_grammar('start: r\nr: r r | "a" | "b" | ""'),
    "very ambiguous": lark_grammar(
        'start: "q" r\nr: r r | '
        + " | ".join(f"x{i}" for i in range(400))
        + "".join(f'\nx{i}: "a" | "aa" | r' for i in range(400))
    ),
    "many expressions": lark_grammar(
        "start: T\nT: " + " & ".join(f"/[a-z ]*{chr(97 + i)}[a-z ]{{{20 + i}}}x.*/" for i in range(12))
    ),
    "wide": lark_grammar(
        "start: " + " ".join(f"x{i}" for i in range(4000)) + "".join(f'\nx{i}: "a"?' for i in range(4000))
    ),
    "long": schema_grammar({"type": "array", "items": {"type": "string", "minLength": 10**9}, "minItems": 10**6}),
}  # fmt: skip


def test_everything_hostile_is_answered() -> None:
    said = dict(zip(HOSTILE, compile_all(list(HOSTILE.values())), strict=True))
    for name in ("nested expression", "very ambiguous"):
        assert "cannot be used" in said[name], name


def test_an_ambiguous_answer_ends_before_it_holds_up_the_others() -> None:
    from kamado.engine.forms.constraint import ConstraintCompiler

    from .fakes import VOCAB, ByteTokenizer

    constraint = ConstraintCompiler(ByteTokenizer(), VOCAB).compile(HOSTILE["ambiguous"])
    with pytest.raises(ConstraintError, match="too ambiguous"):
        for _ in range(5000):
            constraint.allowed()
            constraint.accept(ord("a"))


# --- the bounds themselves --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LARK_KINDS)
def test_the_rule_bound_is_exact(kind: str) -> None:
    check_bounds(lark_grammar(lark_chain(MAX_RULE_DEPTH - 2, kind)))
    with pytest.raises(ConstraintError, match="chain of more than 1000 links"):
        check_bounds(lark_grammar(lark_chain(MAX_RULE_DEPTH + 1, kind)))


def test_rules_are_counted_and_other_words_are_not() -> None:
    check_bounds(lark_grammar('start: "a: b" /c: d/ # e: f\n// g: h\n' + "\n".join(f'r{i}: "x"' for i in range(4000))))
    with pytest.raises(ConstraintError, match=f"more than {MAX_RULES} rules"):
        check_bounds(lark_grammar("start: r0\n" + "\n".join(f'r{i}: "x"' for i in range(MAX_RULES + 1))))


def test_many_definitions_that_name_each_other_are_no_chain() -> None:
    names = [f"d{i}" for i in range(100)]
    one_of = [{"$ref": f"#/$defs/{name}"} for name in names]
    defs = {name: {"type": "object", "properties": {"next": {"anyOf": one_of}}} for name in names[:50]}
    check_bounds(schema_grammar({"$defs": {name: {} for name in names} | defs, "$ref": "#/$defs/d0"}))


def test_an_ordinary_schema_needs_no_worker() -> None:
    address = {
        "type": "object",
        "properties": {"street": {"type": "string", "maxLength": 80}, "no": {"type": "integer"}},
    }
    person = {
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/address"}, "kind": {"enum": ["x", "y"]}, "tags": {"type": "array"}},
        "required": ["a"],
        "$defs": {"address": address},
    }
    assert check_bounds(schema_grammar(person))
    assert check_bounds(schema_grammar(person | {"allOf": [{}]}))
    assert not check_bounds(schema_grammar({"type": "string", "pattern": "a+"}))
    assert not check_bounds(schema_grammar({"type": "string", "minLength": 10**6}))
    assert not check_bounds(regex_grammar("a"))
    assert not check_bounds(lark_grammar('start: "a"'))
