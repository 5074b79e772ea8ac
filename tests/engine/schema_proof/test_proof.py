"""Both directions, by the judgement of the package `jsonschema`: what a grammar gives is valid, and what is valid and
in the form of an answer is taken.

KAMADO_SCHEMA_WALKS and KAMADO_SCHEMA_INSTANCES set how many (full: 100000 and 20000), KAMADO_SCHEMA_SOURCES a folder
that keeps the fetched packages.
"""

from __future__ import annotations

import json
import os
import random
import re
from collections import Counter
from collections.abc import Mapping
from functools import cache
from typing import Any

import llguidance
import pytest

pytest.importorskip("jsonschema")
pytest.importorskip("hypothesis_jsonschema")

import jsonschema

from kamado.engine.forms.constraint import _make_trie
from kamado.engine.forms.json_schema import Checker, CheckError, CompiledSchema, compile_schema
from kamado.engine.forms.json_schema.document import Document, plain
from kamado.engine.forms.json_schema.formats import FORMATS, format_language
from kamado.engine.forms.json_schema.trees import matches
from kamado.engine.forms.json_schema.values import decimal_of
from kamado.errors import ConstraintError

from ..fakes import VOCAB, ByteTokenizer
from .drawn import compact, draw, has_other_digits, ordered, past_bounds
from .sources import pydantic_schemas, suite_groups, zod_schemas
from .walks import Walker, hints_of, random_root

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

NUM_WALKS = int(os.environ.get("KAMADO_SCHEMA_WALKS", "1000"))
NUM_INSTANCES = int(os.environ.get("KAMADO_SCHEMA_INSTANCES", "200"))
NUM_DRAWN, NUM_RANDOM = 80, 400
_REMOTE = ("refRemote", "vocabulary")  # they refer to documents that are not in the schema


@cache
def trie() -> Any:
    return _make_trie(llguidance, ByteTokenizer(), VOCAB)


@cache
def pool() -> dict[str, list[Any]]:
    """Schemas by where they come from; of pydantic's and zod's 80 with a fixed seed."""
    rng = random.Random(10)
    real = [("pydantic", schema) for schema in pydantic_schemas()] + [("zod", schema) for schema in zod_schemas()]
    drawn = rng.sample(real, NUM_DRAWN)
    return {
        "pydantic": [schema for name, schema in drawn if name == "pydantic"],
        "zod": [schema for name, schema in drawn if name == "zod"],
        "suite": [group["schema"] for group in suite_groups() if group["file"] not in _REMOTE],
        "random": [random_root(rng) for _ in range(NUM_RANDOM)],
    }


def matches_nothing(schema: Any) -> bool:
    """Whether a schema is refused because it is empty: zod's intersections of closed objects, endless recursion."""
    try:
        compile_schema(schema)
    except ConstraintError as error:
        return "nothing matches" in str(error)
    return False


def strict(schema: Any) -> CompiledSchema | None:
    """The schema as a strict one; None when it is refused."""
    try:
        compiled = compile_schema(schema)
        compiled.refuse_open("it")
        return compiled
    except ConstraintError:
        return None


def _multiple(_: Any, step: Any, value: Any, __: Any) -> Any:
    """multipleOf in decimal numbers: jsonschema divides doubles, by which 2.4 is no multiple of 0.0001."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if is_number and decimal_of(value) % decimal_of(step) != 0:
        yield jsonschema.ValidationError(f"{value} is no multiple of {step}")


@cache
def formats() -> jsonschema.FormatChecker:
    """Formats as answers have them."""
    found = jsonschema.FormatChecker(formats=())
    for name in FORMATS:
        tree = format_language(name)
        found.checks(name)(lambda value, tree=tree: not isinstance(value, str) or matches(tree, value))
    return found


def judge(schema: Any, checker: jsonschema.FormatChecker | None = None) -> Any:
    """jsonschema's validator of the schema's own draft; of draft 4 where exclusiveMinimum is true or false."""
    text = json.dumps(schema)
    kind = jsonschema.Draft202012Validator
    if isinstance(schema, Mapping):
        kind = jsonschema.validators.validator_for(schema, default=kind)
    if re.search(r'"exclusiveM(in|ax)imum": (true|false)', text):
        kind = jsonschema.Draft4Validator
    return jsonschema.validators.extend(kind, {"multipleOf": _multiple})(schema, format_checker=checker)


def walkers() -> list[tuple[str, Any, Walker]]:
    found = []
    for name, schemas in pool().items():
        for schema in schemas:
            compiled = strict(schema)
            if compiled is not None:
                try:
                    found.append((name, schema, Walker(trie(), compiled.lark, hints_of(schema))))
                except ConstraintError:
                    continue  # the compiler's fuel: refused as strict, left open otherwise
    return found


def test_walks_give_nothing_that_jsonschema_refuses() -> None:
    rng = random.Random(20)
    all_walkers = walkers()
    counts: Counter[str] = Counter()
    bad: list[tuple[Any, str]] = []
    judges = [judge(schema) for _, schema, _ in all_walkers]
    unjudged: set[int] = set()
    for turn in range(-(-NUM_WALKS // len(all_walkers))):
        for i, (name, schema, walker) in enumerate(all_walkers):
            if i in unjudged:
                continue
            text = walker.walk(rng)
            counts[name] += 1
            if text is None:
                counts["without end"] += 1
                continue
            try:
                is_valid = judges[i].is_valid(json.loads(text))
            except Exception:  # a pattern that Python's `re` does not know, a reference that it does not find
                unjudged.add(i)
                continue
            if not is_valid:
                bad.append((schema, text))
        if turn % 10 == 9:
            print(turn + 1, "rounds", dict(counts), len(bad), "refused", len(unjudged), "not judged", flush=True)
    print(dict(counts), {name: len(schemas) for name, schemas in pool().items()}, len(all_walkers), "grammars")
    assert not bad, bad[:5]
    # Patterns that look for what chance does not find within a walk's length: it could end, the walk does not know how.
    assert counts["without end"] <= 0.005 * counts.total()
    assert counts.total() >= NUM_WALKS * 0.95  # some schemas cannot be judged


def test_instances_are_taken() -> None:
    all_walkers = walkers()
    each = -(-3 * NUM_INSTANCES // (2 * len(all_walkers))) + 2  # some are left out below
    counts: Counter[str] = Counter()
    unexplained: list[tuple[Any, str]] = []
    random.Random(30).shuffle(all_walkers)
    for name, schema, walker in all_walkers:
        if counts["taken"] + counts["refused"] >= NUM_INSTANCES:
            break
        counts["schemas"] += 1
        if counts["schemas"] % 50 == 0:
            print(dict(counts), len(unexplained), "unexplained", flush=True)
        own = judge(schema)
        for value in draw(schema, each, 40):
            counts["drawn"] += 1
            try:
                value = ordered(schema, value)
                is_valid = own.is_valid(value)
            except Exception:
                counts["not judged"] += 1
                continue
            text = compact(value)
            if not is_valid or text is None:
                counts["not valid without undeclared keys"] += 1
                continue
            if reason := past_bounds(text):
                counts[reason] += 1
                continue
            is_taken = walker.refused_at(text) is None
            if not is_taken and has_other_digits(text):
                counts["digits or letters of other scripts, which no \\d or \\w of ECMA 262 takes"] += 1
                continue
            if not is_taken and not judge(schema, formats()).is_valid(value):
                counts["not of the format, which is kept to"] += 1
                continue
            counts["taken" if is_taken else "refused"] += 1
            counts[name] += 1
            if not is_taken:
                unexplained.append((schema, text))
                if len(unexplained) <= 30:
                    print(text[:200], "|", json.dumps(schema)[:300], flush=True)
    print(dict(counts), len(unexplained), "for other reasons")
    assert counts["taken"] >= 0.99 * (counts["taken"] + counts["refused"])
    assert counts["taken"] + counts["refused"] >= NUM_INSTANCES * 0.8


def test_nearly_all_schemas_of_pydantic_and_zod_work_as_strict() -> None:
    all_schemas = {"pydantic": pydantic_schemas(), "zod": zod_schemas()}
    works = {name: sum(strict(schema) is not None for schema in schemas) for name, schemas in all_schemas.items()}
    totals = {name: len(schemas) for name, schemas in all_schemas.items()}
    drawn = pool()["pydantic"] + pool()["zod"]
    num_drawn = sum(strict(schema) is not None for schema in drawn)
    num_empty = sum(map(matches_nothing, drawn))
    all_empty = {name: sum(map(matches_nothing, schemas)) for name, schemas in all_schemas.items()}
    print(works, "of", totals, all_empty, "empty;", num_drawn, "of", len(drawn), "drawn,", num_empty, "empty")
    assert min(totals.values()) > 300
    assert sum(works.values()) >= 0.95 * sum(totals.values())


def test_the_checker_agrees_with_the_test_suite() -> None:
    wrong = []
    num = 0
    for group in suite_groups():
        if group["file"] in ("dynamicRef", *_REMOTE):
            continue
        root = plain(group["schema"])
        checker = Checker(Document(root))
        for case in group["tests"]:
            num += 1
            try:
                if checker.is_valid(root, case["data"]) != case["valid"]:
                    wrong.append((group["description"], case["description"]))
            except CheckError:
                continue  # it refers to a document that is not here, and says so
    assert num > 1000
    # What depends on $dynamicRef, which is never taken as kept, and a quotient past the end of doubles.
    assert len(wrong) <= 3, wrong


def test_what_the_suite_calls_invalid_is_never_taken() -> None:
    taken = []
    num = 0
    for group in suite_groups():
        compiled = strict(group["schema"]) if group["file"] not in _REMOTE else None
        if compiled is None:
            continue
        walker = Walker(trie(), compiled.lark)
        for case in group["tests"]:
            if not case["valid"]:
                num += 1
                if walker.refused_at(json.dumps(case["data"], separators=(",", ":"), ensure_ascii=False)) is None:
                    taken.append((group["description"], case["description"]))
    assert num > 350
    assert not taken
