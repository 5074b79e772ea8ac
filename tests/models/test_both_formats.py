"""A family's tiny model as a safetensors directory and as a GGUF file: one program, and no setting passed over."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import tiny_models
from numpy_executor import NumpyExecutor

from kamado.errors import UnsupportedError
from kamado.files import open_checkpoint
from kamado.models import build_program

pytest.importorskip("gguf", reason="gguf is not installed")

from gguf_export import export

FAMILIES = sorted(name for name, family in tiny_models.FAMILIES.items() if family.gguf)
TOKENS = np.random.default_rng(5).integers(0, tiny_models.VOCAB, 40).tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_both_formats_give_the_same_logits(family: str, tmp_path: Path) -> None:
    folder = tiny_models.write(tmp_path, family)
    one = NumpyExecutor(build_program(open_checkpoint(folder))).forward(TOKENS)
    other = NumpyExecutor(build_program(open_checkpoint(export(folder, tmp_path / "model.gguf")))).forward(TOKENS)
    # Permuted heads add up in another order, factors of the rotation are float32.
    assert np.abs(one - other).max() <= 1e-5 * one.std()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_setting_that_nobody_reads_is_refused_in_both_formats(family: str, tmp_path: Path) -> None:
    folder = tiny_models.write(tmp_path, family)
    for path in (folder, export(folder, tmp_path / "model.gguf")):
        checkpoint = open_checkpoint(path)
        key = "new_scale" if path is folder else f"{checkpoint.architecture}.new_scale"
        odd = dataclasses.replace(checkpoint, metadata={**checkpoint.metadata, key: 2.5})
        with pytest.raises(UnsupportedError, match=f"'{key}' is 2.5"):
            build_program(odd)
