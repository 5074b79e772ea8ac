"""What becomes of a parameter: honoured, left out and said, or refused. The machinery; the rows are each protocol's.

    body ─▶ tidy(): null, Ollama's zeroes, 2.0 for 2 ─▶ admit(): each given parameter's row ─▶ its Struct
                                                        honoured │ left out: header and log │ refused: 400, named

A parameter is left out only when the answer is the same without it (labels, hints, placement), or when the model is
free not to use what it offers (a search that only others' servers have). What would change the answer is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypeVar

import msgspec
from msgspec import inspect

from ..faults import RequestError

S = TypeVar("S", bound=msgspec.Struct)

Kind = Literal["honoured", "left out", "refused"]
HEADER = "x-kamado-left-out"

# Of optional parameters: these count as not given, in every protocol.
_EMPTY: tuple[Any, ...] = ("", [], {})
# Of Ollama's: where false or 0 says something that is not the same as saying nothing.
_ZERO_MEANS = frozenset({"stream", "think", "truncate", "shift", "keep_alive", "parse_special"})
_WORD = re.compile(r"[A-Za-z0-9_.-]{1,60}")
_LARGEST_EXACT = 1 << 53  # a float past it may stand for several whole numbers


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: what becomes of a parameter, or of some of its values."""

    endpoint: str  # "POST /v1/messages"
    name: str  # as the page and the header have it: "options.num_thread"
    kind: Kind
    why: str = ""
    part: str = ""  # which of its values; "": all that no other row takes
    path: str = ""  # where it stands in a body: "tools[]" is each element of a list; "": the name
    takes: Callable[[Any], bool] | None = None  # the values that the row is about; None: all
    examples: tuple[Any, ...] = ()  # such values, which the tests send
    within: Callable[[Any], dict[str, Any]] | None = None  # a body's part with such a value in its place, for the tests
    happens: bool = False  # honoured, for it asks for what happens anyway: nothing reads it
    by_code: bool = False  # refused where it is read, with a reason that needs more than its value

    @property
    def label(self) -> str:
        """Name and part, by which tests and the page call the row."""
        return f"{self.name}: {self.part}" if self.part else self.name

    @property
    def place(self) -> str:
        """The path in a body."""
        return self.path or self.name


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A parameter that was given and left out."""

    name: str  # ASCII, no comma
    why: str


class Table:
    """All rows, found by endpoint and path."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = tuple(rows)
        # endpoint, then the first name of a path, then the path
        self._by_endpoint: dict[str, dict[str, dict[tuple[str, ...], list[Row]]]] = {}
        for row in rows:
            heads = self._by_endpoint.setdefault(row.endpoint, {})
            if not row.by_code and (row.kind != "honoured" or row.takes is not None or row.happens):
                path = tuple(row.place.replace("[]", ".[]").split("."))
                heads.setdefault(path[0], {}).setdefault(path, []).append(row)

    def has(self, endpoint: str) -> bool:
        """Whether the table knows this endpoint's parameters."""
        return endpoint in self._by_endpoint

    def admit(self, endpoint: str, body: dict[str, Any]) -> list[LeftOut]:
        """Takes out of `body` what nothing reads, and says what of it was left out.

        Raises RequestError naming the parameter that is refused. `body` is changed.
        """
        found: dict[str, LeftOut] = {}
        is_ollama = endpoint.partition(" ")[2].startswith("/api/")
        heads = self._by_endpoint.get(endpoint, {})
        given = [paths for name in body if (paths := heads.get(name)) is not None]
        for path, rows in (item for paths in given for item in paths.items()):
            zeroes = is_ollama and len(path) == 1  # an option's zero says something
            for holder, key, where in _places(body, path):
                if isinstance(holder, list):
                    holder[key] = _TAKEN if self._is_taken(holder[key], rows, where, zeroes, found) else holder[key]
                elif self._is_taken(holder[key], rows, where, zeroes, found):
                    del holder[key]
            if path[-1] == "[]":
                for holder, key, _ in _places(body, path[:-1]):
                    if isinstance(holder[key], list):
                        holder[key] = [item for item in holder[key] if item is not _TAKEN]
        return list(found.values())

    def _is_taken(self, value: Any, rows: Sequence[Row], where: str, zeroes: bool, found: dict[str, LeftOut]) -> bool:
        """Whether the value is to be taken out. Notes what was left out; raises RequestError."""
        if value is None:
            return True
        row = next((row for row in rows if row.takes is None or row.takes(value)), None)
        if row is None or (row.kind == "honoured" and not row.happens):
            return False
        is_nothing = any(_same(value, empty) for empty in _EMPTY) or (zeroes and not value)
        if is_nothing and row.takes is None and not any(_same(value, other) for other in row.examples):
            return True
        if row.kind == "refused":
            raise RequestError(f"{where} cannot be honoured: {row.why}", param=where, code="unsupported_parameter")
        if row.kind == "left out":
            name = row.name
            if row.place.endswith("[]") and isinstance(value, dict):  # which one of the list
                kind = value.get("type")
                name += f": {kind}" if isinstance(kind, str) and _WORD.fullmatch(kind) else ""
            elif row.place.endswith("[]") and isinstance(value, str) and _WORD.fullmatch(value):
                name += f": {value}"
            found.setdefault(name, LeftOut(name, row.why))
        return True


_TAKEN: Any = object()


def _places(value: Any, path: Sequence[str], where: str = "") -> Iterator[tuple[Any, Any, str]]:
    """(holder, key, path as text) of every place that `path` names in `value`."""
    head, rest = path[0], path[1:]
    if head == "[]":
        if isinstance(value, list):
            name = rest[0] if rest else None
            for i, item in enumerate(value):
                if name is None:
                    yield value, i, f"{where}[{i}]"
                elif name == "[]" or (isinstance(item, dict) and name in item):  # most have no such name
                    yield from _places(item, rest, f"{where}[{i}]")
    elif isinstance(value, dict) and head in value:
        here = f"{where}.{head}" if where else head
        if rest:
            yield from _places(value[head], rest, here)
        else:
            yield value, head, here


def _same(value: Any, other: Any) -> bool:
    """Equal, and of one kind: true is not 1, but 1 is 1.0."""
    return isinstance(value, bool) == isinstance(other, bool) and bool(value == other)


def one_of(*values: Any) -> Callable[[Any], bool]:
    """Whether a value is one of these."""
    return lambda value: any(_same(value, other) for other in values)


# --- tidying ----------------------------------------------------------------------------------------------------------

# How a type is tidied: by the fields of a Struct, the items of a list, the choices of a union, or as a whole number.
_Plan = tuple[str, Any]


def tidy(body: dict[str, Any], kind: type, *, is_ollama: bool = False) -> dict[str, Any]:
    """The body with what stands for nothing taken out, as far as its Struct `kind` and the Structs in it know names.

    null of an optional field counts as not given, and so does empty text, an empty list or object of a body's own
    optional fields; in Ollama's API every zero value is, in nested objects too. A whole number may be written 2.0.
    """
    found: dict[str, Any] = _tidied(body, _plan_of(kind), is_ollama, is_top=True)
    return found


@cache
def _plan_of(kind: type) -> _Plan | None:
    return _plan(inspect.type_info(kind))


def _plan(info: inspect.Type) -> _Plan | None:
    if isinstance(info, inspect.StructType):
        return "struct", {f.encode_name: (f.required, _plan(f.type)) for f in info.fields}
    if isinstance(info, inspect.ListType):
        item = _plan(info.item_type)
        return None if item is None else ("list", item)
    if isinstance(info, inspect.IntType):
        return "int", None
    if isinstance(info, inspect.UnionType):
        if any(isinstance(one, inspect.FloatType) for one in info.types):
            return None
        plans = [plan for one in info.types if (plan := _plan(one)) is not None]
        return ("union", plans) if plans else None
    return None


def _tidied(value: Any, plan: _Plan | None, is_ollama: bool, *, is_top: bool = False) -> Any:
    if plan is None:
        return value
    kind, inner = plan
    if kind == "struct" and isinstance(value, dict):
        for name in [name for name in value if name in inner]:
            is_required, sub = inner[name]
            given = value[name]
            if not is_required and _is_nothing(name, given, is_ollama, is_top):
                del value[name]
            elif sub is not None:
                value[name] = _tidied(given, sub, is_ollama)
    elif kind == "list" and isinstance(value, list):
        return [_tidied(item, inner, is_ollama) for item in value]
    elif kind == "int" and isinstance(value, float) and value.is_integer() and abs(value) <= _LARGEST_EXACT:
        return int(value)
    elif kind == "union":
        for sub in inner:
            value = _tidied(value, sub, is_ollama)
    return value


def _is_nothing(name: str, value: Any, is_ollama: bool, is_top: bool) -> bool:
    if value is None:
        return True
    if is_ollama:
        is_number = isinstance(value, (bool, int, float))
        return not value and not (is_number and name in _ZERO_MEANS)
    return is_top and any(_same(value, empty) for empty in _EMPTY)


def without_nulls(value: Mapping[str, Any]) -> dict[str, Any]:
    """The object without its own nulls; what lies deeper is left as it is, for it may be data."""
    return {name: item for name, item in value.items() if item is not None}


def converted(value: Mapping[str, Any], kind: type[S], where: str) -> S:
    """The Struct that an object at `where` is, its nulls not given. Raises RequestError naming the place."""
    try:
        return msgspec.convert(without_nulls(value), kind)
    except msgspec.ValidationError as error:
        text = str(error).replace("`$.", f"`{where}.").replace("`$`", f"`{where}`")
        raise RequestError(f"{where}: {text[:400]}", param=where) from None
