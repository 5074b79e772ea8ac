"""IQuest-Coder (plain): Llama under another name. GGUF files say `llama`; the looped model is another architecture."""

from __future__ import annotations

from .llama import build
from .registry import Family

Family(
    hf=("iquestcoder",),
    defaults={"head_dim": 128, "max_position_embeddings": 131072, "num_key_value_heads": 8, "rms_norm_eps": 1e-5},
)(build)
