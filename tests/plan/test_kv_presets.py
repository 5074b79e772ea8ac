"""What kv= may say."""

from __future__ import annotations

from typing import Any

import pytest
from native_programs import dense

from kamado.errors import UsageError
from kamado.plan.kv_presets import parse_kv
from kamado.program import Program

SHAPE: dict[str, Any] = {"hidden": 64, "heads": 4, "kv_heads": 2, "head_dim": 64, "layers": 3}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Program:
    """Three layers, the second with a window of 40 tokens."""
    return dense(tmp_path_factory.mktemp("weights") / "weights.bin", **SHAPE)


@pytest.mark.parametrize(
    ("text", "element", "bits"),
    [
        ("f32", "f32", [(0, 0)] * 4),
        ("exact", "f16", [(0, 0)] * 4),
        ("safe", "f16", [(8, 4)] * 4),
        ("balanced", "f16", [(4, 4)] * 4),
        ("small", "f16", [(3, 2)] * 4),
        ("k=4,v=3", "f16", [(4, 3)] * 4),
        (" k=8 , v=2 ", "f16", [(8, 2)] * 4),
        ("balanced,layers=0-1:exact", "f16", [(0, 0), (0, 0), (4, 4), (4, 4)]),
        ("k=3,v=2,layers=0+2-3:k8v4,layers=3:exact", "f16", [(8, 4), (3, 2), (8, 4), (0, 0)]),
        ("exact,layers=2:k4v4", "f16", [(0, 0), (0, 0), (4, 4), (0, 0)]),
        ("auto", "f16", [(0, 0)] * 4),
    ],
)
def test_presets_bits_and_exceptions(text: str, element: str, bits: list[tuple[int, int]]) -> None:
    plan = parse_kv(text, 4)
    assert (plan.element, list(plan.bits)) == (element, bits)
    assert parse_kv(plan.name, 4) == plan  # the name says everything


def test_auto_is_what_was_measured() -> None:
    assert parse_kv("auto", 2, "k=4,v=3") == parse_kv("k=4,v=3", 2)
    assert parse_kv("exact", 2, "small") == parse_kv("exact", 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense", "is no KV preset: choose from auto, f32, exact, safe, balanced, small"),
        ("", "is no KV preset"),
        ("k=4", "is no KV preset"),
        ("v=3,k=4", "is no KV preset"),
        ("k=5,v=4", "bits are 2, 3, 4 or 8, not '5'"),
        ("k=4,v=04", "bits are 2, 3, 4 or 8, not '04'"),
        ("k=4,v=3,v=2", "'v=2' is no exception"),
        ("balanced,", "'' is no exception"),
        ("balanced,layers=0:k4", "is no exception"),
        ("balanced,layers=0:k4v7", "bits are 2, 3, 4 or 8, not '7'"),
        ("balanced,layers=3-4:exact", "layers '3-4' are not among 0-3"),
        ("balanced,layers=2-1:exact", "layers '2-1' are not among 0-3"),
        ("balanced,layers=0-:exact", "layers '0-' are not among 0-3"),
        ("balanced,layers=" + "9" * 99 + ":exact", "are not among 0-3"),
        ("f32,layers=0:k4v4", "an f32 cache is exact in all layers"),
        ("balanced" * 1000, "takes a preset or bits"),
        (4, "takes a preset or bits"),
    ],
)
def test_anything_else_is_refused(text: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_kv(text, 4)


def test_layers_that_cannot_be_encoded_stay_exact(program: Program) -> None:
    plan = parse_kv("balanced", 3).for_program(program)
    assert plan.bits == ((4, 4), (0, 0), (4, 4))  # the second has a window
    with pytest.raises(UsageError, match="was made for 2 layers, the program has 3"):
        parse_kv("balanced", 2).for_program(program)
