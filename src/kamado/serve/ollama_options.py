"""Ollama's `options` and PARAMETERs: what each means here, or why it cannot be met. None is passed over."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .backend import SamplingOptions
from .config import parse_duration
from .faults import RequestError

MAX_STOPS = 64


@dataclass(frozen=True, slots=True)
class Options:
    """The options of one request, under our names."""

    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    max_tokens: int | None = None
    context: int | None = None  # tokens that the client counts on
    stop: tuple[str, ...] = ()
    num_keep: int = 0


# name: (values that mean what happens anyway, why no other can be had)
_FIXED: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "numa": ((False,), "memory is placed by the system"),
    "num_batch": ((), "the plan that was made when the model was loaded chose it, and results do not depend on it"),
    "num_gpu": ((0, -1), "there is no GPU back-end; 0 and -1 mean what happens"),
    "main_gpu": ((0,), "there is no GPU back-end"),
    "low_vram": ((False,), "there is no GPU back-end"),
    "f16_kv": ((True,), "the KV cache is chosen when the server starts (--kv)"),
    "logits_all": ((False,), "ask for logprobs instead"),
    "vocab_only": ((False,), "models are loaded whole"),
    "use_mmap": ((True,), "weights are mapped and packed as the plan says"),
    "use_mlock": ((False,), "memory is not locked: the budget is kept instead"),
    "embedding_only": ((False,), "what a model can do is in its file"),
    "num_thread": ((0,), "threads belong to the server, for all requests together (kamado serve --threads)"),
    "draft_num_predict": ((0,), "there is no draft model"),
    "tfs_z": ((1, 1.0), "tail-free sampling is not offered; 1 means off"),
    "typical_p": ((1, 1.0), "typical sampling is not offered; 1 means off"),
    "mirostat": ((0,), "mirostat is not offered; 0 means off"),
    "penalize_newline": ((True,), "a line break is a token like others"),
}
# Of mirostat, which is off: they change nothing, in Ollama neither.
_WITHOUT_EFFECT = ("mirostat_tau", "mirostat_eta")


def _number(low: float, high: float) -> Callable[[Any], bool]:
    return lambda v: isinstance(v, (int, float)) and not isinstance(v, bool) and low <= v <= high


def _whole(low: int, high: int) -> Callable[[Any], bool]:
    return lambda v: isinstance(v, int) and not isinstance(v, bool) and low <= v <= high


_RANGES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "temperature": (_number(0, 100), "a number from 0 to 100"),
    "top_k": (_whole(0, 1 << 31), "a whole number, 0 (off) or more"),
    "top_p": (_number(0, 1), "a number from 0 to 1"),
    "min_p": (_number(0, 1), "a number from 0 to 1"),
    "repeat_penalty": (_number(1e-9, 100), "a number above 0 to 100"),
    "presence_penalty": (_number(-100, 100), "a number from -100 to 100"),
    "frequency_penalty": (_number(-100, 100), "a number from -100 to 100"),
    "seed": (_whole(-(1 << 63), (1 << 64) - 1), "a whole number"),
    "num_predict": (_whole(-2, 1 << 31), "a whole number: tokens, or -1 or -2 for no limit"),
    "num_ctx": (_whole(1, 1 << 31), "a whole number of tokens"),
    "num_keep": (_whole(-1, 1 << 31), "a whole number of tokens"),
    "repeat_last_n": (_whole(-1, 0), "-1 (the whole text, as always here) or 0 (no repeat_penalty)"),
}


def read_options(raw: Mapping[str, Any] | None, *, where: str = "options") -> Options:
    """Checked options; null is not given. Raises RequestError naming the option and the reason."""
    given = {name: value for name, value in (raw or {}).items() if value is not None}
    for name, value in given.items():
        if name in _RANGES:
            is_right, wanted = _RANGES[name]
            if not is_right(value):
                raise RequestError(f"{where}.{name} must be {wanted}, not {repr(value)[:60]}", param=f"{where}.{name}")
        elif name in _FIXED:
            allowed, reason = _FIXED[name]
            if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in allowed):
                raise RequestError(f"{where}.{name}: {reason}", param=f"{where}.{name}")
        elif name not in ("stop", *_WITHOUT_EFFECT):
            raise RequestError(f"{where}.{name[:60]}: there is no such option", param=f"{where}.{name[:60]}")
    limit = given.get("num_predict", -1)
    if limit == 0:
        raise RequestError(f"{where}.num_predict must not be 0: an answer has a token at least", param=where)
    seed = given.get("seed")
    top_p = given.get("top_p")
    penalty = given.get("repeat_penalty")
    return Options(
        sampling=SamplingOptions(
            temperature=given.get("temperature"),
            top_k=given.get("top_k"),
            # 0 keeps the most likely token alone, which is what the smallest number above it does
            top_p=math.ulp(0.0) if top_p == 0 else top_p,
            min_p=given.get("min_p"),
            repetition_penalty=1.0 if given.get("repeat_last_n") == 0 else penalty,
            presence_penalty=given.get("presence_penalty"),
            frequency_penalty=given.get("frequency_penalty"),
            seed=None if seed is None else int(seed) & ((1 << 64) - 1) if seed != -1 else None,
        ),
        max_tokens=limit if limit > 0 else None,
        context=given.get("num_ctx"),
        stop=_stops(given.get("stop"), where),
        num_keep=max(0, given.get("num_keep", 0)),
    )


def _stops(value: Any, where: str) -> tuple[str, ...]:
    if value is None:
        return ()
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops) or len(stops) > MAX_STOPS:
        raise RequestError(f"{where}.stop must be a text or a list of {MAX_STOPS} at most", param=f"{where}.stop")
    return tuple(stop for stop in stops if stop)


def recipe_parameters(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's PARAMETERs, checked, under Ollama's own names: those that mean something here. Raises RequestError."""
    options = read_options(raw, where="parameters")
    kept = {name: value for name, value in raw.items() if name in _RANGES and value is not None}
    if kept.pop("repeat_last_n", None) == 0:
        kept["repeat_penalty"] = 1.0
    if options.max_tokens is None:  # -1: no limit, which is what happens without it
        kept.pop("num_predict", None)
    kept.pop("num_keep", None)
    if options.sampling.seed is None:
        kept.pop("seed", None)
    else:
        kept["seed"] = options.sampling.seed
    if options.sampling.top_p is not None:
        kept["top_p"] = options.sampling.top_p
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
