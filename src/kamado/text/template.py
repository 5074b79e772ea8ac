"""Chat templates: a model file's Jinja source turns messages into a prompt, without trusting that source.

Covered: a template sees plain data only (copies), reaches no Python object outside it, and is stopped with a
TemplateError when it runs too long, loops too often, or would build a value, a total or an output that is too large.
Not covered: what the prompt says. A hostile template can still write any text into the prompt.

A template is compiled in the worker process first (isolated.py), which may die of it. Of one that is plain
(template_plain.py) and was compiled fast there, each rendering is tried in this process with a twentieth of the limits,
which takes no more than it ever did; everything else is rendered in the worker.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..errors import TemplateError
from ..isolated import WORK_BYTES, WORKER, Limits, WorkerEndedError, why_ended
from .template_bounds import PassedLimitError, TemplateLimits

if TYPE_CHECKING:
    from .template_sandbox import Compiled

_MAX_DEPTH = 64
# What compiling may have taken in the worker for it to be done here too, where it holds the GIL: templates of 5000
# characters take 30 ms.
_MAX_COMPILE_SECONDS = 0.2


class ChatTemplate:
    """A chat template. Safe to share between threads.

    It has the filters, globals and block rules of Hugging Face chat templates: `raise_exception`, `strftime_now`,
    `tojson` without HTML escapes, `break` and `continue`, `generation` blocks (transparent).
    """

    def __init__(self, source: str, *, bos_token: str, eos_token: str, limits: TemplateLimits | None = None) -> None:
        self._source = source
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self._limits = limits or TemplateLimits()
        self._is_known = False  # whether the worker has compiled it
        self._may_run_here = False
        self._compiled: Compiled | None = None
        self._lock = threading.Lock()
        if len(source) > self._limits.source_chars:
            raise TemplateError(
                f"the chat template has {len(source)} characters, more than the {self._limits.source_chars} allowed"
            )

    @property
    def source(self) -> str:
        """The Jinja source."""
        return self._source

    def check(self) -> None:
        """Compile the template now instead of at the first `render`. Raises TemplateError for a syntax error.

        Like `render`, it waits for the worker process: not for an event loop.
        """
        if not self._is_known:
            self._ask(None)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **extra: Any,
    ) -> str:
        """The prompt for `messages`. `extra` are further variables of the template (`enable_thinking`, `documents`).

        Raises TemplateError: a syntax error, what the template itself refuses, a forbidden access, a passed limit
        (PassedLimitError), or data that is not plain (text, numbers, booleans, None, lists and mappings of these).
        """
        variables: dict[str, Any] = {
            "documents": None,
            **self._tokens,
            **extra,
            "messages": messages,
            "tools": tools,
            "add_generation_prompt": add_generation_prompt,
        }
        room = [self._limits.input_size]
        plain = {name: _plain(value, name, room, 0) for name, value in variables.items()}
        if self._may_run_here:
            try:
                return self._compile_here().render(plain)
            except (PassedLimitError, MemoryError):
                pass
        text: str = self._ask(plain)["text"]
        return text

    def _compile_here(self) -> Compiled:
        with self._lock:
            if self._compiled is None:
                from .template_sandbox import Compiled

                self._compiled = Compiled(self._source, self._limits.here())
            return self._compiled

    def _ask(self, variables: Mapping[str, Any] | None) -> dict[str, Any]:
        """The worker's reply."""
        limits = Limits(self._limits.seconds, clock_seconds=max(10.0, 2 * self._limits.seconds))
        request = {"source": self._source, "limits": asdict(self._limits), "variables": variables}
        try:
            reply: dict[str, Any] = WORKER.ask("kamado.text.template_worker:use", request, limits)
        except WorkerEndedError as error:
            reasons = {
                "time": f"took longer than {limits.cpu_seconds:g} s",
                "memory": f"needs more than {WORK_BYTES >> 20} MiB of memory",
                "stack": "is nested too deeply or calls itself without end",
            }
            raise PassedLimitError(f"the chat template {why_ended(error, 'the chat template', reasons)}") from None
        if "error" in reply:
            raise (PassedLimitError if reply["is_limit"] else TemplateError)(reply["error"])
        if not self._is_known:
            self._may_run_here = reply["is_plain"] and reply["seconds"] <= _MAX_COMPILE_SECONDS
        self._is_known = True
        return reply


def _plain(value: Any, where: str, room: list[int], depth: int) -> Any:
    """A copy of `value` in plain types. `room` counts down what the whole input may still hold."""
    room[0] -= 1
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        room[0] -= len(value)
        _check_room(room)
        return str.__str__(value) if type(value) is not str else value
    if isinstance(value, int):
        room[0] -= value.bit_length() // 8
        _check_room(room)
        return int(value)
    if isinstance(value, float):
        return float(value)
    _check_room(room)
    if depth >= _MAX_DEPTH:
        raise TemplateError(f"chat template input is nested deeper than {_MAX_DEPTH} levels at '{where[:80]}'")
    if isinstance(value, Mapping):
        return {
            _plain_key(key, where, room): _plain(item, f"{where}.{key}", room, depth + 1) for key, item in value.items()
        }
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        return [_plain(item, f"{where}[{i}]", room, depth + 1) for i, item in enumerate(value)]
    raise TemplateError(f"chat template input '{where[:80]}' is a {type(value).__name__}, not plain data")


def _plain_key(key: Any, where: str, room: list[int]) -> Any:
    if key is None or isinstance(key, str | int | float):
        return _plain(key, where, room, 0)
    raise TemplateError(f"chat template input '{where[:80]}' has a key of type {type(key).__name__}, not a string")


def _check_room(room: list[int]) -> None:
    if room[0] < 0:
        raise TemplateError("the messages and tools are larger than a chat template may read")
