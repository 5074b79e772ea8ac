"""Sizes as people write them: "6GiB" to bytes and back."""

from __future__ import annotations

import re

from ..errors import UsageError

# A bare letter is binary, as cgroups, systemd and docker have it: "6G" is 6 GiB.
_FACTORS = {
    "": 1,
    "b": 1,
    **{f"{letter}{suffix}": 1 << (10 * i) for i, letter in enumerate("kmgt", 1) for suffix in ("", "ib")},
    **{f"{letter}b": 1000**i for i, letter in enumerate("kmgt", 1)},
}
_BARE = re.compile(r"\s*[0-9]{1,18}(?:\.[0-9]{1,9})?\s*")
_LEAST_BARE_BYTES = 1 << 20  # whoever does mean bytes writes more digits
_SIZE = re.compile(r"\s*([0-9]{1,18}(?:\.[0-9]{1,9})?)\s*([A-Za-z]*)\s*")


def round_up(value: int, to: int) -> int:
    """The least multiple of `to` that is no less than `value`."""
    return -(-value // to) * to


def parse_size(text: str | int) -> int:
    """Bytes of a size such as "6GiB", "512 MiB", "1.5G" (binary) or "6GB" (decimal); an int is bytes already.

    Raises UsageError when it is no positive size.
    """
    if isinstance(text, bool) or not isinstance(text, (int, str)):
        raise UsageError(f"a size is text such as '6GiB' or a number of bytes, not {type(text).__name__}")
    if isinstance(text, int):
        num_bytes = text
    else:
        match = _SIZE.fullmatch(text)
        factor = _FACTORS.get(match[2].lower()) if match else None
        if match is None or factor is None:
            raise UsageError(f"{text[:40]!r} is no size: write a number and a unit, such as '6GiB', '512MiB' or '6GB'")
        num_bytes = int(float(match[1]) * factor) if "." in match[1] else int(match[1]) * factor
    if num_bytes <= 0:
        raise UsageError(f"a size must be larger than zero, not {text}")
    return num_bytes


def given_size(text: str | int) -> int:
    """Bytes of a size that a person gave in an option, a variable or a file of settings: as parse_size, but no slip.

    Raises UsageError also for a number below 1 MiB without a unit: who writes 6 means 6 GiB and not 6 bytes.
    """
    is_bare = isinstance(text, int) or _BARE.fullmatch(text) is not None
    if not is_bare or isinstance(text, bool) or not 0 < float(text) < _LEAST_BARE_BYTES:
        return parse_size(text)
    number = str(text).strip()
    meant = f"{number}GiB" if float(text) < 1024 else f"{number}MiB"
    raise UsageError(f"{number} without a unit is {number} bytes: did you mean {meant}? (bytes: {number}B)")


def format_size_up(num_bytes: int) -> str:
    """As format_size, rounded up: `parse_size` of it is at least `num_bytes`, so it may be told as what is enough."""
    text = format_size(num_bytes)
    step = 1
    while parse_size(text) < num_bytes:
        text = format_size(num_bytes + step)
        step *= 2
    return text


def format_size(num_bytes: int) -> str:
    """A size for people, three digits at least: "98.4 MiB", "1.07 GiB"; below 1 KiB "512 B"."""
    if num_bytes < 0:
        return "-" + format_size(-num_bytes)
    value = float(num_bytes)
    if value < 1024:
        return f"{num_bytes} B"
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        value /= 1024
        if value < 1023.95 or unit == "TiB":
            return f"{value:.2f} {unit}" if value < 9.995 else f"{value:.1f} {unit}"
    raise AssertionError("unreachable")
