"""Nanbeige 4.1: Llama whose layers may run several times over the stream, each time on keys and values of its own."""

from __future__ import annotations

from . import settings as read
from .config import MAX_LAYERS
from .decoder import Block, model
from .llama import llama_attention, llama_mlp
from .registry import Config, Family, Program, Weights


@Family(
    gguf=("nanbeige",),
    hf=("nanbeige",),
    keys={"num_loops": "num_loops", "skip_loop_final_norm": "skip_loop_final_norm"},
    defaults={"max_position_embeddings": 2048, "rms_norm_eps": 1e-6},
)
def build(c: Config, w: Weights) -> Program:
    """The program of a `nanbeige` checkpoint (plain ones are published as `llama`, too)."""
    layers = read.num_layers(c)
    loops = c.integer("num_loops", default=1, high=MAX_LAYERS)
    if loops * layers > MAX_LAYERS:
        raise c.invalid("num_loops", f"is {loops}: {loops * layers} layers in all, the limit is {MAX_LAYERS}")
    between = not c.flag("skip_loop_final_norm", default=False)
    block = Block(llama_attention(c, w, None), llama_mlp(c))
    return model(c, w, [block] * layers, num_loops=loops, norm_between_loops=between)
