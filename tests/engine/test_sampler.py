"""Sampling against values worked out by hand and against a naive oracle that sorts the whole vocabulary."""

from __future__ import annotations

import math
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kamado.engine.schedule.sampler import Sampler, _filtered, log_probabilities, suppressed_mask, top_ids, uniform
from kamado.errors import MetadataError, NativeError, UsageError
from kamado.options import RANGES, AnswerOptions, Sampling, SamplingOptions, check_options, sampling_from

OFF = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


def row(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def kept(sampling: Sampling, logits: np.ndarray, draws: int = 4000) -> set[int]:
    """Tokens that come out over many positions."""
    sampler = Sampler(sampling, len(logits))
    return {sampler.pick(logits, position) for position in range(draws)}


def naive_kept(s: Sampling, logits: np.ndarray) -> list[int]:
    """The documented order on sorted probabilities, in double precision. Most likely first, ties by lower id."""
    order = sorted(range(len(logits)), key=lambda i: (-float(logits[i]), i))
    if s.top_k:
        order = order[: s.top_k]
    weights = np.exp((logits.astype(float)[order] - float(logits.max())) / s.temperature)
    p = weights / weights.sum()
    keep = len(order)
    if s.top_p < 1.0:
        keep = int(np.searchsorted(p.cumsum(), s.top_p)) + 1
    return [token for i, token in enumerate(order[:keep]) if p[i] >= s.min_p * p[0]]


def test_greedy_takes_the_largest_and_the_lower_id_of_equals() -> None:
    sampler = Sampler(Sampling(temperature=0.0), 5)
    assert sampler.pick(row(1, 3, 2, 3, 0), 0) == 1


def test_penalties_by_hand() -> None:
    sampling = Sampling(temperature=0, repetition_penalty=2.0, presence_penalty=0.5, frequency_penalty=0.25)
    sampler = Sampler(sampling, 6, prompt=[0, 1, 1])
    # Prompt: repetition only. 0: 4 / 2 = 2; 1: -1 * 2 = -2; then 2 is the largest with 3.
    logits = row(4, -1, 3, 0, 0, 0)
    assert sampler.pick(logits, 3) == 2
    assert logits.tolist() == [4, -1, 3, 0, 0, 0], "the caller's row is not changed"
    # Answer so far: 2. 2: 3 / 2 - 0.5 - 0.25 = 0.75 < 2.
    assert sampler.pick(logits, 4) == 0
    # Answer: 2, 0. 0: 4/2 - 0.75 = 1.25, 2: 0.75, then 2 twice: 10/2 - 0.5 - 0.25 = 4.25
    assert sampler.pick(row(4, -1, 10, 4.3, 0, 0), 5) == 3
    assert sampler.pick(row(4, -1, 10, 0, 4.2, 0), 6) == 2
    # 2 occurred twice now: 10/2 - 0.5 - 0.5 = 4.0
    assert sampler.pick(row(4, -1, 10, 0, 4.1, 0), 7) == 4


def test_a_window_forgets_what_lies_before_it() -> None:
    """By hand: token 0 leaves the window of two, so its penalties end; at each row the largest logit is picked."""
    sampling = Sampling(temperature=0, repetition_penalty=2.0, frequency_penalty=1.0, penalty_window=2)
    sampler = Sampler(sampling, 4, [0, 0, 1])
    # Window 0, 1: 0 is 4 / 2 = 2, 1 is 3 / 2; 2 is the largest with 2.5.
    assert sampler.pick(row(4.0, 3.0, 2.5, 0.0), 0) == 2
    # Window 1, 2: 0 is free again; 2 is 2.5 / 2 - 1.
    assert sampler.pick(row(4.0, 3.0, 2.5, 0.0), 1) == 0


@pytest.mark.parametrize("window", [0, 1, 3, 50])
def test_a_window_as_long_as_the_text_is_no_window(window: int) -> None:
    """0 is no penalty at all, and a window that holds everything is the same as none."""
    common = {
        "temperature": 1.0,
        "seed": 5,
        "repetition_penalty": 1.4,
        "presence_penalty": 0.3,
        "frequency_penalty": 0.2,
    }
    rng = np.random.default_rng(7)
    rows = rng.standard_normal((40, 12)).astype(np.float32)

    def tokens(sampling: Sampling) -> list[int]:
        sampler = Sampler(sampling, 12, [1, 2, 2])
        found = []
        for i, logits in enumerate(rows):
            found.append(sampler.pick(logits.copy(), i))
        return found

    whole, windowed = tokens(Sampling(**common)), tokens(Sampling(**common, penalty_window=window))
    none = tokens(Sampling(temperature=1.0, seed=5))
    assert (windowed == none) == (window == 0)
    assert (windowed == whole) == (window == 50)


def test_logit_bias_comes_before_penalties() -> None:
    # (1 + 3) / 4 = 1 loses against 1.5; penalised first it would be 1 / 4 + 3 and win.
    sampling = Sampling(temperature=0, repetition_penalty=4.0, logit_bias={0: 3.0})
    assert Sampler(sampling, 2, prompt=[0]).pick(row(1.0, 1.5), 1) == 1


def test_a_bias_of_minus_100_forbids_a_token() -> None:
    assert Sampler(Sampling(temperature=0, logit_bias={1: -100}), 3).pick(row(0, 9, 1), 0) == 2


def test_penalised_tokens_outgrow_their_first_arrays() -> None:
    sampler = Sampler(Sampling(temperature=0, frequency_penalty=50.0), 1000)
    logits = np.linspace(1, 0, 1000, dtype=np.float32)
    assert [sampler.pick(logits, i) for i in range(600)] == list(range(600))


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(**{**OFF, "top_k": 2}), {0, 1}),
        (Sampling(**{**OFF, "top_p": 0.5}), {0}),  # 0.5 is reached by the first alone
        (Sampling(**{**OFF, "top_p": 0.51}), {0, 1}),
        (Sampling(**{**OFF, "min_p": 0.5}), {0, 1}),  # 0.25 is exactly half of 0.5
        (Sampling(**{**OFF, "min_p": 0.51}), {0}),
        (Sampling(**{**OFF, "min_p": 1.0}), {0}),
        (Sampling(**{**OFF, "top_p": 1e-9}), {0}),
        (Sampling(**OFF), {0, 1, 2, 3}),
        # top-p works on what top-k left, normalised: 2/3 and 1/3
        (Sampling(**{**OFF, "top_k": 2, "top_p": 0.6}), {0}),
    ],
)
def test_filters_keep_exactly(sampling: Sampling, expected: set[int]) -> None:
    # In powers of two, exactly: 0.5, 0.25, 0.125, 0.125
    logits = np.log(np.array([0.5, 0.25, 0.125, 0.125])).astype(np.float32)
    # logarithms round: compare with the same rounding
    assert kept(sampling, logits) == set(naive_kept(sampling, logits))
    if sampling.min_p != 0.5 and sampling.top_p != 0.5:  # at the very border float32 logarithms decide
        assert kept(sampling, logits) == expected


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(2, 700),
    levels=st.sampled_from([3, 40, 10_000]),
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    top_k=st.sampled_from([0, 1, 2, 7, 40, 1000]),
    top_p=st.sampled_from([0.07, 0.5, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.02, 0.3]),
)
def test_draws_follow_a_naive_oracle(
    seed: int, size: int, levels: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    rng = np.random.default_rng(seed)
    logits = (rng.integers(0, levels, size) * (8.0 / levels)).astype(np.float32)  # few levels: many ties
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
    sampler = Sampler(sampling, size)
    order = naive_kept(sampling, logits)
    weights = np.exp((logits.astype(float)[order] - float(logits.max())) / temperature)
    if top_p == 1.0 and min_p == 0.0 and not 0 < top_k < size:  # the draw over everything goes in id order
        by_id = np.argsort(order)
        order, weights = [order[i] for i in by_id], weights[by_id]
    cumulative = weights.cumsum() / weights.sum()
    for position in range(20):
        u = uniform(seed, position)
        expected = order[min(int(np.searchsorted(cumulative, u, side="right")), len(order) - 1)]
        picked = sampler.pick(logits, position)
        if picked != expected:  # only where u lies within rounding of a border
            assert np.abs(cumulative - u).min() < 1e-5 or _is_border(sampling, logits)


def _is_border(s: Sampling, logits: np.ndarray) -> bool:
    """Whether a threshold falls on a token within float32's rounding, so that either set is right."""
    sets = set()
    for change in (-1e-5, 0.0, 1e-5):
        top_p = s.top_p if s.top_p >= 1.0 else s.top_p + change
        sets.add(tuple(naive_kept(Sampling(s.temperature, s.top_k, top_p, max(0.0, s.min_p - change)), logits)))
    return len(sets) > 1


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(1, 3000),
    levels=st.sampled_from([2, 30, 100_000]),
    top_p=st.sampled_from([0.01, 0.3, 0.95, 1.0]),
    min_p=st.sampled_from([0.0, 0.25]),
)
def test_the_filter_for_flat_rows_keeps_what_the_oracle_keeps(
    seed: int, size: int, levels: int, top_p: float, min_p: float
) -> None:
    logits = (np.random.default_rng(seed).integers(0, levels, size) * (3.0 / levels)).astype(np.float32)
    weights = np.exp(logits - logits.max())
    sampling = Sampling(temperature=1.0, top_k=0, top_p=top_p, min_p=min_p)
    kept = np.flatnonzero(_filtered(weights, top_p * float(weights.sum(dtype=float)) if top_p < 1 else np.inf, min_p))
    expected = sorted(naive_kept(sampling, logits))
    assert kept.tolist() == expected or _is_border(sampling, logits)


def test_a_flat_row_is_drawn_from_its_most_likely_tokens() -> None:
    logits = np.linspace(0, 1, 20_000, dtype=np.float32)
    picked = kept(Sampling(temperature=1.0, top_k=0, top_p=0.5), logits, 300)
    assert min(picked) > 11_000  # the upper half of the probability begins at ln((1 + e) / 2) = 0.62
    assert min(picked) >= min(naive_kept(Sampling(temperature=1.0, top_k=0, top_p=0.5), logits))


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(1, 3000), k=st.integers(1, 300), levels=st.integers(1, 500))
def test_top_ids_equal_a_stable_sort(seed: int, size: int, k: int, levels: int) -> None:
    logits = np.random.default_rng(seed).integers(0, levels, size).astype(np.float32)
    k = min(k, size)
    assert top_ids(logits, k).tolist() == sorted(range(size), key=lambda i: (-logits[i], i))[:k]


def test_draws_have_the_right_frequencies() -> None:
    p = np.array([0.6, 0.3, 0.1])
    sampler = Sampler(Sampling(**OFF, seed=1), 3)
    counts = np.bincount([sampler.pick(np.log(p).astype(np.float32), i) for i in range(20_000)], minlength=3)
    # four standard deviations
    assert np.all(np.abs(counts / 20_000 - p) < 4 * np.sqrt(p * (1 - p) / 20_000))


def test_uniform_is_a_function_of_seed_and_position() -> None:
    assert uniform(1, 2) == uniform(1, 2)
    values = np.array([uniform(seed, position) for seed in range(100) for position in range(100)])
    assert len(set(values)) == 10_000
    assert values.min() >= 0.0
    assert values.max() < 1.0
    counts = np.bincount((values * 16).astype(int), minlength=16)
    assert ((counts - 625) ** 2 / 625).sum() < 45  # chi-square, 15 degrees: 45 is beyond 1 in 10,000


def test_tokens_of_probability_zero_are_never_drawn() -> None:
    logits = np.full(2000, -200.0, np.float32)
    logits[[3, 1500]] = 5.0
    assert kept(Sampling(**OFF), logits, 200) == {3, 1500}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_an_error(bad: float, temperature: float) -> None:
    with pytest.raises(NativeError, match=r"position 7 .*damaged"):
        Sampler(Sampling(temperature=temperature), 3).pick(row(0, bad, 1), 7)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("temperature", -0.1, "0 to 100"),
        ("temperature", float("nan"), "0 to 100"),
        ("temperature", "hot", "0 to 100"),
        ("top_k", -1, "0 or more"),
        ("top_k", 1.5, "whole number"),
        ("top_p", 0.0, "above 0 to 1"),
        ("top_p", 1.1, "above 0 to 1"),
        ("min_p", 1.01, "0 to 1"),
        ("repetition_penalty", 0.0, "above 0 to 100"),
        ("presence_penalty", 101, "-100 to 100"),
        ("frequency_penalty", True, "-100 to 100"),
        ("seed", -1, "0 to 18446744073709551615"),
        ("seed", 1 << 64, "0 to 18446744073709551615"),
        ("logit_bias", {3: 101.0}, "-100 to 100"),
        ("logit_bias", {-3: 1.0}, "0 or more"),
        ("logit_bias", [1], "token ids"),
    ],
)
def test_values_out_of_range_name_the_range(name: str, value: object, allowed: str) -> None:
    with pytest.raises(UsageError, match=allowed.replace("[", r"\[")) as caught:
        Sampling(**{name: value})
    assert name.split("_")[0] in str(caught.value)


def test_a_bias_for_a_token_that_the_model_has_not() -> None:
    with pytest.raises(UsageError, match="go to 9"):
        Sampler(Sampling(logit_bias={10: 1.0}), 10)


def test_explicit_before_the_file_before_ours() -> None:
    chosen = sampling_from(
        {"temperature": 0.2, "top_k": 20.0, "top_p": 7.0, "repetition_penalty": 1.1, "xtc": 1},
        {"top_k": 5, "seed": None},
    )
    assert (chosen.temperature, chosen.top_k, chosen.top_p, chosen.repetition_penalty) == (0.2, 5, 0.95, 1.1)
    with pytest.raises(UsageError):
        sampling_from({}, {"temperature": -1})


def test_one_list_of_parameters() -> None:
    assert set(SamplingOptions.__annotations__) == {f.name for f in fields(Sampling)} == {*RANGES, "logit_bias"}
    check_options({**dict.fromkeys(AnswerOptions.__annotations__), "owner": "", "background": False})
    for name in ("beams", "temp"):
        with pytest.raises(TypeError, match=name):
            check_options({name: None})
    for name, bad in (("max_tokens", 0), ("max_tokens", 1.5), ("logprobs", 65), ("logprobs", True), ("owner", 3)):
        with pytest.raises(UsageError, match=name):
            check_options({name: bad})


def test_log_probabilities_by_hand() -> None:
    logprob, top = log_probabilities(np.log(row(0.1, 0.2, 0.7)), 0, 2)
    assert logprob == pytest.approx(math.log(0.1), abs=1e-6)
    assert [token for token, _ in top] == [2, 1]
    assert [value for _, value in top] == pytest.approx([math.log(0.7), math.log(0.2)], abs=1e-6)


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("temperature", [5e-324, 1e-320, 1e-310, 1e-300, 1e-45, 1e-38, 1e-30, 1e-10])
@pytest.mark.parametrize("more", [{"top_k": 0}, {"top_k": 40}, {"top_k": 0, "min_p": 0.1}, {"top_k": 0, "top_p": 1.0}])
def test_the_smallest_temperatures_take_the_best(temperature: float, more: dict[str, float]) -> None:
    logits = np.random.default_rng(1).normal(scale=5.0, size=500).astype(np.float32)
    sampler = Sampler(Sampling(temperature=temperature, seed=1, **more), 500)
    assert {sampler.pick(logits, i) for i in range(5)} == {int(logits.argmax())}
    flat = np.zeros(500, np.float32)  # of equals any may come, as at every temperature above 0
    assert len({sampler.pick(flat, i) for i in range(20)}) > 1


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize(
    "values",
    [
        {"repetition_penalty": 5e-324},
        {"repetition_penalty": 1e-40},
        {"repetition_penalty": 100.0},
        {"presence_penalty": 100.0, "frequency_penalty": 100.0},
        {"presence_penalty": -100.0, "frequency_penalty": -100.0},
        {"top_p": 5e-324},
        {"min_p": 5e-324},
        {"min_p": 1.0},
        {"logit_bias": {0: 100.0, 1: -100.0}},
    ],
)
@pytest.mark.parametrize("scale", [1e-45, 1.0, 1e30, 3e38])
def test_extreme_values_give_a_token(values: dict[str, object], scale: float) -> None:
    logits = np.random.default_rng(2).uniform(-1.0, 1.0, 100).astype(np.float32) * np.float32(scale)
    logits[7] = -np.inf
    for more in ({}, {"temperature": 1e-320}, {"temperature": 0.0}, {"top_k": 0}):
        sampler = Sampler(Sampling(**({"seed": 1} | values | more)), 100, prompt=range(50))
        picked = [sampler.pick(logits, i) for i in range(8)]
        assert all(0 <= token < 100 and token != 7 for token in picked)


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("temperature", [0.0, 1e-320, 1.0, 100.0])
@pytest.mark.parametrize(
    "more", [{}, {"top_k": 0}, {"top_k": 0, "top_p": 1.0}, {"top_k": 0, "top_p": 1.0, "min_p": 0.1}]
)
@pytest.mark.parametrize("penalties", [{}, {"presence_penalty": -100.0}, {"logit_bias": {2: 100.0}}])
def test_suppressed_tokens_are_picked_only_where_a_form_has_no_others(
    temperature: float, more: dict[str, object], penalties: dict[str, object]
) -> None:
    mask = suppressed_mask([2, 4, 4, -1, 6, 10**12], 6, "m.gguf")
    sampling = Sampling(**({"seed": 3, "temperature": temperature} | more | penalties))
    sampler = Sampler(sampling, 6, [0, 1], mask)
    logits = row(1, 2, 9, 0, 8, 0.5)
    for position in range(60):
        assert sampler.pick(logits, position) not in (2, 4)
        assert sampler.pick(logits, position, np.array([2, 3, 4])) == 3
        assert sampler.pick(logits, position, np.array([4])) == 4
    assert logits.tolist() == [1, 2, 9, 0, 8, 0.5], "the caller's row is not changed"


def test_lists_of_suppressed_tokens_that_cannot_be_meant() -> None:
    assert suppressed_mask([], 3, "m.gguf") is None
    assert suppressed_mask([-1, 3, 7], 3, "m.gguf") is None
    with pytest.raises(MetadataError, match="m.gguf: suppress_tokens lists 4 token ids of a vocabulary of 3"):
        suppressed_mask([0, 0, 0, 0], 3, "m.gguf")
    with pytest.raises(MetadataError, match="m.gguf: suppress_tokens lists every token"):
        suppressed_mask([2, 1, 0], 3, "m.gguf")
