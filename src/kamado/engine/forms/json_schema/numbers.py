"""Numbers as texts: which of them lie in a range, exactly, with an end.

Whole numbers have at most 19 digits and lie within 64 bits, fractions have 17 digits at the most, exponents 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal
from functools import cache, lru_cache

from .charset import DIGIT, of, of_pairs
from .trees import ANY, EMPTY, NOTHING, Chars, Tree, alt, both, inverse, literal, repeat, seq

MIN_WHOLE = -(1 << 63)
MAX_WHOLE = (1 << 63) - 1
MAX_UNSIGNED = (1 << 64) - 1
_EXACT = 1 << 53  # whole numbers below it are exact as doubles
_FRACTION_DIGITS = 17
_DOUBLE_DIGITS = 15  # so many always survive as a double, in their order
_BIG_EXPONENT = 307  # of one digit before the point: the largest that is finite whatever the digits are
_SMALL_EXPONENT = 300  # the smallest power of ten that is not zero, with room

_D = Chars(DIGIT)
_D19 = Chars(of_pairs("19"))
_SIGN = literal("-")


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers between bounds; None is no bound."""

    low: Decimal | None = None
    high: Decimal | None = None
    is_low_open: bool = False
    is_high_open: bool = False

    def meet(self, other: Range) -> Range:
        """Numbers of both."""
        low, low_open = max(((r.low, r.is_low_open) for r in (self, other) if r.low is not None), default=(None, False))
        highs = [(r.high, not r.is_high_open) for r in (self, other) if r.high is not None]
        high, high_closed = min(highs, default=(None, True))
        return Range(low, high, low_open, not high_closed)

    def has(self, value: Decimal) -> bool:
        """Whether a number is in it."""
        if self.low is not None and (value < self.low or (self.is_low_open and value == self.low)):
            return False
        return not (self.high is not None and (value > self.high or (self.is_high_open and value == self.high)))

    @property
    def is_empty(self) -> bool:
        """Whether no number is in it."""
        if self.low is None or self.high is None:
            return False
        return self.low > self.high or (self.low == self.high and (self.is_low_open or self.is_high_open))

    def whole_count(self) -> int:
        """How many whole numbers it has."""
        low, high = self.whole()
        return max(0, high - low + 1)

    def whole(self) -> tuple[int, int]:
        """The first and last whole number that an answer may have; the first is larger when there is none."""
        low, high = MIN_WHOLE, MAX_WHOLE
        if self.low is not None:
            low = _ceil(self.low) + (self.is_low_open and self.low == _ceil(self.low))
            if low > high:
                high = MAX_UNSIGNED if low <= MAX_UNSIGNED else low
        if self.high is not None:
            top = _floor(self.high) - (self.is_high_open and self.high == _floor(self.high))
            # Bounds of other number types are kept as they are: up to 64 bits without sign.
            high = top if top <= high else max(high, min(top, MAX_UNSIGNED))
            if high < low and self.low is None:
                low = high
        return max(low, MIN_WHOLE if self.low is None else low), high


EVERYWHERE = Range()


def _floor(value: Decimal) -> int:
    return int(value // 1) - (value < 0 and value != int(value))


def _ceil(value: Decimal) -> int:
    return -_floor(-value)


@lru_cache(256)
def whole_between(low: int, high: int) -> Tree:
    """Whole numbers from `low` to `high`, without leading zeros or "-0"."""
    ways = []
    if high >= 0:
        ways.append(_natural(max(low, 0), high))
    if low < 0:
        ways.append(seq(_SIGN, _natural(max(-high, 1), -low)))
    return alt(*ways) if low <= high else NOTHING


def _natural(low: int, high: int) -> Tree:
    if low > high:
        return NOTHING
    ways = []
    full: list[int] = []  # lengths of which every number is in it
    for length in range(len(str(low)), len(str(high)) + 1):
        first = max(low, 0 if length == 1 else 10 ** (length - 1))
        last = min(high, 10**length - 1)
        if length > 1 and first == 10 ** (length - 1) and last == 10**length - 1:
            full.append(length)
        else:
            ways.append(_same_length(str(first), str(last)))
    if full:
        ways.append(seq(_D19, repeat(_D, full[0] - 1, full[-1] - 1)))
    return alt(*ways)


def _same_length(low: str, high: str) -> Tree:
    if not low:
        return EMPTY
    rest = len(low) - 1
    if low[0] == high[0]:
        return seq(literal(low[0]), _same_length(low[1:], high[1:]))
    if set(low[1:]) <= {"0"} and set(high[1:]) <= {"9"}:
        return seq(Chars(((ord(low[0]), ord(high[0])),)), repeat(_D, rest, rest))
    ways = [
        seq(literal(low[0]), _same_length(low[1:], "9" * rest)),
        seq(literal(high[0]), _same_length("0" * rest, high[1:])),
    ]
    if ord(high[0]) - ord(low[0]) > 1:
        ways.append(seq(Chars(((ord(low[0]) + 1, ord(high[0]) - 1),)), repeat(_D, rest, rest)))
    return alt(*ways)


def _exponent(sign: Tree, low: int, high: int) -> Tree:
    """`e` and a number of up to three digits, leading zeros allowed ("1e-05" is how many write it)."""
    digits = both(repeat(_D, 1, 3), seq(repeat(literal("0"), 0, 2), _natural(low, high)))
    return seq(Chars(of("eE")), sign, digits)


def _fraction(num_digits: int) -> Tree:
    return seq(literal("."), repeat(_D, 1, num_digits)) if num_digits > 0 else NOTHING


_PLUS = repeat(literal("+"), 0, 1)
_MANTISSA = seq(_D19, repeat(_fraction(_FRACTION_DIGITS), 0, 1))
# The last power of ten that doubles have, up to 1.7 times it.
_LARGEST = seq(
    literal("1"),
    repeat(seq(literal("."), Chars(of_pairs("06")), repeat(_D, 0, _FRACTION_DIGITS - 1)), 0, 1),
    seq(Chars(of("eE")), _PLUS, literal("308")),
)


@cache
def any_number() -> Tree:
    """Any number: whole, with a fraction, or with an exponent, of which the value is finite."""
    plain = seq(_natural(0, MAX_WHOLE), repeat(_fraction(_FRACTION_DIGITS), 0, 1))
    short = seq(_D, repeat(_fraction(_FRACTION_DIGITS), 0, 1))
    powers = [
        seq(short, _exponent(_PLUS, 0, _BIG_EXPONENT)),
        _LARGEST,
        seq(short, _exponent(_SIGN, 0, 999)),
        seq(_natural(0, MAX_WHOLE), repeat(_fraction(_FRACTION_DIGITS), 0, 1), _exponent(_PLUS, 0, 280)),
        seq(_natural(0, MAX_WHOLE), repeat(_fraction(_FRACTION_DIGITS), 0, 1), _exponent(_SIGN, 0, 999)),
    ]
    return seq(repeat(_SIGN, 0, 1), alt(plain, *powers))


@lru_cache(256)
def numbers_in(bounds: Range) -> Tree:
    """Numbers of a range, with or without a fraction; exponents where they are sure to lie in it."""
    if bounds == EVERYWHERE:
        return any_number()
    bounds = _closed(bounds)
    if bounds.is_empty:
        return NOTHING
    positive: list[Tree] = []
    negative: list[Tree] = []
    zero = Decimal(0)
    low, high = bounds.low, bounds.high
    # Of x >= low
    if low is None:
        positive.append(ANY)
        negative.append(ANY)
    elif low > 0 or (low == 0 and bounds.is_low_open):
        positive.append(_at_least(low, bounds.is_low_open))
        negative.append(NOTHING)
    else:
        positive.append(ANY)
        negative.append(_at_most(-low, bounds.is_low_open))
    if high is None:
        positive.append(ANY)
        negative.append(ANY)
    elif high >= zero and not (high == 0 and bounds.is_high_open):
        positive.append(_at_most(high, bounds.is_high_open))
        negative.append(ANY)
    else:
        positive.append(NOTHING)
        negative.append(_at_least(-high, bounds.is_high_open))
    # Near a bound past 2^53 a fraction may round to its other side.
    is_far = any(bound is not None and abs(bound) >= _EXACT for bound in (low, high))
    largest = max([MAX_WHOLE, *(int(abs(bound)) for bound in (low, high) if bound is not None)])
    top = 10**_DOUBLE_DIGITS - 1 if is_far else largest
    plain = alt(seq(_natural(0, top), repeat(_fraction(_FRACTION_DIGITS), 0, 1)), _natural(0, largest))
    powers = alt(seq(_MANTISSA, alt(_exponent(_PLUS, 0, _BIG_EXPONENT), _exponent(_SIGN, 0, 999))), _LARGEST)
    magnitude = alt(plain, powers)
    return alt(both(magnitude, *positive), seq(_SIGN, both(magnitude, *negative)))


def _closed(bounds: Range) -> Range:
    """With the next double in the place of a bound that is left out: what rounds to the bound is out with it."""
    low, high = bounds.low, bounds.high
    low_open, high_open = bounds.is_low_open, bounds.is_high_open
    if low is not None and low_open and 0 < abs(low) < _EXACT:
        low, low_open = Decimal(repr(math.nextafter(float(low), math.inf))), False
    if high is not None and high_open and 0 < abs(high) < _EXACT:
        high, high_open = Decimal(repr(math.nextafter(float(high), -math.inf))), False
    return Range(low, high, low_open, high_open)


def _parts(value: Decimal) -> tuple[int, str]:
    """The whole part and the digits behind the point, without zeros at the end."""
    whole, _, fraction = f"{value:f}".partition(".")
    return int(whole), fraction.rstrip("0")


_TAIL = repeat(_D, 0, None)
_POINT = literal(".")


def _at_least(bound: Decimal, is_open: bool) -> Tree:
    """Positive numbers from `bound` >= 0 on; `is_open`: without it."""
    whole, fraction = _parts(bound)
    any_fraction = repeat(seq(_POINT, repeat(_D, 1, None)), 0, 1)
    ways = [seq(_above(whole), any_fraction)]
    more: list[Tree] = []
    for i, digit in enumerate(fraction):
        if digit < "9":
            above = Chars(((ord(digit) + 1, ord("9")),))
            more.append(seq(literal(fraction[:i]), above, _TAIL))
    if is_open:
        more.append(seq(literal(fraction), repeat(literal("0"), 0, None), _D19, _TAIL))
    elif fraction:
        more.append(seq(literal(fraction), _TAIL))
    if not fraction and not is_open:
        ways.append(seq(literal(str(whole)), any_fraction))
    elif more:
        ways.append(seq(literal(str(whole)), _POINT, alt(*more)))
    power = len(str(whole)) + 1 if whole else 1
    if power <= _BIG_EXPONENT:
        ways += [seq(_MANTISSA, _exponent(_PLUS, power, _BIG_EXPONENT)), _LARGEST]
    if bound == 0:
        ways.append(seq(_MANTISSA, _exponent(_SIGN, 0, _SMALL_EXPONENT)))
    return alt(*ways)


def _at_most(bound: Decimal, is_open: bool) -> Tree:
    """Numbers from 0 to `bound` >= 0; `is_open`: without it."""
    whole, fraction = _parts(bound)
    any_fraction = repeat(seq(_POINT, repeat(_D, 1, None)), 0, 1)
    ways: list[Tree] = []
    if whole:
        ways.append(seq(_natural(0, whole - 1), any_fraction))
    less: list[Tree] = []
    for i, digit in enumerate(fraction):
        if digit > "0":
            less.append(seq(literal(fraction[:i]), Chars(((ord("0"), ord(digit) - 1),)), _TAIL))
        if i:
            less.append(literal(fraction[:i]))  # shorter, so smaller
    if fraction or not is_open:
        ways.append(literal(str(whole)))
    if not is_open:
        less.append(
            seq(literal(fraction), repeat(literal("0"), 0, None)) if fraction else repeat(literal("0"), 1, None)
        )
    if less:
        ways.append(seq(literal(str(whole)), _POINT, alt(*less)))
    if bound > 0:
        # d.ddd e-n is below 10^(1-n); one power more keeps it away from the bound after rounding
        power = max(1, 2 - bound.adjusted())
        if power <= 999:
            ways.append(seq(_MANTISSA, _exponent(_SIGN, power, 999)))
        most = min(bound.adjusted() - 2, _BIG_EXPONENT)  # and far from it on this side
        if most >= 0:
            ways.append(seq(_MANTISSA, _exponent(_PLUS, 0, most)))
    return alt(*ways)


def _above(whole: int) -> Tree:
    """Natural numbers larger than `whole`, as far as answers go."""
    text = str(whole + 1)
    longer = seq(_D19, repeat(_D, len(text), None))
    return alt(_natural(whole + 1, 10 ** len(text) - 1), longer)


def without(tree: Tree, value: Decimal) -> Tree:
    """Numbers of `tree` but one, however it is written."""
    whole, fraction = _parts(abs(value))
    zeros = repeat(literal("0"), 0, None)
    body = literal(str(whole))
    same = seq(body, _POINT, literal(fraction), zeros) if fraction else seq(body, repeat(seq(_POINT, zeros), 0, 1))
    sign = _SIGN if value < 0 else repeat(_SIGN, 0, 1) if value == 0 else EMPTY
    powers = seq(ANY, Chars(of("eE")), ANY)
    return both(tree, inverse(seq(sign, same)), inverse(powers))


# Numbers that are not whole, as doubles either: so few digits that rounding does not make them so.
WITH_FRACTION = seq(
    repeat(_SIGN, 0, 1),
    both(
        seq(repeat(_D, 1, None), _POINT, _TAIL, _D19, _TAIL),
        alt(*(seq(repeat(_D, n, n), _POINT, repeat(_D, 1, _DOUBLE_DIGITS - n)) for n in range(1, _DOUBLE_DIGITS))),
    ),
)


def ending_in(step: int) -> Tree | None:
    """Multiples of a step that divides 10, 100 or 1000, which the last digits tell; None for any other step."""
    for count in (1, 2, 3):
        if 10**count % step == 0:
            ends = alt(*(literal(f"{n:0{count}}") for n in range(0, 10**count, step)))
            short = alt(*(literal(str(n)) for n in range(0, 10**count, step)))
            return seq(repeat(_SIGN, 0, 1), alt(short, seq(repeat(_D, 1, None), ends)))
    return None


def with_places(num_places: int) -> Tree:
    """Numbers of so many digits behind the point at the most."""
    whole = repeat(_D, 1, None)
    return seq(repeat(_SIGN, 0, 1), whole, repeat(seq(_POINT, repeat(_D, 1, num_places)), 0, 1))
