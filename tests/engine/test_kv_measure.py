"""`kamado kv`: what is measured, what is recommended, and what `auto` makes of it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

import kamado
from kamado.engine.cache.identity import model_identity
from kamado.engine.load import load
from kamado.engine.measure import kv_measure
from kamado.engine.measure.kv_measure import builtin_texts, measure_kv, recommend
from kamado.engine.measure.kv_results import KvResults, KvRow, load_results, results_root, save_results

from .fakes import FakeExecutor, make_model

EXACT = KvRow("exact", 1000.0, 10.0, 0.0, 0.0, 0.0, 0.0, 100.0, 5000)


def row(kv: str, size: float, rise: float = 0.1, error: float = 0.1, divergence: float = 0.003) -> KvRow:
    return KvRow(kv, size, 10.0, rise, error, divergence, 0.1, 98.0, 5000)


def test_built_in_texts_have_their_source_beside_them_and_are_long_enough() -> None:
    folder = Path(kv_measure.__file__).with_name("texts")
    said = (folder / "README.md").read_text("utf-8")
    assert [name for name in kv_measure.TEXTS if f"| `{name}.txt` |" not in said] == []
    assert {path.stem for path in folder.glob("*.txt")} == set(kv_measure.TEXTS)
    assert min(map(len, builtin_texts())) > 5 * kv_measure.DEFAULT_TOKENS  # characters: 4 to 5 a token


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([EXACT], "exact"),
        ([EXACT, row("safe", 400), row("balanced", 270), row("small", 180, rise=3.0)], "balanced"),
        ([EXACT, row("balanced", 270), row("small", 180)], "small"),
        ([EXACT, row("balanced", 270, rise=0.7, error=0.2)], "exact"),  # 0.7 + 2 · 0.2
        ([EXACT, row("balanced", 270, divergence=0.011), row("safe", 400)], "safe"),
        ([EXACT, row("balanced", 1000)], "exact"),  # a model whose heads cannot be encoded
    ],
)
def test_the_smallest_safe_cache_is_recommended(rows: list[KvRow], expected: str) -> None:
    assert recommend(rows) == expected


class FakeLoader:
    """Models whose logits get noisier with the preset; counts what is loaded."""

    def __init__(self) -> None:
        self.loaded: list[str] = []
        self.interrupt_at: str | None = None

    def __call__(self, path: Path, *, kv: str, context: int, max_logit_rows: int, **_) -> kamado.Model:
        self.loaded.append(kv)
        if kv == self.interrupt_at:
            raise KeyboardInterrupt
        noise, size = {"exact": (0.0, 1000.0), "balanced": (0.02, 270.0), "small": (1.5, 180.0)}[kv]
        executor = FakeExecutor(kv_tokens=context)

        def logits_of(tokens) -> np.ndarray:
            rng = np.random.default_rng(len(tokens))
            return executor.hashed(tokens[-2:]) + noise * rng.standard_normal(executor.vocab_size)

        executor.logits_of = logits_of
        model = make_model(executor, context=context, max_logit_rows=max_logit_rows, max_rows=64)
        model.plan = dataclasses.replace(model.plan, kv_bytes_per_token=size)
        return model


def test_rows_are_measured_recorded_and_taken_over(tiny_checkpoint: Path) -> None:
    loader = FakeLoader()
    progress: list[tuple[int, int]] = []
    settings = {"presets": ("balanced", "small"), "num_tokens": 500, "load": loader}
    found = measure_kv(tiny_checkpoint, progress=lambda *p: progress.append(p), **settings)
    exact, balanced, small = found.rows
    assert exact.num_tokens == 3 * (500 - 256 - 1)
    assert 0 < balanced.divergence < 0.001 < 0.1 < small.divergence <= small.divergence_worst
    assert abs(balanced.rise_percent) < 1 < small.rise_percent
    assert balanced.same_top_percent > small.same_top_percent
    assert found.recommended == "balanced"
    assert progress[-1][0] == progress[-1][1]
    assert progress == sorted(progress)
    loaded = len(loader.loaded)
    assert measure_kv(tiny_checkpoint, **settings).rows == found.rows
    assert len(loader.loaded) == loaded, "nothing was measured again"
    measure_kv(tiny_checkpoint, **{**settings, "num_tokens": 400})
    assert len(loader.loaded) == 2 * loaded, "other texts are another measurement"


def test_the_divergence_is_the_real_one(tiny_checkpoint: Path) -> None:
    """Against a computation of its own from all logits."""
    loader = FakeLoader()
    found = measure_kv(tiny_checkpoint, presets=["small"], num_tokens=400, load=loader)
    values = []
    for text in builtin_texts():
        tokens = list(text.encode()[:400])
        logits = []
        for kv in ("exact", "small"):
            model = loader(tiny_checkpoint, kv=kv, context=400, max_logit_rows=16)
            with model:
                rows = np.zeros((400, model.vocab_size))

                def visit(at: int, part: np.ndarray, rows: np.ndarray = rows) -> None:
                    rows[at : at + len(part)] = part

                model.visit_logits(tokens, visit)
            logits.append(rows - np.log(np.exp(rows).sum(axis=1, keepdims=True)))
        p, q = (part[256:-1] for part in logits)
        values.append((np.exp(p) * (p - q)).sum(axis=1))
    assert found.rows[1].divergence == pytest.approx(np.concatenate(values).mean(), rel=1e-4)


def test_an_interrupt_keeps_what_was_finished(tiny_checkpoint: Path) -> None:
    loader = FakeLoader()
    loader.interrupt_at = "small"
    settings = {"presets": ("balanced", "small"), "num_tokens": 400, "load": loader}
    with pytest.raises(KeyboardInterrupt):
        measure_kv(tiny_checkpoint, **settings)
    loader.interrupt_at = None
    loader.loaded.clear()
    assert [r.kv for r in measure_kv(tiny_checkpoint, **settings).rows] == ["exact", "balanced", "small"]
    assert loader.loaded == ["exact", "small"]


def test_auto_takes_what_was_recorded(tiny_checkpoint: Path) -> None:
    identity = model_identity(kamado_checkpoint(tiny_checkpoint))
    with kamado.load(tiny_checkpoint) as model:
        assert model.plan.kv == "exact"
    save_results(KvResults(identity, "tiny", "balanced", rows=[EXACT]))
    with kamado.load(tiny_checkpoint) as model:
        assert model.plan.kv == "balanced"
    with kamado.load(tiny_checkpoint, kv="exact") as model:
        assert model.plan.kv == "exact"


def kamado_checkpoint(path: Path):
    from kamado.files import open_checkpoint

    return open_checkpoint(path)


@pytest.mark.parametrize(
    "change",
    [
        {"codec": 99},
        {"version": 99},
        {"identity": "0" * 32},
        {"recommended": "q4"},
        {"rows": [{"kv": "exact"}]},
        {"rows": [{**dataclasses.asdict(EXACT), "perplexity": float("nan")}]},
        {"rows": 5},
    ],
)
def test_a_record_that_cannot_be_believed_is_none(change: dict) -> None:
    path = save_results(KvResults("1" * 32, "m", "small", rows=[EXACT]))
    assert load_results("1" * 32).rows == [EXACT]
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert load_results("1" * 32) is None
    path.write_bytes(b"\x00" * 10)
    assert load_results("1" * 32) is None


def test_another_file_has_another_identity(tiny_checkpoint: Path, tmp_path: Path) -> None:
    data = bytearray(tiny_checkpoint.read_bytes())
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(data)
    original = model_identity(kamado_checkpoint(tiny_checkpoint))
    assert model_identity(kamado_checkpoint(copy)) == original, "a copy is the same model"
    tensor = max(kamado_checkpoint(copy).tensors.values(), key=lambda t: t.offset)
    for i in range(tensor.offset, tensor.offset + tensor.nbytes):  # a fine-tune changes all of some tensor
        data[i] ^= 1
    copy.write_bytes(data)
    assert model_identity(kamado_checkpoint(copy)) != original


def test_the_measurement_leaves_no_file_but_the_record(tiny_checkpoint: Path) -> None:
    measure_kv(tiny_checkpoint, presets=["small"], num_tokens=400, load=FakeLoader())
    assert len(list(results_root().iterdir())) == 1


def test_on_the_native_executor(tiny_checkpoint: Path) -> None:
    """Heads of 16 values cannot be encoded, so every preset is the exact cache: no divergence at all."""
    found = measure_kv(tiny_checkpoint, presets=["balanced"], num_tokens=400, load=load)
    assert (found.rows[1].rise_percent, found.recommended) == (0.0, "exact")
    assert found.rows[1].divergence < 1e-6, "the reference is kept in float32"


def test_the_texts_are_long_enough_for_the_default() -> None:
    assert all(len(text) > 4 * kv_measure.DEFAULT_TOKENS for text in builtin_texts())
