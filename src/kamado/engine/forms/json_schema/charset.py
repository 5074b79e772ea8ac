"""Sets of characters as sorted, disjoint, inclusive ranges of code points. Halves of surrogate pairs are in none."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterable
from functools import cache

Ranges = tuple[tuple[int, int], ...]

_LAST = 0x10FFFF
_ALL: Ranges = ((0, 0xD7FF), (0xE000, _LAST))


def make(pairs: Iterable[tuple[int, int]]) -> Ranges:
    """Ranges in any order, joined."""
    out: list[tuple[int, int]] = []
    for low, high in sorted(pairs):
        if low > high:
            continue
        if out and low <= out[-1][1] + 1:
            out[-1] = (out[-1][0], max(out[-1][1], high))
        else:
            out.append((low, high))
    return tuple(out)


def of(text: str) -> Ranges:
    """The characters of a text."""
    return make((ord(c), ord(c)) for c in text)


def union(*sets: Ranges) -> Ranges:
    """All of them together."""
    return make(pair for ranges in sets for pair in ranges)


def intersect(a: Ranges, b: Ranges) -> Ranges:
    """What both have."""
    out = []
    i = j = 0
    while i < len(a) and j < len(b):
        low, high = max(a[i][0], b[j][0]), min(a[i][1], b[j][1])
        if low <= high:
            out.append((low, high))
        if a[i][1] < b[j][1]:
            i += 1
        else:
            j += 1
    return tuple(out)


def complement(a: Ranges) -> Ranges:
    """Every other character."""
    out = []
    at = 0
    for low, high in a:
        out.append((at, low - 1))
        at = high + 1
    out.append((at, _LAST))
    return intersect(make(out), _ALL)


def minus(a: Ranges, b: Ranges) -> Ranges:
    """What `a` has and `b` has not."""
    return intersect(a, complement(b))


def has(a: Ranges, code: int) -> bool:
    """Whether a code point is in it."""
    i = bisect_right(a, (code, _LAST + 1)) - 1
    return i >= 0 and a[i][1] >= code


def with_case(a: Ranges) -> Ranges:
    """With the other case of ASCII letters."""
    letters = [(low ^ 32, high ^ 32) for low, high in intersect(a, of_pairs("AZaz"))]
    return union(a, make(letters))


def of_pairs(text: str) -> Ranges:
    """Ranges written as pairs of characters: "azAZ"."""
    return make((ord(text[i]), ord(text[i + 1])) for i in range(0, len(text), 2))


ALL = _ALL
DIGIT = of_pairs("09")
WORD = of_pairs("azAZ09__")
LINE_ENDS = of("\n\r\u2028\u2029")
# White space that both ECMAScript and Python count, and that either counts.
SPACE = union(of_pairs("\t\r  \xa0\xa0\u2000\u200a"), of("\u1680\u2028\u2029\u202f\u205f\u3000"))
ANY_SPACE = union(SPACE, of_pairs("\x1c\x1f\x85\x85\ufeff\ufeff"))


@cache
def _categories() -> dict[str, Ranges]:
    """Ranges of every general category: a quarter of a second, once, for who asks with \\p."""
    pairs: dict[str, list[tuple[int, int]]] = {}
    before, start = "", 0
    for code in range(_LAST + 2):
        name = unicodedata.category(chr(code)) if code <= _LAST else ""
        if name != before:
            if before:
                pairs.setdefault(before, []).append((start, code - 1))
            before, start = name, code
    return {name: make(found) for name, found in pairs.items()}


_LONG = {
    "Letter": "L", "Lowercase_Letter": "Ll", "Uppercase_Letter": "Lu", "Mark": "M", "Number": "N",
    "Decimal_Number": "Nd", "Punctuation": "P", "Symbol": "S", "Separator": "Z", "Space_Separator": "Zs",
    "Alphabetic": "L", "Lowercase": "Ll", "Uppercase": "Lu",
}  # fmt: skip


# Sets that every version of Unicode since 13 has whole: of pictures some are missing, which come one by one.
EMOJI = {
    "Extended_Pictographic": make([
        (0x2600, 0x2604), (0x260E, 0x260E), (0x2611, 0x2611), (0x2614, 0x2615), (0x263A, 0x263A), (0x2648, 0x2653),
        (0x26A0, 0x26A1), (0x2702, 0x2702), (0x2705, 0x2705), (0x2708, 0x270D), (0x2728, 0x2728), (0x274C, 0x274C),
        (0x2753, 0x2755), (0x2763, 0x2764), (0x2795, 0x2797), (0x2B50, 0x2B50), (0x1F300, 0x1F320), (0x1F330, 0x1F335),
        (0x1F337, 0x1F37C), (0x1F380, 0x1F393), (0x1F3A0, 0x1F3C4), (0x1F3E0, 0x1F3F0), (0x1F400, 0x1F43E),
        (0x1F442, 0x1F4F7), (0x1F4F9, 0x1F4FC), (0x1F500, 0x1F53D), (0x1F550, 0x1F567), (0x1F5FB, 0x1F64F),
        (0x1F680, 0x1F6C5), (0x1F90D, 0x1F93A), (0x1F940, 0x1F945), (0x1F947, 0x1F9AF), (0x1F9B4, 0x1F9FF),
    ]),
    "Emoji_Component": make([
        (0x23, 0x23), (0x2A, 0x2A), (0x30, 0x39), (0x200D, 0x200D), (0x20E3, 0x20E3), (0xFE0F, 0xFE0F),
        (0x1F1E6, 0x1F1FF), (0x1F3FB, 0x1F3FF), (0x1F9B0, 0x1F9B3), (0xE0020, 0xE007F),
    ]),
}  # fmt: skip


def category(name: str) -> Ranges | None:
    """A general category of Unicode, "L" or "Lu"; None for a name that is not known here."""
    name = _LONG.get(name, name)
    found = [ranges for key, ranges in _categories().items() if key == name or (len(name) == 1 and key[0] == name)]
    return intersect(union(*found), _ALL) if found else None


@cache
def _runs(pattern: str) -> Ranges:
    """Characters that Python's `re` takes for a class."""
    text = "".join(map(chr, range(_LAST + 1)))
    return intersect(make((m.start(), m.end() - 1) for m in re.finditer(f"{pattern}+", text)), _ALL)


def any_digit() -> Ranges:
    """Digits of every script, which Python's \\d takes; ECMAScript's takes ASCII's only."""
    return _runs(r"\d")


def any_word() -> Ranges:
    """Letters and digits of every script, of which the same holds with \\w."""
    return _runs(r"\w")
