"""Gemma 4: all that its four sizes have, in one tiny model; then each size's own mixture against transformers."""

from __future__ import annotations

from typing import Any

import family_cases as fc
import numpy as np

_FULL_DIM = 2 * fc.HEAD_DIM
_OWN = fc.FFN // 4  # values of a layer's own embedding: a whole block in wide files
_LOCAL, _FULL = "sliding_attention", "full_attention"
_KINDS = [_LOCAL, _LOCAL, _FULL, _LOCAL, _FULL]
_SHARING = 2
_FIRST_SHARING = len(_KINDS) - _SHARING
_ROPES = {
    _FULL: {"rope_type": "proportional", "rope_theta": 1e4, "partial_rotary_factor": 0.25},
    _LOCAL: {"rope_type": "default", "rope_theta": 1e4},
}


def _layer(hidden: int, layer: int) -> fc.Shapes:
    is_full = _KINDS[layer] == _FULL
    dim, kv_heads = (_FULL_DIM, 1) if is_full else (fc.HEAD_DIM, fc.KV_HEADS)
    width = fc.FFN if layer < _FIRST_SHARING else 2 * fc.FFN
    keys = (kv_heads * dim, hidden) if layer < _FIRST_SHARING else ()
    return {
        "self_attn.q_proj.weight": (fc.HEADS * dim, hidden),
        "self_attn.k_proj.weight": keys,
        "self_attn.v_proj.weight": () if is_full else keys,
        "self_attn.o_proj.weight": (hidden, fc.HEADS * dim),
        "self_attn.q_norm.weight": (dim,),
        "self_attn.k_norm.weight": (dim,) if keys else (),
        "mlp.gate_proj.weight": (width, hidden),
        "mlp.up_proj.weight": (width, hidden),
        "mlp.down_proj.weight": (hidden, width),
        "pre_feedforward_layernorm.weight": (hidden,),
        "post_feedforward_layernorm.weight": (hidden,),
        "pre_feedforward_layernorm_2.weight": (hidden,),
        "post_feedforward_layernorm_1.weight": (hidden,),
        "post_feedforward_layernorm_2.weight": (hidden,),
        "router.proj.weight": (fc.EXPERTS, hidden),
        "router.scale": (hidden,),
        "router.per_expert_scale": (fc.EXPERTS,),
        "experts.gate_up_proj": (fc.EXPERTS, 2 * fc.EXPERT_WIDTH, hidden),
        "experts.down_proj": (fc.EXPERTS, hidden, fc.EXPERT_WIDTH),
        "per_layer_input_gate.weight": (_OWN, hidden),
        "per_layer_projection.weight": (hidden, _OWN),
        "post_per_layer_input_norm.weight": (hidden,),
        "layer_scalar": (1,),
    }


def _of_full(c: dict[str, Any], key: str, usual: Any) -> Any:
    """What the global layers have, as published files say it or as transformers writes it."""
    own = c.get("per_layer_config")
    if own is None:
        return usual
    return own[str(c["layer_types"].index(_FULL))].get(key, c[key])


def _gguf_settings(w: Any, c: dict[str, Any]) -> None:
    full_dim = _of_full(c, "head_dim", c.get("global_head_dim"))
    local = [kind == _LOCAL for kind in c["layer_types"]]
    w.add_shared_kv_layers(c.get("num_kv_shared_layers", 0))
    w.add_embedding_length_per_layer_input(c["hidden_size_per_layer_input"])
    w.add_sliding_window(c["sliding_window"])
    w.add_sliding_window_pattern(local)
    for add, width in ((w.add_key_length, full_dim), (w.add_value_length, full_dim)):
        add(width)
    for add, width in ((w.add_key_length_swa, c["head_dim"]), (w.add_value_length_swa, c["head_dim"])):
        add(width)
    if c.get("use_double_wide_mlp"):
        first = len(local) - c["num_kv_shared_layers"]
        width = c["intermediate_size"]
        w.add_feed_forward_length([width if i < first else 2 * width for i in range(len(local))])
    full_heads = _of_full(c, "num_key_value_heads", c.get("num_global_key_value_heads"))
    if full_heads is not None:
        w.add_head_count_kv([c["num_key_value_heads"] if is_local else full_heads for is_local in local])
    w.add_rope_dimension_count(full_dim)
    w.add_rope_dimension_count_swa(c["head_dim"])
    if c.get("final_logit_softcapping"):
        w.add_final_logit_softcapping(c["final_logit_softcapping"])


def _converted(name: str, values: np.ndarray, c: dict[str, Any]) -> dict[str, np.ndarray]:
    layer = name.removeprefix("model.layers.").partition(".")[0]
    if name.endswith("router.scale"):
        return {f"blk.{layer}.ffn_gate_inp.scale": values}
    if name.endswith("router.per_expert_scale"):
        return {f"blk.{layer}.ffn_down_exps.scale": values}
    if name.endswith(("layer_scalar", "gate_up_proj", "experts.down_proj")):
        return {f"{name}.weight": values}
    if name != "model.norm.weight":
        return {name: values}
    pairs = _of_full(c, "head_dim", c.get("global_head_dim")) // 2
    turned = int(2 * pairs * c["rope_parameters"][_FULL]["partial_rotary_factor"] / 2)
    return {name: values, "rope_freqs.weight": np.where(np.arange(pairs) < turned, 1.0, 1e30).astype(np.float32)}


_MOE = {
    "enable_moe_block": True,
    "num_experts": fc.EXPERTS,
    "top_k_experts": fc.TOP_K,
    "moe_intermediate_size": fc.EXPERT_WIDTH,
}
_CASE: dict[str, Any] = {
    "head_dim": 16,
    "global_head_dim": 32,
    "sliding_window": 13,
    "num_hidden_layers": 6,
    "layer_types": [_LOCAL, _FULL] * 3,
    "rope_parameters": _ROPES,
    "final_logit_softcapping": 30.0,
    "hidden_size_per_layer_input": 0,
    "vocab_size_per_layer_input": 211,
}

FAMILY = fc.Family(
    "gemma4_text",
    tiny={
        **fc.BASE,
        **_MOE,
        "num_hidden_layers": len(_KINDS),
        "layer_types": _KINDS,
        "sliding_window": 7,
        "rope_parameters": _ROPES,
        "global_head_dim": _FULL_DIM,
        "num_global_key_value_heads": 1,
        "attention_k_eq_v": True,
        "num_kv_shared_layers": _SHARING,
        "use_double_wide_mlp": True,
        "hidden_size_per_layer_input": _OWN,
        "vocab_size_per_layer_input": fc.VOCAB,
        "final_logit_softcapping": 30.0,
        "tie_word_embeddings": True,
    },
    outside={
        "embed_tokens_per_layer.weight": (fc.VOCAB, len(_KINDS) * _OWN),
        "per_layer_model_projection.weight": (len(_KINDS) * _OWN, fc.HIDDEN),
        "per_layer_projection_norm.weight": (_OWN,),
    },
    ffn=_layer,
    stretched={"q_norm.weight": 0.25},  # where training puts the factor that attention has not
    heading="layers 0-1",
    golden=(0, [39, 63, 23, 60, 57, 28, 63, 83, 55, 39, 63, 83, 68, 14, 9, 29, 9, 29, 14, 89, 41, 31, 91, 28]),
    gguf=fc.Gguf("GEMMA4", settings=_gguf_settings, converted=_converted),
    published={"use_bidirectional_attention": "vision", "hidden_act": "gelu_pytorch_tanh", "attention_bias": False},
    cases=(
        fc.Case(
            "gemma4-e",
            fc.heads(
                4,
                2,
                **_CASE | {"hidden_size_per_layer_input": 8, "num_kv_shared_layers": 2, "use_double_wide_mlp": True},
            ),
        ),
        fc.Case(
            "gemma4-31b",
            fc.heads(8, 4, **_CASE, attention_k_eq_v=True, num_global_key_value_heads=1),
        ),
        fc.Case(
            "gemma4-26b-a4b",
            fc.heads(6, 2, **_CASE, **_MOE, attention_k_eq_v=True, num_global_key_value_heads=2),
        ),
        # The class's own ropes and kinds of layers, biases, no cap; one local layer's keys for three others.
        fc.Case(
            "gemma4-defaults",
            fc.heads(
                8,
                1,
                head_dim=20,
                global_head_dim=40,
                num_hidden_layers=12,
                sliding_window=50,
                attention_bias=True,
                num_kv_shared_layers=6,
                hidden_size_per_layer_input=24,
                vocab_size_per_layer_input=211,
            ),
            gguf=False,
        ),
        fc.Case(
            "gemma4-multimodal",
            fc.heads(4, 2, **_CASE | {"hidden_size_per_layer_input": 8}, num_kv_shared_layers=2) | {"pad_token_id": 0},
            gguf=False,
            family="gemma4",
        ),
    ),
)
