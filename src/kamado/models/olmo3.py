"""OLMo 3 in safetensors: OLMo 2 with a window on all but each fourth layer, YaRN on those alone (GGUF says `olmo2`)."""

from __future__ import annotations

from . import settings as read
from .olmo2 import olmo
from .registry import Config, Family, Program, Weights


@Family(
    hf=("olmo3",),
    defaults={"max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "sliding_window": 4096},
)
def build(c: Config, w: Weights) -> Program:
    """The program of an `olmo3` checkpoint. A base in `rope_theta` is that of all layers."""
    return olmo(c, w, read.ropes(c, theta=500000.0), read.windows(c, 4))
