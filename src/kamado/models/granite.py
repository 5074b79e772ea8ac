"""IBM Granite, dense (3.x, 4.1): Llama with multipliers on embeddings, attention, residuals and logits."""

from __future__ import annotations

from . import settings as read
from .config import MAX_EXPERTS
from .decoder import Attention, Block, Mlp, Moe, model
from .registry import Config, Family, Program, Weights

GRANITE_DEFAULTS = {
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "attention_multiplier": 1.0,
    "logits_scaling": 1.0,
}


def granite_attention(c: Config, w: Weights, *, turned: bool = True) -> Attention:
    """Attention by the file's own factor; `turned`: with positions."""
    bias = read.stated_bias(c, "attention_bias")
    scale = read.gguf_scale(c) if c.is_gguf else c.number("attention.scale")
    rope = read.rope(c, w, permuted=True)  # files name it without positions, too
    return read.attention(c, rope if turned else None, scale=scale, bias=bias, out_bias=bias)


def granite_model(c: Config, w: Weights, attention: Attention, ffn: Mlp | Moe) -> Program:
    """Layers that are all alike, between Granite's multipliers."""
    return model(
        c,
        w,
        [Block(attention, ffn)] * read.num_layers(c),
        embedding_scale=read.factor(c, "embedding_scale"),
        residual_scale=read.factor(c, "residual_scale"),
        logit_scale=1.0 / c.number("logit_scale", low=1e-20),
    )


def gguf_ffn(c: Config) -> Mlp | Moe:
    """What is behind attention in a GGUF file: experts, maybe with a shared one, or an MLP when it counts none.

    The converter of Granite 4.0 files names the width of a shared expert in the latter case too.
    """
    if not c.integer("expert_count", default=0, low=0, high=MAX_EXPERTS):
        c.known(("expert_shared_feed_forward_length",))
        return read.mlp(c, bias=None)
    read.check_normalized(c)
    width = ("expert_feed_forward_length", "feed_forward_length")
    shared = c.integer("expert_shared_feed_forward_length", default=0, low=0)
    return read.moe(c, *width, score="topk_softmax", shared=shared)


@Family(gguf=("granite",), hf=("granite",), defaults=GRANITE_DEFAULTS)
def build(c: Config, w: Weights) -> Program:
    """The program of a `granite` checkpoint. GGUF files say by an odd name whether positions are turned."""
    turned = not c.is_gguf or c.flag("rope.scaling.finetuned", default=True)
    ffn = gguf_ffn(c) if c.is_gguf else read.mlp(c, bias=read.stated_bias(c, "mlp_bias"))
    return granite_model(c, w, granite_attention(c, w, turned=turned), ffn)
