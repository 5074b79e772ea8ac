"""Every kind of state behind the engine: no bit of an answer depends on chunks, company, threads, forks or aborts, on
what was given up, or on a restart."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kamado import program as p
from kamado.engine.cache.prefix_store import PrefixStore
from kamado.engine.cache.sequences import Sources
from kamado.engine.model import Model
from kamado.program.state import is_by_position

from .fakes import FOREVER
from .state_programs import PROGRAMS, answer, generate, sources_of, state_model
from .test_scheduler import wait_for

KINDS = list(PROGRAMS)


def prompt(seed: int, length: int) -> list[int]:
    return random.Random(seed).choices(range(250), k=length)


SHARED = prompt(0, 520)
PROMPTS = [SHARED[:300], SHARED + prompt(1, 90), prompt(2, 7), SHARED + prompt(3, 40), SHARED[:400] + prompt(4, 128)]


class Case:
    """One program and what it answers when each prompt is computed at once and alone."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.program: p.Program = PROGRAMS[kind](folder / "weights.bin")
        self.sources: Sources | None = sources_of(self.program)
        self.expected = []
        for i, tokens in enumerate(PROMPTS):
            with state_model(self.program) as model:
                self.expected.append(answer(generate(model, tokens, i, sources=self.sources)))

    def ask(self, model: Model, i: int, **settings):
        return generate(model, PROMPTS[i], i, sources=self.sources, **settings)

    def check(self, model: Model, order: Iterator[int] | range | list[int]) -> list[int]:
        """One after another; the tokens that each of them reused."""
        reused = []
        for i in order:
            generation = self.ask(model, i)
            assert answer(generation) == self.expected[i], PROMPTS[i][-3:]
            reused.append(generation.usage.num_reused_tokens)
        return reused


@pytest.fixture(scope="module", params=KINDS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(request.param, tmp_path_factory.mktemp(request.param))


def test_chunks_and_threads(case: Case) -> None:
    for settings in ({"max_rows": 512, "threads": 2}, {"max_rows": 37}, {"max_rows": 3, "threads": 2}):
        for i in range(len(PROMPTS)):
            with state_model(case.program, **settings) as model:
                case.check(model, [i])


@pytest.mark.parametrize("kv", ["f16", "f32"])
def test_company(case: Case, kv: str) -> None:
    order = range(len(PROMPTS))
    with state_model(case.program, kv=kv) as model:
        alone = [answer(case.ask(model, i)) for i in order]
    with state_model(case.program, kv=kv, threads=2, max_rows=128) as model:
        running = [case.ask(model, i) for i in order]
        assert [answer(generation) for generation in running] == alone
    if kv == "f16":
        assert alone == case.expected


def test_forks_and_what_is_reused(case: Case) -> None:
    with state_model(case.program) as model:
        reused = case.check(model, [0, 1, 2, 3, 4, 1, 3, 0, 4])
        again = case.check(model, range(len(PROMPTS)))
    assert reused[:3] == [0, 299, 0] if case.program.has_record else [0, 300, 0]
    assert reused[5] >= 512, "the same prompt again"
    assert all(reused >= len(tokens) // 2 for reused, tokens in zip(again, PROMPTS, strict=True) if len(tokens) > 32)


def test_aborted_steps(case: Case) -> None:
    """A step that was aborted, because others left or for nothing, changes nothing."""
    with state_model(case.program, max_rows=64) as model:
        for seed in range(4):
            model._executor.cancel()  # the next step
            stays = case.ask(model, 1)
            leaves = generate(model, prompt(50 + seed, 600), seed, sources=case.sources)
            if seed % 2:
                next(leaves)
            leaves.close()
            pieces = []
            for piece in stays:
                pieces.append(piece)
                model._executor.cancel()
            assert answer(iter(pieces)) == case.expected[1]
        assert model.stats.num_aborted_steps >= 4
        case.check(model, range(len(PROMPTS)))


def test_pages_that_run_out(case: Case) -> None:
    """Requests lose their pages to older ones and are computed again."""
    settings = {"sources": case.sources, "max_tokens": 50}
    prompts = [prompt(70 + i, 100) for i in range(4)]
    with state_model(case.program) as model:
        alone = [answer(generate(model, tokens, i, **settings)) for i, tokens in enumerate(prompts)]
    with state_model(case.program, kv_tokens=640, max_rows=128) as model:
        running = [generate(model, tokens, i, **settings) for i, tokens in enumerate(prompts)]
        assert [answer(generation) for generation in running] == alone
        stats = model.stats
        assert stats.num_preempted > 0
        assert (stats.kv_pages["lost"], stats.kv_pages["live"]) == (0, 0)
    with state_model(case.program, kv_tokens=768) as model:
        case.check(model, [4, 3, 2, 1, 0, 1, 4])


def test_beside_encoded_pages(case: Case) -> None:
    """The codes of pages and whatever else is kept have their reuse points in common."""
    bits = [(4, 4) if state.head_dim == 64 else (0, 0) for state in case.program.states if is_by_position(state)]
    order = [0, 1, 2, 3, 4, 1, 3, 0, 4]
    alone = []
    for i in range(len(PROMPTS)):
        with state_model(case.program, kv_bits=bits) as model:
            alone.append(answer(case.ask(model, i)))
    with state_model(case.program, kv_bits=bits, max_rows=48, threads=2, max_sequences=3, reuse_points=3) as model:
        assert not model.can_cut_anywhere
        assert [answer(case.ask(model, i)) for i in order] == [alone[i] for i in order]


def test_sequences_and_marks_that_run_out(case: Case) -> None:
    order = [0, 1, 2, 3, 4, 1, 3, 0, 4]
    with state_model(case.program) as model:
        plenty = case.check(model, order)
    with state_model(case.program, max_sequences=2, reuse_points=0, max_records=4) as model:
        scarce = case.check(model, order)
    assert (sum(scarce) < sum(plenty)) == case.program.has_record, "marks alone go when others are wanted"


def test_a_restart(case: Case, tmp_path: Path) -> None:
    longer = [[*PROMPTS[i], *(token for token, *_ in case.expected[i])] for i in (0, 1)]
    with state_model(case.program) as model:
        expected = [answer(generate(model, tokens, 7, sources=case.sources)) for tokens in longer]
    with state_model(case.program, store=PrefixStore(tmp_path)) as model:
        case.check(model, [0, 1])
    for settings in ({}, {"max_rows": 37, "threads": 2}):
        with state_model(case.program, store=PrefixStore(tmp_path), **settings) as model:
            for tokens, wanted in zip(longer, expected, strict=True):
                generation = generate(model, tokens, 7, sources=case.sources)
                assert answer(generation) == wanted
                assert generation.usage.num_reused_tokens >= len(tokens) - 1
            assert model.stats.prefix_store["num_restored"] >= 1
            case.check(model, range(len(PROMPTS)))


def test_a_long_random_life(case: Case, tmp_path: Path) -> None:
    """Turns, forks, evictions, restores at random: each answer is that of a model without a past."""
    rng = random.Random(3)
    texts, lived = list(PROMPTS), []

    @contextmanager
    def lives() -> Iterator[Model]:
        with state_model(
            case.program, kv_tokens=1024, max_sequences=3, reuse_points=2, max_rows=96, store=PrefixStore(tmp_path)
        ) as model:
            yield model

    for _ in range(2):
        with lives() as model:
            for seed in range(12):
                text = rng.choice(texts)
                tokens = text[: rng.randrange(1, min(len(text), 700) + 1)] + prompt(100 + seed, rng.randrange(1, 60))
                found = answer(generate(model, tokens, seed, sources=case.sources, max_tokens=rng.randrange(1, 20)))
                lived.append((tokens, seed, found))
                texts.append(tokens + [token for token, *_ in found])
    for tokens, seed, found in lived:
        with state_model(case.program) as fresh:
            fresh_answer = answer(generate(fresh, tokens, seed, sources=case.sources, max_tokens=len(found)))
            assert fresh_answer == found


# --- what is special to one of them -----------------------------------------------------------------------------------


def test_another_source_is_another_conversation(tmp_path: Path) -> None:
    program = PROGRAMS["source"](tmp_path / "weights.bin")
    first, second = sources_of(program, 0), sources_of(program, 1)
    with state_model(program) as model:
        answers = {}
        for sources in (first, second, first):
            generation = generate(model, SHARED, 1, sources=sources)
            answers.setdefault(id(sources), []).append(answer(generation))
            reused = generation.usage.num_reused_tokens
        assert reused == len(SHARED) - 1
        assert answers[id(first)][0] == answers[id(first)][1] != answers[id(second)][0]
        with pytest.raises(Exception, match="source"):
            answer(generate(model, SHARED, 1))


def test_a_chat_is_marked_where_its_turns_begin(tmp_path: Path) -> None:
    program = PROGRAMS["decay"](tmp_path / "weights.bin")
    system = {"role": "system", "content": "Be brief. " * 30}

    def ask(model: Model, text: str):
        generation = model.chat([system, {"role": "user", "content": text}], max_tokens=5, seed=1, **FOREVER)
        return [piece.token for piece in generation], generation.usage.num_reused_tokens

    with state_model(program) as model:
        first, _ = ask(model, "Who?")
        second, reused = ask(model, "What do you think of all this, and of everything else? " * 4)
        assert reused == model._prompts.encoder.encode_turns([system, {"role": "user", "content": "a"}]).starts[0]
        assert not model.can_cut_anywhere
        wait_for(lambda: model.stats.requests["live"] == 0)
        assert model.stats.bytes_by_owner["records"] > 0
    with state_model(program) as model:
        assert ask(model, "What do you think of all this, and of everything else? " * 4)[0] == second
    with state_model(program) as model:
        assert ask(model, "Who?")[0] == first


def test_programs_without_a_record_can_be_cut_anywhere(tmp_path: Path) -> None:
    for kind in ("widths", "earlier", "source"):
        with state_model(PROGRAMS[kind](tmp_path / kind)) as model:
            assert model.can_cut_anywhere
