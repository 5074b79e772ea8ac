"""Record reference ids into golden/. Run by hand when the corpus changes; tests only read what it wrote.

    python -m tests.text.record sentencepiece
    python -m tests.text.record unigram
    python -m tests.text.record ways
    python -m tests.text.record llama.cpp MODELS_FOLDER

The last two need the folder tests on PYTHONPATH and compile llama.cpp's tokenizer (peer_program.py).
"""

from __future__ import annotations

import json
import sys
import tempfile
import unicodedata
from pathlib import Path
from typing import Any

import peer

_GOLDEN = Path(__file__).parent / "golden"


def record_sentencepiece() -> None:
    import sentencepiece

    from .test_spm import _TEXTS, train_sentencepiece

    options: dict[str, dict[str, Any]] = {
        "plain": {"vocab_size": 640, "byte_fallback": True},
        "spaces": {
            "vocab_size": 640,
            "byte_fallback": True,
            "remove_extra_whitespaces": True,
            "add_dummy_prefix": True,
        },
        "no_bytes": {"vocab_size": 400, "byte_fallback": False, "add_dummy_prefix": False},
        "across": {
            "vocab_size": 640,
            "byte_fallback": True,
            "split_by_whitespace": False,
            "allow_whitespace_only_pieces": True,
        },
    }
    recorded = {}
    for name, option in options.items():
        with tempfile.TemporaryDirectory() as folder:
            metadata, encode = train_sentencepiece(sentencepiece, Path(folder), **option)
            short = {key: text for key, text in _TEXTS.items() if not key.startswith("long_")}
            recorded[name] = {"metadata": metadata, "ids": {key: encode(text) for key, text in short.items()}}
    _write("sentencepiece.json", {"sentencepiece": sentencepiece.__version__, "models": recorded})


def record_unigram() -> None:
    import sentencepiece

    from .unigram_models import MODELS, texts, train

    recorded = {}
    for name, options in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            metadata, encode = train(sentencepiece, Path(folder), **options)
            recorded[name] = {"metadata": metadata, "ids": {key: encode(text) for key, text in texts().items()}}
    _write("unigram.json", {"sentencepiece": sentencepiece.__version__, "models": recorded})


def record_llama_cpp(folder: str) -> None:
    """Of the real models' vocabularies."""
    from .peer_program import reference
    from .test_real import FILES, compact, golden_name, texts

    for name, file in FILES.items():
        nfc = name.startswith("qwen")  # llama.cpp leaves out the composition that Qwen's tokenizer begins with
        given = [unicodedata.normalize("NFC", text) if nfc else text for text in texts().values()]
        recorded = {}
        for mode, special in (("plain", False), ("special", True)):
            found = reference(Path(folder) / file, given, special=special, add=True).ids
            recorded[mode] = {key: compact(ids) for key, ids in zip(texts(), found, strict=True)}
        _write(golden_name(name), {"llama.cpp": peer.FILE, "file": file, "ids": recorded})


def record_ways() -> None:
    """Of the small vocabularies: each way of cutting words, PLaMo's tokenizer, and what ends a turn."""
    from . import vocabularies as small

    merges, pieces, marked = small.train_merges(), small.train_pieces(), small.train_marked()
    recorded: dict[str, Any] = {"llama.cpp": peer.FILE, "sha256": peer.SHA256}
    recorded |= {"merges": merges, "pieces": pieces, "marked": marked}
    recorded["ids"] = {way: small.peer_ids(small.byte_level(merges, way)) for way in small.ways()}
    recorded["ids"]["llama"] = small.peer_ids(small.sentence_piece())
    recorded["ids"]["plamo2"] = small.peer_ids(small.plamo(pieces))
    recorded["ids"]["gemma4"] = small.peer_ids(small.marked_pairs(marked))
    recorded["ends"] = {name: small.peer_ends(keys) for name, keys in small.END_CASES.items()}
    _write("ways.json", recorded)


def _write(name: str, value: Any) -> None:
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":")).replace('},"', '},\n"').replace('],"', '],\n"')
    (_GOLDEN / name).write_text(text + "\n")


if __name__ == "__main__":
    if sys.argv[1] == "sentencepiece":
        record_sentencepiece()
    elif sys.argv[1] == "unigram":
        record_unigram()
    elif sys.argv[1] == "ways":
        record_ways()
    else:
        record_llama_cpp(sys.argv[2])
