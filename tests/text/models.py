"""Small vocabularies for tests: trained on the spot, or written by hand, each as GGUF metadata."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as RustTokenizer

from kamado.files.types import TokenizerSource
from kamado.text.tokenizer import Tokenizer, load_tokenizer
from kamado.text.tokenizer.pretokenizers import PRE_TOKENIZERS

from .corpus import DECOMPOSED, TEXTS

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SPACE = "\u2581"


def gguf_source(**keys: Any) -> TokenizerSource:
    """Metadata with `tokenizer.ggml.` before every key."""
    return TokenizerSource("gguf", {f"tokenizer.ggml.{key}": value for key, value in keys.items()}, Path("model.gguf"))


def gguf(**keys: Any) -> Tokenizer:
    return load_tokenizer(gguf_source(**keys))


def training_texts() -> list[str]:
    return [text for name, text in (TEXTS | DECOMPOSED).items() if "special" not in name]


def trained_bpe(pre: str, vocab_size: int = 700) -> RustTokenizer:
    """A byte-level BPE that the `tokenizers` package trained, with the words of `pre`."""
    way = PRE_TOKENIZERS[pre]
    rust = RustTokenizer(models.BPE(ignore_merges=way.ignore_merges))
    if way.nfc:
        rust.normalizer = normalizers.NFC()
    rust.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in way.patterns),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    rust.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rust.train_from_iterator(training_texts(), trainer)
    return rust


def bpe_as_gguf(rust: RustTokenizer, pre: str, **more: Any) -> dict[str, Any]:
    """The metadata a converter would write for `rust`."""
    import json

    model = json.loads(rust.to_str())["model"]
    vocab: Mapping[str, int] = rust.get_vocab(with_added_tokens=True)
    tokens = sorted(vocab, key=vocab.__getitem__)
    special = {token.content for token in rust.get_added_tokens_decoder().values()}
    keys = {
        "model": "gpt2",
        "pre": pre,
        "tokens": tokens,
        "token_type": [CONTROL if token in special else NORMAL for token in tokens],
        "merges": [" ".join(merge) for merge in model["merges"]],
        "bos_token_id": vocab["<|im_start|>"],
        "eos_token_id": vocab["<|im_end|>"],
        "add_bos_token": False,
    }
    return keys | more


def tiny_spm(**more: Any) -> dict[str, Any]:
    """A hand-made SentencePiece vocabulary with byte fallback."""
    pieces: list[tuple[str, float, int]] = [("<unk>", 0, UNKNOWN), ("<s>", 0, CONTROL), ("</s>", 0, CONTROL)]
    pieces += [(f"<0x{byte:02X}>", 0, BYTE) for byte in range(256)]
    words = [f"{SPACE}t", "he", "in", f"{SPACE}the", "er", "ing", "ab", "bc", "abc", "cd", f"{SPACE}{SPACE}"]
    pieces += [(word, -float(rank), NORMAL) for rank, word in enumerate(words)]
    pieces += [(char, -100.0 - rank, NORMAL) for rank, char in enumerate(f"{SPACE}abcdefghinrt<>/s\u3042")]
    keys = {
        "model": "llama",
        "tokens": [piece[0] for piece in pieces],
        "scores": [float(piece[1]) for piece in pieces],
        "token_type": [piece[2] for piece in pieces],
    }
    return keys | more


def tiny_bpe(**more: Any) -> dict[str, Any]:
    """A hand-made byte-level vocabulary: every byte, a few merges, special tokens."""
    from kamado.text.tokenizer.pieces import byte_alphabet

    tokens = [
        *byte_alphabet().values(),
        "he",
        "ll",
        "hell",
        "hello",
        "Ġhello",
        "Ġh",
        "<|im_start|>",
        "<|im_end|>",
        "<tool>",
    ]
    keys = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": tokens,
        "token_type": [NORMAL] * (len(tokens) - 3) + [CONTROL, CONTROL, USER_DEFINED],
        "merges": ["h e", "l l", "he ll", "hell o", "Ġ h", "Ġ hello"],
        "bos_token_id": tokens.index("<|im_start|>"),
        "eos_token_id": tokens.index("<|im_end|>"),
    }
    return keys | more


def tiny_plamo(**more: Any) -> dict[str, Any]:
    """A hand-made vocabulary of PLaMo's kind: control tokens, every byte, a few pieces."""
    pieces = {"a": -3.0, "ab": -4.0, "abc": -9.0, "bc": -5.0, "b": -3.0, " ": -2.0, "日本": -6.0}
    tokens = ["<|plamo:unk|>", "<|plamo:bos|>", "<|plamo:eos|>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    keys = {
        "model": "plamo2",
        "tokens": tokens,
        "scores": [0.0] * 259 + list(pieces.values()),
        "token_type": [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * len(pieces),
    }
    return keys | more


def tiny_marked(**more: Any) -> dict[str, Any]:
    """A hand-made vocabulary of Gemma 4's kind."""
    words = [SPACE, *"helo", "he", "ll", f"{SPACE}he", "\n\n", "<|tool_call>"]
    keys = {
        "model": "gemma4",
        "tokens": ["<pad>", "<eos>", "<bos>", *(f"<0x{byte:02X}>" for byte in range(256)), *words],
        "token_type": [CONTROL] * 3 + [BYTE] * 256 + [NORMAL] * (len(words) - 1) + [USER_DEFINED],
        "merges": ["h e", "l l", f"{SPACE} he"],
        "bos_token_id": 2,
        "eos_token_id": 1,
    }
    return keys | more
