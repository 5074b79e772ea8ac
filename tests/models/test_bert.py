"""Encoders: the same vectors as the arithmetic says, as transformers gives, and whatever else is embedded with them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_bert
import tiny_models
from native_runner import needs_native
from numpy_executor import NumpyExecutor

import kamado
from kamado.errors import ContextOverflowError, MetadataError, MissingTensorError, UnsupportedError, UsageError
from kamado.files import open_checkpoint
from kamado.files.types import Checkpoint
from kamado.models import build_program
from kamado.models.registry import FAMILIES
from kamado.program import Embed, Pool, format_program

RNG = np.random.default_rng(5)
TEXTS = [RNG.integers(0, 97, n).tolist() for n in (1, 2, 7, 129, 64, 300, 3, 3, 128, 250)]


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.sqrt((vector**2).sum())


def pooled(rows: np.ndarray, kind: str) -> np.ndarray:
    return unit({"mean": rows.mean(0), "first": rows[0], "last": rows[-1]}[kind])


KINDS = {
    None: "mean",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "first",
    "pooling_mode_lasttoken": "last",
}


@needs_native
@pytest.mark.parametrize("key", KINDS)
def test_vectors_are_what_the_arithmetic_says(tmp_path: Path, key: str | None) -> None:
    folder = tiny_bert.write(tmp_path, pooling=key)
    oracle = NumpyExecutor(build_program(open_checkpoint(folder)))
    with kamado.load(folder) as model:
        vectors = model.embed(TEXTS)
        assert (model.is_encoder, vectors.shape, vectors.dtype) == (True, (len(TEXTS), 48), np.float32)
        for text, vector in zip(TEXTS, vectors, strict=True):
            wanted = pooled(oracle.forward(text), KINDS[key])
            assert np.abs(vector - wanted).max() <= 1e-5 * wanted.std()


@needs_native
@pytest.mark.parametrize("key", ["pooling_mode_mean_tokens", "pooling_mode_cls_token"])
def test_a_vector_does_not_depend_on_company_threads_or_order(tmp_path: Path, key: str) -> None:
    folder = tiny_bert.write(tmp_path, pooling=key)
    with kamado.load(folder, threads=2, kv_tokens=4096) as model:
        alone = np.concatenate([model.embed([text]) for text in TEXTS])
        assert np.array_equal(model.embed(TEXTS), alone)
        assert np.array_equal(model.embed(TEXTS[::-1])[::-1], alone)
        assert np.array_equal(model.embed(TEXTS * 5), np.tile(alone, (5, 1)))
    with kamado.load(folder, threads=1) as model:
        assert np.array_equal(model.embed(TEXTS), alone)


@needs_native
def test_texts_that_do_not_fit_are_refused_or_cut(tmp_path: Path) -> None:
    with kamado.load(tiny_bert.write(tmp_path), context=64) as model:
        with pytest.raises(ContextOverflowError, match="129"):
            model.embed([TEXTS[0], TEXTS[3]])
        cut = model.embed_counted([TEXTS[3]], truncate=True)
        assert cut.num_tokens == (64,)
        assert np.array_equal(cut.vectors, model.embed([TEXTS[3][:64]]))
        with pytest.raises(UsageError, match="empty"):
            model.embed([[]])
        with pytest.raises(UsageError, match="96"):
            model.embed([[97]])
        with pytest.raises(UsageError, match="list"):
            model.embed("text")
        assert model.embed([]).shape == (0, 48)


@needs_native
def test_fewer_dimensions_are_of_length_one_again(tmp_path: Path) -> None:
    with kamado.load(tiny_bert.write(tmp_path)) as model:
        full = model.embed(TEXTS[:3])
        short = model.embed(TEXTS[:3], dimensions=8)
        assert np.allclose(short, [unit(v[:8]) for v in full], atol=1e-6)
        for wrong in (0, 49, True):
            with pytest.raises(UsageError, match="from 1 to 48"):
                model.embed(TEXTS[:1], dimensions=wrong)


@needs_native
def test_an_encoder_writes_no_text(tmp_path: Path) -> None:
    with kamado.load(tiny_bert.write(tmp_path)) as model:
        for call in (
            lambda: model.generate([1]),
            lambda: model.logits([1]),
            lambda: model.score([1, 2]),
            lambda: model.perplexity([1] * 9, window=4),
            lambda: model.prompt_logprobs([1, 2]),
        ):
            with pytest.raises(UsageError, match="encoder"):
                call()


@needs_native
@pytest.mark.parametrize(("key", "kind"), [(None, "mean"), ("pooling_mode_lasttoken", "last")])
def test_a_generating_model_embeds_too(tmp_path: Path, key: str | None, kind: str) -> None:
    folder = tiny_models.write(tmp_path, "qwen2")
    if key is not None:
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({key: True}), encoding="utf-8")
    program = build_program(open_checkpoint(folder))
    # The rows before the head: its matrix is left out of the oracle's program.
    headless = NumpyExecutor(dataclasses.replace(program, ops=[*program.ops[:-1], Pool(program.ops[-1].x, "mean")]))
    with kamado.load(folder, kv="f32", max_rows=128, context=512) as model:
        vectors = model.embed(TEXTS)
        for text, vector in zip(TEXTS, vectors, strict=True):
            wanted = pooled(headless.forward(text), kind)
            assert np.abs(vector - wanted).max() <= 1e-4 * wanted.std()
            assert np.array_equal(model.embed([text])[0], vector)
        before = model.logits(TEXTS[2])
        assert len(list(model.generate(TEXTS[2], max_tokens=5, temperature=0))) > 0
        assert np.array_equal(model.logits(TEXTS[2]), before)


def renamed_to_gguf(checkpoint: Checkpoint, **settings: Any) -> Checkpoint:
    """The same tensors under GGUF's names, with its settings; no file is written."""
    names = {}
    for role, hf in FAMILIES["safetensors", "bert"][0].tensors.items():
        gguf = f"blk.{{i}}.{role}" if "{i}" in hf else role
        for i in range(3):
            names |= {f"{hf.format(i=i)}.{end}": f"{gguf.format(i=i)}.{end}" for end in ("weight", "bias")}
    found = {names[name]: ref for name, ref in checkpoint.tensors.items() if name in names}
    values = {
        "block_count": 3,
        "context_length": 300,
        "embedding_length": 48,
        "feed_forward_length": 80,
        "attention.head_count": 4,
        "attention.layer_norm_epsilon": 1e-12,
        "attention.causal": False,
        "pooling_type": 2,
        **{key.replace("__", "."): value for key, value in settings.items()},
    }
    return dataclasses.replace(
        checkpoint,
        format="gguf",
        metadata={f"bert.{key}": value for key, value in values.items()},
        tensors={name: dataclasses.replace(ref, name=name) for name, ref in found.items()},
    )


def test_gguf_and_safetensors_give_one_program(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny_bert.write(tmp_path, pooling="pooling_mode_cls_token"))
    one, other = build_program(checkpoint), build_program(renamed_to_gguf(checkpoint))
    assert np.array_equal(NumpyExecutor(one).forward(TEXTS[2]), NumpyExecutor(other).forward(TEXTS[2]))
    assert (one.pooling, one.is_encoder, one.is_causal, one.output_width) == ("first", True, False, 48)
    assert one.pooling == other.pooling
    assert [op.index for op in one.ops if isinstance(op, Embed)] == ["token", "position", "first"]
    assert "vector = first of x" in format_program(one)


def test_a_file_with_the_models_name_in_front_is_read(tmp_path: Path) -> None:
    plain = NumpyExecutor(build_program(open_checkpoint(tiny_bert.write(tmp_path / "a"))))
    named = NumpyExecutor(build_program(open_checkpoint(tiny_bert.write(tmp_path / "b", prefix="bert."))))
    assert np.array_equal(plain.forward(TEXTS[2]), named.forward(TEXTS[2]))


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"position_embedding_type": "relative_key"}, UnsupportedError, "position_embedding_type"),
        ({"is_decoder": True}, UnsupportedError, "is_decoder"),
        ({"architectures": ["BertForSequenceClassification"]}, UnsupportedError, "SequenceClassification"),
        ({"hidden_act": "tanh"}, UnsupportedError, "hidden_act"),
        ({"num_attention_heads": 5}, MetadataError, "hidden_size"),
        ({"pooling": "pooling_mode_max_tokens"}, UnsupportedError, "pooling_mode_max_tokens"),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(tmp_path: Path, changes: dict, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        build_program(open_checkpoint(tiny_bert.write(tmp_path, **changes)))


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny_bert.write(tmp_path))
    lost = "encoder.layer.1.output.LayerNorm.bias"
    tensors = {name: ref for name, ref in checkpoint.tensors.items() if name != lost}
    with pytest.raises(MissingTensorError, match=lost):
        build_program(dataclasses.replace(checkpoint, tensors=tensors))
    with pytest.raises(UnsupportedError, match="pooling_type"):
        build_program(renamed_to_gguf(checkpoint, pooling_type=4))
    with pytest.raises(UnsupportedError, match="causal"):
        build_program(renamed_to_gguf(checkpoint, attention__causal=True))


@needs_native
@pytest.mark.parity
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"hidden_size": 96, "num_attention_heads": 3, "num_hidden_layers": 5, "layer_norm_eps": 1e-5},
        {"hidden_size": 64, "num_attention_heads": 2, "hidden_act": "gelu_new", "intermediate_size": 200},
        {"hidden_size": 32, "num_attention_heads": 1, "hidden_act": "relu", "type_vocab_size": 1},
    ],
    ids=["minilm", "wide", "tanh", "relu"],
)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_vectors_agree_with_transformers(tmp_path: Path, changes: dict, dtype: str, record_parity: Any) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = tiny_bert.write(tmp_path, **changes)
    reference = transformers.AutoModel.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    if dtype != "float32":
        reference.save_pretrained(folder)
    reference = reference.float()
    with kamado.load(folder) as model:
        vectors = model.embed(TEXTS)
    worst = 0.0
    for text, vector in zip(TEXTS, vectors, strict=True):
        with torch.no_grad():
            rows = reference(torch.tensor([text])).last_hidden_state[0].double().numpy()
        wanted = pooled(rows, "mean")
        worst = max(worst, float(np.abs(vector - wanted).max() / wanted.std()))
    record_parity(f"bert {tmp_path.name[-14:]}", f"native {dtype}", worst)
    assert worst <= 1e-3
