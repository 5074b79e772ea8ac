"""SmolLM3: Llama, of which every fourth layer has no positions."""

from __future__ import annotations

from dataclasses import replace

from . import settings as read
from .config import MAX_CONTEXT
from .decoder import Block, model
from .llama import llama_attention, llama_mlp
from .registry import Config, Family, Program, Weights


@Family(
    gguf=("smollm3",),
    hf=("smollm3",),
    defaults={
        "max_position_embeddings": 32768, "num_key_value_heads": 4, "rms_norm_eps": 1e-6, "rope_theta": 2e6,
        "tie_word_embeddings": True,
    },
)  # fmt: skip
def build(c: Config, w: Weights) -> Program:
    """The program of a `smollm3` checkpoint. GGUF files do not say which layers have no positions: each fourth."""
    layers = range(read.num_layers(c))
    every = c.integer("no_rope_layer_interval", default=4)
    stated = c.sequence("no_rope_layers", len(layers))  # 1: with positions
    if any(flag not in (0, 1) for flag in stated or ()):
        raise c.invalid("no_rope_layers", "has an entry that is neither 0 nor 1")
    is_turned = [bool(flag) for flag in stated] if stated else [(i + 1) % every != 0 for i in layers]
    windows: tuple[int | None, ...] = (None,) * len(layers)
    if not c.is_gguf:
        window = c.optional_integer("sliding_window", high=MAX_CONTEXT)
        window = window if c.flag("use_sliding_window", default=False) else None
        windows = read.sliding_windows(c, window, [window is not None and not turned for turned in is_turned])
    attention, mlp = llama_attention(c, w, None), llama_mlp(c)
    return model(
        c,
        w,
        [
            Block(replace(attention, rope=attention.rope if turned else None, window=window), mlp)
            for turned, window in zip(is_turned, windows, strict=True)
        ],
    )
