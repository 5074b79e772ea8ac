"""What may be said about an answer, in one place: the parameters' names, types, defaults and ranges.

`Model.generate` and `chat` take `AnswerOptions` by name; requests of the server and recipes carry the same.
`Sampling` is what they say of how tokens are picked (`SamplingOptions`), all of it, checked. The command line's options
are made of `ANSWER_RANGES`. What each parameter does is said in engine/schedule/sampler.py.
"""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypedDict

from .errors import UsageError

MAX_LOGPROBS = 64
MAX_SEED = (1 << 64) - 1
_MAX_BIASES = 65536


class SamplingOptions(TypedDict, total=False):
    """How tokens are picked. Left out or None: the model file's recommendation, else the default of `Sampling`."""

    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    seed: int | None
    repetition_penalty: float | None
    penalty_window: int | None
    presence_penalty: float | None
    frequency_penalty: float | None
    logit_bias: Mapping[int, float] | None


class AnswerOptions(SamplingOptions, total=False):
    """What `generate` and `chat` take by name. Left out: as None, False and "" here."""

    max_tokens: int | None  # None: until the model ends its turn or the context is full
    stop: str | Sequence[str] | None  # strings that end the answer and are not part of it
    logprobs: int | None  # log-probabilities of the token and of the n most likely, n from 0 to MAX_LOGPROBS
    stop_on_repeat: int | None  # the answer ends when its last n tokens only repeat themselves; None: it does not
    background: bool  # interactive requests go first
    owner: str  # what was computed for one owner is never reused for another; "": the local user


@dataclass(frozen=True, slots=True)
class Range:
    """The numbers that a parameter may be, and how the command line offers it."""

    kind: type[int] | type[float]
    low: int
    high: int | None = None  # None: no limit
    low_is_open: bool = False
    metavar: str = "N"
    help: str = ""  # "": not offered there

    def check(self, name: str, value: object) -> None:
        """Raises UsageError with the range."""
        kind, noun = (numbers.Integral, "whole number,") if self.kind is int else (numbers.Real, "number")
        number: Any = value
        if isinstance(value, bool) or not isinstance(value, kind):
            number = float("nan")
        is_low = number > self.low if self.low_is_open else number >= self.low
        if not is_low or (self.high is not None and number > self.high):
            start = "above" if self.low_is_open else "from"
            allowed = f"{self.low} or more" if self.high is None else f"{start} {self.low} to {self.high}"
            raise UsageError(f"{name} must be a {noun} {allowed}, not {value!r}")


def _number(default: float, low: int, high: int, metavar: str, help: str, *, low_is_open: bool = False) -> Any:
    return field(default=default, metadata={"range": Range(float, low, high, low_is_open, metavar, help)})


def _whole(default: int | None, low: int, high: int | None, help: str = "") -> Any:
    return field(default=default, metadata={"range": Range(int, low, high, help=help)})


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are picked. Values are checked when it is made: UsageError names the allowed range."""

    temperature: float = _number(0.7, 0, 100, "T", "0 always takes the best token.")
    top_k: int = _whole(40, 0, None, "Keep the N best tokens; 0 keeps all.")
    top_p: float = _number(0.95, 0, 1, "P", "Keep the best tokens up to this total share.", low_is_open=True)  # 1: off
    min_p: float = _number(0.0, 0, 1, "P", "Drop tokens below P times the best one's share.")  # 0: off
    seed: int | None = _whole(None, 0, MAX_SEED, "Same seed, same text.")  # None: another one each time
    repetition_penalty: float = _number(1.0, 0, 100, "X", "Divides seen tokens' logits.", low_is_open=True)  # 1: off
    penalty_window: int = _whole(-1, -1, None)  # tokens before the next one that penalties look at; -1: all, 0: none
    presence_penalty: float = _number(0.0, -100, 100, "X", "Taken off when used before.")
    frequency_penalty: float = _number(0.0, -100, 100, "X", "Taken off once per earlier use.")
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # token id -> added to its logit

    def __post_init__(self) -> None:
        for name, allowed in RANGES.items():
            value = getattr(self, name)
            if value is not None or name != "seed":
                allowed.check(name, value)
        biases: object = self.logit_bias
        if not isinstance(biases, Mapping) or len(biases) > _MAX_BIASES:
            raise UsageError(f"logit_bias must map token ids to numbers, {_MAX_BIASES} of them at most")
        for token, bias in self.logit_bias.items():
            _TOKEN.check("a token id of logit_bias", token)
            _BIAS.check(f"logit_bias of token {token}", bias)

    @property
    def is_greedy(self) -> bool:
        """Whether no random number is drawn."""
        return self.temperature == 0.0

    @property
    def has_penalties(self) -> bool:
        """Whether earlier tokens change the logits."""
        if self.penalty_window == 0:
            return False
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


RANGES: Mapping[str, Range] = {f.name: f.metadata["range"] for f in fields(Sampling) if f.metadata}
_LIMITS: Mapping[str, Range] = {
    "max_tokens": Range(int, 1, help="Length of the answer at most."),
    "logprobs": Range(int, 0, MAX_LOGPROBS),
    "stop_on_repeat": Range(int, 8, 4096, help="End an answer whose last N tokens only repeat themselves."),
}
ANSWER_RANGES: Mapping[str, Range] = {**_LIMITS, **RANGES}
_TOKEN, _BIAS = Range(int, 0), Range(float, -100, 100)


def sampling_from(recommended: Mapping[str, float], given: SamplingOptions) -> Sampling:
    """What was given (not None) before the model file's recommendation before ours.

    A recommended value that is out of range is ignored: the file's author did not ask for this run.
    """
    chosen = Sampling()
    for name, value in recommended.items():
        if name not in RANGES or name == "seed":
            continue
        try:
            chosen = replace(chosen, **{name: RANGES[name].kind(value)})  # type: ignore[arg-type]
        except (UsageError, TypeError, ValueError, OverflowError):
            continue
    return replace(chosen, **{name: given[name] for name in _SAMPLING if given.get(name) is not None})  # type: ignore[literal-required]


def check_options(options: AnswerOptions) -> None:
    """Raises TypeError for names that there are not, and UsageError for values that are no sampling's and are wrong."""
    for name in options:
        if name not in AnswerOptions.__annotations__:
            raise TypeError(f"got an unexpected keyword argument {name!r}")
    for name, allowed in _LIMITS.items():
        if options.get(name) is not None:
            allowed.check(name, options.get(name))
    if not isinstance(owner := options.get("owner", ""), str):
        raise UsageError(f"owner must be a text, not {owner!r}")


_SAMPLING = tuple(SamplingOptions.__annotations__)
