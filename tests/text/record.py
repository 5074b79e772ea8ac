"""Record reference ids into golden/. Run by hand when the corpus changes; tests only read what it wrote.

    python -m tests.text.record sentencepiece
    python -m tests.text.record unigram
    python -m tests.text.record llama.cpp REFERENCE_IDS_PROGRAM VERSION MODELS_FOLDER

REFERENCE_IDS_PROGRAM is reference_ids.cpp, compiled against llama.cpp.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import unicodedata
from pathlib import Path
from typing import Any

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


def record_llama_cpp(program: str, version: str, folder: str) -> None:
    from .test_real import FILES, compact, golden_name, texts

    for name, file in FILES.items():
        jobs = [(special, key, text) for special in (False, True) for key, text in texts().items()]
        nfc = name.startswith("qwen")  # llama.cpp leaves out the composition that Qwen's tokenizer begins with
        given = [unicodedata.normalize("NFC", text) if nfc else text for _, _, text in jobs]
        lines = "".join(f"{int(job[0])} 1 {text.encode().hex()}\n" for job, text in zip(jobs, given, strict=True))
        run = subprocess.run(
            [program, str(Path(folder) / file)], input=lines, capture_output=True, text=True, check=True
        )
        ids: dict[str, dict[str, Any]] = {"plain": {}, "special": {}}
        for (special, key, _), line in zip(jobs, run.stdout.splitlines(), strict=True):
            ids["special" if special else "plain"][key] = compact([int(i) for i in line.split()])
        _write(golden_name(name), {"llama.cpp": version, "file": file, "ids": ids})


def _write(name: str, value: Any) -> None:
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":")).replace('},"', '},\n"').replace('],"', '],\n"')
    (_GOLDEN / name).write_text(text + "\n")


if __name__ == "__main__":
    if sys.argv[1] == "sentencepiece":
        record_sentencepiece()
    elif sys.argv[1] == "unigram":
        record_unigram()
    else:
        record_llama_cpp(*sys.argv[2:5])
