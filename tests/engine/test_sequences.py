"""Prefix reuse, and pages that are reserved before they are needed, against an executor that counts them."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kamado.engine.cache.sequences import PAGE_TOKENS, SequenceCache, Sources, common_prefix

from .fakes import FakeExecutor


def append(cache: SequenceCache, sequence, tokens: list[int]) -> bool:
    if not cache.reserve(sequence, sequence.length + len(tokens)):
        return False
    cache.executor.step(
        np.array([sequence.id], np.int32),
        np.array([len(tokens)], np.int32),
        np.array(tokens, np.int32),
        np.array([], np.int32),
    )
    cache.extend(sequence, tokens)
    return True


def make(pages: int = 8, sequences: int = 4) -> SequenceCache:
    executor = FakeExecutor(kv_tokens=pages * PAGE_TOKENS, max_sequences=sequences)
    return SequenceCache(executor, max_sequences=sequences)


@given(st.lists(st.integers(0, 2), max_size=40), st.lists(st.integers(0, 2), max_size=40), st.integers(0, 40))
def test_common_prefix(a: list[int], b: list[int], shared: int) -> None:
    b = a[:shared] + b
    expected = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    assert common_prefix(a, b) == expected


def test_the_next_turn_takes_the_sequence_over() -> None:
    cache = make()
    first = cache.acquire([1, 2, 3])
    append(cache, first, [1, 2, 3, 4, 5])
    cache.release(first)
    second = cache.acquire([1, 2, 3, 4, 9])
    assert second is first
    assert second.tokens == [1, 2, 3, 4]
    assert cache.executor.length(second.id) == 4


def test_one_token_is_always_left_to_compute() -> None:
    cache = make()
    first = cache.acquire([1, 2, 3])
    append(cache, first, [1, 2, 3])
    cache.release(first)
    assert cache.acquire([1, 2, 3]).tokens == [1, 2]


def test_another_conversation_is_forked_and_shares_pages() -> None:
    cache = make()
    system = list(range(200))
    first = cache.acquire([*system, 7])
    append(cache, first, system + [7] * 150)
    cache.release(first)
    second = cache.acquire([*system, 8])
    assert second is not first
    assert second.tokens == system
    assert first.tokens == system + [7] * 150, "the first one is kept"
    assert cache.executor.num_used_pages == 4  # 3 + a copy of the partial one


def test_a_live_sequence_is_never_taken() -> None:
    cache = make()
    first = cache.acquire([1, 2, 3])
    append(cache, first, [1, 2, 3])
    second = cache.acquire([1, 2, 3])
    assert second.id != first.id
    assert second.tokens == [1, 2]


def test_the_oldest_idle_sequence_makes_room() -> None:
    cache = make(pages=3)
    for token in (1, 2, 3):
        sequence = cache.acquire([token, 0])
        assert append(cache, sequence, [token] * PAGE_TOKENS)
        cache.release(sequence)
    sequence = cache.acquire([2] * 50 + [9])  # 78 of its tokens are lost: less than a page
    assert sequence.length == 50
    other = cache.acquire([4, 4])
    assert append(cache, other, [4])
    assert cache.num_reusable([1, 1, 1]) == 0, "the oldest was dropped"
    assert cache.num_reusable([3, 3, 3]) == 2


def test_no_room_when_all_pages_are_live() -> None:
    cache = make(pages=1)
    first = cache.acquire([1, 2])
    assert append(cache, first, [1])
    second = cache.acquire([5, 6])
    assert not append(cache, second, [5])
    cache.release(first)
    assert append(cache, second, [5])


def test_pages_of_a_step_that_did_not_run_make_room() -> None:
    """A prompt that is cancelled has reserved pages which it never filled: they are nobody's once it is idle."""
    cache = make(pages=6)
    cancelled = cache.acquire([1, 0])
    assert append(cache, cancelled, [1] * PAGE_TOKENS)
    assert cache.reserve(cancelled, 5 * PAGE_TOKENS)
    cache.release(cancelled)
    assert cache.executor.num_free_pages == 5
    other = cache.acquire([2, 0])
    assert append(cache, other, [2] * 6 * PAGE_TOKENS)
    assert cache.num_sequences == 1


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_no_step_of_a_random_life_finds_the_cache_full(seed: int) -> None:
    rng = random.Random(seed)
    cache = make(pages=6, sequences=4)
    live = []
    for _ in range(60):
        if rng.random() < 0.4 and cache.can_admit():
            tokens = [rng.randrange(2)] * rng.randrange(1, 400) + [rng.randrange(9)]
            sequence = cache.acquire(tokens)
            assert sequence.tokens == tokens[: sequence.length]
            live.append(sequence)
        elif live:
            sequence = rng.choice(live)
            if rng.random() < 0.3:
                live.remove(sequence)
                cache.release(sequence)
            elif rng.random() < 0.2:
                cache.reserve(sequence, sequence.length + rng.randrange(1, 500))  # its step is aborted
            else:
                append(cache, sequence, [rng.randrange(2)] * rng.randrange(1, 200))
        held = cache.executor.sequences
        assert all(held[s.id][0] == s.tokens for s in live)
        pages = cache.count_pages()
        assert pages["lost"] == 0
        assert pages["live"] + pages["kept"] == cache.executor.num_used_pages
    for sequence in live:
        cache.release(sequence)
    last = cache.acquire([77, 77])
    num_pages = cache.executor.num_pages
    assert cache.reserve(last, num_pages * PAGE_TOKENS), "all idle ones give way"
    cache.drop(last)
    assert cache.executor.num_free_pages == num_pages
    assert not cache.executor.sequences


@pytest.mark.parametrize(("length", "num_used"), [(PAGE_TOKENS - 1, 4), (PAGE_TOKENS, 3), (PAGE_TOKENS + 1, 3)])
def test_forks_write_to_their_own_pages(length: int, num_used: int) -> None:
    cache = make()
    first = cache.acquire([1] * (length + 1))
    append(cache, first, [1] * length)
    second = cache.acquire([1] * length + [2])
    append(cache, second, [2] * 3)
    append(cache, first, [1] * 3)
    assert cache.executor.num_used_pages == num_used


def test_sequences_are_shared_by_those_who_read_the_same_source() -> None:
    cache = make()
    spoken = [Sources(((0, np.full((3, 4), i, np.float32), np.zeros((3, 2), np.float32)),)) for i in (1, 1, 2)]
    owners = [sources.owner("alice") for sources in spoken]
    assert owners[0] == owners[1] != owners[2]
    first = cache.acquire([1, 2, 3], owners[0], spoken[0])
    append(cache, first, [1, 2, 3])
    cache.release(first)
    assert cache.acquire([1, 2, 9], owners[1], spoken[1]) is first, "its source was filled once and stays"
    other = cache.acquire([1, 2, 9], owners[2], spoken[2])
    assert other.tokens == []
    assert cache.executor.sources[other.id] != cache.executor.sources[first.id]


def test_a_source_that_is_refused_leaves_no_sequence() -> None:
    cache = make()
    wrong = Sources(((0, np.zeros((1, 1)), np.zeros((1, 1))),))  # double precision
    with pytest.raises(AssertionError):
        cache.acquire([1, 2], "", wrong)
    assert cache.num_sequences == 0
