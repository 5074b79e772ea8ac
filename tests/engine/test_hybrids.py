"""Small models of the families that keep records, made as files and loaded as users load them: lives at random, KV
presets, what a plan counts, and what `kamado kv` measures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import kamado
from kamado.files import open_checkpoint
from kamado.measure import measure_kv, prefix_store_bytes, program_of
from kamado.plan.forecast import plan
from kamado.synth.synthesize import synthesize

from .fakes import CHATML
from .lives import Life

pytestmark = pytest.mark.slow

TINY = {"layers": 4, "hidden": 256, "heads": 4, "kv_heads": 2, "head_dim": 64}
EXPERTS = {"experts": 8, "top_k": 2, "expert_width": 256}
FAMILIES: dict[str, dict[str, int]] = {
    "lfm2": {**TINY, "ffn": 512},
    "lfm2-8b-a1b": {**TINY, "ffn": 512, **EXPERTS},
    "qwen35": {**TINY, "ffn": 512},
    "qwen35moe": {**TINY, **EXPERTS},
    "qwen3next": {**TINY, **EXPERTS},
}


@pytest.fixture(scope="module")
def file_of(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Callable[[str], Path]:
    """A file of the family, with bytes as tokens."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            path = tmp_path_factory.mktemp(family) / "tiny.gguf"
            tokens = open_checkpoint(tiny_checkpoint)
            made[family] = synthesize(path, family, tokenizer_from=tokens, context=4096, **FAMILIES[family]).path
        return made[family]

    return make


@pytest.fixture
def load(
    file_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., kamado.Model]:
    """`kamado.load` with a prefix store of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def run(family: str, **settings: Any) -> kamado.Model:
        options: dict[str, Any] = {"context": 2048, "threads": 1, "chat_template": CHATML, **settings}
        return kamado.load(file_of(family), **options)

    return run


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        *((family, {"kv": "exact"}) for family in FAMILIES),
        ("lfm2", {"kv": "balanced"}),
        ("qwen35", {"kv": "small"}),
        ("qwen35", {"kv": "balanced,layers=0:exact"}),
    ],
)
def test_answers_do_not_depend_on_what_was_asked_before(family, settings, load) -> None:
    life = Life(0)
    lived = sum(life.live(lambda: load(family, prefix_cache="256MiB", max_rows=48, **settings)) for _ in range(2))
    assert lived > 500
    life.check(lambda: load(family, **settings))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plan_counts_what_is_taken(family, load, file_of) -> None:
    talk = [{"role": "user", "content": "Tell me of rivers. " * 30}]
    with load(family, prefix_cache="256MiB") as model:
        for seed in range(4):
            for _ in model.chat(talk, max_tokens=5, seed=seed):
                pass
            talk = [*talk, {"role": "assistant", "content": "No."}, {"role": "user", "content": f"Why? {seed}"}]
        stats, owners = model.stats, model.plan.bytes_by_owner
        assert 0 < stats.bytes_by_owner["records"] <= owners["records"]
        assert stats.records["used"] + stats.records["free"] == model.plan.max_records
        assert stats.reuse_points["held"] >= 3
    checkpoint = open_checkpoint(file_of(family))
    program = program_of(checkpoint)
    bare, stored = (
        plan(checkpoint, program, context=2048, reserved_bytes=reserved).bytes_by_owner["interpreter"]
        for reserved in (0, prefix_store_bytes(program))
    )
    assert stored - bare == prefix_store_bytes(program) > 2 * program.record_bytes


def test_a_cache_is_measured_on_layers_that_have_one(file_of, load) -> None:
    del load  # the store of the test's own is where results are kept
    found = measure_kv(file_of("qwen35"), presets=("balanced", "small"), num_tokens=700, threads=1)
    assert [row.kv for row in found.rows[:3]] == ["exact", "balanced", "small"]
    assert all(row.num_tokens > 100 for row in found.rows)
    assert found.rows[1].bytes_per_token < found.rows[0].bytes_per_token
    assert {row.layer for row in found.layers} == {0}, "one layer of four attends"
