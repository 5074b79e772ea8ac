"""Fixtures that all tests share: no test touches the user's models or caches, and real models are found in one way."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kamado.isolated import WORKER

WORKER._nice = 0  # tests wait for it, and the machine may be busy

# The real models that tests name, and the file of each in the folder of KAMADO_TEST_MODELS.
REAL_MODELS = {
    "smollm2:135m": "smollm2-135m-instruct-q4_1.gguf",
    "gemma3:270m": "gemma-3-270m-q4_k_m.gguf",
    "qwen2.5-coder:1.5b": "qwen2.5-coder-1.5b.gguf",
    "minilm:l6": "minilm",
}

# Read once, before the autouse fixture points them elsewhere.
_USERS = {name: os.environ.get(name) for name in ("KAMADO_HOME", "XDG_DATA_HOME")}
_TEST_MODELS = os.environ.get("KAMADO_TEST_MODELS")


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models, caches and configuration of the test are its own."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("KAMADO_HOME", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(home / "data"))
    monkeypatch.setenv("KAMADO_ELSEWHERE", "off")  # nor are other programs' models looked at
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(home / "run"))  # another test process may have a server at the same time


def find_real_model(name: str) -> Path | None:
    """The file or directory of a real model: in KAMADO_TEST_MODELS, else pulled into the user's own store."""
    if _TEST_MODELS:
        path = Path(_TEST_MODELS) / REAL_MODELS.get(name, name)
        if path.exists():
            return path
    from kamado.errors import KamadoError
    from kamado.library.store import Store

    with pytest.MonkeyPatch.context() as patch:
        for variable, value in _USERS.items():
            if value is None:
                patch.delenv(variable, raising=False)
            else:
                patch.setenv(variable, value)
        try:
            return Store().resolve(name)
        except KamadoError:
            return None


@pytest.fixture(scope="session")
def find_real() -> Callable[[str], Path | None]:
    """`find_real("minilm:l6")` is its path, or None when it is not there."""
    return find_real_model


@pytest.fixture(scope="session")
def real_model() -> Callable[[str], Path]:
    """`real_model("smollm2:135m")` is its path; the test is skipped, with what to do, when it is not there."""

    def find(name: str) -> Path:
        path = find_real_model(name)
        if path is None:
            pytest.skip(f"no {name}: set KAMADO_TEST_MODELS to a folder with {REAL_MODELS.get(name, name)}, or pull it")
        return path

    return find


TINY_VOCAB = 261
TINY_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of 2 layers in a GGUF file of 300 KB: random F16 weights, bytes as tokens, ChatML, context 512."""
    return _write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="session")
def write_tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`write_tiny(pooling_type=3, seed=8)`: `tiny_checkpoint` with further keys below `llama.` and other weights."""
    return lambda **metadata: _write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf", **metadata)


@pytest.fixture(scope="session")
def delicate_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As tiny_checkpoint, with 8 layers whose two heads of 64 values share one of keys, so that they can be encoded.
    Only layer 3's attention prefers any token much, so its keys alone can be spoiled."""
    path = tmp_path_factory.mktemp("delicate") / "delicate.gguf"
    return _write_tiny(
        path, hidden=128, heads=2, kv_heads=1, layers=8, key_scales={i: 8.0 if i == 3 else 0.05 for i in range(8)}
    )


def _write_tiny(
    path: Path,
    *,
    hidden: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    layers: int = 2,
    key_scales: dict[int, float] | None = None,
    seed: int = 7,
    suppressed: list[int] | None = None,
    **metadata: object,
) -> Path:
    from kamado.files.gguf_writer import GgufWriter
    from kamado.files.types import Layout

    ffn = 128
    writer = GgufWriter("llama")
    for key, value in {
        "general.name": "tiny",
        "llama.block_count": layers,
        "llama.context_length": 512,
        "llama.embedding_length": hidden,
        "llama.feed_forward_length": ffn,
        "llama.attention.head_count": heads,
        "llama.attention.head_count_kv": kv_heads,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [*_byte_symbols(), "<|bos|>", "<|eos|>", "<|im_start|>", "<|im_end|>", "ab"],
        "tokenizer.ggml.token_type": [1] * 256 + [3] * 4 + [1],
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.bos_token_id": 256,
        "tokenizer.ggml.eos_token_id": 257,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": TINY_TEMPLATE,
        **({} if suppressed is None else {"tokenizer.ggml.suppress_tokens": suppressed}),
        **{f"llama.{key}": value for key, value in metadata.items()},
    }.items():
        writer.add(key, value)
    kv_width = hidden // heads * kv_heads
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (TINY_VOCAB, hidden), "output_norm.weight": (hidden,)}
    for i in range(layers):
        for name, shape in {
            "attn_norm": (hidden,),
            "attn_q": (hidden, hidden),
            "attn_k": (kv_width, hidden),
            "attn_v": (kv_width, hidden),
            "attn_output": (hidden, hidden),
            "ffn_norm": (hidden,),
            "ffn_gate": (ffn, hidden),
            "ffn_up": (ffn, hidden),
            "ffn_down": (hidden, ffn),
        }.items():
            shapes[f"blk.{i}.{name}.weight"] = shape
    for name, shape in shapes.items():
        writer.add_tensor(name, shape, Layout.F16 if len(shape) == 2 else Layout.F32)
    rng = np.random.default_rng(seed)
    with writer.open(path) as sink:
        for name, shape in shapes.items():
            if len(shape) == 1:
                sink.write(name, np.ones(shape, np.float32))
            else:
                values = rng.standard_normal(shape) * 2 / np.sqrt(shape[1])
                for layer, scale in (key_scales or {}).items():
                    values *= scale if name == f"blk.{layer}.attn_k.weight" else 1
                sink.write(name, values.astype(np.float16))
    return path


def _byte_symbols() -> list[str]:
    """GPT-2's printable character of each byte."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
