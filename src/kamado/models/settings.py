"""The rules by which families read a setting, in either format: heads, widths, positions, windows, experts."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Final, Literal

import numpy as np

from .config import MAX_CONTEXT, MAX_EXPERTS, MAX_HEAD_DIM, MAX_HEADS, MAX_LAYERS, MAX_WIDTH, Config, shown
from .decoder import Attention, Mlp, Moe
from .rope import RopeTable, base_frequencies, gguf_rope, hf_rope, hf_ropes
from .weights import Weights


def num_layers(c: Config) -> int:
    """Blocks of the model. GGUF files count those that only draft further tokens too, behind the others."""
    count = c.integer("block_count", high=MAX_LAYERS)
    drafts = num_drafts(c) if c.is_gguf else 0
    if drafts >= count:
        raise c.invalid("nextn_predict_layers", f"is {drafts} of {count} layers")
    return count - drafts


def num_drafts(c: Config) -> int:
    """Blocks that predict the token after the next (MTP), which the forward pass does not run."""
    return c.integer("nextn_predict_layers", default=0, low=0, high=MAX_LAYERS)


def draft_tensors(c: Config) -> str | None:
    """The names of their tensors, for `model(ignored=…)`: in both formats those of the layers behind the others."""
    first, drafts = num_layers(c), num_drafts(c)
    names = "|".join(str(i) for i in range(first, first + drafts))
    return rf"^(blk|(model\.)?(language_model\.)?layers)\.({names})\." if drafts else None


# For `model(ignored=…)`.
VISION_TENSORS: Final = r"^(model\.)?(vision_tower|vision_model|visual|multi_modal_projector|vit_large_projector)\."


def vision_notes(w: Weights, tensors: str = VISION_TENSORS, what: str = "vision tower is") -> tuple[str, ...]:
    """What `model(notes=…)` says of a file with pictures, `tensors` being the names of their part."""
    has_more = any(re.search(tensors, name) for name in w.checkpoint.tensors)
    return (f"text only: the file's {what} not used",) if has_more else ()


def leading_dense(c: Config) -> int:
    """Layers at the beginning that have an MLP where the others have experts."""
    return c.integer("leading_dense_block_count", default=0, low=0, high=MAX_LAYERS)


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
    """Width of one head. Keys and values of different width belong to no family here."""
    key = "attention.key_length"
    width = c.optional_integer(key, high=MAX_HEAD_DIM) or (None if c.has(key) else c.default(key))
    if width is None:
        hidden, num_heads = c.integer("embedding_length"), c.integer("attention.head_count", high=MAX_HEADS)
        if hidden % num_heads or hidden // num_heads > MAX_HEAD_DIM:
            raise c.invalid(
                "embedding_length",
                f"is {hidden}, which {num_heads} heads do not divide into heads of a possible width",
            )
        width = hidden // num_heads
    values = c.integer("attention.value_length", default=width, high=MAX_HEAD_DIM) if c.is_gguf else width
    if values != width:
        raise c.unsupported("attention.value_length", f"is {values} while a head is {width} wide")
    if width % 2:
        raise c.invalid(key, f"gives heads of width {width}: rotary positions need an even one")
    return int(width)


def own_of_layers(c: Config, layers: int, key: str, usual: int, high: int) -> list[int] | None:
    """A number a layer, as transformers 5 writes it: `usual`, but for layers with their own in `per_layer_config`.

    None for a file without that.
    """
    own = c.section("per_layer_config")
    if own is None:
        return None
    numbers = [usual] * layers
    for name in own.present():
        if not name.isdecimal() or len(name) > 4 or int(name) >= layers:
            raise c.invalid("per_layer_config", f"names layer {shown(name)} of {layers}")
        entry = own.section(name)
        if entry is not None:
            numbers[int(name)] = entry.integer(key, default=usual, high=high)
    return numbers


def inverse_sqrt(value: float) -> float:
    """The usual attention scale, 1 / sqrt(head_dim)."""
    return 1.0 / math.sqrt(value)


def stated_bias(c: Config, key: str) -> bool | None:
    """Whether matrices have biases: config.json says it; a GGUF file has them or not (None)."""
    return None if c.is_gguf else c.flag(key, default=False)


def rope(
    c: Config,
    factors: Weights | None = None,
    *,
    permuted: bool = False,
    interleaved: bool = False,
    partial: bool = False,
    log_multiplier: bool = False,
) -> RopeTable:
    """The rotary table of all layers. `factors` given, a GGUF file may have a tensor of divisors.

    `permuted`: GGUF files alone have the rows of q and k in the order of interleaved pairs; `interleaved`: both formats
    have. `partial`: a file may turn only the first values of each head. `log_multiplier`: see gguf_rope.
    """
    width = head_dim(c)
    if not c.is_gguf:
        return hf_rope(c, width, partial=partial, interleaved=interleaved)
    turned = c.integer("rope.dimension_count", default=width, high=MAX_HEAD_DIM)
    if turned != width and not partial:
        raise c.unsupported("rope.dimension_count", f"is {turned} while a head is {width} wide")
    if turned > width or turned % 2:
        raise c.invalid("rope.dimension_count", f"is {turned}, which is odd or more than the {width} values of a head")
    return gguf_rope(c, turned, factors, interleaved=permuted or interleaved, log_multiplier=log_multiplier)


def ropes(c: Config, *, theta: float = 10000.0, local_theta: float | None = None) -> tuple[RopeTable, RopeTable]:
    """Of local and of global layers: only the global ones are scaled for long contexts.

    `theta`: the base of a config.json without one; `local_theta`: that of local layers, which then have a key of their
    own for it; None: theirs is the global one. config.json has `rope_theta` and `rope_scaling`, or transformers 5's
    dictionary by layer type.
    """
    width = head_dim(c)
    theta = c.number("rope.freq_base", default=10000.0 if c.is_gguf else theta, low=1.0)
    if local_theta is not None or c.is_gguf:
        local_theta = c.number("rope.freq_base_swa", default=local_theta or theta, low=1.0)
    local_theta = local_theta or theta
    if c.is_gguf:
        return RopeTable(base_frequencies(local_theta, width)), rope(c)
    return hf_ropes(c, width, (local_theta, theta))


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


_GATING: Final = {1: "softmax", 2: "sigmoid"}  # expert_gating_func of llama.cpp; 0 and absent: the family's own


def moe(
    c: Config,
    *width: str,
    score: Literal["softmax", "topk_softmax", "sigmoid"] = "softmax",
    normalize: bool = True,
    scaled: bool = False,
    grouped: bool = False,
    choice_bias: bool | None = False,
    shared: int = 0,
    norm_eps: float = 0.0,
) -> Moe:
    """The experts of every layer; `width`: keys of an expert's width, in order of preference.

    `scaled`, `grouped`: the family's classes read a factor on the weights, and groups of experts, from config.json
    (`scaled` from GGUF, too, where every family has one). Raises UnsupportedError for a GGUF file with another `score`.
    """
    num_experts = c.integer("expert_count", high=MAX_EXPERTS)
    top_k = c.integer("expert_used_count", high=MAX_EXPERTS)
    if top_k > num_experts:
        raise c.invalid(
            "expert_used_count", f"is {top_k}, more than the {num_experts} experts of {c.name('expert_count')}"
        )
    if c.is_gguf:
        gating = c.integer("expert_gating_func", default=0, low=0, high=255)
        usual = "sigmoid" if score == "sigmoid" else "softmax"
        if gating and _GATING.get(gating) != usual:
            raise c.unsupported("expert_gating_func", f"is {gating}, a router that is not {usual}")
    scale = factor(c, "expert_weights_scale") if scaled or c.is_gguf else 1.0
    groups = top_groups = 1
    if grouped:
        groups = c.integer("expert_group_count", default=1, low=0, high=num_experts) or 1
        top_groups = c.integer("expert_group_used_count", default=1, low=0, high=groups) or 1
        if num_experts % groups or num_experts // groups < 2 or num_experts // groups * top_groups < top_k:
            raise c.invalid(
                "expert_group_count", f"is {groups}, {top_groups} used, for {top_k} of {num_experts} experts"
            )
    return Moe(
        num_experts,
        top_k,
        c.integer(*width),
        c.activation("hidden_act", "silu"),
        score,
        normalize,
        scale,
        choice_bias,
        groups,
        top_groups,
        shared,
        norm_eps=norm_eps,
    )


def shared_width(c: Config, expert_width: int) -> int:
    """Width of the shared expert: as the GGUF file says, else as many experts' as there are shared ones; 0: none."""
    count = c.integer("expert_shared_count", default=0, low=0, high=MAX_EXPERTS)
    stated = c.integer("expert_shared_feed_forward_length", default=0, low=0) if c.is_gguf else 0
    width = stated or count * expert_width
    if width > MAX_WIDTH:
        raise c.invalid("expert_shared_count", f"makes a shared expert {width} wide")
    return width


def sparse_layers(c: Config) -> list[bool]:
    """Which layers have experts by Qwen's rule: some may have an MLP in their place. GGUF knows no such files."""
    layers = range(num_layers(c))
    if c.is_gguf:
        return [True] * len(layers)
    step, dense = c.integer("decoder_sparse_step", default=1), c.sequence("mlp_only_layers") or []
    return [i not in dense and (i + 1) % step == 0 for i in layers]


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


def sliding_windows(
    c: Config, window: int | None, is_sliding: Sequence[bool], spare: int = 0
) -> tuple[int | None, ...]:
    """The window of every layer. `layer_types`, when the file has it, wins over the family's own pattern."""
    types = c.sequence("layer_types", len(is_sliding), spare)
    if types is not None:
        for kind in types:
            if kind not in ("full_attention", "sliding_attention"):
                raise c.unsupported("layer_types", f"has {shown(kind)}; known are full_attention, sliding_attention")
        is_sliding = [kind == "sliding_attention" for kind in types]
    if any(is_sliding) and window is None:
        raise c.unsupported("layer_types", "asks for sliding_attention while no sliding window is in force")
    return tuple(window if sliding else None for sliding in is_sliding)


def windows(c: Config, every: int, *pattern: str, spare: int = 0) -> tuple[int | None, ...]:
    """The window of every layer: all but each `every`-th have the file's, unless it says which; None is a global layer.

    `pattern`: keys of config.json that say another `every`. A file without a window has none anywhere. `spare`: see
    Config.sequence.
    """
    layers, key = range(num_layers(c)), "attention.sliding_window_pattern"
    if not c.is_gguf:
        every = c.integer(*pattern, default=every) if pattern else every
        width = c.optional_integer("attention.sliding_window", high=MAX_CONTEXT)
        width = width if c.has("attention.sliding_window") else c.default("attention.sliding_window")
        return sliding_windows(c, width, [width is not None and (i + 1) % every != 0 for i in layers], spare)
    window, kinds = gguf_window(c), c.get(key)
    if window is None:
        return (None,) * len(layers)
    if isinstance(kinds, int | np.integer) or kinds is None:
        every = c.integer(key, default=every, low=0)
        return tuple(window if every == 0 or (i + 1) % every else None for i in layers)
    return tuple(window if is_local else None for is_local in c.sequence(key, len(layers), spare) or [])


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
