"""LongRoPE: two sets of divisors for the rotary frequencies, for contexts up to the original one and longer ones."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from .config import MAX_CONTEXT, Config, shown
from .rope import RopeTable, base_frequencies, gguf_rope, rotary_dim
from .settings import head_dim
from .weights import Weights

_KINDS: Final = ("longrope", "su", "yarn")  # transformers takes the older names of Phi-3's files for the same
_KEYS: Final = ("rope_theta", "factor", "attention_factor", "original_max_position_embeddings", "partial_rotary_factor")

_LEAST: Final = 1e-3  # of what a frequency may be divided by
_MOST: Final = 1e6

Divisors = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, slots=True)
class LongRope:
    """The table for contexts up to `original` tokens, and the one for longer ones when there is another."""

    original: int
    short: RopeTable
    long: RopeTable | None = None


def read_long_rope(c: Config, w: Weights) -> LongRope:
    """The tables of a file whose classes know LongRoPE; a share of each head may turn."""
    return _gguf(c, w) if c.is_gguf else _hf(c)


def _gguf(c: Config, w: Weights) -> LongRope:
    """The divisors are tensors there; the converter works out the factor on cos and sin, and names no type."""
    width = head_dim(c)
    turned = c.integer("rope.dimension_count", default=width, low=2, high=width)
    if turned % 2:
        raise c.invalid("rope.dimension_count", f"is {turned}, which is odd")
    context = c.integer("context_length", high=MAX_CONTEXT)
    original = c.integer("rope.scaling.original_context_length", default=context, low=2, high=MAX_CONTEXT)
    plain = gguf_rope(c, turned, long=True)
    if not (w.has("rope_factors_short") or w.has("rope_factors_long")):
        return LongRope(original, plain)
    short, long = (_stored_divisors(c, w, name, turned // 2) for name in ("short", "long"))
    return _both(original, context, plain, short, long)


def _hf(c: Config) -> LongRope:
    theta = c.number("rope_theta", default=10000.0, low=1.0)
    rope = c.joined_section("rope_scaling", "rope_parameters")  # files of the years between have both
    turned = rotary_dim(c, rope, head_dim(c))
    context = c.integer("context_length", high=MAX_CONTEXT)
    original = c.integer("original_max_position_embeddings", default=context, low=2, high=MAX_CONTEXT)
    if rope is None:
        return LongRope(original, RopeTable(base_frequencies(theta, turned)))
    kind = rope.text("rope_type", default=rope.text("type", default="default"))
    theta = rope.number("rope_theta", default=theta, low=1.0)
    inner = rope.optional_integer("original_max_position_embeddings", high=MAX_CONTEXT)
    if kind == "default":
        rope.known(_KEYS)
        return LongRope(original, RopeTable(base_frequencies(theta, turned)))
    if kind not in _KINDS:
        raise rope.unsupported("rope_type", f"is {kind!r}; supported are default, {', '.join(_KINDS)}")
    if inner not in (None, original):
        key = c.name("original_max_position_embeddings")
        raise rope.invalid("original_max_position_embeddings", f"is {inner} while {key} is {original}")
    factor = rope.optional_number("factor", low=1e-6) or context / original
    growth = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    written = rope.optional_number("attention_factor")
    growth = float(np.float32(growth)) if written is None else written
    plain = RopeTable(base_frequencies(theta, turned), growth)
    short, long = (_divisors(rope, name, turned // 2) for name in ("short_factor", "long_factor"))
    return _both(original, context, plain, short, long)


def _divisors(rope: Config, key: str, count: int) -> Divisors:
    values = rope.sequence(key)
    if values is None or len(values) != count:
        raise rope.invalid(key, f"has {0 if values is None else len(values)} numbers, needed are {count}")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float) or not _LEAST <= value <= _MOST:
            raise rope.invalid(key, f"has {shown(value)}, which is no number from {_LEAST:g} to {_MOST:g}")
    # As GGUF stores them, so that one model gives one program in either format.
    return np.array(values, np.float32).astype(np.float64)


def _stored_divisors(c: Config, w: Weights, name: str, count: int) -> Divisors:
    role = f"rope_factors_{name}"
    values = w.values(role, count)
    if not ((values >= _LEAST) & (values <= _MOST)).all():
        raise c.invalid(w.name(role), f"has values that are no numbers from {_LEAST:g} to {_MOST:g}")
    return values


def _both(original: int, context: int, plain: RopeTable, short: Divisors, long: Divisors) -> LongRope:
    tables = [replace(plain, inv_freq=plain.inv_freq / divisors) for divisors in (short, long)]
    return LongRope(original, tables[0], tables[1] if context > original else None)
