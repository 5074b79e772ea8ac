"""Ollama's `options` and PARAMETERs that are honoured: what each means here. The others are rows of
protocols/ollama/rows.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Unpack

from ...options import RANGES, Range
from ..config import parse_duration
from ..faults import RequestError
from .answer_options import OF_OLLAMA, ollama_options
from .contract import AnswerOptions

MAX_STOPS = 64

_Allowed = tuple[Callable[[Any], bool], str]  # whether a value is right, and what would be


@dataclass(frozen=True, slots=True)
class Options:
    """The options of one request, or a recipe's, under our names."""

    answer: AnswerOptions = field(default_factory=AnswerOptions)
    context: int | None = None  # tokens that the client counts on
    num_keep: int = 0


def _number(allowed: Range, note: str) -> _Allowed:
    low, high = allowed.low, math.inf if allowed.high is None else allowed.high
    return (
        lambda v: isinstance(v, (int, float)) and not isinstance(v, bool) and low <= v <= high,
        f"a number from {low} to {high}{note}",
    )


def _whole(low: int, high: int) -> Callable[[Any], bool]:
    return lambda v: isinstance(v, int) and not isinstance(v, bool) and low <= v <= high


_MAX_INTEGER = 1 << 31
_NOTES = {"repetition_penalty": "; 0: as the model wants it"}
_RANGES: Mapping[str, _Allowed] = {
    **{
        OF_OLLAMA.get(name, name): _number(allowed, _NOTES.get(name, ""))
        for name, allowed in RANGES.items()
        if allowed.kind is float
    },
    "top_k": (_whole(-1, _MAX_INTEGER), "a whole number; 0 and -1: off"),
    "seed": (_whole(-(1 << 63), (1 << 64) - 1), "a whole number"),
    "num_predict": (_whole(-2, 1 << 31), "a whole number: tokens, or -1 or -2 for no limit"),
    "stop_on_repeat": (_whole(8, 4096), "a whole number of tokens from 8 to 4096"),
    "num_ctx": (_whole(0, _MAX_INTEGER), "a whole number of tokens; 0: as the server was told"),
    "num_keep": (_whole(-1, 1 << 31), "a whole number of tokens"),
    "repeat_last_n": (_whole(-1, _MAX_INTEGER), "a whole number of tokens; -1: the whole text, 0: no penalties"),
}

# Values that count as not given, and values that say there is none: those are given, so a recipe's own does not hold.
_OPEN: Mapping[str, tuple[int, ...]] = {"repeat_penalty": (0,), "num_ctx": (0,), "num_keep": (-1,)}
_NONE: Mapping[str, tuple[int, ...]] = {"seed": (-1,), "num_predict": (-1, -2, 0)}  # a recipe keeps the first


def read_options(raw: Mapping[str, Any] | None, *, where: str = "options", **own: Unpack[AnswerOptions]) -> Options:
    """Checked options; null is not given. `own`: what a body says of its answers beside them. Raises RequestError
    naming the option and the reason."""
    given = {name: _as_whole(value) for name, value in (raw or {}).items() if value is not None}
    for name, value in given.items():
        if name in _RANGES:
            is_right, wanted = _RANGES[name]
            if not is_right(value):
                raise RequestError(f"{where}.{name} must be {wanted}, not {repr(value)[:60]}", param=f"{where}.{name}")
        elif name != "stop":
            raise RequestError(f"{where}.{name[:60]}: there is no such option", param=f"{where}.{name[:60]}")
    given = {name: value for name, value in given.items() if value not in _OPEN.get(name, ())}
    given["stop"] = _stops(given.get("stop"), where) or None
    no_value = {name for name, values in _NONE.items() if given.get(name) in values}
    answer = ollama_options({name: value for name, value in given.items() if name not in no_value}, **own)
    if "seed" in no_value:
        answer["seed"] = None
    if "num_predict" in no_value:
        answer["max_tokens"] = None
    return Options(answer, given.get("num_ctx"), given.get("num_keep", 0))


def _as_whole(value: Any) -> Any:
    """Clients of untyped languages write whole numbers as 2.0."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 1 << 53 else value


def _stops(value: Any, where: str) -> tuple[str, ...]:
    if value is None:
        return ()
    stops = [value] if isinstance(value, str) else value
    RequestError.when(
        not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops) or len(stops) > MAX_STOPS,
        f"{where}.stop must be a text or a list of {MAX_STOPS} at most",
        param=f"{where}.stop",
    )
    return tuple(stop for stop in stops if stop)


def recipe_parameters(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's PARAMETERs, checked, under Ollama's own names: those that mean something here. Raises RequestError."""
    options = read_options(raw, where="parameters")
    own = {OF_OLLAMA.get(name, name): value for name, value in options.answer.items()} | {"num_ctx": options.context}
    stops: Any = own.pop("stop", None)
    own |= {name: values[0] for name, values in _NONE.items() if name in own and own[name] is None}
    kept = {name: own[name] for name in raw if own.get(name) is not None}
    return kept if stops is None else {**kept, "stop": list(stops)}


def recipe_options(parameters: Mapping[str, Any]) -> Options:
    """What a recipe's parameters say, as `recipe_parameters` kept them. Raises RequestError for what it never keeps."""
    known = {name: value for name, value in parameters.items() if name in _RANGES or name == "stop"}
    return read_options(known, where="parameters")


def keep_alive_seconds(value: float | str | None) -> float | None:
    """Seconds that a model stays; math.inf: for ever; None: as the server was told. Raises RequestError."""
    if value is None or value == "":
        return None
    try:
        return parse_duration(value)
    except Exception as error:
        raise RequestError(f"keep_alive: {error}", param="keep_alive") from None
