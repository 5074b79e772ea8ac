"""Regular languages as trees, with intersection and complement: made, decided, matched, written for the compiler.

Characters are those of the text itself, not of JSON; `write` puts JSON's escapes in, character by character, so that
a language of texts becomes the language of their JSON strings. Matching goes by derivatives: linear in the text, and
without the surprises of a matcher that goes back.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Literal, TypeAlias

from . import charset
from .charset import Ranges


@dataclass(frozen=True, slots=True)
class Chars:
    """One character of a set; the empty set is the language without texts."""

    ranges: Ranges


@dataclass(frozen=True, slots=True)
class Seq:
    """One after the other."""

    parts: tuple[Tree, ...]


@dataclass(frozen=True, slots=True)
class Alt:
    """One of them."""

    parts: tuple[Tree, ...]


@dataclass(frozen=True, slots=True)
class And:
    """All of them at once."""

    parts: tuple[Tree, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """Any other text."""

    part: Tree


@dataclass(frozen=True, slots=True)
class Repeat:
    """`low` to `high` times; `high` None is without end."""

    part: Tree
    low: int
    high: int | None


Tree: TypeAlias = Chars | Seq | Alt | And | Not | Repeat
_Form: TypeAlias = Literal["plain", "json", "canonical", "single", "single canonical"]

NOTHING = Chars(())
EMPTY = Seq(())
ANY_CHARACTER = Chars(charset.ALL)
ANY = Repeat(ANY_CHARACTER, 0, None)

# Of the states that are looked at to see whether a language has texts: how many, and how large they are together.
_MAX_STATES = 1500
_MAX_NODES = 10_000


def literal(text: str) -> Tree:
    """Exactly `text`."""
    return seq(*(Chars(charset.of(c)) for c in text))


def seq(*parts: Tree) -> Tree:
    """One after the other."""
    out: list[Tree] = []
    for part in parts:
        if part == NOTHING:
            return NOTHING
        out.extend(part.parts if isinstance(part, Seq) else (part,))
    if len(out) > 1:  # two loops without end over the same are one
        out = [part for i, part in enumerate(out) if not (i and part == out[i - 1] and part == ANY)]
    return out[0] if len(out) == 1 else Seq(tuple(out))


def alt(*parts: Tree) -> Tree:
    """One of them."""
    out: dict[Tree, None] = {}
    sets: list[Ranges] = []
    for part in parts:
        for item in part.parts if isinstance(part, Alt) else (part,):
            if isinstance(item, Chars):
                sets.append(item.ranges)
            else:
                out[item] = None
    if ANY in out:
        return ANY
    ranges = charset.union(*sets)
    items = [*([Chars(ranges)] if ranges else []), *out]
    return NOTHING if not items else items[0] if len(items) == 1 else Alt(tuple(items))


def both(*parts: Tree) -> Tree:
    """What all of them have."""
    out: dict[Tree, None] = {}
    sets: list[Ranges] = []
    for part in parts:
        for item in part.parts if isinstance(part, And) else (part,):
            if item == NOTHING:
                return NOTHING
            if isinstance(item, Chars):
                sets.append(item.ranges)
            elif item != ANY:
                out[item] = None
    if sets:
        ranges = sets[0]
        for other in sets[1:]:
            ranges = charset.intersect(ranges, other)
        if not ranges:
            return NOTHING
        out = {Chars(ranges): None, **out}
    items = tuple(out)
    if EMPTY in items:
        return EMPTY if all(map(is_nullable, items)) else NOTHING
    return ANY if not items else items[0] if len(items) == 1 else And(items)


def inverse(part: Tree) -> Tree:
    """Every other text."""
    if isinstance(part, Not):
        return part.part
    return ANY if part == NOTHING else NOTHING if part == ANY else Not(part)


def repeat(part: Tree, low: int, high: int | None) -> Tree:
    """`low` to `high` times."""
    if high == 0 or part == EMPTY:
        return EMPTY
    if part == NOTHING:
        return EMPTY if low == 0 else NOTHING
    if (low, high) == (1, 1):
        return part
    if isinstance(part, Repeat) and part.high is None and part.low <= 1 and low <= 1 and high in (1, None):
        return Repeat(part.part, 0 if low == 0 else part.low, None)
    return Repeat(part, low, high)


@lru_cache(1 << 14)
def is_nullable(tree: Tree) -> bool:
    """Whether the empty text is in it."""
    match tree:
        case Chars():
            return False
        case Seq(parts) | And(parts):
            return all(map(is_nullable, parts))
        case Alt(parts):
            return any(map(is_nullable, parts))
        case Not(part):
            return not is_nullable(part)
        case Repeat(part, low, _):
            return low == 0 or is_nullable(part)


@lru_cache(1 << 15)
def derive(tree: Tree, code: int) -> Tree:
    """What may follow a first character."""
    match tree:
        case Chars(ranges):
            return EMPTY if charset.has(ranges, code) else NOTHING
        case Seq(parts):
            out = []
            for i, part in enumerate(parts):
                out.append(seq(derive(part, code), *parts[i + 1 :]))
                if not is_nullable(part):
                    break
            return alt(*out)
        case Alt(parts):
            return alt(*(derive(part, code) for part in parts))
        case And(parts):
            return both(*(derive(part, code) for part in parts))
        case Not(part):
            return inverse(derive(part, code))
        case Repeat(part, low, high):
            rest = repeat(part, max(low - 1, 0), None if high is None else high - 1)
            return seq(derive(part, code), rest)


def matches(tree: Tree, text: str) -> bool:
    """Whether a text is in it."""
    for c in text:
        tree = derive(tree, ord(c))
        if tree in (NOTHING, ANY):
            break
    return is_nullable(tree)


@lru_cache(1 << 12)
def _borders(tree: Tree) -> frozenset[int]:
    """First code points of the ranges in which the first character makes no difference."""
    match tree:
        case Chars(ranges):
            return frozenset(low for low, _ in ranges) | {high + 1 for _, high in ranges}
        case Seq(parts):
            out: frozenset[int] = frozenset()
            for part in parts:
                out |= _borders(part)
                if not is_nullable(part):
                    break
            return out
        case Alt(parts) | And(parts):
            return frozenset().union(*map(_borders, parts))
        case Not(part):
            return _borders(part)
        case Repeat(part, _, _):
            return _borders(part)


def has_operators(tree: Tree) -> bool:
    """Whether there is an intersection or a complement in it."""
    match tree:
        case And() | Not():
            return True
        case Seq(parts) | Alt(parts):
            return any(map(has_operators, parts))
        case Repeat(part, _, _):
            return has_operators(part)
        case _:
            return False


@lru_cache(1 << 14)
def size_of(tree: Tree) -> int:
    """How many nodes it has."""
    match tree:
        case Seq(parts) | Alt(parts) | And(parts):
            return 1 + sum(map(size_of, parts))
        case Not(part) | Repeat(part, _, _):
            return 1 + size_of(part)
        case _:
            return 1


@lru_cache(1 << 10)
def is_nothing(tree: Tree) -> bool:
    """Whether no text is in it. False too when that is not found out within a bounded number of steps."""
    if not has_operators(tree):
        return tree == NOTHING  # the functions above leave no other tree without texts
    seen = {tree}
    stack = [tree]
    num_nodes = 0
    while stack:
        one = stack.pop()
        if is_nullable(one):
            return False
        for code in sorted(_borders(one) | {0}):
            if code > 0x10FFFF or 0xD800 <= code < 0xE000:
                continue
            after = derive(one, code)
            if after not in seen and after != NOTHING:
                num_nodes += size_of(after)
                if len(seen) >= _MAX_STATES or num_nodes > _MAX_NODES or after == ANY:
                    return False
                seen.add(after)
                stack.append(after)
    return True


# --- writing ----------------------------------------------------------------------------------------------------------

_SHORT = {8: "b", 9: "t", 10: "n", 12: "f", 13: "r", 34: '"', 92: "\\"}
_SHORT_SINGLE = {**{code: letter for code, letter in _SHORT.items() if letter != '"'}, 39: "'"}
_CONTROLS: Ranges = ((0, 31),)
_PLAIN = charset.complement(charset.union(_CONTROLS, charset.of('"\\')))
_PLAIN_SINGLE = charset.complement(charset.union(_CONTROLS, charset.of("'\\")))
_FOREIGN: Ranges = charset.complement(((0, 0x7F),))
# Escapes of all that is not ASCII: one of the first plane, or a pair.
_ESCAPED = (
    r"u(00[89a-fA-F][0-9a-fA-F]|0[1-9a-fA-F][0-9a-fA-F]{2}|[1-9a-cA-CeEfF][0-9a-fA-F]{3}|[dD][0-7][0-9a-fA-F]{2}"
    r"|[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})"
)


def json_string(quote: str = '"') -> str:
    """The expression of any JSON string, without half a surrogate pair; escapes that are allowed but odd are in. With
    another `quote`: of Python's in single quotes."""
    escape = rf"\\([{quote}\\\/bfnrt]|u(00[01][0-9a-fA-F]|007[fF])|{_ESCAPED})"
    return rf"/{quote}([^{quote}\\\x00-\x1F]|{escape})*{quote}/"


@lru_cache(1 << 12)
def write(tree: Tree, is_json: bool, quote: str = '"') -> str:
    """A terminal's body. `is_json`: of the inside of strings as in `json_string`, the text of `tree` with escapes.

    With an intersection or a complement each character is written in one way only, or a text that is excluded could
    come by its escapes.
    """
    if not is_json:
        return _write(tree, "plain")
    if quote == '"':
        return _write(tree, "canonical" if has_operators(tree) else "json")
    return _write(tree, "single canonical" if has_operators(tree) else "single")


def _write(tree: Tree, form: _Form) -> str:
    if not has_operators(tree):
        return f"/{_regex(tree, form)}/" if tree != EMPTY else '""'  # two slashes begin a comment
    match tree:
        case Seq(parts):
            out: list[str] = []
            for has_any, run in groupby(parts, key=has_operators):
                if has_any:
                    out += (f"({_write(part, form)})" for part in run)
                else:
                    out.append(f"/{_regex(seq(*run), form)}/")
            return " ".join(out)
        case Alt(parts):
            return " | ".join(f"({_write(part, form)})" for part in parts)
        case And(parts):
            # A complement alone has bytes that are no text, so something else stands beside it.
            ordered = sorted(parts, key=lambda part: isinstance(part, Not))
            if isinstance(ordered[0], Not):
                ordered = [ANY, *ordered]
            return " & ".join(_not(p, form) if isinstance(p, Not) else f"({_write(p, form)})" for p in ordered)
        case Not():
            return f"({_write(ANY, form)}) & {_not(tree, form)}"
        case Repeat(part, low, high):
            return f"({_write(part, form)}){_times(low, high)}"
        case _:
            raise AssertionError(tree)


def _not(tree: Not, form: _Form) -> str:
    return f"(~({_write(tree.part, form)}))"


def _times(low: int, high: int | None) -> str:
    known = {(0, None): "*", (1, None): "+", (0, 1): "?"}
    return known.get((low, high)) or (f"{{{low},}}" if high is None else f"{{{low},{high}}}")


def _regex(tree: Tree, form: _Form) -> str:
    match tree:
        case Chars(ranges):
            return _bracket(ranges) if form == "plain" else _json_set(ranges, form)
        case Seq(parts):
            return "".join(f"({_regex(p, form)})" if isinstance(p, Alt) else _regex(p, form) for p in parts)
        case Alt(parts):
            items = [f"({_regex(p, form)})" if p == EMPTY else _regex(p, form) for p in parts]
            return "|".join(items)
        case Repeat(part, low, high):
            inner = _regex(part, form)
            is_one = isinstance(part, Chars) and _is_single(inner)
            return (inner if is_one else f"({inner})") + _times(low, high)
        case _:
            raise AssertionError(tree)


def _is_single(regex: str) -> bool:
    return len(regex) == 1 or (regex[0] == "[" and regex.find("]", 1) == len(regex) - 1 and r"\]" not in regex)


def _json_set(ranges: Ranges, form: _Form) -> str:
    is_single = form in ("single", "single canonical")
    plain = charset.intersect(ranges, _PLAIN_SINGLE if is_single else _PLAIN)
    out = [_bracket(plain)] if plain else []
    short = _SHORT_SINGLE if is_single else _SHORT
    escapes = [_escaped(letter) for code, letter in short.items() if charset.has(ranges, code)]
    controls = [code for low, high in charset.intersect(ranges, _CONTROLS) for code in range(low, high + 1)]
    if len(controls) == 32 and form in ("json", "single"):
        escapes.append("u00[01][0-9a-fA-F]")
    else:
        escapes += [f"u00{code:02x}" for code in controls if code not in _SHORT]
    if form in ("json", "single") and charset.intersect(ranges, _FOREIGN) == _FOREIGN:
        escapes.append(_ESCAPED)
    if escapes:
        out.append(r"\\" + (escapes[0] if len(escapes) == 1 and "|" not in escapes[0] else f"({'|'.join(escapes)})"))
    return out[0] if len(out) == 1 else f"({'|'.join(out)})"


def _bracket(ranges: Ranges) -> str:
    if not ranges:
        return "[a&&b]"  # no character
    if len(ranges) == 1 and ranges[0][0] == ranges[0][1]:
        return _escaped(chr(ranges[0][0]))
    return "[" + "".join(_escaped(chr(a)) + (f"-{_escaped(chr(b))}" if b > a else "") for a, b in ranges) + "]"


def _escaped(c: str) -> str:
    if c.isascii() and c.isalnum():
        return c
    if c.isascii() and c.isprintable() and c != " ":
        return "\\" + c if c in r"\.+*?()|[]{}^$#&-~/" else c
    return " " if c == " " else rf"\x{{{ord(c):X}}}"
