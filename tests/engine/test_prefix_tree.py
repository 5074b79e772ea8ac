"""Reuse by prefix: the tree against a naive search, reuse points of an encoded cache, and who may reuse what."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kamado.engine.cache.prefix_tree import PrefixTree, common_prefix
from kamado.engine.cache.sequences import PAGE_TOKENS, SequenceCache
from kamado.engine.model import Model

from .fakes import FOREVER, FakeExecutor, make_model
from .test_scheduler import hold, tokens_of, wait_for
from .test_sequences import append


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_tree_finds_what_a_naive_search_finds(seed: int) -> None:
    rng = random.Random(seed)
    tree = PrefixTree()
    holders = []
    trunk = [rng.randrange(3) for _ in range(5 * PAGE_TOKENS)]

    def branch() -> list[int]:
        cut = rng.randrange(len(trunk))
        return trunk[:cut] + [rng.randrange(3) for _ in range(rng.randrange(300))]

    for _ in range(12):
        holder = SimpleNamespace(tokens=branch(), owner=rng.choice("ab"))
        tree.add(holder)
        holders.append(holder)
        if rng.random() < 0.5:  # grown, or cut and grown differently
            other = rng.choice(holders)
            del other.tokens[rng.randrange(len(other.tokens) + 1) :]
            tree.update(other)
            other.tokens += branch()
            tree.update(other)
        if rng.random() < 0.2:
            tree.remove(holders.pop(rng.randrange(len(holders))))
    wanted = branch()
    for owner in "ab":
        found = {id(holder): length for holder, length in tree.match(owner, wanted)}
        naive = {id(h): common_prefix(h.tokens, wanted) for h in holders if h.owner == owner}
        assert found == {key: length for key, length in naive.items() if length}
    for holder in holders:
        tree.remove(holder)
    assert tree.num_nodes() == 0


def encoded(pages: int = 16, sequences: int = 4, num_points: int = 8) -> SequenceCache:
    executor = FakeExecutor(kv_tokens=pages * PAGE_TOKENS, max_sequences=sequences, encodes=True, num_points=num_points)
    return SequenceCache(executor, max_sequences=sequences)


def test_an_encoded_sequence_is_reused_from_its_deepest_mark() -> None:
    cache = encoded()
    text = list(range(700))
    first = cache.acquire(text)
    append(cache, first, text[:300])
    cache.mark(first)
    append(cache, first, text[300:])
    cache.release(first)
    second = cache.acquire([*text[:500], 9, 9])
    assert second.length == 300, "500 tokens are common, but exact pages are left at 300 only"
    assert cache.num_shared([*text[:500], 9, 9]) == 500
    third = cache.acquire([*text[:200], 9])
    assert third.length == 0


def test_a_mark_that_was_given_up_is_not_used() -> None:
    cache = encoded(num_points=1)
    text = list(range(700))
    first = cache.acquire(text)
    for end in (300, 600):
        append(cache, first, text[first.length : end])
        cache.mark(first)
    append(cache, first, text[600:])
    assert cache.num_reusable([*text[:500], 9]) == 0
    assert cache.num_reusable([*text[:630], 9]) == 600


def test_pages_run_out_from_the_end_of_what_was_used_longest_ago() -> None:
    cache = encoded(pages=8)
    old = cache.acquire([1, 1])
    append(cache, old, [1] * 300)
    cache.mark(old)
    append(cache, old, [1] * 400)
    cache.release(old)
    assert cache.executor.num_free_pages == 2
    new = cache.acquire([2, 2])
    append(cache, new, [2] * 400)
    assert cache.num_reusable([1] * 700) == 300, "its beginning is kept"
    cache.release(new)
    third = cache.acquire([3, 3])
    assert append(cache, third, [3] * 1000)
    assert cache.num_sequences == 1


def test_an_exact_sequence_gives_back_single_pages() -> None:
    executor = FakeExecutor(kv_tokens=8 * PAGE_TOKENS)
    cache = SequenceCache(executor, max_sequences=4)
    old = cache.acquire([1, 1])
    append(cache, old, [1] * 7 * PAGE_TOKENS)
    cache.release(old)
    new = cache.acquire([2, 2])
    append(cache, new, [2] * 3 * PAGE_TOKENS)
    assert cache.num_reusable([1] * 2000) == 5 * PAGE_TOKENS


def encoded_model(**settings) -> Model:
    executor = FakeExecutor(encodes=True, num_points=settings.pop("num_points", 8))
    return make_model(executor, context=4096, **settings)


def test_answers_from_an_encoded_cache_are_those_of_a_fresh_one() -> None:
    rng = random.Random(1)
    system = [rng.randrange(200) for _ in range(600)]
    prompts = [system + [rng.randrange(200) for _ in range(rng.randrange(1, 300))] for _ in range(8)]
    options = {"temperature": 1.0, "max_tokens": 20, **FOREVER}
    alone = []
    for i, prompt in enumerate(prompts):
        with encoded_model() as model:
            alone.append(tokens_of(model.generate(prompt, seed=i, **options)))
    with encoded_model() as model:
        executor = hold(model)
        running = [model.generate(prompt, seed=i, **options) for i, prompt in enumerate(prompts)]
        executor.hold.set()
        assert [tokens_of(r) for r in running] == alone
        # The common 600 tokens were computed once, to the page: where conversations part a mark is set.
        computed = sum(len(p) for p in prompts) - 7 * 512 + 8 * 19
        assert executor.num_rows <= computed


def test_a_place_where_conversations_part_is_marked_when_it_is_seen_again() -> None:
    system = [i % 200 for i in range(600)]
    with encoded_model() as model:
        reused = []
        for i in range(4):
            generation = model.generate([*system, 210 + i, *([i] * 50)], max_tokens=300, **FOREVER)
            tokens_of(generation)
            reused.append(generation.usage.num_reused_tokens)
        assert reused == [0, 0, 512, 512]


@pytest.mark.parametrize("length", [700, 639, 640, 641])  # with 640 the token before is in another page
def test_the_same_prompt_again_starts_at_its_end(length: int) -> None:
    with encoded_model() as model:
        prompt = [i % 200 for i in range(length)]
        tokens_of(model.generate(prompt, max_tokens=300, **FOREVER))
        again = model.generate(prompt, max_tokens=2, seed=3)
        tokens_of(again)
        assert again.usage.num_reused_tokens == length - 1


def test_one_owner_never_gets_what_another_computed() -> None:
    with make_model(context=2048) as model:
        prompt = [1] * 500
        for owner, reused in (("alice", 0), ("bob", 0), ("", 0), ("alice", 499), ("bob", 499)):
            generation = model.generate(prompt, max_tokens=1, owner=owner)
            tokens_of(generation)
            assert generation.usage.num_reused_tokens == reused, owner


def test_nor_waits_for_it() -> None:
    with make_model(context=2048, max_rows=64) as model:
        executor = hold(model)
        first = model.generate([1] * 500, max_tokens=1, owner="alice")
        wait_for(executor.entered.is_set)
        second = model.generate([1] * 500, max_tokens=1, owner="bob")
        executor.hold.set()
        tokens_of(first)
        tokens_of(second)
        assert executor.num_rows == 1000


@pytest.mark.parametrize("kind", ["exact", "encodes", "keeps_record"])
def test_a_long_random_life_keeps_the_right_tokens(kind: str) -> None:
    rng = random.Random(5)
    executor = FakeExecutor(num_points=3, **({} if kind == "exact" else {kind: True}))
    with make_model(executor, context=1024, max_sequences=5) as model:
        texts = [[rng.randrange(4) for _ in range(300)] for _ in range(3)]
        for i in range(60):
            if rng.random() < 0.3:
                texts.append([rng.randrange(4) for _ in range(rng.randrange(1, 400))])
            text = rng.choice(texts)
            cut = rng.randrange(1, len(text) + 1)
            prompt = text[:cut] + [rng.randrange(250) for _ in range(rng.randrange(30))]
            options = {"temperature": 1.0, "seed": i, "max_tokens": rng.randrange(1, 40)}
            answer = tokens_of(model.generate(prompt, **options))
            with make_model(context=1024) as fresh:
                assert tokens_of(fresh.generate(prompt, **options)) == answer
            texts.append((prompt + answer)[:600])
