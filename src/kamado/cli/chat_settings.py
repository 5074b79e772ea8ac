"""/set: the options of answers while a conversation runs, their values and what they are without."""

from __future__ import annotations

import shlex
from typing import Any

from ..errors import UsageError
from ..options import ANSWER_RANGES
from .options import SAMPLING_NAMES
from .terminal import echo_table

NAMES = tuple(name for name in SAMPLING_NAMES if name != "logit_bias")
DEFAULT = "default"
_WITHOUT = {"max_tokens": "to the end", "stop_on_repeat": "off", "seed": "random", "stop": "none"}


def set_option(sampling: dict[str, Any], name: str, text: str) -> None:
    """Changes one option; `default` takes it back. Raises UsageError for names and values that cannot be."""
    if name == "logit_bias":
        raise UsageError("logit_bias is set on the command line: --logit-bias ID=BIAS")
    if name not in NAMES:
        raise UsageError(f"/set takes one of {', '.join(NAMES)}, and a value")
    if text == DEFAULT:
        sampling.pop(name, None)
        return
    if name == "stop":
        try:
            sampling[name] = shlex.split(text)
        except ValueError as error:
            raise UsageError(f"{text}: {str(error).lower()}") from None
        return
    allowed = ANSWER_RANGES[name]
    try:
        value = allowed.kind(text)
    except ValueError:
        raise UsageError(f"{text!r} is no {'whole ' if allowed.kind is int else ''}number") from None
    allowed.check(name, value)
    sampling[name] = value


def show_options(sampling: dict[str, Any], model: object, only: str | None = None) -> None:
    """A table of all options, or of one: the value in use, and what it is without /set."""
    defaults: object = getattr(model, "default_sampling", None)
    rows = []
    for name in NAMES if only is None else (only,):
        default = _WITHOUT.get(name) or _shown(getattr(defaults, name, "the server's"))
        rows.append((name, _shown(sampling[name]) if name in sampling else default, default))
    if sampling.get("logit_bias") and only is None:
        rows.append(("logit_bias", f"{len(sampling['logit_bias'])} tokens", "none"))
    echo_table(("name", "value", DEFAULT), rows)


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return shlex.join(map(str, value)) if isinstance(value, list) else str(value)
