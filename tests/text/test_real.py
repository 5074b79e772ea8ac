"""The real models' vocabularies: ids as llama.cpp gave them (recorded by record.py), and facts about each file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kamado.files import open_checkpoint
from kamado.text.tokenizer import Tokenizer, load_tokenizer

from .corpus import DECOMPOSED, INVALID_BYTES, TEXTS

pytestmark = pytest.mark.real

FILES = {
    "smollm2:135m": "smollm2-135m-instruct-q4_1.gguf",
    "gemma3:270m": "gemma-3-270m-q4_k_m.gguf",
    "qwen2.5-coder:1.5b": "qwen2.5-coder-1.5b.gguf",
}
# llama.cpp makes any token "</s>" a control token. In Qwen it is an ordinary token of HTML, which plain merging
# reaches or not; in Gemma it is a user-defined one. Both families' own tokenizers treat it so, and so do we.
_HTML_END = {("gemma3:270m", "plain"), ("qwen2.5-coder:1.5b", "special")}


def texts() -> dict[str, str]:
    return TEXTS | DECOMPOSED


def golden_name(model: str) -> str:
    return model.replace(":", "-") + ".json"


def compact(ids: list[int]) -> Any:
    """Short lists as they are, long ones as a digest."""
    if len(ids) <= 120:
        return ids
    return {"count": len(ids), "sha256": hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest()}


def _load(path: Path) -> Tokenizer:
    source = open_checkpoint(path).tokenizer
    assert source is not None
    return load_tokenizer(source)


@pytest.mark.parametrize("model", FILES)
def test_ids_are_those_of_llama_cpp(model: str, real_model: Callable[[str], Path]) -> None:
    tokenizer = _load(real_model(model))
    golden = json.loads((Path(__file__).parent / "golden" / golden_name(model)).read_text())["ids"]
    num_compared = 0
    for mode, special in (("plain", False), ("special", True)):
        for name, text in texts().items():
            if "</s>" in text and (model, mode) in _HTML_END:
                continue
            assert compact(tokenizer.encode(text, special=special)) == golden[mode][name], (mode, name)
            num_compared += 1
    assert num_compared >= 100


@pytest.mark.parametrize("model", FILES)
def test_text_and_bytes_come_back(model: str, real_model: Callable[[str], Path]) -> None:
    tokenizer = _load(real_model(model))
    for name, text in TEXTS.items():
        if "space_mark" in name:  # SentencePiece cannot tell it from a space
            continue
        assert tokenizer.decode(tokenizer.encode(text)) == text, name
    for name, data in INVALID_BYTES.items():
        ids = tokenizer.encode(data, add_bos=False)
        assert tokenizer.decode(ids) == data.decode("utf-8", "replace"), name
        if model != "smollm2:135m":  # has no tokens for bytes that no valid text has
            assert b"".join(map(tokenizer.token_bytes, ids)) == data, name


def test_ends_and_specials(real_model: Callable[[str], Path]) -> None:
    expected = {
        "smollm2:135m": {"<|endoftext|>", "<|im_end|>"},
        "gemma3:270m": {"<eos>", "<end_of_turn>"},
        "qwen2.5-coder:1.5b": {"<|endoftext|>", "<|im_end|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"},
    }
    for model, names in expected.items():
        tokenizer = _load(real_model(model))
        assert {tokenizer.token_bytes(i).decode() for i in tokenizer.stop_ids} == names
        assert tokenizer.stop_ids <= tokenizer.special_ids


def test_minilm_is_bert(real_model: Callable[[str], Path]) -> None:
    tokenizer = _load(real_model("minilm:l6"))
    assert tokenizer.encode("Hello, unaffable World!") == [101, 7592, 1010, 14477, 20961, 3468, 2088, 999, 102]
    assert tokenizer.decode(tokenizer.encode("Hello, unaffable World!")) == "hello, unaffable world!"
    assert 102 not in tokenizer.encode("[SEP] [CLS]", add_eos=False)
    assert tokenizer.encode("[SEP]", special=True, add_bos=False, add_eos=False) == [102]
