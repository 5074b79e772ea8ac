"""Conversations with a program that keeps a record, as people have them: asked again, edited, stopped, left, several at
once, gone on with after a restart. Each answer is that of a model without a past, to the last bit."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from kamado import program as p
from kamado.engine.cache.prefix_store import PrefixStore
from kamado.engine.generation import Generation
from kamado.engine.load import PREFIX_STORE_BYTES, prefix_store_bytes
from kamado.engine.model import Model
from kamado.engine.piece import Piece
from kamado.program.state import is_by_position
from kamado.serve.metrics import Registry
from kamado.serve.models.model_stats import register_model_stats

from .fakes import FOREVER
from .state_programs import PROGRAMS, answer, state_model
from .test_scheduler import wait_for

Talk = list[dict[str, str]]

SYSTEM = {"role": "system", "content": "You speak of rivers and of nothing else. " * 4}
DEEDS = ("goes on", "again", "edited", "new", "stopped", "left in the prompt", "left", "together")
CODED = [(4, 4)]
DRAWN = {"max_tokens": 24, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "logprobs": 2}


def question(rng: random.Random) -> dict[str, str]:
    return {"role": "user", "content": "".join(rng.choices("abcdefgh \n", k=rng.choice((3, 30, 300))))}


class Life:
    """What is asked of a model, drawn at random, and what it answered."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.talks: list[Talk] = [[SYSTEM]]
        self.answers: list[tuple[list[int], dict, list[Piece]]] = []
        self.num_asked = 0

    def ask(self, model: Model, talk: Talk, **more) -> tuple[Generation, list[int], dict]:
        self.num_asked += 1
        options = {**DRAWN, **FOREVER, "seed": self.num_asked, **more}
        return model.chat(talk, **options), model.encode_chat(talk), options

    def hear(self, talk: Talk, asked: tuple[Generation, list[int], dict], most: int = 1000) -> None:
        """Takes so many pieces and notes the answer, which becomes part of the talk."""
        generation, prompt, options = asked
        pieces = [piece for piece, _ in zip(generation, range(most), strict=False)]
        generation.close()
        self.answers.append((prompt, options, pieces))
        talk.append({"role": "assistant", "content": "".join(piece.text for piece in pieces)})

    def do(self, model: Model, deed: str) -> None:
        rng = self.rng
        talk = rng.choice(self.talks)
        if deed == "new" or len(talk) < 3:
            talk = [SYSTEM]
            self.talks.append(talk)
        elif deed == "again":
            del talk[-1]
            return self.hear(talk, self.ask(model, talk))
        elif deed == "edited":
            del talk[rng.randrange(1, len(talk), 2) :]
        talk.append(question(rng))
        if deed == "together":
            others = [[SYSTEM, question(rng)] for _ in range(2)]
            self.talks += others
            asked = [self.ask(model, one) for one in (talk, *others)]
            for one, question_asked in zip((talk, *others), asked, strict=True):
                self.hear(one, question_asked)
            return None
        if deed == "left in the prompt":
            self.ask(model, [*talk[:-1], {"role": "user", "content": "Read this. " * 60}])[0].close()
        more = {"stop": rng.choice("etaoin")} if deed == "stopped" else {}
        return self.hear(talk, self.ask(model, talk, **more), 3 if deed == "left" else 1000)

    def check(self, program: p.Program, **settings) -> None:
        for prompt, options, pieces in self.answers:
            with state_model(program, **settings) as model:
                fresh = model.generate(prompt, **options)
                assert answer(piece for piece, _ in zip(fresh, pieces, strict=False)) == answer(pieces)
                fresh.close()


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
    num_reused = 0
    for _ in range(2):
        with state_model(program, max_rows=48, store=PrefixStore(tmp_path), **settings) as model:
            for deed in life.rng.sample(DEEDS, len(DEEDS)):
                life.do(model, deed)
            wait_for(lambda model=model: model.stats.requests["live"] == 0)
            stats = model.stats
            num_reused += stats.tokens["reused"]
            assert stats.kv_pages["lost"] == 0
            assert stats.records["used"] + stats.records["free"] == sum(model.stats.records.values())
    assert num_reused > 500
    life.check(program, **{name: settings[name] for name in settings if name == "kv_bits"})


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
