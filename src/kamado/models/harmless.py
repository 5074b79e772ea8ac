"""Settings that no family reads and that change nothing: a key that is neither read nor listed here is refused.

Two kinds of rows. Without `values` the family's reference (llama.cpp for GGUF, transformers' modelling file for
config.json) does not read the key in its forward pass, whatever it says. With `values` these are the ones that say
"off", or what the family does anyway; any other is refused. `tests/models/test_unknown_keys.py` holds both kinds
against the references.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final, Literal

import numpy as np


@dataclass(frozen=True, slots=True)
class Row:
    """Keys with one reason. `values` None: any value; `families` None: all of the format but those of `but`."""

    keys: str  # separated by spaces; `*` stands for any text
    reason: str
    values: tuple[Any, ...] | None = None
    families: frozenset[str] | None = None
    but: frozenset[str] = frozenset()

    def is_for(self, family: str) -> bool:
        """Whether the row speaks of `family`."""
        return family not in self.but and (self.families is None or family in self.families)

    def covers(self, key: str, value: Any, family: str) -> bool:
        """Whether the row says that `key` = `value` is harmless in `family`; of a list every entry must be."""
        if not self.is_for(family) or not any(fnmatchcase(key, pattern) for pattern in self.keys.split()):
            return False
        if self.values is None:
            return True
        entries = value.tolist() if isinstance(value, np.ndarray) else value
        entries = entries if isinstance(entries, list | tuple) else (entries,)
        return all(_is_one_of(entry, self.values) for entry in entries)


def _is_one_of(value: Any, values: Collection[Any]) -> bool:
    return type(value) in (bool, int, float, str) and any(value == fine for fine in values)


def _families(names: str) -> frozenset[str]:
    return frozenset(names.split())


_ENCODERS: Final = _families("bert")
_STEP: Final = _families("step3p5 step3p7")
_NORMING_Q: Final = _families(
    "qwen3 qwen3_moe gemma3 gemma3_text olmoe hunyuan_v1_dense hunyuan_v1_moe minimax_m2 exaone4 olmo2 olmo3 afmoe "
    "step3p5 step3p7 gemma4 gemma4_text"
)
_LFM2: Final = _families("lfm2 lfm2_moe")
_QWEN3_5: Final = _families("qwen3_5 qwen3_5_text qwen3_5_moe qwen3_5_moe_text")
_OFF: Final = (False, 0, 1)  # of a scale 0 stands for "none" and 1 for itself; of a count of passes 1 is the plain one

GGUF: Final = (
    Row("vocab_size", "the rows of the token table are the vocabulary"),
    Row(
        "rope.scaling.finetuned",
        "tells how the model was trained; kept by llama.cpp for saving only",
        but=_families("granite"),
    ),
    Row("ssm.*", "of Mamba layers, whose tensors would be refused", None, _families("granite granitemoe")),
    Row("rope.scaling.yarn_ext_factor rope.scaling.yarn_attn_factor", "of a yarn scaling, and read with one"),
    Row(
        "rope.scaling.yarn_beta_fast rope.scaling.yarn_beta_slow",
        "of a yarn scaling, and read with one",
        but=_families("mistral3"),
    ),
    Row("use_parallel_residual", "GPT-NeoX's; converters of early 2024 wrote it for every family"),
    Row("classifier.output_labels", "names of a classifier's outputs"),
    Row("tensor_data_layout", "the order of q and k, which all files of this family share", None, _families("llama")),
    Row("attention.layer_norm_epsilon", "the norms of this family are RMS norms", but=_ENCODERS),
    Row("attention.layer_norm_rms_epsilon", "the norms of this family are layer norms", None, _ENCODERS),
    Row("rope.*", "positions come from a table, nothing is turned", None, _ENCODERS),
    Row(
        "expert_count expert_used_count expert_shared_count expert_feed_forward_length "
        "expert_shared_feed_forward_length leading_dense_block_count nextn_predict_layers n_deepstack_layers "
        "dense_2_feat_out dense_3_feat_out",
        "0: the file has no such part",
        (0,),
    ),
    Row(
        "attn_logit_softcapping router_logit_softcapping final_logit_softcapping attention.scale attention.clamp_kqv "
        "attention.max_alibi_bias attention.sliding_window attention.shared_kv_layers attention.key_length_mla "
        "attention.value_length_mla attention.key_length_swa attention.value_length_swa attention.temperature_length "
        "attention.temperature_scale rope.scaling.yarn_log_multiplier",
        "0: off",
        (0,),
    ),
    Row("swin_norm", "false: off", (False,)),
    Row("attention.causal", "true: what a decoder does", (True,), but=_ENCODERS),
    Row(
        "logit_scale residual_scale embedding_scale attention.output_scale expert_weights_scale expert_group_scale "
        "rope.scaling.alpha expert_group_count expert_group_used_count moe_every_n_layers interleave_moe_layer_step",
        "0 and 1: no factor, no groups, every layer",
        _OFF,
    ),
)

CONFIG_JSON: Final = (
    Row(
        "model_type architectures auto_map _name_or_path transformers_version transformers.js_config _commit_hash "
        "finetuning_task task_specific_params unsloth_* is_llama_config license",
        "what the file is and where it comes from",
    ),
    Row("dtype torch_dtype use_bfloat16", "how the weights were stored: activations are float32 here"),
    Row(
        "bos_token_id eos_token_id pad_token_id sep_token_id cls_token_id mask_token_id unk_token_id "
        "decoder_start_token_id tokenizer_class prefix",
        "the tokenizer's, read with it; the row of a padding token differs in training alone",
    ),
    Row(
        "max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k "
        "top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size "
        "bad_words_ids num_return_sequences output_scores return_dict_in_generate forced_bos_token_id "
        "forced_eos_token_id remove_invalid_values exponential_decay_length_penalty suppress_tokens "
        "begin_suppress_tokens",
        "how texts are sampled, after the forward pass",
    ),
    Row(
        "initializer_range attention_dropout hidden_dropout hidden_dropout_prob attention_probs_dropout_prob "
        "classifier_dropout residual_dropout resid_pdrop embd_pdrop router_aux_loss_coef router_jitter_noise "
        "gradient_checkpointing pretraining_tp tf_legacy_loss init_method",
        "of training alone",
    ),
    Row(
        "use_cache cache_implementation output_attentions output_hidden_states output_router_logits return_dict "
        "use_return_dict torchscript attn_implementation _attn_implementation attn_implementation_autoset "
        "_attn_implementation_autoset _flash_attn_2_enabled chunk_size_feed_forward",
        "what else a call returns, and by which code: not what it computes",
    ),
    Row("max_sequence_length model_max_length", "the tokenizer's; positions are max_position_embeddings"),
    Row("id2label label2id num_labels problem_type sentence_transformers", "of a classifier's head"),
    Row(
        "eod_token_id im_start_id im_end_id im_newline_id image_token_id text_start_id text_end_id mask_init_id "
        "num_media_embeds org_vocab_size pool_type class_num add_classification_head use_rotary_pos_emb norm_type "
        "attention_head_dim cla_share_factor use_mixed_mlp_moe moe_drop_tokens moe_random_routing_dropped_token "
        "moe_layer_num_skipped moe_intermediate_size num_shared_expert",
        "of Tencent's training code; the classes of transformers read none of it",
        None,
        _families("hunyuan_v1_dense hunyuan_v1_moe"),
    ),
    Row("use_cla", "false: no keys of other layers", (False,), _families("hunyuan_v1_dense hunyuan_v1_moe")),
    Row(
        "moe_capacity moe_gate moe_use_aux_free use_rmsnorm compression_ratio",
        "of Baidu's training code; the class of transformers reads none of it",
        None,
        _families("ernie4_5 ernie4_5_moe"),
    ),
    Row(
        "max_window_layers",
        "read with a window by layers, which this family has not",
        None,
        _families("qwen3_moe smollm3"),
    ),
    Row("hidden_act", "its activation is hidden_activation", None, _families("gemma3 gemma3_text gemma4 gemma4_text")),
    Row(
        "vision_config mm_tokens_per_image boi_token_index eoi_token_index image_token_index boi_token_id eoi_token_id "
        "image_token_id",
        "of pictures, which are not taken",
        None,
        _families("gemma3"),
    ),
    Row(
        "vision_config image_token_index image_token_id projector_hidden_act vision_feature_layer "
        "multimodal_projector_bias spatial_merge_size",
        "of pictures, which are not taken",
        None,
        _families("mistral3"),
    ),
    Row(
        "vision_config audio_config boi_token_id eoi_token_id image_token_id video_token_id boa_token_id eoa_token_id "
        "eoa_token_index audio_token_id vision_soft_tokens_per_image",
        "of pictures and sound, which are not taken",
        None,
        _families("gemma4"),
    ),
    Row(
        "directionality pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head "
        "pooler_type output_past",
        "of the pooler in front of a classifier",
        None,
        _ENCODERS,
    ),
    Row("tie_word_embeddings", "an encoder has no output matrix", None, _ENCODERS),
    Row("use_qk_norm", "true: what this family does", (True,), _NORMING_Q),
    Row("scoring_func", "sigmoid: what this family does", ("sigmoid",), _families("minimax_m2")),
    Row("qk_norm_type", "per_layer: over the whole row, as is done", ("per_layer",), _families("minimax_m2")),
    Row("use_routing_bias", "true: what this family does", (True,), _families("minimax_m2")),
    Row("attn_type_list", "1: full attention in every layer", (1,), _families("minimax_m2")),
    Row(
        "layernorm_full_attention_alpha layernorm_full_attention_beta layernorm_linear_attention_alpha "
        "layernorm_linear_attention_beta layernorm_mlp_alpha layernorm_mlp_beta",
        "1: no factor on what is added",
        (1,),
        _families("minimax_m2"),
    ),
    Row(
        "shared_moe_mode mlp_intermediate_size use_mtp num_mtp_modules mtp_transformer_layers",
        "of a shared expert, an MLP and drafting layers, whose tensors would be refused",
        None,
        _families("minimax_m2"),
    ),
    Row("use_qk_norm qk_layernorm", "false: this family norms neither q nor k", (False,), but=_NORMING_Q),
    Row("qkv_bias", "true: what this family does", (True,), _families("qwen2")),
    Row("full_attn_mod interpolate_factor", "1: every layer, no factor", (1,), _families("phi3")),
    Row("normalization_function", "rmsnorm: what this family does", ("rmsnorm",), _families("granitemoehybrid")),
    Row("mamba_* time_step_limit", "of Mamba layers, of which the file has none", None, _families("granitemoehybrid")),
    Row("intermediate_size", "of layers without experts, of which there are none", None, _families("solar_open")),
    Row("route_norm", "true: what this family does", (True,), _families("afmoe")),
    Row("score_func", "sigmoid: what this family does", ("sigmoid",), _families("afmoe")),
    Row("n_group topk_group num_expert_groups num_limited_groups", "1: no groups", (1,), _families("afmoe")),
    Row(
        "use_moe use_head_wise_attn_gate use_moe_router_bias norm_expert_weight zero_centered",
        "true: what this family does",
        (True,),
        _STEP,
    ),
    Row("gating", "a gate a head: what this family does", (True, "per-head"), _STEP),
    Row("moe_router_activation", "sigmoid: what this family does", ("sigmoid",), _STEP),
    Row("att_impl_type", "what this family does", ("GQA",), _STEP),
    Row("yarn_only_types", "a scaling is that of the global layers", ("full_attention",), _STEP),
    Row("sink use_mfa", "false: off", (False,), _STEP),
    Row("moe_every_n_layer", "1: every one of them", (1,), _STEP),
    Row("moe_layer_offset", "0: none", (0,), _STEP),
    Row("use_rope_layers", "empty: all layers turn", (), _STEP),
    Row("need_fp32_gate", "activations are float32 here", None, _STEP),
    Row("max_seq_len", "positions are max_position_embeddings", None, _STEP),
    Row("mtp_layer_types mtp_mlp_layer_types", "of layers that draft, which are not run", None, _STEP),
    Row("vision_config image_token_id projector_bias", "of pictures, which are not taken", None, _families("step3p7")),
    Row(
        "block_dim block_mlp_init_scale block_norm_eps block_out_init_scale block_use_swiglu block_use_xavier_init "
        "conv_dim conv_dim_out conv_use_xavier_init num_heads theta use_pos_enc",
        "of Liquid AI's training code; the classes of transformers read none of it",
        None,
        _LFM2,
    ),
    Row("conv_bias", "false: no bias, and one in the file that has no place would be refused", (False,), _LFM2),
    Row("attn_output_gate", "true: what this family does", (True,), _QWEN3_5 | {"qwen3_next"}),
    Row("mamba_ssm_dtype", "what a sequence keeps is float32 here", None, _QWEN3_5),
    Row("mtp_use_dedicated_embeddings", "of layers that draft, which are not run", None, _QWEN3_5),
    Row("mlp_only_layers", "empty: what every layer has is the same", (), _QWEN3_5),
    Row("norm_topk_prob", "true: what this family does", (True,), _families("qwen3_5_moe qwen3_5_moe_text")),
    Row(
        "vision_config image_token_id video_token_id vision_start_token_id vision_end_token_id",
        "of pictures, which are not taken",
        None,
        _families("qwen3_5 qwen3_5_moe"),
    ),
    Row(
        "linear_a_log_min linear_a_log_max linear_dt_min linear_dt_max linear_dt_init_floor",
        "of weights before training",
        None,
        _families("olmo_hybrid"),
    ),
    Row("load_balance_coeff use_grouped_mm", "of training, and of the code that runs it", None, _families("afmoe")),
    Row(
        "use_mrope rope_interleaved use_sliding_window use_bidirectional_attention "
        "is_encoder_decoder is_decoder add_cross_attention tie_encoder_decoder",
        "false: off",
        (False,),
    ),
    Row(
        "attention_bias mlp_bias use_bias bias qkv_bias lm_head_bias",
        "false: no bias, and one in the file that has no place would be refused",
        (False,),
    ),
    Row("is_causal", "true: what a decoder does", (True,), but=_ENCODERS),
    Row("is_causal", "false: what an encoder does", (False,), _ENCODERS),
    Row("layer_types", "full attention everywhere: what a layer does without a window", ("full_attention",)),
    Row(
        "embedding_multiplier residual_multiplier logits_scaling logit_scale partial_rotary_factor "
        "routed_scaling_factor",
        "1: no factor",
        (1,),
    ),
    Row(
        "num_local_experts num_experts n_routed_experts n_shared_experts shared_intermediate_size "
        "shared_expert_intermediate_size num_nextn_predict_layers first_k_dense_replace",
        "0: the model has no such part",
        (0,),
    ),
    Row("sentence_transformers_pooling.word_embedding_dimension", "the width of the vectors is the model's"),
    Row("sentence_transformers_pooling.include_prompt", "true: what is done", (True,)),
)


def reason(form: Literal["gguf", "safetensors"], family: str, key: str, value: Any) -> str | None:
    """Why `key` = `value`, which nothing reads, is harmless in a file of `family`; None: nobody knows that it is.

    `key` is the file's own less GGUF's `architecture.` and less `text_config.`
    """
    rows = GGUF if form == "gguf" else CONFIG_JSON
    return next((row.reason for row in rows if row.covers(key, value, family)), None)
