"""OLMo hybrid: delta rule normed before its parts, attention normed behind them, positions where there is a base."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from . import settings as read
from .config import MAX_HEAD_DIM, MAX_HEADS
from .decoder import Block, model
from .delta import DELTA_TENSORS, delta_net, recurrent_layers
from .registry import Config, Family, Program, Weights
from .rope import RopeTable

_DELTA: Final = "layers.{i}.linear_attn."
_DEFAULTS: Final[dict[str, Any]] = {
    "hidden_size": 3840,
    "intermediate_size": 11008,
    "linear_conv_kernel_dim": 4,
    "max_position_embeddings": 65536,
    "num_attention_heads": 30,
    "num_hidden_layers": 32,
    "rms_norm_eps": 1e-6,
    "vocab_size": 100352,
}


@Family(
    hf=("olmo_hybrid",),
    tensors={
        **DELTA_TENSORS,
        "attn_norm": "layers.{i}.input_layernorm|layers.{i}.attention_layer_norm",
        "ffn_norm": "layers.{i}.post_attention_layernorm|layers.{i}.feedforward_layer_norm",
        **{f"ssm_{part}": f"{_DELTA}{part}_proj" for part in "qkv"},
        **{f"ssm_conv1d_{part}": f"{_DELTA}{part}_conv1d" for part in "qkv"},
        "attn_gate": _DELTA + "g_proj",
        "ssm_beta": _DELTA + "b_proj",
        "ssm_alpha": _DELTA + "a_proj",
        "ssm_norm": _DELTA + "o_norm",
        "ssm_out": _DELTA + "o_proj",
    },
    defaults=_DEFAULTS,
)
def build(c: Config, w: Weights) -> Program:
    """The program of an `olmo_hybrid` checkpoint. Its delta rule has a norm with an epsilon of its own."""
    _assume_sizes(c)
    beta_scale = 2.0 if c.flag("linear_allow_neg_eigval", default=True) else 1.0
    delta = replace(delta_net(c), beta_scale=beta_scale, norm_eps=1e-5)
    bias = read.stated_bias(c, "attention_bias")
    attention = read.attention(c, _rope(c), qk_norm="row", bias=bias, out_bias=bias)
    mlp = read.mlp(c)
    recurrent = recurrent_layers(c, 4)
    if all(recurrent) and c.get("layer_types") is None:
        recurrent[-1] = False  # one layer has attention, however few there are
    blocks = [
        Block(delta, mlp) if is_recurrent else Block(attention, mlp, post_norms=True, pre_norms=False)
        for is_recurrent in recurrent
    ]
    return model(c, w, blocks, ignored=r"^(model\.)?mtp\.")


def _assume_sizes(c: Config) -> None:
    """Sizes that a file leaves out are made from others."""
    num_heads = c.integer("attention.head_count", high=MAX_HEADS)
    num_k_heads = c.integer("ssm.group_count", default=num_heads, high=MAX_HEADS)
    k_dim = c.integer("ssm.state_size", default=int(0.75 * c.integer("embedding_length") / num_k_heads))
    if not 1 <= k_dim <= MAX_HEAD_DIM // 2:
        raise c.invalid("ssm.state_size", f"is {k_dim}, no possible width of a head")
    sizes = {"linear_num_key_heads": num_heads, "linear_num_value_heads": num_heads}
    c.assume({**_DEFAULTS, **sizes, "linear_key_head_dim": k_dim, "linear_value_head_dim": 2 * k_dim})


def _rope(c: Config) -> RopeTable | None:
    """None where the file says that the rotation has no base: published ones have no positions."""
    new, old = c.section("rope_parameters"), c.section("rope_scaling")
    if new is not None and old is not None:
        raise old.unsupported("rope_type", f"comes with {c.name('rope_parameters')}: the two may contradict")
    section = new or old
    place = section if section is not None and section.has("rope_theta") else c
    if not place.has("rope_theta") or place.get("rope_theta") is not None:
        return read.rope(c)
    if section is not None:
        section.known({"rope_type", "type"})
    return None
