"""A model that does not fit its budget: the same bits as in memory, and the ledger adds up."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import kamado
from kamado.errors import KamadoError, MemoryBudgetError, ModelChangedError
from kamado.files import open_checkpoint
from kamado.models import build_program
from kamado.plan import sizes
from kamado.plan.forecast import Plan, plan

from .moe_file import write_moe

pytest.importorskip("kamado._native", reason="the native module is not built")

TOKENS = [int(i) for i in np.random.default_rng(4).integers(0, 512, 70)]


@pytest.fixture(scope="module")
def moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 layers of 32 experts, 4 a token, 28 MB of experts."""
    return write_moe(tmp_path_factory.mktemp("moe"), layers=8, hidden=256, experts=32)


def least_bytes(path: Path) -> int:
    with pytest.raises(MemoryBudgetError) as caught:
        kamado.load(path, memory="8MiB")
    assert "the least that works is" in str(caught.value)
    checkpoint = open_checkpoint(path)
    return plan(checkpoint, build_program(checkpoint), memory=1 << 20).least_bytes


def answers(path: Path, **settings: object) -> tuple[np.ndarray, list[int], kamado.Stats]:
    with kamado.load(path, max_logit_rows=80, context=256, **settings) as model:  # type: ignore[arg-type]
        logits = model.logits(TOKENS)
        tokens = [piece.token for piece in model.generate(TOKENS, temperature=0, max_tokens=20)]
        return logits, tokens, model.stats


def test_every_budget_gives_the_same_bits(moe: Path) -> None:
    logits, tokens, stats = answers(moe)
    assert stats.ledger is None
    least = least_bytes(moe)
    for extra, settings in ((2 << 20, {}), (8 << 20, {"threads": 1}), (8 << 20, {"max_rows": 32})):
        streamed, streamed_tokens, streamed_stats = answers(moe, memory=least + extra, **settings)
        assert np.array_equal(streamed, logits), (extra, settings)
        assert streamed_tokens == tokens
        ledger = streamed_stats.ledger
        assert ledger is not None
        assert len(ledger.layers) == 8
        total = ledger.total
        assert total.misses > 0
        record = sizes.expert_needs(build_program(open_checkpoint(moe))).largest_record_bytes
        assert total.bytes_read >= total.misses * record - total.lookahead_hits * record
        assert streamed_stats.bytes_by_owner["experts"] <= streamed_stats.planned_by_owner["experts"]
        json.dumps(streamed_stats.to_dict())


def test_the_slots_that_were_planned_are_the_slots_there_are(moe: Path) -> None:
    least = least_bytes(moe)
    for extra in (0, 3 << 20, 12 << 20):
        with kamado.load(moe, memory=least + extra) as model:
            ledger = model.stats.ledger
            assert ledger is not None
            assert ledger.slots == pytest.approx(model.plan.expert_slots, rel=0.1, abs=4)
            assert ledger.slot_bytes <= (model.plan.expert_bytes or 0)


def test_a_file_that_changes_while_it_streams_is_an_error(moe: Path, tmp_path: Path) -> None:
    path = tmp_path / "changing.gguf"
    path.write_bytes(moe.read_bytes())
    with kamado.load(path, memory=least_bytes(path) + (1 << 20), context=256) as model:
        list(model.generate(TOKENS, temperature=0, max_tokens=2))
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size // 2)
        with pytest.raises(KamadoError) as caught:
            list(model.generate([*reversed(TOKENS)], temperature=0, max_tokens=8))
        assert isinstance(caught.value, (ModelChangedError, kamado.NativeError))
        assert "chang" in str(caught.value)


def test_answers_of_a_form_that_was_not_planned_for_take_slots(tmp_path: Path) -> None:
    """`load()` without constraints=True: the trie's room comes out of the slots, and bits do not change."""
    pytest.importorskip("llguidance")
    path = write_moe(tmp_path, layers=12, hidden=256, experts=32)  # 42 MB of experts
    # With a context of its own the plan streams with nearly all that there is: 4 MiB less than all.
    budget = kamado_plan(path).peak_bytes - (4 << 20)
    with kamado.load(path, context=256, max_rows=64) as model:
        expected = [piece.token for piece in model.generate(TOKENS, temperature=0, max_tokens=12, regex="[ab]+")]
    with kamado.load(path, context=256, max_rows=64, memory=budget) as model:
        before = model.stats
        assert model.plan.is_streamed
        answer = model.generate(TOKENS, temperature=0, max_tokens=12, regex="[ab]+")
        assert [piece.token for piece in answer] == expected
        after = model.stats
        assert before.ledger is not None
        assert after.ledger is not None
        assert after.ledger.slots < before.ledger.slots
        planned = after.planned_by_owner
        assert planned["constraints"] == sizes.constraint_bytes(512)
        assert planned["experts"] <= before.planned_by_owner["experts"] - planned["constraints"] + (8 << 20)
        assert sum(planned.values()) <= budget
        list(model.generate(TOKENS, temperature=0, max_tokens=4, regex="a+"))
        assert model.stats.planned_by_owner == planned  # once for all


def test_a_resident_model_says_what_answers_of_a_form_need(tmp_path: Path) -> None:
    pytest.importorskip("llguidance")
    path = write_moe(tmp_path, layers=2, hidden=256, experts=32)
    budget = kamado_plan(path).peak_bytes
    with kamado.load(path, context=256, max_rows=64, memory=budget) as model:
        assert not model.plan.is_streamed
        with pytest.raises(MemoryBudgetError, match="left beside .*constraints=True, which plans for them"):
            list(model.generate(TOKENS, max_tokens=2, regex="a+"))
        assert len(list(model.generate(TOKENS, temperature=0, max_tokens=2))) == 2  # others go on
    with kamado.load(path, context=256, max_rows=64, memory=budget + (24 << 20)) as model:
        list(model.generate(TOKENS, max_tokens=2, regex="a+"))
        assert sum(model.stats.planned_by_owner.values()) <= budget + (24 << 20)


def kamado_plan(path: Path) -> Plan:
    """The plan with everything resident."""
    checkpoint = open_checkpoint(path)
    return plan(checkpoint, build_program(checkpoint), context=256, max_rows=64, memory=1 << 40)
