"""Synthetic models: shapes and names as real files have them, numbers that behave, the skew that was asked for."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from files.builders import tokenizer_metadata, write_gguf

from kamado.errors import UnsupportedError, UsageError
from kamado.files import open_checkpoint
from kamado.files.types import Checkpoint, Layout
from kamado.models import build_program
from kamado.synth.families import SHAPES, shape_of
from kamado.synth.synthesize import SynthReport, synthesize
from kamado.synth.tensors import LAYOUTS, tensors_of

from .small import small


@pytest.fixture
def tokenizer(tmp_path: Path) -> Checkpoint:
    """A checkpoint with a vocabulary of 512."""
    return open_checkpoint(write_gguf(tmp_path / "tokenizer.gguf", tokenizer_metadata(512)))


@pytest.fixture
def make(tmp_path: Path, tokenizer: Checkpoint) -> Callable[..., SynthReport]:
    """synthesize() into the test's directory, small unless told otherwise."""

    def run(family: str, **settings: Any) -> SynthReport:
        sizes: dict[str, Any] = {**small(family, experts=32, top_k=4, expert_width=64), **settings}
        return synthesize(tmp_path / "out.gguf", family, tokenizer_from=tokenizer, **sizes)

    return run


@pytest.mark.parametrize("family", SHAPES)
def test_every_family_opens_with_its_tokenizer(make: Callable[..., SynthReport], family: str) -> None:
    seen: list[tuple[int, int]] = []
    report = make(family, layout="q8_0", progress=lambda done, total: seen.append((done, total)))
    checkpoint = open_checkpoint(report.path)
    assert checkpoint.architecture == SHAPES[family].architecture
    assert checkpoint.metadata[f"{checkpoint.architecture}.block_count"] == report.shape.layers
    assert checkpoint.tokenizer is not None
    expected = tokenizer_metadata(512)
    assert {key: checkpoint.tokenizer.data[key] for key in expected} == expected
    assert checkpoint.tensor("token_embd.weight", (512, 256)).layout is Layout.Q8_0
    assert seen[-1] == (checkpoint.weight_bytes, checkpoint.weight_bytes)
    assert report.nbytes == report.path.stat().st_size
    assert (report.hot_share is None) == (not SHAPES[family].experts)


@pytest.mark.parametrize("family", SHAPES)
def test_every_family_has_a_program(make: Callable[..., SynthReport], family: str) -> None:
    report = make(family, layout="f16")
    assert build_program(open_checkpoint(report.path)).num_layers == report.shape.layers


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_written(make: Callable[..., SynthReport], layout: str) -> None:
    checkpoint = open_checkpoint(make("qwen3moe", layout=layout, layers=1).path)
    wanted = LAYOUTS[layout][0]
    assert checkpoint.tensor("blk.0.ffn_gate_exps.weight").layout is wanted
    # As llama-quantize makes a file of MXFP4: of experts alone.
    others = Layout.Q8_0 if wanted is Layout.MXFP4 else wanted
    assert checkpoint.tensor("blk.0.attn_q.weight").layout is others
    assert checkpoint.tensor("blk.0.attn_norm.weight").layout is Layout.F32


def test_q4_k_m_mixes_layouts_as_real_files_do() -> None:
    def layouts(family: str, role: str, **changes: int) -> str:
        plans = tensors_of(shape_of(family, changes), 100, "q4_k_m")
        return " ".join(plan.layout.name for plan in plans if plan.name.removeprefix(f"blk.{plan.layer}.") == role)

    assert layouts("qwen3moe", "ffn_down_exps.weight", layers=8) == "Q6_K Q4_K Q4_K Q6_K Q4_K Q4_K Q6_K Q6_K"
    assert layouts("qwen3moe", "ffn_gate_exps.weight", layers=2) == "Q4_K Q4_K"
    assert layouts("qwen3moe", "output.weight") == "Q6_K"
    assert layouts("qwen3moe", "token_embd.weight") == "Q4_K"
    assert layouts("gemma3", "token_embd.weight", hidden=512) == "Q6_K"
    assert layouts("mixtral", "attn_v.weight", layers=2) == "Q8_0 Q8_0"
    assert layouts("mixtral", "attn_output.weight", layers=2) == "Q5_K Q5_K"
    assert layouts("gemma3", "attn_q.weight", hidden=640, layers=1) == "Q5_0"
    assert layouts("gemma3", "token_embd.weight", hidden=640) == "Q8_0"


@pytest.mark.real
@pytest.mark.parametrize("name", ["gemma3:270m", "qwen2.5-coder:1.5b"])
def test_q4_k_m_layouts_are_those_of_a_real_file(name: str, real_model: Callable[[str], Path]) -> None:
    real = open_checkpoint(real_model(name))
    key = real.architecture
    get = real.metadata.__getitem__
    changes = {
        "hidden": get(f"{key}.embedding_length"), "layers": get(f"{key}.block_count"),
        "ffn": get(f"{key}.feed_forward_length"), "heads": get(f"{key}.attention.head_count"),
        "kv_heads": get(f"{key}.attention.head_count_kv"),
    }  # fmt: skip
    shape = shape_of(key, changes)
    shape = replace(shape, tied=not real.has("output.weight"))
    ours = {p.name: (p.shape, p.layout) for p in tensors_of(shape, real.tensors["token_embd.weight"].rows, "q4_k_m")}
    theirs = {ref.name: (ref.shape, ref.layout) for ref in real.tensors.values()}
    assert {name: shape for name, (shape, _) in ours.items()} == {name: shape for name, (shape, _) in theirs.items()}

    def count(tensors: dict[str, tuple[tuple[int, ...], Layout]]) -> Counter[tuple[str, Layout]]:
        """By kind of tensor: quantisers went through the layers in several orders over time."""
        return Counter((name.rpartition("blk.")[2].lstrip("0123456789"), at) for name, (_, at) in tensors.items())

    assert count(ours) == count(theirs)


def test_same_seed_same_bytes(make: Callable[..., SynthReport]) -> None:
    def digest(seed: int) -> str:
        return hashlib.sha256(make("qwen3moe", layout="q4_0", skew=0.7, seed=seed).path.read_bytes()).hexdigest()

    assert digest(1) == digest(1) != digest(2)


def test_experts_differ(make: Callable[..., SynthReport]) -> None:
    ref = open_checkpoint(make("qwen3moe", layout="q4_0").path).tensor("blk.2.ffn_up_exps.weight")
    data = ref.file.read_bytes()
    experts = {data[(e := ref.index(i)).offset : e.offset + e.nbytes] for i in range(32)}
    assert len(experts) == 32


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        ("bert", {}, "no family 'bert' to synthesise; there are qwen3moe"),
        ("llama", {"layout": "q9"}, "no layout 'q9'; there are q4_k"),
        ("qwen2", {"experts": 8}, "qwen2 is a dense family: experts has no meaning"),
        ("qwen2", {"skew": 0.7}, "qwen2 is a dense family: skew"),
        ("qwen3moe", {"top_k": 40, "experts": 32}, "top_k of 40 with 32 experts"),
        ("qwen3moe", {"top_k": 24, "experts": 32, "skew": 0.9}, "the hottest half can take 0.5 to 0.67"),
        ("qwen3moe", {"skew": 0.2}, "a skew of 0.2 is out of reach"),
        ("qwen3", {"heads": 6, "kv_heads": 4}, "6 heads cannot share 4 key-value heads"),
        ("qwen3", {"layers": 0}, "layers of 0 is out of range"),
        ("qwen3", {"head_dim": 63}, "must be even"),
        ("olmoe", {"ffn": 64}, "give expert_width, not ffn"),
    ],
)
def test_refusals(tmp_path: Path, tokenizer: Checkpoint, family: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        synthesize(tmp_path / "no.gguf", family, tokenizer_from=tokenizer, **settings)
    assert not (tmp_path / "no.gguf").exists()


def test_refusals_of_tokenizers_and_disks(
    tmp_path: Path, tokenizer: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = open_checkpoint(write_gguf(tmp_path / "bare.gguf"))
    with pytest.raises(UnsupportedError, match=r"bare\.gguf: only a GGUF file with a tokenizer"):
        synthesize(tmp_path / "no.gguf", "llama", tokenizer_from=bare)
    with pytest.raises(UsageError, match=r"the model takes \d+\.\d GB and .* has 0\.0 GB free"):
        monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10**6}))
        synthesize(tmp_path / "no.gguf", "qwen3moe", tokenizer_from=tokenizer)


def test_an_interrupt_leaves_no_file(make: Callable[..., SynthReport], tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make("llama", progress=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.gguf"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "skew"), [("qwen3moe", 0.5), ("qwen3moe", 0.7), ("qwen3moe", 0.9), ("granitemoe", 0.8), ("olmoe", 0.6)]
)
def test_the_skew_is_what_a_forward_pass_shows(tmp_path: Path, family: str, skew: float) -> None:
    gguf = pytest.importorskip("gguf")
    tokenizer = open_checkpoint(write_gguf(tmp_path / "tokenizer.gguf", tokenizer_metadata(2048)))
    sizes: dict[str, Any] = {**small(family, experts=32, top_k=4, expert_width=64)}
    report = synthesize(tmp_path / "m.gguf", family, tokenizer_from=tokenizer, layout="q8_0", skew=skew, **sizes)
    assert report.hot_share is not None
    assert abs(report.hot_share - skew) < 0.01
    counts, hidden = route(gguf, open_checkpoint(report.path), report)
    shares = np.sort(counts, axis=1)[:, 16:].sum(axis=1) / counts.sum(axis=1)
    # 800 tokens give each of 32 experts about 100 picks, +-10: sorting those alone makes a flat layer look like 0.55
    assert np.all(np.abs(shares - max(skew, 0.55)) < 0.05), shares
    assert np.isfinite(hidden).all()
    assert len({tuple(np.argsort(row)[16:].tolist()) for row in counts}) == 4


def route(gguf: Any, checkpoint: Checkpoint, report: SynthReport) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """(picks of each layer's experts, last hidden states) of 800 random tokens, in plain NumPy, positions left out."""
    shape = report.shape
    tensors = {t.name: t for t in gguf.GGUFReader(report.path).tensors}
    scales = {name: float(shape.keys.get(f"{name}_scale", 1.0)) for name in ("embedding", "residual")}

    def weight(name: str, i: int = -1) -> npt.NDArray[np.float32]:
        t = tensors[f"blk.{i}.{name}.weight" if i >= 0 else f"{name}.weight"]
        return np.asarray(gguf.quants.dequantize(t.data, t.tensor_type), np.float32)

    def norm(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + shape.eps)

    num = 800
    ids = np.random.default_rng(3).permutation(2048)[:num]
    x = weight("token_embd")[ids] * scales["embedding"]
    counts = np.zeros((shape.layers, shape.experts), int)
    group = shape.heads // shape.kv_heads
    for i in range(shape.layers):
        h = norm(x)
        q, k, v = (
            (h @ weight(f"attn_{n}", i).T).reshape(num, -1, shape.head_dim).transpose(1, 0, 2) for n in ("q", "k", "v")
        )
        if f"blk.{i}.attn_q_norm.weight" in tensors:
            q, k = norm(q), norm(k)
        scores = q @ np.repeat(k, group, 0).transpose(0, 2, 1) / shape.head_dim**0.5
        scores[:, np.triu_indices(num, 1)[0], np.triu_indices(num, 1)[1]] = -np.inf
        scores = np.exp(scores - scores.max(axis=2, keepdims=True))
        attended = (scores / scores.sum(axis=2, keepdims=True)) @ np.repeat(v, group, 0)
        out = attended.transpose(1, 0, 2).reshape(num, -1) @ weight("attn_output", i).T
        x = x + out * scales["residual"]
        h = norm(x)
        logits = h @ weight("ffn_gate_inp", i).T
        picks = np.argsort(-logits, axis=1)[:, : shape.top_k]
        counts[i] = np.bincount(picks.ravel(), minlength=shape.experts)
        share = np.exp(np.take_along_axis(logits, picks, 1))
        share /= share.sum(axis=1, keepdims=True)
        gate, up, down = (weight(f"ffn_{n}_exps", i) for n in ("gate", "up", "down"))
        moe = np.zeros_like(x)
        for e in range(shape.experts):
            rows, at = np.nonzero(picks == e)
            g = h[rows] @ gate[e].T
            moe[rows] += share[rows, at][:, None] * ((g / (1 + np.exp(-g)) * (h[rows] @ up[e].T)) @ down[e].T)
        x = x + moe * scales["residual"]
    return counts, x
