"""Chat templates: a model file's Jinja source turns messages into a prompt, without trusting that source.

Covered: a template sees plain data only (copies), reaches no Python object outside it, and is stopped with a
TemplateError when it runs too long, loops too often, or would build a value, a total or an output that is too large.
Not covered: what the prompt says. A hostile template can still write any text into the prompt.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import TemplateError

if TYPE_CHECKING:
    from .template_sandbox import Compiled

_MAX_DEPTH = 64


@dataclass(frozen=True, slots=True)
class TemplateLimits:
    """What one rendering may use. The largest published template has 50 000 characters and takes 10 000 steps."""

    source_chars: int = 1 << 19
    input_size: int = 1 << 22  # characters and values of the messages, tools and options together
    value_size: int = 1 << 22  # of any one value that the template builds
    total_size: int = 1 << 27  # of all values it builds, kept or not
    output_chars: int = 1 << 22
    steps: int = 500_000  # loop iterations, calls, filters, operators
    seconds: float = 5.0
    range_length: int = 100_000


class ChatTemplate:
    """A chat template. Safe to share between threads.

    It has the filters, globals and block rules of Hugging Face chat templates: `raise_exception`, `strftime_now`,
    `tojson` without HTML escapes, `break` and `continue`, `generation` blocks (transparent).
    """

    def __init__(self, source: str, *, bos_token: str, eos_token: str, limits: TemplateLimits | None = None) -> None:
        self._source = source
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self._limits = limits or TemplateLimits()
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
        """Compile the template now instead of at the first `render`. Raises TemplateError for a syntax error."""
        with self._lock:
            if self._compiled is None:
                from .template_sandbox import Compiled

                self._compiled = Compiled(self._source, self._limits)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **extra: Any,
    ) -> str:
        """The prompt for `messages`. `extra` are further variables of the template (`enable_thinking`, `documents`).

        Raises TemplateError: a syntax error, what the template itself refuses, a forbidden access, a passed limit, or
        data that is not plain (text, numbers, booleans, None, lists and mappings of these).
        """
        self.check()
        assert self._compiled is not None  # check() sets it or raises
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
        return self._compiled.render(plain)


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
