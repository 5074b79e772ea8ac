"""What the two small models in trained/ were taught (benchmarks/train_tiny.py): texts, a token a byte, in which some
bytes follow from what stands some way before, and from nothing else.

recall   "…aX….aX.bM..aB…………?aB…": a letter's value is what was said of it last, asked 40 to 200 bytes later. The memory
         of the delta rule: a word said again must replace the one before, and nothing else.
copying  "dkaf3kbe1e…": behind a digit j stands the byte j before the digit. The reach of convolutions, two a layer.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FOLDER = Path(__file__).parent / "trained"
VOCAB = 128
BETWEEN = (40, 104)  # bytes at least between what was said last of a key and the question; 88 more at most
SAID_BEFORE = 3  # how often another value stands before the last one
COPY_LAYERS, REACH = 4, 8


@dataclass(frozen=True)
class Texts:
    """Texts of one length, and where the next byte can be known."""

    tokens: NDArray[np.int64]  # [texts, bytes]
    is_asked: NDArray[np.bool_]  # the byte behind is the answer

    @property
    def answers(self) -> NDArray[np.int64]:
        """Of all asked bytes, text by text."""
        return self.tokens[:, 1:][self.is_asked[:, :-1]]

    def share(self, chosen: NDArray[Any]) -> float:
        """Of the answers that `chosen` [texts, bytes], the likeliest byte behind each, has right."""
        return float((chosen[self.is_asked] == self.answers).mean())


Array = NDArray[np.uint8]
_KEYS = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz", np.uint8)
_VALUES = np.frombuffer(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ", np.uint8)
_QUESTION = ord("?")
_OTHERS = np.frombuffer(b" .,;:-+0123456789", np.uint8)
_NUM_KEYS, _SAID_BYTES, _ASKED_BYTES = 6, 64, 24


def _with_others(rng: np.random.Generator, words: list[bytes], length: int) -> bytes:
    """The words in order, other bytes between them, `length` in all."""
    others = rng.choice(_OTHERS, length - sum(map(len, words)))
    places = np.sort(rng.integers(0, len(others) + 1, len(words)))
    parts, begin = [], 0
    for word, place in zip(words, places, strict=True):
        parts += [others[begin:place].tobytes(), word]
        begin = place
    return b"".join([*parts, others[begin:].tobytes()])


def _said(rng: np.random.Generator, keys: Array, values: dict[int, Array]) -> list[bytes]:
    """All keys in any order, each three times with its first value before it has its last one."""
    order = rng.permutation(np.repeat(keys, SAID_BEFORE + 1)).tolist()
    return [bytes([key, values[key][0 if key in order[i + 1 :] else 1]]) for i, key in enumerate(order)]


def _said_and_asked(rng: np.random.Generator, keys: Array, values: dict[int, Array]) -> list[bytes]:
    """A word about every key, and words and questions in any order; `values` gets what was said last."""
    words: list[bytes] = []
    for i in range(4 * _NUM_KEYS - 2):
        key = int(keys[i] if i < _NUM_KEYS else rng.choice(keys))
        if i >= _NUM_KEYS and rng.random() < 0.6:
            words.append(bytes([_QUESTION, key, values[key][1]]))
        else:
            values[key][1] = rng.choice(_VALUES)
            words.append(bytes([key, values[key][1]]))
    return words


def _recall(rng: np.random.Generator, said: Callable[..., list[bytes]], between: int) -> tuple[bytes, list[int]]:
    keys = rng.choice(_KEYS, _NUM_KEYS, replace=False)
    values = {int(key): rng.choice(_VALUES, 2, replace=False) for key in keys}
    words = said(rng, keys, values)
    asked = [bytes([_QUESTION, key, values[int(key)][1]]) for key in rng.permutation(keys)]
    others = rng.choice(_OTHERS, between).tobytes()
    text = _with_others(rng, words, _SAID_BYTES) + others + _with_others(rng, asked, _ASKED_BYTES)
    return text, [i + 1 for i, byte in enumerate(text) if byte == _QUESTION]


def recall(rng: np.random.Generator, count: int, between: int = BETWEEN[1]) -> Texts:
    """Six keys a text, each said, asked far behind, and answered; each had another value three times before."""
    return _texts([_recall(rng, _said, between) for _ in range(count)])


def recall_lessons(rng: np.random.Generator, count: int) -> Texts:
    """Texts with questions near by too, one in four of the greater length."""
    between = BETWEEN[int(rng.random() < 0.25)]
    return _texts([_recall(rng, _said_and_asked, between) for _ in range(count)])


COPY_BYTES = 64
_LETTERS = np.frombuffer(b"abcdefghijklmnop", np.uint8)


def _copying(rng: np.random.Generator, distance: int | None) -> tuple[bytes, list[int]]:
    text, asked = bytearray(rng.choice(_LETTERS, REACH).tobytes()), []
    while len(text) + 2 <= COPY_BYTES:
        at = len(text)
        can = [j for j in range(1, REACH + 1) if text[at - j] >= ord("a") and distance in (None, j)]
        if can and (distance or rng.random() < 0.4):
            j = int(rng.choice(can))
            text += bytes([ord("0") + j, text[at - j]])
            asked.append(at)
        else:
            text += rng.choice(_LETTERS, 1).tobytes()
    text += rng.choice(_LETTERS, COPY_BYTES - len(text)).tobytes()
    return bytes(text), asked


def copying(rng: np.random.Generator, count: int, distance: int | None = None) -> Texts:
    """Letters, and digits behind which a letter is said again; `distance`: always the same digit."""
    return _texts([_copying(rng, distance) for _ in range(count)])


def _texts(made: list[tuple[bytes, list[int]]]) -> Texts:
    tokens = np.stack([np.frombuffer(text, np.uint8) for text, _ in made]).astype(np.int64)
    is_asked = np.zeros(tokens.shape, np.bool_)
    for row, (_, asked) in zip(is_asked, made, strict=True):
        row[asked] = True
    return Texts(tokens, is_asked)


RECALL_CONFIG: dict[str, Any] = {
    "model_type": "qwen3_5_text",
    "vocab_size": VOCAB,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "layer_types": ["linear_attention"] * 2,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}
COPYING_CONFIG: dict[str, Any] = {
    "model_type": "lfm2",
    "vocab_size": VOCAB,
    "hidden_size": 128,
    "intermediate_size": 192,
    "block_auto_adjust_ff_dim": False,
    "num_hidden_layers": COPY_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "conv_L_cache": 3,
    "conv_bias": False,
    "layer_types": ["conv"] * COPY_LAYERS,
    "norm_eps": 1e-5,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class Task:
    """One model, and texts to train it with."""

    config: dict[str, Any]  # config.json
    training: Callable[[np.random.Generator, int], Texts]
    held_out: Callable[[np.random.Generator, int], Texts]


TASKS = {
    "recall": Task(RECALL_CONFIG, recall_lessons, recall),
    "copying": Task(COPYING_CONFIG, copying, copying),
}


def write_config(name: str, folder: Path) -> None:
    """config.json of a task's model."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(TASKS[name].config, indent=2) + "\n", encoding="utf-8")
