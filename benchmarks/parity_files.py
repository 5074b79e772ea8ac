"""Random-weight GGUF files of the tests' families, wide enough for K-quants, that llama.cpp opens too.

The configurations, tensors and GGUF settings are those of tests/models/families/; sizes are put in their place before
the families are imported. Every value is an F16 number to begin with, so the F16 file is the checkpoint exactly.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from peers import call

_TESTS = Path(__file__).resolve().parents[1] / "tests" / "models"
# hidden, heads, key-value heads, of a head, of the MLP, layers, vocabulary
WIDTHS = (512, 8, 2, 64, 1024, 3, 768)
# in a layer, picked for a token, width of one: rows of whole K-quant blocks
EXPERTS = (16, 4, 256)
FIRST_TOKEN = 3 + 256  # unknown, begin, end, bytes; then one character each
LOGITS_STD = 2.5  # perplexity of some 30 to 60 over this vocabulary, as text has
MIX = "Q4_K_M"
# What llama.cpp or transformers wants otherwise than the tests' configurations have it.
CHANGES: dict[str, dict[str, Any]] = {
    "ernie4_5": {"use_bias": False},  # its graph has no biases in the MLP
    "exaone4": {"sliding_window": None, "layer_types": ["full_attention"] * 3},  # it has a window with 64 layers only
    "glm4": {"pad_token_id": None},  # for transformers' sake: its own is no token of so small a vocabulary
    "mistral": {"sliding_window": None},  # Llama's graph knows no window there, and its converter writes none
}
WITHOUT = {"ernie4_5": ".bias"}  # ends of names of tensors that such a change takes away
AS_MANY_KV_HEADS = ("olmoe",)  # a norm over the whole row of keys, loaded in the width of queries


@dataclass(frozen=True)
class Files:
    """One random model: the safetensors directory, its F16 file, the mix made from the same values, and its tokens."""

    family: str
    directory: Path
    f16: Path
    mix: Path
    text: Path
    tokens: np.ndarray


def wide_families(family: str = "") -> dict[str, Any]:
    """The tests' families by model_type, in sizes that suit `family`. Call it once, before anything imports them."""
    hidden, heads, kv_heads, *others = WIDTHS
    sizes = ModuleType("tiny_sizes")
    vars(sizes).update(WIDTHS=(hidden, heads, heads if family in AS_MANY_KV_HEADS else kv_heads, *others))
    vars(sizes).update(EXPERTS=EXPERTS)
    sys.modules["tiny_sizes"] = sizes
    sys.path.insert(0, str(_TESTS))
    import family_cases

    return {name: family for name, family in sorted(family_cases.families().items()) if family.gguf is not None}


def make_files(family: str, folder: Path, quantize: Path, *, seed: int, num_tokens: int) -> Files:
    """Writes all files of one model; the same arguments give the same bytes."""
    import gguf_export
    import tiny_models

    folder.mkdir(parents=True, exist_ok=True)
    config = {**tiny_models.CONFIGS[family], **CHANGES.get(family, {})}
    directory = tiny_models.write(folder / "hf", family, seed, **CHANGES.get(family, {}))
    _calibrate(family, directory, config, seed)
    whole = gguf_export.export(directory, folder / "f32.gguf", also=lambda w: _add_vocabulary(w, config["vocab_size"]))
    f16, mix = folder / "f16.gguf", folder / f"{MIX.lower()}.gguf"
    call([str(quantize), str(whole), str(f16), "F16", "1"])
    call([str(quantize), str(whole), str(mix), MIX, "1"])
    whole.unlink()
    tokens = _tokens(config["vocab_size"], num_tokens, seed)
    text = folder / "text.txt"
    text.write_text("".join(_character(int(token)) for token in tokens), encoding="utf-8")
    return Files(family, directory, f16, mix, text, tokens)


def _tokens(vocab_size: int, count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng([seed, 1])
    return rng.integers(FIRST_TOKEN, vocab_size, count).astype(np.int32)


def _calibrate(family: str, directory: Path, config: dict[str, Any], seed: int) -> None:
    """Rounds all values to F16 numbers, and scales the last norm so that the logits spread as text's do."""
    from numpy_executor import NumpyExecutor
    from safetensors.numpy import load_file, save_file

    from kamado.files import open_checkpoint
    from kamado.models import build_program
    from kamado.program import Head, Norm

    path = directory / "model.safetensors"
    state = {
        name: values.astype(np.float16).astype(np.float32)
        for name, values in load_file(path).items()
        if family not in WITHOUT or not name.endswith(WITHOUT[family])
    }
    save_file(state, path, metadata={"format": "pt"})
    program = build_program(open_checkpoint(directory))
    logits = NumpyExecutor(program).forward(_tokens(config["vocab_size"], 64, seed))
    (head,) = (op for op in program.ops if isinstance(op, Head))
    last = next(op for op in reversed(program.ops) if isinstance(op, Norm) and op.out.name == head.x.name)
    assert last.weight is not None, f"{family}: the last norm has no weight to scale"
    offset = np.float32(last.weight_offset)
    factor = LOGITS_STD / float(logits.std())
    if head.softcap is not None:  # tanh flattens what is scaled: aim at what goes into it
        factor = LOGITS_STD / float((head.softcap * np.arctanh(logits / head.softcap)).std())
    scaled = (state[last.weight.name] + offset) * np.float32(factor) - offset
    state[last.weight.name] = scaled.astype(np.float16).astype(np.float32)
    save_file(state, path, metadata={"format": "pt"})


def _character(token: int) -> str:
    return chr(0x4E00 + token - FIRST_TOKEN)


def _add_vocabulary(writer: Any, size: int) -> None:
    """A SentencePiece vocabulary in which every token from FIRST_TOKEN on is one character, so text is its tokens."""
    texts = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    texts += [_character(token) for token in range(FIRST_TOKEN, size)]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(texts)
    writer.add_token_scores([0.0] * FIRST_TOKEN + [-float(i) for i in range(size - FIRST_TOKEN)])
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * (size - FIRST_TOKEN))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
