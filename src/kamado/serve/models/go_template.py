"""Ollama's chat templates are Go templates; Kamado's are Jinja, run in a sandbox. This translates the one to the other.

    text, comments, {{- trimming -}}
    {{ if }} {{ else if }} {{ else }} {{ end }}, {{ range }} (also with $index, $element), {{ with }}, {{ break }},
    {{ continue }}, $variables, field access, literals, ( ), pipelines, and the functions eq ne lt le gt ge and or not
    len index slice json
    .Messages (.Role .Content .Thinking .ToolCalls .ToolName) .System .Prompt .Response .Tools .Think .ThinkLevel
    .IsThinkSet

Anything else (define, template, block, printf, call, methods, dates) is refused by name: a template that means
something else than its author thought would show in every answer. Nothing is run here: the result is source text, and
Jinja's sandbox bounds it like every other template.

A template without .Messages is Ollama's older kind: it says one turn of .System, .Prompt and .Response, is repeated for
every turn, and ends before .Response for the one to be answered.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ...errors import UsageError
from .go_lexer import Action, lex, string_of, tokens_of

MAX_CHARACTERS = 64 << 10
MAX_DEPTH = 32
# Of one translated expression: `eq` writes its first operand once for each of the others, so nesting it multiplies.
_MAX_EXPRESSION = 16 << 10

_LITERALS = {"true": "true", "false": "false", "nil": "none"}
_COMPARE = {"ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_KEYWORDS = frozenset(
    {"if", "else", "end", "range", "with", "break", "continue", "define", "template", "block", "return"}
)

# Go's names of fields, and what Hugging Face's templates call the same.
_FIELDS = {
    "Role": "role",
    "Content": "content",
    "Thinking": "reasoning_content",
    "ToolCalls": "tool_calls",
    "ToolName": "name",
    "ToolCallID": "tool_call_id",
    "ID": "id",
    "Function": "function",
    "Name": "name",
    "Arguments": "arguments",
    "Type": "type",
    "Description": "description",
    "Parameters": "parameters",
    "Properties": "properties",
    "Required": "required",
    "Enum": "enum",
    "Items": "items",
}
_ROOT = {
    "Messages": "messages",
    "Tools": "(tools or [])",
    "System": "kmd.system",
    "Prompt": "kmd.prompt",
    "Response": "kmd.response",
    "Think": "(enable_thinking is defined and enable_thinking)",
    "IsThinkSet": "(enable_thinking is defined)",
    "ThinkLevel": "(reasoning_effort if reasoning_effort is defined else '')",
}


def to_jinja(source: str) -> str:
    """The same template in Jinja. Raises UsageError naming what cannot be translated."""
    UsageError.when(
        len(source) > MAX_CHARACTERS,
        f"the template has {len(source)} characters, more than the {MAX_CHARACTERS} allowed",
    )
    parser = _Parser(lex(source))
    nodes = parser.block(0)
    if parser.uses_messages:
        prelude = (
            "{% set kmd = namespace(system='', prompt='', response='') %}{% for message in messages %}"
            "{% if message.role == 'system' %}"
            "{% set kmd.system = kmd.system ~ ('\\n\\n' if kmd.system else '') ~ message.content %}"
            "{% elif message.role == 'user' %}{% set kmd.prompt = message.content %}{% endif %}{% endfor %}"
        )
        return prelude + "".join(_write(nodes))
    before, is_found = _until_response(nodes)
    whole = "".join(_write(nodes)) + ("" if is_found else "{{ kmd.response }}")
    return _TURNS.format(whole=whole, open="".join(_write(before)))


# Says whole turns as they end, and the open one up to its answer. `kmd` holds the turn being collected.
_TURNS = (
    "{{% set kmd = namespace(system='', prompt='', response='') %}}"
    "{{% for message in messages %}}"
    "{{% if (message.role == 'system' and (kmd.prompt or kmd.response))"
    " or (message.role == 'user' and kmd.response) %}}"
    "{whole}"
    "{{% set kmd.system = '' %}}{{% set kmd.prompt = '' %}}{{% set kmd.response = '' %}}{{% endif %}}"
    "{{% if message.role == 'system' %}}{{% set kmd.system = message.content %}}"
    "{{% elif message.role == 'user' %}}"
    "{{% set kmd.prompt = kmd.prompt ~ ('\\n\\n' if kmd.prompt else '') ~ message.content %}}"
    "{{% elif message.role == 'assistant' %}}{{% set kmd.response = message.content %}}{{% endif %}}"
    "{{% endfor %}}"
    "{open}{{{{ kmd.response }}}}"
)


@dataclass
class _Node:
    """Source of Jinja, or a block: `before` the first body, then a part for every body, then `after`."""

    source: str = ""
    is_response: bool = False
    branches: list[tuple[str, list[_Node]]] = field(default_factory=list)  # (tag, body)
    end: str = ""


class _Parser:
    """Actions to nodes. `dots` are the Jinja names of `.`, from the root inwards ("" is the root)."""

    def __init__(self, items: Sequence[str | Action]) -> None:
        self._items = items
        self._at = 0
        self._dots = [""]
        self._num_names = 0
        self._loops = 0
        self._variables: set[str] = set()
        self.uses_messages = False

    def block(self, depth: int) -> list[_Node]:
        """Nodes up to the end of the template, or of the block that was opened."""
        UsageError.when(depth > MAX_DEPTH, f"the template is nested deeper than {MAX_DEPTH} levels")
        nodes: list[_Node] = []
        while self._at < len(self._items):
            item = self._items[self._at]
            if isinstance(item, str):
                if item:
                    nodes.append(_Node(f"{{{{ {json.dumps(item)} }}}}"))
                self._at += 1
                continue
            word = item.text.split(None, 1)[0] if item.text else ""
            if word in ("end", "else"):
                UsageError.when(depth == 0, f"the template has an {{{{ {word} }}}} too many")
                return nodes
            self._at += 1
            nodes += self._action(item.text, word, depth)
        UsageError.when(depth, "the template misses an {{ end }}")
        return nodes

    def _action(self, text: str, word: str, depth: int) -> list[_Node]:
        rest = text[len(word) :].strip()
        opened = {"if": self._if, "range": self._range, "with": self._with}.get(word)
        if opened is not None:
            return [opened(rest, depth)]
        if word in ("break", "continue") and not rest:
            UsageError.when(not self._loops, f"the template has {{{{ {word} }}}} outside of a range")
            return [_Node(f"{{% {word} %}}")]
        UsageError.when(word in _KEYWORDS, f"the template uses {{{{ {word} }}}}, which is not supported")
        match = re.fullmatch(r"\$(\w+)\s*(:?=)\s*(.*)", text, re.DOTALL)
        if match:
            return [self._assign(match[1], match[2] == ":=", match[3])]
        if text == ".Response" and self._dots[-1] == "":
            return [_Node("{{ kmd.response }}", is_response=True)]
        return [_Node(f"{{{{ {self._expression(text)} }}}}")]

    def _assign(self, name: str, is_new: bool, text: str) -> _Node:
        value = self._expression(text)
        UsageError.when(not is_new and name not in self._variables, f"the template sets ${name} before it declares it")
        self._variables.add(name)
        return _Node(f"{{% set var_{name} = namespace(value={value}) %}}" if is_new else self._set(name, value))

    @staticmethod
    def _set(name: str, value: str) -> str:
        return f"{{% set var_{name}.value = {value} %}}"

    def _if(self, condition: str, depth: int) -> _Node:
        node = _Node(end="{% endif %}")
        tag = f"{{% if {self._expression(condition)} %}}"
        while True:
            node.branches.append((tag, self.block(depth + 1)))
            word = self._closing()
            if word == "end":
                return node
            if word == "else":
                node.branches.append(("{% else %}", self.block(depth + 1)))
                UsageError.when(self._closing() != "end", "the template has an {{ else }} after an {{ else }}")
                return node
            UsageError.when(
                not word.startswith("else if "), f"the template uses {{{{ {word[:40]} }}}}, which is not supported"
            )
            tag = f"{{% elif {self._expression(word[8:])} %}}"

    def _closing(self) -> str:
        """The `end`, `else` or `else if …` that ended a block."""
        UsageError.when(self._at >= len(self._items), "the template misses an {{ end }}")
        item = self._items[self._at]
        assert isinstance(item, Action)
        self._at += 1
        return " ".join(item.text.split())

    def _new_name(self) -> str:
        self._num_names += 1
        return f"item{self._num_names}"

    def _range(self, text: str, depth: int) -> _Node:
        match = re.fullmatch(r"(?:\$(\w+)\s*(?:,\s*\$(\w+)\s*)?:=)?\s*(.*)", text, re.DOTALL)
        assert match is not None  # everything in it may be missing
        first, second, over = match.groups()
        index, element = (first, second) if second else (None, first)
        name = self._new_name()
        head = f"{{% for {name} in {self._expression(over)} %}}"
        for variable, value in ((index, "loop.index0"), (element, name)):
            if variable and variable != "_":
                self._variables.add(variable)
                head += f"{{% set var_{variable} = namespace(value={value}) %}}"
        return self._body(head, "{% endfor %}", name, depth, loops=1)

    def _with(self, text: str, depth: int) -> _Node:
        name = self._new_name()
        head = f"{{% set {name} = {self._expression(text)} %}}{{% if {name} %}}"
        return self._body(head, "{% endif %}", name, depth, loops=0)

    def _body(self, head: str, end: str, dot: str, depth: int, *, loops: int) -> _Node:
        node = _Node(end=end)
        self._dots.append(dot)
        self._loops += loops
        node.branches.append((head, self.block(depth + 1)))
        self._dots.pop()
        self._loops -= loops
        word = self._closing()
        if word == "else":
            node.branches.append(("{% else %}", self.block(depth + 1)))
            word = self._closing()
        UsageError.when(word != "end", f"the template uses {{{{ {word[:40]} }}}} here, which is not supported")
        return node

    # --- expressions ------------------------------------------------------------------------------------------------

    def _expression(self, text: str) -> str:
        tokens = tokens_of(text)
        value, at = self._pipeline(tokens, 0, 0)
        if at != len(tokens):
            raise UsageError(f"the template's {{{{ {text[:60]} }}}} cannot be read at {tokens[at][1]!r}")
        return value

    def _pipeline(self, tokens: Sequence[tuple[str, str]], at: int, depth: int) -> tuple[str, int]:
        value, at = self._command(tokens, at, depth, None)
        while at < len(tokens) and tokens[at][1] == "|":
            value, at = self._command(tokens, at + 1, depth, value)
        return value, at

    def _command(self, tokens: Sequence[tuple[str, str]], at: int, depth: int, piped: str | None) -> tuple[str, int]:
        """A function with its operands, or one operand. What is piped in becomes the last operand."""
        UsageError.when(depth > MAX_DEPTH, f"the template's expressions are nested deeper than {MAX_DEPTH} levels")
        UsageError.when(at >= len(tokens), "the template has an empty expression")
        kind, text = tokens[at]
        name = text if kind == "word" and text not in _LITERALS else None
        if name is not None:
            at += 1
        operands: list[str] = []
        while at < len(tokens) and tokens[at][1] not in (")", "|"):
            value, at = self._operand(tokens, at, depth)
            operands.append(value)
        if piped is not None:
            operands.append(piped)
        if name is not None:
            return _call(name, operands), at
        UsageError.when(len(operands) != 1, "the template calls something that is no function")
        return operands[0], at

    def _operand(self, tokens: Sequence[tuple[str, str]], at: int, depth: int) -> tuple[str, int]:
        kind, text = tokens[at]
        if text == "(":
            value, at = self._pipeline(tokens, at + 1, depth + 1)
            UsageError.when(at >= len(tokens) or tokens[at][1] != ")", "the template misses a )")
            return f"({value})", at + 1
        if kind == "word" and text in _LITERALS:
            return _LITERALS[text], at + 1
        readers: dict[str, Callable[[str], str]] = {"string": string_of, "number": str, "path": self._path}
        UsageError.when(kind not in readers, f"the template cannot be read at {text!r}")
        return readers[kind](text), at + 1

    def _path(self, path: str) -> str:
        start, *fields = path.split(".")
        if start.startswith("$") and len(start) > 1:
            UsageError.when(start[1:] not in self._variables, f"the template uses {start} before it declares it")
            base = f"var_{start[1:]}.value"
        else:
            base = "" if start == "$" else self._dots[-1]
        fields = [name for name in fields if name]
        if base == "" and fields:
            name = fields.pop(0)
            UsageError.when(name not in _ROOT, f"the template uses .{name}, which is not supported")
            self.uses_messages |= name == "Messages"
            base = _ROOT[name]
        elif base == "":
            raise UsageError("the template uses all of its data at once (.), which is not supported")
        for name in fields:
            UsageError.when(name not in _FIELDS, f"the template uses .{name}, which is not supported")
            base += f".{_FIELDS[name]}" if name != "Items" else "['items']"
        return base


def _call(name: str, operands: Sequence[str]) -> str:
    n = len(operands)
    calls: dict[str, tuple[bool, Callable[[], str]]] = {
        "eq": (n >= 2, lambda: "(" + " or ".join(f"{operands[0]} == {other}" for other in operands[1:]) + ")"),
        "and": (n >= 1, lambda: "(" + " and ".join(operands) + ")"),
        "or": (n >= 1, lambda: "(" + " or ".join(operands) + ")"),
        "not": (n == 1, lambda: f"(not {operands[0]})"),
        "len": (n == 1, lambda: f"({operands[0]} | length)"),
        "index": (n == 2, lambda: f"{operands[0]}[{operands[1]}]"),
        "slice": (n in (2, 3), lambda: f"{operands[0]}[{operands[1]}:{operands[2] if n == 3 else ''}]"),
        "json": (n == 1, lambda: f"({operands[0]} | tojson)"),
    }
    if name in _COMPARE:
        calls[name] = (n == 2, lambda: f"({operands[0]} {_COMPARE[name]} {operands[1]})")
    UsageError.when(name not in calls, f"the template uses the function {name[:40]!r}, which is not supported")
    fits, make = calls[name]
    UsageError.when(not fits, f"the template gives {name!r} {n} operands")
    longest = sum(map(len, operands)) + (n * len(operands[0]) if operands else 0)
    UsageError.when(
        longest > _MAX_EXPRESSION, f"the template has an expression of more than {_MAX_EXPRESSION} characters"
    )
    return make()


def _write(nodes: Sequence[_Node]) -> list[str]:
    out: list[str] = []
    for node in nodes:
        out.append(node.source)  # a block has none
        for tag, body in node.branches:
            out += [tag, *_write(body)]
        out.append(node.end)
    return out


def _until_response(nodes: Sequence[_Node]) -> tuple[list[_Node], bool]:
    """The nodes before the first .Response, in whatever block it is; and whether there is one."""
    out: list[_Node] = []
    for node in nodes:
        if node.is_response:
            return out, True
        if not node.branches:
            out.append(node)
            continue
        branches, is_found = [], False
        for tag, body in node.branches:
            # {{ if .Response }} around the answer: the open turn has what stands before it all the same
            kept, found = _until_response(body)
            branches.append(("{% if true %}" if found and tag == "{% if kmd.response %}" else tag, kept))
            is_found |= found
        out.append(_Node(branches=branches, end=node.end))
        if is_found:
            return out, True
    return out, False
