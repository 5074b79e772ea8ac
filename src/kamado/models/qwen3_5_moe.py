"""Qwen3.5 with experts: Qwen3.5 with experts for the MLP, the shared one gated."""

from __future__ import annotations

from . import settings as read
from .delta import QWEN_MOE_DEFAULTS, gated_moe, qwen
from .qwen3_5 import QWEN3_5_KEYS, QWEN3_5_TENSORS, qwen3_5_delta
from .registry import Config, Family, Program, Weights


@Family(
    gguf=("qwen35moe",),
    hf=("qwen3_5_moe", "qwen3_5_moe_text"),
    keys={**QWEN3_5_KEYS, "expert_shared_feed_forward_length": "shared_expert_intermediate_size"},
    tensors=QWEN3_5_TENSORS,
    defaults={
        **QWEN_MOE_DEFAULTS, "num_experts": 256, "num_experts_per_tok": 8, "num_hidden_layers": 40,
        "vocab_size": 248320,
    },
    has_text_config=True,
)  # fmt: skip
def build(c: Config, w: Weights) -> Program:
    """The program of a `qwen35moe` (GGUF), `qwen3_5_moe` or `qwen3_5_moe_text` checkpoint."""
    read.check_normalized(c)
    c.known({"feed_forward_length", "intermediate_size"})  # there are no layers without experts
    return qwen(c, w, qwen3_5_delta(c), [gated_moe(c, normalize=True)] * read.num_layers(c))
