"""No setting of a file is passed over in silence: it is read, known to be harmless, refused, or left out on the user's
word. What counts as harmless is held against the references: llama.cpp's sources and transformers' models."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf_export
import numpy as np
import peer
import pytest
import test_bert
import tiny_bert
import tiny_models
from family_cases import WRAPPERS
from numpy_executor import NumpyExecutor

import kamado
from kamado.errors import CheckpointError, UnsupportedError
from kamado.files import open_checkpoint
from kamado.files.types import Checkpoint
from kamado.models import build_program, harmless
from kamado.models.config import Config

HF_FAMILIES = (*sorted(tiny_models.CONFIGS), *WRAPPERS, "bert")
# What is exported for each architecture of GGUF, the first by name of several; of llama the one with experts.
GGUF_SOURCES = {
    case.gguf.called: name for name, case in sorted(tiny_models.FAMILIES.items(), reverse=True) if case.gguf is not None
} | {"llama": "mixtral", "bert": "bert"}
# Families that transformers has.
REFERENCES = [name for name in HF_FAMILIES if name in ("bert", *WRAPPERS) or tiny_models.FAMILIES[name].has_reference]
ODD = (3, "odd", True)  # values that are neither off nor what a family does anyway


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Checkpoint]:
    """A tiny model by (format, family), opened once."""
    known: dict[tuple[str, str], Checkpoint] = {}

    def get(form: str, family: str) -> Checkpoint:
        if (form, family) not in known:
            folder = tmp_path_factory.mktemp(f"{form}-{family}")
            known[form, family] = _hf(folder, family) if form == "safetensors" else _gguf(folder, family)
        return known[form, family]

    return get


def _hf(folder: Path, family: str) -> Checkpoint:
    if family == "bert":
        return open_checkpoint(tiny_bert.write(folder))
    if family not in WRAPPERS:
        return open_checkpoint(tiny_models.write(folder, family))
    text = WRAPPERS[family].text
    tiny_models.write(folder, text)
    config = {"model_type": family, "text_config": {"model_type": text, **tiny_models.CONFIGS[text]}}
    config["tie_word_embeddings"] = "lm_head.weight" not in tiny_models.shapes(text)
    (folder / "config.json").write_text(json.dumps(config))
    return open_checkpoint(folder)


def _gguf(folder: Path, family: str) -> Checkpoint:
    if family == "bert":
        return test_bert.renamed_to_gguf(open_checkpoint(tiny_bert.write(folder)))
    tiny_models.write(folder, GGUF_SOURCES[family])
    return open_checkpoint(gguf_export.export(folder, folder / "model.gguf"))


def with_keys(checkpoint: Checkpoint, changes: dict[str, Any]) -> Checkpoint:
    """The same with other settings, by names without GGUF's prefix; those of a text part begin with text_config."""
    prefix = f"{checkpoint.architecture}." if checkpoint.format == "gguf" else ""
    metadata = dict(checkpoint.metadata)
    for key, value in changes.items():
        if key.startswith("text_config."):
            metadata["text_config"] = {**metadata["text_config"], key.removeprefix("text_config."): value}
        else:
            metadata[prefix + key] = value
    return dataclasses.replace(checkpoint, metadata=metadata)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """Names of the settings that were read, as the file writes them."""
    names: set[str] = set()
    get, known = Config.get, Config.known
    monkeypatch.setattr(Config, "get", lambda c, key: (names.add(c.prefix + key), get(c, key))[1])
    monkeypatch.setattr(Config, "known", lambda c, keys: (names.update(c.prefix + k for k in keys), known(c, keys))[1])
    return names


def outcome(checkpoint: Checkpoint, key: str, value: Any, read: set[str]) -> str:
    """What becomes of `key` = `value`: "refused" by name, "read" or "harmless". Anything else is a failure."""
    changed = with_keys(checkpoint, {key: value})
    name = f"{checkpoint.architecture}.{key}" if checkpoint.format == "gguf" else key
    read.clear()
    try:
        build_program(changed)
    except CheckpointError as fault:
        if name in read:
            return "read"
        if name in str(fault):
            return "refused"
        raise
    if name in read:
        return "read"
    place = key.removeprefix("text_config.")
    assert harmless.reason(checkpoint.format, checkpoint.architecture, place, value), f"{name} = {value!r} was not seen"
    return "harmless"


# --- the rule ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", GGUF_SOURCES)
def test_an_unread_key_of_a_gguf_file_is_refused_by_name(family: str, checkpoints: Any) -> None:
    odd = with_keys(checkpoints("gguf", family), {"new_scale": 2.5})
    with pytest.raises(UnsupportedError, match=rf"'{family}\.new_scale' is 2\.5.*--allow-unknown {family}\.new_scale"):
        build_program(odd)
    assert build_program(odd, [f"{family}.new_scale"]).overridden == (f"{family}.new_scale",)


@pytest.mark.parametrize("family", HF_FAMILIES)
def test_an_unread_key_of_config_json_is_refused_by_name(family: str, checkpoints: Any) -> None:
    for key in ("new_scale", *(["text_config.new_scale"] if family in WRAPPERS else [])):
        odd = with_keys(checkpoints("safetensors", family), {key: 2.5})
        with pytest.raises(UnsupportedError, match=rf"'{key}' is 2\.5.*--allow-unknown {key}"):
            build_program(odd)
        assert build_program(odd, [key]).overridden == (key,)


def test_all_unread_keys_are_named_at_once(checkpoints: Any) -> None:
    odd = with_keys(checkpoints("gguf", "llama"), {"new_scale": 2.5, "attention.sinks": True})
    with pytest.raises(
        UnsupportedError, match=r"--allow-unknown llama\.new_scale --allow-unknown llama\.attention\.si"
    ):
        build_program(odd)
    with pytest.raises(UnsupportedError, match=r"'llama\.attention\.sinks' is True, which"):
        build_program(odd, ["llama.new_scale"])


def test_keys_of_nested_objects_are_held_to_the_same_rule(checkpoints: Any) -> None:
    rope = {"rope_type": "linear", "factor": 2.0, "spin": 3}
    odd = with_keys(checkpoints("safetensors", "qwen3"), {"rope_scaling": rope})
    with pytest.raises(UnsupportedError, match=r"'rope_scaling\.spin' is 3"):
        build_program(odd)
    assert build_program(odd, ["rope_scaling.spin"]).overridden == ("rope_scaling.spin",)
    both = with_keys(odd, {"rope_parameters": {"rope_theta": 1e4, "turn": 1}})
    with pytest.raises(UnsupportedError, match=r"'rope_scaling\.turn' is 1"):
        build_program(both, ["rope_scaling.spin"])
    pooling = {"pooling_mode_mean_tokens": True, "include_prompt": False, "word_embedding_dimension": 48}
    odd = with_keys(checkpoints("safetensors", "bert"), {"sentence_transformers_pooling": pooling})
    with pytest.raises(UnsupportedError, match=r"'sentence_transformers_pooling\.include_prompt' is False"):
        build_program(odd)


def test_null_counts_as_absent_and_other_prefixes_are_nobodys(checkpoints: Any) -> None:
    assert (
        build_program(with_keys(checkpoints("safetensors", "llama"), {"new_scale": None, "other": {}})).overridden == ()
    )
    checkpoint = checkpoints("gguf", "llama")
    more = {"general.new": 1, "quantize.imatrix.file": "x", "split.new": 2, "llama4.new_scale": 3}
    assert build_program(dataclasses.replace(checkpoint, metadata={**checkpoint.metadata, **more})).overridden == ()


def test_an_override_reaches_no_key_that_is_read(checkpoints: Any) -> None:
    odd = with_keys(checkpoints("gguf", "llama"), {"expert_gating_func": 2})
    with pytest.raises(UnsupportedError, match="expert_gating_func"):
        build_program(odd, ["llama.expert_gating_func"])
    plain = checkpoints("gguf", "llama")
    assert build_program(plain, ["llama.block_count", "llama.vocab_size", "llama.none"]).overridden == ()


def test_what_is_left_out_changes_nothing_else(checkpoints: Any) -> None:
    plain = checkpoints("gguf", "qwen2")
    odd = build_program(with_keys(plain, {"new_scale": 2.5}), ["qwen2.new_scale"])
    assert np.array_equal(NumpyExecutor(odd).forward([1, 2, 3]), NumpyExecutor(build_program(plain)).forward([1, 2, 3]))


def test_load_takes_keys_to_leave_out(write_tiny: Callable[..., Path]) -> None:
    path = write_tiny(new_scale=2.5)
    with pytest.raises(kamado.UnsupportedError, match=r"llama\.new_scale"):
        kamado.load(path, context=64)
    for allowed in (["llama.new_scale"], "llama.new_scale"):
        with kamado.load(path, context=64, allow_unknown=allowed) as model:
            assert model.plan.overridden == ("llama.new_scale",)
            assert model.plan.to_dict()["overridden"] == ("llama.new_scale",)


# --- what files in the wild have --------------------------------------------------------------------------------------

_CONVERTED = {  # beside what tests/models/gguf_export.py writes, and `Gguf.keys` in families/
    "llama": {
        "vocab_size": 97,
        "rope.dimension_count": 16,
        "rope.scaling.finetuned": False,
        "tensor_data_layout": "Meta AI original pth",
        "attention.layer_norm_epsilon": 1e-5,
        "attention.causal": True,
    },
    "qwen2": {
        "vocab_size": 97,
        "use_parallel_residual": True,
        "expert_count": 0,
        "expert_used_count": 0,
        "rope.dimension_count": 16,
    },
    "qwen3": {"pooling_type": 3, "vocab_size": 97, "rope.scaling.type": "none", "rope.scaling.yarn_beta_fast": 32.0},
    "qwen3moe": {"expert_shared_feed_forward_length": 0, "rope.scaling.finetuned": True, "expert_weights_scale": 1.0},
    "gemma3": {"attention.sliding_window_pattern": 6, "attn_logit_softcapping": 0.0, "rope.scaling.factor": 8.0},
    "olmoe": {"attention.clamp_kqv": 0.0, "expert_gating_func": 1, "expert_group_count": 1},
    "granitemoe": {"expert_shared_feed_forward_length": 0, "expert_feed_forward_length": 64},
    "bert": {"vocab_size": 97, "classifier.output_labels": ["a", "b"], "rope.freq_base": 10000.0},
}


@pytest.mark.parametrize("family", GGUF_SOURCES)
def test_what_converters_write_is_taken(family: str, checkpoints: Any) -> None:
    case = tiny_models.FAMILIES.get(GGUF_SOURCES[family])
    written = {**_CONVERTED.get(family, {}), **(case.gguf.keys if case and case.gguf else {})}
    assert build_program(with_keys(checkpoints("gguf", family), written)).overridden == ()


_ALL = {
    "architectures": None,
    "transformers_version": "5.23.0",
    "torch_dtype": "bfloat16",
    "dtype": "bfloat16",
    "use_cache": True,
    "initializer_range": 0.02,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": [2, 3],
    "pad_token_id": 0,
    "_attn_implementation_autoset": True,
    "unsloth_version": "2025.9",
    "auto_map": {"AutoModel": "modeling.py"},
    "id2label": {"0": "LABEL_0"},
    "temperature": 1.0,
}
_PUBLISHED = {
    "afmoe": {
        "route_norm": True, "score_func": "sigmoid", "n_group": 1, "topk_group": 1, "num_expert_groups": 1,
        "num_limited_groups": 1, "load_balance_coeff": 0.001, "use_grouped_mm": True, "rope_scaling": None,
        "global_attn_every_n_layers": 4,
    },
    "llama": {
        "pretraining_tp": 1, "is_llama_config": True, "rope_interleaved": False, "mlp_bias": False,
        "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}}, "max_sequence_length": 2048,
    },
    "mistral": {"head_dim": 16},
    "mixtral": {"output_router_logits": False, "router_aux_loss_coef": 0.02, "router_jitter_noise": 0.1},
    "qwen2": {"use_mrope": False, "use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 21},
    "qwen3": {"layer_types": ["full_attention"] * 3, "max_window_layers": 3},
    "qwen3_moe": {
        "qkv_bias": False, "use_qk_norm": True, "shared_expert_intermediate_size": 0, "max_window_layers": 28,
        "decoder_sparse_step": 1, "mlp_only_layers": [], "router_aux_loss_coef": 0.0, "num_local_experts": 5,
    },
    "gemma3_text": {
        "cache_implementation": "hybrid", "attn_logit_softcapping": None, "_sliding_window_pattern": 6,
        "use_bidirectional_attention": False, "hidden_act": "gelu_pytorch_tanh",
    },
    "gemma3": {
        "boi_token_index": 5, "eoi_token_index": 6, "image_token_index": 7, "mm_tokens_per_image": 256,
        "vision_config": {"hidden_size": 16}, "tie_word_embeddings": True, "text_config.torch_dtype": "bfloat16",
    },
    "gemma4": {
        "audio_config": {"hidden_size": 16}, "audio_token_id": 5, "boa_token_id": 6, "boi_token_id": 7,
        "eoa_token_index": 8, "eoi_token_id": 9, "video_token_id": 10, "vision_soft_tokens_per_image": 280,
        "tie_word_embeddings": True, "text_config.dtype": "bfloat16",
    },
    "mistral3": {
        "vision_config": {"hidden_size": 16}, "image_token_index": 10, "multimodal_projector_bias": False,
        "projector_hidden_act": "gelu", "spatial_merge_size": 2, "vision_feature_layer": -1,
    },
    "step3p5": {
        "num_attention_groups": 2, "moe_num_experts": 5, "moe_top_k": 2, "norm_expert_weight": True, "use_moe": True,
        "moe_router_activation": "sigmoid", "use_head_wise_attn_gate": True, "use_moe_router_bias": True, "sink": False,
        "need_fp32_gate": True, "zero_centered": True, "yarn_only_types": ["full_attention"], "use_mfa": False,
        "moe_every_n_layer": 1, "moe_layer_offset": 0, "att_impl_type": "GQA", "use_rope_layers": [],
        "max_seq_len": 512,
        "attention_other_setting": {
            "attention_type": "sliding_attention", "num_attention_heads": 8, "num_attention_groups": 2, "head_dim": 16,
            "true_head_dim": 16,
        },
    },
    "step3p7": {"vision_config": {"hidden_size": 16}, "projector_bias": False, "image_token_id": 90},
    "olmoe": {"clip_qkv": None, "output_router_logits": False, "layer_types": None},
    "granitemoe": {"output_router_logits": True, "attention_bias": False},
    "bert": {
        "gradient_checkpointing": False, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
        "classifier_dropout": 0.1, "directionality": "bidi", "pooler_type": "first_token_transform",
        "sentence_transformers_pooling": {
            "word_embedding_dimension": 48, "pooling_mode_mean_tokens": True, "include_prompt": True,
        },
    },
}  # fmt: skip


@pytest.mark.parametrize("family", HF_FAMILIES)
def test_what_published_config_json_have_is_taken(family: str, checkpoints: Any) -> None:
    checkpoint, case = checkpoints("safetensors", family), tiny_models.FAMILIES.get(family)
    published = {**_ALL, **_PUBLISHED.get(family, {}), **(case.published if case else {})}
    assert build_program(with_keys(checkpoint, published)).overridden == ()


@pytest.mark.parametrize(
    ("form", "family", "key", "value"),
    [
        ("safetensors", "llama", "use_qk_norm", True),
        ("safetensors", "llama", "sliding_window", 64),
        ("safetensors", "llama", "layer_types", ["full_attention", "sliding_attention", "full_attention"]),
        ("safetensors", "qwen3_moe", "use_qk_norm", False),
        ("safetensors", "gemma3_text", "attention_bias", True),
        ("safetensors", "olmoe", "sliding_window", 64),
        ("safetensors", "bert", "is_encoder_decoder", True),
        ("gguf", "llama", "attention.layer_norm_rms_epsilon_swa", 1e-5),
        ("gguf", "qwen3", "attention.sliding_window", 64),
        ("gguf", "qwen2", "expert_count", 8),
        ("gguf", "bert", "expert_used_count", 2),
        ("gguf", "olmoe", "expert_shared_feed_forward_length", 64),
        ("gguf", "gemma3", "attn_logit_softcapping", 50.0),
    ],
)
def test_what_is_off_in_one_family_is_not_harmless_in_another(
    form: str, family: str, key: str, value: Any, checkpoints: Any
) -> None:
    with pytest.raises(UnsupportedError, match=key):
        build_program(with_keys(checkpoints(form, family), {key: value}))


def test_every_row_has_a_reason_and_no_key_is_named_twice_for_a_family() -> None:
    for rows, families in ((harmless.GGUF, set(GGUF_SOURCES)), (harmless.CONFIG_JSON, set(HF_FAMILIES))):
        seen: set[tuple[str, str]] = set()
        for row in rows:
            assert row.reason
            assert any(row.is_for(family) for family in families), row
            if row.values is not None:
                continue
            for key in row.keys.split():
                for family in filter(row.is_for, families):
                    assert (key, family) not in seen, (key, family)
                    seen.add((key, family))


# --- llama.cpp's keys -------------------------------------------------------------------------------------------------

# Keys that llama.cpp reads when it loads one of these architectures, though no row of its forward pass depends on them:
# what it keeps them in, which its model files and graphs must not name.
_KEPT_ONLY = {
    "LLM_KV_ROPE_SCALING_FINETUNED": "rope_finetuned",
    "LLM_KV_CLASSIFIER_OUTPUT_LABELS": "classifier_labels",
}


@pytest.fixture(scope="session")
def peer_sources() -> dict[str, str]:
    return peer.sources()


@pytest.mark.parity
@pytest.mark.parametrize("family", GGUF_SOURCES)
def test_no_key_of_llama_cpp_is_unseen(
    family: str, peer_sources: dict[str, str], checkpoints: Any, read: set[str]
) -> None:
    keys = peer.keys(peer_sources["llama-arch.cpp"])
    assert len(keys) > 100
    checkpoint = checkpoints("gguf", family)
    found = {(key, outcome(checkpoint, key, value, read)) for key in keys.values() for value in ODD}
    assert {kind for _, kind in found} == {"read", "harmless", "refused"}
    assert ("block_count", "read") in found
    assert ("wkv.head_size", "refused") in found


@pytest.mark.parity
@pytest.mark.parametrize("family", GGUF_SOURCES)
def test_llama_cpp_does_not_read_what_is_harmless_whatever_it_says(family: str, peer_sources: dict[str, str]) -> None:
    if f'"{family}"' not in peer_sources["llama-arch.cpp"]:
        pytest.skip("llama.cpp does not have this family")
    own = peer.model_file(peer_sources, family)
    common = peer_sources["llama-model.cpp"]
    for name, key in peer.keys(peer_sources["llama-arch.cpp"]).items():
        if harmless.reason("gguf", family, key, object()) is None:
            continue
        if name in _KEPT_ONLY:
            assert _KEPT_ONLY[name] not in own, (family, key)
        elif family == "bert" and key.startswith("rope."):
            turned = own.partition("ggml_rope_ext")[0].rpartition("if (")[2]
            assert "LLM_ARCH_NOMIC_BERT" in turned
            assert "LLM_ARCH_BERT" not in turned
        elif name == "LLM_KV_VOCAB_SIZE":  # a local variable, for the name of the model's size
            assert f"{name}, n_vocab, false" in own or name not in own
            assert name not in common
        else:
            assert name not in own, (family, key)
            assert name not in common, (family, key)


# --- transformers' attributes -----------------------------------------------------------------------------------------


def _attributes(family: str) -> dict[str, Any]:
    """Public attributes of a family's configuration class and its other names for them, with their defaults."""
    import transformers

    config = transformers.AutoConfig.for_model(family)
    stated = config.to_dict()  # of Gemma 4 what differs from layer to layer can be asked for in no other way
    names = {*stated, *config.attribute_map, *(key for key in vars(config) if not key.startswith("_"))}
    return {key: stated[key] if key in stated else getattr(config, key, None) for key in sorted(names)}


@pytest.mark.parity
@pytest.mark.parametrize("family", REFERENCES)
def test_no_attribute_of_transformers_is_unseen(family: str, checkpoints: Any, read: set[str]) -> None:
    attributes: dict[str, Any] = {}
    for other in REFERENCES:
        attributes |= _attributes(other)
    assert len(attributes) > 60
    checkpoint = checkpoints("safetensors", family)
    found = set()
    for key, default in attributes.items():
        if key == "text_config" and family in WRAPPERS:
            continue  # the place of the others
        plain = default if isinstance(default, bool | int | float | str | list | None) else 3
        for value in (plain, *ODD):
            if value is not None:
                found.add((key, outcome(checkpoint, key, value, read)))
                if family in WRAPPERS:
                    found.add((key, outcome(checkpoint, f"text_config.{key}", value, read)))
    assert {kind for _, kind in found} == {"read", "harmless", "refused"}
    assert ("hidden_size", "read") in found
    assert ("initializer_range", "harmless") in found


# What chooses the class, the code that runs it or the form of what a call returns.
_NOT_GIVEN = ("model_type", "attn_implementation", "_attn_implementation", "return_dict", "use_return_dict")

# Two values of the type that the attribute has; of others, two numbers.
_TWO: dict[str, tuple[Any, Any]] = {
    "architectures": (["A"], ["B"]),
    "auto_map": ({}, {"AutoModel": "x.Y"}),
    "_name_or_path": ("a", "b"),
    "transformers_version": ("4.0.0", "5.0.0"),
    "dtype": ("float32", "bfloat16"),
    "torch_dtype": ("float32", "bfloat16"),
    "id2label": ({0: "a", 1: "b"}, {0: "c", 1: "d"}),
    "label2id": ({"a": 0, "b": 1}, {"c": 0, "d": 1}),
    "num_labels": (2, 3),
    "cache_implementation": ("hybrid", "static"),
    "problem_type": ("regression", "single_label_classification"),
    "pad_token_id": (0, 5),
    "hidden_act": ("silu", "gelu"),
    "vision_config": ({"layer_norm_eps": 1e-6}, {"layer_norm_eps": 0.5}),
    "audio_config": ({"layer_norm_eps": 1e-6}, {"layer_norm_eps": 0.5}),
    "projector_hidden_act": ("gelu", "silu"),
    "vision_feature_layer": (-1, 0),
    "spatial_merge_size": (1, 2),
    "mtp_layer_types": (["full_attention"], ["sliding_attention"]),
    "mtp_mlp_layer_types": (["dense"], ["sparse"]),
    "mm_tokens_per_image": (1, 4),
    "image_token_index": (91, 92),
    "image_token_id": (93, 94),
    "video_token_id": (93, 94),
    "audio_token_id": (93, 94),
    "vision_start_token_id": (93, 94),
    "vision_end_token_id": (93, 94),
    "suppress_tokens": ([], [1]),
    "begin_suppress_tokens": ([], [1]),
    "bad_words_ids": ([[1]], [[2]]),
    "time_step_limit": ([0.0, 1.0], [0.001, 2.0]),
}
_FLAGS = (  # noqa: SIM905
    "tie_word_embeddings use_cache output_attentions output_hidden_states output_router_logits gradient_checkpointing "
    "torchscript use_bfloat16 do_sample early_stopping output_scores return_dict_in_generate remove_invalid_values "
    "tf_legacy_loss is_llama_config attn_implementation_autoset _attn_implementation_autoset _flash_attn_2_enabled "
    "output_past multimodal_projector_bias projector_bias"
).split()
_COUNTS = (  # noqa: SIM905
    "bos_token_id eos_token_id sep_token_id cls_token_id mask_token_id unk_token_id decoder_start_token_id "
    "pretraining_tp max_window_layers chunk_size_feed_forward top_k num_beams num_beam_groups num_return_sequences "
    "max_length min_length no_repeat_ngram_size encoder_no_repeat_ngram_size boi_token_index eoi_token_index "
    "boi_token_id eoi_token_id boa_token_id eoa_token_id eoa_token_index "
    "vision_soft_tokens_per_image forced_bos_token_id forced_eos_token_id eod_token_id"
).split()


def _two_values(key: str) -> tuple[Any, Any]:
    if key in _TWO:
        return _TWO[key]
    return (False, True) if key in _FLAGS else (1, 3) if key in _COUNTS else (0.125, 0.75)


class _Reference:
    """transformers' model of a family on a few tokens, with the same weights whatever the settings say."""

    def __init__(self, family: str) -> None:
        self._family = family
        self._weights = self._model({}).state_dict()

    def _model(self, changes: dict[str, Any]) -> Any:
        import torch
        import transformers
        from model_cases import quiet

        wrapper = WRAPPERS.get(self._family)
        family = tiny_models.CONFIGS[wrapper.text if wrapper else self._family] if self._family != "bert" else None
        small = dict(family or tiny_bert.CONFIG)
        if "mlp_layer_types" in small:  # a list of as many
            small["layer_types"] = None
        elif "num_kv_shared_layers" not in small:  # of few layers none would be left to share
            small["num_hidden_layers"] = 2
            small["layer_types"] = (small.get("layer_types") or [])[:2] or None
        small = {key: value for key, value in small.items() if value is not None and key != "model_type"}
        if wrapper:
            small = {"text_config": {"model_type": wrapper.text, **small}, **wrapper.beside}
            changes = {
                **changes,
                "vision_config": {**wrapper.beside["vision_config"], **changes.get("vision_config", {})},
            }
        auto = {"bert": transformers.AutoModel, **dict.fromkeys(WRAPPERS, transformers.AutoModelForImageTextToText)}
        with quiet():
            torch.manual_seed(0)
            config = transformers.AutoConfig.for_model(self._family, **{**small, **changes})
            kind = auto.get(self._family, transformers.AutoModelForCausalLM)
            return kind.from_config(config, dtype=torch.float32).eval()

    def answer(self, changes: dict[str, Any]) -> np.ndarray:
        import torch

        model = self._model(changes)
        own = model.state_dict()  # what looks at pictures may have other shapes
        fitting = {name: v for name, v in self._weights.items() if name in own and own[name].shape == v.shape}
        model.load_state_dict(fitting, strict=False)
        with torch.no_grad():
            answer = model(input_ids=torch.tensor([[5, 1, 7, 3, 9, 2]]))
        return (answer.last_hidden_state if self._family == "bert" else answer.logits).numpy()


@pytest.mark.parity
@pytest.mark.parametrize("family", REFERENCES)
def test_what_is_harmless_gives_transformers_equal_logits(family: str, checkpoints: Any, read: set[str]) -> None:
    """Attributes of other models, too: a configuration takes every key, whether its class has it or not."""
    build_program(checkpoints("safetensors", family))
    reference = _Reference(family)
    plain = reference.answer({})
    for row in harmless.CONFIG_JSON:
        if not row.is_for(family):
            continue
        for key in row.keys.split():
            if key in (*read, *_NOT_GIVEN) or "*" in key or "." in key:
                continue
            if (key, family) == ("output_router_logits", "granitemoehybrid"):
                continue  # transformers looks for the routers of a model that has none
            for value in _two_values(key) if row.values is None else row.values:
                given = [value] * 2 if key == "layer_types" else value
                answer = reference.answer({key: given})
                if key == "chunk_size_feed_forward":  # by other products of matrices, which round otherwise
                    assert np.abs(answer - plain).max() < 1e-5
                else:
                    assert np.array_equal(answer, plain), (family, key, value)
