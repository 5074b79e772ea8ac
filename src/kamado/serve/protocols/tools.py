"""Tools as the bodies of several protocols give them, and how a choice among them is meant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from typing import Annotated, Any, Literal, Protocol

from msgspec import Meta, Struct

from ..faults import RequestError
from ..models.contract import Tool, ToolChoice
from .schemas import MAX_SCHEMA_BYTES, check_schema

MAX_TOOLS = 256


class FunctionSpec(Struct, forbid_unknown_fields=True):
    """A function that the model may call."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class _HasFunction(Protocol):
    @property
    def function(self) -> FunctionSpec:
        """The function that the tool is."""


def tools_of(specs: Iterable[_HasFunction] | None, max_schema_bytes: int = MAX_SCHEMA_BYTES) -> tuple[Tool, ...]:
    """The tools of a body. Raises RequestError for two of one name and for schemas that are too large."""
    return checked(
        tool_of(spec.function, f"tools[{i}].function", max_schema_bytes) for i, spec in enumerate(specs or ())
    )


def tool_of(function: FunctionSpec, where: str, max_schema_bytes: int) -> Tool:
    """The tool at `where`. Raises RequestError for a schema that is too large."""
    schema = function.parameters or {}
    check_schema(schema, f"{where}.parameters", max_schema_bytes)
    return Tool(function.name, function.description or "", schema, strict=function.strict is True)


def checked(tools: Iterable[Tool]) -> tuple[Tool, ...]:
    """The same tools. Raises RequestError for two of one name."""
    found = tuple(tools)
    count = Counter(tool.name for tool in found)
    double = next((name for name in count if count[name] > 1), "")
    RequestError.when(double, f"two tools are called {double!r}", param="tools")
    return found


def choose(
    mode: Literal["auto", "none", "required"],
    names: Collection[str],
    parallel: bool | None,
    *,
    is_bound: bool = False,
) -> ToolChoice:
    """The choice of a mode among the tools called `names`; `is_bound`: these are not all that there are.

    `parallel` is what was said of several calls at once; None: nothing. A small model that must call its one tool calls
    it again and again, so there several calls are only for who asked for them.
    """
    is_one = mode == "required" and len(names) == 1
    bound = frozenset(names) if is_bound else frozenset()
    return ToolChoice(mode, bound, parallel=parallel is True if is_one else parallel is not False)
