"""llama.cpp, the reference for what a GGUF file means, from a source distribution on the package index."""

from __future__ import annotations

import re
import tarfile
from pathlib import Path

import pytest

from kamado.errors import DownloadError
from kamado.library.fetch import download, file_hash, http_client
from kamado.library.package_index import find_file, read_config

PROJECT = "llama-cpp-python"
FILE = "llama_cpp_python-0.3.36.tar.gz"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
NBYTES = 76_589_250
KEPT_IN = Path(__file__).resolve().parents[1] / "build" / "peer"


def files(wanted: str) -> dict[str, bytes]:
    """Files of llama.cpp by their path, which the pattern `wanted` matches; the test is skipped where they cannot be
    fetched.

    The archive is kept in build/peer, its hash is checked each time, and nothing of it is run.
    """
    archive = KEPT_IN / FILE
    if not archive.is_file():
        KEPT_IN.mkdir(parents=True, exist_ok=True)
        _fetch(archive)
    assert file_hash(archive) == SHA256, f"{archive} is not what was pinned: remove it"
    found = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            _, _, name = member.name.partition("/vendor/llama.cpp/")
            if member.isfile() and re.fullmatch(wanted, name):
                found[name] = tar.extractfile(member).read()  # type: ignore[union-attr]
    return found


def sources() -> dict[str, str]:
    """Text of llama.cpp's C++ files by their path below src/."""
    found = files(r"src/(models/)?[\w-]+\.cpp")
    return {name.removeprefix("src/"): raw.decode() for name, raw in found.items()}


def templates() -> dict[str, str]:
    """Chat templates by file name without `.jinja`."""
    found = files(r"models/templates/[\w.-]+\.jinja")
    return {Path(name).stem: raw.decode() for name, raw in found.items()}


def _fetch(archive: Path) -> None:
    index = read_config()
    try:
        with http_client(index.client) as client:
            for place in find_file(index, client, PROJECT, FILE):
                if isinstance(place, str):
                    download(client, place, archive, nbytes=NBYTES, is_right=lambda path: file_hash(path) == SHA256)
                    return
    except DownloadError as fault:
        pytest.skip(f"llama.cpp's sources cannot be fetched: {fault}")
    pytest.skip(f"no package index offers {FILE}")


def model_file(found: dict[str, str], architecture: str) -> str:
    """The text of the file that has the forward pass of a GGUF architecture."""
    (name,) = re.findall(rf'LLM_ARCH_(\w+), *"{architecture}"', found["llama-arch.cpp"])
    return found[f"models/{name.lower().replace('_', '-')}.cpp"]


def keys(arch_cpp: str) -> dict[str, str]:
    """Keys below an architecture's own prefix, by the name that the sources have for them."""
    return dict(re.findall(r"\{\s*(LLM_KV_\w+),\s*\"%s\.([\w.]+)\"", arch_cpp))
