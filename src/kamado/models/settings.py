"""The rules by which families read a setting, in either format: heads, widths, positions, windows, experts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from .config import MAX_CONTEXT, MAX_EXPERTS, MAX_HEAD_DIM, MAX_HEADS, MAX_LAYERS, Config, shown
from .decoder import Attention, Mlp, Moe
from .rope import RopeTable, gguf_rope, hf_rope
from .weights import Weights


def num_layers(c: Config) -> int:
    """Blocks of the model."""
    return c.integer("block_count", high=MAX_LAYERS)


def head_counts(c: Config) -> tuple[int, int]:
    """Query and key-value heads; the first must be a multiple of the second.

    A file that leaves out the key-value heads has the family's default of them, where that is possible; one that says
    null, or has no default, has as many as query heads.
    """
    query, key = "attention.head_count", "attention.head_count_kv"
    num_heads = c.integer(query, high=MAX_HEADS)
    absent = None if c.has(key) else c.default(key)
    usual = absent if absent is not None and num_heads % absent == 0 else num_heads
    num_kv_heads = c.optional_integer(key, high=MAX_HEADS) or usual
    if num_heads % num_kv_heads:
        raise c.invalid(query, f"is {num_heads}, no multiple of {c.name(key)}, {num_kv_heads}")
    return num_heads, num_kv_heads


def head_dim(c: Config) -> int:
    """Width of one head. Keys and values of different width, or a partial rotation, belong to no family here."""
    key = "attention.key_length"
    width = c.optional_integer(key, high=MAX_HEAD_DIM) or c.default(key)
    if width is None:
        hidden, num_heads = c.integer("embedding_length"), head_counts(c)[0]
        if hidden % num_heads or hidden // num_heads > MAX_HEAD_DIM:
            raise c.invalid(
                "embedding_length",
                f"is {hidden}, which {num_heads} heads do not divide into heads of a possible width",
            )
        width = hidden // num_heads
    for other in ("attention.value_length", "rope.dimension_count") if c.is_gguf else ():
        value = c.integer(other, default=width, high=MAX_HEAD_DIM)
        if value != width:
            raise c.unsupported(other, f"is {value} while a head is {width} wide")
    if width % 2:
        raise c.invalid(key, f"gives heads of width {width}: rotary positions need an even one")
    return int(width)


def inverse_sqrt(value: float) -> float:
    """The usual attention scale, 1 / sqrt(head_dim)."""
    return 1.0 / math.sqrt(value)


def stated_bias(c: Config, key: str) -> bool | None:
    """Whether matrices have biases: config.json says it; a GGUF file has them or not (None)."""
    return None if c.is_gguf else c.flag(key, default=False)


def rope(c: Config, factors: Weights | None = None, *, permuted: bool = False) -> RopeTable:
    """The rotary table of all layers. `factors` given, a GGUF file may have a tensor of divisors.

    `permuted`: GGUF files have the rows of q and k in the order of interleaved pairs.
    """
    if c.is_gguf:
        return gguf_rope(c, head_dim(c), factors, interleaved=permuted)
    return hf_rope(c, head_dim(c))


def attention(
    c: Config,
    rope: RopeTable | None,
    *,
    scale: float | None = None,
    window: int | None = None,
    qk_norm: Literal["head", "row"] | None = None,
    bias: bool | None = False,
    out_bias: bool | None = False,
) -> Attention:
    """Attention with the file's heads; `scale` None is the usual one."""
    num_heads, num_kv_heads = head_counts(c)
    width = head_dim(c)
    return Attention(
        num_heads,
        num_kv_heads,
        width,
        inverse_sqrt(width) if scale is None else scale,
        rope,
        window,
        qk_norm,
        bias,
        out_bias,
    )


def mlp(c: Config, *, activation: str = "silu", bias: bool | None = False, gated: bool = True) -> Mlp:
    """The MLP of every layer; `activation`: transformers' name of it where the file has none, as in GGUF."""
    return Mlp(c.integer("feed_forward_length"), c.activation("hidden_act", activation), bias, gated)


def moe(
    c: Config,
    *width: str,
    score: Literal["softmax", "topk_softmax"] = "softmax",
    normalize: bool = True,
) -> Moe:
    """The experts of every layer; `width`: keys of an expert's width, in order of preference.

    Raises UnsupportedError for routers that do not score by softmax.
    """
    num_experts = c.integer("expert_count", high=MAX_EXPERTS)
    top_k = c.integer("expert_used_count", high=MAX_EXPERTS)
    if top_k > num_experts:
        raise c.invalid(
            "expert_used_count", f"is {top_k}, more than the {num_experts} experts of {c.name('expert_count')}"
        )
    scale = 1.0
    if c.is_gguf:
        if c.integer("expert_gating_func", default=1, low=0, high=255) not in (0, 1):
            raise c.unsupported("expert_gating_func", "asks for a router that is not softmax")
        scale = c.number("expert_weights_scale", default=1.0) or 1.0
    return Moe(num_experts, top_k, c.integer(*width), c.activation("hidden_act", "silu"), score, normalize, scale)


def check_normalized(c: Config) -> None:
    """Refuses GGUF files of families that always divide the experts' weights by their sum, when they say no."""
    if c.is_gguf and not c.flag("expert_weights_norm", default=True):
        raise c.unsupported("expert_weights_norm", "is false, which no model of this family has")


def factor(c: Config, key: str) -> float:
    """A multiplier, 1 when absent; in GGUF 0 means absent too."""
    factor = c.number(key, default=1.0)
    return factor or 1.0 if c.is_gguf else factor


def gguf_scale(c: Config) -> float | None:
    """The factor on q · k that a GGUF file names, 0 meaning the usual one (None)."""
    return c.optional_number("attention.scale") or None


def gguf_window(c: Config) -> int | None:
    """The window that a GGUF file names, 0 meaning none."""
    return c.optional_integer("attention.sliding_window", low=0, high=MAX_CONTEXT) or None


def sliding_windows(c: Config, window: int | None, is_sliding: Sequence[bool]) -> tuple[int | None, ...]:
    """The window of every layer. `layer_types`, when the file has it, wins over the family's own pattern."""
    types = c.sequence("layer_types", len(is_sliding))
    if types is not None:
        for kind in types:
            if kind not in ("full_attention", "sliding_attention"):
                raise c.unsupported("layer_types", f"has {shown(kind)}; known are full_attention, sliding_attention")
        is_sliding = [kind == "sliding_attention" for kind in types]
    if any(is_sliding) and window is None:
        raise c.unsupported("layer_types", "asks for sliding_attention while no sliding window is in force")
    return tuple(window if sliding else None for sliding in is_sliding)


def qwen_windows(c: Config) -> tuple[int | None, ...]:
    """Qwen's rule: with `use_sliding_window`, layers from `max_window_layers` on have the window. GGUF knows none."""
    layers = range(num_layers(c))
    if c.is_gguf:
        return (None,) * len(layers)
    window = c.optional_integer("sliding_window", high=MAX_CONTEXT)
    first = c.integer("max_window_layers", default=28, low=0)
    if not c.flag("use_sliding_window", default=False):
        window = None  # published files carry a window that is not in force
    return sliding_windows(c, window, [window is not None and i >= first for i in layers])
