"""The comparisons of families/ with transformers: small random models, chosen to stress shapes."""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from family_cases import TRAINED, WRAPPERS, Case, as_trained, cases, families

_SMALL: dict[str, Any] = {
    "vocab_size": 211,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
CASES = cases()


def build_model(case: Case, seed: int = 0) -> Any:
    """The transformers model in float32, weights large enough that every part shows in the logits."""
    import torch
    import transformers

    with quiet():
        if case.family in WRAPPERS:
            text = {**_SMALL, "model_type": WRAPPERS[case.family].text, **case.config}
            config = transformers.AutoConfig.for_model(case.family, text_config=text, **WRAPPERS[case.family].beside)
            model = transformers.AutoModelForImageTextToText.from_config(config)
        else:
            config = transformers.AutoConfig.for_model(case.family, **{**_SMALL, **case.config})
            model = transformers.AutoModelForCausalLM.from_config(config)
    base_of = families()[WRAPPERS[case.family].text if case.family in WRAPPERS else case.family].base_of
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        buffers = [(name, value) for name, value in model.named_buffers() if name.endswith(("_bias", "layer_scalar"))]
        for name, value in sorted([*model.named_parameters(), *buffers]):
            if name.endswith(TRAINED):
                value.copy_(torch.from_numpy(as_trained(name, torch.rand(value.shape, generator=generator).numpy())))
                continue
            noise = torch.randn(value.shape, generator=generator)
            if "norm" in name and name.endswith("weight"):
                value.copy_(base_of(name) + 0.2 * noise)
            elif name.endswith(("scale", "scalar")):
                value.copy_(1.0 + 0.2 * noise)
            elif name.endswith("bias"):
                value.copy_(0.5 * noise)
            elif "embed_tokens" in name:
                value.copy_(noise)
            else:
                value.copy_(noise / value.shape[-1] ** 0.5)
    return model.eval()


def reference_logits(directory: Path, tokens: list[int], dtype: str = "float32", cuts: Sequence[int] = ()) -> Any:
    """transformers' logits [tokens, vocab] of a saved model, its weights widened to `dtype`.

    `cuts`: where calls end, each going on from the cache that the ones before left.
    """
    import torch
    import transformers

    with quiet():
        kind = transformers.AutoConfig.from_pretrained(directory).model_type
        auto = transformers.AutoModelForImageTextToText if kind in WRAPPERS else transformers.AutoModelForCausalLM
        # Grouped products of experts, the other implementation, are not there in float64.
        plain = {"attn_implementation": "eager", "experts_implementation": "eager"}
        model = auto.from_pretrained(directory, dtype=getattr(torch, dtype), **plain).eval()
    rows, cache = [], None
    with torch.no_grad():
        for begin, end in itertools.pairwise([0, *cuts, len(tokens)]):
            part = torch.tensor([tokens[begin:end]])
            answer = model(input_ids=part, past_key_values=cache, use_cache=bool(cuts))
            rows, cache = [*rows, answer.logits[0]], answer.past_key_values
    return torch.cat(rows).numpy()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars and advice."""
    import transformers

    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        transformers.logging.set_verbosity(level)
