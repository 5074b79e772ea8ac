"""Log-probabilities of prompts: right to the bit however they were computed, and nothing is computed twice."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from kamado.engine.measure import prompt_scores
from kamado.errors import ContextOverflowError, UsageError

from .fakes import FOREVER, VOCAB, FakeExecutor, make_model

SHOTS = [(7 * i) % 250 for i in range(300)]  # what all prompts begin with


def prompts(count: int, size: int = 10, shots: list[int] = SHOTS) -> list[list[int]]:
    return [[*shots, *((i + k * k) % 256 for k in range(size)), 255 - i] for i in range(count)]


def expected(tokens: list[int]) -> list[float]:
    """The log-probability of each token but the first, from the fake's own logits."""
    fake = FakeExecutor()
    out = []
    for i in range(1, len(tokens)):
        row = fake.hashed(tokens[:i]).astype(np.float64)
        out.append(row[tokens[i]] - np.log(np.exp(row).sum()))
    return out


def model_of(*, encodes: bool = False, **plan):
    executor = FakeExecutor(kv_tokens=8192, vocab_size=VOCAB, encodes=encodes)
    return make_model(executor, **{"context": 1024, "kv_tokens": 8192, **plan}), executor


@pytest.mark.parametrize("encodes", [False, True])
def test_many_prompts_compute_what_they_share_once(encodes: bool) -> None:
    model, executor = model_of(encodes=encodes)
    with model:
        asked = prompts(12)
        found = sorted(model.score_prompts(asked, 2))
        assert [one.number for one in found] == list(range(12))
        for one, tokens in zip(found, asked, strict=True):
            values = [lp.logprob for lp in one.tokens]
            assert np.isnan(values[0])
            np.testing.assert_allclose(values[1:], expected(tokens), rtol=1e-5)
            assert [lp.token for lp in one.tokens] == tokens
            assert all(len(lp.top) == 2 and lp.top[0][2] >= lp.top[1][2] for lp in one.tokens[1:])
        # 300 shots once (the row of the last shot scores each prompt's first own token), 10 more rows a prompt.
        assert executor.num_rows == len(SHOTS) - 1 + 12 * 11
        # Together: with 16 rows of logits a step, not a step a prompt.
        num_alone = -(-(len(SHOTS) - 1) // 16)
        assert len(executor.steps) == num_alone + -(-12 * 11 // 16)
        assert sum(len(tokens) - 1 for tokens in asked) - sum(one.num_reused for one in found) == executor.num_rows


@pytest.mark.parametrize("encodes", [False, True])
def test_thousands_of_requests_with_one_beginning(encodes: bool) -> None:
    """One prompt a request: after the first (of an encoded cache: the second), only the ends are computed."""
    model, executor = model_of(encodes=encodes)
    with model:
        reused = []
        for tokens in prompts(40, size=40):
            (one,) = model.score_prompts([tokens])
            reused.append(one.num_reused)
            assert [lp.logprob for lp in one.tokens][1:] == pytest.approx(expected(tokens), rel=1e-5)
        assert reused[0] == 0
        page = len(SHOTS) // 128 * 128 if encodes else len(SHOTS) - 1
        assert min(reused[1 + encodes :]) >= page
        assert executor.num_rows <= (1 + encodes) * 340 + 39 * (340 - page)
        assert executor.num_used_pages <= executor.max_pages
        assert max(len(step) for step in executor.steps) == 1


def test_the_same_bits_alone_together_and_again() -> None:
    model, _ = model_of()
    with model:
        asked = prompts(5)
        alone = [model_of()[0] for _ in asked]
        values = []
        for one, tokens in zip(alone, asked, strict=True):
            with one:
                values.append([lp.logprob for lp in one.prompt_logprobs(tokens, 1)][1:])
        for _ in range(2):
            together = sorted(model.score_prompts(asked, 1))
            assert [[lp.logprob for lp in one.tokens][1:] for one in together] == values
        assert all(one.num_reused == len(tokens) - 1 for one, tokens in zip(together, asked, strict=True))


def test_nothing_is_shared_between_owners() -> None:
    model, executor = model_of()
    with model:
        for owner in ("a", "b", "a", ""):
            before = executor.num_rows
            (one,) = model.score_prompts(prompts(1), owner=owner)
            is_first = owner != "a" or before == 0
            assert (one.num_reused == 0) == is_first
            assert (executor.num_rows > before) == is_first
        # Nor what scoring left in the cache, by an answer to the same prompt.
        for owner, num_reused in (("c", 0), ("a", len(prompts(1)[0]) - 1)):
            generation = model.generate(prompts(1)[0], max_tokens=1, owner=owner)
            list(generation)
            assert generation.usage.num_reused_tokens == num_reused


def test_prompts_that_share_nothing_and_odd_ones() -> None:
    model, executor = model_of()
    with model:
        asked = [[1], [2, 3], [2, 3], *prompts(3, shots=[9] * 40), *prompts(2, shots=[8] * 70), [9] * 41]
        found = sorted(model.score_prompts(asked))
        for one, tokens in zip(found, asked, strict=True):
            assert [lp.logprob for lp in one.tokens][1:] == pytest.approx(expected(tokens), rel=1e-5)
        assert executor.num_rows <= sum(len(tokens) - 1 for tokens in asked)
        assert list(model.score_prompts([])) == []


def test_with_little_room_they_take_turns() -> None:
    model, executor = model_of(kv_tokens=1024, max_sequences=3)
    with model:
        asked = prompts(6, size=200)
        found = sorted(model.score_prompts(asked))
        for one, tokens in zip(found, asked, strict=True):
            assert [lp.logprob for lp in one.tokens][1:] == pytest.approx(expected(tokens), rel=1e-5)
        assert len(executor.sequences) <= 3


def test_an_answer_goes_on_between_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_scores, "_JOB_ROWS", 64)
    model, executor = model_of()
    with model:
        answer = model.generate([1, 2, 3], max_tokens=30, temperature=0, **FOREVER)
        next(answer)
        done = threading.Event()
        found: list[object] = []

        def score() -> None:
            found.extend(model.score_prompts(prompts(8, size=60)))
            done.set()

        thread = threading.Thread(target=score)
        thread.start()
        list(answer)
        assert done.wait(30)
        thread.join()
        assert len(found) == 8
        kinds = [step == [(step[0][0], 1)] and step[0][0] == executor.steps[0][0][0] for step in executor.steps]
        first, last = kinds.index(False), len(kinds) - 1 - kinds[::-1].index(False)
        assert any(kinds[first:last]), "the answer waited for all prompts"


def test_a_job_that_was_aborted_begins_anew() -> None:
    model, executor = model_of()
    with model:
        executor.hold.clear()
        executor.num_allowed = 3
        found: list[object] = []
        thread = threading.Thread(target=lambda: found.extend(sorted(model.score_prompts(prompts(3)))))
        thread.start()
        assert executor.entered.wait(10)
        executor.cancel()
        executor.hold.set()
        thread.join(30)
        assert len(found) == 3
        for one, tokens in zip(found, prompts(3), strict=True):
            assert [lp.logprob for lp in one.tokens][1:] == pytest.approx(expected(tokens), rel=1e-5)  # type: ignore[attr-defined]


def test_what_is_wrong_is_said_at_once() -> None:
    model, executor = model_of()
    with model:
        with pytest.raises(UsageError, match="empty"):
            model.score_prompts([[1, 2], []])
        with pytest.raises(ContextOverflowError):
            model.score_prompts([[1] * 1025])
        with pytest.raises(UsageError, match="top"):
            model.score_prompts([[1]], 1000)
        assert not executor.steps
