"""EXAONE 4.0: norms behind each part alone, QK-norm, local layers between global ones that have no positions."""

from __future__ import annotations

from dataclasses import replace

from . import settings as read
from .config import MAX_CONTEXT
from .decoder import Block, model
from .registry import Config, Family, Program, Weights

_WINDOW, _EVERY = 4096, 4  # what transformers assumes, and llama.cpp of the 32B
_LAYERS_OF_32B = 64


@Family(
    gguf=("exaone4",),
    hf=("exaone4",),
    defaults={
        "max_position_embeddings": 2048, "num_key_value_heads": 32, "rms_norm_eps": 1e-5, "sliding_window": _WINDOW,
    },
)  # fmt: skip
def build(c: Config, w: Weights) -> Program:
    """The program of an `exaone4` checkpoint: one with a window has positions in its local layers alone."""
    attention = read.attention(c, read.rope(c, w), qk_norm="head")
    mlp, window, windows = read.mlp(c), _window(c), _windows(c)
    still = replace(attention, rope=None)
    return model(
        c,
        w,
        [
            Block(
                replace(attention, window=local) if window is None or local is not None else still,
                mlp,
                pre_norms=False,
                post_norms=True,
            )
            for local in windows
        ],
        ignored=read.draft_tensors(c),
    )


def _window(c: Config) -> int | None:
    """The window of local layers. GGUF files of the 32B may leave it out."""
    key = "attention.sliding_window"
    if c.has(key):
        return c.optional_integer(key, low=0 if c.is_gguf else 1, high=MAX_CONTEXT) or None
    return _WINDOW if not c.is_gguf or read.num_layers(c) == _LAYERS_OF_32B else None


def _windows(c: Config) -> tuple[int | None, ...]:
    window, num_layers = _window(c), read.num_layers(c)
    if c.is_gguf:
        if not c.has("attention.sliding_window"):
            return tuple(window if (i + 1) % _EVERY else None for i in range(num_layers))
        return read.windows(c, _EVERY)
    if c.get("layer_types") is not None or window is None:
        c.known(("sliding_window_pattern",))  # asked for by files without layer_types alone; a text, there
        return read.sliding_windows(c, window, [False] * num_layers)
    return read.windows(c, _EVERY, "sliding_window_pattern")
