"""Chat templates in the worker process (isolated.py): compiled, looked at, rendered."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import Any

from jinja2.sandbox import ImmutableSandboxedEnvironment

from ..errors import TemplateError
from .template_bounds import PassedLimitError, TemplateLimits
from .template_plain import is_plain
from .template_sandbox import Compiled, Environment, guarded

# Compiled templates that are kept.
_MAX_KEPT = 4

# With what compiling told.
_kept: OrderedDict[tuple[str, TemplateLimits], tuple[Compiled, dict[str, Any]]] = OrderedDict()


def warm_up() -> None:
    """Importing this module was all."""


def use(request: Any) -> Any:
    """Compiles the source and renders it, if there are variables. The reply has "error" and "is_limit", or "text" and
    what compiling told: "is_plain" and the processor "seconds" it took."""
    key = (request["source"], TemplateLimits(**request["limits"]))
    try:
        if key not in _kept:
            _kept[key] = _compile(*key)
            while len(_kept) > _MAX_KEPT:
                _kept.popitem(last=False)
        _kept.move_to_end(key)
        compiled, told = _kept[key]
        return told if request["variables"] is None else {**told, "text": compiled.render(request["variables"])}
    except TemplateError as error:
        return {"error": str(error), "is_limit": isinstance(error, PassedLimitError)}


def _compile(source: str, limits: TemplateLimits) -> tuple[Compiled, dict[str, Any]]:
    began = time.thread_time()
    compiled = Compiled(source, limits)
    seconds = time.thread_time() - began
    return compiled, {"seconds": seconds, "is_plain": _is_plain(source, limits)}


def _is_plain(source: str, limits: TemplateLimits) -> bool:
    # Parsed without the guards that `Environment` adds.
    return guarded(limits, lambda _: is_plain(ImmutableSandboxedEnvironment._parse(Environment(), source, None, None)))
