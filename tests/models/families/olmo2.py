"""OLMo 2: norms behind each part alone, one norm over the whole of q and of k."""

from __future__ import annotations

from family_cases import HEAD_DIM, HEADS, KV_HEADS, NO_HEAD_DIM, YARN, Case, Family, Gguf, Shapes, heads

NORMS: Shapes = {
    "self_attn.q_norm.weight": (HEADS * HEAD_DIM,),
    "self_attn.k_norm.weight": (KV_HEADS * HEAD_DIM,),
    "post_feedforward_layernorm.weight": (HEADS * HEAD_DIM,),
}

FAMILY = Family(
    "olmo2",
    tiny={**NO_HEAD_DIM, "pad_token_id": None},
    attention=NORMS,
    without=("input_layernorm.weight",),
    golden=(10, [33, 84, 84, 84, 84, 41, 21, 45, 21, 72, 47, 45, 52, 47, 13, 45, 38, 45, 45, 45, 47, 51, 47, 35]),
    gguf=Gguf("OLMO2"),
    cases=(
        Case("olmo2-gqa1", heads(4, 4, hidden_size=80), exact=True),
        Case("olmo2-gqa8-yarn", heads(8, 1, hidden_size=96, rope_parameters=YARN, num_hidden_layers=2), exact=True),
        Case("olmo2-biases", heads(6, 3, hidden_size=96, attention_bias=True, tie_word_embeddings=True), gguf=False),
    ),
)
