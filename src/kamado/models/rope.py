"""Rotary frequencies from the settings of a file, with every scaling rule that the supported families use."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .config import MAX_CONTEXT, Config
from .weights import Weights

# Keys of a rope dictionary by type, besides the two names of the type itself. Any other key is refused by name.
_KEYS: dict[str, frozenset[str]] = {
    "default": frozenset({"rope_theta", "factor", "original_max_position_embeddings"}),
    "linear": frozenset({"rope_theta", "factor", "original_max_position_embeddings"}),
    "llama3": frozenset(
        {"rope_theta", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}
    ),
    "yarn": frozenset(
        {
            "rope_theta", "factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow",
            "mscale", "mscale_all_dim", "truncate", "finetuned",
        }
    ),
    "proportional": frozenset({"rope_theta", "factor", "partial_rotary_factor"}),
}  # fmt: skip

_SHARE: Final = "partial_rotary_factor"
_STILL: Final = 1e30  # the divisor by which GGUF files say that a pair does not turn at all


@dataclass(frozen=True, slots=True)
class RopeTable:
    """What a Rope operation needs: float64[head_dim / 2] angles a position, and the factor on cos and sin."""

    inv_freq: NDArray[np.float64]
    attention_factor: float = 1.0
    interleaved: bool = False  # the order of pairs in q and k; see program.Rope


def base_frequencies(theta: float, head_dim: int) -> NDArray[np.float64]:
    """theta^(-2i / head_dim) in double; the references round to float32, 6e-8 of the angle."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float64) / head_dim
    freqs: NDArray[np.float64] = np.power(theta, -exponents)
    return freqs


def proportional_frequencies(theta: float, head_dim: int, share: float) -> NDArray[np.float64]:
    """Those of the whole head, of which only the first ones turn: the others are 0."""
    freqs = base_frequencies(theta, head_dim)
    freqs[int(share * head_dim // 2) :] = 0.0
    return freqs


def llama3_factors(
    freqs: NDArray[np.float64], factor: float, low: float, high: float, original_context: float
) -> NDArray[np.float64]:
    """What each frequency is divided by: 1 for waves short against the old context, `factor` for long ones."""
    wavelength = 2 * math.pi / freqs
    smooth = np.clip((original_context / wavelength - low) / (high - low), 0.0, 1.0)
    result: NDArray[np.float64] = 1.0 / ((1.0 - smooth) / factor + smooth)
    return result


def yarn_frequencies(
    theta: float,
    head_dim: int,
    factor: float,
    original_context: float,
    beta_fast: float,
    beta_slow: float,
    truncate: bool = True,
) -> NDArray[np.float64]:
    """Interpolated where a wave turns fewer than `beta_slow` times in the old context, kept above `beta_fast` turns."""

    def dimension(turns: float) -> float:
        return head_dim * math.log(original_context / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension(beta_fast), dimension(beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    ramp = np.clip((np.arange(head_dim // 2) - low) / max(high - low, 1e-3), 0.0, 1.0)
    freqs = base_frequencies(theta, head_dim)
    result: NDArray[np.float64] = freqs / factor * ramp + freqs * (1.0 - ramp)
    return result


def yarn_attention_factor(factor: float, mscale: float = 1.0) -> float:
    """0.1 · mscale · ln(factor) + 1: the paper's growth of the logits with the context."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def gguf_rope(
    config: Config,
    head_dim: int,
    weights: Weights | None = None,
    *,
    interleaved: bool = False,
    long: bool = False,
    log_multiplier: bool = False,
    num_factors: int | None = None,
) -> RopeTable:
    """The table of a GGUF file; `weights` given, its optional `rope_freqs` tensor of divisors is applied.

    `long`: the type may be longrope, of whose divisors longrope.py takes care. `log_multiplier`: the family's files say
    in `rope.scaling.yarn_log_multiplier` what config.json calls mscale_all_dim, of which mscale is 1. `num_factors`:
    values of the tensor, where it has more than pairs are turned.
    """
    theta = config.number("rope.freq_base", default=10000.0, low=1.0)
    kind = config.text("rope.scaling.type", default="linear")
    old_factor = config.number("rope.scale_linear", default=1.0)
    factor = config.number("rope.scaling.factor", default=old_factor) or 1.0
    attention_factor = config.number("rope.scaling.attn_factor", default=1.0) or 1.0
    freqs = base_frequencies(theta, head_dim)
    if kind == "linear" or (long and kind == "longrope"):
        freqs /= factor
    elif kind == "yarn":
        multiplier = config.number("rope.scaling.yarn_log_multiplier", default=0.0) if log_multiplier else 0.0
        freqs, growth = _gguf_yarn(config, theta, head_dim, factor, multiplier)
        attention_factor *= growth
    elif kind != "none":
        raise config.unsupported("rope.scaling.type", f"is {kind!r}; supported are none, linear and yarn")
    if weights is not None and weights.has("rope_freqs"):
        divisors = weights.values("rope_freqs", num_factors or head_dim // 2)[: head_dim // 2]
        if not (np.isfinite(divisors).all() and (divisors > 0).all()):
            raise config.invalid("rope_freqs.weight", "has values that are not positive numbers")
        freqs = np.where(divisors < _STILL, freqs / divisors, 0.0)
    return RopeTable(freqs, attention_factor, interleaved)


def _gguf_yarn(
    config: Config, theta: float, head_dim: int, factor: float, log_multiplier: float
) -> tuple[NDArray[np.float64], float]:
    context = config.integer("context_length", high=MAX_CONTEXT)
    original = config.integer("rope.scaling.original_context_length", default=context, high=MAX_CONTEXT)
    if config.number("rope.scaling.yarn_ext_factor", default=1.0, low=-1.0) not in (1.0, -1.0):
        raise config.unsupported("rope.scaling.yarn_ext_factor", "is not 1")
    growth = yarn_attention_factor(factor)
    if log_multiplier:
        growth /= yarn_attention_factor(factor, log_multiplier)
    written = config.number("rope.scaling.yarn_attn_factor", default=1.0)
    if abs(written - 1.0) > 1e-6 and abs(written - growth) > 1e-4:
        raise config.unsupported(
            "rope.scaling.yarn_attn_factor", f"is {written:g}: converters and engines disagree on its meaning"
        )
    beta_fast = config.number("rope.scaling.yarn_beta_fast", default=32.0, low=1e-6)
    beta_slow = config.number("rope.scaling.yarn_beta_slow", default=1.0, low=1e-6)
    _check_yarn(config, "rope.freq_base", theta)
    return yarn_frequencies(theta, head_dim, factor, original, beta_fast, beta_slow), growth


def _check_yarn(config: Config, key: str, theta: float) -> None:
    if theta <= 1.0:
        raise config.invalid(key, f"must be above 1 for yarn, got {theta:g}")


def hf_rope(config: Config, head_dim: int, *, partial: bool = False, interleaved: bool = False) -> RopeTable:
    """The table of a config.json: `rope_theta` and `rope_scaling`, or transformers 5's `rope_parameters`.

    `partial`: the family's classes turn but a share of each head where the file says so.
    """
    theta = config.number("rope_theta", default=10000.0, low=1.0)
    rope = config.joined_section("rope_scaling", "rope_parameters")  # files of the years between have both
    width = rotary_dim(config, rope, head_dim) if partial else head_dim
    if rope is None:
        return RopeTable(base_frequencies(theta, width), interleaved=interleaved)
    return replace(hf_rope_section(config, rope, width, theta, partial=partial), interleaved=interleaved)


def hf_ropes(
    config: Config, head_dim: int, thetas: tuple[float, float], shares: tuple[float, float] | None = None
) -> tuple[RopeTable, RopeTable]:
    """The tables of local and of global layers of a config.json: `rope_scaling`, which is of the global ones alone, or
    transformers 5's dictionary by layer type.

    The bases, and with `shares` the shares of a head that turn, are those of a file that names them outside.
    """
    new, old = config.section("rope_parameters"), config.section("rope_scaling")
    if new is not None and old is not None:
        raise old.unsupported("rope_type", f"comes with {config.name('rope_parameters')}: the two may contradict")
    for key in new.present() if new else ():
        if key not in ("sliding_attention", "full_attention"):
            raise config.unsupported(f"rope_parameters.{key}", "is set for all layers, not by layer type")

    def table(section: Config | None, base: float, share: float) -> RopeTable:
        if shares is not None and section is not None:
            share = section.number(_SHARE, default=share, high=1.0)
        width = _turned(config, head_dim, share)
        if section is None:
            return RopeTable(base_frequencies(base, width))
        return hf_rope_section(config, section, width, base, partial=shares is not None)

    local, full = (new.section("sliding_attention"), new.section("full_attention")) if new else (None, old)
    (local_theta, theta), (local_share, share) = thetas, shares or (1.0, 1.0)
    return table(local, local_theta, local_share), table(full, theta, share)


def rotary_dim(config: Config, rope: Config | None, head_dim: int) -> int:
    """Values of each head that turn, from `partial_rotary_factor` in the rope dictionary, or else beside it.

    A family that names a key of config.json for `rope.dimension_count` has their number there.
    """
    stated = config.optional_integer("rope.dimension_count", low=2, high=head_dim)
    share = config.number(_SHARE, default=1.0 if stated is None else stated / head_dim, high=1.0)
    width = _turned(config, head_dim, share if rope is None else rope.number(_SHARE, default=share, high=1.0))
    if stated is not None and stated != width:
        raise config.invalid("rope.dimension_count", f"is {stated} while {_SHARE} turns {width} of {head_dim} values")
    return width


def _turned(config: Config, head_dim: int, share: float) -> int:
    width = int(head_dim * share)  # cut off, as transformers does
    if width < 2 or width % 2:
        raise config.invalid(_SHARE, f"of {share:g} turns {width} of the {head_dim} values of a head")
    return width


def context_length(config: Config) -> int:
    """Positions that a file allows: those it names, or what its rope scaling stretches them to.

    The recipe of model cards for long texts (Qwen2.5, Qwen3) adds YaRN and leaves max_position_embeddings alone.
    """
    written = config.integer("context_length", high=MAX_CONTEXT)
    if config.is_gguf:
        kind = config.text("rope.scaling.type", default="linear")
        factor = config.optional_number("rope.scaling.factor") or config.optional_number("rope.scale_linear")
        original = config.optional_integer("rope.scaling.original_context_length", high=MAX_CONTEXT)
        return _stretched(written, kind, original, factor)
    rope = config.joined_section("rope_scaling", "rope_parameters")
    if rope is None:
        assumed = config.default("rope_parameters") or {}
        original, factor = assumed.get("original_max_position_embeddings"), assumed.get("factor")
        return _stretched(written, assumed.get("rope_type", "default"), original, factor)
    kind = rope.text("rope_type", default=rope.text("type", default="default"))
    factor = rope.optional_number("factor")
    outer = config.optional_integer("original_max_position_embeddings", high=MAX_CONTEXT)
    original = outer or rope.optional_integer("original_max_position_embeddings", high=MAX_CONTEXT)
    return _stretched(written, kind, original, factor)


def _stretched(written: int, kind: str, original: int | None, factor: float | None) -> int:
    if kind == "yarn":
        original = original or written  # what the frequencies are made from then, too
    elif kind not in ("linear", "llama3") or original is None or written > original:
        return written  # Llama 3.2 says 131 072, which is less than 32 times its 8192: what was stretched on purpose
    return min(max(written, int(original * (factor or 1.0))), MAX_CONTEXT)


def hf_rope_section(
    config: Config, rope: Config, head_dim: int, default_theta: float, *, partial: bool = False
) -> RopeTable:
    """The table of one rope dictionary, for the `head_dim` values that turn; `config` is the model's, for the context
    lengths. `partial`: a share of the head that turns has been read."""
    kind = rope.text("rope_type", default=rope.text("type", default="default"))
    if kind not in _KEYS:
        raise rope.unsupported("rope_type", f"is {kind!r}; supported are {', '.join(_KEYS)}")
    theta = rope.number("rope_theta", default=default_theta, low=1.0)
    if kind == "proportional":
        if partial:
            raise rope.unsupported("rope_type", "is 'proportional' in a family that turns a share of each head anyway")
        share = rope.number(_SHARE, default=1.0, high=1.0)
        factor = rope.number("factor", default=1.0, low=1e-6)
        rope.refuse_unread()
        return RopeTable(proportional_frequencies(theta, head_dim, share) / factor)
    if not partial and rope.number("partial_rotary_factor", default=1.0) != 1.0:
        raise rope.unsupported("partial_rotary_factor", "is not 1")
    rope.known(_KEYS[kind])
    rope.refuse_unread()
    freqs = base_frequencies(theta, head_dim)
    if kind == "default":
        return RopeTable(freqs)
    if kind == "linear":
        return RopeTable(freqs / rope.number("factor", low=1e-6))
    context = config.integer("max_position_embeddings", high=MAX_CONTEXT)
    outer = config.optional_integer("original_max_position_embeddings", high=MAX_CONTEXT)
    original = outer or rope.integer("original_max_position_embeddings", default=context, high=MAX_CONTEXT)
    if kind == "llama3":
        factor = rope.number("factor", low=1e-6)
        low, high = rope.number("low_freq_factor", low=1e-6), rope.number("high_freq_factor", low=1e-6)
        if high <= low:
            raise rope.invalid("high_freq_factor", f"is {high:g}, not above {rope.name('low_freq_factor')}, {low:g}")
        return RopeTable(freqs / llama3_factors(freqs, factor, low, high, original))
    factor = rope.optional_number("factor", low=1e-6) or context / original
    mscale, mscale_all = rope.number("mscale", default=0.0), rope.number("mscale_all_dim", default=0.0)
    growth = yarn_attention_factor(factor)
    if mscale and mscale_all:
        growth = yarn_attention_factor(factor, mscale) / yarn_attention_factor(factor, mscale_all)
    written = rope.optional_number("attention_factor")
    beta_fast = rope.number("beta_fast", default=32.0) or 32.0
    beta_slow = rope.number("beta_slow", default=1.0) or 1.0
    _check_yarn(rope, "rope_theta", theta)
    freqs = yarn_frequencies(
        theta, head_dim, factor, original, beta_fast, beta_slow, rope.flag("truncate", default=True)
    )
    return RopeTable(freqs, growth if written is None else written)
