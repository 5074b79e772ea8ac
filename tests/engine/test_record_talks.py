"""Conversations with a program that keeps a record, as people have them: asked again, edited, stopped, left, several at
once, gone on with after a restart. Each answer is that of a model without a past, to the last bit. And what is told of
records and reuse points."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from kamado import program as p
from kamado.engine.cache.prefix_store import PrefixStore
from kamado.engine.load import PREFIX_STORE_BYTES, prefix_store_bytes
from kamado.program.state import is_by_position
from kamado.serve.metrics import Registry
from kamado.serve.models.model_stats import register_model_stats

from .fakes import FOREVER
from .lives import Life
from .state_programs import PROGRAMS, state_model
from .test_scheduler import wait_for

CODED = [(4, 4)]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("decay", {}),
        ("decay", {"max_sequences": 3, "reuse_points": 0, "max_records": 6, "kv_tokens": 2048}),
        ("decay", {"kv_bits": CODED, "max_sequences": 3, "reuse_points": 2}),
        ("sums", {}),
        ("sums", {"max_sequences": 3, "reuse_points": 0, "max_records": 6, "kv_tokens": 2048}),
    ],
    ids=["plenty", "scarce", "coded", "no attention", "no attention, scarce"],
)
def test_answers_do_not_depend_on_what_was_asked_before(kind, settings, seed, tmp_path: Path) -> None:
    program = PROGRAMS[kind](tmp_path / "weights.bin")
    life = Life(seed)
    lived = partial(state_model, program, max_rows=48, **settings)
    assert sum(life.live(lambda: lived(store=PrefixStore(tmp_path))) for _ in range(2)) > 500
    life.check(partial(state_model, program, **{name: settings[name] for name in settings if name == "kv_bits"}))


@pytest.fixture
def decay(tmp_path: Path) -> p.Program:
    return PROGRAMS["decay"](tmp_path / "weights.bin")


def test_what_was_used_longest_ago_is_given_up_first_and_told(decay: p.Program) -> None:
    """Four conversations of three points each, of which the last is their end, and eight records."""
    with state_model(decay, max_sequences=4, reuse_points=0, max_records=8) as model:
        lengths = []
        for i in range(4):
            talk = [{"role": "user", "content": f"{i} " * 60}]
            generation = model.chat(talk, max_tokens=70, seed=i, **FOREVER)
            assert len(list(generation)) == 70
            prompt = model.encode_chat(talk)
            lengths.append([model._prompts.encoder.encode_turns(talk).answer_at, len(prompt) + 64, len(prompt) + 69])
        wait_for(lambda: model.stats.requests["live"] == 0)

        def points(sequences) -> list[list[int]]:
            kept = sorted(sequences._sequences, key=lambda sequence: sequence.last_used)
            return [model._executor.reuse_points(sequence.id) for sequence in kept]

        assert model._scheduler.call(points) == [lengths[0][2:], lengths[1][2:], *lengths[2:]]
        stats = model.stats
        assert stats.reuse_points == {"held": 8, "given_up": 4}
        assert stats.records == {"used": 8, "free": 0}
        metrics = Registry()
        register_model_stats(metrics, lambda: {"tiny": stats.to_dict()})
        text = metrics.text()
        for line in (
            'kamado_records{model="tiny",state="used"} 8',
            'kamado_records{model="tiny",state="free"} 0',
            'kamado_reuse_points{model="tiny",state="held"} 8',
            'kamado_reuse_points{model="tiny",state="given_up"} 4',
        ):
            assert line in text


def test_a_program_without_records_tells_of_none(tmp_path: Path) -> None:
    with state_model(PROGRAMS["widths"](tmp_path / "weights.bin")) as model:
        assert model.stats.records == {}
        assert model.stats.reuse_points == {"held": 0, "given_up": 0}


def test_a_store_has_room_for_a_record_on_its_way_in_and_one_on_its_way_out(decay: p.Program, tmp_path: Path) -> None:
    assert prefix_store_bytes(decay) == PREFIX_STORE_BYTES + 2 * 4 * 64
    widths = PROGRAMS["widths"](tmp_path / "widths.bin")
    assert [state for state in widths.states if not is_by_position(state)] == []
    assert prefix_store_bytes(widths) == PREFIX_STORE_BYTES
