"""Damaged weights end a step with a typed error, whatever tensor they are in: no NaN or infinity becomes an answer.

Places that make ordinary numbers of them, each asked before it does: the KV cache (NaN is stored as 0, infinities are
clamped), activations of 8 bits, gates (silu takes -infinity to 0), soft caps, a router's choice.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import native_state
import numpy as np
import pytest
from native_programs import dense, moe, random_tokens, step

from kamado import _native
from kamado import program as p
from kamado.engine.generation import public_error
from kamado.errors import NativeError
from kamado.files.types import Layout, TensorRef
from kamado.lower import build_executor

DAMAGE = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf}
TOKENS = random_tokens(9)
# Where a block has its scale: half a float there makes the whole block not finite.
SCALE_AT = {Layout.Q4_0: 0, Layout.Q8_0: 0, Layout.Q5_1: 0, Layout.Q4_K: 0, Layout.Q6_K: 208}


def limited(program: p.Program) -> p.Program:
    """Gates with a limit, which takes an infinity to itself."""
    gates = p.Gate | p.Experts
    return dataclasses.replace(
        program, ops=[dataclasses.replace(op, limit=2.0) if isinstance(op, gates) else op for op in program.ops]
    )


PROGRAMS: dict[str, Callable[[Path], p.Program]] = {
    "dense": lambda path: dense(path, layers=2),
    "dense-f16": lambda path: dense(path, layers=2, layout=Layout.F16),
    "dense-q8_0": lambda path: dense(path, layers=2, layout=Layout.Q8_0),
    "dense-k": lambda path: dense(
        path, hidden=256, heads=16, kv_heads=4, ffn=256, layers=2, layout=Layout.Q4_K, v_layout=Layout.Q6_K
    ),
    "moe": moe,
    "dense-limit": lambda path: limited(dense(path, layers=2)),
    "moe-limit": lambda path: limited(moe(path)),
    "conv": native_state.conv,
    "delta": native_state.delta,
    "channels": native_state.channels,
    "moe-q4_0": lambda path: moe(path, width=64, layout=Layout.Q4_0, down_layout=Layout.Q5_1),
}


def parts(program: p.Program) -> dict[str, list[TensorRef]]:
    """The tensors by name; all experts of a layer are one, since which of them a token needs is the router's choice."""
    found: dict[str, list[TensorRef]] = {}
    for op in program.ops:
        for ref in p.tensors(op):
            found.setdefault(ref.name.split(".")[0] if isinstance(op, p.Experts) else ref.name, []).append(ref)
    return found


class Damaged:
    """`refs` of a file with one value not finite each: in the row of the first token, or in the first row."""

    def __init__(self, refs: list[TensorRef], value: float) -> None:
        self._refs, self._value = refs, value
        self._before: list[tuple[Path, int, bytes]] = []

    def __enter__(self) -> None:
        for ref in self._refs:
            row_nbytes = ref.layout.nbytes(ref.cols)
            at = ref.offset + (TOKENS[0] * row_nbytes if ref.name == "table" else 0)
            data = np.float32(self._value).tobytes() if ref.layout is Layout.F32 else np.float16(self._value).tobytes()
            at += SCALE_AT.get(ref.layout, 0)
            with ref.file.open("r+b") as file:
                file.seek(at)
                self._before.append((ref.file, at, file.read(len(data))))
                file.seek(at)
                file.write(data)

    def __exit__(self, *_: object) -> None:
        for path, at, data in self._before:
            with path.open("r+b") as file:
                file.seek(at)
                file.write(data)


def build(program: p.Program, **options: Any) -> Any:
    defaults: dict[str, Any] = {
        "num_threads": 1, "max_rows": 64, "max_logit_rows": 64, "max_kv_tokens": 512, "max_sequences": 2, "kv": "f16",
    }  # fmt: skip
    return build_executor(program, **{**defaults, **options})


def variants() -> Iterator[dict[str, Any]]:
    for tier in _native.tiers():
        for kv in ("f16", "f32"):
            yield {"tier": tier, "kv": kv}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", PROGRAMS)
def test_every_tensor(tmp_path: Path, name: str, damage: str) -> None:
    program = PROGRAMS[name](tmp_path / "weights.bin")
    options = list(variants())
    missed = []
    for i, (tensor, refs) in enumerate(parts(program).items()):
        # Keys and values in every variant: what they pass through differs in each. The others in turn.
        is_cached = tensor[0] in "kv" and tensor[1:].isdigit()
        for variant in options if is_cached else [options[i % len(options)]]:
            with Damaged(refs, DAMAGE[damage]):
                executor = build(program, **variant)
                for tokens in (TOKENS, TOKENS[:1]):  # a prefill, and the path of a decoded token
                    sequence = executor.create_sequence()
                    with contextlib.suppress(FloatingPointError):
                        step(executor, [(sequence, tokens)], [len(tokens) - 1])
                        missed.append((tensor, variant, len(tokens)))
                    assert missed or executor.length(sequence) == 0
                    executor.free_sequence(sequence)
                executor.close()
    assert not missed


def test_a_healthy_file_passes_and_goes_on_passing(tmp_path: Path) -> None:
    for name, make in PROGRAMS.items():
        program = make(tmp_path / name)
        for variant in variants():
            executor = build(program, **variant)
            sequence = executor.create_sequence()
            assert np.isfinite(step(executor, [(sequence, TOKENS)])).all()
            executor.close()


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("bits", [(2, 2), (4, 4), (8, 8)])
def test_encoded_caches(tmp_path: Path, damage: str, bits: tuple[int, int]) -> None:
    """A page with damage is never encoded: the step that would have written it was refused."""
    program = dense(tmp_path / "w", hidden=128, heads=2, kv_heads=1, head_dim=64, layers=1)
    for tensor in ("k0", "v0"):
        with Damaged(parts(program)[tensor], DAMAGE[damage]):
            executor = build(program, max_rows=320, max_kv_tokens=1024, kv_bits=[bits])
            sequence = executor.create_sequence()
            with pytest.raises(FloatingPointError, match="of attention came out not finite"):
                step(executor, [(sequence, random_tokens(300))], [299])
            executor.close()


def test_other_sequences_go_on_and_the_step_can_be_repeated(tmp_path: Path) -> None:
    """A damaged row of the table harms those who use its token, nobody else."""
    program = dense(tmp_path / "w", layers=2)
    bad = TOKENS[0]
    good = [token for token in random_tokens(20, seed=3) if token != bad]
    healthy = build(program)
    expected = step(healthy, [(healthy.create_sequence(), good)])
    with Damaged(parts(program)["table"], np.nan):
        # The head is tied to the table: take it away, or each logit of that token is not finite.
        ops = [*program.ops[:-1], dataclasses.replace(program.ops[-1], weight=parts(program)["q0"][0])]
        untied = dataclasses.replace(program, ops=ops, vocab_size=parts(program)["q0"][0].rows)
        executor = build(untied)  # a step that is refused leaves no trace in the sequences that were not to blame
        first, second = executor.create_sequence(), executor.create_sequence()
        with pytest.raises(FloatingPointError):
            step(executor, [(first, good), (second, [bad, *good])])
        assert executor.length(first) == executor.length(second) == 0
        step(executor, [(first, good)])
        assert executor.length(first) == len(good)
        executor.close()
    again = step(healthy, [(healthy.create_sequence(), good)])
    assert np.array_equal(expected, again)


def test_the_hidden_rows_of_an_embedding_are_asked_too(tmp_path: Path) -> None:
    program = dense(tmp_path / "w", layers=1)
    with Damaged(parts(program)["last_norm"], np.inf):
        executor = build(program)
        tokens = np.array(TOKENS, np.int32)
        one = np.array([executor.create_sequence()], np.int32)
        with pytest.raises(FloatingPointError):
            executor.step(one, np.array([len(tokens)], np.int32), tokens, np.array([0], np.int32), hidden=True)
        executor.close()


def test_streamed_experts(tmp_path: Path) -> None:
    program = moe(tmp_path / "w")
    with Damaged(parts(program)["gate1"], -np.inf):
        executor = build(program, expert_bytes=1 << 20)
        sequence = executor.create_sequence()
        with pytest.raises(FloatingPointError, match="expert"):
            step(executor, [(sequence, TOKENS)])
        executor.close()


def test_callers_get_the_same_error_as_for_logits_that_are_no_numbers() -> None:
    error = public_error(_native.NotFinite("a key of attention came out not finite: …"))
    assert type(error) is NativeError
    assert str(error) == "a key of attention came out not finite: …"


@pytest.mark.parametrize("how", ["cut", "overwritten", "emptied"])
def test_a_file_that_is_changed_while_in_use(tmp_path: Path, how: str) -> None:
    """Weights were read at the load; the table is read row by row: an error, or numbers, and no signal."""
    program = moe(tmp_path / "w")
    executor = build(program)
    with (tmp_path / "w").open("r+b") as file:
        if how == "overwritten":
            file.write(bytes(range(256)) * 64)
        else:
            file.truncate(0 if how == "emptied" else 40)
    sequence = executor.create_sequence()
    with contextlib.suppress(RuntimeError, FloatingPointError):
        step(executor, [(sequence, TOKENS)])
        assert how == "overwritten"
    executor.close()
