"""Every layout from the file to the logits: read, shown, planned, and the scalar reference's bits on every tier."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from files.builders import tokenizer_metadata, write_gguf

from kamado.cli.main import cli
from kamado.files import open_checkpoint
from kamado.files.gguf_header import read_header
from kamado.files.gguf_writer import GgufWriter
from kamado.files.types import Checkpoint, Layout
from kamado.models import build_program
from kamado.synth.synthesize import synthesize

_native = pytest.importorskip("kamado._native", reason="the native module is not built")
lower = pytest.importorskip("kamado.lower")

VOCAB, WIDTH = 128, 256  # as narrow as the widest block


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A llama of one layer in Q4_0."""
    folder = tmp_path_factory.mktemp("parent")
    tokenizer = open_checkpoint(write_gguf(folder / "tokenizer.gguf", tokenizer_metadata(VOCAB)))
    synthesize(
        folder / "parent.gguf", "llama", tokenizer_from=tokenizer, layers=1, hidden=WIDTH, heads=4, kv_heads=2,
        ffn=WIDTH, layout="q4_0", seed=3,
    )  # fmt: skip
    return open_checkpoint(folder / "parent.gguf")


def blocks_of(layout: Layout, num_values: int, rng: np.random.Generator) -> np.ndarray:
    """uint8 (blocks, block bytes): random bytes under small scales, or small floats."""
    count = num_values // layout.block_values
    if layout is Layout.BF16:
        return (rng.standard_normal((count, 1), np.float32) * 0.05).view(np.uint16)[:, 1:].copy().view(np.uint8)
    if layout.is_float:
        return (rng.standard_normal((count, 1), np.float32) * 0.05).astype(f"f{layout.block_bytes}").view(np.uint8)
    blocks = rng.integers(0, 256, (count, layout.block_bytes), np.uint8)
    for offset in layout.scale_offsets:
        blocks[:, offset : offset + 2] = rng.uniform(0.001, 0.002, (count, 1)).astype(np.float16).view(np.uint8)
    if layout.block.d_bytes == 1:
        blocks[:, layout.block.d] = 120
    return blocks


def write_model(path: Path, parent: Checkpoint, layout: Layout) -> None:
    """The parent's shape with all of its matrices in `layout`."""
    header = read_header(parent.path)
    writer = GgufWriter("llama")
    for key, value in header.metadata.items():
        if key not in ("general.architecture", "general.file_type"):
            writer.add(key, value, *header.types[key])
    rng = np.random.default_rng(int(layout))
    data = {}
    for name, ref in parent.tensors.items():
        kind = layout if len(ref.shape) > 1 else Layout.F32
        writer.add_tensor(name, ref.shape, kind)
        data[name] = blocks_of(kind, ref.num_values, rng) if kind is layout else np.ones(ref.shape, np.float32)
    with writer.open(path) as sink:
        for name, values in data.items():
            sink.write(name, values)


def kamado(*words: str | Path) -> str:
    result = CliRunner().invoke(cli, list(map(str, words)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def run(checkpoint: Checkpoint, tier: str) -> tuple[bytes, dict[str, Any]]:
    """Logits of twenty tokens, and what the executor counts."""
    executor = lower.build_executor(
        build_program(checkpoint), num_threads=2, max_rows=32, max_logit_rows=32, max_kv_tokens=128, max_sequences=1,
        kv="f32", tier=tier,
    )  # fmt: skip
    try:
        sequence = np.array([executor.create_sequence()], np.int32)
        tokens = np.arange(20, dtype=np.int32) * 5
        logits = executor.step(sequence, np.array([20], np.int32), tokens, np.arange(20, dtype=np.int32)).copy()
        return logits.tobytes(), executor.stats()
    finally:
        executor.close()


@pytest.mark.parametrize("layout", list(Layout))
def test_a_model_in_it_is_read_shown_planned_and_run(layout: Layout, parent: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_model(path, parent, layout)
    checkpoint = open_checkpoint(path)
    matrices = [ref for ref in checkpoint.tensors.values() if len(ref.shape) > 1]
    assert all(ref.layout is layout and ref.nbytes == layout.nbytes(ref.num_values) for ref in matrices)
    assert f"{layout.name}  " in kamado("show", path)
    wanted, stats = run(checkpoint, "scalar")
    assert np.isfinite(np.frombuffer(wanted, np.float32)).all()
    planned = json.loads(kamado("plan", path, "--context", "128", "--json"))["bytes_by_owner"]["weights"]
    assert planned == pytest.approx(stats["weight_bytes"], rel=0.01)
    for tier in _native.tiers():
        assert run(checkpoint, tier)[0] == wanted, tier
