"""The families that `kamado synth` knows, in their published sizes.

Where the numbers are from stands beside each: `class` means the defaults of the family's configuration class in
transformers, `peer` what llama.cpp's sources say of the published model, `card` the model's own page, as remembered.
Tests hold the parameters of each against the number that its name or page states.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ..errors import UsageError
from .shapes import ByLayer, Chosen, LastLayers, Shape, Share, Value, changed

_HEADS: Final[Mapping[str, Value]] = {"rope.dimension_count": Share("head_dim")}
_LLAMA: Final[Mapping[str, Value]] = {"vocab_size": Share("vocab"), **_HEADS}  # what the converter adds for Llama's kin
_BIASES: Final = ("attn_q.bias", "attn_k.bias", "attn_v.bias")
_QK_NORMS: Final = ("attn_q_norm.weight", "attn_k_norm.weight")
_DECAYS: Final = ("ssm_a",)  # whose name has no ending
_GLM: Final[Mapping[str, Value]] = {
    "rope.dimension_count": Share("head_dim", 0.5),
    "expert_gating_func": 2,  # sigmoid
    "expert_shared_count": 1,
    "expert_weights_norm": True,
    "expert_group_count": 1,
    "expert_group_used_count": 1,
}
# Gated delta rule in three layers of four: key heads of half an attention head's width; values in as many heads of that
# width as attention is wide, which `ssm.inner_size` says.
_DELTA: Final[Mapping[str, Value]] = {
    "attention.recurrent_layers": ByLayer((True, True, True, False)),
    "full_attention_interval": 4,
    "rope.dimension_count": Share("head_dim", 0.25),
    "ssm.conv_kernel": 4,
    "ssm.state_size": Share("head_dim", 0.5),
    "ssm.group_count": Share("heads"),
    "ssm.time_step_rank": Share("heads", 2),
    "ssm.inner_size": Share("attention_width"),
}
_QWEN35: Final[Mapping[str, Value]] = {**_DELTA, "rope.dimension_sections": (11, 11, 10, 0)}
_SHARED_EXPERT: Final[Mapping[str, Value]] = {"expert_shared_feed_forward_length": Share("expert_width")}
_GPT_OSS: Final[Mapping[str, Value]] = {
    "attention.sliding_window": 128,
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 32.0,
    "rope.scaling.original_context_length": 4096,
    "rope.scaling.yarn_beta_fast": 32.0,
    "rope.scaling.yarn_beta_slow": 1.0,
    "expert_feed_forward_length": Share("expert_width"),
}
# Heads of local layers are half as wide; of the global ones a quarter turns, by divisors.
_GEMMA4: Final[Mapping[str, Value]] = {
    "attention.key_length_swa": Share("head_dim", 0.5),
    "attention.value_length_swa": Share("head_dim", 0.5),
    "rope.dimension_count": Share("head_dim"),
    "rope.dimension_count_swa": Share("head_dim", 0.5),
    "rope.freq_base_swa": 1e4,
    "final_logit_softcapping": 30.0,
}
_LOCAL_3_OF_4: Final[Mapping[str, Value]] = {
    "attention.sliding_window": 4096,
    "attention.sliding_window_pattern": ByLayer((True, True, True, False)),
}

SHAPES: Final[Mapping[str, Shape]] = {
    # Qwen3-30B-A3B: card
    "qwen3moe": Shape(
        "qwen3moe", 2048, 48, 32, 4, 128, ffn=6144, experts=128, top_k=8, expert_width=768, vocab=151936,
        context=40960, states_head_dim=True,
    ),
    # OLMoE-1B-7B: class
    "olmoe": Shape(
        "olmoe", 2048, 16, 16, 16, 128, experts=64, top_k=8, expert_width=1024, vocab=50304, context=4096,
        rope_base=1e4, eps=1e-5,
    ),
    # Granite-3.0-1B-A400M: card
    "granitemoe": Shape(
        "granitemoe", 1024, 24, 16, 8, 64, experts=32, top_k=8, expert_width=512, vocab=49155, context=4096,
        rope_base=1e4, tied=True,
        keys={**_LLAMA, "attention.scale": 1 / 64, "embedding_scale": 12.0, "residual_scale": 0.22, "logit_scale": 6.0},
    ),
    # Llama-3-8B: card
    "llama": Shape(
        "llama", 4096, 32, 32, 8, 128, ffn=14336, vocab=128256, context=8192, rope_base=5e5, eps=1e-5, keys=_LLAMA
    ),
    # Mixtral-8x7B: class
    "mixtral": Shape(
        "llama", 4096, 32, 32, 8, 128, experts=8, top_k=2, expert_width=14336, vocab=32000, eps=1e-5, keys=_LLAMA
    ),
    # Qwen2.5-1.5B, Qwen3-1.7B, Gemma-3-1B: card
    "qwen2": Shape("qwen2", 1536, 28, 12, 2, 128, ffn=8960, vocab=151936, tied=True, optional=_BIASES),
    "qwen3": Shape(
        "qwen3", 2048, 28, 16, 8, 128, ffn=6144, vocab=151936, context=40960, tied=True, states_head_dim=True
    ),
    "gemma3": Shape(
        "gemma3", 1152, 26, 4, 1, 256, ffn=6912, vocab=262144, tied=True, states_head_dim=True,
        keys={"attention.sliding_window": 512},
    ),
    # GLM-4.5 (4.6 and 4.7 have the same sizes): layers by peer, the rest card
    "glm4moe": Shape(
        "glm4moe", 5120, 92, 96, 8, 128, ffn=12288, experts=160, top_k=8, expert_width=1536, dense=3, vocab=151552,
        context=131072, eps=1e-5, states_head_dim=True, keys={**_GLM, "expert_weights_scale": 2.5},
        optional=_BIASES + _QK_NORMS,
    ),
    # GLM-4.5-Air: class; base, and that q, k and v have biases: card
    "glm4moe-air": Shape(
        "glm4moe", 4096, 46, 96, 8, 128, ffn=10944, experts=128, top_k=8, expert_width=1408, dense=1, vocab=151552,
        context=131072, eps=1e-5, states_head_dim=True, keys={**_GLM, "expert_weights_scale": 1.0}, optional=_BIASES,
    ),
    # Solar Open 100B: class; the width of a dense layer, of which there is none: card
    "solar-open": Shape(
        "glm4moe", 4096, 48, 64, 8, 128, ffn=10240, experts=128, top_k=8, expert_width=1280, dense=0, vocab=196608,
        context=131072, eps=1e-5, states_head_dim=True, keys={**_GLM, **_HEADS, "expert_weights_scale": 1.0},
    ),
    # MiniMax M2, M2.1, M2.5: class; what of a head turns: card
    "minimax-m2": Shape(
        "minimax-m2", 3072, 62, 48, 8, 128, experts=256, top_k=8, expert_width=1536, vocab=200064, context=196608,
        rope_base=5e6, states_head_dim=True,
        keys={
            "rope.dimension_count": Share("head_dim", 0.5),
            "expert_feed_forward_length": Share("expert_width"),
            "expert_gating_func": 2,
        },
    ),
    # Step 3.5 Flash: class; heads and window of local layers, bases and the experts' factor: card
    "step35": Shape(
        "step35", 4096, 45, 64, 8, 128, ffn=11264, experts=288, top_k=8, expert_width=1280, dense=3, vocab=128815,
        context=128000, rope_base=5e6, eps=1e-5, states_head_dim=True,
        keys={**_HEADS,
            "attention.head_count": ByLayer((1.0, 1.5, 1.5, 1.5), "heads"),
            "attention.head_count_kv": ByLayer((1.0,), "kv_heads"),
            "attention.sliding_window": 512,
            "attention.sliding_window_pattern": ByLayer((False, True, True, True)),
            "rope.freq_base_swa": 1e4,
            "expert_shared_feed_forward_length": Share("expert_width"),
            "expert_weights_scale": 3.0,
            "expert_weights_norm": True,
            "moe_every_n_layers": 1,
        },
        optional=("exp_probs_b.bias",), divisors=("rope_freqs.weight",),
    ),
    # Trinity Mini: layers, widths of dense parts and vocabulary by class, the rest card
    "afmoe": Shape(
        "afmoe", 2048, 32, 32, 4, 128, ffn=6144, experts=128, top_k=8, expert_width=1024, dense=2, vocab=200192,
        context=131072, rope_base=1e4, eps=1e-5, states_head_dim=True,
        keys={
            "attention.sliding_window": 2048,
            "expert_gating_func": 2,
            "expert_shared_count": 1,
            "expert_weights_scale": 2.826,
            "expert_weights_norm": True,
        },
    ),
    # ERNIE 4.5 0.3B and 21B-A3B: class
    "ernie4_5": Shape(
        "ernie4_5", 1024, 18, 16, 2, 128, ffn=3072, vocab=103424, context=131072, rope_base=5e5, eps=1e-5, tied=True,
        states_head_dim=True, keys=_LLAMA,
    ),
    "ernie4_5-moe": Shape(
        "ernie4_5-moe", 2560, 28, 20, 4, 128, ffn=12288, experts=64, top_k=6, expert_width=1536, dense=1,
        vocab=103424, context=131072, rope_base=5e5, eps=1e-5, tied=True,
        keys={
            "expert_shared_count": 2,
            "expert_shared_feed_forward_length": Share("expert_width", 2),
            "interleave_moe_layer_step": 1,
        },
        optional=("exp_probs_b.bias",),
    ),
    # Hunyuan 7B and A13B: card; the base is what the converter makes of an alpha of 1000
    "hunyuan-dense": Shape(
        "hunyuan-dense", 4096, 32, 32, 8, 128, ffn=14336, vocab=128256, context=262144, rope_base=11158840.0,
        eps=1e-5, tied=True, states_head_dim=True,
    ),
    "hunyuan-moe": Shape(
        "hunyuan-moe", 4096, 32, 32, 8, 128, experts=64, top_k=8, expert_width=3072, vocab=128167, context=262144,
        rope_base=11158840.0, eps=1e-5, tied=True, states_head_dim=True,
        keys={
            "expert_feed_forward_length": Share("expert_width"),
            "expert_shared_feed_forward_length": Share("expert_width"),
            "expert_shared_count": 1,
        },
    ),
    # Mistral Small 3.1 24B and Ministral 3 8B: class; how the latter's positions are scaled: card
    "mistral-small": Shape(
        "mistral3", 5120, 40, 32, 8, 128, ffn=32768, vocab=131072, context=131072, rope_base=1e9, eps=1e-5,
        keys=_LLAMA,
    ),
    "ministral3": Shape(
        "mistral3", 4096, 34, 32, 8, 128, ffn=14336, vocab=131072, context=262144, eps=1e-5, states_head_dim=True,
        keys={**_LLAMA,
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 16.0,
            "rope.scaling.original_context_length": 16384,
            "rope.scaling.yarn_log_multiplier": 1.0,
            "attention.temperature_scale": 0.1,
        },
    ),
    # SmolLM3 3B: class
    "smollm3": Shape(
        "smollm3", 2048, 36, 16, 4, 128, ffn=11008, vocab=128256, context=32768, rope_base=2e6, tied=True, keys=_LLAMA
    ),
    # Phi-4 14B and Phi-4-mini: card. Divisors of 1 stand for the published ones
    "phi4": Shape(
        "phi3", 5120, 40, 40, 10, 128, ffn=17920, vocab=100352, context=16384, rope_base=2.5e5, eps=1e-5,
        keys={**_HEADS, "attention.sliding_window": 0, "rope.scaling.original_context_length": 16384},
        optional=("attn_qkv.weight",),
    ),
    "phi4-mini": Shape(
        "phi3", 3072, 32, 24, 8, 128, ffn=8192, vocab=200064, context=131072, rope_base=1e4, eps=1e-5, tied=True,
        keys={
            "attention.sliding_window": 0,
            "rope.dimension_count": Share("head_dim", 0.75),
            "rope.scaling.original_context_length": 4096,
            "rope.scaling.attn_factor": 1.1902380714,
        },
        optional=("attn_qkv.weight",), divisors=("rope_factors_long.weight", "rope_factors_short.weight"),
    ),
    # OLMo 2 7B and OLMo 3 7B: layers and widths by class, vocabulary and positions by card
    "olmo2": Shape("olmo2", 4096, 32, 32, 32, 128, ffn=11008, vocab=100352, context=4096, rope_base=5e5),
    "olmo3": Shape(
        "olmo2", 4096, 32, 32, 32, 128, ffn=11008, vocab=100278, context=65536, rope_base=5e5,
        keys={**_LOCAL_3_OF_4,
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 8.0,
            "rope.scaling.original_context_length": 8192,
        },
    ),
    # Seed-OSS 36B: class, but for the stream's width, which is 5120 in 36 billion: card
    "seed_oss": Shape(
        "seed_oss", 5120, 64, 80, 8, 128, ffn=27648, vocab=155136, context=524288, rope_base=1e7, states_head_dim=True,
        optional=_BIASES,
    ),
    # Arcee AFM 4.5B: widths by class, the rest card
    "arcee": Shape(
        "arcee", 2560, 36, 20, 4, 128, ffn=18432, vocab=128004, context=65536, rope_base=1e4, eps=1e-5,
        states_head_dim=True, keys=_LLAMA,
    ),
    # Nanbeige 4 3B: card; with two passes, so that there is a shape that has them
    "nanbeige": Shape(
        "nanbeige", 2560, 32, 20, 4, 128, ffn=10496, vocab=166144, context=65536, rope_base=7e7, eps=1e-5,
        states_head_dim=True, keys={**_LLAMA, "num_loops": 2, "skip_loop_final_norm": False},
    ),
    # PLaMo 3 2B: layers and every which one is global by peer; widths are chosen for 2 billion parameters
    "plamo3": Shape(
        "plamo3", 2048, 24, 16, 4, 128, ffn=10240, vocab=107520, context=4096, tied=True, states_head_dim=True,
        keys={
            "vocab_size": Share("vocab"),
            "attention.sliding_window": 2048,
            "attention.sliding_window_pattern": 8,
            "rope.freq_base_swa": 1e4,
        },
        optional=("attn_qkv.weight", "post_attention_norm", "post_ffw_norm"),
    ),
    # IQuest-Coder 40B (plain): class
    "iquestcoder": Shape(
        "llama", 5120, 80, 40, 8, 128, ffn=27648, vocab=76800, context=131072, rope_base=1e4, eps=1e-5,
        states_head_dim=True, keys=_LLAMA,
    ),
    # Granite 3.3 8B: card
    "granite": Shape(
        "granite", 4096, 40, 32, 8, 128, ffn=12800, vocab=49159, context=131072, rope_base=1e7, eps=1e-5, tied=True,
        keys={**_LLAMA,
            "attention.scale": 1 / 128, "embedding_scale": 12.0, "residual_scale": 0.22, "logit_scale": 16.0,
        },
    ),
    # GLM-4 9B: class
    "glm4": Shape(
        "glm4", 4096, 40, 32, 2, 128, ffn=13696, vocab=151552, context=131072, rope_base=1e4, eps=1.5625e-7,
        states_head_dim=True, keys={"rope.dimension_count": Share("head_dim", 0.5)}, optional=_BIASES,
    ),
    # LFM2 1.2B and 8B-A1B: which layers attend by card, widths of the latter by class, the rest card. Only those have
    # key-value heads.
    "lfm2": Shape(
        "lfm2", 2048, 16, 32, 8, 64, ffn=8192, vocab=65536, context=128000, eps=1e-5, tied=True,
        keys={
            "attention.head_count_kv": Chosen(tuple(float(i in (2, 5, 8, 10, 12, 14)) for i in range(16)), "kv_heads"),
            "shortconv.l_cache": 3,
            "vocab_size": Share("vocab"),
        },
    ),
    "lfm2-8b-a1b": Shape(
        "lfm2moe", 2048, 24, 32, 8, 64, ffn=7168, experts=32, top_k=4, expert_width=1792, dense=2, vocab=65536,
        context=128000, eps=1e-5, tied=True,
        keys={
            "attention.head_count_kv": Chosen(tuple(float(i in (2, 6, 10, 14, 18, 21)) for i in range(24)), "kv_heads"),
            "expert_gating_func": 2,
            "shortconv.l_cache": 3,
            "vocab_size": Share("vocab"),
        },
    ),
    # Qwen3.5 4B: width by peer, that of the feed-forward part chosen for 4 billion parameters, the rest class (of 9B)
    "qwen35": Shape(
        "qwen35", 2560, 32, 16, 4, 256, ffn=9216, vocab=248320, context=262144, rope_base=1e7, tied=True,
        states_head_dim=True, keys=_QWEN35, optional=_DECAYS,
    ),
    # Qwen3.5 35B-A3B: class; 397B-A17B: layers by peer, the rest card; base and context of both: card
    "qwen35moe": Shape(
        "qwen35moe", 2048, 40, 16, 2, 256, experts=256, top_k=8, expert_width=512, vocab=248320, context=262144,
        rope_base=1e7, states_head_dim=True,
        keys={**_QWEN35, **_SHARED_EXPERT,
            "expert_feed_forward_length": Share("expert_width"), "feed_forward_length": None,
        },
        optional=_DECAYS,
    ),
    "qwen35moe-397b": Shape(
        "qwen35moe", 4096, 60, 32, 2, 256, experts=512, top_k=10, expert_width=1024, vocab=248320, context=262144,
        rope_base=1e7, states_head_dim=True,
        keys={**_QWEN35, **_SHARED_EXPERT,
            "expert_feed_forward_length": Share("expert_width"), "feed_forward_length": None,
            "ssm.group_count": Share("heads", 0.5),
        },
        optional=_DECAYS,
    ),
    # Qwen3-Coder-Next 80B-A3B: class; base and context: card
    "qwen3next": Shape(
        "qwen3next", 2048, 48, 16, 2, 256, ffn=5632, experts=512, top_k=10, expert_width=512, vocab=151936,
        context=262144, rope_base=1e7, states_head_dim=True, keys={**_DELTA, **_SHARED_EXPERT}, optional=_DECAYS,
    ),
    # Gemma 4 E2B: layers by peer, heads and window by class, the rest card. Layers at the end attend to what earlier
    # ones stored, and their feed-forward parts are twice as wide.
    "gemma4-e2b": Shape(
        "gemma4", 1536, 35, 8, 1, 512, ffn=6144, vocab=262144, context=131072, tied=True, states_head_dim=True,
        keys={**_GEMMA4,
            "feed_forward_length": LastLayers(20 / 35, 5, "ffn", 2.0),
            "attention.shared_kv_layers": LastLayers(20 / 35, 5),
            "attention.sliding_window": 512,
            "attention.sliding_window_pattern": ByLayer((True, True, True, True, False)),
            "embedding_length_per_layer_input": 256,
        },
        optional=("attn_v.weight", "layer_output_scale.weight"), divisors=("rope_freqs.weight",), turning=0.25,
    ),
    # Gemma 4 26B-A4B: layers by peer, the rest card. In global layers values are keys, of a quarter of the heads.
    "gemma4-26b-a4b": Shape(
        "gemma4", 2816, 30, 16, 8, 512, ffn=2112, experts=128, top_k=8, expert_width=704, vocab=262144, context=262144,
        tied=True, states_head_dim=True,
        keys={**_GEMMA4,
            "attention.head_count_kv": ByLayer((1.0, 1.0, 1.0, 1.0, 1.0, 0.25), "kv_heads"),
            "attention.shared_kv_layers": 0,
            "attention.sliding_window": 1024,
            "attention.sliding_window_pattern": ByLayer((True, True, True, True, True, False)),
            "embedding_length_per_layer_input": 0,
        },
        optional=("layer_output_scale.weight", "ffn_gate_up_exps.weight"), divisors=("rope_freqs.weight",),
        turning=0.25,
    ),
    # gpt-oss 20b: layers and experts by card, and 120b: class
    "gpt-oss": Shape(
        "gpt-oss", 2880, 24, 64, 8, 64, experts=32, top_k=4, expert_width=2880, vocab=201088, context=131072,
        rope_base=150000.0, eps=1e-5, states_head_dim=True, keys=_GPT_OSS,
    ),
    "gpt-oss-120b": Shape(
        "gpt-oss", 2880, 36, 64, 8, 64, experts=128, top_k=4, expert_width=2880, vocab=201088, context=131072,
        rope_base=150000.0, eps=1e-5, states_head_dim=True, keys=_GPT_OSS,
    ),
    # EXAONE 4.0 32B: vocabulary and window by class, layers by peer, the rest card
    "exaone4": Shape(
        "exaone4", 5120, 64, 40, 8, 128, ffn=27392, vocab=102400, context=131072, eps=1e-5, states_head_dim=True,
        keys={**_LOCAL_3_OF_4, "vocab_size": Share("vocab")}, divisors=("rope_freqs.weight",),
    ),
}  # fmt: skip


def shape_of(family: str, changes: Mapping[str, int | None]) -> Shape:
    """The family's published shape with `changes` (names as in Shape; None leaves the family's own).

    Raises UsageError for unknown families, sizes that do not fit each other and settings the family has no use for.
    """
    base = SHAPES.get(family)
    if base is None:
        raise UsageError(f"no family {family!r} to synthesise; there are {', '.join(SHAPES)}")
    if family == "llama" and changes.get("experts"):
        base = SHAPES["mixtral"]
    return changed(base, family, changes)
