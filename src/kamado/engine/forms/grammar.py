"""What an answer must be, as a bounded text: a JSON Schema, a regular expression or a Lark grammar.

Nothing here needs the package that enforces it (engine/forms/constraint.py does), so a server can refuse a schema
before a model is loaded, and say what of it is not enforced. json_schema/ makes grammars of schemas; its bounds keep
the compiler below a second and 100 MB for anything that passes; what is slow for other reasons runs out of fuel.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ...errors import ConstraintError
from .json_schema import CompiledSchema, compile_schema

MAX_CHARACTERS = 1 << 18


@dataclass(frozen=True, slots=True)
class Grammar:
    """A constraint that was checked for size. `text` is the expression or the grammar, for a schema the grammar that
    was made of it; of "parts", JSON of several grammars that name each other, the first of which is the whole.

    `schema`: what a schema's grammar was made of, with what it leaves open. `is_plain`: no expression of a stranger is
    in what was made of schemas, of "parts" in `own_parts`.
    """

    kind: Literal["json_schema", "regex", "lark", "parts"]
    text: str
    schema: CompiledSchema | None = field(default=None, compare=False)
    is_plain: bool = field(default=False, compare=False)
    own_parts: frozenset[str] = field(default=frozenset(), compare=False)


Schema = Mapping[str, Any] | bool | str | Grammar


def schema_grammar(schema: Schema, *, lenient: bool = False) -> Grammar:
    """A JSON Schema (a mapping, its JSON text, or True for any JSON value). JSON has no blanks between its parts.

    `lenient`: keywords that cannot be enforced are left open and stand in `schema.open`; else they are refused, by name
    and place. Raises ConstraintError for that, and when it is no schema, too large or too deep, or nothing matches it.
    """
    if isinstance(schema, Grammar):
        return schema
    if isinstance(schema, str):
        check_length("the schema", schema)
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise ConstraintError(f"the schema is no JSON: {str(error)[:200]}") from None
    if not isinstance(schema, Mapping | bool):
        raise ConstraintError(f"a schema must be a JSON object, not {type(schema).__name__}")
    compiled = compile_schema(schema)
    if not lenient:
        compiled.refuse_open("the schema")
    return Grammar("json_schema", compiled.lark, compiled, compiled.is_plain)


def regex_grammar(regex: str) -> Grammar:
    """A regular expression that the whole answer matches, without look-around and back-references."""
    return Grammar("regex", _checked_text("the regular expression", regex))


def lark_grammar(grammar: str) -> Grammar:
    """A context-free grammar in Lark's notation; its rule `start` is the whole answer."""
    return Grammar("lark", _checked_text("the grammar", grammar))


def make_grammar(schema: Schema | None, regex: str | None, grammar: str | None) -> Grammar | None:
    """The one that is given; None when none is. Raises ConstraintError for two, and as the functions above do."""
    given = [name for name, value in (("schema", schema), ("regex", regex), ("grammar", grammar)) if value is not None]
    if len(given) > 1:
        raise ConstraintError(f"{given[0]} and {given[1]} are both given: an answer has one form")
    if schema is not None:
        return schema_grammar(schema)
    if regex is not None:
        return regex_grammar(regex)
    return None if grammar is None else lark_grammar(grammar)


def _checked_text(what: str, text: object) -> str:
    if not isinstance(text, str):
        raise ConstraintError(f"{what} must be text, not {type(text).__name__}")
    check_length(what, text)
    return text


def check_length(what: str, text: str) -> None:
    """Raises ConstraintError for a text that is too long."""
    if len(text) > MAX_CHARACTERS:
        raise ConstraintError(f"{what} has {len(text)} characters: {MAX_CHARACTERS} are allowed")
