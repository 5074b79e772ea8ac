"""Files of random weights for tests of streaming and of budgets."""

from __future__ import annotations

from pathlib import Path

from kamado.files import open_checkpoint
from kamado.files.gguf_writer import GgufWriter
from kamado.files.types import Checkpoint
from kamado.synth.synthesize import synthesize


def write_moe(folder: Path, *, layers: int, hidden: int, experts: int) -> Path:
    """A qwen3moe model of random weights, 4 experts a token, with a vocabulary of 512 tokens."""
    synthesize(
        folder / "moe.gguf", "qwen3moe", tokenizer_from=_tokenizer(folder), layers=layers, hidden=hidden, heads=4,
        kv_heads=2, head_dim=64, experts=experts, top_k=4, expert_width=256, layout="q4_k",
    )  # fmt: skip
    return folder / "moe.gguf"


def write_dense(folder: Path) -> Path:
    """A llama of random weights, 125 MB, with the same vocabulary."""
    synthesize(
        folder / "dense.gguf", "llama", tokenizer_from=_tokenizer(folder), layers=8, hidden=1536, heads=12, kv_heads=4,
        head_dim=128, ffn=4096, layout="q4_0",
    )  # fmt: skip
    return folder / "dense.gguf"


def _tokenizer(folder: Path) -> Checkpoint:
    writer = GgufWriter("llama")
    writer.add("tokenizer.ggml.model", "gpt2")
    writer.add("tokenizer.ggml.pre", "default")
    writer.add("tokenizer.ggml.tokens", ["a", "b", "ab", *(f"t{i}" for i in range(509))])
    writer.add("tokenizer.ggml.token_type", [1] * 512)
    writer.add("tokenizer.ggml.merges", ["a b"])
    writer.add("tokenizer.ggml.eos_token_id", 511)
    with writer.open(folder / "tokenizer.gguf"):
        pass
    return open_checkpoint(folder / "tokenizer.gguf")
