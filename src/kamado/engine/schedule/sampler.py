"""From a row of logits to a token: one documented order, its own random numbers, no thread or batch in the result.

Order: the answer's form rules tokens out (engine/forms/constraint.py), and the model's file those that it suppresses
unless the form has no others → logit bias → penalties (repetition, then presence and frequency) → temperature → top-k →
top-p → min-p → draw.
Temperature 0 takes the largest logit after bias and penalties; equal logits go to the lower token id, everywhere.

  repetition   over the prompt and the answer: a positive logit is divided by it, a negative one multiplied
  presence     over the answer: subtracted once from every token that occurred
  frequency    over the answer: subtracted once for each time the token occurred
  window       of the latest tokens, if one is set: the three look at nothing before it
  top-k        keeps the k most likely tokens
  top-p        keeps the fewest most likely tokens whose probabilities (after top-k, normalised) reach p
  min-p        keeps tokens at least min_p times as likely as the most likely one

The draw is a function of (seed, position in the sequence) and the logits alone, so the same seed gives the same text on
any number of threads and in any batch.
"""

from __future__ import annotations

import math
import secrets
from collections import deque
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from ..._native import top_ids
from ...errors import MetadataError, NativeError, UsageError
from ...options import MAX_SEED, Sampling

# Logits that differ at all differ by more than this allows to tell apart; its inverse is a float32 still.
_LEAST_TEMPERATURE = 1e-30
# Penalties never make a logit infinite: what is finite says that the model computed it well.
_LEAST_PENALTY = 1e-30
_LARGEST_LOGIT = float(np.finfo(np.float32).max)

_GOLDEN = 0x9E3779B97F4A7C15


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) with 53 random bits that depends on (seed, position) alone.

    SplitMix64's finaliser applied to the seed and again to that with the position added in steps of 2^64/φ.
    """
    return (_mix((_mix((seed + _GOLDEN) & MAX_SEED) + (position + 1) * _GOLDEN) & MAX_SEED) >> 11) * 2.0**-53


def _mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MAX_SEED
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MAX_SEED
    return z ^ (z >> 31)


class Sampler:
    """Picks the tokens of one request. Keeps the tokens that penalties look at; not thread-safe."""

    def __init__(
        self,
        sampling: Sampling,
        vocab_size: int,
        prompt: Iterable[int] = (),
        suppressed: NDArray[np.bool_] | None = None,
    ) -> None:
        """`suppressed` bool[vocab]: tokens that are picked only where `allowed` has no others."""
        self.sampling = sampling
        self._suppressed = suppressed
        self.seed = secrets.randbits(53) if sampling.seed is None else sampling.seed
        self._inverse_temperature = 0.0 if sampling.is_greedy else 1.0 / max(sampling.temperature, _LEAST_TEMPERATURE)
        too_large = [token for token in sampling.logit_bias if token >= vocab_size]
        if too_large:
            raise UsageError(f"logit_bias names token {too_large[0]}: ids of this model go to {vocab_size - 1}")
        self._bias_ids = np.fromiter(sampling.logit_bias.keys(), np.int64, len(sampling.logit_bias))
        self._biases = np.fromiter(sampling.logit_bias.values(), np.float32, len(sampling.logit_bias))
        self._penalties: _Penalties | _WindowPenalties | None = None
        if sampling.has_penalties:
            make = _Penalties if sampling.penalty_window < 0 else _WindowPenalties
            self._penalties = make(sampling, prompt)

    def pick(self, logits: NDArray[np.float32], position: int, allowed: NDArray[np.int64] | None = None) -> int:
        """The token that follows at `position`, the number of tokens before it. `logits` float32[vocab], not changed.

        `allowed`: ids, ascending, of which one is picked; None: all. Raises NativeError when the logits are no numbers.
        """
        with np.errstate(over="ignore"):  # the weight of what is that far below the best is 0
            return self._pick(logits, position, allowed)

    def _pick(self, logits: NDArray[np.float32], position: int, allowed: NDArray[np.int64] | None) -> int:
        if self._penalties is not None or self._bias_ids.size:
            logits = logits.copy()
            if self._bias_ids.size:
                logits[self._bias_ids] += self._biases
            if self._penalties is not None:
                self._penalties.apply(logits)
        if self._suppressed is not None:
            if allowed is None:
                logits = np.where(self._suppressed, np.float32(-np.inf), logits)
            elif (others := allowed[~self._suppressed[allowed]]).size:
                allowed = others
        if allowed is not None:
            logits = logits[allowed]  # places keep the order of ids, and with it the rule for equal logits
        best = int(logits.argmax())  # the first NaN if there is one, so it is also the check
        if not math.isfinite(logits[best]):
            raise NativeError(
                f"the logits of position {position} are not finite ({logits[best]}): the model file is probably "
                "damaged (compare its checksum), or its weights overflow float32"
            )
        token = best if self._inverse_temperature == 0.0 else self._draw(logits, best, position)
        if allowed is not None:
            token = int(allowed[token])
        if self._penalties is not None:
            self._penalties.add(token)
        return token

    def _draw(self, logits: NDArray[np.float32], best: int, position: int) -> int:
        s = self.sampling
        if s.top_k == 1:
            return best
        u = uniform(self.seed, position)
        peak = float(logits[best])
        if 0 < s.top_k < logits.size:
            ids = top_ids(logits, s.top_k)
            weights = self._weights(logits[ids], peak)
            total = float(weights.sum())
        else:
            # float32 sums of 8 exps at a time, pairwise above: 1e-6 relative, and the same on every call
            all_weights = np.exp((logits - np.float32(peak)) * np.float32(self._inverse_temperature))
            if s.top_p >= 1.0 and s.min_p == 0.0:
                return _draw_from_all(all_weights, u)
            total = float(all_weights.sum())
            likely = self._most_likely(logits, peak, total)
            if likely is None:
                return _draw_from_all(_filtered(all_weights, s.top_p * total, s.min_p), u)
            ids, weights = likely
        keep = weights.size
        if s.top_p < 1.0:
            keep = int(np.searchsorted(weights.cumsum(), s.top_p * total)) + 1
        if s.min_p > 0.0:
            keep = min(keep, int(np.searchsorted(-weights, -s.min_p, side="right")))  # weights[0] is 1
        cumulative = weights[: max(1, keep)].cumsum()
        return int(ids[min(int(np.searchsorted(cumulative, u * cumulative[-1], side="right")), cumulative.size - 1)])

    def _weights(self, logits: NDArray[np.float32], peak: float) -> NDArray[np.float64]:
        """exp((logit - peak) / temperature): probabilities times a constant, the largest exactly 1."""
        return np.exp((logits.astype(np.float64) - peak) * self._inverse_temperature)

    def _most_likely(
        self, logits: NDArray[np.float32], peak: float, total: float
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]] | None:
        """At least the tokens that top-p or min-p keeps, most likely first; None for a row that keeps thousands."""
        s = self.sampling
        for size in (128, 2048):  # sorting more ids takes longer than a pass over all weights
            ids = top_ids(logits, min(size, logits.size))
            weights = self._weights(logits[ids], peak)
            is_enough = (
                ids.size == logits.size
                or (s.top_p < 1.0 and float(weights.sum()) >= s.top_p * total)
                or weights[-1] < s.min_p
            )
            if is_enough:
                return ids, weights
        return None


def suppressed_mask(ids: Sequence[int], vocab_size: int, where: str) -> NDArray[np.bool_] | None:
    """bool[vocab], true for tokens that a model's file says are never to be sampled; None: there are none. Ids past the
    vocabulary are passed over, as llama.cpp and transformers do: files list them, and they cannot be sampled.

    Raises MetadataError, `where` in its text, when more are listed than there are tokens, or none is left.
    """
    if len(ids) > vocab_size:
        raise MetadataError(f"{where}: suppress_tokens lists {len(ids)} token ids of a vocabulary of {vocab_size}")
    inside = [token for token in ids if 0 <= token < vocab_size]
    if not inside:
        return None
    mask = np.zeros(vocab_size, np.bool_)
    mask[inside] = True
    if mask.all():
        raise MetadataError(f"{where}: suppress_tokens lists every token of the vocabulary: none is left to sample")
    return mask


class _Penalties:
    """Which tokens occurred, as arrays that grow: one fancy-indexed update a row."""

    def __init__(self, sampling: Sampling, prompt: Iterable[int]) -> None:
        self._sampling = sampling
        seen = sorted(set(prompt))
        self._index = {token: i for i, token in enumerate(seen)}
        capacity = max(256, 2 * len(seen))
        self._ids = np.zeros(capacity, np.int64)
        self._counts = np.zeros(capacity, np.float32)  # occurrences in the answer
        self._ids[: len(seen)] = seen

    def add(self, token: int) -> None:
        i = self._index.setdefault(token, len(self._index))
        if i == self._ids.size:
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._ids[i] = token
        self._counts[i] += 1.0

    def apply(self, logits: NDArray[np.float32]) -> None:
        num = len(self._index)
        _penalise(logits, self._ids[:num], self._counts[:num], self._sampling)


class _WindowPenalties:
    """The same of the latest tokens only. They are counted anew for each row: windows are short where they are used."""

    def __init__(self, sampling: Sampling, prompt: Iterable[int]) -> None:
        self._sampling = sampling
        self._tokens: deque[int] = deque(prompt, maxlen=sampling.penalty_window)
        self._is_answer: deque[bool] = deque((False for _ in self._tokens), maxlen=sampling.penalty_window)

    def add(self, token: int) -> None:
        self._tokens.append(token)
        self._is_answer.append(True)

    def apply(self, logits: NDArray[np.float32]) -> None:
        if not self._tokens:
            return
        ids, place = np.unique(np.fromiter(self._tokens, np.int64), return_inverse=True)
        counts = np.bincount(place, np.fromiter(self._is_answer, np.float32), len(ids)).astype(np.float32)
        _penalise(logits, ids, counts, self._sampling)


def _penalise(logits: NDArray[np.float32], ids: NDArray[np.int64], counts: NDArray[np.float32], s: Sampling) -> None:
    """Lowers the logits of tokens that occurred; `counts`: how often in the answer."""
    values = logits[ids]
    is_finite = np.isfinite(values)
    if s.repetition_penalty != 1.0:
        penalty = np.float32(max(s.repetition_penalty, _LEAST_PENALTY))
        values = np.where(values > 0.0, values / penalty, values * penalty)
    if s.presence_penalty != 0.0 or s.frequency_penalty != 0.0:
        values -= np.float32(s.presence_penalty) * (counts > 0.0) + np.float32(s.frequency_penalty) * counts
    logits[ids] = np.where(is_finite, np.clip(values, -_LARGEST_LOGIT, _LARGEST_LOGIT), values)


def _filtered(weights: NDArray[np.float32], top_sum: float, min_weight: float) -> NDArray[np.float32]:
    """The weights, with zeros where top-p or min-p drops a token; for rows of which thousands of tokens are kept.

    Positive floats order as their bits do, so the upper bits are the bucket: one pass finds the bucket in which the
    sum is reached, and only that is sorted. 2 ms for 262k weights, where sorting all takes 7.
    """
    buckets = (weights.view(np.uint32) >> np.uint32(15)).astype(np.int64)
    sums = np.bincount(buckets, weights=weights)[::-1].cumsum()
    reached = int(np.searchsorted(sums, top_sum))
    if reached == sums.size:  # top-p is off, or rounding left the sum just below
        return np.where(weights >= np.float32(min_weight), weights, np.float32(0.0))
    bucket = sums.size - 1 - reached
    ids = np.flatnonzero(buckets == bucket)
    ids = ids[np.argsort(-weights[ids], kind="stable")]
    above = sums[reached - 1] if reached else 0.0
    num_kept = int(np.searchsorted(weights[ids].cumsum(dtype=np.float64), top_sum - above)) + 1
    kept = np.where(buckets > bucket, weights, np.float32(0.0))
    kept[ids[:num_kept]] = weights[ids[:num_kept]]
    if min_weight > 0.0:
        kept[kept < np.float32(min_weight)] = 0.0
    return kept


def _draw_from_all(weights: NDArray[np.float32], u: float) -> int:
    """Draws over the whole vocabulary in id order: first a block of 512, then within it; no 262k-long cumsum."""
    block = 512
    starts = np.arange(0, weights.size, block)
    sums = np.add.reduceat(weights, starts, dtype=np.float64).cumsum()
    target = u * sums[-1]
    i = min(int(np.searchsorted(sums, target, side="right")), sums.size - 1)
    inner = weights[i * block : (i + 1) * block].cumsum(dtype=np.float64)
    rest = target - (sums[i - 1] if i else 0.0)
    j = min(int(np.searchsorted(inner, rest, side="right")), inner.size - 1)
    while j > 0 and weights[i * block + j] == 0.0:  # rounding must not pick what cannot be drawn
        j -= 1
    return i * block + j


def log_probabilities(
    logits: NDArray[np.float32], token: int, num_top: int
) -> tuple[float, tuple[tuple[int, float], ...]]:
    """The log-probability of `token`, and the `num_top` most likely tokens with theirs.

    Of the model's own distribution: before bias, penalties and temperature.
    """
    peak = float(logits.max())
    with np.errstate(over="ignore"):
        log_total = peak + math.log(float(np.exp(logits - np.float32(peak)).sum(dtype=np.float64)))
    top: tuple[tuple[int, float], ...] = ()
    if num_top:
        ids = top_ids(logits, min(num_top, logits.size))
        top = tuple((int(i), float(logits[i]) - log_total) for i in ids)
    return float(logits[token]) - log_total, top
