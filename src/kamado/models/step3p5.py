"""Step 3.5 Flash, and the text model of Step 3.7: local layers with more heads, gated heads, limits in the MLPs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from . import settings as read
from .config import MAX_HEAD_DIM, MAX_HEADS, MAX_LAYERS, shown
from .decoder import Attention, Block, model
from .registry import Config, Family, Program, Weights
from .rope import RopeTable, base_frequencies, gguf_rope, hf_ropes

_MOE, _SHARED = "layers.{i}.moe.", "layers.{i}.share_expert."
_FIRST_SPARSE = 3  # of layers with experts, in a config.json that says nothing of them

Windows = Sequence[int | None]


@Family(
    gguf=("step35",),
    hf=("step3p5", "step3p7"),
    keys={
        "attention.head_count_kv": ("num_key_value_heads", "num_attention_groups"),
        "expert_count": ("n_routed_experts", "moe_num_experts", "num_local_experts"),
        "expert_used_count": ("num_experts_per_tok", "moe_top_k"),
        "expert_shared_feed_forward_length": ("share_expert_dim", "share_expert_dims"),
        "expert_weights_scale": "moe_router_scaling_factor",
        "nextn_predict_layers": ("num_nextn_predict_layers", "num_mtp_layers"),
        "swiglu_clamp_exp": "swiglu_limits",
        "swiglu_clamp_shexp": "swiglu_limits_shared",
    },
    tensors={
        "attn_gate": "layers.{i}.self_attn.g_proj",
        "ffn_gate_inp": _MOE + "gate",
        "exp_probs_b": _MOE + "router_bias$",
        "ffn_gate_exps": _MOE + "gate_proj",
        "ffn_up_exps": _MOE + "up_proj",
        "ffn_down_exps": _MOE + "down_proj",
        "ffn_gate_shexp": _SHARED + "gate_proj",
        "ffn_up_shexp": _SHARED + "up_proj",
        "ffn_down_shexp": _SHARED + "down_proj",
    },
    defaults={
        "head_dim": 128,
        "max_position_embeddings": 128000,
        "moe_intermediate_size": 1280,
        "n_routed_experts": 288,
        "num_experts_per_tok": 8,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "share_expert_dim": 1280,
    },
    has_text_config=True,
)
def build(c: Config, w: Weights) -> Program:
    """The program of a `step35` (GGUF), `step3p5` or `step3p7` file. Lists by layer may go on for draft layers."""
    count, spare = read.num_layers(c), read.num_drafts(c)
    if c.is_gguf and not c.has("attention.sliding_window_pattern"):
        raise c.invalid("attention.sliding_window_pattern", "is missing, which says what layers are local")
    windows = read.windows(c, 1, spare=spare)
    width = read.head_dim(c)
    local, full = _gguf_ropes(c, w, width) if c.is_gguf else _hf_ropes(c, windows, width, spare)
    bias = read.stated_bias(c, "attention_bias")
    scale = read.inverse_sqrt(width if c.is_gguf else c.number("query_pre_attn_scalar", default=width, low=1e-6))
    attentions = [
        Attention(query, key, width, scale, full if window is None else local, window, "head", bias, bias, gate="head")
        for window, query, key in zip(windows, *_heads(c, windows, spare), strict=True)
    ]
    experts = read.moe(
        c,
        "expert_feed_forward_length",
        score="sigmoid",
        normalize=c.flag("expert_weights_norm", default=False) if c.is_gguf else True,
        scaled=True,
        choice_bias=None if c.is_gguf else True,
        shared=c.integer("expert_shared_feed_forward_length"),
    )
    mlp, sparse = read.mlp(c), _sparse(c, w, count, spare)
    limits, others = (
        [limit or None for limit in c.numbers(key, count, default=0.0, spare=spare)]
        for key in ("swiglu_clamp_exp", "swiglu_clamp_shexp")
    )
    blocks = [
        Block(
            attentions[i],
            replace(experts, limit=limits[i], shared_limit=others[i]) if sparse[i] else replace(mlp, limit=others[i]),
        )
        for i in range(count)
    ]
    return model(
        c,
        w,
        blocks,
        norm_offset=0.0 if c.is_gguf else 1.0,  # safetensors store the norms' weights less 1
        ignored="|".join(filter(None, (read.VISION_TENSORS, read.draft_tensors(c)))),
        notes=read.vision_notes(w),
    )


def _heads(c: Config, windows: Windows, spare: int) -> tuple[list[int], list[int]]:
    """Query and key-value heads of every layer. config.json says how many more the local ones have."""
    query, key, layers = "attention.head_count", "attention.head_count_kv", len(windows)
    if c.is_gguf:
        heads = list(c.integers(query, layers, high=MAX_HEADS, spare=spare))
        kv_heads = list(c.integers(key, layers, high=MAX_HEADS, spare=spare)) if c.has(key) else heads
    else:
        usual = c.integer(query, high=MAX_HEADS)
        local = _local_heads(c, usual)
        own = read.own_of_layers(c, layers, "num_attention_heads", usual, MAX_HEADS)
        heads = own or [usual if window is None else local for window in windows]
        kv_heads = [c.integer(key, high=MAX_HEADS)] * layers
    for one, other in zip(heads, kv_heads, strict=True):
        if one % other:
            raise c.invalid(query, f"is {one} in a layer, no multiple of {c.name(key)}, {other}")
    return heads, kv_heads


def _local_heads(c: Config, usual: int) -> int:
    """Query heads of a local layer, which published files have in `attention_other_setting`."""
    other = c.section("attention_other_setting")
    local = usual
    if other is not None:
        local = other.integer("num_attention_heads", default=usual, high=MAX_HEADS)
        for key, same in (("num_attention_groups", "attention.head_count_kv"), ("head_dim", "attention.key_length")):
            if other.integer(key, default=c.integer(same)) != c.integer(same):
                raise other.unsupported(key, f"is not {c.name(same)}")
        if other.text("attention_type", default="sliding_attention") != "sliding_attention":
            raise other.unsupported("attention_type", "is not sliding_attention")
        other.known({"true_head_dim"})
    return c.integer("num_sliding_attention_heads", default=local, high=MAX_HEADS)


def _sparse(c: Config, w: Weights, count: int, spare: int) -> list[bool]:
    """Which layers have experts: GGUF says it by its tensors."""
    if c.is_gguf:
        c.known({"leading_dense_block_count"})
        return [not any(w.has(f"ffn_{part}", i) for part in ("gate", "up", "down")) for i in range(count)]
    kinds = c.sequence("mlp_layer_types", count, spare)
    if kinds is not None:
        for kind in kinds:
            if kind not in ("dense", "sparse"):
                raise c.unsupported("mlp_layer_types", f"has {shown(kind)}; known are dense, sparse")
        return [kind == "sparse" for kind in kinds]
    key = "moe_layers_enum"
    listed = c.get(key)
    if listed is None:
        return [i >= _FIRST_SPARSE for i in range(count)]
    items = listed.split(",") if isinstance(listed, str) else c.sequence(key) or []
    if len(items) > MAX_LAYERS or not all(str(item).strip().isdecimal() for item in items if str(item).strip()):
        raise c.invalid(key, f"must be numbers of layers, got {shown(listed)}")
    numbers = {str(item).strip().lstrip("0") or "0" for item in items if str(item).strip()}
    return [str(i) in numbers for i in range(count)]


def _gguf_ropes(c: Config, w: Weights, width: int) -> tuple[RopeTable, RopeTable]:
    """Of local and of global layers, which turn half of what the file says and have its factors."""
    if c.text("rope.scaling.type", default="linear") == "yarn":
        raise c.unsupported("rope.scaling.type", "is 'yarn', which no model of this family has")
    turned = c.integer("rope.dimension_count", default=width, high=MAX_HEAD_DIM)
    local = c.integer("rope.dimension_count_swa", default=turned, high=MAX_HEAD_DIM)
    if max(turned, local) > width or turned % 4 or local % 2:
        raise c.invalid("rope.dimension_count", f"is {turned}, {local} of local layers, of {width} values of a head")
    theta = c.number("rope.freq_base_swa", default=10000.0, low=1.0)
    return RopeTable(base_frequencies(theta, local)), gguf_rope(c, turned // 2, w, num_factors=local // 2)


def _hf_ropes(c: Config, windows: Windows, width: int, spare: int) -> tuple[RopeTable, RopeTable]:
    """Of local and of global layers; published files have lists by layer, in which those of a kind agree."""
    layers = len(windows)
    found = []
    for key, default, low, high in (("rope.freq_base", 10000.0, 1.0, 1e30), ("partial_rotary_factors", 1.0, 0.0, 1.0)):
        values = c.numbers(key, layers, default=default, low=low, high=high, spare=spare)
        for is_local in (True, False):
            kind = {value for value, window in zip(values, windows, strict=True) if (window is not None) == is_local}
            if len(kind) > 1:
                raise c.unsupported(key, "differs between layers of one kind")
            found.append(kind.pop() if kind else default)
    local_theta, theta, local_share, share = found
    return hf_ropes(c, width, (local_theta, theta), (local_share, share))
