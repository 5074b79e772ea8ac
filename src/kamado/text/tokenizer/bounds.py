"""How much a tokenizer may take: to load, and to make of a text.

A `tokenizer.json` is a program: its normalizers and pre-tokenizers run one after the other on the package's own terms,
and a line of it can make a thousand bytes of each byte, in the file's own vocabulary or in a prompt. So the file is
loaded and tried in a worker process (isolated.py) before it is loaded here, and what grows too much is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import TokenizerError
from ...files.plain_file import BOM
from ...isolated import Limits, Worker, WorkerEndedError, why_ended

LOAD_BYTES = 512 << 20
# Bytes that normalizers and pre-tokenizers may make of one. Unicode's own normal forms reach 18 and SentencePiece's 11.
MAX_GROWTH = 24
# Text that is normalised at once, after it has grown: the package takes some 20 bytes for each.
MAX_GROWN_BYTES = 16 << 20
MAX_AFFIXES = 256  # tokens that are put around a text
MAX_REPLACEMENT_BYTES = 128  # of one entry of a precompiled table; the longest in use has 33

# All of Latin, Greek and Cyrillic, a sixteenth of the rest, and the forms that Unicode takes apart most.
_PROBES = (*range(0x20, 0x600), *range(0x600, 0xD800, 16), *range(0xF900, 0x10000, 4), 0xFDFA, 0x1D160, 0x1F600)

_SEQUENCES = ("normalizers", "pretokenizers", "decoders")  # where the parts of a sequence stand
_LIMITS = Limits(cpu_seconds=60.0, clock_seconds=180.0, memory_bytes=LOAD_BYTES)
# At usual priority, for somebody waits for a model; it ends soon after.
_WORKER = Worker((__name__,), nice=0, idle_seconds=2.0)


def check_in_worker(path: Path, raw: bytes) -> float:
    """Loads the file `path`, whose content is `raw`, in a process that may die of it.

    Returns the bytes it may make of one byte of text. Raises TokenizerError for what cannot or must not be loaded.
    """
    try:
        reply = _WORKER.ask("kamado.text.tokenizer.bounds:try_out", {"path": str(path)}, _LIMITS)
    except WorkerEndedError as error:
        reasons = {
            "time": f"takes longer than {_LIMITS.cpu_seconds:g} s",
            "memory": f"takes more than {LOAD_BYTES >> 20} MiB of memory",
            "stack": "is nested too deeply",
        }
        said = why_ended(error, f"{path}: this tokenizer", reasons)
        raise TokenizerError(f"{path}: loading this tokenizer {said}: its file is damaged or hostile") from None
    if reply["error"]:
        raise TokenizerError(f"{path}: {reply['error']}")
    if reply["digest"] != _digest(raw):
        raise TokenizerError(f"{path}: changed while it was read: load the model again")
    return float(reply["growth"])


def check_text(text: str, growth: float) -> None:
    """Raises TokenizerError for a text that is too long to be normalised at once."""
    if len(text) * growth > MAX_GROWN_BYTES:
        raise TokenizerError(
            f"a text of {len(text)} characters is too long for this tokenizer, whose normalizers make up to "
            f"{growth:g} bytes of one: {int(MAX_GROWN_BYTES / growth)} are allowed"
        )


def _digest(raw: bytes) -> str:
    return hashlib.blake2b(raw, digest_size=16).hexdigest()


def check_charsmap(table: bytes) -> str:
    """What is wrong with a precompiled table: a length, that many bytes of double array, then texts that end in zeros.
    "" when it can be used."""
    array_bytes = int.from_bytes(table[:4], "little")
    if array_bytes < 4 or array_bytes % 4 or 4 + array_bytes >= len(table):
        return f"of {len(table)} bytes does not hold the {array_bytes} bytes that it claims"
    longest = max(map(len, table[4 + array_bytes :].split(b"\0")))
    if longest > MAX_REPLACEMENT_BYTES:
        return f"replaces a character by {longest} bytes: {MAX_REPLACEMENT_BYTES} are allowed"
    return ""


# --- in the worker ----------------------------------------------------------------------------------------------------


def warm_up() -> None:
    """Imports the package."""
    import tokenizers  # noqa: F401


def try_out(request: Any) -> Any:
    """Loads a file and finds how much it makes of a text. The reply has the reason why it must not be used, if any."""
    from .rust import rust_errors

    raw = Path(request["path"]).read_bytes()
    reply = {"error": "", "digest": _digest(raw), "growth": 1.0}
    try:
        raw.decode("utf-8")
        with rust_errors("no valid tokenizer"):
            reply["growth"] = _try_out(raw.removeprefix(BOM))
    except UnicodeDecodeError:
        reply["error"] = "not valid UTF-8"
    except TokenizerError as error:
        reply["error"] = str(error)
    return reply


def _try_out(raw: bytes) -> float:
    from tokenizers import Tokenizer as RustTokenizer

    rust = RustTokenizer.from_buffer(raw)
    rust.no_truncation()
    rust.no_padding()
    parts = [part for part in (rust.normalizer, rust.pre_tokenizer) if part is not None]
    states = [json.loads(part.__getstate__()) for part in parts]
    steps = [step for state in states for step in flatten(state)]
    for step in steps:
        table = step.get("precompiled_charsmap")
        if isinstance(table, str):
            import base64

            problem = check_charsmap(base64.b64decode(table))
            if problem:
                raise TokenizerError(f"its table precompiled_charsmap {problem}")
    growth = 1.0
    for step in steps:
        growth *= _growth_of(step)
        _check_growth(growth)
    # What the steps' own descriptions do not tell: each character alone, and the patterns that they look for.
    for probe in (*map(chr, _PROBES), *filter(None, map(_pattern, steps))):
        made = rust.normalizer.normalize_str(probe) if rust.normalizer is not None else probe
        if rust.pre_tokenizer is not None:
            made = "".join(word for word, _ in rust.pre_tokenizer.pre_tokenize_str(made))
        measured = (len(made.encode()) - 4) / len(probe.encode())  # less what is put in front of a text
        _check_growth(measured)
        growth = max(growth, measured)
    around = len(rust.encode("a", add_special_tokens=True).ids) - len(rust.encode("a", add_special_tokens=False).ids)
    if around > MAX_AFFIXES:
        raise TokenizerError(f"it puts {around} tokens around a text: {MAX_AFFIXES} are allowed")
    return growth


def _check_growth(growth: float) -> None:
    if growth > MAX_GROWTH:
        raise TokenizerError(
            f"its normalizers make more than {MAX_GROWTH} bytes of one byte of text: a prompt would take all memory"
        )


def _growth_of(step: Mapping[str, Any]) -> float:
    """Bytes that a step makes of one, if it is a replacement."""
    if step.get("type") != "Replace":
        return 1.0
    content = len(str(step.get("content", "")).encode())
    pattern = step.get("pattern")
    if isinstance(pattern, Mapping) and isinstance(pattern.get("String"), str) and pattern["String"]:
        return max(1.0, content / len(pattern["String"].encode()))
    # An expression may match single bytes, or nothing between any two.
    return max(1.0, float(content) if isinstance(pattern, Mapping) and pattern.get("Regex") else content + 1.0)


def _pattern(step: Mapping[str, Any]) -> str:
    pattern = step.get("pattern")
    found = pattern.get("String", "") if isinstance(pattern, Mapping) else ""
    return found if isinstance(found, str) else ""


def flatten(state: Any) -> list[dict[str, Any]]:
    """The steps of a part of tokenizer.json, in order: those of a sequence, or itself."""
    if not isinstance(state, dict):
        return []
    inner: Any = next((state[name] for name in _SEQUENCES if name in state), [])
    if state.get("type") == "Sequence" and isinstance(inner, list):
        return [step for part in inner for step in flatten(part)]
    return [state]
