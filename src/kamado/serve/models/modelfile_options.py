"""Ollama's `options` and PARAMETERs that are honoured: what each means here. The others are rows of
protocols/ollama/rows.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..config import parse_duration
from ..faults import RequestError
from .contract import SamplingOptions
from .sampling import OF_OLLAMA, ollama_sampling

MAX_STOPS = 64


@dataclass(frozen=True, slots=True)
class Options:
    """The options of one request, under our names."""

    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    max_tokens: int | None = None
    context: int | None = None  # tokens that the client counts on
    stop: tuple[str, ...] = ()
    num_keep: int = 0


def _number(low: float, high: float) -> Callable[[Any], bool]:
    return lambda v: isinstance(v, (int, float)) and not isinstance(v, bool) and low <= v <= high


def _whole(low: int, high: int) -> Callable[[Any], bool]:
    return lambda v: isinstance(v, int) and not isinstance(v, bool) and low <= v <= high


_MAX_INTEGER = 1 << 31
_RANGES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "temperature": (_number(0, 100), "a number from 0 to 100"),
    "top_k": (_whole(-1, _MAX_INTEGER), "a whole number; 0 and -1: off"),
    "top_p": (_number(0, 1), "a number from 0 to 1"),
    "min_p": (_number(0, 1), "a number from 0 to 1"),
    "repeat_penalty": (_number(0, 100), "a number from 0 to 100; 0: as the model wants it"),
    "presence_penalty": (_number(-100, 100), "a number from -100 to 100"),
    "frequency_penalty": (_number(-100, 100), "a number from -100 to 100"),
    "seed": (_whole(-(1 << 63), (1 << 64) - 1), "a whole number"),
    "num_predict": (_whole(-2, 1 << 31), "a whole number: tokens, or -1 or -2 for no limit"),
    "num_ctx": (_whole(0, _MAX_INTEGER), "a whole number of tokens; 0: as the server was told"),
    "num_keep": (_whole(-1, 1 << 31), "a whole number of tokens"),
    "repeat_last_n": (_whole(-1, _MAX_INTEGER), "a whole number of tokens; -1: the whole text, 0: no penalties"),
}


def read_options(raw: Mapping[str, Any] | None, *, where: str = "options") -> Options:
    """Checked options; null is not given. Raises RequestError naming the option and the reason."""
    given = {name: _as_whole(value) for name, value in (raw or {}).items() if value is not None}
    for name, value in given.items():
        if name in _RANGES:
            is_right, wanted = _RANGES[name]
            if not is_right(value):
                raise RequestError(f"{where}.{name} must be {wanted}, not {repr(value)[:60]}", param=f"{where}.{name}")
        elif name != "stop":
            raise RequestError(f"{where}.{name[:60]}: there is no such option", param=f"{where}.{name[:60]}")
    limit = given.get("num_predict", -1)
    for name, open_value in (("seed", -1), ("repeat_penalty", 0)):  # these count as not given
        if given.get(name) == open_value:
            del given[name]
    return Options(
        sampling=ollama_sampling(given),
        max_tokens=limit if limit > 0 else None,
        context=given.get("num_ctx") or None,
        stop=_stops(given.get("stop"), where),
        num_keep=max(0, given.get("num_keep", 0)),
    )


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
    own = {OF_OLLAMA.get(name, name): value for name, value in options.sampling.items()}
    own |= {"num_predict": options.max_tokens, "num_ctx": options.context}  # None: no limit, as without it
    kept: dict[str, Any] = {name: own[name] for name in raw if own.get(name) is not None}
    if options.stop:
        kept["stop"] = list(options.stop)
    return kept


def keep_alive_seconds(value: float | str | None) -> float | None:
    """Seconds that a model stays; math.inf: for ever; None: as the server was told. Raises RequestError."""
    if value is None or value == "":
        return None
    try:
        return parse_duration(value)
    except Exception as error:
        raise RequestError(f"keep_alive: {error}", param="keep_alive") from None
