"""Qwen3.5, dense (3.6 and 3.8 are the same classes): the delta rule in three layers of four, gated attention."""

from __future__ import annotations

from . import settings as read
from .delta import QWEN_DEFAULTS, QWEN_TENSORS, delta_net, qwen
from .recurrent import DeltaNet
from .registry import Config, Family, Program, Weights

QWEN3_5_KEYS = {"nextn_predict_layers": "mtp_num_hidden_layers"}
QWEN3_5_TENSORS = {
    **QWEN_TENSORS,
    "attn_qkv": "layers.{i}.linear_attn.in_proj_qkv",
    "attn_gate": "layers.{i}.linear_attn.in_proj_z",
    "ssm_beta": "layers.{i}.linear_attn.in_proj_b",
    "ssm_alpha": "layers.{i}.linear_attn.in_proj_a",
}


def qwen3_5_delta(c: Config) -> DeltaNet:
    """The delta rule of Qwen3.5, whose GGUF files have value heads in another order."""
    return delta_net(c, "tiled" if c.is_gguf else "grouped")


@Family(
    gguf=("qwen35",),
    hf=("qwen3_5", "qwen3_5_text"),
    keys=QWEN3_5_KEYS,
    tensors=QWEN3_5_TENSORS,
    defaults={
        **QWEN_DEFAULTS, "hidden_size": 4096, "intermediate_size": 12288, "num_attention_heads": 16,
        "num_hidden_layers": 32, "num_key_value_heads": 4, "vocab_size": 248320,
    },
    has_text_config=True,
)  # fmt: skip
def build(c: Config, w: Weights) -> Program:
    """The program of a `qwen35` (GGUF), `qwen3_5` or `qwen3_5_text` checkpoint."""
    return qwen(c, w, qwen3_5_delta(c), [read.mlp(c)] * read.num_layers(c))
