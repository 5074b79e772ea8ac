"""Unigram models trained by SentencePiece, as GGUF metadata, and texts that try their normalisation."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .corpus import DECOMPOSED, TEXTS
from .models import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, training_texts

# What becomes what, in hexadecimal code points as SentencePiece's rule files have it: a small kind of NFKC, with keys
# of two characters and a character that vanishes.
_RULES = [
    ("9", "20"), ("A0", "20"), ("3000", "20"), ("200B", ""), ("FB01", "66 69"), ("B2", "32"), ("65 301", "E9"),
    ("FF76 FF9E", "30AC"), ("FF76", "30AB"), ("FDFA", "41 20 42"), ("1100 1161", "AC00"),
    *((f"{0xFF10 + i:X}", f"{0x30 + i:X}") for i in range(10)),
]  # fmt: skip

MODELS: dict[str, dict[str, Any]] = {
    "plain": {"normalization_rule_name": "identity"},
    "rules": {},
    "bytes": {"byte_fallback": True, "vocab_size": 560},
    "spaces": {"remove_extra_whitespaces": False},
    "no_prefix": {"add_dummy_prefix": False},
    "user_defined": {"user_defined_symbols": ["<t>", "\u65e5\u672c"], "byte_fallback": True, "vocab_size": 560},
}

_POOL = [
    *" \u2581abexy<>\n\t0\uff11\ufb01\u00e9\u0301\uff76\uff9e\u3000\u65e5\u672c\ufdfa\u1100\u1161\u00a0\u200b\u00b2"
]
_POOL += ["<t>", "  ", "<0x0A>", "</s>", "<unk>", "\U00013000", "leading", "x y"]


def texts() -> dict[str, str]:
    """Texts by name. No character stands three times in a row but spaces: equal scores could end either way then."""
    rng = random.Random(4)
    drawn = {f"drawn {i}": "".join(rng.choices(_POOL, k=rng.randint(1, 10))) for i in range(220)}
    chosen = {
        "leading": " leading",
        "trailing": "trailing \u2581 ",
        "newline": "\n a",
        "marks": "\u2581",
        "blank": "  ",
    }
    chosen |= {"literal byte": "<0x0A>", "empty": ""}
    every = chosen | {name: text for name, text in (TEXTS | DECOMPOSED).items() if len(text) < 400} | drawn
    return {name: text for name, text in every.items() if not _has_run(text)}


def _has_run(text: str) -> bool:
    return "\0" in text or any(a == b == c != " " for a, b, c in zip(text, text[1:], text[2:], strict=False))


def train(spm: Any, folder: Path, **options: Any) -> tuple[dict[str, Any], Any]:
    """A trained model as GGUF metadata, and SentencePiece's own encoder of it."""
    corpus, rules = folder / "corpus.txt", folder / "rules.tsv"
    corpus.write_text("\n".join(training_texts()), encoding="utf-8")
    rules.write_text("".join(f"{a}\t{b}\n" for a, b in _RULES), encoding="utf-8")
    defaults = {"model_type": "unigram", "vocab_size": 320, "character_coverage": 0.98, "minloglevel": 2}
    defaults |= {"num_threads": 1, "max_sentence_length": 1 << 20}
    if "normalization_rule_name" not in options:
        defaults["normalization_rule_tsv"] = str(rules)
    spm.SentencePieceTrainer.train(input=str(corpus), model_prefix=str(folder / "m"), **(defaults | options))
    model = spm.SentencePieceProcessor(model_file=str(folder / "m.model"))
    size = model.vocab_size()
    pieces = [model.id_to_piece(i) for i in range(size)]
    special = {UNKNOWN: model.is_unknown, CONTROL: model.is_control, UNUSED: model.is_unused, BYTE: model.is_byte}
    kinds = [next((kind for kind, test in special.items() if test(i)), NORMAL) for i in range(size)]
    for symbol in options.get("user_defined_symbols", []):
        kinds[pieces.index(symbol)] = USER_DEFINED
    metadata = {
        "model": "t5",
        "tokens": pieces,
        "scores": [model.get_score(i) for i in range(size)],
        "token_type": kinds,
        "unknown_token_id": 0,
        "add_eos_token": False,
        "add_space_prefix": options.get("add_dummy_prefix", True),
        "remove_extra_whitespaces": options.get("remove_extra_whitespaces", True),
        "precompiled_charsmap": list(_charsmap((folder / "m.model").read_bytes())),
    }
    return metadata, model.encode


def _charsmap(proto: bytes) -> bytes:
    """`normalizer_spec.precompiled_charsmap` of a serialised ModelProto."""
    spec = next(value for number, value in _fields(proto) if number == 3)
    return next((value for number, value in _fields(spec) if number == 2), b"")


def _fields(raw: bytes) -> Iterator[tuple[int, Any]]:
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = raw[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(raw):
        key = varint()
        if key & 7 == 0:
            yield key >> 3, varint()
            continue
        size = varint() if key & 7 == 2 else 4 if key & 7 == 5 else 8
        yield key >> 3, raw[at : at + size]
        at += size
