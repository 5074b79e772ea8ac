"""Mistral in safetensors: Llama with a sliding window over all layers when the settings have one."""

from __future__ import annotations

from dataclasses import replace

from ..program import Program
from . import config, llama
from .common import hf_weights
from .config import Config
from .rope import hf_rope


def build(c: Config) -> Program:
    """The program of a `mistral` checkpoint (GGUF files of Mistral say `llama`)."""
    checkpoint = c.checkpoint
    config.check_causal_lm(c)
    window = c.optional_integer("sliding_window", high=config.MAX_CONTEXT)
    if not c.has("sliding_window"):
        window = 4096  # what transformers assumes; files without a window say null
    args = replace(llama.Args.from_hf(c, absent_kv=8, default_context=131072), window=window)
    rope = hf_rope(c, args.head_dim)
    c.refuse_unread()
    return llama.model(checkpoint.architecture, args, hf_weights(checkpoint, llama.HF_NAMES), rope)
