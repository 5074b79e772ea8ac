"""The guarded Jinja environment of `template.ChatTemplate`; imported when a template is first used.

Jinja's immutable sandbox keeps a template away from Python's internals. It does not bound time or memory: this module
and `template_guards` do, and where they cannot, the worker process in which templates run that are not plain.
Everything that can build a value (operators, literals, slices, concatenation, calls, filters, blocks) goes through a
guard that knows the size of the result, and every loop body counts.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import BlockReference, Context, LoopContext, Macro, TemplateReference, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Joiner, Namespace, pass_context
from jinja2.visitor import NodeTransformer

from ..errors import TemplateError
from .template_bounds import PassedLimitError, TemplateLimits
from .template_guards import (
    MAX_INT_BITS,
    BoundedFormat,
    Budget,
    as_text,
    budget,
    check_percent,
    check_str_method,
    fresh_budget,
    guarded_filters,
    guarded_functions,
)

_T = TypeVar("_T")

_STR_METHODS = """
    capitalize casefold center count endswith find format format_map index isalnum isalpha isascii isdecimal isdigit
    islower isnumeric isspace istitle isupper join ljust lower lstrip partition removeprefix removesuffix replace
    rfind rindex rjust rpartition rsplit rstrip split splitlines startswith strip swapcase title upper zfill
"""
_METHODS: tuple[tuple[type | tuple[type, ...], frozenset[str]], ...] = (
    (str, frozenset(_STR_METHODS.split())),
    (dict, frozenset({"copy", "get", "items", "keys", "values"})),
    ((list, tuple), frozenset({"copy", "count", "index"})),
    ((int, float), frozenset({"is_integer"})),
)
# What else a template can hold; all their public attributes are harmless.
_OPEN_TYPES = (LoopContext, Macro, Namespace, Cycler, Joiner, TemplateReference, BlockReference, Undefined)
_CALLABLE_TYPES = (Macro, LoopContext, Cycler, Joiner, BlockReference, Undefined, BoundedFormat)


class Compiled:
    """A compiled template."""

    def __init__(self, source: str, limits: TemplateLimits) -> None:
        self._limits = limits
        self._template = guarded(limits, lambda _: Environment().from_string(source))

    def render(self, variables: Mapping[str, Any]) -> str:
        """The output for `variables`, which must be plain data."""

        def run(budget: Budget) -> str:
            parts: list[str] = []
            num_chars = 0
            for part in self._template.root_render_func(self._template.new_context(dict(variables))):
                num_chars += len(part)
                if num_chars > self._limits.output_chars:
                    raise TemplateError(f"the chat template writes more than {self._limits.output_chars} characters")
                parts.append(part)
            budget.step()
            return "".join(parts)

        return guarded(self._limits, run)


def guarded(limits: TemplateLimits, run: Callable[[Budget], _T]) -> _T:
    """`run` under a fresh budget; whatever goes wrong is a TemplateError."""
    try:
        with fresh_budget(limits) as fresh:
            return run(fresh)
    except TemplateError:
        raise
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(f"chat template, line {error.lineno}: {_short(error)}") from error
    except jinja2.TemplateError as error:
        raise TemplateError(f"chat template: {_short(error)}") from error
    except RecursionError as error:
        raise PassedLimitError("the chat template is nested too deeply or calls itself without end") from error
    except MemoryError:
        raise
    except Exception as error:  # a template may call anything on anything: any fault is the template's
        raise TemplateError(f"chat template: {type(error).__name__}: {_short(error)}") from error


def _short(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return text if len(text) <= 500 else text[:500] + "…"


class _Guards(NodeTransformer):
    """Rewrites a parsed template so that what Jinja compiles to plain Python goes through the environment's guards."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_call("guard_step", [], node), lineno=node.lineno))
        if node.test is not None:
            node.test = nodes.And(_call("guard_step", [], node), node.test, lineno=node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call("guard_concat", node.nodes, node)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        bounds = [
            part if part is not None else nodes.Const(None) for part in (node.arg.start, node.arg.stop, node.arg.step)
        ]
        return _call("guard_slice", [node.node, *bounds], node)

    def visit_List(self, node: nodes.List) -> nodes.Node:
        return self._literal(node, node.items)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        return self._literal(node, node.items) if node.ctx == "load" else node

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        return self._literal(node, [part for pair in node.items for part in (pair.key, pair.value)])

    def _literal(self, node: nodes.Expr, parts: list[nodes.Expr]) -> nodes.Node:
        constant = all(isinstance(part, nodes.Const) for part in parts)
        self.generic_visit(node)
        return node if constant else _call("guard_value", [node], node)


def _call(guard: str, args: list[nodes.Expr], at: nodes.Node) -> nodes.Call:
    function = nodes.EnvironmentAttribute(guard, lineno=at.lineno)
    return nodes.Call(function, args, [], None, None, lineno=at.lineno)


class Environment(ImmutableSandboxedEnvironment):
    """Jinja with Hugging Face's additions and Kamado's limits. The limits are those of the running `Budget`."""

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, loopcontrols],
            finalize=_finalize,
            optimized=False,  # nothing runs at compile time
            cache_size=0,
        )
        self.filters = guarded_filters()
        self.globals.clear()
        self.globals.update(guarded_functions(), namespace=SafeNamespace, cycler=Cycler, joiner=Joiner)
        self._functions = frozenset(self.globals.values())

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        _Guards().visit(tree)  # a template's root node stays
        tree.set_environment(self)
        return tree

    # Guards that rewritten templates call.

    def guard_step(self) -> bool:
        """One loop iteration. True, so that it can stand in a condition."""
        budget().step()
        return True

    def guard_value(self, value: Any) -> Any:
        """A literal was built."""
        return budget().built(value)

    def guard_concat(self, *parts: Any) -> str:
        """The operator `~`."""
        return self.concat([as_text(part) for part in parts])

    def guard_slice(self, value: Any, start: Any, stop: Any, step: Any) -> Any:
        """`value[start:stop:step]`."""
        if not isinstance(value, str | list | tuple):
            if isinstance(value, Undefined):
                return value[start:stop:step]  # raises Jinja's own error
            raise TemplateError(f"the chat template slices a {type(value).__name__}")
        return budget().built(value[start:stop:step])

    def concat(self, parts: Iterable[str]) -> str:  # a function attribute in Jinja
        """Join what a block or macro wrote."""
        texts = list(parts)
        room = budget()
        room.reserve(sum(map(len, texts)))
        result: str = room.built("".join(texts))
        return result

    # Jinja's own hooks.

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """An arithmetic operator, its result's size checked before it is built."""
        room = budget()
        if operator == "%" and isinstance(left, str):
            check_percent(left, right)
        elif operator == "*":
            for sequence, count in ((left, right), (right, left)):
                if isinstance(sequence, str | list | tuple) and isinstance(count, int):
                    room.reserve(room.size(sequence) * max(count, 0))
        elif operator == "+" and isinstance(left, str | list | tuple):
            room.reserve(room.size(left) + room.size(right))
        elif operator == "**" and not _is_small_power(left, right):
            raise TemplateError("the chat template computes a power that is too large")
        return room.built(super().call_binop(context, operator, left, right))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Only attributes that are listed, on types that a template can meet."""
        if not super().is_safe_attribute(obj, attr, value):
            return False
        for kind, names in _METHODS:
            if isinstance(obj, kind):
                return attr in names
        return isinstance(obj, _OPEN_TYPES)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`str.format`, sandboxed by Jinja and bounded here."""
        wrapped = super().wrap_str_format(value)
        return None if wrapped is None else BoundedFormat(value.__self__, wrapped)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Call what the template calls: a macro, a listed method or global."""
        room = budget()
        owner = getattr(__obj, "__self__", None) if isinstance(__obj, types.MethodType) else None
        if owner is __self and __obj.__name__.startswith("guard_"):
            return __obj(*args)
        if isinstance(__obj, types.BuiltinMethodType) and isinstance(__obj.__self__, str):
            args = check_str_method(__obj.__self__, __obj.__name__, args, kwargs)
        elif not (
            isinstance(__obj, (*_CALLABLE_TYPES, types.BuiltinMethodType))
            or isinstance(owner, (*_OPEN_TYPES, str))
            or (isinstance(__obj, types.FunctionType | type) and __obj in __self._functions)
        ):
            raise TemplateError(f"the chat template calls a {type(__obj).__name__}")
        room.reserve(room.sizes(*args, *kwargs.values()))
        return room.built(super().call(__context, __obj, *args, **kwargs))


class _Generation(Extension):
    """`{% generation %}` marks the assistant's words for training. Here it only scopes variables."""

    tags = {"generation"}  # noqa: RUF012  # declared by Jinja

    def parse(self, parser: Parser) -> nodes.Node:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=lineno)


class SafeNamespace(Namespace):
    """Jinja's namespace, without underscore names, and printed as one word however much it holds."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, args = args[0], args[1:]
        attrs = dict(*args, **kwargs)
        for name in attrs:
            _check_name(name)
        Namespace.__init__(self, attrs)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<namespace>"


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or name.startswith("_"):
        raise TemplateError(f"the chat template sets the forbidden attribute {str(name)[:40]!r}")


@pass_context
def _finalize(context: Context, value: Any) -> str:
    """What `{{ value }}` writes."""
    room = budget()
    room.step()
    if type(value) is str:
        return value
    text: str = room.built(as_text(value))
    return text


def _is_small_power(base: Any, exponent: Any) -> bool:
    if isinstance(base, int) and isinstance(exponent, int):
        return base.bit_length() * max(exponent, 0) <= MAX_INT_BITS
    return True
