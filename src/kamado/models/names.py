"""What tensors and settings are called: GGUF's names are the canonical ones, these are what transformers calls them.

A tensor's role is its name in GGUF without `blk.{i}.` and without `.weight` or `.bias`; a name in safetensors that has
no such ending says so by a `$`; where files of one family differ, a `|` stands between their names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

# Setting -> key of config.json, or several in order of preference. A family overrides what its class calls otherwise.
HF_KEYS: Final[Mapping[str, str | tuple[str, ...]]] = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "embedding_scale": "embedding_multiplier",
    "feed_forward_length": "intermediate_size",
    "logit_scale": "logits_scaling",
    "residual_scale": "residual_multiplier",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_epsilon": "layer_norm_eps",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.scale": "attention_multiplier",
    "attention.sliding_window": "sliding_window",
    "expert_count": ("num_experts", "num_local_experts", "n_routed_experts"),
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_weights_norm": "norm_topk_prob",
    "expert_weights_scale": "routed_scaling_factor",
    "expert_group_count": "n_group",
    "expert_group_used_count": "topk_group",
    "expert_shared_count": "n_shared_experts",
    "leading_dense_block_count": "first_k_dense_replace",
    "nextn_predict_layers": "num_nextn_predict_layers",
    "rope.freq_base": "rope_theta",
    "rope.freq_base_swa": "rope_local_base_freq",
    "ssm.conv_kernel": "linear_conv_kernel_dim",
    "ssm.group_count": "linear_num_key_heads",
    "ssm.state_size": "linear_key_head_dim",
    "ssm.time_step_rank": "linear_num_value_heads",
}

_LAYER: Final = "layers.{i}."
_ATTENTION: Final = _LAYER + "self_attn."
_MLP: Final = _LAYER + "mlp."

# Role -> name in a safetensors directory, after the prefix of the model; only `output` stands outside of it.
HF_TENSORS: Final[Mapping[str, str]] = {
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "output": "lm_head",
    "attn_norm": _LAYER + "input_layernorm",
    "attn_q": _ATTENTION + "q_proj",
    "attn_q_norm": _ATTENTION + "q_norm",
    "attn_k": _ATTENTION + "k_proj",
    "attn_k_norm": _ATTENTION + "k_norm",
    "attn_v": _ATTENTION + "v_proj",
    "attn_output": _ATTENTION + "o_proj",
    "post_attention_norm": _LAYER + "post_attention_layernorm",
    "ffn_norm": _LAYER + "post_attention_layernorm",  # the same: most families have one of the two
    "ffn_gate": _MLP + "gate_proj",
    "ffn_up": _MLP + "up_proj",
    "ffn_down": _MLP + "down_proj",
    "post_ffw_norm": _LAYER + "post_feedforward_layernorm",
    "ffn_gate_shexp": _MLP + "shared_experts.gate_proj",
    "ffn_up_shexp": _MLP + "shared_experts.up_proj",
    "ffn_down_shexp": _MLP + "shared_experts.down_proj",
    "ffn_gate_inp": _MLP + "gate",  # the router
    "exp_probs_b": _MLP + "gate.e_score_correction_bias$",
    "ffn_gate.{e}": _MLP + "experts.{e}.gate_proj",
    "ffn_up.{e}": _MLP + "experts.{e}.up_proj",
    "ffn_down.{e}": _MLP + "experts.{e}.down_proj",
}
