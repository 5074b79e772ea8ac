"""What a file may not say: every fault is a typed error that names the key or tensor, and the file."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy_executor import NumpyExecutor, read_tensor

from kamado.errors import CheckpointError, KamadoError, MetadataError, MissingTensorError, UnsupportedError
from kamado.files import open_checkpoint
from kamado.files.types import Checkpoint, Layout, TensorRef
from kamado.models import build_program, supported_architectures
from kamado.models.config import Config

FAMILIES = sorted(tiny_models.CONFIGS)


def opened(tmp_path: Path, family: str, **changes: Any) -> Checkpoint:
    return open_checkpoint(tiny_models.write(tmp_path, family, **changes))


def as_gguf(family: str, checkpoint: Checkpoint, settings: dict[str, Any], names: dict[str, str]) -> Checkpoint:
    """`checkpoint` with GGUF settings and renamed tensors, no file written."""
    tensors = {names.get(name, name): ref for name, ref in checkpoint.tensors.items()}
    tensors = {name: dataclasses.replace(ref, name=name) for name, ref in tensors.items()}
    return dataclasses.replace(
        checkpoint,
        format="gguf",
        architecture=family,
        metadata={f"{family}.{key}": value for key, value in settings.items()},
        tensors=tensors,
    )


def gguf_llama(tmp_path: Path, family: str = "llama", **changes: Any) -> Checkpoint:
    """A tiny llama or mixtral as a GGUF checkpoint; keys of `changes` have __ for dots."""
    names = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    parts = {
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "block_sparse_moe.gate": "ffn_gate_inp",
    }
    for e in range(tiny_models.EXPERTS):  # as files of December 2023 have them
        for hf, gguf in (("w1", "gate"), ("w2", "down"), ("w3", "up")):
            parts[f"block_sparse_moe.experts.{e}.{hf}"] = f"ffn_{gguf}.{e}"
    for i in range(tiny_models.LAYERS):
        for hf, gguf in parts.items():
            names[f"model.layers.{i}.{hf}.weight"] = f"blk.{i}.{gguf}.weight"
    values: dict[str, Any] = {
        "block_count": tiny_models.LAYERS,
        "context_length": 512,
        "embedding_length": tiny_models.HIDDEN,
        "feed_forward_length": tiny_models.FFN,
        "attention.head_count": tiny_models.HEADS,
        "attention.head_count_kv": tiny_models.KV_HEADS,
        "attention.key_length": tiny_models.HEAD_DIM,
        "attention.value_length": tiny_models.HEAD_DIM,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.dimension_count": tiny_models.HEAD_DIM,
    }
    for key, value in changes.items():
        values[key.replace("__", ".")] = value
    values = {key: value for key, value in values.items() if value is not None}
    return as_gguf("llama", opened(tmp_path, family), values, names)


def test_an_unknown_architecture_names_the_known_ones(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path, "llama", model_type="phi9")
    with pytest.raises(UnsupportedError, match=r"'phi9' is not supported.*gemma3, gemma3_text.*qwen3_moe"):
        build_program(checkpoint)
    assert "granitemoe" in supported_architectures()


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_scaling.rope_type.*'dynamic'"),
        ("llama", {"rope_scaling": {"type": "su", "factor": 2.0}}, "rope_type.*'su'"),
        ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "spin": 3}}, "rope_scaling.spin"),
        ("llama", {"rope_scaling": None, "partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("llama", {"hidden_act": "mish"}, "hidden_act.*'mish'"),
        ("llama", {"sliding_window": 64}, "sliding_window"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config"),
        ("llama", {"architectures": ["LlamaForSequenceClassification"]}, "architectures.*SequenceClassification"),
        ("llama", {"is_causal": False}, "is_causal"),
        ("mistral", {"layer_types": ["full_attention", "sliding_attention", "full_attention"]}, "layer_types"),
        ("qwen2", {"layer_types": ["sliding_attention"] * 3}, "layer_types.*no sliding window"),
        ("qwen2", {"layer_types": ["chunked_attention"] * 3}, "layer_types.*chunked_attention"),
        ("qwen3", {"num_experts": 8}, "num_experts"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("olmoe", {"clip_qkv": 8.0}, "clip_qkv"),
        ("granitemoe", {"shared_intermediate_size": 64}, "shared_intermediate_size"),
    ],
)
def test_settings_that_cannot_be_honoured(family: str, changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=words) as fault:
        build_program(opened(tmp_path, family, **changes))
    assert str(tmp_path) in str(fault.value)


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("llama", {"hidden_size": None}, "required key 'hidden_size'"),
        ("llama", {"hidden_size": "48"}, "'hidden_size' must be an integer"),
        ("llama", {"hidden_size": True}, "'hidden_size' must be an integer"),
        ("llama", {"num_hidden_layers": 0}, "'num_hidden_layers' must lie in"),
        ("llama", {"num_hidden_layers": 10**12}, "'num_hidden_layers' must lie in"),
        ("llama", {"num_attention_heads": 5}, "no multiple"),
        ("llama", {"head_dim": 15}, "even"),
        ("llama", {"rms_norm_eps": -1.0}, "'rms_norm_eps' must lie in"),
        ("llama", {"rms_norm_eps": 10**400}, "'rms_norm_eps' must lie in"),
        ("llama", {"tie_word_embeddings": 1}, "'tie_word_embeddings' must be true or false"),
        ("llama", {"rope_scaling": "linear"}, "'rope_scaling' must be an object"),
        ("llama", {"rope_scaling": {"rope_type": "linear"}}, "required key 'rope_scaling.factor'"),
        (
            "llama",
            {"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "rope_parameters": {"factor": 4.0}},
            "'rope_scaling.factor' is 2.0 while 'rope_parameters.factor' is 4.0",
        ),
        ("mixtral", {"num_experts_per_tok": 6}, "'num_experts_per_tok' is 6, more than"),
        ("mixtral", {"num_experts": 7}, "'num_local_experts' is 5 while 'num_experts' is 7"),
        ("gemma3_text", {"layer_types": ["full_attention"]}, "'layer_types' has 1 entries"),
    ],
)
def test_impossible_settings(family: str, changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(MetadataError, match=words) as fault:
        build_program(opened(tmp_path, family, **changes))
    assert str(tmp_path) in str(fault.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_is_needed_and_no_other_is_taken(family: str, tmp_path: Path) -> None:
    checkpoint = opened(tmp_path, family)
    build_program(checkpoint)
    for name in checkpoint.tensors:
        fewer = {key: ref for key, ref in checkpoint.tensors.items() if key != name}
        with pytest.raises(MissingTensorError, match=name.replace(".", r"\.")):
            build_program(dataclasses.replace(checkpoint, tensors=fewer))
    extra = next(iter(checkpoint.tensors.values()))
    more = {**checkpoint.tensors, "model.layers.0.self_attn.spare": extra}
    with pytest.raises(UnsupportedError, match=r"model\.layers\.0\.self_attn\.spare"):
        build_program(dataclasses.replace(checkpoint, tensors=more))


def test_a_wrong_shape_is_named(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path, "qwen3", intermediate_size=65)
    words = r"layers\.0\.mlp\.gate_proj\.weight' has shape \(64, 48\).*\(65, 48\)"
    with pytest.raises(MissingTensorError, match=words):
        build_program(checkpoint)


def test_a_quantised_norm_is_refused(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path, "llama")
    name = "model.norm.weight"
    tensors = {**checkpoint.tensors, name: dataclasses.replace(checkpoint.tensors[name], layout=Layout.Q8_0)}
    with pytest.raises(UnsupportedError, match=r"model\.norm\.weight.*Q8_0"):
        build_program(dataclasses.replace(checkpoint, tensors=tensors))


def test_position_tables_of_old_exports_are_ignored(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path, "llama")
    extra = next(iter(checkpoint.tensors.values()))
    more = {**checkpoint.tensors, "model.layers.0.self_attn.rotary_emb.inv_freq": extra}
    build_program(dataclasses.replace(checkpoint, tensors=more))


def test_an_output_matrix_in_the_file_wins_over_a_tie(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path, "llama")
    table = checkpoint.tensors["model.embed_tokens.weight"]
    head = dataclasses.replace(table, name="lm_head.weight")
    program = build_program(dataclasses.replace(checkpoint, tensors={**checkpoint.tensors, "lm_head.weight": head}))
    assert program.ops[-1].weight.name == "lm_head.weight"  # type: ignore[union-attr]
    assert build_program(checkpoint).ops[-1].weight == table  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"block_count": None}, MetadataError, "required key 'llama.block_count'"),
        ({"block_count": 2**40}, MetadataError, "'llama.block_count' must lie in"),
        ({"block_count": 4}, MissingTensorError, r"blk\.3\.attn_norm"),
        ({"feed_forward_length": [64, 64, 32]}, UnsupportedError, "'llama.feed_forward_length' differs"),
        ({"attention__value_length": 8}, UnsupportedError, "'llama.attention.value_length' is 8"),
        ({"rope__dimension_count": 8}, UnsupportedError, "'llama.rope.dimension_count' is 8"),
        ({"rope__scaling__type": "longrope"}, UnsupportedError, "'llama.rope.scaling.type' is 'longrope'"),
        ({"attention__clamp_kqv": 8.0}, UnsupportedError, "'llama.attention.clamp_kqv'"),
        ({"attention__causal": False}, UnsupportedError, "'llama.attention.causal'"),
        ({"logit_scale": 0.5}, UnsupportedError, "'llama.logit_scale'"),
        ({"expert_count": 4}, MetadataError, "'llama.expert_used_count'"),
        ({"expert_count": 4, "expert_used_count": 5}, MetadataError, "'llama.expert_used_count' is 5"),
        ({"expert_count": 4, "expert_used_count": 2}, MissingTensorError, r"blk\.0\.ffn_gate_inp"),
        (
            {"expert_count": 4, "expert_used_count": 2, "expert_gating_func": 2},
            UnsupportedError,
            "'llama.expert_gating_func'",
        ),
    ],
)
def test_gguf_settings(changes: dict[str, Any], error: type[KamadoError], words: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=words):
        build_program(gguf_llama(tmp_path, **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"feed_forward_length": [64, 64, 64]},
        {"attention__clamp_kqv": 0.0, "attention__causal": True, "expert_count": 0, "logit_scale": 1.0},
        {"rope__scaling__type": "none"},
        {"rope__dimension_count": None, "attention__value_length": None},
    ],
)
def test_gguf_settings_that_change_nothing(changes: dict[str, Any], tmp_path: Path) -> None:
    program = build_program(gguf_llama(tmp_path, **changes))
    assert program.num_layers == tiny_models.LAYERS


def test_a_setting_may_be_one_number_or_one_for_each_layer(tmp_path: Path) -> None:
    def widths(value: Any) -> tuple[int, ...]:
        return Config.of(gguf_llama(tmp_path, feed_forward_length=value)).integers("feed_forward_length", 3)

    assert widths(64) == (64, 64, 64)
    assert widths([64, 32, 96]) == (64, 32, 96)
    for wrong, words in (([64, 32], "has 2 entries"), ([64, 0, 32], "must lie in"), ([64, "x", 32], "an integer")):
        with pytest.raises(MetadataError, match=rf"'llama\.feed_forward_length'.*{words}"):
            widths(wrong)


def test_every_packing_of_experts_gives_the_same_program(tmp_path: Path) -> None:
    """One tensor an expert; stacked; gate on up stacked."""
    checkpoint = gguf_llama(tmp_path, "mixtral", expert_count=tiny_models.EXPERTS, expert_used_count=2)
    separate = NumpyExecutor(build_program(checkpoint)).forward([1, 2, 3])
    for fused in (False, True):
        tensors = {name: ref for name, ref in checkpoint.tensors.items() if not re.search(r"ffn_\w+\.\d", name)}
        for i in range(tiny_models.LAYERS):
            gate, up, down = (
                np.stack([read_tensor(checkpoint.tensors[f"blk.{i}.ffn_{part}.{e}.weight"]) for e in range(5)])
                for part in ("gate", "up", "down")
            )
            stacks = {"gate_up": np.concatenate([gate, up], axis=1)} if fused else {"gate": gate, "up": up}
            for part, values in {**stacks, "down": down}.items():
                name = f"blk.{i}.ffn_{part}_exps.weight"
                path = tmp_path / name
                values.astype("<f4").tofile(path)
                tensors[name] = TensorRef(name, path, 0, values.nbytes, values.shape, Layout.F32)
        program = build_program(dataclasses.replace(checkpoint, tensors=tensors))
        assert np.array_equal(NumpyExecutor(program).forward([1, 2, 3]), separate)


def test_gguf_rope_factors_divide_the_frequencies(tmp_path: Path) -> None:
    checkpoint = gguf_llama(tmp_path)
    half = tiny_models.HEAD_DIM // 2
    factors = np.arange(1, half + 1, dtype="<f4")
    path = tmp_path / "factors"
    path.write_bytes(factors.tobytes())
    ref = TensorRef("rope_freqs.weight", path, 0, factors.nbytes, (half,), Layout.F32)
    program = build_program(dataclasses.replace(checkpoint, tensors={**checkpoint.tensors, ref.name: ref}))
    rope = next(op for op in program.ops if type(op).__name__ == "Rope")
    np.testing.assert_allclose(rope.inv_freq, 10000.0 ** (-np.arange(half) / half) / factors, rtol=1e-14)  # type: ignore[union-attr]
    path.write_bytes(np.zeros(half, "<f4").tobytes())
    with pytest.raises(MetadataError, match="rope_freqs"):
        build_program(dataclasses.replace(checkpoint, tensors={**checkpoint.tensors, ref.name: ref}))


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


_QUICK = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])


def _changes(keys: list[str]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(st.sampled_from(keys), _JSON, min_size=1, max_size=3)


def builds_or_names_the_file(checkpoint: Checkpoint, changes: dict[str, Any]) -> None:
    """No other exception, whatever the settings say."""
    try:
        build_program(dataclasses.replace(checkpoint, metadata={**checkpoint.metadata, **changes}))
    except CheckpointError as fault:
        if str(checkpoint.path) not in str(fault):
            raise


@pytest.mark.parametrize("family", FAMILIES)
@settings(parent=_QUICK, max_examples=60)
@given(data=st.data())
def test_any_config_json_gives_a_program_or_a_typed_error(family: str, tmp_path: Path, data: st.DataObject) -> None:
    if not (tmp_path / "config.json").exists():
        tiny_models.write(tmp_path, family)
    checkpoint = open_checkpoint(tmp_path)
    keys = sorted({*checkpoint.metadata, "rope_scaling", "rope_parameters", "layer_types", "sliding_window"})
    builds_or_names_the_file(
        checkpoint, data.draw(st.dictionaries(st.sampled_from(keys), _JSON, min_size=1, max_size=3))
    )


@settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_gguf_metadata_gives_a_program_or_a_typed_error(tmp_path: Path, data: st.DataObject) -> None:
    checkpoint = gguf_llama(tmp_path)
    more = ["rope.scaling.type", "rope.freq_base", "expert_count", "attention.sliding_window", "attention.scale"]
    keys = sorted({*checkpoint.metadata, *(f"llama.{key}" for key in more)})
    builds_or_names_the_file(
        checkpoint, data.draw(st.dictionaries(st.sampled_from(keys), _JSON, min_size=1, max_size=3))
    )
