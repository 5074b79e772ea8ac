"""Mistral Small 3.x, Devstral and Ministral 3 in safetensors: a text model and a vision tower, which is not used."""

from __future__ import annotations

from . import settings as read
from .ministral3 import MINISTRAL3_DEFAULTS, ministral3
from .mistral import MISTRAL_DEFAULTS, mistral
from .registry import Config, Family, Program, Weights

_TEXT_MODELS = {"mistral": (mistral, MISTRAL_DEFAULTS), "ministral3": (ministral3, MINISTRAL3_DEFAULTS)}


@Family(hf=("mistral3",), defaults={"tie_word_embeddings": True}, has_text_config=True)
def build(c: Config, w: Weights) -> Program:
    """The program of the text model of a `mistral3` checkpoint (GGUF files of its kinds say `llama` or `mistral3`)."""
    if c is c.whole:
        raise c.invalid("text_config", "is missing")
    kind = c.text("model_type", default="mistral")
    if kind not in _TEXT_MODELS:
        raise c.unsupported("model_type", f"is {kind!r}; supported are {', '.join(_TEXT_MODELS)}")
    text, defaults = _TEXT_MODELS[kind]
    c.assume(defaults)
    return text(c, w, ignored=read.VISION_TENSORS, notes=read.vision_notes(w))
