"""Small trained models (trained/, by benchmarks/train_tiny.py) that know what they cannot know without their records.

Each break of the scan or of the convolution leaves logits of the usual size, and takes the answers away.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from native_runner import append, build, native_logits, needs_native
from numpy_executor import Array, NumpyExecutor
from safetensors.numpy import load_file, save_file
from trained_tasks import BETWEEN, COPY_LAYERS, FOLDER, REACH, TASKS, Texts, copying, recall, write_config

from kamado import program as p
from kamado.files import open_checkpoint
from kamado.models import build_program

WANTED = {"recall": 0.95, "copying": 0.99}
BROKEN = 0.30
SEED = 16  # other texts than training and its own check had
NUM_TEXTS = 25


def _program(folder: Path) -> p.Program:
    return build_program(open_checkpoint(folder))


def _held_out(name: str) -> Texts:
    return TASKS[name].held_out(np.random.default_rng(SEED), NUM_TEXTS)


def _pieces(text: Sequence[int], cuts: Sequence[int]) -> list[list[int]]:
    """The text cut behind so many bytes each, the last size again and again."""
    pieces, begin = [], 0
    while begin < len(text):
        size = cuts[min(len(pieces), len(cuts) - 1)]
        pieces.append(list(text[begin : begin + size]))
        begin += size
    return pieces


def _share(program: p.Program, texts: Texts, cuts: Sequence[int] = (256,)) -> float:
    """Of right answers, each text in steps of these sizes."""
    executor, chosen = build(program), []
    for text in texts.tokens.tolist():
        sequence = executor.create_sequence()
        rows = [append(executor, [(sequence, piece)]) for piece in _pieces(text, cuts)]
        chosen.append(np.concatenate(rows).argmax(-1))
        executor.free_sequence(sequence)
    executor.close()
    return texts.share(np.stack(chosen))


def _share_in_numpy(executor: NumpyExecutor, texts: Texts) -> float:
    return texts.share(np.stack([executor.forward(text).argmax(-1) for text in texts.tokens]))


def _rewritten(name: str, folder: Path, end: str, change: Callable[[Array], Array]) -> Path:
    """The model with `change` done to the tensors whose names end so."""
    write_config(name, folder)
    tensors = load_file(FOLDER / name / "model.safetensors")
    found = [key for key in tensors if key.endswith(end)]
    assert found
    changed = {key: np.ascontiguousarray(change(tensors[key]).astype(np.float16)) for key in found}
    save_file(tensors | changed, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("name", TASKS)
def test_the_files_are_small_and_without_attention(name: str) -> None:
    path = FOLDER / name / "model.safetensors"
    count = sum(tensor.size for tensor in load_file(path).values())
    assert 300_000 <= count <= 1_000_000
    assert path.stat().st_size <= 2 << 20
    assert not any(isinstance(op, p.Attend) for op in _program(FOLDER / name).ops)


@needs_native
@pytest.mark.parametrize("cuts", [(256,), (64,), (7, 1, 1, 90, 13), (1,)], ids=lambda cuts: "-".join(map(str, cuts)))
@pytest.mark.parametrize("name", TASKS)
def test_answers(name: str, cuts: tuple[int, ...]) -> None:
    assert _share(_program(FOLDER / name), _held_out(name), cuts) >= WANTED[name]


@needs_native
@pytest.mark.parametrize("distance", range(1, REACH + 1))
def test_copies_from_each_distance(distance: int) -> None:
    assert REACH == 2 * COPY_LAYERS
    texts = copying(np.random.default_rng(SEED), 4, distance)
    assert _share(_program(FOLDER / "copying"), texts) >= WANTED["copying"]


@needs_native
def test_recalls_from_nearer() -> None:
    texts = recall(np.random.default_rng(SEED), NUM_TEXTS, BETWEEN[0])
    assert _share(_program(FOLDER / "recall"), texts) >= WANTED["recall"]


@needs_native
def test_a_state_that_is_forgotten(tmp_path: Path) -> None:
    """e^g = 0."""
    folder = _rewritten("recall", tmp_path, "A_log", lambda rates: np.full_like(rates, 20))
    assert _share(_program(folder), _held_out("recall")) < BROKEN


@needs_native
def test_queries_and_keys_exchanged() -> None:
    program = _program(FOLDER / "recall")
    ops = [replace(op, q=op.k, k=op.q) if isinstance(op, p.DeltaScan) else op for op in program.ops]
    assert _share(replace(program, ops=ops), _held_out("recall")) < BROKEN


class _WithoutMinus(NumpyExecutor):
    """d = beta · v, as in attention without a softmax."""

    def _replaced(self, state: Array, key: Array) -> Array:
        return np.zeros_like(super()._replaced(state, key))


def test_the_minus_term_left_out() -> None:
    program, texts = _program(FOLDER / "recall"), recall(np.random.default_rng(SEED), 8)
    assert _share_in_numpy(NumpyExecutor(program), texts) >= WANTED["recall"]
    assert _share_in_numpy(_WithoutMinus(program), texts) < BROKEN


class _Rounded(NumpyExecutor):
    """The state in bfloat16 from token to token."""

    def _replaced(self, state: Array, key: Array) -> Array:
        bits = state.view(np.uint32)  # changed where it lies, after the decay
        bits[:] = bits + 0x7FFF + (bits >> 16 & 1) & np.uint32(0xFFFF0000)
        return super()._replaced(state, key)


@needs_native
def test_decay_one_and_a_rounded_state_show_in_the_logits(tmp_path: Path) -> None:
    """After 300 bytes, beside two orders in which float32 sums."""
    rng = np.random.default_rng(SEED)
    text = np.concatenate(list(recall(rng, 2).tokens))[:300].tolist()
    program, logits = _program(FOLDER / "recall"), partial(native_logits, max_rows=300)
    right = logits(program, text)[-1]
    orders = np.abs(NumpyExecutor(program, np.float32).forward(text)[-1] - right).max()
    kept = _program(_rewritten("recall", tmp_path, "A_log", lambda rates: np.full_like(rates, -40)))
    wrong = {
        "decay 1": logits(kept, text)[-1],
        "bfloat16": _Rounded(program, np.float32).forward(text)[-1],
    }
    changes = {name: np.abs(row - right).max() for name, row in wrong.items()}
    assert orders > 0
    assert min(changes.values()) >= 100 * orders, (changes, orders)


@needs_native
@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("reversed", lambda taps: taps[..., ::-1]),
        ("one later", lambda taps: np.concatenate([np.zeros_like(taps[..., :1]), taps[..., :-1]], axis=-1)),
        ("one earlier", lambda taps: np.concatenate([taps[..., 1:], np.zeros_like(taps[..., :1])], axis=-1)),
    ],
)
def test_taps(what: str, change: Callable[[Array], Array], tmp_path: Path) -> None:
    folder = _rewritten("copying", tmp_path, "conv.conv.weight", change)
    assert _share(_program(folder), _held_out("copying")) < BROKEN, what


@needs_native
def test_rows_that_are_not_carried_over_a_border() -> None:
    """Each question begins a sequence of its own: what convolutions would carry is zero there."""
    texts, executor, chosen = _held_out("copying"), build(_program(FOLDER / "copying")), []
    for text, is_asked in zip(texts.tokens.tolist(), texts.is_asked, strict=True):
        borders = [0, *np.flatnonzero(is_asked).tolist(), len(text)]
        rows = []
        for begin, end in itertools.pairwise(borders):
            sequence = executor.create_sequence()
            rows.append(append(executor, [(sequence, text[begin:end])]))
            executor.free_sequence(sequence)
        chosen.append(np.concatenate(rows).argmax(-1))
    executor.close()
    assert texts.share(np.stack(chosen)) < BROKEN
