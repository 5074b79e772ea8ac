"""The native cache behind the engine: prefixes that survive a restart give the same bits."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import kamado
from kamado.engine.measure.kv_results import CODEC_VERSION

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


@pytest.fixture(scope="module")
def codable_checkpoint(write_tiny: Callable[..., Path]) -> Path:
    """As tiny_checkpoint, with two heads of 64 values over one of keys: its cache can be encoded. Context 2048."""
    return write_tiny(hidden=128, heads=2, kv_heads=1, context_length=2048)


FREE = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}


@pytest.mark.parametrize("kv", ["balanced", "small", "safe", "k=4,v=3,layers=0:exact"])
def test_a_restored_encoded_prefix_changes_no_bit(codable_checkpoint: Path, kv: str) -> None:
    text = prompt(1, 900)
    settings = {**FREE, "seed": 5, "max_tokens": 30}
    with kamado.load(codable_checkpoint, kv=kv) as model:
        expected = tokens_of(model.generate([*text, 1, 2], **settings))
    with kamado.load(codable_checkpoint, kv=kv, prefix_cache="1GiB") as model:
        tokens_of(model.generate(text, max_tokens=1))
    for max_rows in (37, 512):
        with kamado.load(codable_checkpoint, kv=kv, prefix_cache="1GiB", max_rows=max_rows) as model:
            generation = model.generate([*text, 1, 2], **settings)
            assert tokens_of(generation) == expected
            assert generation.usage.num_reused_tokens >= 900


def test_a_random_life_of_an_encoded_cache_gives_the_answers_of_fresh_ones(codable_checkpoint: Path) -> None:
    """Forks, turns and evictions at random: whatever was reused, every answer is that of a model without a past."""
    rng = random.Random(8)
    texts = [prompt(i, 700) for i in range(3)]
    cases = []
    for i in range(14):
        text = rng.choice(texts)
        tokens = text[: rng.randrange(1, len(text) + 1)] + prompt(100 + i, rng.randrange(1, 200))
        cases.append((tokens, {**FREE, "seed": i, "max_tokens": rng.randrange(1, 40)}))
        texts.append(tokens)
    with kamado.load(codable_checkpoint, kv="balanced", context=1024, prefix_cache="1GiB") as model:
        lived = [model.generate(tokens, **settings) for tokens, settings in cases[:4]]  # in company
        answers = [tokens_of(generation) for generation in lived]
        for tokens, settings in cases[4:]:
            lived.append(model.generate(tokens, **settings))
            answers.append(tokens_of(lived[-1]))
    assert sum(generation.usage.num_reused_tokens for generation in lived) > 500
    for (tokens, settings), answer in zip(cases, answers, strict=True):
        with kamado.load(codable_checkpoint, kv="balanced", context=1024) as fresh:
            assert tokens_of(fresh.generate(tokens, **settings)) == answer


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
