"""What requests and recipes say of how tokens are picked, under the engine's names and in its ranges."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ...options import MAX_SEED, RANGES
from ..faults import RequestError
from .contract import SamplingOptions

# Other names: of llama.cpp's and vLLM's extensions of OpenAI's bodies, and of Ollama's options and recipes.
_OF_BODIES = {"penalty_window": "repeat_last_n"}
OF_OLLAMA = {"repetition_penalty": "repeat_penalty", "penalty_window": "repeat_last_n"}


def sampling_of(body: object) -> SamplingOptions:
    """What a body of OpenAI's or Anthropic's protocol says. Raises RequestError."""
    given = {name: getattr(body, _OF_BODIES.get(name, name), None) for name in (*RANGES, "logit_bias")}
    return sampling_options(given)


def ollama_sampling(parameters: Mapping[str, Any]) -> SamplingOptions:
    """What Ollama's options, or a recipe's parameters, say; they are checked."""
    return sampling_options({name: parameters.get(OF_OLLAMA.get(name, name)) for name in RANGES})


def sampling_options(given: Mapping[str, Any]) -> SamplingOptions:
    """Without what is None. top_k -1 is off; top_p 0 the most likely token alone; a negative seed its bits unsigned."""
    said: SamplingOptions = {}
    said.update({name: value for name, value in given.items() if value is not None})  # type: ignore[typeddict-item]
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
