"""Chat templates in the worker process (isolated.py): compiled, looked at, rendered."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import Any

from jinja2.sandbox import ImmutableSandboxedEnvironment

from ..errors import TemplateError
from .template import TemplateLimits
from .template_plain import is_plain
from .template_sandbox import Compiled, Environment, guarded

# Compiled templates that are kept.
_MAX_KEPT = 4

_kept: OrderedDict[tuple[str, TemplateLimits], Compiled] = OrderedDict()


def warm_up() -> None:
    """Importing this module was all."""


def use(request: Any) -> Any:
    """Compiles the source and renders it, if there are variables. The reply has "error", or "text" and what compiling
    it told: "is_plain" and the processor "seconds" it took, if it was compiled now."""
    source, limits = request["source"], TemplateLimits(**request["limits"])
    reply: dict[str, Any] = {}
    try:
        compiled = _kept.get((source, limits))
        if compiled is None:
            began = time.thread_time()
            compiled = Compiled(source, limits)
            reply["seconds"] = time.thread_time() - began
            reply["is_plain"] = _is_plain(source, limits)
            _kept[source, limits] = compiled
            while len(_kept) > _MAX_KEPT:
                _kept.popitem(last=False)
        _kept.move_to_end((source, limits))
        if request["variables"] is not None:
            reply["text"] = compiled.render(request["variables"])
    except TemplateError as error:
        return {"error": str(error)}
    return reply


def _is_plain(source: str, limits: TemplateLimits) -> bool:
    # Parsed without the guards that `Environment` adds.
    return guarded(limits, lambda _: is_plain(ImmutableSandboxedEnvironment._parse(Environment(), source, None, None)))
