"""The form of an answer on the command line: a JSON Schema, an expression, any JSON object.

The engine keeps it by construction. Of a model that thinks aloud the answer is bound, the thoughts before it are free,
and the answer alone is shown.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ..errors import KamadoError, UsageError
from .options import Function

MAX_SCHEMA_BYTES = 1 << 20  # a character may take four; the engine counts characters
_ANY_OBJECT = {"type": "object"}


def form_options(function: Function) -> Function:
    """--schema, --regex and --json."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="The answer is a JSON object."),
        click.option("--regex", metavar="EXPR", help="The whole answer matches this expression."),
        click.option(
            "--schema",
            metavar="FILE|JSON",
            help="The answer is JSON of this JSON Schema.  [needs: pip install 'kamado[schema]']",
        ),
    ):
        function = option(function)
    return function


def form_of(schema: str | None, regex: str | None, as_json: bool) -> dict[str, Any]:
    """What `Model.chat` takes for the options; empty when none was given. Raises UsageError."""
    given = [name for name, value in (("--schema", schema), ("--regex", regex), ("--json", as_json)) if value]
    UsageError.when(len(given) > 1, f"{' and '.join(given)} contradict each other: an answer has one form")
    if schema is not None:
        return {"schema": read_schema(schema)}
    if regex is not None:
        return {"regex": regex}
    return {"schema": _ANY_OBJECT} if as_json else {}


def read_schema(source: str) -> Mapping[str, Any] | bool:
    """A schema that was typed, or the one in a file. Raises UsageError."""
    is_text = source.lstrip().startswith("{") or source.strip() in ("true", "false")
    where, text = "the schema", source
    if not is_text:
        where = source
        try:
            with Path(source).open("rb") as file:
                data = file.read(MAX_SCHEMA_BYTES + 1)
            text = data.decode("utf-8-sig")
        except OSError as error:
            raise UsageError(f"{source}: {error.strerror or error}: --schema takes a file, or JSON as it is") from None
        except UnicodeDecodeError as error:
            raise UsageError(f"{source} is not UTF-8 text (byte {error.start})") from None
        UsageError.when(len(data) > MAX_SCHEMA_BYTES, f"{source} is larger than {MAX_SCHEMA_BYTES >> 20} MiB")
    try:
        found: Mapping[str, Any] | bool = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where} is no JSON: {str(error)[:200]}") from None
    UsageError.when(not isinstance(found, dict | bool), f"{where} is no JSON Schema: it must be a JSON object")
    return found


def check_whole(text: str, finish_reason: str | None, form: Mapping[str, Any]) -> None:
    """Raises KamadoError when the answer ended before its form did."""
    is_whole = finish_reason != "length"
    if is_whole and "schema" in form:  # a --stop text may have come inside of it
        try:
            json.loads(text)
        except ValueError:
            is_whole = False
    if not is_whole:
        raise KamadoError(
            "the answer was cut before its form was complete: allow it more with --max-tokens or --context, or ask for "
            "something shorter"
        )
