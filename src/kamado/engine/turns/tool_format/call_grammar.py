"""The grammar of a whole answer: reasoning, then text or calls, so that what begins as a call ends as a correct one.

    answer:  [ <think> … </think> ]  [ white space ]  ( text | text call … | form )
             or, of models that do so:  <think> … call …

Text may be anything that is no call: where the syntax begins calls with plain text, text that reaches that beginning
must go on as a call; where a call is a whole message, text may not begin like one. Each tool's arguments are bound by
its own schema. Everything between name and arguments is written exactly as the model's template writes earlier turns,
so that the conversation, rendered again, has the same tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from ....errors import ConstraintError, UsageError
from ...forms.grammar import Grammar, check_length
from ...forms.json_schema import Bare, CompiledSchema, Keywords, Tagged, compile_schema, open_schema
from ..chat_types import OutputFormat, Tool
from .reasoning import ReasoningTags
from .syntax import MARK_BASE, MAX_MARKS, BareArguments, CallSyntax, KeywordArguments, Marks, is_mark

_NO_MARKS = rf"\x{{{MARK_BASE:X}}}-\x{{{MARK_BASE + MAX_MARKS - 1:X}}}"
ANY_TEXT = f"[^{_NO_MARKS}]"
_VISIBLE = rf"[^ \t\r\n{_NO_MARKS}]"
_TEXT = f"({_VISIBLE}{ANY_TEXT}*)"
_MAX_LARK = 1 << 19
_MAX_ORDERED_DEPTH = 128

_OBJECT: Mapping[str, Any] = {"type": "object"}
_EMPTY: Mapping[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


class AnswerGrammar:
    """Collects the rules of one answer."""

    def __init__(
        self,
        marks: Marks,
        *,
        tags: ReasoningTags | None,
        is_reasoning: bool,
        syntax: CallSyntax | None,
        tools: Sequence[Tool],
        is_required: bool,
        is_parallel: bool,
        output: OutputFormat,
        loosened: Mapping[str, str] | None = None,
    ) -> None:
        """`tags` None: no reasoning may come. `is_required`: a call must come. `loosened`: names of tools whose schemas
        are left open as a whole, each with the reason; "" is the form's."""
        self._marks = marks
        self._tags = tags
        self._is_reasoning = is_reasoning
        self._syntax = syntax if tools else None
        self._tools = tools
        self._is_required = is_required
        self._is_parallel = is_parallel
        self._output = output
        self._loosened = loosened or {}
        self.schemas: dict[str, CompiledSchema] = {}  # by tool, "" for the form: what the answer is held to
        self._own_parts: set[str] = set()
        self._rules: list[str] = []
        self._parts: list[dict[str, Any]] = []

    def build(self) -> Grammar | None:
        """The grammar; None when anything may come. Raises ConstraintError for a schema that cannot be used."""
        if self._syntax is None and self._output.kind == "text":
            return None
        # Where the parser looks for reasoning or calls it leaves out the blanks before them; else they would be shown.
        space = "SPACE? " if self._tags is not None or self._syntax is not None else ""
        starts = [f"{self._reasoning()}{space}answer"]
        answer = " | ".join(self._answers())
        if self._tags is not None and self._syntax is not None and self._syntax.ends_reasoning:
            opening = "" if self._is_reasoning else f"{self._literal(self._tags.open)} "
            starts.append(f"{opening}{self._thought_call(self._syntax)}")
        return self._grammar(
            [f"start: {' | '.join(starts)}", f"answer: {answer}", r"SPACE: /[ \t\r\n]{1,4}/", *self._rules]
        )

    def _grammar(self, rules: Sequence[str]) -> Grammar:
        """These rules, with the parts that they name."""
        top = {"name": "answer", "lark_grammar": "\n".join(rules)}
        text = json.dumps({"grammars": [top, *self._parts]}, ensure_ascii=False)
        if len(text) > _MAX_LARK:
            raise ConstraintError(f"the tools' schemas have {len(text)} characters together: {_MAX_LARK} are allowed")
        is_plain = all(compiled.is_plain for compiled in self.schemas.values())
        return Grammar("parts", text, is_plain=is_plain, own_parts=frozenset({"answer", *self._own_parts}))

    def _reasoning(self) -> str:
        if self._tags is None:
            return ""
        if is_mark(self._tags.close[0]):
            self._rules.append(f"reasoning: REASONING? {self._literal(self._tags.close)}")
            self._rules.append(f"REASONING: /{ANY_TEXT}+/")
        else:
            self._rules.append(f"reasoning[lazy]: /{ANY_TEXT}*/ {self._literal(self._tags.close)}")
        return "reasoning " if self._is_reasoning else f"({self._literal(self._tags.open)} reasoning)? "

    def _thought_call(self, syntax: CallSyntax) -> str:
        """Reasoning that a call ends, and the calls."""
        if is_mark(syntax.begin[0]):
            self._rules.append(f"thought_call: /{ANY_TEXT}+/? {self._literal(syntax.begin)}")
            return "thought_call calls"
        # Models speak of calls while they think, so only a beginning with all of its head is one.
        begin = self._literal(syntax.begin + syntax.open + syntax.head)
        self._rules.append(f"thought_call[lazy]: /{ANY_TEXT}*/ {begin}")
        return f"thought_call {self._calls(syntax, 'named')}"

    def _answers(self) -> list[str]:
        syntax = self._syntax
        has_form = self._output.kind != "text"
        if has_form:
            self._add_form()
        if syntax is None:
            return ["@form"]
        self._add_calls(syntax)
        begin = self._literal(syntax.begin)
        if self._is_required:
            return [f"{begin} calls"]
        if has_form:
            if syntax.is_whole_message:
                raise UsageError(
                    "this model writes calls as JSON messages, which an answer of another given form cannot be told "
                    "from: ask for the form or offer tools, or set tool_choice to required"
                )
            return [f"{begin} calls", "@form"]
        text = f"/{_TEXT}/"
        if self._tags is not None and not self._is_reasoning and not is_mark(self._tags.open[0]):
            text += f" & ~/{_regex(self._tags.open)}{ANY_TEXT}*/"
        if syntax.is_whole_message:
            names = "|".join(_regex(tool.name) for tool in self._tools)
            head = _regex(syntax.open + syntax.head) + f"({names})" + _regex(syntax.middle)
            self._rules.append(f"TEXT: {text} & ~/{head}{ANY_TEXT}*/")
            return ["TEXT?", "calls"]
        self._rules.append(f"TEXT: {text}")
        # The first `begin` ends these rules, whatever else the text might have been: so a call must follow.
        answers = []
        if is_mark(syntax.begin[0]):
            answers.append(f"TEXT? ({begin} calls)?")
        else:
            self._rules.append(f"until_call[lazy]: (({text}) | /()/) {begin}")
            answers += ["TEXT?", "until_call calls"]
        if syntax.bare:
            self._rules.append(f"until_bare[lazy]: (({text}) | /()/) {self._literal(syntax.bare)}")
            answers.append(f"until_bare {self._calls(syntax, 'bare')}")
        return answers

    def _calls(self, syntax: CallSyntax, first: str) -> str:
        """One call or several, of which `first` is the first."""
        more = ""
        if syntax.between is not None and self._is_parallel:
            more = f" ({self._literal(syntax.between)} call)*"
        return f"{first}{more} {self._literal(syntax.close)}"

    def _add_calls(self, syntax: CallSyntax) -> None:
        self._rules.append(f"calls: {self._literal(syntax.open)} {self._calls(syntax, 'call')}")
        numbers = range(len(self._tools))
        if syntax.is_whole_message:
            self._rules.append("call: " + " | ".join(f"call_{i}" for i in numbers))
        else:
            self._rules.append(f"call: {self._literal(syntax.head)} named")
            self._rules.append("named: " + " | ".join(f"call_{i}" for i in numbers))
        if syntax.bare:
            rest = self._literal(syntax.tail.removeprefix(syntax.bare_tail))
            self._rules.append(f"bare: ({' | '.join(f'bare_{i}' for i in numbers)}) ({rest})?")
        for i, tool in enumerate(self._tools):
            begin = self._begin_of(tool.name, syntax, i)
            self._rules.append(f"call_{i}: {begin} @arguments_{i} {self._literal(syntax.tail)}")
            if syntax.bare:
                self._rules.append(f"bare_{i}: {begin} @arguments_{i} {self._literal(syntax.bare_tail)}")
            self._add_arguments(i, tool, syntax)

    def _add_arguments(self, i: int, tool: Tool, syntax: CallSyntax) -> None:
        """The part `arguments_i` for the arguments of a tool."""
        schema = tool.parameters or _EMPTY
        if isinstance(syntax.arguments, BareArguments):
            schema = _in_order(schema)
        compiled = self._compiled(
            schema, tool.name, tool.strict, *syntax.separators, is_object=True, tagged=self._tagged(syntax)
        )
        self._add_schema(f"arguments_{i}", tool.name, compiled)

    def _tagged(self, syntax: CallSyntax) -> Tagged | Keywords | Bare | None:
        tags = syntax.arguments
        if tags is None:
            return None
        if isinstance(tags, BareArguments):
            return Bare(*syntax.separators, self._marks.token(tags.quote))
        if isinstance(tags, KeywordArguments):
            return Keywords(", ", tags.literals != "json")
        marks = sorted({c for text in (tags.before, tags.middle, tags.after) for c in text if is_mark(c)})
        tokens = tuple((mark, self._marks.token(mark)) for mark in marks)
        return Tagged(tags.before, tags.middle, tags.after, tags.has_python_words, tokens)

    def _begin_of(self, name: str, syntax: CallSyntax, i: int) -> str:
        """A call's text up to its arguments; without the head, where text goes before calls."""
        if syntax.is_whole_message:
            return self._head(syntax.head + name + syntax.middle, syntax, i)
        if not syntax.id_before:
            return self._literal(name + syntax.middle)
        # Models may give their calls ids; clients get ours.
        call_id = f"({self._literal(syntax.id_before)} /[A-Za-z0-9]{{9}}/)?"
        return f"{self._literal(name)} {call_id} {self._literal(syntax.middle)}"

    def _head(self, head: str, syntax: CallSyntax, i: int) -> str:
        """A call that is a whole message needs its beginning in one piece, for text is ruled out by that piece."""
        if not syntax.is_whole_message or any(map(is_mark, head)):
            return self._literal(head)
        self._rules.append(f"head_{i}[lazy]: {self._literal(head)}")
        return f"head_{i}"

    def _compiled(
        self,
        schema: Mapping[str, Any],
        owner: str,
        is_strict: bool,
        item_separator: str = ",",
        key_separator: str = ":",
        *,
        is_object: bool = False,
        tagged: Tagged | Keywords | Bare | None = None,
    ) -> CompiledSchema:
        """The schema of tool `owner`, or of the form (""), left open as a whole where it cannot be used."""
        form = (item_separator, key_separator)
        if owner in self._loosened:
            return open_schema(schema, self._loosened[owner], *form, is_object=is_object, tagged=tagged)
        try:
            compiled = compile_schema(schema, *form, is_object=is_object, tagged=tagged)
            if is_strict:
                compiled.refuse_open("it" if owner else "the schema")
            return compiled
        except ConstraintError as error:
            if is_strict:
                raise ConstraintError(f"tool {owner!r}: {error}" if owner else str(error)) from None
            return open_schema(schema, str(error), *form, is_object=is_object, tagged=tagged)

    def _add_form(self) -> None:
        output = self._output
        if output.kind == "lark":
            check_length("the grammar", output.grammar)
            self._parts.append({"name": "form", "lark_grammar": output.grammar})
        elif output.kind == "regex":
            check_length("the regular expression", output.grammar)
            self._parts.append({"name": "form", "lark_grammar": f"start: /{_slashes(output.grammar)}/"})
        else:
            has_schema = output.kind == "json_schema" and output.schema is not None
            schema: Mapping[str, Any] = output.schema if has_schema and output.schema else _OBJECT
            compiled = self._compiled(schema, "", output.is_strict)
            self._add_schema("form", "", compiled)
            if not has_schema:
                del self.schemas[""]  # no schema was given: there is nothing to say of it

    def _add_schema(self, name: str, owner: str, compiled: CompiledSchema) -> None:
        self._parts.append({"name": name, "lark_grammar": compiled.lark})
        self._own_parts.add(name)
        self.schemas[owner] = compiled

    def _literal(self, text: str) -> str:
        """Plain text as a string, marks as their tokens."""
        out: list[str] = []
        for are_marks, run in groupby(text, key=is_mark):
            if are_marks:
                out += (f"<[{self._marks.token(mark)}]>" for mark in run)
            else:
                out.append(json.dumps("".join(run), ensure_ascii=False))
        return " ".join(out)


def _in_order(schema: Any, depth: int = 0) -> Any:
    """A schema with every object's keys in order, as a template writes arguments that sorts them: the order of keys
    says nothing in JSON Schema. What is too deep to be compiled stays as it is."""
    if depth > _MAX_ORDERED_DEPTH:
        return schema
    if isinstance(schema, Mapping):
        return {key: _in_order(schema[key], depth + 1) for key in sorted(schema, key=lambda key: str(key).lower())}
    return [_in_order(item, depth + 1) for item in schema] if isinstance(schema, list | tuple) else schema


def _regex(text: str) -> str:
    """A regular expression of exactly `text`, for between slashes."""
    return "".join("\\" + c if c in r"\.+*?()|[]{}^$#&-~/" else "\\n" if c == "\n" else c for c in text)


def _slashes(regex: str) -> str:
    """`regex` as it may stand between slashes."""
    out: list[str] = []
    is_escaped = False
    for c in regex:
        out.append("\\/" if c == "/" and not is_escaped else "\\n" if c == "\n" and not is_escaped else c)
        is_escaped = c == "\\" and not is_escaped
    return "".join(out)
