"""Tokens that a model's file says are never to be sampled, in both formats, through the whole engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kamado
from kamado.errors import MetadataError

PROMPT = [10, 20, 30]
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 1, "logprobs": 4}
VOCAB, HIDDEN, FFN = 261, 64, 128


def write_hf(folder: Path, suppressed: list[int] | None = None) -> Path:
    """A llama of one layer without a tokenizer."""
    shapes = {
        "model.embed_tokens": (VOCAB, HIDDEN),
        "model.norm": (HIDDEN,),
        **{
            f"model.layers.0.{name}": shape
            for name, shape in {
                "input_layernorm": (HIDDEN,),
                "post_attention_layernorm": (HIDDEN,),
                **{f"self_attn.{kind}_proj": (HIDDEN, HIDDEN) for kind in "qkvo"},
                "mlp.gate_proj": (FFN, HIDDEN),
                "mlp.up_proj": (FFN, HIDDEN),
                "mlp.down_proj": (HIDDEN, FFN),
            }.items()
        },
    }
    rng = np.random.default_rng(3)
    header: dict[str, Any] = {}
    data = b""
    for name, shape in shapes.items():
        values = np.ones(shape) if len(shape) == 1 else rng.standard_normal(shape) * 2 / np.sqrt(shape[1])
        raw = values.astype(np.float32).tobytes()
        header[f"{name}.weight"] = {
            "dtype": "F32",
            "shape": list(shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": VOCAB, "hidden_size": HIDDEN,
        "intermediate_size": FFN, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 4,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": True,
        "hidden_act": "silu",
    }  # fmt: skip
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    head = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + data)
    if suppressed is not None:
        (folder / "generation_config.json").write_text(json.dumps({"suppress_tokens": suppressed}))
    return folder


@pytest.fixture(params=["gguf", "safetensors"])
def make(request: Any, tmp_path: Path, write_tiny: Callable[..., Path]) -> Callable[[list[int] | None], Path]:
    """Writes the same model with other suppressed tokens."""
    if request.param == "gguf":
        return lambda suppressed: write_tiny(suppressed=suppressed)
    return lambda suppressed: write_hf(tmp_path / f"m{0 if suppressed is None else len(suppressed)}", suppressed)


def test_the_best_token_is_not_taken_when_it_is_suppressed(make: Callable[[list[int] | None], Path]) -> None:
    with kamado.load(make(None), context=128, threads=1) as model:
        (free,) = model.generate(PROMPT, **GREEDY)
        best, second = (token for token, _ in free.top_logprobs[:2])
        assert free.token == best
    with kamado.load(make([best, 10**6]), context=128, threads=1) as model:
        (bound,) = model.generate(PROMPT, **GREEDY)
        assert bound.token == second
        assert bound.top_logprobs == free.top_logprobs, "log-probabilities are the model's own"
        said = [model.generate(PROMPT, temperature=5.0, top_k=0, max_tokens=60, seed=i) for i in range(4)]
        tokens = [piece.token for answer in said for piece in answer]
        assert len(tokens) > 100
        assert best not in tokens
    with pytest.raises(MetadataError, match="suppress_tokens lists every token"):
        kamado.load(make(list(range(VOCAB))), context=128, threads=1)
    with pytest.raises(MetadataError, match="suppress_tokens lists 300 token ids of a vocabulary of 261"):
        kamado.load(make([1] * 300), context=128, threads=1)


def test_a_form_that_has_nothing_else_may_use_suppressed_tokens(write_tiny: Callable[..., Path]) -> None:
    with kamado.load(write_tiny(suppressed=[ord("a")]), context=128, threads=1) as model:

        def answer(regex: str) -> str:
            return "".join(piece.text for piece in model.generate("hi", regex=regex, temperature=0.0, max_tokens=20))

        assert answer("[ac]{3}") == "ccc"
        assert answer("caac") == "caac"
        assert answer("c(a|x)c") == "cxc"
