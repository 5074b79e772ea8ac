"""The plan: everything resident when it fits, experts streamed with what is left when not, and the least that works."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from kamado.errors import MemoryBudgetError, UsageError
from kamado.files import open_checkpoint
from kamado.files.gguf_writer import GgufWriter
from kamado.files.types import Checkpoint, Layout, TensorRef
from kamado.models import build_program
from kamado.plan import sizes
from kamado.plan.forecast import Plan, plan
from kamado.plan.machine import DeviceProfile, Machine
from kamado.plan.overhead import CONSTRAINT_LIBRARY_BYTES
from kamado.plan.planner import LEAST_CONTEXT
from kamado.program import Accumulate, Buffer, Conv, Experts, Linear, Program, Record, validate
from kamado.synth.synthesize import synthesize

MIB, GIB = 1 << 20, 1 << 30


def tokenizer_in(folder: Path) -> Checkpoint:
    """A file with a vocabulary of 512 and nothing else."""
    writer = GgufWriter("llama")
    writer.add("tokenizer.ggml.model", "gpt2")
    writer.add("tokenizer.ggml.tokens", [f"t{i}" for i in range(512)])
    writer.add("tokenizer.ggml.token_type", [1] * 512)
    writer.add("tokenizer.ggml.merges", ["t 1"])
    with writer.open(folder / "tokenizer.gguf"):
        pass
    return open_checkpoint(folder / "tokenizer.gguf")


def here(usable: int = 0, total: int = 8 * GIB) -> Machine:
    return Machine(
        cpus=2,
        cpus_online=2,
        memory_bytes=total,
        memory_total_bytes=total,
        memory_limited_by="machine",
        cpu_model="test",
        cpu_features=(),
        usable_bytes=usable,
    )


@pytest.fixture(scope="module")
def moe(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Program]:
    """8 layers of 32 experts, 4 a token: experts of 28 MB, other weights under 3 MB."""
    folder = tmp_path_factory.mktemp("moe")
    tokenizer = tokenizer_in(folder)
    synthesize(
        folder / "moe.gguf", "qwen3moe", tokenizer_from=tokenizer, layers=8, hidden=256, heads=4, kv_heads=2,
        head_dim=64, experts=32, top_k=4, expert_width=256, layout="q4_k",
    )  # fmt: skip
    checkpoint = open_checkpoint(folder / "moe.gguf")
    return checkpoint, build_program(checkpoint)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Program]:
    folder = tmp_path_factory.mktemp("dense")
    tokenizer = tokenizer_in(folder)
    synthesize(
        folder / "dense.gguf", "llama", tokenizer_from=tokenizer, layers=2, hidden=256, heads=4, kv_heads=2, ffn=512
    )
    checkpoint = open_checkpoint(folder / "dense.gguf")
    return checkpoint, build_program(checkpoint)


def resident_bytes(model: tuple[Checkpoint, Program]) -> int:
    return plan(*model, on=here()).peak_bytes


def test_what_fits_is_resident(moe: tuple[Checkpoint, Program]) -> None:
    result = plan(*moe, on=here())
    assert result.fits
    assert not result.is_streamed
    assert result.expert_slots == result.num_experts == 8 * 32
    assert result.bytes_by_owner["experts"] == sizes.expert_needs(moe[1]).packed_bytes > 25 * MIB
    assert result.miss_bytes_per_token == 0
    exactly = plan(*moe, memory=result.peak_bytes, on=here())
    assert not exactly.is_streamed
    smaller = plan(*moe, memory=result.peak_bytes - 1, on=here())
    assert not smaller.is_streamed  # smaller steps cost less than reading experts
    assert smaller.max_rows < result.max_rows
    assert plan(*moe, memory=result.peak_bytes - 1, max_rows=512, on=here()).is_streamed


def test_nothing_is_streamed_where_every_expert_would_have_a_slot(moe: tuple[Checkpoint, Program]) -> None:
    """With everything in slots a run costs more bytes than a resident one of the same steps."""
    everything = resident_bytes(moe)
    streamed = 0
    for budget in range(everything - 24 * MIB, everything + MIB, MIB // 2):
        result = plan(*moe, memory=budget, context=1024, on=here())
        assert result.fits
        if result.is_streamed:
            streamed += 1
            assert result.expert_slots < result.num_experts
    assert 5 < streamed < 45


def test_rows_of_logits_are_given_up_before_experts_are_streamed(moe: tuple[Checkpoint, Program]) -> None:
    program = dataclasses.replace(moe[1], vocab_size=200_000)  # 800 KB of logits a row
    rich = plan(moe[0], program, max_rows=64, on=here())
    tight = plan(moe[0], program, max_rows=64, memory=rich.peak_bytes - 16 * MIB, on=here())
    assert not tight.is_streamed
    assert tight.max_logit_rows < rich.max_logit_rows


def test_what_does_not_fit_is_streamed_within_the_budget(moe: tuple[Checkpoint, Program]) -> None:
    everything = resident_bytes(moe)
    before: Plan | None = None
    for taken in range(2 * MIB, 30 * MIB, 4 * MIB):
        result = plan(*moe, memory=everything - taken, max_rows=512, on=here())
        assert result.is_streamed
        assert result.fits
        assert result.peak_bytes <= everything - taken
        assert result.expert_bytes == result.bytes_by_owner["experts"]
        assert 0 < result.expert_slots < result.num_experts
        if before is not None and before.context == result.context:
            assert result.expert_slots <= before.expert_slots
        before = result


def test_the_least_that_is_named_works_and_a_page_less_does_not(moe: tuple[Checkpoint, Program]) -> None:
    least = plan(*moe, memory=10 * MIB, on=here())
    assert not least.fits
    assert sum(least.least_bytes_by_owner.values()) == least.least_bytes
    with pytest.raises(MemoryBudgetError, match=rf"the least that works is .*experts .*interpreter .*{LEAST_CONTEXT}"):
        least.require_fit()
    works = plan(*moe, memory=least.least_bytes, on=here())
    works.require_fit()
    assert works.is_streamed
    assert works.context >= LEAST_CONTEXT
    needs = sizes.expert_needs(moe[1])
    assert works.expert_bytes is not None
    assert works.expert_bytes >= needs.least_bytes
    assert works.miss_bytes_per_token == needs.cycle_file_bytes  # less than one token's experts: none is found again
    assert least.least_bytes % 4096 == 0  # a cgroup rounds its limit down to pages
    assert not plan(*moe, memory=least.least_bytes - 4096, on=here()).fits


@pytest.mark.parametrize("context", [100, 256, 2048])
def test_the_least_is_that_of_the_context_that_was_asked_for(moe: tuple[Checkpoint, Program], context: int) -> None:
    stated = plan(*moe, memory=1 * MIB, context=context, on=here())
    assert stated.least_context == context
    assert plan(*moe, memory=stated.least_bytes, context=context, on=here()).fits
    assert not plan(*moe, memory=stated.least_bytes - 4096, context=context, on=here()).fits
    with pytest.raises(MemoryBudgetError, match=f"the least that works is .* with a context of {context} tokens"):
        stated.require_fit()


def test_a_context_that_was_asked_for_is_kept(moe: tuple[Checkpoint, Program]) -> None:
    everything = resident_bytes(moe)
    result = plan(*moe, memory=everything - 20 * MIB, context=1000, on=here())
    assert (result.context, result.kv_tokens) == (1000, 1024)
    with pytest.raises(UsageError, match="context=1 "):
        plan(*moe, context=1, on=here())
    huge = plan(*moe, memory=least_of(moe), context=30000, on=here())
    assert not huge.fits
    with pytest.raises(MemoryBudgetError, match="smaller context than 30000"):
        huge.require_fit()


def least_of(model: tuple[Checkpoint, Program]) -> int:
    return plan(*model, memory=1 * MIB, on=here()).least_bytes


def test_steps_grow_where_there_is_room_and_shrink_where_not(moe: tuple[Checkpoint, Program]) -> None:
    everything = resident_bytes(moe)
    rows = [plan(*moe, memory=m, on=here()).max_rows for m in (least_of(moe), everything - 25 * MIB, everything)]
    assert rows[0] <= rows[1]
    assert rows[2] == 512
    assert plan(*moe, memory=everything - 20 * MIB, max_rows=77, on=here()).max_rows == 77
    scratch = [sizes.scratch_needs(moe[1]).bytes_of(n, 16, 2) for n in (32, 512, 2048)]
    assert scratch == sorted(scratch)


def test_without_a_budget_others_and_a_margin_are_left_their_share(moe: tuple[Checkpoint, Program]) -> None:
    everything = resident_bytes(moe)
    small = plan(*moe, on=here(usable=everything - 10 * MIB))
    assert small.is_streamed
    assert small.memory_bytes == everything - 10 * MIB
    # A budget that was asked for may go beyond, up to what the machine has.
    assert not plan(*moe, memory=everything, on=here(usable=everything - 10 * MIB)).is_streamed
    capped = plan(*moe, memory=100 * GIB, on=here(total=everything - 10 * MIB))
    assert (capped.memory_bytes, capped.memory_limited_by) == (everything - 10 * MIB, "machine")


def test_a_dense_model_is_never_streamed(dense: tuple[Checkpoint, Program]) -> None:
    everything = resident_bytes(dense)
    smaller = plan(*dense, memory=everything - MIB, on=here())
    assert smaller.fits
    assert not smaller.is_streamed
    assert smaller.context < 4096 or smaller.max_rows < 512
    nothing = plan(*dense, memory=MIB, on=here())
    assert not nothing.fits
    assert nothing.num_experts == 0
    with pytest.raises(MemoryBudgetError, match=r"the budget is 1\.00 MiB: the least that works is"):
        nothing.require_fit()


def test_room_for_answers_of_a_given_form_has_an_owner(moe: tuple[Checkpoint, Program]) -> None:
    without, having = plan(*moe, on=here()), plan(*moe, on=here(), constraints=True)
    trie = sizes.constraint_bytes(moe[1].vocab_size)
    more = trie + CONSTRAINT_LIBRARY_BYTES
    assert "constraints" not in without.bytes_by_owner
    assert having.bytes_by_owner["constraints"] == trie
    assert 0 <= having.peak_bytes - without.peak_bytes - more <= more // 512 + 4096  # page tables for it
    assert having.least_bytes >= without.least_bytes + more
    # It is taken from the experts' slots, not from the budget.
    budget = without.peak_bytes
    streamed = plan(*moe, memory=budget, on=here(), constraints=True)
    assert streamed.is_streamed
    assert streamed.peak_bytes <= budget


def test_records_that_fit_are_part_of_the_plan(dense: tuple[Checkpoint, Program]) -> None:
    """Two a sequence and one a reuse point at least; more marks while memory is left."""
    checkpoint, program = dense
    x = program.ops[0].out
    ops = [*program.ops[:-1], Accumulate(x, x, len(program.states), 0.5), program.ops[-1]]
    with_record = dataclasses.replace(program, ops=ops, states=(*program.states, Record("sum", 4 * x.width)))
    validate(with_record)
    assert "records" not in plan(checkpoint, program, on=here()).bytes_by_owner
    much = plan(checkpoint, with_record, on=here(), context=512, max_sequences=4)
    assert much.max_records == 2 * 4 + much.kv_reuse_points + 4 * 4
    assert much.bytes_by_owner["records"] == (much.max_records + 1) * 4096
    least = plan(checkpoint, with_record, on=here(), context=512, max_sequences=4, memory=much.least_bytes)
    assert least.fits
    assert least.max_records == 2 * 4 + least.kv_reuse_points


def with_record(program: Program, num_bytes: int) -> Program:
    """The program with a state of so many bytes, which only a plan looks at."""
    return dataclasses.replace(program, states=(*program.states, Record("state", num_bytes)))


@pytest.mark.parametrize("record_bytes", [0, 8 * MIB])
def test_conversations_that_fit_are_counted(dense: tuple[Checkpoint, Program], record_bytes: int) -> None:
    """As many as another plan has room for; a conversation takes its pages and two records."""
    checkpoint = dense[0]
    program = with_record(dense[1], record_bytes) if record_bytes else dense[1]
    budget = plan(checkpoint, program, context=2048, max_sequences=1, on=here()).peak_bytes + 40 * MIB
    made = plan(checkpoint, program, context=2048, memory=budget, on=here())
    pages = 2048 * 2 * 2 * 2 * 64 * 2  # layers, keys and values, heads, values of each, bytes
    assert made.conversation_bytes == pages + 2 * record_bytes
    assert made.reuse_point_bytes == made.record_bytes == record_bytes
    count = made.num_conversations
    assert 1 < count < 64

    def with_conversations(number: int) -> Plan:
        return plan(
            checkpoint, program, context=2048, kv_tokens=2048 * number, max_sequences=number,
            max_rows=made.max_rows, max_logit_rows=made.max_logit_rows, memory=budget, on=here(),
        )  # fmt: skip

    assert with_conversations(count).fits
    assert not with_conversations(count + 1).fits


def test_large_records_are_fewer_where_memory_is_short(moe: tuple[Checkpoint, Program]) -> None:
    """Two a sequence, one a reuse point: at most an eighth of the budget; at the least one sequence and two points."""
    checkpoint, program = moe[0], with_record(moe[1], 16 * MIB)
    kept = {}
    for budget in (8 * GIB, 2 * GIB, GIB, GIB // 2):
        made = plan(checkpoint, program, memory=budget, on=here())
        assert made.fits
        kept[budget] = (made.max_sequences, made.kv_reuse_points)
        assert made.max_records >= 2 * made.max_sequences + made.kv_reuse_points
        assert made.bytes_by_owner["records"] == (made.max_records + 1) * 16 * MIB
    assert kept == {8 * GIB: (4, 8), 2 * GIB: (2, 4), GIB: (1, 2), GIB // 2: (1, 2)}
    assert plan(checkpoint, program, memory=GIB, max_sequences=3, on=here()).max_sequences == 3
    least = plan(checkpoint, program, memory=MIB, on=here())
    assert plan(checkpoint, program, memory=least.least_bytes, on=here()).fits
    assert not plan(checkpoint, program, memory=least.least_bytes - 4096, on=here()).fits


def test_state_is_read_and_written_for_every_token(dense: tuple[Checkpoint, Program]) -> None:
    profile = DeviceProfile("test", 2, "avx2", 20e9, 1e12)
    without = plan(*dense, profile=profile, on=here())
    having = plan(dense[0], with_record(dense[1], 10 * MIB), profile=profile, on=here())
    assert (without.state_bytes_per_token, having.state_bytes_per_token) == (0, 20 * MIB)
    assert without.decode_tokens_per_second is not None
    assert having.decode_tokens_per_second is not None
    more = 1 / having.decode_tokens_per_second - 1 / without.decode_tokens_per_second
    assert more == pytest.approx(20 * MIB / 20e9)
    assert having.decode_limited_by == "memory"
    assert having.prefill_limited_by == "arithmetic"


def test_reads_are_as_fast_as_their_size_allows(moe: tuple[Checkpoint, Program]) -> None:
    """Experts here are read in pieces of 36 KiB, far below where this disk is fast."""
    curve = ((4096, 10e6), (1 << 20, 1e9))
    profile = DeviceProfile("test", 2, "avx2", 20e9, 1e12, disk_curve=curve)
    slow = plan(*moe, memory=least_of(moe), profile=profile, on=here())
    needs = sizes.expert_needs(moe[1])
    assert 36 * 1024 <= needs.request_bytes <= 40 * 1024
    rate = profile.disk_speed(needs.request_bytes)
    assert rate is not None
    assert 10e6 < rate < 100e6
    assert slow.decode_tokens_per_second == pytest.approx(rate / slow.miss_bytes_per_token)
    assert slow.decode_limited_by == slow.prefill_limited_by == "disk"


def test_scans_take_their_share_of_a_prefill(dense: tuple[Checkpoint, Program]) -> None:
    """What no product does goes by the float32 rate, where that was measured; its record is read and written."""
    checkpoint, program = dense
    x = program.ops[0].out
    out = Buffer("seen", x.width)
    taps = TensorRef("taps", Path("none"), 0, 8 * x.width, (x.width, 4), Layout.F16)
    conv = Conv(out, x, taps, len(program.states))
    ops = [*program.ops[:-1], conv, program.ops[-1]]
    with_conv = dataclasses.replace(program, ops=ops, states=(*program.states, Record("conv", conv.record_bytes)))
    validate(with_conv)
    profile = DeviceProfile("test", 2, "avx2", 20e9, 1e12, f32_ops_per_second=1e9)
    unknown = dataclasses.replace(profile, f32_ops_per_second=None)

    def seconds(model: Program, profile: DeviceProfile) -> tuple[float, float]:
        told = plan(checkpoint, model, profile=profile, on=here())
        assert told.prefill_tokens_per_second is not None
        assert told.decode_tokens_per_second is not None
        return 1 / told.prefill_tokens_per_second, 1 / told.decode_tokens_per_second

    assert seconds(with_conv, unknown)[0] == seconds(program, unknown)[0] == seconds(program, profile)[0]
    assert seconds(with_conv, profile)[0] - seconds(program, profile)[0] == pytest.approx(2 * 4 * x.width / 1e9)
    record = 4096 * -(-conv.record_bytes // 4096)
    assert seconds(with_conv, profile)[1] - seconds(program, profile)[1] == pytest.approx(2 * record / 20e9)


def test_the_disk_bounds_the_speed_of_a_streamed_model(moe: tuple[Checkpoint, Program]) -> None:
    profile = DeviceProfile("test", 2, "avx2", 20e9, 1e12, disk_bytes_per_second=50e6)
    fast = plan(*moe, profile=profile, on=here())
    slow = plan(*moe, memory=least_of(moe), profile=profile, on=here())
    assert fast.decode_tokens_per_second is not None
    assert slow.decode_tokens_per_second is not None
    assert slow.decode_tokens_per_second == pytest.approx(50e6 / slow.miss_bytes_per_token)
    assert slow.decode_tokens_per_second < fast.decode_tokens_per_second


def test_a_plan_is_plain_data(moe: tuple[Checkpoint, Program]) -> None:
    import json

    document = json.loads(json.dumps(plan(*moe, memory=least_of(moe), on=here()).to_dict()))
    assert document["is_streamed"]
    assert document["peak_bytes"] == sum(document["bytes_by_owner"].values())
    assert set(document["least_bytes_by_owner"]) == set(document["bytes_by_owner"])


def test_sizes_are_the_native_ones(moe: tuple[Checkpoint, Program]) -> None:
    native = pytest.importorskip("kamado._native", reason="the native module is not built")
    if not hasattr(native, "packed_bytes"):
        pytest.skip("this native module cannot tell packed sizes")
    for op in moe[1].ops:
        refs = op.weights if isinstance(op, Linear) else (*op.gate, *op.down) if isinstance(op, Experts) else ()
        for ref in refs:
            assert sizes.packed_bytes(ref) == native.packed_bytes(int(ref.layout), ref.rows, ref.cols)


def test_every_layout_packs_as_the_native_side_says(tmp_path: Path) -> None:
    from kamado.files.types import Layout, TensorRef

    native = pytest.importorskip("kamado._native", reason="the native module is not built")
    if not hasattr(native, "packed_bytes"):
        pytest.skip("this native module cannot tell packed sizes")
    for layout in Layout:
        for rows, cols in ((1, 256), (16, 768), (100, 2048)):
            ref = TensorRef("w", tmp_path, 0, layout.nbytes(rows * cols), (rows, cols), layout)
            assert sizes.packed_bytes(ref) == native.packed_bytes(int(layout), rows, cols), (layout, rows, cols)


def test_weights_and_scratch_are_what_the_executor_takes(moe: tuple[Checkpoint, Program]) -> None:
    lower = pytest.importorskip("kamado.lower", reason="the native module is not built")
    result = plan(*moe, context=512, on=here())
    executor = lower.build_executor(
        moe[1], num_threads=2, max_rows=result.max_rows, max_logit_rows=result.max_logit_rows,
        max_kv_tokens=result.kv_tokens, max_sequences=4, kv="f16",
    )  # fmt: skip
    try:
        stats = executor.stats()
    finally:
        executor.close()
    planned = result.bytes_by_owner
    weights = stats["weight_bytes"] + stats.get("expert_bytes", 0.0)
    assert weights == pytest.approx(planned["weights"] + planned["experts"], rel=0.01)
    assert 0.7 * planned["scratch"] < stats["scratch_bytes"] <= planned["scratch"]
