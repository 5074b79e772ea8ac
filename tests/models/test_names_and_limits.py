"""Where a directory's tensors lie, how long its texts may be, and what transformers takes for a key left out."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_bert
import tiny_models
from native_runner import native_logits, needs_native
from safetensors.numpy import load_file, save_file

from kamado.errors import KamadoError, MetadataError, MissingTensorError, UnsupportedError
from kamado.files import open_checkpoint
from kamado.models import build_program
from kamado.program import Head, Pool, Program

FAMILIES = sorted(tiny_models.CONFIGS)
# (what stands before the layers, what stands before lm_head.weight)
PREFIXES = [
    ("model.", ""),
    ("", ""),
    ("transformer.", ""),
    ("language_model.model.", "language_model."),
    ("model.language_model.", ""),
    ("base_model.model.model.", "base_model.model."),
    ("my.own.", ""),
]


def _renamed(folder: Path, prefix: str, head: str, **extra: tuple[int, ...]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    moved = {
        prefix + name.removeprefix("model.") if name.startswith("model.") else head + name: values
        for name, values in tensors.items()
    }
    moved |= {name.replace("__", "."): np.zeros(shape, np.float32) for name, shape in extra.items()}
    save_file(moved, path)


@pytest.mark.parametrize(("prefix", "head"), PREFIXES)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_prefix_is_that_of_the_tensors(tmp_path: Path, family: str, prefix: str, head: str) -> None:
    plain = build_program(open_checkpoint(tiny_models.write(tmp_path / "plain", family)))
    folder = tiny_models.write(tmp_path / "renamed", family)
    _renamed(folder, prefix, head)
    program = build_program(open_checkpoint(folder))
    assert len(program.ops) == len(plain.ops)
    assert program.context_length == plain.context_length


@needs_native
def test_a_base_model_gives_the_same_logits(tmp_path: Path) -> None:
    """Qwen3-Embedding's files: no prefix, a tied output (vllm#19250, sglang#9747)."""
    plain = tiny_models.write(tmp_path / "plain", "qwen3", tie_word_embeddings=True)
    base = tiny_models.write(tmp_path / "base", "qwen3", tie_word_embeddings=True)
    for folder in (plain, base):
        tensors = load_file(folder / "model.safetensors")
        del tensors["lm_head.weight"]
        save_file(tensors, folder / "model.safetensors")
    _renamed(base, "", "")
    tokens = [1, 5, 9, 2]
    expected = native_logits(build_program(open_checkpoint(plain)), tokens)
    assert np.array_equal(native_logits(build_program(open_checkpoint(base)), tokens), expected)


def _without_head(folder: Path, **changes: Any) -> Program:
    folder = tiny_models.write(folder, "mistral", **changes)
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors")
    _renamed(folder, "", "")
    return build_program(open_checkpoint(folder))


def test_a_base_model_without_an_output_makes_vectors(tmp_path: Path) -> None:
    """E5-Mistral, GTE-Qwen2: `MistralModel`, not tied, no lm_head."""
    program = _without_head(tmp_path / "a", architectures=["MistralModel"])
    assert isinstance(program.ops[-1], Pool)
    assert program.pooling == "last"
    assert program.is_encoder
    assert program.is_causal
    tied = _without_head(tmp_path / "b", architectures=["MistralModel"], tie_word_embeddings=True)
    assert isinstance(tied.ops[-1], Head)
    with pytest.raises(MissingTensorError, match=r"lm_head\.weight"):
        _without_head(tmp_path / "c", architectures=["MistralForCausalLM"])


@needs_native
def test_vectors_of_a_base_model_are_the_rows_before_its_output(tmp_path: Path) -> None:
    from kamado import load

    _without_head(tmp_path, architectures=["MistralModel"])
    with load(tmp_path) as model:
        assert model.is_encoder
        vectors = model.embed([[1, 2, 3], [4, 5]])
    assert vectors.shape == (2, tiny_models.HIDDEN)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)


def test_two_models_in_one_file_are_refused(tmp_path: Path) -> None:
    folder = tiny_models.write(tmp_path, "llama")
    size = (tiny_models.VOCAB, tiny_models.HIDDEN)
    _renamed(folder, "model.", "", other__embed_tokens__weight=size, other__norm__weight=(tiny_models.HIDDEN,))
    with pytest.raises(UnsupportedError, match=r"'model\.embed_tokens\.weight' and 'other\.embed_tokens\.weight'"):
        build_program(open_checkpoint(folder))


def test_a_second_table_without_a_norm_is_no_second_model(tmp_path: Path) -> None:
    folder = tiny_models.write(tmp_path, "llama")
    _renamed(folder, "model.", "", draft__embed_tokens__weight=(tiny_models.VOCAB, tiny_models.HIDDEN))
    with pytest.raises(UnsupportedError, match=r"1 tensors have no place.*draft\.embed_tokens"):
        build_program(open_checkpoint(folder))


def test_a_missing_tensor_is_named_with_the_files_own_prefix(tmp_path: Path) -> None:
    folder = tiny_models.write(tmp_path, "llama")
    _renamed(folder, "", "")
    tensors = load_file(folder / "model.safetensors")
    del tensors["norm.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(MissingTensorError, match=r"'norm\.weight' is missing"):
        build_program(open_checkpoint(folder))


@pytest.mark.parametrize("prefix", ["", "bert.", "model.bert."])
def test_prefixes_of_bert(tmp_path: Path, prefix: str) -> None:
    build_program(open_checkpoint(tiny_bert.write(tmp_path, prefix=prefix)))


def _yarn(**more: Any) -> dict[str, Any]:
    return {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, **more}


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize(
    "family", ["llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "olmoe", "granitemoe"]
)
@pytest.mark.parametrize(
    ("positions", "rope", "expected"),
    [
        (32, _yarn(), 128),  # the recipe of the model cards (vllm#4930, llama.cpp#10698)
        (40, _yarn(), 128),  # Qwen3: 40 960 written, 131 072 meant
        (128, _yarn(), 128),
        (200, _yarn(), 200),
        (32, {"type": "yarn", "factor": 4.0}, 128),
        (64, {"rope_type": "yarn", "original_max_position_embeddings": 32}, 64),
        (32, {"rope_type": "yarn", "factor": 2.5, "original_max_position_embeddings": 32}, 80),
        (32, {"rope_type": "linear", "factor": 2.0}, 32),  # does not say what was stretched
        (32, {"rope_type": "linear", "factor": 2.0, "original_max_position_embeddings": 32}, 64),
        (64, {"rope_type": "linear", "factor": 4.0, "original_max_position_embeddings": 32}, 64),
        (32, {"rope_type": "default"}, 32),
    ],
)
def test_stretched_contexts(
    tmp_path: Path, family: str, key: str, positions: int, rope: dict[str, Any], expected: int
) -> None:
    changes: dict[str, Any] = {"rope_scaling": None, "max_position_embeddings": positions, key: rope}
    program = build_program(open_checkpoint(tiny_models.write(tmp_path, family, **changes)))
    assert program.context_length == expected


@pytest.mark.parametrize(("positions", "expected"), [(64, 512), (128, 128), (512, 512)])
def test_llama_3_says_how_far_it_was_stretched(tmp_path: Path, positions: int, expected: int) -> None:
    """Llama 3.2 1B: factor 32 over 8192, of which 131 072 positions are allowed and not 262 144."""
    folder = tiny_models.write(tmp_path, "llama", max_position_embeddings=positions)
    assert build_program(open_checkpoint(folder)).context_length == expected


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 32}, 128),
        ({"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}, 128),
        ({"rope.scaling.type": "yarn"}, 32),
        ({"rope.scaling.factor": 4.0}, 32),
        ({"rope.scale_linear": 4.0, "rope.scaling.original_context_length": 32}, 128),
        ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 32}, 32),
        ({}, 32),
    ],
)
def test_stretched_contexts_of_gguf(tmp_path: Path, settings: dict[str, Any], expected: int) -> None:
    from test_models_settings import gguf_llama

    changes = {key.replace(".", "__"): value for key, value in settings.items()}
    program = build_program(gguf_llama(tmp_path, context_length=32, **changes))
    assert program.context_length == expected


@needs_native
def test_the_longer_context_can_be_used(tmp_path: Path) -> None:
    from kamado import load

    folder = tiny_models.write(tmp_path, "qwen3", max_position_embeddings=32, rope_scaling=_yarn())
    with load(folder, context=128) as model:
        assert model.context == 128
        assert len(list(model.generate([1] * 100, max_tokens=3, temperature=0.0))) > 0


def test_both_forms_of_rope_settings_are_one(tmp_path: Path) -> None:
    """Files of the years between have `rope_scaling` for old readers and `rope_parameters` for new ones."""
    old, new = {"type": "yarn", "factor": 4.0}, {"rope_type": "yarn", "rope_theta": 5e5}
    both = tiny_models.write(tmp_path / "a", "qwen3", rope_scaling=old, rope_parameters={**new, "factor": 4.0})
    one = tiny_models.write(tmp_path / "b", "qwen3", rope_scaling={**old, "rope_theta": 5e5})
    programs = [build_program(open_checkpoint(folder)) for folder in (both, one)]
    tables = [[op.inv_freq for op in program.ops if hasattr(op, "inv_freq")] for program in programs]
    assert all(np.array_equal(a, b) for a, b in zip(*tables, strict=True))
    wrong = tiny_models.write(tmp_path / "c", "qwen3", rope_scaling=old, rope_parameters={**new, "factor": 2.0})
    with pytest.raises(MetadataError, match="factor"):
        build_program(open_checkpoint(wrong))


@pytest.mark.parametrize(("family", "absent"), [("mistral", 8), ("mixtral", 8), ("qwen2", 32), ("qwen3", 32)])
def test_key_value_heads_left_out_and_null(tmp_path: Path, family: str, absent: int) -> None:
    """Left out: what the class of transformers has. Null: as many as query heads."""
    from kamado.models.config import Config
    from kamado.models.registry import FAMILIES
    from kamado.models.settings import head_counts

    folder = tiny_models.write(tmp_path, family, num_attention_heads=2 * absent, hidden_size=32 * absent, head_dim=None)
    config = json.loads((folder / "config.json").read_text())
    for written, expected in (("absent", absent), (None, 2 * absent), (2, 2)):
        values = {**config, "num_key_value_heads": written}
        if written == "absent":
            del values["num_key_value_heads"]
        checkpoint = dataclasses.replace(open_checkpoint(folder), metadata=values)
        defaults = FAMILIES["safetensors", family][0].defaults
        assert head_counts(Config.of(checkpoint, defaults=defaults)) == (2 * absent, expected)


@pytest.mark.parity
@pytest.mark.parametrize("family", FAMILIES)
def test_keys_left_out_are_what_transformers_takes(tmp_path: Path, family: str) -> None:
    """Every key by itself: our program, or transformers' own default asked for in its place, are the same."""
    import transformers

    for key in sorted({*tiny_models.CONFIGS[family], "attention_bias", "tie_word_embeddings", "hidden_act"}):
        values = {name: value for name, value in tiny_models.CONFIGS[family].items() if name != key}
        try:
            default = getattr(transformers.AutoConfig.for_model(family, **json.loads(json.dumps(values))), key, None)
        except Exception:  # its own check refuses the rest without this key
            continue
        folder = tiny_models.write(tmp_path / key, family)
        results = []
        for config in (values, {**values, key: default}):
            (folder / "config.json").write_text(json.dumps({"model_type": family, **config}), encoding="utf-8")
            try:
                program = build_program(open_checkpoint(folder))
                results.append((str(program), program.context_length, program.vocab_size))
            except KamadoError:  # a required key, or a default that these small tensors do not fit
                results.append(KamadoError)
        assert KamadoError in results or results[0] == results[1], key


def test_the_server_allows_the_longer_context_too(tmp_path: Path) -> None:
    from kamado.serve.models.describe import describe

    folder = tiny_models.write(tmp_path, "qwen3", max_position_embeddings=32, rope_scaling=_yarn())
    assert describe("m", folder, digest="", created=0, nbytes=None).max_context == 128
    unknown = tiny_models.write(tmp_path / "unknown", "qwen3", model_type="phi9")
    assert describe("m", unknown, digest="", created=0, nbytes=None).max_context == 512
