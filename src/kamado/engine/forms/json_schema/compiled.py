"""A schema as a grammar, with what was left open and why; the same schema is worked out once, refusals too.

Working out is Python that holds the interpreter, 140 ms for the largest schemas. So one that is long, or takes more
than some milliseconds here, is worked out in the worker process (isolated.py), from the beginning.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ....errors import BusyError, ConstraintError
from ....isolated import WORKER, Limits, WorkerEndedError
from .bare import BareEmitter
from .document import Document, Node, plain
from .emit import Emitter
from .normal import Normaliser, TooLongError
from .python import PythonEmitter
from .tagged import Bare, Keywords, Tagged
from .values import Checker, CheckError

_MAX_KEPT = 256
KEPT_BYTES = 4 << 20  # grammars and schemas that are kept, together
_MAX_SHOWN = 3
# What is worked out here: 24 tools of 8 properties take a millisecond each.
_HERE_CHARACTERS = 8 << 10
_HERE_SECONDS = 0.02
_WORK = Limits(cpu_seconds=2.0, clock_seconds=15.0)


@dataclass(frozen=True, slots=True)
class OpenKeyword:
    """A keyword that is not enforced while an answer is written. `place`: its JSON pointer in the schema."""

    place: str
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class CompiledSchema:
    """`lark`: the grammar of all JSON texts that match, as far as it goes.

    Of arguments between tags (tagged.py) it is the grammar of those, and `kinds` has the types that each may be of.
    `is_narrowed`: some objects have their declared keys only, which is less than the schema allows. `remarks`: places
    of formats that say something to readers alone. `is_plain`: no expression of the schema's author is in the grammar.
    """

    lark: str
    open: tuple[OpenKeyword, ...]
    is_narrowed: bool
    remarks: tuple[str, ...]
    is_plain: bool
    text: str  # of the schema, JSON
    key: str  # of the schema and how it is written
    kinds: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

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

        A check that cannot be made is reported as such.
        """
        if not self.open:
            return ()
        try:
            root = plain(json.loads(self.text))
        except (ConstraintError, ValueError, RecursionError):  # larger than can be checked
            return (f"not checked: {self.open[0].reason}",)
        try:
            return tuple(Checker(Document(root)).violations(root, json.loads(text))[:_MAX_SHOWN])
        except CheckError as error:
            return (f"not checked: {error}",)
        except (ValueError, RecursionError):
            return ("not checked: the answer is no JSON",)


_kept: OrderedDict[str, CompiledSchema | str] = OrderedDict()  # a text: why it is refused
_kept_bytes = 0
_lock = threading.Lock()


def open_schema(
    schema: Mapping[str, Any] | bool,
    reason: str,
    item_separator: str = ",",
    key_separator: str = ":",
    *,
    is_object: bool = False,
    tagged: Tagged | Keywords | Bare | None = None,
) -> CompiledSchema:
    """Any JSON, or any object: nothing else of the schema is enforced, for `reason`. The finished answer is checked."""
    is_object |= isinstance(schema, Mapping) and schema.get("type") == "object"
    made = compile_schema({"type": "object"} if is_object else True, item_separator, key_separator, tagged=tagged)
    text = _text(schema) or ""
    key = _key(text, reason, item_separator, key_separator, repr(tagged))
    return replace(made, open=(OpenKeyword("/", reason),), text=text, key=key)


def compile_schema(
    schema: Mapping[str, Any] | bool,
    item_separator: str = ",",
    key_separator: str = ":",
    *,
    is_object: bool = False,
    tagged: Tagged | Keywords | Bare | None = None,
) -> CompiledSchema:
    """The grammar of a schema; `is_object`: of its values that are objects; `tagged`: of these, written between tags or
    as arguments of a Python call.

    Raises ConstraintError when it is none, is too large, or nothing matches it; BusyError when it needed the worker
    process and that had no time."""
    text = _text(schema)
    if text is None:  # `plain` says what is wrong with it, unless it is made of other kinds of mappings
        schema = plain(schema)
        text = json.dumps(schema)
    key = _key(text, item_separator, key_separator, str(is_object), repr(tagged))
    with _lock:
        known = _kept.get(key)
        if known is not None:
            _kept.move_to_end(key)
    if known is None:
        known = _worked_out(schema, text, _Form(item_separator, key_separator, is_object, tagged), key)
        _keep(key, known)
    if isinstance(known, str):
        raise ConstraintError(known)
    return known


def kept_bytes() -> int:
    """Of schemas and grammars that are kept now."""
    return _kept_bytes


def _text(schema: object) -> str | None:
    """JSON of the schema; None when it is no JSON value."""
    try:
        return json.dumps(schema, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError):
        return None


def _key(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _keep(key: str, made: CompiledSchema | str) -> None:
    global _kept_bytes
    with _lock:
        if key not in _kept:
            _kept_bytes += _num_bytes(made)
        _kept[key] = made
        while len(_kept) > _MAX_KEPT or (_kept_bytes > KEPT_BYTES and len(_kept) > 1):
            _kept_bytes -= _num_bytes(_kept.popitem(last=False)[1])


def _num_bytes(made: CompiledSchema | str) -> int:
    if isinstance(made, str):
        return len(made)
    return (
        sum(map(len, made.kinds))
        + len(made.lark)
        + len(made.text)
        + sum(len(one.place) + len(one.reason) for one in made.open)
    )


@dataclass(frozen=True, slots=True)
class _Form:
    """How values are written."""

    item_separator: str
    key_separator: str
    is_object: bool
    tagged: Tagged | Keywords | Bare | None


def _worked_out(schema: Mapping[str, Any] | bool, text: str, form: _Form, key: str) -> CompiledSchema | str:
    """The schema, or why it is refused."""
    made: Mapping[str, Any] | str | None = None
    if len(text) <= _HERE_CHARACTERS:
        with suppress(TooLongError):
            made = _compile(schema, form, _HERE_SECONDS)
    if made is None:
        made = _in_worker(text, form)
    if isinstance(made, str):
        return made
    notes = tuple(OpenKeyword(place, reason) for place, reason in made["open"])
    kinds = {name: tuple(types) for name, types in made["kinds"].items()}
    return CompiledSchema(
        made["lark"], notes, made["is_narrowed"], tuple(made["remarks"]), made["is_plain"], text, key, kinds
    )


def _in_worker(text: str, form: _Form) -> Mapping[str, Any] | str:
    try:
        made: Mapping[str, Any] | str = WORKER.ask(f"{__name__}:in_worker", {"text": text, **asdict(form)}, _WORK)
    except WorkerEndedError as error:
        if error.why == "busy":
            raise BusyError(f"the schema could not be worked out: {error}") from None
        if error.why == "broken":  # there is no worker where it cannot be started
            return _compile(json.loads(text), form)
        said = {"time": "takes too long", "memory": "takes too much memory"}.get(error.why, "is nested too deeply")
        return f"the schema {said}: make it smaller or simpler"
    return made


def in_worker(request: Any) -> Any:
    """Works a schema out, in the worker process: what `_compile` gives."""
    text, tagged = request.pop("text"), request.pop("tagged")
    if tagged is not None and "between" in tagged:
        tagged = (Bare if "quote" in tagged else Keywords)(**tagged)
    elif tagged is not None:
        tagged = Tagged(**{**tagged, "tokens": tuple((c, token) for c, token in tagged["tokens"])})
    return _compile(json.loads(text), _Form(**request, tagged=tagged))


def _emitter(normaliser: Normaliser, form: _Form) -> Emitter:
    if isinstance(form.tagged, Bare):
        return BareEmitter(normaliser, form.item_separator, form.key_separator, form.tagged.quote)
    is_python = isinstance(form.tagged, Keywords) and form.tagged.is_python
    return (PythonEmitter if is_python else Emitter)(normaliser, form.item_separator, form.key_separator)


def _compile(schema: object, form: _Form, most_seconds: float | None = None) -> Mapping[str, Any] | str:
    """The fields of a CompiledSchema, or why the schema is refused. Raises TooLongError past `most_seconds`."""
    kinds: Mapping[str, list[str]] = {}
    try:
        root: Node = plain(schema)
        if root is False:
            return "the schema is false, which nothing matches"
        normaliser = Normaliser(Document(root), most_seconds)
        emitter = _emitter(normaliser, form)
        conjunction = normaliser.of(root, {"type": "object"} if form.is_object else True)
        if form.tagged is None:
            lark = emitter.grammar(conjunction)
        elif isinstance(form.tagged, Keywords | Bare):
            lark = emitter.as_arguments(conjunction, form.tagged)
        else:
            lark, kinds = emitter.tagged(conjunction, form.tagged)
    except RecursionError:
        return "the schema's references form too long a chain: put schemas in their places"
    except ConstraintError as error:
        return str(error)
    if lark is None:
        return "nothing matches the schema"
    return {
        "lark": lark,
        "open": list(normaliser.notes.items()),
        "is_narrowed": emitter.is_narrowed,
        "remarks": list(normaliser.remarks),
        "is_plain": not normaliser.has_patterns,
        "kinds": kinds,
    }
