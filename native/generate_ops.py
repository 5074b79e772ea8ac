"""Writes the headers of the operations from src/kamado/program/ (ops.py, stateful.py); CMake says into which folder.

    kamado/row_ops.h    the row-wise operations' structs, choices, the table of their kernels; no library in it, so that
                        files compiled for wide instructions may have it
    kamado/ops.h        the other structs, the list of all, and how a row-wise operation calls its kernel
    kamado/op_rules.h   RULES, SHAPES and RECORD as C++, for the builder

Nothing but the standard library is needed. A file that would not change is left alone, so nothing is built again.
"""

from __future__ import annotations

import ast
import importlib
import string
import sys
import types
from dataclasses import MISSING
from pathlib import Path
from typing import Any

_SOURCE = Path(__file__).resolve().parents[1] / "src" / "kamado" / "program"
_COMPARE = {ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">="}
_BINARY = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.FloorDiv: "/", ast.Mod: "%"}


def _load() -> tuple[Any, Any]:
    """The modules `operation` and `ops`, without the package around them and what that imports."""
    package = types.ModuleType("program")
    package.__path__ = [str(_SOURCE)]
    sys.modules["program"] = package
    sys.dont_write_bytecode = True
    return importlib.import_module("program.operation"), importlib.import_module("program.ops")


operation, ops = _load()
Kind = operation.Kind
IDS = operation.BUFFERS | operation.TENSORS | {Kind.CONSTANTS}
PLAIN = {Kind.FLOAT: "float", Kind.FLOAT64: "double", Kind.BOOL: "bool", Kind.INT: "int32_t", Kind.KEEPS: "int32_t"}
ROW_WISE = [op for op in ops.OPERATIONS if op.IS_ROW_WISE]


def _camel(words: str) -> str:
    """gelu_tanh: GeluTanh"""
    return "".join(word.capitalize() for word in words.split("_"))


def _fields(op: type) -> list[Any]:
    """What the struct has: what is added to a tensor is the tensor's."""
    return [field for field in operation.fields_of(op) if field.kind is not Kind.ADDED]


def _inputs(op: type) -> list[Any]:
    return [field for field in _fields(op) if field.kind is Kind.READS]


def _parameters(op: type) -> list[Any]:
    return [field for field in _fields(op) if field.kind not in IDS]


def _type(field: Any) -> str:
    if field.kind in IDS:
        return "std::vector<int32_t>" if field.is_list else "int32_t"
    return field.alias if field.kind is Kind.CHOICE else PLAIN[field.kind]


def _initial(field: Any) -> str:
    """The default as C++ writes it: no number is 0, no operand is -1."""
    value = None if field.default is MISSING else field.default
    if field.kind in IDS:
        return "" if field.is_list else " = -1"
    if field.kind is Kind.CHOICE:
        return f" = {field.alias}::k{_camel(value or field.choices[0])}"
    if field.kind is Kind.BOOL:
        return f" = {str(bool(value)).lower()}"
    return f" = {value or 0!r}" + ("f" if field.kind is Kind.FLOAT and value else "")


def _struct(op: Any) -> str:
    lines = [f"struct {op.__name__}Op {{"]
    lines += [f"  {_type(field)} {field.name}{_initial(field)};" for field in _fields(op)]
    lines += [
        f'\n  static constexpr const char* kName = "{op.label()}";',
        "  static constexpr const char* kGuards = " + ("nullptr;" if op.GUARDS is None else f'"{op.GUARDS}";'),
    ]
    for name, value in (("kIsInPlace", op.IN_PLACE), ("kIsRowWise", op.IS_ROW_WISE), ("kIsLast", op.IS_LAST),
                        ("kIsRecurrent", op.RECORD is not None)):  # fmt: skip
        lines.append(f"  static constexpr bool {name} = {str(value).lower()};")
    lines += ["  template <class Self, class Visit>", "  static void fields(Self& op, Visit&& visit) {"]
    for field in _fields(op):
        about = f'"{field.name}", {str(field.is_optional).lower()}'
        about += f", k{field.alias}Names, {len(field.choices)}" if field.choices else ""
        lines.append(f"    visit(Field<Role::k{_camel(field.kind.name)}>{{{about}}}, op.{field.name});")
    return "\n".join([*lines, "  }", "};"])


def _row_ops() -> list[str]:
    choices = {field.alias: field.choices for op in ops.OPERATIONS for field in _fields(op) if field.choices}
    roles = ", ".join(f"k{_camel(kind.name)}" for kind in Kind)
    parts = [
        f"enum class Role {{ {roles} }};  // Kind of src/kamado/program/operation.py",
        """template <Role kRole>
struct Field {
  static constexpr Role role = kRole;
  const char* name;
  bool is_optional = false;
  const char* const* choices = nullptr;
  int32_t num_choices = 0;
};""",
    ]
    for alias, names in choices.items():
        values = ", ".join(f"k{_camel(name)}" for name in names)
        texts = ", ".join(f'"{name}"' for name in names)
        parts.append(f"enum class {alias} : int32_t {{ {values} }};")
        parts.append(f"inline constexpr const char* k{alias}Names[] = {{{texts}}};")
    parts += [_struct(op) for op in ROW_WISE]
    parts.append(f"inline constexpr int32_t kMaxRowInputs = {max(len(_inputs(op)) for op in ROW_WISE)};")
    kernels = []
    for op in ROW_WISE:
        arguments = [f"const float* {field.name}" for field in _inputs(op)]
        arguments += [f"{_type(field)} {field.name}" for field in _parameters(op)]
        kernels.append(f"  void (*{op.label()})({', '.join([*arguments, 'int32_t n', 'float* out'])});")
    parts.append("\n".join(["struct RowKernels {", *kernels, "};"]))
    names = ", ".join(f"Tier::{op.label()}" for op in ROW_WISE)
    parts.append(f"template <class Tier>\nconstexpr RowKernels row_kernels() {{\n  return {{{names}}};\n}}")
    return parts


def _ops() -> list[str]:
    names = [f"{op.__name__}Op" for op in ops.OPERATIONS]
    visits = "\n".join(f"  visit({name}{{}});" for name in names)
    parts = [_struct(op) for op in ops.OPERATIONS if not op.IS_ROW_WISE]
    most = max(len(_inputs(op)) for op in ops.OPERATIONS if op.RECORD is not None)
    parts.append(f"inline constexpr int32_t kMaxRecordInputs = {most};")
    parts.append(f"template <class... More>\nusing AnyOf = std::variant<{', '.join(names)}, More...>;")
    parts.append(f"template <class Visit>\nvoid for_each_op(Visit&& visit) {{\n{visits}\n}}")
    for op in ROW_WISE:
        given = [f"in[{i}]" for i in range(len(_inputs(op)))] + [f"op.{field.name}" for field in _parameters(op)]
        parts.append(
            f"inline void run_row_kernel(const RowKernels& kernels, [[maybe_unused]] const {op.__name__}Op& op,\n"
            f"                           const float* const* in, int32_t n, float* out) {{\n"
            f"  kernels.{op.label()}({', '.join([*given, 'n', 'out'])});\n}}"
        )
    return parts


class _Translator:
    """Expressions of RULES and SHAPES in C++. With an index, names of lists mean their entries there."""

    def __init__(self, op: type, index: str | None = None) -> None:
        self._op, self._index = op, index
        self._fields = {field.name: field for field in _fields(op)}

    def __call__(self, expression: str) -> str:
        try:
            return self._of(ast.parse(expression, mode="eval").body)
        except (KeyError, NotImplementedError) as error:
            raise SystemExit(f"{self._op.__name__}: cannot translate {expression!r}: {error!r}") from error

    def _of(self, node: ast.expr) -> str:
        match node:
            case ast.Constant(value=int(value)):
                return f"int64_t{{{value}}}"
            case ast.Name(id=name) if self._fields[name].kind not in IDS:
                is_whole = self._fields[name].kind in (Kind.INT, Kind.KEEPS)
                return f"int64_t{{op.{name}}}" if is_whole else f"op.{name}"
            case ast.Attribute(value=owner, attr="width" | "rows" | "cols" | "choices" as what):
                return f"rules.{what}({self._id(owner)})"
            case ast.Call(func=ast.Name(id="len"), args=[ast.Name(id=name)]):
                is_list = self._fields[name].is_list
                return f"static_cast<int64_t>(op.{name}.size())" if is_list else f"rules.size(op.{name})"
            case ast.BinOp(left=left, op=operator, right=right):
                return f"({self._of(left)} {_BINARY[type(operator)]} {self._of(right)})"
            case ast.BoolOp(op=ast.Or(), values=[ast.Name() as first, second]):  # the first number that is not 0
                return f"({self._of(first)} != 0 ? {self._of(first)} : {self._of(second)})"
            case ast.BoolOp(op=operator, values=values):
                return "(" + (" && " if isinstance(operator, ast.And) else " || ").join(map(self._of, values)) + ")"
            case ast.Compare(left=ast.Name(id=name), ops=[ast.Is()], comparators=[ast.Constant(value=None)]):
                return f"(op.{name} == {-1 if self._fields[name].kind in IDS else 0})"
            case ast.Compare(left=left, ops=[ast.IsNot()], comparators=[ast.Constant(value=None)] as none):
                return f"!{self._of(ast.Compare(left, [ast.Is()], none))}"
            case ast.Compare(left=ast.Name(id=name), ops=[ast.Eq()], comparators=[ast.Constant(value=str(choice))]):
                return f"(op.{name} == {self._fields[name].alias}::k{_camel(choice)})"
            case ast.Compare(left=left, ops=operators, comparators=others):
                terms = [self._of(term) for term in (left, *others)]
                signs = [_COMPARE[type(operator)] for operator in operators]
                links = zip(terms, signs, terms[1:], strict=False)
                return "(" + " && ".join(f"{a} {sign} {b}" for a, sign, b in links) + ")"
        raise NotImplementedError(ast.dump(node))

    def _id(self, node: ast.expr) -> str:
        match node:
            case ast.Name(id=name) if not self._fields[name].is_list:
                return f"op.{name}"
            case ast.Name(id=name) if self._index is not None:
                return f"rules.at(op.{name}, {self._index})"
            case ast.Subscript(value=ast.Name(id=name), slice=ast.Constant(value=int(value))):
                return f"rules.at(op.{name}, {value})"
        raise NotImplementedError(ast.dump(node))


def _rules(op: Any) -> str:
    lines = []
    translate = _Translator(op)
    for rule, problem in op.RULES.items():
        parts = ["std::string()"]
        for words, name, _, _ in string.Formatter().parse(problem):
            parts += [f'"{words}"'] if words else []
            parts += [] if name is None else [f"rules.text({translate(name)})"]
        lines.append(f"  if (!{translate(rule)}) rules.refuse({' + '.join(parts)});")
    for field in _fields(op):
        shape = op.shape_of(field)
        if shape is None:
            continue
        part_of = _Translator(op, "i" if field.is_list else None)
        wanted = ", ".join("-1" if part == "_" else part_of(part) for part in shape.split(", "))
        what = "buffer" if field.kind in operation.BUFFERS else "vector" if field.kind is Kind.VECTOR else "matrix"
        lines += [f"  for (size_t i = 0; i < op.{field.name}.size(); ++i)"] if field.is_list else []
        lines.append(f"  rules.expect_{what}(op.{field.name}{'[i]' if field.is_list else ''}, {wanted});")
    arguments = f"[[maybe_unused]] const {op.__name__}Op& op, [[maybe_unused]] const Rules& rules"
    lines = [f"template <class Rules>\nvoid check_rules({arguments}) {{", *lines, "}"]
    if op.RECORD is not None:
        lines.append(f"template <class Rules>\nint64_t record_values({arguments}) {{")
        lines.append(f"  return {translate(op.RECORD)};\n}}")
    return "\n".join(lines)


def main() -> None:
    """Writes what changed below the folder that is named."""
    folder = Path(sys.argv[1]) / "kamado"
    folder.mkdir(parents=True, exist_ok=True)
    for name, includes, parts in (
        ("row_ops.h", "#include <cstdint>", _row_ops()),
        ("ops.h", '#include <variant>\n#include <vector>\n\n#include "kamado/row_ops.h"', _ops()),
        ("op_rules.h", '#include <string>\n\n#include "kamado/ops.h"', [_rules(op) for op in ops.OPERATIONS]),
    ):
        head = "// Generated by native/generate_ops.py from src/kamado/program/, which is what to edit.\n"
        text = "\n\n".join(
            [f"{head}#pragma once\n{includes}\n\nnamespace kamado {{", *parts, "}  // namespace kamado\n"]
        )
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
