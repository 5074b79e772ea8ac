"""SmolLM3: every fourth layer has no positions."""

from __future__ import annotations

from family_cases import BASE, LINEAR, Case, Family, Gguf, heads

FAMILY = Family(
    "smollm3",
    tiny={**BASE, "num_hidden_layers": 4, "rope_theta": 1e4, "tie_word_embeddings": False, "pad_token_id": 0},
    heading="layers 0-2",
    golden=(2, [15, 20, 52, 20, 74, 20, 2, 20, 27, 87, 55, 20, 46, 52, 27, 86, 20, 18, 7, 9, 20, 92, 18, 27]),
    gguf=Gguf("SMOLLM3", permuted=True, keys={"vocab_size": 97, "rope.dimension_count": 16}),
    cases=(
        Case("smollm3-gqa3", heads(6, 2, head_dim=16, num_hidden_layers=5, tie_word_embeddings=False)),
        Case(
            "smollm3-list-window-biases",
            heads(8, 1, attention_bias=True, mlp_bias=True, use_sliding_window=True, sliding_window=33)
            | {"num_hidden_layers": 4, "no_rope_layers": [0, 1, 1, 0], "rope_parameters": LINEAR},
            gguf=False,
        ),
        Case("smollm3-every-second", {"no_rope_layer_interval": 2, "rope_theta": 5e6}, gguf=False),
    ),
    published={
        "no_rope_layers": [1, 1, 1, 0], "no_rope_layer_interval": 4, "layer_types": ["full_attention"] * 4,
        "use_sliding_window": False, "sliding_window": None, "pretraining_tp": 2, "rope_scaling": None,
        "max_window_layers": 28, "mlp_bias": False, "attention_bias": False,
    },
    )  # fmt: skip
