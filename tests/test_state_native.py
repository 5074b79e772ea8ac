"""What sequences keep, at the native level: the book of pages, sources, records."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models.numpy_executor import NumpyExecutor, Sequence
from native_programs import VOCAB, dense, random_tokens, step
from native_state import MOST_SOURCE_ROWS, PAGES, PROGRAMS, source_rows

from kamado import _native
from kamado import program as p
from kamado.errors import NativeError, UnsupportedError
from kamado.files.types import TensorRef
from kamado.lower import build_executor

OPTIONS: dict[str, Any] = {
    "num_threads": 2, "max_rows": 320, "max_logit_rows": 320, "max_kv_tokens": 1024, "max_sequences": 4, "kv": "f16",
}  # fmt: skip


# --- the book of pages ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv_bits", [None, [(4, 4), (0, 0), (4, 4)]])
def test_pages_are_counted_once_and_reserved_before_a_step(
    tmp_path: Path, kv_bits: list[tuple[int, int]] | None
) -> None:
    program = dense(tmp_path / "weights.bin", heads=2, kv_heads=1, head_dim=64)
    executor = build_executor(program, **OPTIONS, kv_bits=kv_bits, kv_reuse_points=4)
    assert executor.num_pages == executor.num_free_pages == 8
    first = executor.create_sequence()
    assert executor.reserve(first, 300)
    assert executor.num_free_pages == 5
    assert not executor.reserve(first, 1025)
    assert executor.num_free_pages == 5
    step(executor, [(first, random_tokens(260))])
    executor.mark_reuse(first)
    assert executor.num_free_pages == 5
    second = executor.fork_sequence(first, 260)
    assert (executor.num_free_pages, executor.count_pages([first, second])) == (4, 4)
    assert (executor.shared_pages(second, 0), executor.shared_pages(second, 2)) == (2, 0)
    assert executor.reserve(second, 640)
    assert executor.num_free_pages == 2
    executor.give_back(second)
    assert executor.num_free_pages == 4
    executor.truncate(second, 256)
    executor.free_sequence(first)
    assert (executor.count_pages([second]), executor.num_free_pages) == (2, 6)
    with pytest.raises(ValueError, match="does not exist"):
        executor.count_pages([first])
    for call in (executor.give_back, lambda s: executor.reserve(s, 1), lambda s: executor.shared_pages(s, 0)):
        with pytest.raises(ValueError, match="sequence"):
            call(first)


# --- four small programs ----------------------------------------------------------------------------------------------

LONG = random_tokens(700, seed=3)  # six pages
# How the rows of the same text were computed before: (sequence 0's chunks, rows of company beside each).
CHUNKS = ([700], [1] * 40, [129, 256, 1, 100, 214], [300, 3, 1, 1, 395])


class Runner:
    """An executor of one of the programs, with its sources set."""

    def __init__(self, program: p.Program, **options: Any) -> None:
        self.program = program
        self.executor = build_executor(program, **{**OPTIONS, "max_rows": 720, "max_logit_rows": 720, **options})

    def create(self) -> int:
        sequence = self.executor.create_sequence()
        for state, k, v in source_rows(self.program):
            self.executor.set_source(sequence, state, k, v)
        return sequence

    def rows(self, sequence: int, tokens: list[int], chunk: int = 300) -> bytes:
        """Logits of all `tokens`, appended."""
        parts = [tokens[i : i + chunk] for i in range(0, len(tokens), chunk)]
        return b"".join(step(self.executor, [(sequence, part)]).tobytes() for part in parts)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module", params=sorted(PROGRAMS))
def program(request: pytest.FixtureRequest, folder: Path) -> p.Program:
    built = PROGRAMS[request.param](folder / request.param)
    p.validate(built)
    return built


@pytest.fixture(scope="module")
def expected(program: p.Program) -> bytes:
    """By the scalar reference, one thread, one chunk."""
    runner = Runner(program, tier="scalar", num_threads=1)
    return runner.rows(runner.create(), LONG, 700)


def row(expected: bytes, index: int, count: int = 1) -> bytes:
    return expected[4 * VOCAB * index : 4 * VOCAB * (index + count)]


def test_the_oracle_agrees(program: p.Program) -> None:
    runner = Runner(program, kv="f32")
    oracle, sequence = NumpyExecutor(program), Sequence()
    for state, k, v in source_rows(program):
        oracle.set_source(sequence, state, k, v)
    got = np.frombuffer(runner.rows(runner.create(), LONG[:400], 150), np.float32).reshape(-1, VOCAB)
    wanted = np.concatenate([oracle.forward(LONG[:250], sequence), oracle.forward(LONG[250:400], sequence)])
    # float32 sums of at most 400 products of numbers around 1.
    np.testing.assert_allclose(got, wanted, rtol=0, atol=400 * 2**-23 * float(np.abs(wanted).max()))


@pytest.mark.parametrize("tier", _native.tiers())
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_tiers_threads_chunks_and_company_give_the_same_bits(
    program: p.Program, expected: bytes, tier: str, threads: int
) -> None:
    runner = Runner(program, tier=tier, num_threads=threads)
    rng = random.Random(threads)
    for chunks in CHUNKS[: 2 if tier == "scalar" else None]:
        sequence, other, begin = runner.create(), runner.create(), 0
        for count in chunks:
            batch = [(sequence, LONG[begin : begin + count])]
            if count < 300:
                batch.insert(rng.randrange(2), (other, random_tokens(rng.choice([1, 5]), begin)))
            first = 0 if batch[0][0] == sequence else len(batch[0][1])
            wanted = rng.sample(range(count), min(count, 9))  # in any order
            logits = step(runner.executor, batch, [first + i for i in wanted])
            for got, i in zip(logits, wanted, strict=True):
                assert got.tobytes() == row(expected, begin + i)
            begin += count
        for used in (sequence, other):
            runner.executor.free_sequence(used)


def test_logits_come_in_segments_of_any_size(program: p.Program, expected: bytes) -> None:
    """The tail runs once for each block of wanted rows; what it attends to is the same."""
    targets = np.array([*LONG[1:], -1], np.int32)
    logits = np.frombuffer(expected, np.float32).reshape(-1, VOCAB).astype(np.float64)
    wanted = [
        row[t] - np.log(np.exp(row - row.max()).sum()) - row.max() for row, t in zip(logits, LONG[1:], strict=False)
    ]
    scores = []
    for most, threads in ((720, 1), (7, 2), (1, 3)):
        runner = Runner(program, max_logit_rows=most, max_rows=256, num_threads=threads)
        scores.append(runner.executor.score(runner.create(), np.array(LONG, np.int32), targets))
    np.testing.assert_allclose(scores[0][:-1], wanted, atol=1e-9)
    assert scores[0].tobytes() == scores[1].tobytes() == scores[2].tobytes()


@pytest.mark.parametrize("seed", range(4))
def test_forks_and_cuts_go_on_with_the_same_bits(program: p.Program, expected: bytes, seed: int) -> None:
    rng = random.Random(seed)
    runner = Runner(program, kv_reuse_points=8, max_sequences=6)
    executor = runner.executor
    assert executor.can_reuse_anywhere == (not program.has_record)
    first = runner.create()
    marks = sorted(rng.sample(range(1, 699), 4))
    for begin, end in zip([0, *marks], [*marks, 700], strict=True):
        assert runner.rows(first, LONG[begin:end]) == row(expected, begin, end - begin)
        if end < 700:
            executor.mark_reuse(first)
    for _ in range(4):
        at = rng.choice([*marks, 700, 0]) if program.has_record else rng.randrange(701)
        child = executor.fork_sequence(first, at)
        runner.rows(child, random_tokens(50, seed))  # somewhere else
        assert runner.rows(first, [1, 2]) != b""  # and the parent on
        executor.truncate(first, 700 if not program.has_record else marks[-1])
        runner.rows(first, LONG[executor.length(first) :])
        again = executor.fork_sequence(child, at) if executor.last_reusable(child, at) == at else None
        assert again is not None
        count = min(100, 700 - at)
        assert runner.rows(again, LONG[at : at + count], rng.choice([1, 33, 100])) == row(expected, at, count)
        executor.free_sequence(child)
        executor.truncate(again, 0)
        assert runner.rows(again, LONG[:5]) == row(expected, 0, 5)
        executor.free_sequence(again)


def test_a_length_without_a_record_is_refused_and_the_one_before_named(folder: Path) -> None:
    runner = Runner(PROGRAMS["decay"](folder / "cut"), kv_reuse_points=4)
    sequence = runner.create()
    runner.rows(sequence, LONG[:200])
    runner.executor.mark_reuse(sequence)
    runner.rows(sequence, LONG[200:300])
    assert runner.executor.reuse_points(sequence) == [200]
    assert [runner.executor.last_reusable(sequence, n) for n in (300, 299, 200, 199)] == [300, 200, 200, 0]
    for call in (runner.executor.truncate, runner.executor.fork_sequence, runner.executor.export_tail):
        with pytest.raises(ValueError, match="250 tokens, where no record was kept: the last .* is 200"):
            call(sequence, 250)


def test_a_cancelled_or_failed_step_leaves_no_trace(program: p.Program, expected: bytes) -> None:
    runner = Runner(program)
    sequence = runner.create()
    begin = 0
    for count in (1, 130, 1, 200):
        runner.executor.cancel()
        with pytest.raises(_native.Cancelled):
            step(runner.executor, [(sequence, LONG[begin : begin + count])])
        with pytest.raises(ValueError, match="vocabulary"):
            step(runner.executor, [(sequence, [VOCAB])])
        assert runner.executor.length(sequence) == begin
        assert runner.rows(sequence, LONG[begin : begin + count]) == row(expected, begin, count)
        begin += count


def test_when_records_or_pages_run_out_marks_go_and_sequences_stay(program: p.Program, expected: bytes) -> None:
    runner = Runner(program, max_sequences=3, max_records=6, max_kv_tokens=1152, kv_reuse_points=2)
    executor = runner.executor
    sequences = [runner.create() for _ in range(3)]
    for begin in range(0, 300, 20):
        for sequence in sequences:
            assert runner.rows(sequence, LONG[begin : begin + 20]) == row(expected, begin, 20)
            executor.mark_reuse(sequence)
    tokens = [(sequence, LONG[300:301]) for sequence in sequences]
    assert step(executor, tokens).tobytes() == 3 * row(expected, 300)
    with pytest.raises(ValueError, match="cache is full"):
        step(executor, [(sequence, LONG[301:521]) for sequence in sequences])
    kept = [len(executor.reuse_points(sequence)) for sequence in sequences]
    if program.has_record:
        assert sum(kept) <= 4
        assert executor.num_free_records == 0
    for sequence in sequences:
        assert runner.rows(sequence, LONG[301:311], 1) == row(expected, 301, 10)
        executor.free_sequence(sequence)
    assert executor.num_free_pages == executor.num_pages
    assert executor.stats()["records_bytes"] == 0
    assert executor.num_free_records == (6 if program.has_record else 0)


def test_a_sequence_comes_back_from_bytes(program: p.Program, expected: bytes) -> None:
    runner, restarted = Runner(program), Runner(program)
    sequence = runner.create()
    runner.rows(sequence, LONG[:400])
    runner.executor.mark_reuse(sequence)
    runner.rows(sequence, LONG[400:450])
    pages = runner.executor.export_pages(sequence, 0, 2)
    tail = runner.executor.export_tail(sequence, 400)
    assert len(tail) == runner.executor.tail_bytes(400)
    assert runner.executor.kv_fingerprint == restarted.executor.kv_fingerprint
    copy = restarted.executor.begin_import(400)
    restarted.executor.import_pages(copy, 0, 2, pages)
    with pytest.raises(ValueError, match="bytes"):
        restarted.executor.import_tail(copy, tail[:-1])
    restarted.executor.import_tail(copy, tail)
    assert restarted.executor.export_tail(copy, 400) == tail
    assert restarted.rows(copy, LONG[400:], 77) == row(expected, 400, 300)
    damaged = bytearray(np.full(len(tail) // 2, 0x7F80, np.uint16).tobytes())  # infinities, and no number of rows
    broken = restarted.executor.begin_import(400)
    restarted.executor.import_pages(broken, 0, 2, pages)
    restarted.executor.import_tail(broken, damaged)
    if any(isinstance(state, p.Source) for state in program.states):
        with pytest.raises(ValueError, match="is not set"):
            restarted.rows(broken, LONG[400:401])
    else:
        assert np.isfinite(np.frombuffer(restarted.rows(broken, LONG[400:401]), np.float32)).all()


def test_repetition_fills_what_a_step_can_go_on_from(program: p.Program) -> None:
    runner = Runner(program)
    sequence = runner.create()
    runner.rows(sequence, LONG[:40])
    runner.executor.tile_kv(sequence, 500)
    assert runner.executor.length(sequence) == 500
    assert np.isfinite(np.frombuffer(runner.rows(sequence, LONG[:3]), np.float32)).all()


# --- sources ----------------------------------------------------------------------------------------------------------


def test_a_source_is_set_once_before_the_first_step(folder: Path) -> None:
    runner = Runner(PROGRAMS["source"](folder / "once"))
    executor = runner.executor
    state, k, v = source_rows(runner.program)[0]
    sequence = executor.create_sequence()
    with pytest.raises(ValueError, match="source of sequence 0 is not set"):
        runner.rows(sequence, [1])
    long = np.zeros((MOST_SOURCE_ROWS + 1, k.shape[1]), np.float32)
    for wrong in ((k[:0], v[:0]), (k[:5], v[:4]), (long, long), (k[:, 1:].copy(), v), (k * np.nan, v), (k, v * np.inf)):
        with pytest.raises(ValueError, match="source"):
            executor.set_source(sequence, state, *wrong)
    for number in (-1, 1, 2):
        with pytest.raises(ValueError, match="is no source"):
            executor.set_source(sequence, number, k, v)
    with pytest.raises(ValueError, match="does not exist"):
        executor.set_source(9, state, k, v)
    executor.set_source(sequence, state, k, v)
    assert executor.stats()["records_bytes"] > 0
    first = runner.rows(sequence, LONG[:3])
    with pytest.raises(ValueError, match="set already"):
        executor.set_source(sequence, state, k, v)
    executor.truncate(sequence, 0)
    assert runner.rows(sequence, LONG[:3]) == first  # a cut leaves it
    other = executor.create_sequence()
    executor.set_source(other, state, k[:1], v[:1])
    assert runner.rows(other, LONG[:3]) != first


# --- records ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["decay", "conv", "delta", "channels"])
@pytest.mark.parametrize("threads", [1, 2])
def test_records_of_several_rows_can_be_handed_back(folder: Path, name: str, threads: int) -> None:
    """What speculation needs: after a step of several rows, going back by some of them."""
    runner = Runner(PROGRAMS[name](folder / "rows"), record_rows=3, num_threads=threads)
    sequence, fresh = runner.create(), runner.create()
    wanted = runner.rows(fresh, LONG[:120])
    runner.rows(sequence, LONG[:20])
    runner.rows(sequence, [*LONG[20:22], 5, 6])
    assert [runner.executor.last_reusable(sequence, n) for n in (24, 23, 22, 21)] == [24, 23, 22, 0]
    runner.executor.truncate(sequence, 22)
    assert runner.rows(sequence, LONG[22:60], 7) == row(wanted, 22, 38)
    for rows, right in ((1, 0), (2, 1), (2, 0), (3, 1), (40, 38)):  # of a step, and those of it that were right
        length = runner.executor.length(sequence)
        runner.rows(sequence, [*LONG[length : length + right], *[7] * (rows - right)], rows)
        runner.executor.truncate(sequence, length + right)
    assert runner.rows(sequence, LONG[100:120]) == row(wanted, 100, 20)


def test_marking_and_forking_copy_nothing(folder: Path) -> None:
    runner = Runner(PROGRAMS["decay"](folder / "shared"), max_records=20)
    sequence = runner.create()
    runner.rows(sequence, LONG[:10])
    free, taken = runner.executor.num_free_records, runner.executor.stats()["records_bytes"]
    runner.executor.mark_reuse(sequence)
    runner.executor.fork_sequence(sequence, 10)
    assert (runner.executor.num_free_records, runner.executor.stats()["records_bytes"]) == (free, taken)
    runner.rows(sequence, LONG[10:12])
    assert runner.executor.num_free_records == free - 1


# --- refusals ---------------------------------------------------------------------------------------------------------


def taps_of(rows: int, cols: int) -> Callable[[p.Program], TensorRef]:
    """Other numbers of the program's file."""

    def make(program: p.Program) -> TensorRef:
        ref = next(p.tensors(program.ops[0]))
        return dataclasses.replace(ref, nbytes=4 * rows * cols, shape=(rows, cols))

    return make


def vector_of(length: int) -> Callable[[p.Program], TensorRef]:
    return lambda program: dataclasses.replace(taps_of(1, length)(program), shape=(length,))


def changed(program: p.Program, states: tuple[p.State, ...] | None = None, **fields: Any) -> p.Program:
    """The program with other states, or with another operation in the place of the last one that names a state."""
    ops = list(program.ops)
    last = max(i for i, op in enumerate(ops) if hasattr(op, "state"))
    fields = {name: made(program) if callable(made) else made for name, made in fields.items()}
    ops[last] = dataclasses.replace(ops[last], **fields)
    return dataclasses.replace(program, ops=ops, states=program.states if states is None else states)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("conv", {"states": (PAGES, p.Record("conv", 4 * 64))}, "state 1"),
        ("conv", {"weight": vector_of(7)}, "shape"),
        ("conv", {"weight": taps_of(64, 1)}, "1 taps, not 2 to 64"),
        ("conv", {"weight": taps_of(64, 65)}, "65 taps, not 2 to 64"),
        ("conv", {"weight": taps_of(63, 3)}, "shape"),
        ("conv", {"weight": taps_of(64, 4)}, "state 1"),
        ("conv", {"bias": vector_of(65)}, "65"),
        ("conv", {"x": p.Buffer("short", 32)}, "short"),
        ("conv", {"out": p.Buffer("out", 64)}, "both input and output"),
        ("conv", {"activation": "tanh"}, "activation"),
        ("delta", {"num_v_heads": 3}, "3 heads on 2"),
        ("delta", {"num_k_heads": 0}, "4 heads on 0"),
        ("delta", {"num_v_heads": 0}, "0 heads on 2"),
        ("delta", {"k_dim": -16}, "of -16 and"),
        ("delta", {"k_dim": 2**31 - 1}, "width"),
        ("delta", {"v_dim": 2**31 - 1}, "width"),
        ("delta", {"v_dim": 71}, "width"),
        ("delta", {"scale": float("nan")}, "scale"),
        ("delta", {"beta_scale": 0.0}, "beta_scale 0 is not above 0"),
        ("delta", {"heads": "other"}, "heads"),
        ("delta", {"b": p.Buffer("a", 4), "a": p.Buffer("z", 288)}, "288 decays for 4 heads of 16"),
        ("delta", {"decay": vector_of(5)}, "5"),
        ("delta", {"dt_bias": vector_of(64)}, "64"),
        ("delta", {"out": p.Buffer("vc", 288)}, "both input and output"),
        ("delta", {"state": 3}, "state 3"),
        ("delta", {"state": 0}, "state 0"),
        ("delta", {"states": (PAGES, *(p.Record("", n) for n in (384, 384, 3456, 4 * 4 * 16 * 71)))}, "state 4"),
        ("channels", {"a": p.Buffer("b", 4)}, r"expected \(?4"),
        ("decay", {"state": 2}, "state 2 of a program with 2|the id 2"),
        ("decay", {"state": 0}, "state 0"),
        ("decay", {"states": (PAGES, p.Record("sum", 260))}, "state 1"),
        ("decay", {"states": (PAGES, PAGES)}, "state 1"),
        ("decay", {"states": (PAGES, p.Record("sum", 256), p.Record("more", 4))}, "writes (it|state 2)"),
        ("decay", {"states": (PAGES, p.Record("sum", 256), p.Pages(0, 1, 1))}, "not all above 0|out of range"),
        ("decay", {"states": (PAGES, p.Record("sum", 6))}, "record|state 1"),
        ("earlier", {"stores": True}, "keys and values are given"),
        ("earlier", {"state": 1}, "state 1 of|the id 1"),
        ("widths", {"state": 0}, "state 0"),
        ("widths", {"states": (p.Pages(1, 64, 64), p.Pages(2, 16, 16), p.Window(1, 32, 32, 9))}, "window|or shape"),
        ("source", {"window": 5}, "source|kind or shape"),
        ("source", {"states": (PAGES, PAGES)}, "read before it is written"),
        ("source", {"states": (p.Source(1, 32, 32, 9), p.Source(1, 32, 32, 9))}, "filled once|kind or shape"),
    ],
)  # fmt: skip
def test_states_that_do_not_fit_are_refused(folder: Path, name: str, change: dict[str, Any], words: str) -> None:
    wrong = changed(PROGRAMS[name](folder / "wrong"), **change)
    with pytest.raises(ValueError, match=words):
        p.validate(wrong)
    with pytest.raises((NativeError, UnsupportedError), match=words):
        build_executor(wrong, **OPTIONS)


def test_too_few_records_are_refused(folder: Path) -> None:
    program = PROGRAMS["decay"](folder / "few")
    with pytest.raises(NativeError, match="max_records must be at least 8, got 7"):
        build_executor(program, **OPTIONS, max_records=7)
    with pytest.raises(NativeError, match="max_records"):
        build_executor(program, **OPTIONS, max_records=1 << 30)
    with pytest.raises(NativeError, match="record_rows"):
        build_executor(program, **OPTIONS, record_rows=0)


def test_programs_that_say_nothing_keep_what_they_attend_to(tmp_path: Path) -> None:
    program = dense(tmp_path / "weights.bin")
    assert program.states == (p.Pages(2, 16, 16), p.Window(2, 16, 16, 40), p.Pages(2, 16, 16))
    assert not program.has_record
    assert [attends[0].state for attends in program.attends_by_kv_layer] == [0, 1, 2]
