"""Experts streamed from disk inside a byte budget: the bits of the in-memory run, at any budget; and its faults."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from native_programs import VOCAB, moe, random_tokens, step

from kamado import _native
from kamado import program as p
from kamado.errors import MemoryBudgetError
from kamado.files.types import Layout
from kamado.lower import build_executor

TOKENS = random_tokens(200)
PROGRAMS: dict[str, Callable[[Path], p.Program]] = {
    "f32": lambda path: moe(path, layers=3),
    "q8_0+q5_1": lambda path: moe(path, width=64, layout=Layout.Q8_0, down_layout=Layout.Q5_1),
    "k": lambda path: moe(path, hidden=256, width=256, experts=16, layout=Layout.Q4_K, down_layout=Layout.Q6_K),
    "mixed": lambda path: mixed(path),
}
OPTIONS: dict[str, Any] = {
    "num_threads": 2, "max_rows": 200, "max_logit_rows": 200, "max_kv_tokens": 512, "max_sequences": 3, "kv": "f16",
}  # fmt: skip


def mixed(path: Path) -> p.Program:
    """Layers whose experts differ in layout, so that slots come in two sizes; 1 row of a tile is left over."""
    a, b = moe(path, width=64, layout=Layout.Q8_0, layers=1), moe(path.with_suffix(".2"), width=64, layers=1, seed=5)
    ops = [*a.ops[:-1], *b.ops[1:]]
    for i, op in enumerate(ops):
        if isinstance(op, p.Attend) and i > len(a.ops):
            ops[i] = p.Attend(
                op.out, op.q, op.k, op.v, 1, op.num_heads, op.num_kv_heads, op.head_dim, op.v_dim, op.scale
            )
    return p.Program("mixed", ops, 2, a.hidden, a.vocab_size, 4096, 8, 3)


def build(program: p.Program, **options: Any) -> Any:
    return build_executor(program, **{**OPTIONS, **options})


def least(program: p.Program) -> int:
    """The least expert_bytes, as the refusal names it."""
    with pytest.raises(MemoryBudgetError, match="too little") as caught:
        build(program, expert_bytes=1)
    return int(str(caught.value).rsplit(" ", 1)[1])


def run(executor: Any, chunks: list[int]) -> bytes:
    """Logits of TOKENS, taken in chunks and then one by one."""
    sequence = executor.create_sequence()
    logits, begin = [], 0
    for chunk in [*chunks, *[1] * (min(sum(chunks) + 6, len(TOKENS)) - sum(chunks))]:
        logits.append(step(executor, [(sequence, TOKENS[begin : begin + chunk])]))
        begin += chunk
    executor.free_sequence(sequence)
    return np.concatenate(logits).tobytes()


@pytest.fixture(scope="module", params=list(PROGRAMS))
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> p.Program:
    return PROGRAMS[request.param](tmp_path_factory.mktemp("experts") / "weights.bin")


@pytest.fixture(scope="module")
def expected(program: p.Program) -> bytes:
    """Logits of all TOKENS with all experts resident."""
    return run(build(program), [len(TOKENS)])


@pytest.fixture(scope="module")
def least_bytes(program: p.Program) -> int:
    return least(program)


@pytest.fixture
def tiny(tmp_path: Path) -> p.Program:
    return moe(tmp_path / "weights.bin")


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def totals(executor: Any) -> dict[str, float]:
    layers = executor.ledger()["layers"]
    return {name: sum(layer[name] for layer in layers) for name in layers[0]}


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.floats(0, 1.2), st.integers(1, 3), st.lists(st.integers(1, 120), max_size=4), st.integers(1, 6),
    st.sampled_from(["auto", "off"]), st.sampled_from(["off", "on", "auto"]), st.booleans(),
)  # fmt: skip
def test_the_budget_changes_no_bit(
    program: p.Program, expected: bytes, least_bytes: int, budget: float, threads: int, chunks: list[int],
    readers: int, direct_io: str, look_ahead: str, verify: bool,
) -> None:  # fmt: skip
    experts = sum(ref.nbytes for op in program.ops if isinstance(op, p.Experts) for ref in (*op.gate, *op.up, *op.down))
    while sum(chunks) > 190:
        chunks.pop()
    executor = build(
        program, expert_bytes=least_bytes + int(budget * experts), num_threads=threads, num_readers=readers,
        direct_io=direct_io, look_ahead=look_ahead, verify_slots=verify,
    )  # fmt: skip
    for _ in range(2):  # from empty slots, then from what is left in them
        got = run(executor, chunks)
        assert got == expected[: len(got)]
    ledger = executor.ledger()
    assert not ledger["resident"]
    assert ledger["slot_bytes"] <= ledger["expert_bytes"] <= least_bytes + int(budget * experts)
    assert ledger["least_expert_bytes"] == least_bytes


@pytest.mark.parametrize("tier", _native.tiers())
def test_tiers_give_the_same_bits(program: p.Program, expected: bytes, least_bytes: int, tier: str) -> None:
    got = run(build(program, expert_bytes=least_bytes, tier=tier), [60])
    assert got == expected[: len(got)]


def test_a_chunk_reads_each_expert_once_a_layer(program: p.Program, least_bytes: int) -> None:
    """Also with slots for a few experts only."""
    executor = build(program, expert_bytes=least_bytes)
    executor.record_routing(True)
    sequence = executor.create_sequence()
    for chunk in (TOKENS, TOKENS[:90]):
        before = totals(executor)
        step(executor, [(sequence, chunk)], rows=[])
        rows = executor.routing()
        picked = sum(len(set(rows[rows[:, 1] == layer, 3:].ravel())) for layer in set(rows[:, 1]))
        after = totals(executor)
        assert after["misses"] - before["misses"] <= picked
        assert after["misses"] + after["hits"] - before["misses"] - before["hits"] == picked
    records = {
        (ref.name, i): sum(refs[i].nbytes for refs in (op.gate, op.up, op.down))
        for op in program.ops if isinstance(op, p.Experts) for i, ref in enumerate(op.gate)
    }  # fmt: skip
    assert totals(executor)["bytes_read"] <= totals(executor)["misses"] * max(records.values())


def test_routing_is_recorded(tiny: p.Program, tmp_path: Path) -> None:
    wanted = None
    for options in ({}, {"expert_bytes": least(tiny)}):
        executor = build(tiny, **options)
        sequence = executor.create_sequence()
        step(executor, [(sequence, TOKENS[:3])])
        executor.record_routing(True)
        step(executor, [(sequence, TOKENS[3:8])])
        step(executor, [(sequence, TOKENS[8:9])])
        rows = executor.routing()
        assert rows.dtype == np.int32
        assert rows.shape == (2 * 5 + 2 * 1, 3 + 3)
        assert rows[:, :3].tolist() == [*([1, 0, r] for r in range(5)), *([1, 1, r] for r in range(5)), [2, 0, 0],
                                        [2, 1, 0]]  # fmt: skip
        assert (np.diff(rows[:, 3:], axis=1) > 0).all()
        assert executor.routing().shape == (0, 6)
        executor.record_routing(False)
        step(executor, [(sequence, TOKENS[9:12])])
        assert len(executor.routing()) == 0
        wanted = rows if wanted is None else wanted
        assert rows.tobytes() == wanted.tobytes()


def test_decode_misses_are_those_of_the_policy(tmp_path: Path) -> None:
    """Replay of the recorded routing by the definition: a use counts half after each 4 uses an expert; least goes."""
    program = moe(tmp_path / "weights.bin", experts=16, layers=3)
    executor = build(program, expert_bytes=least(program) + 600_000, look_ahead="off")
    slots = executor.ledger()["slots"]
    assert 6 < slots < 48
    executor.record_routing(True)
    sequence = executor.create_sequence()
    for token in TOKENS:
        step(executor, [(sequence, [token])], rows=[])
    half_life, now, misses = 4 * 48, 0, 0
    held: set[tuple[int, int]] = set()
    uses: dict[tuple[int, int], list[int]] = {}
    for row in executor.routing():
        keys = [(int(row[1]), int(expert)) for expert in row[3:]]
        missing = [key for key in keys if key not in held]
        misses += len(missing)
        for key in [key for key in keys if key in held] + missing:  # found ones are used before anything is given up
            if key in missing and len(held) == slots:
                held.remove(min(held - set(keys), key=lambda k: sum(2 ** (t / half_life) for t in uses[k])))
            held.add(key)
            now += 1
            uses.setdefault(key, []).append(now)
    assert misses > 100
    assert totals(executor)["misses"] == misses


def test_swapped_experts_are_caught(tmp_path: Path) -> None:
    program = moe(tmp_path / "weights.bin", experts=4, top_k=4, layers=1)
    plain = build(program, expert_bytes=least(program) + (1 << 20))
    checked = build(program, expert_bytes=least(program) + (1 << 20), verify_slots=True)
    for executor in (plain, checked):
        sequence = executor.create_sequence()
        step(executor, [(sequence, TOKENS[:10])])
        executor.swap_slots_for_test(0, 0, 3)
    logits = [step(plain, [(sequence, TOKENS[10:11])])]
    plain.truncate(sequence, 10)
    plain.swap_slots_for_test(0, 0, 3)
    logits.append(step(plain, [(sequence, TOKENS[10:11])]))
    assert logits[0].tobytes() != logits[1].tobytes()  # the swap matters, and unnoticed it gives wrong tokens
    with pytest.raises(_native.ReadError, match="does not hold what the file has") as caught:
        step(checked, [(sequence, TOKENS[10:11])])
    assert isinstance(caught.value, OSError)
    assert caught.value.errno == errno.EBADMSG
    assert checked.length(sequence) == 10


def test_too_small_a_budget_names_the_least(tiny: p.Program) -> None:
    enough = least(tiny)
    assert build(tiny, expert_bytes=enough).ledger()["expert_bytes"] <= enough
    with pytest.raises(MemoryBudgetError, match=str(enough)):
        build(tiny, expert_bytes=enough - 1)


@pytest.fixture(params=["truncated", "rewritten", "grown"])
def changed(request: pytest.FixtureRequest) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        if request.param == "truncated":
            os.truncate(path, path.stat().st_size // 4)
        elif request.param == "rewritten":
            data = path.read_bytes()
            time.sleep(0.02)  # a clock tick of the file system
            with path.open("r+b") as file:
                file.write(data)
        else:
            with path.open("ab") as file:
                file.write(b"x")

    return change


@pytest.mark.parametrize("threads", [1, 2])
def test_a_changed_file_is_an_error_and_no_token(
    tiny: p.Program, changed: Callable[[Path], None], threads: int
) -> None:
    executor = build(tiny, expert_bytes=least(tiny), num_threads=threads)
    sequence = executor.create_sequence()
    step(executor, [(sequence, TOKENS[:20])])
    experts = next(op for op in tiny.ops if isinstance(op, p.Experts))
    changed(experts.gate[0].file)
    with pytest.raises(_native.ReadError, match=r"changed while.*byte \d+.*expert \d+ of MoE layer \d") as caught:
        for token in TOKENS[:64]:
            step(executor, [(sequence, [token])])
    assert caught.value.errno == errno.ESTALE
    assert caught.value.filename == str(experts.gate[0].file)


def test_a_replaced_file_changes_nothing(tiny: p.Program, tmp_path: Path) -> None:
    """Another file at the path is not the one that is open: the old one is read on."""
    path = next(op for op in tiny.ops if isinstance(op, p.Experts)).gate[0].file
    expected = run(build(tiny), [40])
    executor = build(tiny, expert_bytes=least(tiny), max_rows=40, max_logit_rows=40)
    other = tmp_path / "other"
    other.write_bytes(bytes(path.stat().st_size))
    other.rename(path)
    assert run(executor, [40]) == expected
    path.unlink()
    assert run(executor, [40]) == expected


def test_shrinking_changes_no_bit(program: p.Program, expected: bytes, least_bytes: int) -> None:
    experts = sum(ref.nbytes for op in program.ops if isinstance(op, p.Experts) for ref in (*op.gate, *op.up, *op.down))
    executor = build(program, expert_bytes=least_bytes + 2 * experts, verify_slots=True)
    assert run(executor, [90]) == expected[: 96 * VOCAB * 4]
    full = executor.ledger()
    for share in (0.6, 0.3, 0.0):
        executor.shrink_experts(executor.ledger()["least_expert_bytes"] + int(share * experts))
        ledger = executor.ledger()
        assert ledger["expert_bytes"] <= ledger["least_expert_bytes"] + int(share * experts)
        assert ledger["slots"] <= full["slots"]
        before = totals(executor)
        for chunks in ([40, 3], [100]):
            got = run(executor, chunks)
            assert got == expected[: len(got)]
    assert ledger["slots"] < full["slots"]
    assert totals(executor)["misses"] > before["misses"]
    with pytest.raises(ValueError, match="too little"):
        executor.shrink_experts(1)


def test_shrinking_keeps_what_was_used_last_and_gives_memory_back(tmp_path: Path) -> None:
    """There is a slot for each expert; those of the last step stay, wherever they lay."""
    program = moe(tmp_path / "weights.bin", hidden=128, width=512, experts=32, layers=2)
    executor = build(program, expert_bytes=least(program) + (64 << 20), look_ahead="off")
    sequence = executor.create_sequence()
    step(executor, [(sequence, TOKENS)], rows=[])
    assert executor.ledger()["slots"] == 64
    executor.record_routing(True)
    step(executor, [(sequence, TOKENS[:1])], rows=[])
    num_used = int(totals(executor)["misses"])  # nothing was given up
    resident = resident_bytes()
    slot = executor.ledger()["slot_bytes"] // 64
    executor.shrink_experts(executor.ledger()["least_expert_bytes"] + 6 * slot)
    left = executor.ledger()["slots"]
    assert 6 <= left < 20 < num_used
    assert resident - resident_bytes() > (num_used - left) * slot * 0.8
    before = totals(executor)
    executor.truncate(sequence, len(TOKENS))
    step(executor, [(sequence, TOKENS[:1])], rows=[])
    assert totals(executor)["misses"] == before["misses"]
    first, second = np.split(executor.routing()[:, 3:], 2)
    assert first.tobytes() == second.tobytes()


def test_a_slow_read_does_not_hold_up_a_cancel(tmp_path: Path) -> None:
    """Reads that take far longer than the test waits; what they bring later is nobody's."""
    program = moe(tmp_path / "weights.bin")
    expected = run(build(program), [60])
    executor = build(program, expert_bytes=least(program))
    executor.delay_reads_for_test(20_000)
    sequence = executor.create_sequence()
    for interrupt, error in (
        (executor.cancel, _native.Cancelled),
        (lambda: os.kill(os.getpid(), signal.SIGINT), KeyboardInterrupt),
    ):
        begin = time.monotonic()
        timer = threading.Timer(0.1, interrupt)
        timer.start()
        with pytest.raises(error):
            step(executor, [(sequence, TOKENS[:4])])
        assert time.monotonic() - begin < 10  # half of one read
        timer.join()
        assert executor.length(sequence) == 0
    executor.delay_reads_for_test(0)
    begin = time.monotonic()
    executor.close()
    assert time.monotonic() - begin < 10
    executor = build(program, expert_bytes=least(program))
    executor.delay_reads_for_test(300)
    timer = threading.Timer(0.05, executor.cancel)
    timer.start()
    with pytest.raises(_native.Cancelled):
        step(executor, [(executor.create_sequence(), TOKENS[:4])])
    timer.join()
    executor.delay_reads_for_test(0)
    assert run(executor, [60]) == expected  # late reads of the cancelled step come in meanwhile


def test_cancel_stops_a_stream_and_it_goes_on(tmp_path: Path) -> None:
    program = moe(tmp_path / "weights.bin", hidden=64, width=128, experts=32, layers=8)
    expected = run(build(program), [200])
    executor = build(program, expert_bytes=least(program), num_readers=1, direct_io="off")
    for wait in (0.0, 0.002, 0.01, 0.03):
        sequence = executor.create_sequence()
        thread = threading.Timer(wait, executor.cancel)
        thread.start()
        try:
            step(executor, [(sequence, TOKENS)])
            thread.join()
            step(executor, [(sequence, TOKENS[:1])])  # the flag was set after the step ended
        except _native.Cancelled:
            assert executor.length(sequence) in (0, 200)
        finally:
            thread.join()
            executor.free_sequence(sequence)
    assert run(executor, [200]) == expected


def test_memory_file_systems_work(tmp_path: Path) -> None:
    """/dev/shm has no disk behind it, and older kernels refuse direct reads there."""
    directory = Path("/dev/shm")
    if not os.access(directory, os.W_OK):
        pytest.skip("no /dev/shm")
    path = directory / f"kamado-{os.getpid()}-{tmp_path.name}"
    try:
        program = moe(path)
        expected = run(build(program), [50])
        for direct_io in ("auto", "off"):
            assert run(build(program, expert_bytes=least(program), direct_io=direct_io), [50]) == expected
    finally:
        path.unlink(missing_ok=True)


def test_two_executors_stream_from_one_file(tiny: p.Program) -> None:
    expected = run(build(tiny), [30])
    executors = [build(tiny, expert_bytes=least(tiny), num_threads=1) for _ in range(2)]
    got: list[bytes] = []
    threads = [threading.Thread(target=lambda e=e: got.append(run(e, [30]))) for e in executors]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [expected, expected]


def test_buffered_reads_leave_nothing_in_the_page_cache(tmp_path: Path) -> None:
    import ctypes
    import mmap

    program = moe(tmp_path / "weights.bin", hidden=256, width=128, experts=16)
    path = next(op for op in program.ops if isinstance(op, p.Experts)).gate[0].file
    with path.open("rb") as file:
        os.fsync(file.fileno())  # dirty pages cannot be dropped
    executor = build(program, expert_bytes=least(program), direct_io="off")
    run(executor, [50, 50])
    executor.drop_file_cache()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ) as mapped:
        pages = (len(mapped) + 4095) // 4096
        found = (ctypes.c_ubyte * pages)()
        libc = ctypes.CDLL(None, use_errno=True)
        address = ctypes.c_void_p.from_buffer_copy(
            ctypes.string_at(id(mapped) + 16, ctypes.sizeof(ctypes.c_void_p))
        )  # a read-only mapping lends no buffer that ctypes takes
        if libc.mincore(address, ctypes.c_size_t(len(mapped)), found) != 0:
            pytest.skip("mincore is not allowed")
    assert sum(page & 1 for page in found) < pages * 0.05


def test_fork_does_not_hang(tiny: p.Program) -> None:
    executor = build(tiny, expert_bytes=least(tiny))
    run(executor, [10])
    child = os.fork()
    if child == 0:
        del executor
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert run(executor, [10]) == run(build(tiny), [10])
