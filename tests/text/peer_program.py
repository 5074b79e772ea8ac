"""llama.cpp's tokenizer as a program: compiled from the pinned sources, without the models' code, in half a minute."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import peer

_MAIN = Path(__file__).with_name("reference_ids.cpp")
_HEADERS = r"(include|ggml/include|src|ggml/src(/ggml-cpu)?)/[\w.-]+\.h"
_GGML = ("ggml.c", "ggml-alloc.c", "ggml-quants.c", "ggml.cpp", "ggml-backend.cpp", "ggml-backend-meta.cpp")
_GGML += ("ggml-threading.cpp", "gguf.cpp")
_LLAMA = ("llama-vocab.cpp", "llama-impl.cpp", "llama-arch.cpp", "llama-model-loader.cpp", "llama-mmap.cpp")
_LLAMA += ("llama-hparams.cpp", "unicode.cpp", "unicode-data.cpp")
_SOURCES = (*(f"ggml/src/{name}" for name in _GGML), *(f"src/{name}" for name in _LLAMA))
_VERSION_HEADER = '#pragma once\n#define GGML_VERSION "0"\n#define GGML_COMMIT "0"\n'  # cmake writes it otherwise


class Reference(NamedTuple):
    """What llama.cpp makes of a vocabulary."""

    ends: list[int]  # ids that end generation
    ids: list[list[int]]  # of each text


def build() -> Path:
    """The program, compiled when it is not there yet."""
    folder = peer.KEPT_IN / f"tokens-{peer.SHA256[:8]}"
    program = folder / "reference_ids"
    if not program.is_file():
        for name, raw in peer.files(f"{_HEADERS}|{'|'.join(map(_escaped, _SOURCES))}").items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(raw)
        (folder / "ggml-version.h").write_text(_VERSION_HEADER)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda name: _compile(folder, name), _SOURCES))
    if not program.is_file() or program.stat().st_mtime < _MAIN.stat().st_mtime:
        objects = [str(folder / _object(name)) for name in _SOURCES]
        _run(["c++", "-std=c++17", *_flags(folder), str(_MAIN), *objects, "-o", str(program)])
    return program


def reference(vocabulary: Path, texts: Sequence[str], *, special: bool = False, add: bool = False) -> Reference:
    """What llama.cpp makes of `texts` by the vocabulary of a GGUF file; with `add`, BOS and EOS as the file says."""
    lines = "".join(f"{int(special)} {int(add)} {text.encode().hex()}\n" for text in texts)
    run = subprocess.run([build(), vocabulary], input=lines, capture_output=True, text=True, check=True)
    ends, *ids = ([int(i) for i in line.split()] for line in run.stdout.splitlines())
    assert len(ids) == len(texts)
    return Reference(ends, ids)


def _escaped(name: str) -> str:
    return name.replace(".", r"\.")


def _object(name: str) -> str:
    return name.replace("/", "-") + ".o"


def _flags(folder: Path) -> list[str]:
    return ["-O1", *(f"-I{folder / name}" for name in ("include", "src", "ggml/include", "ggml/src", "."))]


def _compile(folder: Path, name: str) -> None:
    compiler = ["cc", "-std=c11", "-D_GNU_SOURCE"] if name.endswith(".c") else ["c++", "-std=c++17"]
    _run([*compiler, *_flags(folder), "-c", str(folder / name), "-o", str(folder / _object(name))])


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command[:3])} … failed:\n{done.stderr[-2000:]}")
