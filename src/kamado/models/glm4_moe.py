"""GLM-4.5, 4.6, 4.7 and Air: half of each head turned, sigmoid router with a bias, a shared expert."""

from __future__ import annotations

from . import settings as read
from .decoder import Block, Moe, model
from .registry import Config, Family, Program, Weights


def glm_moe(c: Config) -> Moe:
    """The experts of GLM-4.5 to 4.7 and of Solar Open."""
    return read.moe(
        c,
        "expert_feed_forward_length",
        score="sigmoid",
        normalize=c.flag("expert_weights_norm", default=True),
        scaled=True,
        grouped=True,
        choice_bias=True,
        shared=read.shared_width(c, c.integer("expert_feed_forward_length")),
        norm_eps=1e-20,
    )


@Family(
    gguf=("glm4moe",),
    hf=("glm4_moe",),
    defaults={
        "first_k_dense_replace": 1, "max_position_embeddings": 131072, "n_shared_experts": 1,
        "num_experts_per_tok": 8, "num_key_value_heads": 8, "partial_rotary_factor": 0.5, "rms_norm_eps": 1e-5,
    },
)  # fmt: skip
def build(c: Config, w: Weights) -> Program:
    """The program of a `glm4moe` checkpoint. Which of them norm q and k, and have biases, GGUF says by its tensors."""
    norms_q = w.has("attn_q_norm", 0) if c.is_gguf else c.flag("use_qk_norm", default=False)
    attention = read.attention(
        c,
        read.rope(c, partial=True),
        qk_norm="head" if norms_q else None,
        bias=read.stated_bias(c, "attention_bias"),
    )
    mlp, experts, dense = read.mlp(c), glm_moe(c), read.leading_dense(c)
    blocks = [
        Block(attention, mlp if i < dense else experts, ffn_norm="post_attention_norm")
        for i in range(read.num_layers(c))
    ]
    return model(c, w, blocks, ignored=read.draft_tensors(c))
