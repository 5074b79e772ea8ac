"""Sparse upcycling: names as llama.cpp has them, the parent's answers to the bit, experts that differ when asked."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from files.builders import tokenizer_metadata, write_gguf

import kamado
from kamado.errors import UnsupportedError, UsageError
from kamado.files import open_checkpoint
from kamado.files.types import Checkpoint, Layout, TensorRef
from kamado.models import build_program
from kamado.synth.synthesize import synthesize
from kamado.synth.upcycle import UpcycleReport, jittered, upcycle

LAYERS, HIDDEN, FFN = 2, 64, 96


@pytest.fixture
def parent(tmp_path: Path) -> Checkpoint:
    """A dense llama of two layers in Q4_1."""
    tokenizer = open_checkpoint(write_gguf(tmp_path / "tokenizer.gguf", tokenizer_metadata(128)))
    path = tmp_path / "parent.gguf"
    synthesize(
        path, "llama", tokenizer_from=tokenizer, layers=LAYERS, hidden=HIDDEN, heads=4, kv_heads=2, ffn=FFN,
        layout="q4_1", seed=3,
    )  # fmt: skip
    return open_checkpoint(path)


@pytest.fixture
def make(tmp_path: Path, parent: Checkpoint) -> Callable[..., tuple[UpcycleReport, Checkpoint]]:
    """upcycle() of the parent, 8 experts of which a token uses 2 unless told otherwise."""

    def run(name: str = "out.gguf", **settings: Any) -> tuple[UpcycleReport, Checkpoint]:
        report = upcycle(parent, tmp_path / name, **({"experts": 8, "top_k": 2} | settings))
        return report, open_checkpoint(report.path)

    return run


def data_of(ref: TensorRef) -> bytes:
    with ref.file.open("rb") as file:
        file.seek(ref.offset)
        return file.read(ref.nbytes)


def logits_of(checkpoint: Checkpoint, tokens: list[int]) -> np.ndarray:
    lower = pytest.importorskip("kamado.lower", reason="the native module is not built")
    executor = lower.build_executor(
        build_program(checkpoint), num_threads=2, max_rows=64, max_logit_rows=64, max_kv_tokens=128, max_sequences=1,
        kv="f32",
    )  # fmt: skip
    try:
        sequence = np.array([executor.create_sequence()], np.int32)
        rows = np.arange(len(tokens), dtype=np.int32)
        return executor.step(sequence, np.array([len(tokens)], np.int32), np.array(tokens, np.int32), rows).copy()
    finally:
        executor.close()


def test_the_file_is_a_mixture_as_llamacpp_names_it(
    make: Callable[..., tuple[UpcycleReport, Checkpoint]], parent: Checkpoint
) -> None:
    seen: list[tuple[int, int]] = []
    report, child = make(progress=lambda done, total: seen.append((done, total)))
    assert child.architecture == "llama"
    assert (child.metadata["llama.expert_count"], child.metadata["llama.expert_used_count"]) == (8, 2)
    for i in range(LAYERS):
        assert child.tensor(f"blk.{i}.ffn_gate_inp.weight", (8, HIDDEN)).layout is Layout.F32
        for role, shape in (("gate", (8, FFN, HIDDEN)), ("up", (8, FFN, HIDDEN)), ("down", (8, HIDDEN, FFN))):
            stacked = child.tensor(f"blk.{i}.ffn_{role}_exps.weight", shape)
            assert data_of(stacked) == data_of(parent.tensor(f"blk.{i}.ffn_{role}.weight")) * 8
            assert not child.has(f"blk.{i}.ffn_{role}.weight")
    kept = [name for name in parent.tensors if ".ffn_" not in name or "norm" in name]
    assert all(data_of(child.tensors[name]) == data_of(parent.tensors[name]) for name in kept)
    assert child.tokenizer is not None
    assert parent.tokenizer is not None
    assert child.tokenizer.data == parent.tokenizer.data
    assert seen[-1] == (child.weight_bytes, child.weight_bytes)
    assert report.num_parameters == sum(ref.num_values for ref in child.tensors.values())
    assert (report.num_layers, report.router, report.nbytes) == (LAYERS, "grouped", report.path.stat().st_size)
    assert build_program(child).num_experts == 8


@pytest.mark.parametrize(("experts", "top_k"), [(8, 2), (8, 4), (4, 1), (4, 4)])
def test_answers_are_the_parents_to_the_bit(
    make: Callable[..., tuple[UpcycleReport, Checkpoint]], parent: Checkpoint, experts: int, top_k: int
) -> None:
    _, child = make(experts=experts, top_k=top_k)
    tokens = [int(i) for i in np.random.default_rng(1).integers(4, 120, 40)]
    assert np.array_equal(logits_of(child, tokens), logits_of(parent, tokens))


def test_independent_routers_are_equal_but_for_rounding(
    make: Callable[..., tuple[UpcycleReport, Checkpoint]], parent: Checkpoint
) -> None:
    _, child = make(router="independent", experts=6, top_k=3)
    routers = np.frombuffer(data_of(child.tensors["blk.0.ffn_gate_inp.weight"]), "<f4").reshape(6, HIDDEN)
    assert len(np.unique(routers, axis=0)) == 6
    tokens = list(range(4, 44))
    close = np.abs(logits_of(child, tokens) - logits_of(parent, tokens))
    assert close.max() < 0.05 * np.abs(logits_of(parent, tokens)).max()


def test_a_grouped_router_deals_ids_at_random(make: Callable[..., tuple[UpcycleReport, Checkpoint]]) -> None:
    _, child = make(experts=32, top_k=2)
    for i in range(LAYERS):
        rows = np.frombuffer(data_of(child.tensors[f"blk.{i}.ffn_gate_inp.weight"]), "<f4").reshape(32, HIDDEN)
        _, counts = np.unique(rows, axis=0, return_counts=True)
        assert counts.tolist() == [2] * 16
        assert not np.array_equal(rows[0::2], rows[1::2])


def test_jitter_makes_every_expert_another_and_keeps_the_model_sane(
    make: Callable[..., tuple[UpcycleReport, Checkpoint]], parent: Checkpoint
) -> None:
    report, child = make(jitter=5)
    assert report.router == "independent"
    for role in ("gate", "up", "down"):
        stacked = child.tensors[f"blk.1.ffn_{role}_exps.weight"]
        experts = {data_of(stacked.index(e)) for e in range(8)}
        assert len(experts) == 8
        assert data_of(parent.tensors[f"blk.1.ffn_{role}.weight"]) not in experts
    tokens = list(range(4, 60))
    near, far = logits_of(child, tokens), logits_of(parent, tokens)
    assert not np.array_equal(near, far)
    assert np.corrcoef(near.ravel(), far.ravel())[0, 1] > 0.99
    again, _ = make("again.gguf", jitter=5)
    other, _ = make("other.gguf", jitter=6)
    digests = [hashlib.sha256(r.path.read_bytes()).hexdigest() for r in (report, again, other)]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("layout", [layout for layout in Layout if layout.is_float or layout.scale_offsets])
def test_jitter_multiplies_a_block_by_one_factor(layout: Layout) -> None:
    native = pytest.importorskip("kamado._native", reason="the native module is not built")
    rng = np.random.default_rng(2)
    num_blocks = 5
    values = num_blocks * layout.block_values
    if layout.block_values == 1:
        wide = rng.standard_normal(values).astype(np.float32)
        bits = wide if layout is Layout.F32 else (wide.view(np.uint32) >> 16).astype(np.uint16)
        data = (wide.astype(np.float16) if layout is Layout.F16 else bits).view(np.uint8)
    else:
        data = rng.integers(0, 256, layout.nbytes(values), dtype=np.uint8)
        blocks = data.reshape(num_blocks, -1)
        for at in layout.scale_offsets:
            blocks[:, at : at + 2] = np.frombuffer(np.float16(0.01).tobytes(), np.uint8)
    changed = jittered(data, layout, 0.1, (7, 0, 0, 1))
    before, after = (native.dequantize(int(layout), np.ascontiguousarray(d), values) for d in (data, changed))
    ratios = (after / np.where(before == 0, np.nan, before)).reshape(num_blocks, -1)
    assert np.nanmax(np.abs(ratios - 1)) < 0.35
    assert np.nanmax(np.nanmax(ratios, axis=1) - np.nanmin(ratios, axis=1)) < 0.01
    assert not np.array_equal(before, after)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"experts": 1}, "experts=1"),
        ({"experts": 5000}, "experts=5000"),
        ({"top_k": 9}, "top_k=9"),
        ({"top_k": 3, "router": "grouped"}, "power of two"),
        ({"jitter": -1}, "jitter=-1"),
        ({"jitter": 1, "jitter_scale": 0.9}, "jitter_scale=0.9"),
    ],
)
def test_settings_out_of_range_are_refused(
    make: Callable[..., tuple[UpcycleReport, Checkpoint]], settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        make(**settings)


def test_only_a_dense_llama_can_be_upcycled(
    make: Callable[..., tuple[UpcycleReport, Checkpoint]], tmp_path: Path
) -> None:
    _, child = make()
    with pytest.raises(UnsupportedError, match="has experts already"):
        upcycle(child, tmp_path / "no.gguf", experts=4, top_k=2)
    other = open_checkpoint(write_gguf(tmp_path / "gemma3.gguf", {"general.architecture": "gemma3"}))
    with pytest.raises(UnsupportedError, match="only a dense GGUF of the llama family"):
        upcycle(other, tmp_path / "no.gguf", experts=4, top_k=2)


def test_nothing_is_left_when_it_is_stopped(parent: Checkpoint, tmp_path: Path) -> None:
    out = tmp_path / "made" / "out.gguf"

    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        upcycle(parent, out, experts=8, top_k=2, progress=stop)
    assert list(out.parent.iterdir()) == []


@pytest.mark.real
@pytest.mark.slow
def test_a_real_model_answers_as_its_dense_parent(real_model: Callable[[str], Path], tmp_path: Path) -> None:
    path = real_model("smollm2:135m")
    child = tmp_path / "child.gguf"
    upcycle(open_checkpoint(path), child, experts=8, top_k=2)
    prompts = ("Why is the sky blue?", "Write a haiku about a hearth.", "What is 12 times 11?")
    answers: list[list[list[int]]] = []
    logprobs: list[np.ndarray] = []
    for model_path in (path, child):
        with kamado.load(model_path, context=512, max_logit_rows=128) as model:
            answers.append(
                [
                    [p.token for p in model.chat([{"role": "user", "content": text}], temperature=0, max_tokens=64)]
                    for text in prompts
                ]
            )
            tokens = model.tokenize("The hearth is the heart of the house, and a fire needs air, wood and heat. " * 4)
            logits = model.logits(tokens).astype(np.float64)
            logits -= logits.max(axis=1, keepdims=True)
            logprobs.append(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))
    assert answers[0] == answers[1]
    divergence = (np.exp(logprobs[0]) * (logprobs[0] - logprobs[1])).sum(axis=1)
    assert divergence.mean() <= 1e-3
