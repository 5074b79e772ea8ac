"""Batching, fairness, cancellation, errors and shutdown with a scripted executor."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable

import pytest

from kamado.engine.generation import Generation
from kamado.engine.model import Model
from kamado.engine.schedule.request import MAX_QUEUED_PIECES
from kamado.errors import ClosedError, NativeError

from .fakes import FOREVER, FakeExecutor, make_model


def wait_for(condition: Callable[[], bool]) -> None:
    """Until another thread made it true; a test that waits in vain fails after ten seconds."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.0005)


def executor_of(model: Model) -> FakeExecutor:
    executor = model._executor
    assert isinstance(executor, FakeExecutor)
    return executor


def tokens_of(generation: Generation) -> list[int]:
    return [piece.token for piece in generation]


def hold(model: Model) -> FakeExecutor:
    """Lets no step pass until `hold.set()`, so that requests meet in one step."""
    executor = executor_of(model)
    executor.hold.clear()
    executor.entered.clear()
    return executor


PROMPTS = [[i] * (20 * i + 1) + [7] for i in range(1, 7)]


def test_same_seed_same_tokens_alone_and_in_company() -> None:
    settings = {"temperature": 1.2, "top_k": 0, "top_p": 0.98, "max_tokens": 12}
    alone = []
    for seed, prompt in enumerate(PROMPTS):
        with make_model(max_rows=512) as model:
            alone.append(tokens_of(model.generate(prompt, seed=seed, **settings)))
    with make_model(max_rows=32) as model:
        executor = hold(model)
        answers = [model.generate(prompt, seed=seed, **settings) for seed, prompt in enumerate(PROMPTS)]
        executor.hold.set()
        together = [tokens_of(answer) for answer in answers]
        assert max(len(step) for step in executor.steps) > 3, "they were to meet in a step"
    assert together == alone
    assert len({tuple(a) for a in alone}) == len(alone)


def test_a_given_seed_can_be_had_from_an_answer_without_one() -> None:
    with make_model() as model:
        first = model.generate("hello", max_tokens=8, temperature=1.5)
        again = model.generate("hello", max_tokens=8, temperature=1.5, seed=first.seed)
        assert tokens_of(first) == tokens_of(again)


def test_prefill_is_cut_into_chunks_of_max_rows() -> None:
    with make_model(max_rows=64) as model:
        tokens_of(model.generate([1] * 150, max_tokens=1))
        assert [rows for ((_, rows),) in executor_of(model).steps] == [64, 64, 22]


def test_a_short_prompt_is_not_kept_waiting_by_a_long_one() -> None:
    with make_model(max_rows=64, context=4096) as model:
        executor = hold(model)
        long = model.generate([1] * 3000, max_tokens=1)
        wait_for(executor.entered.is_set)
        short = model.generate([2] * 40, max_tokens=1)
        executor.hold.set()
        tokens_of(long)
        tokens_of(short)
        assert short._request.first_at < long._request.first_at
        steps_of_short = [i for i, step in enumerate(executor.steps) if len(step) == 2]
        assert steps_of_short == [1, 2], "40 rows next to 32 of the long one: two steps"


def test_decoding_goes_on_while_a_prompt_is_computed() -> None:
    with make_model(max_rows=32, context=2048) as model:
        executor = hold(model)
        executor.num_allowed = 1
        talking = model.generate([1, 2], max_tokens=40, **FOREVER)
        next(talking)
        prompt = model.generate([3] * 640, max_tokens=1)
        executor.hold.set()
        tokens_of(prompt)
        tokens_of(talking)
        mixed = [step for step in executor.steps if len(step) == 2]
        assert len(mixed) >= 15
        assert all(sorted(rows for _, rows in step)[0] == 1 for step in mixed)


def test_interactive_before_background() -> None:
    with make_model(max_rows=32, context=1024) as model:
        executor = hold(model)
        first = model.generate([9, 9], max_tokens=1)
        wait_for(executor.entered.is_set)
        background = model.generate([1] * 200, max_tokens=1, background=True)
        interactive = model.generate([2] * 200, max_tokens=1)
        executor.hold.set()
        for generation in (first, interactive, background):
            tokens_of(generation)
        both = [step for step in executor.steps if len(step) == 2]
        assert len(both) <= 1, "the background prompt gets only what the other leaves in its last step"
        assert executor.steps[1][0][1] == 32


def test_more_conversations_than_logit_rows_take_turns() -> None:
    with make_model(max_logit_rows=3) as model:
        executor = hold(model)
        answers = [model.generate([i, 0], max_tokens=40, **FOREVER) for i in range(8)]
        executor.hold.set()
        assert [len(tokens_of(a)) for a in answers] == [40] * 8
        counts: dict[int, int] = {}
        started = {sequence: i for i, step in reversed(list(enumerate(executor.steps))) for sequence, _ in step}
        first = max(started.values()) + 8  # by then all decode and have taken a turn
        for step in executor.steps[first : first + 16]:
            assert len(step) == 3
            for sequence, _ in step:
                counts[sequence] = counts.get(sequence, 0) + 1
        assert sorted(counts.values()) == [6] * 8, "48 rows"


def test_cancel_in_the_middle_of_a_prompt() -> None:
    with make_model(max_rows=16) as model:
        executor = hold(model)
        generation = model.generate([1] * 400, max_tokens=5)
        wait_for(executor.entered.is_set)
        generation.close()
        wait_for(lambda: executor.num_cancels == 1)
        assert list(generation) == []
        executor.hold.set()
        assert model.stats.requests["live"] == 0
        assert len(tokens_of(model.generate([2, 2], max_tokens=3, **FOREVER))) == 3


def test_cancel_while_decoding_leaves_a_prefix_for_reuse() -> None:
    with make_model() as model:
        generation = model.generate([1] * 50, **FOREVER)
        for _ in range(5):
            next(generation)
        del generation  # dropping the iterator is enough
        wait_for(lambda: model.stats.requests["live"] == 0)
        again = model.generate([1] * 50 + [3], max_tokens=1)
        tokens_of(again)
        assert again.usage.num_reused_tokens == 50


def test_the_others_do_an_aborted_step_again() -> None:
    settings = {"max_tokens": 20, "temperature": 0, **FOREVER}
    with make_model() as model:
        alone = tokens_of(model.generate([1] * 30, **settings))
    with make_model() as model:
        executor = hold(model)
        executor.num_allowed = 1
        stays = model.generate([1] * 30, **settings)
        first = next(stays).token
        leaves = model.generate([2] * 30, **settings)
        executor.num_allowed = 1  # the step that began without the new one
        wait_for(lambda: len(model._scheduler._running) == 2)
        leaves.close()
        wait_for(lambda: executor.num_cancels == 1)
        executor.hold.set()
        assert [first, *tokens_of(stays)] == alone
        assert model.stats.num_aborted_steps >= 1


def test_ctrl_c_in_the_consumer_frees_the_executor() -> None:
    with make_model() as model:
        executor = hold(model)
        generation = model.generate([1] * 30)
        wait_for(executor.entered.is_set)
        interrupt = threading.Timer(0.02, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
        interrupt.start()
        with pytest.raises(KeyboardInterrupt):
            next(generation)
        interrupt.join()
        wait_for(lambda: model._scheduler._live == [])
        assert executor.num_cancels == 1
        assert executor.steps == []
        assert list(generation) == []


def test_a_slow_reader_pauses_its_own_answer_only() -> None:
    with make_model(context=1024) as model:
        executor = executor_of(model)
        slow = model.generate([1, 2], max_tokens=500, **FOREVER)
        wait_for(lambda: slow._request.is_paused)
        assert slow._request.output.qsize() == MAX_QUEUED_PIECES
        steps = len(executor.steps)
        assert len(tokens_of(model.generate([3, 4], max_tokens=100, **FOREVER))) == 100
        assert len(executor.steps) == steps + 100, "no step was done for the paused one"
        assert len(tokens_of(slow)) == 500


def test_an_error_in_a_step_goes_to_the_request_that_causes_it() -> None:
    with make_model() as model:
        executor = hold(model)
        executor.fail_on = lambda tokens: RuntimeError("bad row") if 13 in tokens else None
        block = model.generate([9] * 2, max_tokens=1)
        wait_for(executor.entered.is_set)
        good = model.generate([1] * 5, max_tokens=3, temperature=0, logit_bias={13: -100})
        bad = model.generate([13] * 5, max_tokens=3)
        executor.hold.set()
        tokens_of(block)
        assert len(tokens_of(good)) == 3
        with pytest.raises(NativeError, match="RuntimeError: bad row"):
            next(bad)
        assert list(bad) == []


def test_logits_that_are_nan_end_one_answer() -> None:
    executor = FakeExecutor()
    hashed = executor.hashed
    executor.logits_of = lambda tokens: hashed(tokens) * (float("nan") if tokens[0] == 5 else 1.0)
    with make_model(executor) as model:
        bad, good = model.generate([5, 5]), model.generate([6, 6], max_tokens=2, **FOREVER)
        assert len(tokens_of(good)) == 2
        with pytest.raises(NativeError, match="damaged"):
            next(bad)


def test_close_while_answers_run_ends_them_with_closed_error() -> None:
    model = make_model()
    executor = hold(model)
    generations = [model.generate([i] * 30) for i in range(3)]
    wait_for(executor.entered.is_set)
    model.close()
    for generation in generations:
        with pytest.raises(ClosedError, match="the model was closed"):
            next(generation)
    assert executor.is_closed
    assert not model._scheduler._thread.is_alive()
    with pytest.raises(ClosedError):
        model.generate("more")
    with pytest.raises(ClosedError):
        model.score("more")
    model.close()


def test_a_model_that_is_dropped_closes_itself_but_not_under_an_answer() -> None:
    model = make_model()
    executor = executor_of(model)
    generation = model.generate([1, 2], max_tokens=3, **FOREVER)
    del model
    assert len(tokens_of(generation)) == 3
    del generation
    wait_for(lambda: executor.is_closed)


def test_n_answers_compute_their_prompt_once() -> None:
    with make_model(max_rows=64, context=2048) as model:
        executor = hold(model)
        prompt = list(range(200)) * 3
        answers = [model.generate(prompt, seed=i, max_tokens=4, temperature=1.0) for i in range(4)]
        executor.hold.set()
        results = [tokens_of(answer) for answer in answers]
        decoded = sum(len(result) - 1 for result in results)
        assert executor.num_rows == 600 + 3 + decoded
    with make_model() as model:
        alone = [tokens_of(model.generate(prompt, seed=i, max_tokens=4, temperature=1.0)) for i in range(4)]
    assert results == alone


@pytest.mark.parametrize("keeps_record", [False, True])
def test_requests_that_do_not_fit_together_are_preempted_and_come_out_the_same(keeps_record: bool) -> None:
    settings = {"temperature": 1.0, "max_tokens": 300, **FOREVER}
    prompts = [[i] * 100 for i in range(4)]
    alone = []
    for i, prompt in enumerate(prompts):
        with make_model(context=512) as model:
            alone.append(tokens_of(model.generate(prompt, seed=i, **settings)))
    executor = FakeExecutor(keeps_record=keeps_record)
    with make_model(executor, context=512) as model:  # four pages for all: one answer takes all of them
        answers = [model.generate(prompt, seed=i, **settings) for i, prompt in enumerate(prompts)]
        results: list[list[int]] = [[] for _ in answers]

        def consume(i: int) -> None:
            results[i] = tokens_of(answers[i])

        threads = [threading.Thread(target=consume, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == alone
        assert model.stats.num_preempted > 0


def test_a_long_request_at_the_head_is_not_starved_by_short_ones() -> None:
    with make_model(context=512) as model:
        executor = hold(model)
        first = model.generate([1] * 300, max_tokens=50, **FOREVER)
        wait_for(executor.entered.is_set)
        long = model.generate([2] * 400, max_tokens=1)
        short = model.generate([3] * 10, max_tokens=1)
        executor.hold.set()
        tokens_of(first)
        tokens_of(long)
        tokens_of(short)
        assert long._request.started_at <= short._request.started_at


def test_a_job_waits_for_pages_that_answers_hold() -> None:
    with make_model(context=512) as model:
        answer = model.generate([1] * 400, max_tokens=20, **FOREVER)
        next(answer)
        assert len(model.score([2] * 300)) == 299
        tokens_of(answer)


def test_many_threads_at_once() -> None:
    settings = {"max_tokens": 15, "temperature": 1.0}
    with make_model() as model:
        expected = [tokens_of(model.generate([i % 5, i], seed=i, **settings)) for i in range(24)]
    with make_model(context=512, max_sequences=6, max_rows=8) as model:
        results: dict[int, list[int]] = {}

        def consume(i: int) -> None:
            if i % 4 == 3:  # some leave early
                generation = model.generate([i, i], seed=i, **settings)
                next(generation)
                generation.close()
            results[i] = tokens_of(model.generate([i % 5, i], seed=i, **settings))

        threads = [threading.Thread(target=consume, args=(i,)) for i in range(24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [results[i] for i in range(24)] == expected
        assert model.stats.requests["live"] == model.stats.requests["waiting"] == 0


def test_a_piece_is_announced_before_the_next_step_ends() -> None:
    with make_model() as model:
        executor = hold(model)
        generation = model.generate([1, 2, 3], max_tokens=3, **FOREVER)
        told: list[int] = []
        generation.on_news(lambda: told.append(executor.num_rows))
        for step in range(1, 3):
            executor.num_allowed = 1
            wait_for(lambda step=step: len(executor.steps) == step)  # the next one cannot pass
            wait_for(lambda step=step: len(told) == step)
            assert generation.is_ready
            next(generation)
        executor.hold.set()
        assert len(tokens_of(generation)) == 1
