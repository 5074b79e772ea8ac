"""A `tokenizer.json` that takes all memory, to load or for a prompt, is refused before it is loaded here."""

from __future__ import annotations

import base64
import json
import os
import resource
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kamado.errors import TokenizerError
from kamado.files.types import TokenizerSource
from kamado.text.tokenizer import load_tokenizer
from kamado.text.tokenizer.bounds import check_charsmap, check_in_worker, check_text

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits are Linux's")


def tokenizer_json(**parts: Any) -> dict[str, Any]:
    """A file of two tokens."""
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
             "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
             "vocab": {"a": 0, "b": 1, "c": 2}, "merges": []}  # fmt: skip
    nothing = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"))
    return {"version": "1.0", "added_tokens": [], **nothing, "model": model, **parts}


def replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": list(steps)}


def charsmap(table: bytes) -> dict[str, Any]:
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(table).decode()}


HUNDREDFOLD = replace({"String": "a"}, "a" * 100)
ADDED = {
    "id": 3,
    "content": "aaa",
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": True,
    "special": False,
}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
AFFIX = {"SpecialToken": {"id": "a", "type_id": 0}}
HOSTILE = {
    "replacements": ({"normalizer": sequence(*[HUNDREDFOLD] * 3)}, "more than 24 bytes of one"),
    "replacements of an added token": (
        {"normalizer": sequence(*[HUNDREDFOLD] * 4), "added_tokens": [ADDED]},
        "more than 512 MiB of memory",
    ),
    "replaced expression": ({"normalizer": replace({"Regex": "."}, "a" * 30)}, "more than 24 bytes"),
    "replaced nothing": ({"normalizer": replace({"Regex": ""}, "a" * 30)}, "more than 24 bytes"),
    "nested sequences": (
        {"normalizer": sequence(sequence(HUNDREDFOLD), sequence(sequence(HUNDREDFOLD)))},
        "more than 24 bytes",
    ),
    "byte levels": ({"normalizer": sequence(*[{"type": "ByteLevel"}] * 10)}, "more than 24 bytes"),
    "byte levels of words": (
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [BYTE_LEVEL] * 10}},
        "more than 24 bytes",
    ),
    "prefixes": ({"normalizer": sequence(*[{"type": "Prepend", "prepend": "x" * 99}] * 9)}, "more than 24 bytes"),
    "table of 4 GiB": ({"normalizer": charsmap(b"\xfc\xff\xff\xff\0\0")}, "512 MiB|does not hold"),
    "table of 2 GiB": ({"normalizer": charsmap(struct.pack("<I", 0x7FFFFFFC) + b"a")}, "512 MiB|does not hold"),
    "affixes": (
        {
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [AFFIX] * 50_000 + [{"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {"a": {"id": "a", "ids": [0], "tokens": ["a"]}},
            }
        },
        "puts 50000 tokens around a text",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_grows_is_refused(name: str, tmp_path: Path) -> None:
    parts, reason = HOSTILE[name]
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(tokenizer_json(**parts)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(TokenizerError, match=reason) as caught:
        load_tokenizer(TokenizerSource("hf", {}, path))
    assert str(path) in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 << 10


def test_the_process_lives_where_memory_is_short(tmp_path: Path) -> None:
    """A table that claims 4 GiB made the package abort the process that loaded it."""
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(tokenizer_json(normalizer=charsmap(b"\xfc\xff\xff\xff\0\0"))))
    code = (
        "import resource, sys\nfrom pathlib import Path\n"
        "from kamado.text.tokenizer import load_tokenizer\n"
        "from kamado.files.types import TokenizerSource\n"
        "from kamado.errors import TokenizerError\n"
        "resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))\n"
        "try:\n    load_tokenizer(TokenizerSource('hf', {}, Path(sys.argv[1])))\n"
        "except TokenizerError as error:\n    print('refused')\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", code, str(path)], env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, b"refused\n")


@pytest.mark.parametrize(
    ("parts", "growth"),
    [
        ({}, 1.0),
        ({"normalizer": sequence({"type": "Prepend", "prepend": "▁"}, replace({"String": " "}, "▁"))}, 3.0),
        ({"normalizer": replace({"Regex": " {2,}"}, " ")}, 1.0),
        ({"pre_tokenizer": BYTE_LEVEL}, 1.3),
    ],
)
def test_usual_files_are_loaded(parts: dict[str, Any], growth: float, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(tokenizer_json(**parts)))
    assert check_in_worker(path, path.read_bytes()) == pytest.approx(growth, rel=0.3)
    assert load_tokenizer(TokenizerSource("hf", {}, path)).vocab_size == 3


def test_a_file_that_changes_in_between_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(tokenizer_json()))
    with pytest.raises(TokenizerError, match="changed while it was read"):
        check_in_worker(path, b"{}")


def test_long_texts_are_refused_by_what_they_grow_to() -> None:
    check_text("a" * 1_000_000, 3.0)
    with pytest.raises(TokenizerError, match="is too long for this tokenizer"):
        check_text("a" * 6_000_000, 3.0)


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        (struct.pack("<I", 4) + b"abcdxyz\0", ""),
        (b"", "does not hold"),
        (struct.pack("<I", 400) + b"a" * 8, "does not hold"),
        (struct.pack("<I", 4) + b"abcd" + b"x" * 200 + b"\0", "replaces a character by 200 bytes"),
    ],
)
def test_precompiled_tables(table: bytes, problem: str) -> None:
    assert problem in check_charsmap(table)
    assert bool(problem) == bool(check_charsmap(table))
