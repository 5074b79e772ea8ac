"""Gates: activations, limits after them, one value for a group; routers whose scores are all tiny; temperatures.

Programs of one operation each between products, against the NumPy oracle and their bits against themselves.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, get_args

import numpy as np
import pytest
from models.numpy_executor import NumpyExecutor
from native_programs import VOCAB, TensorFile, check_chunks_and_company, dense, random_tokens, routing, step

from kamado import _native
from kamado import program as p
from kamado.errors import NativeError
from kamado.files.types import TensorRef
from kamado.lower import build_executor
from kamado.program.ops import Activation

WIDTH, INNER, EXPERTS = 37, 24, 6
X, H, OUT = p.Buffer("x", WIDTH), p.Buffer("h", WIDTH), p.Buffer("out", WIDTH)
A, B = p.Buffer("a", INNER), p.Buffer("b", INNER)
HEADS, ONE, LOGITS = p.Buffer("heads", 4), p.Buffer("one", 1), p.Buffer("logits", EXPERTS)
TOKENS = random_tokens(40)
TINY = 1e-19  # a weight from a subnormal score, which is 0 here


def wide(file: TensorFile, name: str, rows: int, cols: int, spread: float = 3.0) -> TensorRef:
    """Values whose products reach both sides of a limit of 2."""
    return file.add(name, spread * file.rng.standard_normal((rows, cols)) / np.sqrt(cols))


def around(file: TensorFile, ops: list[p.Op], last: p.Buffer) -> p.Program:
    """Embedding, `ops` on x, and a head on `last`."""
    table = file.matrix("table", VOCAB, WIDTH)
    head = p.Head(last, file.matrix("head", VOCAB, last.width))
    return p.Program("gates", [p.Embed(X, table, scale=4.0), *ops, head], 0, WIDTH, VOCAB, 64)


def pair(file: TensorFile, a: p.Buffer = A, b: p.Buffer = B) -> p.Linear:
    return p.Linear((a, b), X, (wide(file, "a", a.width, WIDTH), wide(file, "b", b.width, WIDTH)))


def fused(path: Path, **gate: Any) -> p.Program:
    file = TensorFile(path)
    fields: dict[str, Any] = {"out": A, "a": A, "b": B, "activation": "silu", **gate}
    return around(file, [pair(file), p.Gate(**fields)], A)


def unfused(path: Path, **gate: Any) -> p.Program:
    """The same values: the gate does not follow its product."""
    program = fused(path, **gate)
    ops = [*program.ops[:2], p.Scale(X, X, 1.0), *program.ops[2:]]
    return dataclasses.replace(program, ops=ops)


def grouped(path: Path, gates: p.Buffer, **gate: Any) -> p.Program:
    file = TensorFile(path)
    return around(file, [pair(file, gates), p.Gate(B, gates, B, "sigmoid", group=INNER // gates.width, **gate)], B)


def experts(path: Path, limit: float | None = None, bias: float = 0.0, **route: Any) -> p.Program:
    file = TensorFile(path)
    biases = (file.add("router_bias", np.full(EXPERTS, bias)),)
    matrices = [
        tuple(wide(file, f"{name}.{i}", rows, cols) for i in range(EXPERTS))
        for name, rows, cols in (("gate", INNER, WIDTH), ("up", INNER, WIDTH), ("down", WIDTH, INNER))
    ]
    return around(
        file,
        [
            p.Linear((LOGITS,), X, (file.matrix("router", EXPERTS, WIDTH),), biases),
            p.Route(LOGITS, EXPERTS, 3, **route),
            p.Experts(OUT, X, LOGITS, matrices[0], matrices[1], matrices[2], limit=limit),
        ],
        OUT,
    )


def tempered(path: Path, **fields: Any) -> p.Program:
    file = TensorFile(path)
    return around(file, [p.Temper(X, X, **{"beta": 0.1, "length": 7, **fields})], X)


PROGRAMS: dict[str, Callable[[Path], p.Program]] = {
    "limit": lambda path: fused(path, limit=2.0),
    "limit-alone": lambda path: fused(path, b=None, limit=2.0),
    "limit-relu2": lambda path: unfused(path, activation="relu2", limit=2.0),
    "head": lambda path: grouped(path, HEADS),
    "head-limit": lambda path: grouped(path, HEADS, limit=0.75),
    "row": lambda path: grouped(path, ONE),
    "experts": lambda path: experts(path, limit=2.0),
    "tiny-scores": lambda path: experts(path, bias=-60.0, score="sigmoid", norm_eps=1e-20, scale=1e6),
    "temper": tempered,
    "temper-offset": lambda path: tempered(path, offset=1, beta=-0.25),
}


def build(program: p.Program, **options: Any) -> Any:
    return build_executor(
        program, **{"num_threads": 1, "max_rows": 64, "max_logit_rows": 64, "max_kv_tokens": 128,
                    "max_sequences": 4, "kv": "f32", **options}
    )  # fmt: skip


def logits(program: p.Program, tokens: list[int] = TOKENS, **options: Any) -> np.ndarray:
    executor = build(program, **options)
    return step(executor, [(executor.create_sequence(), tokens)])


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_oracle_agrees_and_every_tier_has_the_scalar_bits(name: str, tmp_path: Path) -> None:
    program = PROGRAMS[name](tmp_path / "weights.bin")
    p.validate(program)
    wanted = logits(program, tier="scalar")
    oracle = NumpyExecutor(program).forward(TOKENS)
    assert oracle.std() > 0.01
    np.testing.assert_allclose(wanted, oracle, rtol=1e-4, atol=1e-5 * np.abs(oracle).max())
    for tier in _native.tiers():
        for threads in (1, 2):
            assert logits(program, tier=tier, num_threads=threads).tobytes() == wanted.tobytes()


@pytest.mark.parametrize("name", PROGRAMS)
def test_chunks_and_company_do_not_change_a_row(name: str, tmp_path: Path) -> None:
    """Positions are those in the sequence, whatever else is in the step."""
    program = PROGRAMS[name](tmp_path / "weights.bin")
    wanted = logits(program)
    executor = build(program, num_threads=2)
    first, second = executor.create_sequence(), executor.create_sequence()
    rows = [step(executor, [(first, TOKENS[:1])])]
    rows.append(step(executor, [(second, TOKENS[:9]), (first, TOKENS[1:20])])[9:])
    rows.append(step(executor, [(first, TOKENS[20:]), (second, TOKENS[9:11])])[: len(TOKENS) - 20])
    assert np.concatenate(rows).tobytes() == wanted.tobytes()


def test_a_temperature_goes_by_the_position_in_the_sequence(tmp_path: Path) -> None:
    """Over pages, chunks, company, a cut and a fork; and it is what the oracle has."""
    plain = dense(tmp_path / "weights.bin")
    queries = {op.q for op in plain.ops if isinstance(op, p.Attend)}
    turns = [op for op in plain.ops if isinstance(op, p.Rope) and op.x in queries]
    ops = [
        added
        for op in plain.ops
        for added in ([op, p.Temper(op.x, op.x, 0.5, 50, offset=1)] if any(op is turn for turn in turns) else [op])
    ]
    assert len(ops) == len(plain.ops) + 3
    program, tokens = dataclasses.replace(plain, ops=ops), random_tokens(300)
    options = {"num_threads": 2, "max_rows": 320, "max_logit_rows": 320, "max_kv_tokens": 2048, "max_sequences": 6}
    executor = build(program, **options)
    first = executor.create_sequence()
    wanted = step(executor, [(first, tokens)])
    np.testing.assert_allclose(wanted, NumpyExecutor(program).forward(tokens), atol=1e-3)
    without = logits(plain, tokens, **options)  # until position + 1 is 50 the factor is 1
    assert wanted[:49].tobytes() == without[:49].tobytes()
    assert (np.abs(wanted[49:] - without[49:]).max(axis=1) > 1e-3).all()
    check_chunks_and_company(executor, tokens, wanted, [1, 60, 128, 7], [33, 1], Random(1))
    second = executor.fork_sequence(first, 130)
    assert step(executor, [(second, tokens[130:])]).tobytes() == wanted[130:].tobytes()
    executor.truncate(first, 47)
    assert step(executor, [(first, tokens[47:])]).tobytes() == wanted[47:].tobytes()


@pytest.mark.parametrize("activation", get_args(Activation))
@pytest.mark.parametrize("change", [{}, {"b": None}, {"limit": 2.0}], ids=["plain", "alone", "limit"])
def test_a_fused_gate_has_the_bits_of_one_by_itself(activation: str, change: dict[str, Any], tmp_path: Path) -> None:
    alone = logits(unfused(tmp_path / "weights.bin", activation=activation, **change))
    assert logits(fused(tmp_path / "weights.bin", activation=activation, **change)).tobytes() == alone.tobytes()
    without = {name: value for name, value in change.items() if name != "limit"}
    unlimited = logits(fused(tmp_path / "weights.bin", activation=activation, **without))
    assert (unlimited.tobytes() == alone.tobytes()) == ("limit" not in change)


def test_streamed_experts_have_the_same_limit(tmp_path: Path) -> None:
    program = experts(tmp_path / "weights.bin", limit=2.0)
    record = 3 * INNER * WIDTH * 4
    wanted = logits(program)
    assert logits(program, expert_bytes=40 * record, verify_slots=True).tobytes() == wanted.tobytes()
    assert logits(experts(tmp_path / "weights.bin")).tobytes() != wanted.tobytes()


@pytest.mark.parametrize(
    ("name", "program"),
    [
        ("b", lambda path: fused(path, limit=2.0)),
        ("b", lambda path: unfused(path, limit=2.0)),
        ("a", lambda path: grouped(path, HEADS)),
    ],
    ids=["fused", "unfused", "grouped"],
)
@pytest.mark.parametrize("damage", [np.nan, np.inf, -np.inf])
def test_a_gate_makes_no_ordinary_number_of_an_infinity(
    name: str, program: Callable[[Path], p.Program], damage: float, tmp_path: Path
) -> None:
    """In the last value of its row; experts are among the programs of test_native_damage."""
    built = program(tmp_path / "weights.bin")
    ref = next(ref for op in built.ops for ref in p.tensors(op) if ref.name == name)
    with ref.file.open("r+b") as file:
        file.seek(ref.offset + ref.nbytes - 4)
        file.write(np.float32(damage).tobytes())
    with pytest.raises(FloatingPointError, match="a gate"):
        logits(built)


# --- routers ----------------------------------------------------------------------------------------------------------


def guarded(scores: np.ndarray, eps: float, least: float) -> np.ndarray:
    """In float32, as the families' own code does it."""
    total = scores.sum(-1, keepdims=True, dtype=np.float32) + np.float32(eps)
    return scores / np.maximum(total, np.float32(least))


@pytest.mark.parametrize(
    ("score", "guards"),
    [
        ("sigmoid", {"norm_eps": 1e-20}),  # GLM, Trinity, DeepSeek
        ("sigmoid", {"norm_eps": 1e-6}),  # LFM2
        ("sigmoid", {"norm_min": 1e-12}),
        ("sigmoid", {"norm_eps": 1e-20, "norm_min": 6e-5}),
    ],
)
def test_tiny_scores_are_weighed_as_the_family_says(score: Any, guards: dict[str, float], tmp_path: Path) -> None:
    """All logits of a row very negative: a sum near the guard, far below it, and one that is exactly 0."""
    rows = np.array([[-7, -5, -6], [-27, -28, -29], [-46, -45, -47], [-70, -60, -65], [-90, -95, -200.0]], np.float32)
    with np.errstate(under="ignore"):
        scores = (1 / (1 + np.exp(-rows.astype(np.float64)))).astype(np.float32)
    wanted = guarded(scores, guards.get("norm_eps", 0.0), guards.get("norm_min", 0.0))
    for tier in _native.tiers():
        got = routing(tmp_path / "weights.bin", rows, top_k=3, score=score, **guards)
        weights = logits(got, list(range(len(rows))), tier=tier)[:, :3]
        np.testing.assert_allclose(weights, wanted, rtol=3e-6, atol=TINY)
        oracle = NumpyExecutor(got).forward(range(len(rows)))[:, :3]
        np.testing.assert_allclose(oracle, wanted, rtol=3e-6, atol=TINY)


def test_a_sum_of_zero_without_a_guard_gives_no_weight(tmp_path: Path) -> None:
    """0 / 0 in the families that have no guard; here those experts count nothing, and the answer stays a number."""
    rows = np.full((2, 4), -120.0)
    rows[1] = -60.0
    program = routing(tmp_path / "weights.bin", rows, top_k=2, score="sigmoid")
    weights = logits(program, [0, 1])[:, :4]
    assert (weights[0] == 0).all()
    np.testing.assert_allclose(weights[1], [0.5, 0.5, 0, 0])


# --- what is refused, and how it prints -------------------------------------------------------------------------------

GATE, TEMPER = p.Gate(A, A, B, "silu"), p.Temper(X, X, 0.1, 8)


@pytest.mark.parametrize(
    ("op", "problem"),
    [
        (dataclasses.replace(GATE, limit=-1.0), "limit.* is not a number that it can be"),
        (dataclasses.replace(GATE, limit=float("nan")), "limit.* is not a number that it can be"),
        (dataclasses.replace(GATE, group=-2), "group.* is not a number that it can be"),
        (dataclasses.replace(GATE, group=7), "groups of 7 in 24 values"),
        (dataclasses.replace(GATE, group=2), "buffer '?a'? has width 24, expected 12"),
        (dataclasses.replace(GATE, out=B, a=HEADS), "buffer '?heads'? has width 4, expected 24"),
        (dataclasses.replace(GATE, out=B, a=HEADS, group=4), "buffer '?heads'? has width 4, expected 6"),
        (dataclasses.replace(GATE, out=B, a=HEADS, b=HEADS, group=6), "buffer '?heads'? has width 4, expected 24"),
        (dataclasses.replace(TEMPER, length=0), "temper.*: a temperature by 0 positions from 0 on"),
        (dataclasses.replace(TEMPER, offset=-1), "a temperature by 8 positions from -1 on"),
        (dataclasses.replace(TEMPER, beta=float("inf")), "beta.* is not a number that it can be"),
        (dataclasses.replace(TEMPER, x=A), "buffer '?a'? has width 24, expected 37"),
        (p.Route(LOGITS, EXPERTS, 2, norm_eps=-1e-20), "route.*: guards -1e-20 and 0 of the sum"),
        (p.Route(LOGITS, EXPERTS, 2, norm_min=-1.0), "route.*: guards 0 and -1 of the sum"),
        (p.Route(LOGITS, EXPERTS, 2, norm_eps=float("nan")), "norm_eps.* is not a number that it can be"),
    ],
)
def test_what_does_not_fit_is_refused_at_load(op: p.Op, problem: str, tmp_path: Path) -> None:
    file = TensorFile(tmp_path / "weights.bin")
    outs = (A, B, HEADS, LOGITS)
    product = p.Linear(outs, X, tuple(wide(file, out.name, out.width, WIDTH) for out in outs))
    broken = around(file, [product, op], X)
    with pytest.raises(ValueError, match=problem):
        p.validate(broken)
    with pytest.raises(NativeError, match=problem):
        build(broken)


def test_they_are_printed(tmp_path: Path) -> None:
    gates = [
        dataclasses.replace(GATE, limit=7.0),
        p.Gate(B, HEADS, B, "sigmoid", group=6),
        p.Route(LOGITS, EXPERTS, 2, score="sigmoid", norm_eps=1e-20),
        p.Route(LOGITS, EXPERTS, 2, norm_min=1e-12),
        dataclasses.replace(TEMPER, offset=1),
        TEMPER,
    ]
    text = p.format_program(around(TensorFile(tmp_path / "weights.bin"), gates, X))
    for line in (
        "gate    a[24] = silu(a) · b, limit 7",
        "gate    b[24] = sigmoid(heads) · b, groups of 6",
        "route   top 2 of 6 by logits, sigmoid, normalized, norm_eps 1e-20",
        "route   top 2 of 6 by logits, softmax, normalized, norm_min 1e-12",
        "temper  x[37] = x · (1 + 0.1 · ln(1 + ⌊(position + 1) / 8⌋))",
        "temper  x[37] = x · (1 + 0.1 · ln(1 + ⌊position / 8⌋))",
    ):
        assert line in text.splitlines()
    assert "up(x)), limit 2, 6 × gate" in p.format_program(experts(tmp_path / "weights.bin", limit=2.0))
