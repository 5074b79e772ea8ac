"""The encoded cache: which pages are read how, and that nothing but the tokens decides a row's bits."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from native_programs import VOCAB, TensorFile, check_chunks_and_company, dense, inv_freq, random_tokens, step

from kamado import _native
from kamado import program as p
from kamado.errors import NativeError
from kamado.files.types import Layout
from kamado.lower import build_executor

BITS = [(4, 4), (0, 0), (3, 2)]  # by layer; the second has a window of 40 tokens
LONG = random_tokens(700, seed=3)  # six pages, of which a last query reads four as codes
SETTLED = 2 * 128  # rows before read nothing as codes


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> p.Program:
    return dense(tmp_path_factory.mktemp("weights") / "weights.bin", heads=4, kv_heads=2, head_dim=64)


def build(program: p.Program, **options: Any) -> Any:
    defaults: dict[str, Any] = {
        "num_threads": 2, "max_rows": 320, "max_logit_rows": 320, "max_kv_tokens": 4096, "max_sequences": 6,
        "kv": "f16", "kv_bits": BITS, "kv_reuse_points": 12,
    }  # fmt: skip
    return build_executor(program, **{**defaults, **options})


@pytest.fixture(scope="module")
def executor(program: p.Program) -> Any:
    return build(program)


@pytest.fixture
def sequence(executor: Any) -> Iterator[int]:
    made = executor.create_sequence()
    yield made
    executor.free_sequence(made)


def prefill(executor: Any, sequence: int, tokens: list[int], chunk: int = 300) -> np.ndarray:
    """Appends tokens; the logits of all of them."""
    parts = [step(executor, [(sequence, tokens[i : i + chunk])]) for i in range(0, len(tokens), chunk)]
    return np.concatenate(parts) if parts else np.zeros((0, VOCAB), np.float32)


def logits_of(program: p.Program, **options: Any) -> np.ndarray:
    executor = build(program, **options)
    return prefill(executor, executor.create_sequence(), LONG)


@pytest.fixture(scope="module")
def expected(program: p.Program) -> np.ndarray:
    return logits_of(program)


# --- what is read -----------------------------------------------------------------------------------------------------


def test_a_query_reads_its_page_and_the_one_before_exactly(program: p.Program, expected: np.ndarray) -> None:
    exact = logits_of(program, kv_bits=None)
    assert expected[:SETTLED].tobytes() == exact[:SETTLED].tobytes()
    assert (expected[SETTLED:] != exact[SETTLED:]).any(axis=1).all()


def test_fewer_bits_are_further_from_the_exact_cache(program: p.Program) -> None:
    """The codes are really read: one bit a value, the control, ruins what eight keep."""
    exact = logits_of(program, kv_bits=None)[SETTLED:]
    errors = []
    for bits in (8, 4, 3, 2, 1):
        got = logits_of(program, kv_bits=[(bits, bits), (0, 0), (bits, bits)])[SETTLED:]
        errors.append(float(np.sqrt(((got - exact) ** 2).mean()) / exact.std()))
    assert errors == sorted(errors)
    assert errors[0] < 0.01
    assert errors[-1] > 5 * errors[1]


def test_a_window_is_kept_exactly_and_alone(program: p.Program) -> None:
    """Exact layers give the same bits whether windows keep all or only themselves, and then take less."""
    kept, cut = build(program, kv_bits=None), build(program, kv_bits=[(0, 0)] * 3)
    rows = [prefill(executor, executor.create_sequence(), LONG).tobytes() for executor in (kept, cut)]
    assert rows[0] == rows[1]
    page = 2 * 2 * 64 * 128 * 2  # K and V, heads, values, tokens, bytes: of one layer
    assert kept.stats()["kv_bytes_exact"] == 6 * 3 * page
    assert cut.stats()["kv_bytes_exact"] == 6 * 2 * page + page
    assert kept.can_reuse_anywhere
    assert not cut.can_reuse_anywhere


# --- the same bits however it was computed ----------------------------------------------------------------------------


@pytest.mark.parametrize("tier", _native.tiers())
@pytest.mark.parametrize("threads", [1, 3])
def test_threads_and_tiers_give_the_same_bits(
    program: p.Program, expected: np.ndarray, tier: str, threads: int
) -> None:
    executor = build(program, tier=tier, num_threads=threads)
    sequence = executor.create_sequence()
    assert prefill(executor, sequence, LONG[:510], 129).tobytes() == expected[:510].tobytes()
    for i in range(510, 516):  # over the end of a page, by single rows
        assert step(executor, [(sequence, LONG[i : i + 1])]).tobytes() == expected[i].tobytes()


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 320), max_size=6), st.lists(st.integers(1, 60), max_size=2), st.randoms())
def test_chunks_and_company_give_the_same_bits(
    executor: Any, expected: np.ndarray, chunks: list[int], company: list[int], random: Any
) -> None:
    check_chunks_and_company(executor, LONG, expected, chunks, company, random)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.integers(1, 699), min_size=1, max_size=5, unique=True),
    st.integers(1, 320),
    st.integers(0, 2**32 - 1),
)
def test_a_fork_at_a_reuse_point_is_a_fresh_computation(
    executor: Any, expected: np.ndarray, points: list[int], chunk: int, seed: int
) -> None:
    """The parent ran on, and so did children that branched off elsewhere; a grandchild forks what the child got."""
    rng = random.Random(seed)
    parent = executor.create_sequence()
    used = [parent]
    try:
        begin = 0
        for end in [*sorted(points), len(LONG)]:
            prefill(executor, parent, LONG[begin:end], chunk)
            executor.mark_reuse(parent)
            begin = end
        assert executor.reuse_points(parent) == [*sorted(points), len(LONG)]
        for point in rng.sample(points, len(points)):
            child = executor.fork_sequence(parent, point)
            used.append(child)
            assert executor.reuse_points(child) == [n for n in sorted(points) if n <= point]
            prefill(executor, child, random_tokens(rng.randrange(1, 300), seed % 1000), 150)  # another way
            executor.truncate(child, point)
            end = min(point + rng.choice([1, 40, 280]), len(LONG))
            assert prefill(executor, child, LONG[point:end], chunk).tobytes() == expected[point:end].tobytes()
            before = rng.choice(executor.reuse_points(child))
            grandchild = executor.fork_sequence(child, before)
            end = min(before + 20, len(LONG))
            assert prefill(executor, grandchild, LONG[before:end]).tobytes() == expected[before:end].tobytes()
            executor.free_sequence(grandchild)
            if rng.random() < 0.5 or len(used) == 5:  # of 6, one is the next grandchild
                executor.free_sequence(used.pop())
        point = rng.choice(points)
        executor.truncate(parent, point)
        assert prefill(executor, parent, LONG[point:], chunk).tobytes() == expected[point:].tobytes()
    finally:
        for sequence in used:
            executor.free_sequence(sequence)
    assert executor.stats()["kv_bytes"] == 0


def test_an_order_20_head_and_mixed_groups(tmp_path: Path) -> None:
    """Heads of 80 values (no power of two) with six query heads each."""
    program = dense(tmp_path / "w.bin", heads=6, kv_heads=1, head_dim=80, layers=1)
    rows = []
    for tier in _native.tiers():
        executor = build(program, kv_bits=[(4, 3)], tier=tier)
        rows.append(prefill(executor, executor.create_sequence(), LONG[:400]).tobytes())
    assert len(set(rows)) == 1


# --- where a sequence can be cut --------------------------------------------------------------------------------------


def test_only_where_exact_pages_are_left(executor: Any, sequence: int) -> None:
    prefill(executor, sequence, LONG[:400])
    executor.mark_reuse(sequence)
    prefill(executor, sequence, LONG[400:])
    # The end's page, but for the window's 40 tokens that reach back into page 4, which has gone; the point's pages, to
    # the end of the last one; the beginning.
    for wanted, last in ((9000, 700), (700, 700), (679, 679), (678, 512), (511, 511), (400, 400), (384, 384), (0, 0)):
        assert executor.last_reusable(sequence, wanted) == last, wanted
    with pytest.raises(ValueError, match="cannot fork at 600 tokens, where the exact pages are gone: .* before is 512"):
        executor.fork_sequence(sequence, 600)
    with pytest.raises(
        ValueError, match="cannot truncate at 256 tokens, where the exact pages are gone: .* before is 0"
    ):
        executor.truncate(sequence, 256)
    assert executor.length(sequence) == 700
    executor.unmark_reuse(sequence, 400)
    assert executor.last_reusable(sequence, 639) == 0
    with pytest.raises(ValueError, match="400 tokens are no reuse point"):
        executor.unmark_reuse(sequence, 400)
    executor.truncate(sequence, 0)
    assert executor.stats()["kv_bytes"] == 0


def test_children_share_the_codes_of_a_page_whoever_makes_them(executor: Any, expected: np.ndarray) -> None:
    parent = executor.create_sequence()
    prefill(executor, parent, LONG[:260])
    executor.mark_reuse(parent)
    one = executor.stats()["kv_bytes_encoded"]  # page 0, and its sinks
    children = [executor.fork_sequence(parent, 260) for _ in range(3)]
    batch = [(sequence, LONG[260:400]) for sequence in children[:2]]
    rows = step(executor, batch)  # both in one step, then one alone, then the parent
    assert rows.tobytes() == expected[260:400].tobytes() * 2
    for sequence in (children[2], parent):
        assert prefill(executor, sequence, LONG[260:400]).tobytes() == expected[260:400].tobytes()
    sinks = 2 * 2 * (64 + 64) * 4 * 2  # layers, heads, values of a key and a value, tokens, bytes: whole system pages
    page = one - -(-sinks // 4096) * 4096
    assert executor.stats()["kv_bytes_encoded"] == one + page
    assert executor.stats()["kv_pages_shared"] >= 2
    for sequence in [parent, *children]:
        executor.free_sequence(sequence)
    stats = executor.stats()
    assert (stats["kv_bytes"], stats["kv_pages_shared"], stats["kv_reuse_points"]) == (0, 0, 0)


def test_points_give_way_before_a_step_fails(program: p.Program, expected: np.ndarray) -> None:
    """More points than there are exact pages: the oldest go, those that are listed keep their promise."""
    executor = build(program, max_sequences=4, kv_reuse_points=0, max_rows=64, max_logit_rows=64)
    sequences = [executor.create_sequence() for _ in range(3)]
    for begin in range(0, len(LONG), 20):
        for sequence in sequences:
            prefill(executor, sequence, LONG[begin : begin + 20])
            executor.mark_reuse(sequence)
    assert executor.stats()["kv_reuse_points"] < 3 * len(LONG) / 20
    num_forks = 0
    for sequence in sequences:
        points = executor.reuse_points(sequence)
        assert points[-2:] == [680, 700]
        for point in points[:-1]:
            if point not in executor.reuse_points(sequence):
                continue  # given up for a child
            child = executor.fork_sequence(sequence, point)
            part = LONG[point : point + 9]
            assert prefill(executor, child, part).tobytes() == expected[point : point + 9].tobytes()
            executor.free_sequence(child)
            num_forks += 1
    assert num_forks > 20


def test_an_error_leaves_the_sequences_as_before(executor: Any, expected: np.ndarray) -> None:
    for begin, end in ((250, 270), (380, 390), (300, 620)):  # steps that encode one page, or three
        sequence = executor.create_sequence()
        prefill(executor, sequence, LONG[:begin])
        executor.mark_reuse(sequence)
        before = {key: value for key, value in executor.stats().items() if key.startswith("kv_")}
        executor.cancel()
        with pytest.raises(_native.Cancelled):
            step(executor, [(sequence, LONG[begin:end])])
        after = {key: value for key, value in executor.stats().items() if key.startswith("kv_")}
        assert (executor.length(sequence), after) == (begin, before)
        assert prefill(executor, sequence, LONG[begin:end]).tobytes() == expected[begin:end].tobytes()
        with pytest.raises(ValueError, match="cache holds 4096"):  # found after 3,000 tokens: all are undone
            executor.score(sequence, np.ones(3900, np.int32), np.ones(3900, np.int32))
        assert executor.length(sequence) == end
        assert executor.reuse_points(sequence) == [begin]
        assert step(executor, [(sequence, [LONG[end]])]).tobytes() == expected[end].tobytes()
        executor.free_sequence(sequence)


def test_tiling_leaves_what_a_long_prompt_leaves(program: p.Program) -> None:
    rows = []
    for start, threads in ((256, 1), (256, 2), (300, 1), (90, 1)):
        executor = build(program, num_threads=threads, max_kv_tokens=8192)
        sequence = executor.create_sequence()
        prefill(executor, sequence, LONG[:start])
        executor.tile_kv(sequence, 3000)
        executor.mark_reuse(sequence)
        assert executor.reuse_points(sequence) == [3000]
        rows.append(step(executor, [(sequence, [1])]).tobytes())
        executor.truncate(sequence, 3000)
        assert step(executor, [(sequence, [1])]).tobytes() == rows[-1]
        fresh = executor.create_sequence()
        prefill(executor, fresh, random_tokens(3000), 320)
        executor.free_sequence(sequence)
        alone = executor.stats()["kv_bytes_encoded"]
        executor.free_sequence(fresh)
        sequence = executor.create_sequence()
        prefill(executor, sequence, LONG[:start])
        executor.tile_kv(sequence, 3000)
        assert executor.stats()["kv_bytes_encoded"] == alone
    assert rows[0] == rows[1]
    assert len(set(rows)) == 3


# --- pages as bytes ---------------------------------------------------------------------------------------------------


def exported(executor: Any, sequence: int, point: int) -> tuple[bytes, bytes]:
    return executor.export_pages(sequence, 0, executor.settled_pages(point)), executor.export_tail(sequence, point)


def imported(executor: Any, pages: Any, tail: Any, point: int) -> int:
    """The first page by itself, then the others."""
    sequence = executor.begin_import(point)
    try:
        settled, size = executor.settled_pages(point), executor.page_bytes()
        if settled:
            executor.import_pages(sequence, 0, 1, pages[:size])
            executor.import_pages(sequence, 1, settled, pages[size:])
        executor.import_tail(sequence, tail)
    except BaseException:
        executor.free_sequence(sequence)
        raise
    return sequence


@pytest.mark.parametrize("point", [0, 1, 100, 128, 255, 256, 300, 384, 640, 700])
@pytest.mark.parametrize("bits", [None, [(0, 0)] * 3, BITS])
def test_a_restored_sequence_goes_on_with_the_same_bits(
    program: p.Program, bits: list[tuple[int, int]] | None, point: int
) -> None:
    tokens = [*LONG, *random_tokens(60, seed=8)]
    source, target = build(program, kv_bits=bits), build(program, kv_bits=bits, tier="scalar", num_threads=1)
    assert source.kv_fingerprint == target.kv_fingerprint
    sequence = source.create_sequence()
    prefill(source, sequence, tokens[:point])
    source.mark_reuse(sequence)
    wanted = prefill(source, sequence, tokens[point:])[:60]
    pages, tail = exported(source, sequence, point)
    assert (len(pages), len(tail)) == (
        target.settled_pages(point) * target.page_bytes(),
        target.tail_bytes(point),
    )
    restored = imported(target, memoryview(pages), np.frombuffer(tail, np.uint8), point)
    assert target.length(restored) == point
    assert target.reuse_points(restored) == ([point] if point else [])
    assert target.last_reusable(restored, point) == point
    assert exported(target, restored, point) == (pages, tail)
    assert prefill(target, restored, tokens[point : point + 60]).tobytes() == wanted.tobytes()
    target.truncate(restored, point)
    assert exported(target, restored, point) == (pages, tail)


def test_what_is_stored_depends_on_the_tokens_alone(executor: Any, program: p.Program) -> None:
    """Not on what slots held before, nor on how the tokens came in."""
    seen = []
    for chunk in (300, 77):
        dirty = executor.create_sequence()
        prefill(executor, dirty, random_tokens(700, seed=chunk))
        executor.free_sequence(dirty)  # its pages are taken next
        sequence = executor.create_sequence()
        prefill(executor, sequence, LONG[:600], chunk)
        seen.append(exported(executor, sequence, 600))
        executor.free_sequence(sequence)
    assert seen[0] == seen[1]


def test_wrong_sizes_are_refused(executor: Any, sequence: int) -> None:
    prefill(executor, sequence, LONG[:600])
    pages, tail = exported(executor, sequence, 600)
    for wrong_pages, wrong_tail, point in (
        (pages[:-1], tail, 600),
        (pages, tail + b"x", 600),
        (pages, tail, 599 - 128),
        (pages, tail, 640),
        (b"", b"", 600),
        (pages, tail, -1),
        (pages, tail, 1 << 40),
    ):
        with pytest.raises(ValueError, match="tokens|bytes|pages"):
            imported(executor, wrong_pages, wrong_tail, point)
    for first, last in ((-1, 1), (2, 1), (0, 4), (0, 1 << 40)):
        with pytest.raises(ValueError, match="cannot export pages .* 3 settled pages"):
            executor.export_pages(sequence, first, last)
    for point in (-1, 601, 500):
        with pytest.raises(ValueError, match="cannot export at"):
            executor.export_tail(sequence, point)
    with pytest.raises(TypeError):
        imported(executor, pages, 3, 600)
    assert executor.stats()["kv_reuse_points"] == 0


def test_what_is_being_imported_is_no_sequence_yet(executor: Any, sequence: int) -> None:
    prefill(executor, sequence, LONG[:600])
    pages, tail = exported(executor, sequence, 600)
    size = executor.page_bytes()
    before = executor.stats()["kv_bytes"]
    begun = executor.begin_import(600)
    executor.import_pages(begun, 0, 1, pages[:size])
    for use in (
        lambda: step(executor, [(begun, [1])]),
        lambda: executor.fork_sequence(begun, 100),
        lambda: executor.truncate(begun, 0),
        lambda: executor.export_tail(begun, 600),
        lambda: executor.length(begun),
        lambda: executor.mark_reuse(begun),
    ):
        with pytest.raises(ValueError, match="does not exist|is still being imported"):
            use()
    for first, last in ((0, 1), (2, 3), (1, 4), (1, 0)):
        with pytest.raises(ValueError, match="1 of 3 are there"):
            executor.import_pages(begun, first, last, pages[: max(0, last - first) * size])
    with pytest.raises(ValueError, match="page 1 of 3 was not imported"):
        executor.import_tail(begun, tail)
    executor.free_sequence(begun)
    assert executor.stats()["kv_bytes"] == before
    for gone in (begun, sequence):  # not begun, and begun no more
        with pytest.raises(ValueError, match="is not being imported"):
            executor.import_pages(gone, 0, 1, pages[:size])
    assert exported(executor, sequence, 600) == (pages, tail)


@pytest.mark.parametrize("fill", ["random", "zero", "ones"])
def test_wrong_bytes_give_wrong_numbers_or_an_error_and_no_crash(executor: Any, fill: str) -> None:
    rng = np.random.default_rng(1)
    sizes = (executor.settled_pages(600) * executor.page_bytes(), executor.tail_bytes(600))
    pages, tail = (
        rng.integers(0, 256, size, dtype=np.uint8)
        if fill == "random"
        else np.full(size, 255 * (fill == "ones"), np.uint8)
        for size in sizes
    )
    sequence = imported(executor, pages, tail, 600)
    try:
        assert step(executor, [(sequence, LONG[:300])]).shape == (300, VOCAB)  # encodes what the tail held
        assert executor.length(sequence) == 900
    except _native.NotFinite:  # random halves are infinities too
        assert fill != "zero"
        assert executor.length(sequence) == 600
    executor.free_sequence(sequence)


def test_a_full_cache_refuses_an_import_whole(program: p.Program) -> None:
    executor = build(program, max_kv_tokens=1024, max_sequences=2)
    first = executor.create_sequence()
    prefill(executor, first, random_tokens(1024))
    pages, tail = exported(executor, first, 1024)
    before = executor.stats()["kv_bytes"]
    with pytest.raises(ValueError, match="the key-value cache is full"):
        imported(executor, pages, tail, 1024)
    assert executor.stats()["kv_bytes"] == before
    executor.free_sequence(first)
    assert executor.length(imported(executor, pages, tail, 1024)) == 1024


def test_the_fingerprint_names_what_bytes_mean(program: p.Program) -> None:
    options: list[dict[str, Any]] = [
        {}, {"kv_bits": None}, {"kv_bits": [(0, 0)] * 3}, {"kv_bits": [(4, 4), (0, 0), (3, 3)]},
        {"kv_bits": None, "kv": "f32"},
    ]  # fmt: skip
    prints = [build(program, **option).kv_fingerprint for option in options]
    assert len(set(prints)) == len(prints)
    assert build(program, tier="scalar", num_threads=1, max_kv_tokens=512).kv_fingerprint == prints[0]


# --- refusals and memory ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kv_bits": [(4, 4)]}, "kv_bits has 1 layers, the program has 3"),
        ({"kv_bits": [(4, 4)] * 3}, "kv_bits of layer 1: a layer with a window is not encoded"),
        ({"kv_bits": [(5, 4), (0, 0), (0, 0)]}, "layer 0: heads of 64 and 64 values .* with 5 and 4 bits"),
        ({"kv_bits": [(0, 4), (0, 0), (0, 0)]}, "layer 0: heads of 64 .* with 0 and 4 bits"),
        ({"kv": "f32"}, "layer 0: only an f16 cache is encoded"),
        ({"kv_reuse_points": -1}, "kv_reuse_points must be from 0"),
    ],
)
def test_bits_that_do_not_fit_are_refused(program: p.Program, change: dict[str, Any], message: str) -> None:
    with pytest.raises(NativeError, match=message):
        build(program, **change)


def test_layers_that_cannot_be_encoded_are_refused(tmp_path: Path) -> None:
    narrow = dense(tmp_path / "narrow.bin", layers=1)
    with pytest.raises(NativeError, match="heads of 16 and 16 values cannot be encoded"):
        build(narrow, kv_bits=[(4, 4)])
    both = both_ways(tmp_path / "both.bin")
    with pytest.raises(NativeError, match="layer 0: a layer that is not causal is not encoded"):
        build(both, kv_bits=[(4, 4)])
    executor = build(both, kv_bits=[(0, 0)])
    assert executor.can_reuse_anywhere


def both_ways(path: Path) -> p.Program:
    """One layer whose queries see all keys of the chunk, before and after them."""
    file = TensorFile(path)
    x, h = p.Buffer("x", 64), p.Buffer("h", 64)
    q, k, v, out = (p.Buffer(name, 64) for name in ("q", "k", "v", "out"))
    table = file.matrix("table", VOCAB, 64, Layout.F32)
    ops = [
        p.Embed(x, table),
        p.Linear((q, k, v), x, tuple(file.matrix(name, 64, 64) for name in "qkv")),
        p.Rope(q, 64, inv_freq(64)),
        p.Attend(out, q, k, v, 0, 1, 1, 64, 64, scale=0.125, causal=False, window=40),
        p.Add(h, x, out),
        p.Head(h, table),
    ]
    return p.Program("both ways", ops, 1, 64, VOCAB, 4096)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_memory_grows_by_the_formula(tmp_path: Path) -> None:
    """Resident memory a token, of a sequence that is long: within 5 % of what the codes take."""
    program = dense(tmp_path / "w.bin", hidden=64, heads=8, kv_heads=8, head_dim=64, ffn=64, layers=4)
    executor = build(
        program, kv_bits=[(4, 4), (0, 0), (4, 4), (4, 4)], max_kv_tokens=16384, max_sequences=1, max_rows=512,
        kv_reuse_points=0,
    )  # fmt: skip
    sequence = executor.create_sequence()
    for _ in range(8):
        step(executor, [(sequence, random_tokens(512))], rows=[])
    before, start = executor.stats()["kv_bytes"], resident_bytes()
    for _ in range(16):
        step(executor, [(sequence, random_tokens(512))], rows=[])
    grown, resident = executor.stats()["kv_bytes"] - before, resident_bytes() - start
    # A token of a head: codes of 4 bits, gains, a scale, and keys' share of the page's mean.
    page = 128 * 3 * 8 * ((64 * 4 // 8 + 1 + 2 + 1) + (64 * 4 // 8 + 1 + 2))
    assert grown == 8192 / 128 * (-(-page // 4096) * 4096)
    assert resident == pytest.approx(grown, rel=0.05)
