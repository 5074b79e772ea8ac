"""What an answer must be, as a bounded text: a JSON Schema, a regular expression or a Lark grammar.

Nothing here needs the package that enforces it (engine/constraint.py does), so a server can refuse a schema before a
model is loaded. The bounds keep the compiler below a second and 100 MB for anything that passes; what is slow for other
reasons runs out of the compiler's own fuel.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import ConstraintError

MAX_CHARACTERS = 1 << 18
MAX_DEPTH = 48  # the compiler's own JSON reader stops at 128 levels, two or three of which a schema level takes
MAX_VALUES = 20_000
MAX_PROPERTIES = 512  # of one object: time grows with their square, 75 ms for 500
MAX_ALL_PROPERTIES = 4096
MAX_INTEGER_BITS = 63
_RULE_KEY = "x-guidance"  # the compiler's own options inside a schema are not the schema's author's to change
# Formats that the compiler can enforce; any other is a remark, as JSON Schema says.
_FORMATS = frozenset({"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"})

Schema = Mapping[str, Any] | bool | str


@dataclass(frozen=True, slots=True)
class Grammar:
    """A constraint that was checked for size. `text` is JSON for a schema, else the expression or the grammar; of
    "parts", JSON of several grammars that name each other, the first of which is the whole.

    `is_lenient`: keywords that cannot be enforced are left out instead of refused.
    """

    kind: Literal["json_schema", "regex", "lark", "parts"]
    text: str
    is_lenient: bool = False


def schema_grammar(schema: Schema, *, lenient: bool = False) -> Grammar:
    """A JSON Schema (a mapping, its JSON text, or True for any JSON value).

    Raises ConstraintError when it is no schema, too large or too deep, or false.
    """
    if isinstance(schema, str):
        check_length("the schema", schema)
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise ConstraintError(f"the schema is no JSON: {str(error)[:200]}") from None
    return Grammar("json_schema", schema_text(schema), lenient)


def schema_text(schema: object) -> str:
    """Compact JSON of a schema that may be compiled. Raises as `schema_grammar` does."""
    if isinstance(schema, bool):
        if not schema:
            raise ConstraintError("the schema is false, which nothing matches")
        schema = {}
    if not isinstance(schema, Mapping):
        raise ConstraintError(f"a schema must be a JSON object, not {type(schema).__name__}")
    plain = _plain(schema, _Counts(), 0)
    plain.pop(_RULE_KEY, None)
    try:
        text = json.dumps(plain, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        text.encode()
    except UnicodeEncodeError:
        raise ConstraintError("the schema has half a character (a lone surrogate)") from None
    check_length("the schema", text)
    return text


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


class _Counts:
    def __init__(self) -> None:
        self.values = 0
        self.properties = 0


def _plain(value: object, counts: _Counts, depth: int) -> Any:
    """A copy in plain types, counted."""
    counts.values += 1
    if counts.values > MAX_VALUES:
        raise ConstraintError(f"the schema has more than {MAX_VALUES} values")
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        if value.bit_length() > MAX_INTEGER_BITS:
            raise ConstraintError("the schema has a whole number of more than 63 bits")
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ConstraintError("the schema has a number that is not finite")
        return value
    if depth >= MAX_DEPTH:
        raise ConstraintError(f"the schema is nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, Mapping):
        _count_properties(value, counts)
        out = {}
        for key, item in value.items():
            if not isinstance(key, str):
                raise ConstraintError(f"the schema has a key of type {type(key).__name__}, not text")
            if key == "format" and isinstance(item, str) and item not in _FORMATS:
                continue
            out[key] = _plain(item, counts, depth + 1)
        return out
    if isinstance(value, list | tuple):
        return [_plain(item, counts, depth + 1) for item in value]
    raise ConstraintError(f"the schema has a {type(value).__name__}, which is no JSON")


def _count_properties(value: Mapping[Any, Any], counts: _Counts) -> None:
    properties = value.get("properties")
    if not isinstance(properties, Mapping):
        return
    counts.properties += len(properties)
    if len(properties) > MAX_PROPERTIES:
        raise ConstraintError(f"an object of the schema has {len(properties)} properties: {MAX_PROPERTIES} are allowed")
    if counts.properties > MAX_ALL_PROPERTIES:
        raise ConstraintError(f"the schema has more than {MAX_ALL_PROPERTIES} properties")


def _checked_text(what: str, text: object) -> str:
    if not isinstance(text, str):
        raise ConstraintError(f"{what} must be text, not {type(text).__name__}")
    check_length(what, text)
    return text


def check_length(what: str, text: str) -> None:
    """Raises ConstraintError for a text that is too long."""
    if len(text) > MAX_CHARACTERS:
        raise ConstraintError(f"{what} has {len(text)} characters: {MAX_CHARACTERS} are allowed")
