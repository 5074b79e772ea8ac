"""Mistral in safetensors: Llama with a sliding window over all layers when the settings have one."""

from __future__ import annotations

from typing import Any, Final

from . import settings as read
from .config import MAX_CONTEXT
from .decoder import Block, model
from .llama import llama_attention, llama_mlp
from .registry import Config, Family, Program, Weights

# What transformers assumes; files without a window say null.
_WINDOW: Final = 4096
MISTRAL_DEFAULTS: Final = {"num_key_value_heads": 8, "max_position_embeddings": 131072, "rms_norm_eps": 1e-6}


def mistral(c: Config, w: Weights, **more: Any) -> Program:
    """The program of Mistral's text model, alone or in a file with pictures; `more` is for decoder.model."""
    window = c.optional_integer("sliding_window", high=MAX_CONTEXT) if c.has("sliding_window") else _WINDOW
    return model(c, w, [Block(llama_attention(c, w, window), llama_mlp(c))] * read.num_layers(c), **more)


@Family(hf=("mistral",), defaults=MISTRAL_DEFAULTS)
def build(c: Config, w: Weights) -> Program:
    """The program of a `mistral` checkpoint (GGUF files of Mistral say `llama`)."""
    return mistral(c, w)
