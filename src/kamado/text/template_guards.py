"""What a chat template may use, and the checks of everything that could use more.

A check comes before the value is built where its size can be told, right after where it is bounded by its inputs.
Sizes count shared parts each time they appear, so that nesting a value in itself cannot hide its printed length.
"""

from __future__ import annotations

import datetime
import functools
import itertools
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from jinja2.filters import FILTERS
from jinja2.runtime import Undefined

from ..errors import TemplateError
from .template_bounds import PassedLimitError, TemplateLimits

_MAX_WIDTH = 10_000  # of one padded or formatted field
MAX_INT_BITS = 1 << 14
_VIEWS: tuple[Any, ...] = (type({}.keys()), type({}.values()), type({}.items()))
CONTAINERS: tuple[Any, ...] = (list, tuple, dict, *_VIEWS)

# Jinja's filters without those that print, make HTML links, guess or draw lots.
_FILTER_NAMES = """
    abs attr batch capitalize center count d default dictsort e escape first float forceescape format groupby indent
    int items join last length list lower map max min reject rejectattr replace reverse round safe select selectattr
    slice sort string sum title trim truncate unique upper urlencode wordcount
"""


class Budget:
    """What one rendering has used."""

    def __init__(self, limits: TemplateLimits) -> None:
        self.limits = limits
        self._steps = 0
        self._total = 0
        self._deadline = time.thread_time() + limits.seconds  # of this thread's processor time
        # id -> (container, size). Holding the container keeps its id from being reused.
        self._sizes: dict[int, tuple[Any, int]] = {}

    def step(self, count: int = 1) -> None:
        """Count work; raise when there was too much of it or it took too long."""
        self._steps += count
        if self._steps > self.limits.steps:
            raise PassedLimitError(f"the chat template took more than {self.limits.steps} steps")
        if time.thread_time() > self._deadline:
            raise PassedLimitError(f"the chat template took longer than {self.limits.seconds:g} s")

    def reserve(self, size: int) -> None:
        """Raise when a value of `size` is too large or would make the total too large."""
        if size > self.limits.value_size:
            raise PassedLimitError(f"the chat template builds a value larger than {self.limits.value_size}")
        if self._total + size > self.limits.total_size:
            raise PassedLimitError(f"the chat template builds more than {self.limits.total_size} in all")

    def built(self, value: Any) -> Any:
        """Count a value that was built, if it holds memory; return it."""
        self.step()
        if isinstance(value, str):
            size = len(value)
        elif isinstance(value, CONTAINERS):
            if id(value) in self._sizes:
                return value
            size = self.size(value)
        elif isinstance(value, int) and value.bit_length() > MAX_INT_BITS:
            raise TemplateError(f"the chat template builds a number of more than {MAX_INT_BITS} bits")
        else:
            return value
        self.reserve(size)
        self._total += size
        return value

    def sizes(self, *values: Any) -> int:
        """Size of several values together."""
        return sum(map(self.size, values))

    def size(self, value: Any) -> int:
        """Characters and values inside `value`, shared parts counted each time. What is not plain data counts as 1."""
        if isinstance(value, str):
            return 1 + len(value)
        if not isinstance(value, CONTAINERS):
            return 1
        known = self._sizes.get(id(value))
        if known is not None:
            return known[1]
        size = 1
        for item in itertools.chain(value.keys(), value.values()) if isinstance(value, dict) else value:
            size += self.size(item)
        self.step(1 + len(value) // 4)  # so that all containers together stay below 4 entries a step
        if not isinstance(value, _VIEWS):
            self._sizes[id(value)] = (value, size)
        return size


_current: ContextVar[Budget] = ContextVar("kamado_template_budget")


def budget() -> Budget:
    """The budget of the rendering that runs in this thread."""
    return _current.get()


@contextmanager
def fresh_budget(limits: TemplateLimits) -> Iterator[Budget]:
    """A new budget for the time of the block."""
    token = _current.set(Budget(limits))
    try:
        yield _current.get()
    finally:
        _current.reset(token)


def as_text(value: Any) -> str:
    """`value` as `{{ value }}` writes it: plain data only, never an object of ours or Jinja's."""
    if isinstance(value, str):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, Undefined, range, *CONTAINERS)):
        return str(value)
    raise TemplateError(f"the chat template writes a {type(value).__name__} as text")


class BoundedFormat:
    """A bounded `str.format`."""

    def __init__(self, template: str, wrapped: Callable[..., str]) -> None:
        self._template = template
        self._wrapped = wrapped

    def __call__(self, *args: Any, **kwargs: Any) -> str:
        """Format, if no field is wide and the result cannot be large."""
        template = self._template
        if re.search(r"[0-9]{5}|:[^{}]*\{", template):
            raise TemplateError("the chat template formats a field that is too wide")
        room = budget()
        num_fields = template.count("{")
        room.reserve(len(template) + num_fields * (_MAX_WIDTH + room.sizes(*args, *kwargs.values())))
        return self._wrapped(*args, **kwargs)


_PERCENT = re.compile(r"%(?:\([^)]*\))?[#0\- +]*(\*|[0-9]+)?(?:\.(\*|[0-9]+))?")


def check_percent(template: str, args: Any) -> None:
    """Bound what `template % args` builds."""
    room = budget()
    total = len(template)
    args_size = room.size(args)
    for field in _PERCENT.finditer(template):
        for number in field.groups(default="0"):
            if number == "*" or len(number) > 5 or int(number) > _MAX_WIDTH:
                raise TemplateError("the chat template formats a field that is too wide")
            total += int(number)
        total += args_size
    room.reserve(total)


def check_str_method(text: str, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """Bound what `text.name(*args)` builds. Returns the arguments to use."""
    if name in ("center", "ljust", "rjust", "zfill"):
        _check_width(args[0] if args else 0)
    elif name == "replace" and len(args) >= 2:
        _check_replace(text, *args[:3])
    elif name == "join" and args:
        items = _take(args[0])
        budget().reserve(sum(len(i) for i in items if isinstance(i, str)) + len(text) * len(items))
        return (items,)
    return args


def _check_width(width: Any) -> None:
    if isinstance(width, int) and width > _MAX_WIDTH:
        raise TemplateError("the chat template pads a text too widely")


def _check_replace(text: Any, old: Any, new: Any, count: Any = None) -> None:
    text, old, new = str(text), str(old), str(new)
    found = text.count(old)
    if isinstance(count, int) and 0 <= count < found:
        found = count
    budget().reserve(len(text) + found * max(len(new) - len(old), 0))


def _take(items: Any) -> list[Any]:
    """The items of any iterable, as long as they are few enough."""
    room = budget()
    taken = list(itertools.islice(iter(items), room.limits.value_size + 1))
    room.step(len(taken) // 16)
    room.reserve(len(taken))
    return taken


def _filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose arguments are checked and whose result is counted."""
    check = _FILTER_CHECKS.get(name)
    # Some of Jinja's filters take the context or environment first.
    first = 1 if hasattr(function, "jinja_pass_arg") else 0

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        room = budget()
        value = args[first] if len(args) > first else None
        if isinstance(value, CONTAINERS):
            room.step(1 + len(value) // 16)
        if check is not None:
            args = (*args[:first], *check(*args[first:], **kwargs))
        return room.built(function(*args, **kwargs))

    return guarded


def _check_center(value: Any, width: Any = 80) -> tuple[Any, ...]:
    _check_width(width)
    return value, width


def _check_indent(value: Any, width: Any = 4, *rest: Any, **_: Any) -> tuple[Any, ...]:
    size = len(width) if isinstance(width, str) else width
    _check_width(size)
    text = str(value)
    budget().reserve(len(text) + (text.count("\n") + 2) * max(int(size), 0))
    return value, width, *rest


def _check_replace_filter(value: Any, old: Any, new: Any, *rest: Any, **kwargs: Any) -> tuple[Any, ...]:
    _check_replace(as_text(value), old, new, rest[0] if rest else kwargs.get("count"))
    return value, old, new, *rest


def _check_join(value: Any, d: Any = "", *rest: Any, **kwargs: Any) -> tuple[Any, ...]:
    items = _take(value)
    room = budget()
    room.reserve(sum(map(room.size, items)) + room.size(kwargs.get("d", d)) * len(items))
    return (items, *((d, *rest) if "d" not in kwargs else ()))


def _check_count(value: Any, count: Any = 1, *rest: Any, **kwargs: Any) -> tuple[Any, ...]:
    for number in (count, kwargs.get("linecount", 1), kwargs.get("slices", 1)):
        if not isinstance(number, int) or not 1 <= number <= budget().limits.range_length:
            raise TemplateError("the chat template cuts a list into an impossible number of parts")
    return (value, count, *rest) if not {"linecount", "slices"} & kwargs.keys() else (value,)


def _check_round(value: Any, precision: Any = 0, *rest: Any, **kwargs: Any) -> tuple[Any, ...]:
    if abs(int(kwargs.get("precision", precision))) > 32:
        raise TemplateError("the chat template rounds to an impossible precision")
    return (value, precision, *rest) if "precision" not in kwargs else (value,)


def _check_sum(value: Any, attribute: Any = None, start: Any = 0, **kwargs: Any) -> tuple[Any, ...]:
    # Adding up lists copies them again and again.
    if not isinstance(kwargs.get("start", start), int | float):
        raise TemplateError("the chat template sums something other than numbers")
    return (value,) if kwargs else (value, attribute, start)


def _check_format(value: Any, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
    check_percent(as_text(value), kwargs or args)
    return value, *args


def _check_list(value: Any) -> tuple[Any, ...]:
    return (_take(value) if not isinstance(value, str) else value,)


def _check_string(value: Any) -> tuple[Any, ...]:
    return (as_text(value),)


_FILTER_CHECKS: dict[str, Callable[..., tuple[Any, ...]]] = {
    "center": _check_center,
    "indent": _check_indent,
    "replace": _check_replace_filter,
    "join": _check_join,
    "batch": _check_count,
    "slice": _check_count,
    "round": _check_round,
    "sum": _check_sum,
    "format": _check_format,
    "list": _check_list,
    "string": _check_string,
}


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """JSON without HTML escapes, as chat templates expect it."""
    room = budget()
    room.reserve(room.size(value))
    if (isinstance(indent, int) and indent > 32) or (isinstance(indent, str) and len(indent) > 32):
        raise TemplateError("the chat template indents JSON too widely")
    if separators is not None:
        separators = tuple(str(part)[:32] for part in separators)
    encoder = json.JSONEncoder(
        ensure_ascii=bool(ensure_ascii), indent=indent, separators=separators, sort_keys=bool(sort_keys)
    )
    if indent is None:
        return str(room.built(encoder.encode(value)))
    parts: list[str] = []
    num_chars = 0
    for part in encoder.iterencode(value):
        num_chars += len(part)
        room.reserve(num_chars)
        if len(parts) % 16 == 0:
            room.step()
        parts.append(part)
    return str(room.built("".join(parts)))


def _range(*args: int) -> range:
    numbers = range(*args)
    limit = budget().limits.range_length
    if numbers and (numbers[-1] - numbers[0]) // numbers.step >= limit:
        raise TemplateError(f"the chat template asks for a range of more than {limit} numbers")
    return numbers


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


def _raise_exception(message: Any) -> None:
    raise TemplateError(f"the chat template refuses these messages: {as_text(message)[:500]}")


def _strftime_now(format: str) -> str:  # the name templates may use
    if len(format) > 256 or re.search("[0-9]{3}", format):
        raise TemplateError("the chat template asks for an impossible date format")
    return datetime.datetime.now().strftime(format)


def guarded_filters() -> dict[str, Callable[..., Any]]:
    """All filters a template has."""
    return {name: _filter(name, FILTERS[name]) for name in _FILTER_NAMES.split()} | {"tojson": _tojson}


def guarded_functions() -> dict[str, Callable[..., Any]]:
    """The functions a template has; classes come with the environment."""
    return {
        "range": _range,
        "dict": _dict,
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
    }
