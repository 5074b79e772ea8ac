"""Phi-3, Phi-3.5, Phi-4 and Phi-4-mini: q, k and v are one matrix, gate and up another; LongRoPE for long contexts."""

from __future__ import annotations

from dataclasses import replace

from . import settings as read
from .config import MAX_CONTEXT
from .decoder import Block, model
from .longrope import read_long_rope
from .registry import Config, Family, Program, Weights
from .rope import RopeTable


@Family(
    gguf=("phi3",),
    hf=("phi3",),
    tensors={"attn_qkv": "layers.{i}.self_attn.qkv_proj", "ffn_up": "layers.{i}.mlp.gate_up_proj"},
    defaults={"max_position_embeddings": 4096, "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5},
)
def build(c: Config, w: Weights) -> Program:
    """The program of a `phi3` checkpoint for contexts up to the original one, with the one for longer ones.

    Which factors a text is rotated by depends on the context that is planned, as in llama.cpp, not on the length of the
    text: keys are kept, so it cannot change in a conversation. (transformers changes at the original length, and then
    computes the whole text again.)
    """
    key = "attention.sliding_window"  # of all layers; llama.cpp leaves the one of GGUF files out
    window = c.optional_integer(key, low=0 if c.is_gguf else 1, high=MAX_CONTEXT) or None
    rope, mlp = read_long_rope(c, w), replace(read.mlp(c), fused=True)

    def program(table: RopeTable, *notes: str) -> Program:
        attention = read.attention(c, table, window=window)
        return model(c, w, [Block(attention, mlp)] * read.num_layers(c), notes=notes)

    if rope.long is None:
        return program(rope.short)
    tokens = rope.original
    short = program(rope.short, f"positions as of contexts up to {tokens} tokens; a longer context has other ones")
    advice = f"a context of {tokens} tokens or less is better for these"
    long = program(rope.long, f"positions as of contexts above {tokens} tokens, for short texts too: {advice}")
    return replace(short, longer=(tokens, long))
