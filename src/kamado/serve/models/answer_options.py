"""What requests and recipes say of answers, as the public API takes it: `AnswerOptions`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Unpack

from ...options import MAX_SEED, AnswerOptions, SamplingOptions
from ..faults import RequestError

# Other names: of llama.cpp's and vLLM's extensions of OpenAI's bodies, and of Ollama's options and recipes.
_OF_BODIES = {"penalty_window": "repeat_last_n"}
OF_OLLAMA = {"repetition_penalty": "repeat_penalty", "penalty_window": "repeat_last_n", "max_tokens": "num_predict"}


def body_options(body: object, **own: Unpack[AnswerOptions]) -> AnswerOptions:
    """What a body of OpenAI's or Anthropic's protocol says; `own`: what endpoints say in different words. Raises
    RequestError."""
    names = (*SamplingOptions.__annotations__, "stop_on_repeat")
    return _said({**{name: getattr(body, _OF_BODIES.get(name, name), None) for name in names}, **own})


def ollama_options(given: Mapping[str, Any], **own: Unpack[AnswerOptions]) -> AnswerOptions:
    """What Ollama's options say, which were checked; `own`: what its bodies say beside them."""
    return _said({**{name: given.get(OF_OLLAMA.get(name, name)) for name in AnswerOptions.__annotations__}, **own})


def _said(given: Mapping[str, Any]) -> AnswerOptions:
    """Without what is None. max_tokens -1 is no limit, which is said by None; top_k -1 is off; top_p 0 the most likely
    token alone; a negative seed its bits unsigned."""
    said: AnswerOptions = {}
    said.update({name: value for name, value in given.items() if value is not None})  # type: ignore[typeddict-item]
    if said.get("max_tokens") == -1:
        said["max_tokens"] = None
    if said.get("top_k") == -1:
        said["top_k"] = 0
    if said.get("top_p") == 0:  # which is what the smallest number above it does
        said["top_p"] = math.ulp(0.0)
    if (seed := said.get("seed")) is not None:
        said["seed"] = seed & MAX_SEED
    if biases := said.pop("logit_bias", None):
        try:
            said["logit_bias"] = {int(token): value for token, value in biases.items()}
        except ValueError:
            raise RequestError("logit_bias must map token ids to numbers", param="logit_bias") from None
    return said
