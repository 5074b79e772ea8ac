"""The attention of a real executor, exact and with codes: what is read, what it is compared with, what it leads to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import kamado
from kamado.engine.measure.kv_attention import (
    QUERY_STRIDE,
    AttentionProbe,
    _Exact,
    _Sums,
    delicate_layers,
    layers_text,
    spoiling_layers,
)
from kamado.engine.measure.kv_measure import measure_kv
from kamado.engine.measure.kv_results import KvLayerRow, load_results
from kamado.errors import NativeError
from kamado.files import open_checkpoint
from kamado.models import build_program
from kamado.plan.kv_presets import parse_kv
from kamado.program import Attend, Buffer

LENGTH = 450  # three whole pages, of which a query at the end reads two as codes
CODED = 256


def run_alone(path: Path, work, *, kv: str = "exact", chunk: int = 512, stride: int = QUERY_STRIDE):
    """What `work(executor, sequence)` gives after a random text with its queries kept."""
    tokens = np.random.default_rng(1).integers(0, 256, LENGTH).tolist()
    found = []

    def before(executor, _sequence: int) -> None:
        executor.record_queries(stride)

    def after(executor, sequence: int) -> None:
        found.append(work(executor, sequence))

    with kamado.load(path, kv=kv, context=512, max_logit_rows=chunk, max_rows=chunk) as model:
        model.visit_logits(tokens, lambda at, logits: None, before=before, after=after)
    return found[0]


def layers_of(path: Path) -> list[Attend]:
    return [op for op in build_program(open_checkpoint(path)).ops if isinstance(op, Attend)]


def test_codes_come_back_where_a_query_reads_them(delicate_checkpoint: Path) -> None:
    exact, coded, rough = run_alone(
        delicate_checkpoint, lambda ex, seq: [ex.read_kv(seq, 1, *bits) for bits in ((0, 0), (4, 4), (2, 2))]
    )
    for which in (0, 1):
        assert exact[which].shape == (1, LENGTH, 64)
        for values, low, high in ((coded, 0.003, 0.012), (rough, 0.06, 0.2)):
            lost = (values[which] - exact[which])[:, 4:CODED]
            share = float((lost**2).sum() / (exact[which][:, 4:CODED] ** 2).sum())
            assert low < share < high
            assert (values[which][:, CODED:] == exact[which][:, CODED:]).all(), "the last pages stay exact"
            assert (values[which][:, :4] == exact[which][:, :4]).all(), "and the first tokens"


def test_queries_do_not_depend_on_the_steps(delicate_checkpoint: Path) -> None:
    def work(executor, _sequence: int):
        return executor.recorded_queries(2)

    positions, queries = run_alone(delicate_checkpoint, work)
    assert positions.tolist() == list(range(0, LENGTH, QUERY_STRIDE))
    assert queries.shape == (len(positions), 2, 64)
    again = run_alone(delicate_checkpoint, work, chunk=37)
    assert (again[0] == positions).all()
    assert (again[1] == queries).all()
    with pytest.raises(NativeError, match="no queries"):
        run_alone(delicate_checkpoint, work, stride=0)


def test_the_divergence_is_the_real_one(delicate_checkpoint: Path) -> None:
    """Against a computation of its own: one query and head after the other, in float64."""
    program = build_program(open_checkpoint(delicate_checkpoint))
    bits = parse_kv("k=3,v=2", 8).for_program(program).bits
    probe = AttentionProbe(program, {"k=3,v=2": bits})

    def work(executor, sequence: int):
        raw = [(executor.recorded_queries(i), executor.read_kv(sequence, i, 0, 0), executor.read_kv(sequence, i, 3, 2))
               for i in (0, 3)]  # fmt: skip
        probe.add(executor, sequence)
        return raw

    raw = run_alone(delicate_checkpoint, work)
    rows = probe.losses("k=3,v=2")
    assert [row.layer for row in rows] == list(range(8))
    for layer, ((positions, queries), exact, coded) in zip((0, 3), raw, strict=True):
        divergences, error, power = np.zeros(2), 0.0, 0.0
        late = [i for i, position in enumerate(positions) if position >= 256]
        for i in late:
            end = int(positions[i]) + 1
            border = (int(positions[i]) // 128 - 1) * 128
            k, v = (np.concatenate([c[0, :border], e[0, border:end]]) for c, e in zip(coded, exact, strict=True))
            for head in range(2):
                p, q = (softmax(keys.astype(float) @ queries[i, head] / 8) for keys in (exact[0][0, :end], k))
                divergences[head] += (p * np.log(p / q)).sum() / len(late)
                out = p @ exact[1][0, :end]
                error += ((q @ v - out) ** 2).sum()
                power += (out**2).sum()
        assert rows[layer].divergence == pytest.approx(divergences.mean(), rel=1e-3)
        assert (rows[layer].worst_head, rows[layer].worst_divergence) == (
            divergences.argmax(),
            pytest.approx(divergences.max(), rel=1e-3),
        )
        assert rows[layer].output_error == pytest.approx(error / power, rel=1e-3)


def test_a_sink_takes_its_share_of_the_weights_and_of_the_divergence() -> None:
    """Against a softmax over keys and sink in float64: 2 query heads on 1 of keys, 3 pages, the first as codes."""
    rng = np.random.default_rng(4)
    q, rows = (Buffer(name, 16) for name in ("q", "rows"))
    op = Attend(q, q, rows, rows, 0, 2, 1, 8, 8, scale=0.35)
    sinks, positions = np.array([1.0, -2.0], np.float32), np.array([300, 383], np.int32)
    queries = rng.standard_normal((2, 2, 8)).astype(np.float32)
    k, v = rng.standard_normal((2, 1, 384, 8)).astype(np.float32)
    coded_k, coded_v = (x + 0.3 * rng.standard_normal(x.shape).astype(np.float32) for x in (k, v))
    sums = _Sums(2)
    _Exact(op, sinks, positions, queries, k, v).compare(coded_k, coded_v, sums)
    divergences, error, power = np.zeros(2), 0.0, 0.0
    for i, position in enumerate(positions):
        end, border = position + 1, (position // 128 - 1) * 128
        read_k, read_v = (np.concatenate([c[0, :border], x[0, border:end]]) for c, x in ((coded_k, k), (coded_v, v)))
        for head in range(2):
            query = queries[i, head].astype(float) * 0.35
            p, r = (softmax(np.append(keys @ query, sinks[head])) for keys in (k[0, :end], read_k))
            divergences[head] += (p * np.log(p / r)).sum()
            out = p[:-1] @ v[0, :end]
            error += ((r[:-1] @ read_v - out) ** 2).sum()
            power += (out**2).sum()
    assert sums.divergence == pytest.approx(divergences, rel=1e-4)
    assert (sums.error, sums.power) == (pytest.approx(error, rel=1e-3), pytest.approx(power, rel=1e-4))


def softmax(x: np.ndarray) -> np.ndarray:
    x = np.exp(x - x.max())
    return x / x.sum()


def test_more_bits_move_attention_less(delicate_checkpoint: Path) -> None:
    program = build_program(open_checkpoint(delicate_checkpoint))
    presets = {kv: parse_kv(kv, 8).for_program(program).bits for kv in ("safe", "balanced", "k=2,v=2", "exact")}
    probe = AttentionProbe(program, presets)
    run_alone(delicate_checkpoint, probe.add)
    safe, balanced, rough = (
        np.mean([r.divergence for r in probe.losses(kv)]) for kv in ("safe", "balanced", "k=2,v=2")
    )
    assert 0 < 50 * safe < balanced
    assert 5 * balanced < rough
    assert probe.losses("exact") == []


@pytest.mark.parametrize(
    ("kv", "layer", "bits", "message"),
    [
        ("exact", 8, (4, 4), "no such layer"),
        ("exact", -1, (0, 0), "no such layer"),
        ("exact", 0, (5, 4), "cannot be encoded"),
        ("exact", 0, (4, 0), "cannot be encoded"),
        ("balanced", 0, (4, 4), "as f16"),
        ("f32", 0, (4, 4), "as f16"),
    ],
)
def test_what_cannot_be_read_is_refused(delicate_checkpoint: Path, kv: str, layer: int, bits, message: str) -> None:
    with pytest.raises(NativeError, match=message):
        run_alone(delicate_checkpoint, lambda ex, seq: ex.read_kv(seq, layer, *bits), kv=kv)


def rows_of(worst: list[float]) -> list[KvLayerRow]:
    return [KvLayerRow("balanced", layer, value / 4, 0, value, 0.01) for layer, value in enumerate(worst)]


@pytest.mark.parametrize(
    ("worst", "expected"),
    [
        ([0.5, *[0.01] * 9], [0]),
        ([0.3, 0.01, 0.01, 0.01, 0.01, 0.01, 0.3, 0.01], [0, 6]),
        ([0.01] * 10, []),
        ([0.019, *[0.001] * 9], []),  # many times the median, and still nothing
        ([0.5, 0.5, 0.5, *[0.01] * 7], []),  # a third of the layers are no exception
        ([0.5, 0.01, 0.01], []),  # too few to tell
    ],
)
def test_a_few_layers_that_stand_out_are_delicate(worst: list[float], expected: list[int]) -> None:
    assert delicate_layers(rows_of(worst)) == expected


def test_they_spoil_a_preset_only_when_much_of_the_loss_is_theirs() -> None:
    rows = rows_of([0.5, *[0.01] * 9])
    assert spoiling_layers(rows) == [0]
    rows += [KvLayerRow("balanced", 10 + i, 0.1, 0, 0.02, 0.01) for i in range(5)]  # many heads, each a little
    assert delicate_layers(rows) == [0]
    assert spoiling_layers(rows) == []


def test_layers_are_written_as_they_are_read() -> None:
    text = layers_text([9, 0, 1, 5, 7, 6])
    assert text == "0-1+5-7+9"
    bits = parse_kv(f"balanced,layers={text}:exact", 12).bits
    assert [i for i, pair in enumerate(bits) if pair == (0, 0)] == [0, 1, 5, 6, 7, 9]


def test_one_spoiled_layer_is_left_exact(delicate_checkpoint: Path) -> None:
    """The preset alone is not safe; with the layer that its attention shows to be delicate left exact, it loses less,
    and what is recorded says so for every layer."""
    loaded: list[str] = []

    def load(*args, kv: str, **options):
        loaded.append(kv)
        return kamado.load(*args, kv=kv, **options)

    progress: list[tuple[int, int]] = []
    found = measure_kv(
        delicate_checkpoint, presets=["balanced"], num_tokens=512, load=load, progress=lambda *p: progress.append(p)
    )
    assert loaded == ["exact", "balanced", "balanced,layers=3:exact"]
    exact, balanced, excepted = found.rows
    assert excepted.kv == "balanced,layers=3:exact"
    assert balanced.bytes_per_token < excepted.bytes_per_token < exact.bytes_per_token
    assert excepted.divergence < 0.8 * balanced.divergence
    assert [row.layer for row in found.layers_of("balanced")] == list(range(8))
    assert delicate_layers(found.layers_of("balanced")) == [3]
    assert progress[-1][0] == progress[-1][1]
    assert load_results(found.identity) == found
    assert measure_kv(delicate_checkpoint, presets=["balanced"], num_tokens=512, load=load).rows == found.rows
    assert len(loaded) == 3, "nothing was measured again"
