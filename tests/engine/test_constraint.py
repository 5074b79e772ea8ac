"""Answers keep their form whatever the logits say; a schema that cannot be kept is refused with its reason."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys

import numpy as np
import pytest

from kamado.engine.forms.constraint import ConstraintCompiler
from kamado.engine.forms.grammar import lark_grammar, make_grammar, regex_grammar, schema_grammar
from kamado.engine.schedule.sampler import Sampler
from kamado.errors import ConstraintError, MissingPackageError
from kamado.options import Sampling
from kamado.plan.sizes import constraint_bytes

from .fakes import EOS, IM_END, VOCAB, ByteTokenizer, FakeExecutor, make_model

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def text_of(pieces) -> str:
    return "".join(piece.text for piece in pieces)


@pytest.fixture(scope="module")
def compiler() -> ConstraintCompiler:
    return ConstraintCompiler(ByteTokenizer(), VOCAB)


def walk(compiler, grammar, text: str):
    """The constraint after `text`, every byte of which it must have allowed."""
    constraint = compiler.compile(grammar)
    for byte in text.encode():
        assert byte in constraint.allowed(), (text, chr(byte))
        constraint.accept(byte)
    return constraint


@pytest.mark.parametrize("seed", range(12))
def test_random_logits_still_give_an_answer_of_the_schema(seed: int) -> None:
    with make_model(context=4096) as model:
        pieces = list(model.generate("Q", schema=PERSON, seed=seed, temperature=2.0, top_k=0, top_p=1.0))
        value = json.loads(text_of(pieces))
        assert set(value) == {"name", "age"}
        assert len(value["name"]) <= 8
        assert 0 <= value["age"] <= 99
        assert pieces[-1].finish_reason == "stop"


def test_the_form_holds_for_every_way_to_draw() -> None:
    with make_model(context=4096) as model:
        for how in (
            {"temperature": 0},
            {"temperature": 1.5, "top_k": 2},
            {"temperature": 1.5, "top_k": 0, "top_p": 0.5},
            {"temperature": 1.5, "top_k": 0, "top_p": 1.0, "min_p": 0.3},
            {"temperature": 1.5, "repetition_penalty": 1.3, "frequency_penalty": 0.5},
            {"temperature": 1.5, "logit_bias": {ord("x"): 100.0}},
        ):
            answer = text_of(model.generate("Q", regex="[a-c]{3,5}-[0-9]{2}", seed=5, **how))
            assert re.fullmatch("[a-c]{3,5}-[0-9]{2}", answer), how


def test_the_same_seed_gives_the_same_answer_alone_and_in_company() -> None:
    with make_model(context=4096, kv_tokens=16384) as model:
        (alone,) = [text_of(model.generate("Q", schema=PERSON, seed=3))]
        running = [model.generate("Q", schema=PERSON, seed=seed) for seed in (1, 2, 3, 3)]
        answers = [text_of(answer) for answer in running]
        assert answers[2] == answers[3] == alone
        assert len(set(answers)) == 3


def test_an_answer_may_end_only_where_its_form_does(compiler) -> None:
    grammar = regex_grammar("(ab)+")
    assert EOS not in walk(compiler, grammar, "aba").allowed()
    after = walk(compiler, grammar, "abab")
    assert set(after.allowed()) == {ord("a"), EOS, IM_END}
    assert (after.is_accepting, after.is_complete) == (True, False)
    after.accept(IM_END)
    assert after.is_complete


def test_an_answer_ends_by_itself_when_nothing_can_follow() -> None:
    executor = FakeExecutor(logits_of=lambda tokens: np.zeros(VOCAB, np.float32))
    with make_model(executor) as model:
        pieces = list(model.generate("Q", regex="yes|no", temperature=0))
        assert (text_of(pieces), pieces[-1].finish_reason) == ("no", "stop")
        assert len(pieces) == 2  # no step is spent on an end that is certain


def test_a_cut_answer_says_so() -> None:
    with make_model() as model:
        pieces = list(model.generate("Q", regex="a{50}", max_tokens=3, temperature=0))
        assert (text_of(pieces), pieces[-1].finish_reason) == ("aaa", "length")
        pieces = list(model.generate("Q", regex="a{50}", stop="aaaa", temperature=0))
        assert (text_of(pieces), pieces[-1].finish_reason) == ("", "stop")


def test_log_probabilities_are_the_models_own() -> None:
    with make_model() as model:
        (piece, *_) = model.generate("Q", regex="[xy]", temperature=0, logprobs=2)
        logits = model.logits(model.tokenize("Q"))[-1].astype(float)
        wanted = logits - np.log(np.exp(logits).sum())
        assert piece.token in b"xy"
        assert piece.logprob == pytest.approx(wanted[piece.token], abs=1e-5)
        assert piece.top_logprobs[0][0] == int(wanted.argmax())


def test_a_grammar_of_rules(compiler) -> None:
    grammar = lark_grammar('start: pair ("," pair)*\npair: "(" NAME ")"\nNAME: /[a-z]+/')
    assert set(walk(compiler, grammar, "(ab)").allowed()) == {ord(","), EOS, IM_END}
    assert ord(")") not in walk(compiler, grammar, "(").allowed()


def test_special_tokens_do_not_come_by_their_text(compiler) -> None:
    after = walk(compiler, schema_grammar({"type": "string"}), '"<')
    assert not {256, 258} & set(after.allowed())
    assert ord("|") in after.allowed()


def test_json_has_no_blanks_between_its_parts(compiler) -> None:
    after = walk(compiler, schema_grammar(True), '{"a":[1')
    assert not set(after.allowed()) & set(b" \t\r\n")
    assert {ord(","), ord("]")} <= set(after.allowed())


def test_allowed_tokens_are_drawn_as_if_there_were_no_others() -> None:
    logits = np.linspace(-3, 3, 50, dtype=np.float32)
    allowed = np.array([3, 17, 40, 41])
    alone = Sampler(Sampling(seed=9, top_k=0, top_p=0.9, temperature=1.3), 4)
    among = Sampler(Sampling(seed=9, top_k=0, top_p=0.9, temperature=1.3), 50)
    for position in range(200):
        assert among.pick(logits, position, allowed) == allowed[alone.pick(logits[allowed], position)]


def nested(depth: int) -> dict:
    schema: dict = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "banana"}, "banana"),
        ({"properties": 3}, "/properties (its value"),
        ({"properties": {"a": {"not": {"multipleOf": 7}}}}, "/properties/a/not ("),
        (False, "nothing matches"),
        ({"type": "string", "enum": [1]}, "nothing matches"),
        ({"$ref": "#"}, "/$ref (it refers to itself"),
        ({"$ref": "https://example.com/schema"}, "nothing is fetched"),
        ({"type": "string", "pattern": "(?<=a)b"}, "/pattern (look-behind"),
        ({"type": "number", "multipleOf": 3e-300}, "/multipleOf (its step"),
        ({"x-guidance": {"lenient": True}, "not": {}}, "nothing matches"),
        ({"enum": [1 << 1000]}, "1000 bits"),
        ({"enum": [float("nan")]}, "not finite"),
        ({"enum": [b"x"]}, "bytes"),
        ({"enum": list(range(30_000))}, "more than 20000"),
        ({"const": "x" * (1 << 18)}, "characters"),
        ({"enum": ["\ud800"]}, "surrogate"),
        (nested(60), "deeper than 48"),
        ({"properties": {f"p{i}": {} for i in range(5000)}}, "5000 properties"),
        ({"allOf": [{"anyOf": [{"properties": {f"{i}{j}": {}}} for j in (1, 2)]} for i in range(12)]}, "alternatives"),
        ("{", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ([1], "must be a JSON object"),
    ],
)
def test_a_schema_that_cannot_be_kept_is_refused(compiler, schema, words) -> None:
    with pytest.raises(ConstraintError, match=re.escape(words)):
        compiler.compile(schema_grammar(schema))


@pytest.mark.parametrize(
    "schema",
    [
        nested(45),
        {"properties": {f"p{i}": {} for i in range(500)}},
        {"type": "array", "items": {"type": "integer"}, "minItems": 10**6},
        {"type": "string", "pattern": "(x+x+)+y"},
        {"type": "string", "pattern": "^((a{1,30}){1,30}){1,30}$"},
        {"type": "string", "pattern": "(.*a.{20}){3}"},
        {"type": "string", "minLength": 10**6},
        {"$defs": {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(18)} | {"d18": {}}}
        | {"$ref": "#/$defs/d0"},
    ],
)
def test_a_hostile_schema_is_compiled_or_refused_and_never_hangs(compiler, schema) -> None:
    with contextlib.suppress(ConstraintError):  # it may be refused, or run out of fuel
        constraint = compiler.compile(schema_grammar(schema))
        for _ in range(50):
            constraint.accept(int(constraint.allowed()[0]))


def test_what_cannot_be_enforced_may_be_left_out(compiler) -> None:
    odd = {"type": "integer", "not": {"multipleOf": 7}}
    schema = {"type": "object", "properties": {"a": odd}, "required": ["a"]}
    with pytest.raises(ConstraintError, match="/properties/a/not"):
        compiler.compile(schema_grammar(schema))
    grammar = schema_grammar(schema, lenient=True)
    walk(compiler, grammar, '{"a":14}')
    assert [one.place for one in grammar.schema.open] == ["/properties/a/not"]
    assert grammar.schema.violations('{"a":14}') == ("/a violates /properties/a/not",)
    assert grammar.schema.violations('{"a":15}') == ()


def test_an_unknown_format_is_a_remark(compiler) -> None:
    walk(compiler, schema_grammar({"type": "string", "format": "shoe-size"}), '"12"')
    assert ord("x") not in walk(compiler, schema_grammar({"type": "string", "format": "date"}), '"').allowed()


@pytest.mark.parametrize(
    ("regex", "words"), [("(", "unclosed group"), (r"(a)\1", "backreference"), (3, "must be text")]
)
def test_a_wrong_expression_is_refused(compiler, regex, words) -> None:
    with pytest.raises(ConstraintError, match=words):
        compiler.compile(regex_grammar(regex))


@pytest.mark.parametrize(
    ("grammar", "words"), [("start: foo", "foo"), ("start: start", "no text"), ("", "Empty grammar")]
)
def test_a_wrong_grammar_is_refused(compiler, grammar, words) -> None:
    with pytest.raises(ConstraintError, match=words):
        compiler.compile(lark_grammar(grammar))


def test_an_answer_has_one_form() -> None:
    assert make_grammar(None, None, None) is None
    with pytest.raises(ConstraintError, match="schema and regex"):
        make_grammar({}, "a", None)


def test_the_error_of_one_answer_leaves_the_others_alone() -> None:
    with make_model() as model:
        with pytest.raises(ConstraintError):
            model.generate("Q", schema={"type": "banana"})
        assert len(text_of(model.generate("Q", regex="[ab]{7}"))) == 7


def test_without_the_package_the_extra_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with make_model() as model:
        with pytest.raises(MissingPackageError, match=re.escape("kamado[schema]")):
            model.generate("Q", regex="a")
        assert list(model.generate("Q", max_tokens=1))


def test_rows_past_the_vocabulary_are_never_picked() -> None:
    compiler = ConstraintCompiler(ByteTokenizer(), VOCAB + 60)
    constraint = compiler.compile(regex_grammar("(.|\n)+"))
    assert constraint.allowed().max() < 256


def test_memory_has_an_owner_once_there_is_a_form() -> None:
    with make_model() as model:
        list(model.generate([1], max_tokens=2, temperature=0))
        assert "constraints" not in model.stats.bytes_by_owner
        list(model.generate([1], max_tokens=2, temperature=0, regex="[ab]*"))
        assert model.stats.bytes_by_owner["constraints"] == constraint_bytes(model.vocab_size, is_peak=False)


_MEASURE = """
import gc, itertools, json, re
from pathlib import Path
from types import SimpleNamespace
from kamado.engine.forms.constraint import ConstraintCompiler
from kamado.engine.forms.grammar import make_grammar

def status(name):  # bytes of this process, its own since it began
    return 1024 * int(re.search(rf"{name}:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

letters = b"etaoinshrdlucmfwypvbgkjqxz ETAOIN0123456789_.-"
words = itertools.chain.from_iterable(map(bytes, itertools.product(letters, repeat=n)) for n in (1, 2, 3, 4))
tokens = [bytes([i]) for i in range(256)] + list(itertools.islice(words, 150_000 - 257)) + [b"<|end|>"]
tokenizer = SimpleNamespace(
    vocab_size=150_000, token_bytes=tokens.__getitem__, special_ids=frozenset([149_999]), stop_ids=frozenset([149_999]),
    bos_id=None, encode=lambda text, **_: list(text.encode()),
)
gc.collect()
before = status("VmRSS")
compiler = ConstraintCompiler(tokenizer, 150_000)
for i in range(32):
    schema = {"type": "object", "properties": {f"p{i}_{j}": {"type": "string"} for j in range(10)}}
    compiler.compile(make_grammar(schema, None, None)).allowed()
print(json.dumps([status("VmHWM") - before, compiler.nbytes]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_large_vocabulary_takes_what_is_planned() -> None:
    """A trie of 150 000 tokens and 32 grammars, in a process of their own."""
    result = subprocess.run([sys.executable, "-c", _MEASURE], capture_output=True, text=True, check=True)
    peak_bytes, nbytes = json.loads(result.stdout)
    assert 0.35 * constraint_bytes(150_000) <= peak_bytes <= constraint_bytes(150_000)
    assert nbytes == constraint_bytes(150_000, is_peak=False)
