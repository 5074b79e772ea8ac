"""A schema as a grammar, with what was left open and why; the same schema is worked out once."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import ConstraintError
from .document import Document, Node, plain
from .emit import Emitter
from .normal import Normaliser
from .values import Checker, CheckError

_MAX_KEPT = 256
_MAX_SHOWN = 3


@dataclass(frozen=True, slots=True)
class OpenKeyword:
    """A keyword that is not enforced while an answer is written. `place`: its JSON pointer in the schema."""

    place: str
    reason: str


@dataclass(frozen=True, slots=True)
class CompiledSchema:
    """`lark`: the grammar of all JSON texts that match, as far as it goes.

    `is_narrowed`: some objects have their declared keys only, which is less than the schema allows. `remarks`: places
    of formats that say something to readers alone.
    """

    lark: str
    open: tuple[OpenKeyword, ...]
    is_narrowed: bool
    remarks: tuple[str, ...]
    schema: Node

    def refuse_open(self, what: str) -> None:
        """Raises ConstraintError when anything was left open, naming keyword and place."""
        if self.open:
            shown = "; ".join(f"{one.place} ({one.reason})" for one in self.open[:_MAX_SHOWN])
            more = f" and {len(self.open) - _MAX_SHOWN} more" if len(self.open) > _MAX_SHOWN else ""
            raise ConstraintError(f"{what} is strict and cannot be enforced: {shown}{more}")

    def violations(self, text: str) -> tuple[str, ...]:
        """What a finished answer violates of what was left open; empty when it matches.

        A check that cannot be made is told as such.
        """
        if not self.open:
            return ()
        try:
            return tuple(Checker(Document(self.schema)).violations(self.schema, json.loads(text))[:_MAX_SHOWN])
        except CheckError as error:
            return (f"not checked: {error}",)
        except (ValueError, RecursionError):
            return ("not checked: the answer is no JSON",)


_kept: OrderedDict[tuple[str, str, str], CompiledSchema] = OrderedDict()
_lock = threading.Lock()


def compile_schema(
    schema: Mapping[str, Any] | bool, item_separator: str = ",", key_separator: str = ":"
) -> CompiledSchema:
    """The grammar of a schema. Raises ConstraintError when it is none, is too large, or nothing matches it."""
    root = plain(schema)
    key = (json.dumps(root), item_separator, key_separator)
    with _lock:
        known = _kept.get(key)
        if known is not None:
            _kept.move_to_end(key)
            return known
    made = _compile(root, item_separator, key_separator)
    with _lock:
        _kept[key] = made
        while len(_kept) > _MAX_KEPT:
            _kept.popitem(last=False)
    return made


def _compile(root: Node, item_separator: str, key_separator: str) -> CompiledSchema:
    if root is False:
        raise ConstraintError("the schema is false, which nothing matches")
    document = Document(root)
    normaliser = Normaliser(document)
    emitter = Emitter(normaliser, item_separator, key_separator)
    try:
        lark = emitter.grammar(normaliser.of(root))
    except RecursionError:
        raise ConstraintError("the schema refers to itself too deeply") from None
    if lark is None:
        raise ConstraintError("nothing matches the schema")
    notes = tuple(OpenKeyword(place, reason) for place, reason in normaliser.notes.items())
    return CompiledSchema(lark, notes, emitter.is_narrowed, tuple(normaliser.remarks), root)
