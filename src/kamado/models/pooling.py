"""How a file says that the rows of a text become one vector."""

from __future__ import annotations

from ..files.safetensors import POOLING_KEY
from ..program import Pooling
from .config import Config

_GGUF: dict[int, Pooling | None] = {0: None, 1: "mean", 2: "first", 3: "last"}
_HF: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "first",
    "pooling_mode_lasttoken": "last",
}


def read_pooling(c: Config) -> Pooling | None:
    """`pooling_type` of a GGUF file, or sentence-transformers' `1_Pooling/config.json`; None when neither says.

    Raises UnsupportedError for kinds other than mean, first and last.
    """
    if c.is_gguf:
        kind = c.integer("pooling_type", default=0, low=0, high=255)
        if kind not in _GGUF:
            raise c.unsupported("pooling_type", f"is {kind}; supported are mean (1), first (2) and last (3)")
        return _GGUF[kind]
    section = c.section(POOLING_KEY)
    if section is None:
        return None
    chosen = [key for key in section.present() if key.startswith("pooling_mode_") and section.get(key) is True]
    if len(chosen) != 1 or chosen[0] not in _HF:
        raise section.unsupported(
            chosen[0] if chosen else "pooling_mode_mean_tokens",
            "asks for a pooling other than mean, first or last, or for two at once",
        )
    return _HF[chosen[0]]
