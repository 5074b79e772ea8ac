"""What `kv=` may say: presets and explicit bits. What is kept of them in how many bytes: kv_pages.py."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from ..errors import UsageError
from ..program import Attend, Program

CODE_BITS = (1, 2, 3, 4, 8)  # 1: a control for quality tests, of no other use
CODE_DIMS = (64, 80, 96, 128, 192, 256, 512)  # head sizes that can be rotated
AUTO = "auto"

Bits = tuple[int, int]  # of keys and of values; (0, 0): exact

_EXACT: Bits = (0, 0)
_CODED: dict[str, Bits] = {"safe": (8, 4), "balanced": (4, 4), "small": (3, 2)}
PRESETS = ("f32", "exact", *_CODED)

_MAX_TEXT = 4096


@dataclass(frozen=True, slots=True)
class KvPlan:
    """What each KV layer keeps. `name` says it in full: two plans of one name and one program store the same bytes."""

    name: str
    element: Literal["f32", "f16"]
    bits: tuple[Bits, ...]  # by layer

    def for_program(self, program: Program) -> KvPlan:
        """The same, exact where a layer cannot be encoded: it has a window, is not causal, or has an odd head size."""
        layers = program.attends_by_kv_layer
        if len(layers) != len(self.bits):
            raise UsageError(f"kv={self.name!r} was made for {len(self.bits)} layers, the program has {len(layers)}")
        pairs = zip(layers, self.bits, strict=True)
        bits = tuple(bits if all(map(_can_encode, attends)) else _EXACT for attends, bits in pairs)
        return replace(self, bits=bits)


def parse_kv(text: str, num_layers: int, recommended: str | None = None) -> KvPlan:
    """The plan that `text` names for a model of `num_layers` KV layers.

    A preset: f32, exact (f16), safe (keys of 8 bits, values of 4), balanced (4, 4), small (3, 2). Or bits: "k=4,v=3",
    from 2, 3, 4 and 8 (1 for tests). Either may be followed by layers that differ: "balanced,layers=0-1:exact" or
    "k=3,v=2,layers=0+26-27:k8v4". "auto" is `recommended`, what was measured as safe for the model, else exact.
    Raises UsageError for anything else.
    """
    _check_text(text)
    if text == AUTO:
        text = recommended or "exact"
    base, *items = [item.strip() for item in text.split(",")]
    element: Literal["f32", "f16"] = "f32" if base == "f32" else "f16"
    if base in PRESETS:
        bits, name = _CODED.get(base, _EXACT), base
    elif base.startswith("k=") and items and items[0].startswith("v="):
        bits = _bits(text, base[2:]), _bits(text, items.pop(0)[2:])
        name = f"k={bits[0]},v={bits[1]}"
    else:
        raise UsageError(
            f"kv={text!r} is no KV preset: choose from {', '.join((AUTO, *PRESETS))}, or bits as 'k=4,v=3'"
        )
    layers = [bits] * num_layers
    for item in items:
        _apply(text, item, element, layers)
        name += f",{item}"
    return KvPlan(name, element, tuple(layers))


def _check_text(text: object) -> None:
    if not isinstance(text, str) or len(text) > _MAX_TEXT:
        raise UsageError("kv= takes a preset or bits, such as 'balanced' or 'k=4,v=3'")


def check_kv(text: str) -> None:
    """Raises UsageError unless parse_kv would take the text for some model."""
    parse_kv(text, 1 << 16)


def _bits(text: str, value: str) -> int:
    if value not in map(str, CODE_BITS):
        raise UsageError(f"kv={text!r}: bits are 2, 3, 4 or 8, not {value!r}")
    return int(value)


def _apply(text: str, item: str, element: str, layers: list[Bits]) -> None:
    """Changes the layers that an exception such as "layers=0-1+5:k8v4" names."""
    match = re.fullmatch(r"layers=([0-9+-]+):(?:(exact)|k([0-9])v([0-9]))", item)
    if match is None:
        raise UsageError(f"kv={text!r}: {item!r} is no exception: write 'layers=0-1:exact' or 'layers=0+5-7:k8v4'")
    if element == "f32":
        raise UsageError(f"kv={text!r}: an f32 cache is exact in all layers")
    bits = _EXACT if match[2] else (_bits(text, match[3]), _bits(text, match[4]))
    for part in match[1].split("+"):
        span = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", part)
        first, last = (int(span[1]), int(span[2] or span[1])) if span else (1, 0)
        if not first <= last < len(layers):
            raise UsageError(f"kv={text!r}: layers {part!r} are not among 0-{len(layers) - 1}")
        layers[first : last + 1] = [bits] * (last - first + 1)


def _can_encode(op: Attend) -> bool:
    return op.causal and not op.window and op.head_dim in CODE_DIMS and op.v_dim in CODE_DIMS
