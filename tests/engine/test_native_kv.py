"""The native cache behind the engine: prefixes that survive a restart give the same bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import kamado
from kamado.engine.kv_record import CODEC_VERSION

from .fakes import FOREVER

SETTINGS = {"temperature": 1.0, "seed": 5, "max_tokens": 30, "logit_bias": FOREVER["logit_bias"]}


def prompt(seed: int, length: int) -> list[int]:
    return [int(i) for i in np.random.default_rng(seed).integers(0, 256, length)]


def tokens_of(generation: kamado.Generation) -> list[int]:
    return [piece.token for piece in generation]


def test_a_restored_prefix_changes_no_bit(tiny_checkpoint: Path) -> None:
    text = prompt(1, 400)
    with kamado.load(tiny_checkpoint) as model:
        expected = tokens_of(model.generate([*text, 1, 2], **SETTINGS))
    with kamado.load(tiny_checkpoint, prefix_cache="1GiB") as model:
        tokens_of(model.generate(text, max_tokens=1))
    with kamado.load(tiny_checkpoint, prefix_cache="1GiB", max_rows=37) as model:
        generation = model.generate([*text, 1, 2], **SETTINGS)
        assert tokens_of(generation) == expected
        assert generation.usage.num_reused_tokens == 400
        assert model.stats.prefix_store["num_restored"] == 1
    with kamado.load(tiny_checkpoint, prefix_cache="1GiB", kv="f32") as model:
        generation = model.generate([*text, 1, 2], max_tokens=1)
        tokens_of(generation)
        assert generation.usage.num_reused_tokens == 0, "another preset"


def test_nothing_is_kept_by_default(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAMADO_HOME", str(tmp_path))
    with kamado.load(tiny_checkpoint) as model:
        tokens_of(model.generate(prompt(1, 300), max_tokens=1))
        assert model.stats.prefix_store is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", ["2 cows", -1, "", 1.5])
def test_caps_that_are_refused(tiny_checkpoint: Path, value) -> None:
    with pytest.raises(kamado.UsageError):
        kamado.load(tiny_checkpoint, prefix_cache=value)


def test_the_codec_version_is_the_native_one(tiny_checkpoint: Path) -> None:
    with kamado.load(tiny_checkpoint) as model:
        assert model._executor.kv_fingerprint.startswith(f"kv{CODEC_VERSION}-")
