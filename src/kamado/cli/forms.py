"""The form of an answer on the command line: a JSON Schema, an expression, any JSON object.

The engine keeps it by construction. Of a model that thinks aloud, the answer is bound and what comes before it is not,
as the server does it; the thoughts go to stderr where a person reads that, and nowhere else.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import ConstraintError, KamadoError, UsageError
from .options import Function
from .terminal import echo, is_tty, note, styled

if TYPE_CHECKING:
    from .. import Piece, TurnStream, Usage
    from .connection import Answering, Pieces

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
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where} is no JSON: {str(error)[:200]}") from None
    if not isinstance(found, dict | bool):
        raise UsageError(f"{where} is no JSON Schema: it must be a JSON object")
    return found


def formed(model: Answering, messages: list[dict[str, Any]], form: Mapping[str, Any], **options: Any) -> Pieces:
    """The answer in the form, without what a model thinks aloud before it. Raises as `Model.chat`."""
    from .. import Model

    if not isinstance(model, Model):  # a server parts thoughts and answer itself
        return model.chat(messages, **form, **options)
    try:
        return _AnswerOnly(model.chat(messages, tools=[], **form, **options))
    except ConstraintError:
        model.prepare_form(**form)  # says which form it is, and not that a turn's parts cannot be put together
        raise


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


class _AnswerOnly:
    """The text of a turn's events as pieces."""

    def __init__(self, events: TurnStream) -> None:
        self._events = events
        self._has_thought = False

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        from .. import Finish, Piece, ReasoningDelta, TextDelta

        for event in self._events:
            if isinstance(event, ReasoningDelta):
                self._show(event.text)
            elif isinstance(event, TextDelta):
                self._end_thought()
                return Piece(event.text, -1)
            elif isinstance(event, Finish):
                self._end_thought()
                return Piece("", -1, finish_reason="length" if event.reason == "length" else "stop")
        raise StopIteration

    def _show(self, thought: str) -> None:
        if is_tty(sys.stderr):
            self._has_thought = True
            echo(styled(thought, sys.stderr, dim=True), err=True, nl=False)

    def _end_thought(self) -> None:
        if self._has_thought:
            self._has_thought = False
            note("")

    def close(self) -> None:
        """Ends the work."""
        self._events.close()

    @property
    def usage(self) -> Usage:
        """Tokens and seconds so far."""
        return self._events.usage

    @property
    def num_computed_tokens(self) -> int:
        """Tokens that were computed so far."""
        return self._events.num_computed_tokens
