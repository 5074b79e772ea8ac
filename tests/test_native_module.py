"""The native module's edges: its stub, wrong arguments, cancellation, errors inside a step, what it costs."""

from __future__ import annotations

import ast
import inspect
import os
import re
import resource
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from native_programs import VOCAB, TensorFile, dense, random_tokens, step

import kamado
from kamado import _native, lower
from kamado import program as p
from kamado.errors import NativeError, UnsupportedError
from kamado.files.types import Layout, TensorRef
from kamado.lower import build_executor

OPTIONS: dict[str, Any] = {
    "num_threads": 2, "max_rows": 64, "max_logit_rows": 8, "max_kv_tokens": 512, "max_sequences": 3, "kv": "f16",
}  # fmt: skip


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


@pytest.fixture
def program(tmp_path: Path) -> p.Program:
    return dense(tmp_path / "weights.bin")


@pytest.fixture
def executor(program: p.Program) -> Any:
    return build_executor(program, **OPTIONS)


# --- the stub ---------------------------------------------------------------------------------------------------------


def stub_signatures() -> dict[str, list[str]]:
    """name -> argument names, as _native.pyi has them; properties have none."""
    stub = Path(inspect.getfile(lower)).parent / "_native.pyi"
    found: dict[str, list[str]] = {}

    def visit(nodes: list[ast.stmt], prefix: str) -> None:
        for node in nodes:
            if isinstance(node, ast.ClassDef):
                found[node.name] = []
                visit(node.body, node.name + ".")
            elif isinstance(node, ast.FunctionDef) and (node.name == "__init__" or not node.name.startswith("_")):
                found[prefix + node.name] = [argument.arg for argument in node.args.args if argument.arg != "self"]

    visit(ast.parse(stub.read_text()).body, "")
    return found


def test_the_stub_is_true() -> None:
    wanted = stub_signatures()
    got: dict[str, list[str]] = {}

    def visit(owner: Any, prefix: str) -> None:
        for name, item in vars(owner).items():
            if name.startswith("_") and name != "__init__":
                continue
            if inspect.isclass(item):
                got[name] = []
                visit(item, name + ".")
            elif isinstance(item, property):
                got[prefix + name] = []
            elif hasattr(item, "__nb_signature__"):
                # "def name(self, a: type = default, ...) -> type"; types are not always Python.
                text = item.__nb_signature__[0][0]
                words = re.findall(r"[(,] ?(\w+)(?=[:,)])", re.sub(r"\[.*?\]", "", re.sub(r"\[[^\[\]]*\]", "", text)))
                got[prefix + name] = [word for word in words if word != "self"]

    visit(_native, "")
    assert got == wanted


def test_tiers_are_ordered_and_include_the_reference() -> None:
    names = _native.tiers()
    assert names[0] == "scalar"
    assert names == [name for name in ("scalar", "avx2", "avx512") if name in names]
    assert _native.active_tier() in names


@pytest.mark.parametrize("tier", ["scalar", "avx2", "avx512"])
def test_the_environment_only_lowers_the_tier(tier: str) -> None:
    code = "from kamado import _native; print(_native.active_tier())"
    result = run_python(code, KAMADO_TIER=tier)
    names = ["scalar", "avx2", "avx512"]
    best = names.index(_native.tiers()[-1])
    assert result.stdout.strip() == names[min(names.index(tier), best)]


def test_an_unknown_tier_is_refused() -> None:
    result = run_python("from kamado import _native; _native.active_tier()", KAMADO_TIER="sse9")
    assert result.returncode != 0
    assert "must be scalar, avx2 or avx512" in result.stderr


def run_python(code: str, **environment: str) -> Any:
    import subprocess
    import sys

    root = str(Path(kamado.__file__).parent.parent)
    whole = {**os.environ, "PYTHONPATH": root, **environment}
    return subprocess.run([sys.executable, "-c", code], env=whole, capture_output=True, text=True)


def test_available_cpus_is_within_the_machine() -> None:
    assert 1 <= _native.available_cpus() <= (os.cpu_count() or 1)


# --- dequantisation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", list(Layout))
def test_dequantize_has_the_bits_of_the_gguf_package(layout: Layout) -> None:
    import gguf

    if int(layout) not in [int(kind) for kind in gguf.GGMLQuantizationType]:
        pytest.skip(f"{layout.name} is no layout of ggml's")
    rng = np.random.default_rng(int(layout))
    data = rng.integers(0, 256, 64 * layout.block_bytes, dtype=np.uint8)
    values = 64 * layout.block_values
    if layout in (Layout.F32, Layout.F16, Layout.BF16):  # random bits hold NaNs, whose payload is nobody's promise
        data = data & np.tile(np.array([0xFF, 0xBF], np.uint8), data.size // 2)
    else:
        data = np.where(np.arange(data.size) % 2 == 1, data & 0xBF, data).astype(np.uint8)
    got = _native.dequantize(int(layout), data, values)
    if layout is Layout.F32:
        wanted = data.view("<f4")
    else:
        with np.errstate(over="ignore"):  # the largest MXFP4 exponents
            wanted = gguf.quants.dequantize(data.reshape(1, -1), gguf.GGMLQuantizationType(int(layout))).reshape(-1)
    assert got.dtype == np.float32
    assert got.tobytes() == wanted.astype(np.float32).tobytes()


def test_dequantize_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="256 Q4_K values in 143 bytes"):
        _native.dequantize(int(Layout.Q4_K), np.zeros(143, np.uint8), 256)
    with pytest.raises(ValueError, match="unknown layout 7777"):
        _native.dequantize(7777, np.zeros(144, np.uint8), 256)
    with pytest.raises(ValueError, match="-256"):
        _native.dequantize(int(Layout.Q4_K), np.zeros(0, np.uint8), -256)


# --- wrong arguments --------------------------------------------------------------------------------------------------


def test_a_wrong_step_is_refused_with_the_numbers(executor: Any) -> None:
    first, second = executor.create_sequence(), executor.create_sequence()
    cases = [
        ((ints(first), ints(65), ints(*[1] * 65), ints()), "1 to 64 rows, got 65"),
        ((ints(first), ints(1), ints(VOCAB), ints()), f"token {VOCAB} is outside the vocabulary of {VOCAB}"),
        ((ints(first), ints(1), ints(-1), ints()), "token -1"),
        ((ints(7), ints(1), ints(1), ints()), "sequence 7 does not exist"),
        ((ints(-1), ints(1), ints(1), ints()), "sequence -1 does not exist"),
        ((ints(first, first), ints(1, 1), ints(1, 1), ints()), "listed twice"),
        ((ints(first, second), ints(1, 0), ints(1), ints()), "count of 0"),
        ((ints(first), ints(2), ints(1), ints()), "sum to 2 and there are 1"),
        ((ints(first), ints(1, 1), ints(1, 1), ints()), "1 sequences and 2 counts"),
        ((ints(first), ints(1), ints(1), ints(1)), "logits of row 1 are wanted, the step has 1"),
        ((ints(first), ints(1), ints(1), ints(-1)), "logits of row -1"),
        ((ints(first), ints(1), ints(1), ints(*[0] * 9)), "logits of 9 rows are wanted, at most 8"),
        ((ints(), ints(), ints(), ints()), "got 0"),
    ]
    for arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            executor.step(*arguments)
    with pytest.raises(TypeError):
        executor.step(np.array([first]), ints(1), ints(1), ints())  # int64 is never converted behind the caller's back
    for _ in range(8):
        step(executor, [(first, [1] * 64)], rows=[])
    with pytest.raises(ValueError, match="513 tokens, the cache holds 512"):
        step(executor, [(first, [1])])
    with pytest.raises(ValueError, match="key-value cache is full"):
        for _ in range(8):
            step(executor, [(second, [1] * 64)], rows=[])
    assert executor.length(first) == 512
    assert executor.length(second) % 64 == 0


def test_sequences_end_and_come_again(executor: Any) -> None:
    ids = [executor.create_sequence() for _ in range(3)]
    with pytest.raises(ValueError, match="3 sequences are in use"):
        executor.create_sequence()
    executor.free_sequence(ids[1])
    for call in (executor.free_sequence, executor.length):
        with pytest.raises(ValueError, match="does not exist"):
            call(ids[1])
    assert executor.create_sequence() == ids[1]
    with pytest.raises(ValueError, match="cannot truncate"):
        executor.truncate(ids[0], 1)
    with pytest.raises(ValueError, match="cannot fork"):
        executor.fork_sequence(ids[0], 1)
    with pytest.raises(ValueError, match="is empty"):
        executor.tile_kv(ids[0], 10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_threads": 0}, "num_threads must be from 1"),
        ({"max_rows": 0}, "max_rows must be from 1"),
        ({"max_kv_tokens": -1}, "max_kv_tokens must be from 1"),
        ({"kv": "f64"}, 'kv must be "f32" or "f16"'),
        ({"tier": "mmx"}, "tier mmx is not one"),
    ],
)
def test_a_wrong_option_is_refused(program: p.Program, change: dict[str, Any], message: str) -> None:
    with pytest.raises(NativeError, match=message):
        build_executor(program, **{**OPTIONS, **change})


def replaced(program: p.Program, index: int, op: p.Op) -> p.Program:
    ops = list(program.ops)
    ops[index] = op
    return p.Program("broken", ops, program.num_layers, program.hidden, VOCAB, 4096)


def test_a_program_that_contradicts_itself_is_refused(program: p.Program, tmp_path: Path) -> None:
    x, h, wide = p.Buffer("x", 64), p.Buffer("h", 64), p.Buffer("wide", 65)
    other = TensorFile(tmp_path / "other.bin")
    cases: list[tuple[int, p.Op, str]] = [
        (1, p.Add(h, x, p.Buffer("never", 64)), "buffer never is read before it is written"),
        (1, p.Add(wide, x, x), "add: buffer x has width 64, expected 65"),
        (1, p.Norm(h, x, other.vector("short", 63)), "norm: vector short has 63 values, expected 64"),
        (
            2,
            p.Linear((p.Buffer("q", 96),), x, (other.matrix("narrow", 96, 32),)),
            "linear: matrix narrow has shape 96 x 32, expected 96 x 64",
        ),
        (
            2,
            p.Linear((p.Buffer("q", 96),), x, (other.matrix("low", 95, 64),)),
            "matrix low has shape 95 x 64, expected 96 x 64",
        ),
        (2, p.Linear((x,), x, (other.matrix("square", 64, 64),)), "linear: buffer x is both input and output"),
        (1, p.Experts(h, x, x, (), (), ()), "experts: 0 experts without a route over as many"),
    ]
    for index, op, message in cases:
        with pytest.raises(NativeError, match=message):
            build_executor(replaced(program, index, op), **OPTIONS)
    headless = p.Program("headless", program.ops[:-1], 3, 64, VOCAB, 4096)
    with pytest.raises(NativeError, match="must end with a head"):
        build_executor(headless, **OPTIONS)


def test_a_tensor_that_no_kernel_takes_is_unsupported(program: p.Program, tmp_path: Path) -> None:
    odd = TensorRef("odd", tmp_path / "weights.bin", 0, 18, (64, 20), Layout.Q4_0)
    cube = TensorRef("cube", tmp_path / "weights.bin", 0, 18, (2, 64, 64), Layout.F32)
    for ref, message in ((odd, "odd has rows of 20 values"), (cube, "cube has shape")):
        with pytest.raises(UnsupportedError, match=message):
            build_executor(replaced(program, 0, p.Embed(p.Buffer("x", 64), ref)), **OPTIONS)


def test_a_range_past_the_file_is_refused(program: p.Program, tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    for offset in (path.stat().st_size - 4, 2**63, 2**64 - 16):
        ref = TensorRef("lying", path, offset, 0, (VOCAB, 64), Layout.F32)
        with pytest.raises(NativeError, match="lying: 101 x 64 F32 values at byte .* reach past the end"):
            build_executor(replaced(program, 0, p.Embed(p.Buffer("x", 64), ref)), **OPTIONS)
    gone = TensorRef("gone", tmp_path / "no such file", 0, 0, (VOCAB, 64), Layout.F32)
    with pytest.raises(NativeError, match="no such file: cannot open"):
        build_executor(replaced(program, 0, p.Embed(p.Buffer("x", 64), gone)), **OPTIONS)


def test_a_file_that_shrinks_in_use_is_an_error_and_no_crash(tmp_path: Path) -> None:
    program = dense(tmp_path / "weights.bin")
    file = TensorFile(tmp_path / "table.bin")
    table = file.matrix("apart", VOCAB, 64)  # only Embed uses it: rows are read during the step
    program = replaced(program, 0, p.Embed(p.Buffer("x", 64), table))
    executor = build_executor(program, **OPTIONS)
    sequence = executor.create_sequence()
    before = step(executor, [(sequence, [1, 2, 3])], rows=[2])
    os.truncate(tmp_path / "table.bin", 2000)
    os.truncate(tmp_path / "weights.bin", 0)  # packed long ago
    with pytest.raises(RuntimeError, match=r"table.bin: ends at byte .* changed while in use"):
        step(executor, [(sequence, [VOCAB - 1])])
    with pytest.raises(RuntimeError, match=r"table.bin: ends at byte"):
        step(executor, [(sequence, [VOCAB - 1] * 20)], rows=[0])
    assert executor.length(sequence) == 3
    again = executor.create_sequence()
    assert step(executor, [(again, [1, 2, 3])], rows=[2]).tobytes() == before.tobytes()


# --- loading ----------------------------------------------------------------------------------------------------------


def test_weights_that_operations_share_are_loaded_once(program: p.Program, executor: Any) -> None:
    assert isinstance(program.ops[-1], p.Head)
    weight_bytes = executor.stats()["weight_bytes"]
    apart = TensorFile(Path(program.ops[-1].weight.file).with_name("apart.bin")).matrix("apart", VOCAB, 64)
    # An embedding that no product uses is not loaded at all; this head's weight comes in place of the tied one.
    untied = build_executor(replaced(program, len(program.ops) - 1, p.Head(p.Buffer("h", 64), apart)), **OPTIONS)
    assert untied.stats()["weight_bytes"] == weight_bytes


def test_progress_ends_at_the_total_and_may_stop_the_load(program: p.Program) -> None:
    calls: list[tuple[int, int]] = []
    build_executor(program, **OPTIONS, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1][0] == calls[-1][1] > 0

    class StopError(RuntimeError):
        pass

    def stop(_done: int, _total: int) -> None:
        raise StopError("enough")

    with pytest.raises(StopError, match="enough"):
        build_executor(program, **OPTIONS, progress=stop)


# --- stopping ---------------------------------------------------------------------------------------------------------


def test_cancel_stops_the_next_step_and_leaves_the_sequences(executor: Any) -> None:
    sequence = executor.create_sequence()
    tokens = random_tokens(60)
    step(executor, [(sequence, tokens[:50])], rows=[])
    executor.cancel()
    with pytest.raises(_native.Cancelled):
        step(executor, [(sequence, tokens[50:])], rows=[])
    assert executor.length(sequence) == 50
    executor.cancel()
    with pytest.raises(_native.Cancelled):
        executor.score(sequence, ints(*tokens[50:]), ints(*tokens[50:]))
    assert executor.length(sequence) == 50
    logits = step(executor, [(sequence, tokens[50:])], rows=[9])
    fresh = executor.create_sequence()
    assert step(executor, [(fresh, tokens)], rows=[59]).tobytes() == logits.tobytes()


def slow_executor(tmp_path: Path) -> Any:
    """One whose full step takes seconds."""
    program = dense(tmp_path / "slow.bin", hidden=512, ffn=2048, layers=2)
    return build_executor(program, **{**OPTIONS, "max_rows": 512, "tier": "scalar", "num_threads": 2})


def test_cancel_from_another_thread_stops_a_running_step_soon(tmp_path: Path) -> None:
    executor = slow_executor(tmp_path)
    sequence = executor.create_sequence()
    threading.Timer(0.1, executor.cancel).start()
    begin = time.monotonic()
    with pytest.raises(_native.Cancelled):
        step(executor, [(sequence, random_tokens(512))], rows=[])
    assert time.monotonic() - begin < 5  # the whole step takes much longer than that
    assert executor.length(sequence) == 0


def test_ctrl_c_raises_in_the_main_thread_and_leaves_the_sequences(tmp_path: Path) -> None:
    executor = slow_executor(tmp_path)
    sequence = executor.create_sequence()
    threading.Timer(0.1, signal.raise_signal, [signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
        step(executor, [(sequence, random_tokens(512))], rows=[])
    assert executor.length(sequence) == 0
    step(executor, [(sequence, [1])])


# --- lifetime and memory ----------------------------------------------------------------------------------------------


def test_logits_outlive_the_executor(program: p.Program) -> None:
    executor = build_executor(program, **OPTIONS)
    logits = executor.step(ints(executor.create_sequence()), ints(1), ints(1), ints(0))
    copy = logits.copy()
    executor.close()
    executor.close()
    with pytest.raises(RuntimeError, match="the executor is closed"):
        executor.create_sequence()
    del executor
    assert logits.tobytes() == copy.tobytes()


def test_steps_hold_no_more_memory_after_warm_up(executor: Any) -> None:
    def serve() -> None:
        sequence = executor.create_sequence()
        step(executor, [(sequence, random_tokens(64))], rows=[63])
        for token in random_tokens(20):
            step(executor, [(sequence, [token])])
        executor.free_sequence(sequence)

    serve()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(8):
        serve()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1024  # KiB


def test_stats_count_steps_rows_and_time(executor: Any) -> None:
    sequence = executor.create_sequence()
    step(executor, [(sequence, [1, 2, 3])], rows=[2])
    step(executor, [(sequence, [4])], rows=[])
    stats = executor.stats()
    assert (stats["steps"], stats["rows"]) == (2, 4)
    assert stats["weight_bytes"] > 0
    assert stats["kv_bytes"] > 0
    assert stats["scratch_bytes"] > 0
    kinds = [value for key, value in stats.items() if key.startswith("seconds_") and key != "seconds_total"]
    assert 0 < sum(kinds) <= stats["seconds_total"] * 1.01
