"""Every mistake that a reader of these files can make shows in the logits of the families' models, far above what the
comparison with transformers lets through."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_models
from family_traps import broken, misread
from numpy_executor import NumpyExecutor, Sequence

from kamado.files import open_checkpoint
from kamado.models import build_program

TOKENS = np.random.default_rng(9).integers(0, tiny_models.VOCAB, 48).tolist()
SEEN = 1e-2  # of the logits' standard deviation: ten times the tolerance of test_models_parity.py


@pytest.mark.parametrize("family", sorted(tiny_models.FAMILIES))
def test_every_mistake_is_seen(family: str, tmp_path: Path) -> None:
    program = build_program(open_checkpoint(tiny_models.write(tmp_path, family)))
    right = _in_two_parts(NumpyExecutor(program))
    mistakes = [(name, NumpyExecutor(wrong)) for name, wrong in broken(program)]
    mistakes += [(name, kind(program)) for name, kind in misread(program)]
    unseen = []
    for name, executor in mistakes:
        with np.errstate(all="ignore"):
            logits = _in_two_parts(executor)
        if np.abs(logits - right).max() < SEEN * right.std():
            unseen.append(name)
    assert not unseen


def _in_two_parts(executor: NumpyExecutor) -> np.ndarray:
    sequence = Sequence()
    return np.concatenate([executor.forward(part, sequence) for part in (TOKENS[:20], TOKENS[20:])])
