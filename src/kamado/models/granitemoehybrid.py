"""IBM Granite 4.0 in safetensors, the models whose layers are all attention (4.0 Micro, 1B, 350M without `h`).

GGUF files of these say `granite` or `granitemoe`. Those with Mamba layers are refused by name.
"""

from __future__ import annotations

from . import settings as read
from .config import MAX_EXPERTS, shown
from .decoder import Mlp
from .granite import granite_attention, granite_model
from .granitemoe import GRANITE_MOE_DEFAULTS, GRANITE_MOE_KEYS, GRANITE_MOE_TENSORS, hf_moe
from .registry import Config, Family, Program, Weights

_ATTENTION = ("attention", "full_attention")


@Family(
    hf=("granitemoehybrid",),
    keys=GRANITE_MOE_KEYS,
    # Without experts the shared one is all there is.
    tensors={
        **GRANITE_MOE_TENSORS,
        **{f"ffn_{part}": GRANITE_MOE_TENSORS[f"ffn_{part}_shexp"] for part in ("up", "down")},
    },
    defaults={**GRANITE_MOE_DEFAULTS, "shared_intermediate_size": 1024},
)
def build(c: Config, w: Weights) -> Program:
    """The program of a `granitemoehybrid` checkpoint without Mamba layers."""
    _check_layers(c)
    kind = c.text("position_embedding_type", default="nope")
    if kind not in ("rope", "nope"):
        raise c.unsupported("position_embedding_type", f"is {shown(kind)}; supported are rope and nope")
    attention = granite_attention(c, w, turned=kind == "rope")
    width = c.integer("expert_shared_feed_forward_length")
    if c.integer("expert_count", low=0, high=MAX_EXPERTS):
        return granite_model(c, w, attention, hf_moe(c, width))
    c.known(("intermediate_size", "num_experts_per_tok"))
    return granite_model(c, w, attention, Mlp(width, c.activation("hidden_act", "silu"), fused=True))


def _check_layers(c: Config) -> None:
    types = c.sequence("layer_types", read.num_layers(c)) or c.sequence("layers_block_type", read.num_layers(c))
    if types is None:
        raise c.unsupported("layer_types", "is missing: all layers are Mamba then, which are not supported")
    other = next((kind for kind in types if kind not in _ATTENTION), None)
    if other is not None:
        raise c.unsupported("layer_types", f"has {shown(other)}; without attention in every layer it is not supported")
