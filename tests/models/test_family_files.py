"""Files of every family with something missing, left over or contradictory: refused by name, never a traceback.

For safetensors, tensors are in test_models_settings.py; wrong kinds of values are in test_unknown_keys.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import tiny_models

from kamado.errors import CheckpointError, UnsupportedError
from kamado.files import open_checkpoint
from kamado.files.types import Checkpoint
from kamado.models import build_program

pytest.importorskip("gguf", reason="gguf is not installed")

from gguf_export import export

FAMILIES = sorted(tiny_models.FAMILIES)
Open = Callable[[str, str], Checkpoint]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Open:
    """A tiny model by (format, family), written once."""
    known: dict[tuple[str, str], Checkpoint] = {}

    def get(form: str, family: str) -> Checkpoint:
        if (form, family) not in known:
            folder = tiny_models.write(tmp_path_factory.mktemp(family), family)
            path = folder if form == "safetensors" else export(folder, folder / "model.gguf")
            known[form, family] = open_checkpoint(path)
        return known[form, family]

    return get


def _may_be_left_out(name: str, checkpoint: Checkpoint) -> bool:
    """What a GGUF file of its family may have or not: it has no setting that says so."""
    optional = (".bias", "_norm.weight", "output.weight", "rope_freqs.weight", "rope_factors_")
    return any(part in name for part in optional) and checkpoint.format == "gguf"


@pytest.mark.parametrize("family", [name for name in FAMILIES if tiny_models.FAMILIES[name].gguf])
def test_tensors_of_gguf_files(family: str, opened: Open) -> None:
    checkpoint = opened("gguf", family)
    for name in checkpoint.tensors:
        fewer = {key: ref for key, ref in checkpoint.tensors.items() if key != name}
        # Of a fused matrix the first of those that it stands for is named.
        stem = name.removesuffix(".weight").removesuffix(".bias")
        stem = stem.replace("attn_qkv", "attn_q").replace("gate_up_exps", "gate_exps")
        try:
            build_program(dataclasses.replace(checkpoint, tensors=fewer))
        except CheckpointError as fault:
            left_over = isinstance(fault, UnsupportedError) and "blk." in str(fault)  # its companions
            assert stem in str(fault) or left_over  # noqa: PT017 - one of two right outcomes
        else:
            assert _may_be_left_out(name, checkpoint), name
    extra = next(iter(checkpoint.tensors.values()))
    more = {**checkpoint.tensors, "blk.0.attn_spare.weight": extra}
    with pytest.raises(UnsupportedError, match=r"blk\.0\.attn_spare"):
        build_program(dataclasses.replace(checkpoint, tensors=more))


def _settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """Those of the family, by the file's own names."""
    if checkpoint.format == "safetensors":
        return {key: value for key, value in checkpoint.metadata.items() if key != "model_type"}
    prefix = f"{checkpoint.architecture}."
    return {key: value for key, value in checkpoint.metadata.items() if key.startswith(prefix)}


def _contradictions(value: Any) -> Iterator[Any]:
    """Values of the same kind that the tensors or the other settings cannot bear out, or can."""
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (0, -1, value + 1, 2 * value, 1 << 40)
    elif isinstance(value, float):
        yield from (0.0, -1.0, float("nan"), float("inf"))
    elif isinstance(value, list):
        yield from ([], value[:-1], [*value, *value], [value])
    elif isinstance(value, dict):
        yield from ({}, {**value, "rope_type": "spiral"}, *({**value, key: -3} for key in value))


@pytest.mark.parametrize("form", ["safetensors", "gguf"])
@pytest.mark.parametrize("family", FAMILIES)
def test_settings_missing_and_contradictory(family: str, form: str, opened: Open) -> None:
    """Each by itself: the model is built (the setting has a default, or may be so) or something is named."""
    if form == "gguf" and not tiny_models.FAMILIES[family].gguf:
        return
    checkpoint = opened(form, family)
    refused = 0
    for key, value in _settings(checkpoint).items():
        without = {name: other for name, other in checkpoint.metadata.items() if name != key}
        for metadata in (without, *({**without, key: wrong} for wrong in _contradictions(value))):
            try:
                build_program(dataclasses.replace(checkpoint, metadata=metadata))
            except CheckpointError as fault:
                refused += 1
                assert str(checkpoint.path) in str(fault)  # noqa: PT017
                assert "'" in str(fault).removeprefix(str(checkpoint.path)), fault  # noqa: PT017
    assert refused > 20
