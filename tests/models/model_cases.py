"""Small random configurations of every family for the comparison with transformers, chosen to stress shapes."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
_LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}


def _heads(q: int, kv: int, **more: Any) -> dict[str, Any]:
    return {"num_attention_heads": q, "num_key_value_heads": kv, **more}


@dataclass(frozen=True)
class Case:
    """One configuration; `config` holds arguments of transformers' configuration class."""

    name: str
    family: str  # model_type
    config: dict[str, Any] = field(default_factory=dict)
    gguf: bool = True  # whether GGUF can express it
    exact: bool = False  # whether the GGUF route has the very same sums: no permuted heads, no rounded rope factors


CASES = (
    Case("llama-gqa1-untied", "llama"),
    Case("llama-gqa3-tied", "llama", _heads(6, 2, hidden_size=96, tie_word_embeddings=True)),
    Case("llama-gqa8-llama3-rope", "llama", _heads(8, 1, rope_parameters=_LLAMA3)),
    Case("llama-gqa6-biases", "llama", _heads(6, 1, hidden_size=96, attention_bias=True, mlp_bias=True)),
    Case("llama-head24-linear-rope", "llama", {"head_dim": 24, "rope_parameters": _LINEAR}),
    Case("llama-yarn", "llama", {"rope_parameters": _YARN}),
    Case("mistral-window-gqa6", "mistral", _heads(6, 1, hidden_size=96, sliding_window=17)),
    Case("mixtral-gqa3", "mixtral", _heads(6, 2, hidden_size=96, num_local_experts=6, num_experts_per_tok=2)),
    Case("mixtral-window-top3", "mixtral", {"sliding_window": 33, "num_local_experts": 5, "num_experts_per_tok": 3}),
    Case("qwen2-gqa6-tied", "qwen2", _heads(6, 1, hidden_size=96, tie_word_embeddings=True), exact=True),
    Case("qwen2-gqa1-untied", "qwen2", exact=True),
    Case(
        "qwen2-window", "qwen2", {"use_sliding_window": True, "sliding_window": 19, "max_window_layers": 1}, gguf=False
    ),
    Case("qwen3-gqa8", "qwen3", _heads(8, 1, head_dim=32, rope_parameters={"rope_theta": 1e6}), exact=True),
    Case("qwen3-biases-tied", "qwen3", {"head_dim": 16, "attention_bias": True, "tie_word_embeddings": True}),
    Case("qwen3-yarn", "qwen3", {"head_dim": 32, "rope_parameters": _YARN}),
    Case(
        "qwen3moe-gqa8-top3",
        "qwen3_moe",
        _heads(8, 1, num_experts=9, num_experts_per_tok=3, moe_intermediate_size=32, norm_topk_prob=True, head_dim=16),
        exact=True,
    ),
    Case(
        "qwen3moe-dense-layers",
        "qwen3_moe",
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "norm_topk_prob": False,
            "mlp_only_layers": [0],
            "use_sliding_window": True,
            "sliding_window": 23,
        },
        gguf=False,
    ),
    Case(
        "gemma3-gqa3-window",
        "gemma3_text",
        _heads(6, 2, hidden_size=96, head_dim=16, query_pre_attn_scalar=16, sliding_window=13, num_hidden_layers=7),
        exact=True,
    ),
    Case(
        "gemma3-long-rope-softcap",
        "gemma3_text",
        _heads(
            4,
            1,
            head_dim=32,
            query_pre_attn_scalar=32,
            sliding_window=50,
            final_logit_softcapping=5.0,
            tie_word_embeddings=False,
            layer_types=["full_attention", "sliding_attention", "full_attention"],
            rope_parameters={
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        ),
        exact=True,
    ),
    Case("gemma3-multimodal", "gemma3", gguf=False),  # its query scalar, no head's width, has no GGUF key either
    Case("olmoe-gqa1", "olmoe", {"num_experts": 8, "num_experts_per_tok": 3, "norm_topk_prob": False}, exact=True),
    Case(
        "olmoe-gqa3-normalized",
        "olmoe",
        _heads(6, 2, hidden_size=96, num_experts=5, num_experts_per_tok=2, norm_topk_prob=True, attention_bias=True),
        gguf=False,
    ),
    Case(
        "granitemoe-multipliers",
        "granitemoe",
        _heads(
            6,
            2,
            hidden_size=96,
            num_local_experts=6,
            num_experts_per_tok=2,
            embedding_multiplier=6.0,
            attention_multiplier=0.15,
            residual_multiplier=0.22,
            logits_scaling=4.0,
            tie_word_embeddings=True,
        ),
    ),
    Case("granitemoe-plain-gqa8", "granitemoe", _heads(8, 1, num_local_experts=4, num_experts_per_tok=4)),
)


def build_model(case: Case, seed: int = 0) -> Any:
    """The transformers model in float32, weights large enough that every part shows in the logits."""
    import torch
    import transformers

    with quiet():
        if case.family == "gemma3":
            vision = transformers.SiglipVisionConfig(
                hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28
            )
            text = {**_SMALL, "head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 9, "pad_token_id": 0}
            config = transformers.Gemma3Config(text_config=text, vision_config=vision, image_token_index=210)
            model = transformers.Gemma3ForConditionalGeneration(config)
        else:
            config = transformers.AutoConfig.for_model(case.family, **{**_SMALL, **case.config})
            model = transformers.AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in sorted(model.named_parameters()):
            noise = torch.randn(value.shape, generator=generator)
            if "norm" in name and name.endswith("weight"):
                value.copy_((0.0 if case.family.startswith("gemma") else 1.0) + 0.2 * noise)
            elif name.endswith("bias"):
                value.copy_(0.5 * noise)
            elif "embed_tokens" in name:
                value.copy_(noise)
            else:
                value.copy_(noise / value.shape[-1] ** 0.5)
    return model.eval()


def reference_logits(directory: Path, tokens: list[int]) -> Any:
    """transformers' float32 logits [tokens, vocab] of a saved model, its weights widened to float32."""
    import torch
    import transformers

    with quiet():
        kind = transformers.AutoConfig.from_pretrained(directory).model_type
        auto = transformers.AutoModelForImageTextToText if kind == "gemma3" else transformers.AutoModelForCausalLM
        model = auto.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        return model(input_ids=torch.tensor([tokens])).logits[0].numpy()


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
