"""Tensors of another shape and settings of another kind, in every family: one typed error that names them or a program.

What is missing, left over or contradictory is in test_family_files.py.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import tiny_models

from kamado.errors import CheckpointError
from kamado.files import open_checkpoint
from kamado.files.types import Checkpoint, TensorRef
from kamado.models import build_program

pytest.importorskip("gguf", reason="gguf is not installed")

from gguf_export import export

_FILES = [
    (form, name)
    for name, family in sorted(tiny_models.FAMILIES.items())
    for form in ("safetensors", *(("gguf",) if family.gguf else ()))
]


@pytest.fixture(scope="module", params=_FILES, ids="-".join)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The tiny model of a family in one of its formats, which is in order."""
    form, family = request.param
    folder = tiny_models.write(tmp_path_factory.mktemp(f"{form}-{family}"), family)
    made = open_checkpoint(folder if form == "safetensors" else export(folder, folder / "model.gguf"))
    build_program(made)
    return made


def _settings(checkpoint: Checkpoint) -> Iterator[str]:
    prefix = f"{checkpoint.architecture}." if checkpoint.format == "gguf" else ""
    for key in checkpoint.metadata:
        if key.startswith(prefix) and key not in ("model_type", "general.architecture"):
            yield key


def _fault(checkpoint: Checkpoint, **changes: Any) -> str | None:
    """What the one typed error says; None when there is no error. Any other error fails the test."""
    try:
        build_program(dataclasses.replace(checkpoint, **changes))
    except CheckpointError as fault:
        return str(fault)
    return None


def _reshaped(tensor: TensorRef) -> Iterator[tuple[int, ...]]:
    for axis, length in enumerate(tensor.shape):
        for other in (length + 1, length - 1):
            yield (*tensor.shape[:axis], other, *tensor.shape[axis + 1 :])
    if tensor.shape != (1,):  # vectors may be matrices of one row
        yield (*tensor.shape, 1)
    yield ()


def test_a_tensor_of_another_shape_is_named(checkpoint: Checkpoint) -> None:
    table = "token_embd.weight" if checkpoint.format == "gguf" else "embed_tokens.weight"
    for name, tensor in checkpoint.tensors.items():
        for shape in _reshaped(tensor):
            fault = _fault(checkpoint, tensors={**checkpoint.tensors, name: dataclasses.replace(tensor, shape=shape)})
            if fault is None:
                # GGUF does not say how many rows the token table has.
                assert name == table
                assert len(shape) == 2
                assert shape[1] == tensor.shape[1]
            else:
                assert name in fault or (name.endswith(table) and "output.weight" in fault), (name, shape, fault)


ODD: tuple[Any, ...] = (
    0, -1, 1, 2, 3, 7, 1 << 40, 10**400, 0.0, 0.3, -0.5, 1e-30, 1e300, math.nan, math.inf, True, False, "", "odd", [],
    [1], [0] * 3, ["odd"] * 3, [None] * 3, [[1]], {}, {"odd": 1}, {"rope_type": "linear"}, {"rope_type": 3}, b"x",
)  # fmt: skip


def test_a_setting_with_another_value_gives_a_program_or_one_error(checkpoint: Checkpoint) -> None:
    refused = 0
    for key in _settings(checkpoint):
        for value in ODD:
            fault = _fault(checkpoint, metadata={**checkpoint.metadata, key: value})
            refused += fault is not None
            if fault is not None:
                assert len(fault) < 2000
                assert "'" in fault, (key, value, fault)
    assert refused > 100


def test_nested_settings_are_held_to_the_same(checkpoint: Checkpoint) -> None:
    change: Callable[[str, Any], dict[str, Any]] = lambda name, value: {**section, name: value}  # noqa: E731
    for key, section in json.loads(json.dumps(dict(checkpoint.metadata), default=str)).items():
        for name in section if isinstance(section, dict) and checkpoint.format == "safetensors" else ():
            for value in ODD:
                fault = _fault(checkpoint, metadata={**checkpoint.metadata, key: change(name, value)})
                assert fault is None or "'" in fault
