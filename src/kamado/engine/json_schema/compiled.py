"""A schema as a grammar, with what was left open and why; the same schema is worked out once."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
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


@dataclass(frozen=True, slots=True, eq=False)
class CompiledSchema:
    """`lark`: the grammar of all JSON texts that match, as far as it goes.

    `is_narrowed`: some objects have their declared keys only, which is less than the schema allows. `remarks`: places
    of formats that say something to readers alone. `is_plain`: no expression of the schema's author is in the grammar.
    """

    lark: str
    open: tuple[OpenKeyword, ...]
    is_narrowed: bool
    remarks: tuple[str, ...]
    is_plain: bool
    schema: Node | None  # None: larger than can be checked
    key: str  # of the schema and its separators

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CompiledSchema) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

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
        if self.schema is None:
            return (f"not checked: {self.open[0].reason}",)
        try:
            return tuple(Checker(Document(self.schema)).violations(self.schema, json.loads(text))[:_MAX_SHOWN])
        except CheckError as error:
            return (f"not checked: {error}",)
        except (ValueError, RecursionError):
            return ("not checked: the answer is no JSON",)


_kept: OrderedDict[str, CompiledSchema] = OrderedDict()
_lock = threading.Lock()


def open_schema(
    schema: Mapping[str, Any] | bool,
    reason: str,
    item_separator: str = ",",
    key_separator: str = ":",
    *,
    is_object: bool = False,
) -> CompiledSchema:
    """Any JSON, or any object: nothing else of the schema is enforced, for `reason`. The finished answer is checked."""
    is_object |= isinstance(schema, Mapping) and schema.get("type") == "object"
    made = compile_schema({"type": "object"} if is_object else True, item_separator, key_separator)
    root: Node | None = None
    with suppress(ConstraintError):
        root = plain(schema)
    key = json.dumps([root, reason, item_separator, key_separator])
    return replace(made, open=(OpenKeyword("/", reason),), schema=root, key=key)


def compile_schema(
    schema: Mapping[str, Any] | bool, item_separator: str = ",", key_separator: str = ":", *, is_object: bool = False
) -> CompiledSchema:
    """The grammar of a schema; `is_object`: of its values that are objects.

    Raises ConstraintError when it is none, is too large, or nothing matches it."""
    root = plain(schema)
    key = json.dumps([root, item_separator, key_separator, is_object])
    with _lock:
        known = _kept.get(key)
        if known is not None:
            _kept.move_to_end(key)
            return known
    made = _compile(root, item_separator, key_separator, is_object, key)
    with _lock:
        _kept[key] = made
        while len(_kept) > _MAX_KEPT:
            _kept.popitem(last=False)
    return made


def _compile(root: Node, item_separator: str, key_separator: str, is_object: bool, key: str) -> CompiledSchema:
    if root is False:
        raise ConstraintError("the schema is false, which nothing matches")
    document = Document(root)
    normaliser = Normaliser(document)
    emitter = Emitter(normaliser, item_separator, key_separator)
    try:
        lark = emitter.grammar(normaliser.of(root, {"type": "object"} if is_object else True))
    except RecursionError:
        raise ConstraintError("the schema's references form too long a chain: put schemas in their places") from None
    if lark is None:
        raise ConstraintError("nothing matches the schema")
    notes = tuple(OpenKeyword(place, reason) for place, reason in normaliser.notes.items())
    return CompiledSchema(
        lark, notes, emitter.is_narrowed, tuple(normaliser.remarks), not normaliser.has_patterns, root, key
    )
