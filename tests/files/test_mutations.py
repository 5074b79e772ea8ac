"""Mutated files: whatever bytes are changed, a file opens or is refused with one typed sentence, and nothing dies."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from .builders import gguf_bytes, key_value, safetensors_bytes
from .test_wrong_types import GGUF_KEYS, encoded, fault, gguf_tensors, use, write_directory

NUMBERS = [struct.pack("<Q", n) for n in (0, 1, 9, 255, 1 << 31, (1 << 32) - 1, 1 << 60, (1 << 64) - 1)]


def _mutated(raw: bytes, rng: random.Random, header_bytes: int) -> bytes:
    """Some bytes of the header changed, taken out, put in or copied; or the end cut off."""
    out = bytearray(raw)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at = rng.randrange(min(header_bytes, len(out)) or 1)
        match rng.randrange(6):
            case 0:
                out[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                number = rng.choice(NUMBERS)[: rng.choice((4, 8))]
                out[at : at + len(number)] = number
            case 2:
                del out[at : at + rng.randint(1, 40)]
            case 3:
                out[at:at] = rng.randbytes(rng.randint(1, 40))
            case 4:
                begin = rng.randrange(len(out) or 1)
                out[at:at] = out[begin : begin + rng.randint(1, 60)]
            case 5:
                del out[rng.randrange(len(out) or 1) :]
    return bytes(out)


@pytest.mark.parametrize("seed", range(6))
def test_gguf(tmp_path: Path, seed: int) -> None:
    """215 files each, 1290 in all."""
    values = {name: encoded(value) for name, value in GGUF_KEYS.items()}
    infos, data = gguf_tensors()
    raw = gguf_bytes([key_value(name, *value) for name, value in values.items()], infos, data)
    path = tmp_path / "m.gguf"
    path.write_bytes(raw)
    use(path)
    rng = random.Random(seed)
    num_refused = 0
    for _ in range(215):
        path.write_bytes(_mutated(raw, rng, len(raw) - len(data)))
        sentence = fault(path)
        num_refused += sentence is not None
        assert sentence is None or ("\n" not in sentence and str(path) in sentence and len(sentence) < 1000)
    assert num_refused > 100


@pytest.mark.parametrize("seed", range(2))
def test_safetensors(tmp_path: Path, seed: int) -> None:
    write_directory(tmp_path)
    path = tmp_path / "w.safetensors"
    raw = path.read_bytes()
    rng = random.Random(seed)
    header_bytes = 8 + int.from_bytes(raw[:8], "little")
    for _ in range(150):
        path.write_bytes(_mutated(raw, rng, header_bytes))
        sentence = fault(tmp_path)
        assert sentence is None or ("\n" not in sentence and str(tmp_path) in sentence)


def test_an_empty_directory_of_weights(tmp_path: Path) -> None:
    write_directory(tmp_path)
    (tmp_path / "w.safetensors").write_bytes(safetensors_bytes({}))
    assert "is missing" in (fault(tmp_path) or "")
