"""How a family of models writes a tool call: the fixed text around its name and its arguments.

    begin · open · call · between · call … close         with    call = head · name · middle · arguments · tail

Arguments are a JSON object, or stand one by one between tags: before · key · middle · value · after, where a value that
is a text is written as it is and any other as JSON; or they are those of a Python call: key=value, key=value; or they
have bare keys and texts between marks: key:value,key:value.

Parts may have special tokens in them, written as the vocabulary spells them. In a stream of text such a token is one
character that text cannot hold (a Unicode noncharacter), so what is a mark and what only looks like one never mix.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from ....text.tokenizer.special import SpecialMatcher
from ...forms.json_schema import single_quoted

if TYPE_CHECKING:
    from ....text.tokenizer import Tokenizer

MARK_BASE = 0xFDD0  # the 32 noncharacters U+FDD0 to U+FDEF
MAX_MARKS = 32


@dataclass(frozen=True, slots=True)
class Call:
    """A whole call."""

    name: str
    arguments: Mapping[str, Any]
    id: str = ""


@dataclass(frozen=True, slots=True)
class ArgumentTags:
    """What stands around an argument's key and its value.

    `has_python_words`: the template writes True, False and None. `as_texts`: it writes lists and objects as Python
    does, so it is given their JSON as texts."""

    before: str
    middle: str
    after: str
    has_python_words: bool = False
    as_texts: bool = False

    def render(self, key: str, value: Any, separators: tuple[str, str]) -> str:
        """One argument."""
        if isinstance(value, str):
            text = value
        elif self.has_python_words and (value is None or isinstance(value, bool)):
            text = str(value)
        else:
            text = json.dumps(value, ensure_ascii=False, separators=separators)
        return self.before + key + self.middle + text + self.after

    def passed(self, arguments: Mapping[str, Any], separators: tuple[str, str]) -> Mapping[str, Any]:
        """Arguments as the template gets them."""
        if not self.as_texts:
            return arguments
        return {
            key: json.dumps(value, ensure_ascii=False, separators=separators)
            if isinstance(value, list | dict)
            else value
            for key, value in arguments.items()
        }


# How values of a Python call are written: as JSON; as Python, texts in double quotes; or as templates do that show
# values by themselves: texts in single quotes, lists as Python has them, objects as JSON.
Literals = Literal["json", "python", "shown"]
_WORDS = {True: "True", False: "False", None: "None"}


@dataclass(frozen=True, slots=True)
class KeywordArguments:
    """Arguments as in a Python call."""

    literals: Literals = "json"

    def render(self, arguments: Mapping[str, Any], separators: tuple[str, str]) -> str:
        """All arguments."""
        return ", ".join(f"{key}={self._literal(value, separators)}" for key, value in arguments.items())

    def _literal(self, value: Any, separators: tuple[str, str]) -> str:
        if self.literals == "python":
            return _python(value, separators)
        if self.literals == "shown" and not isinstance(value, Mapping):
            return single_quoted(value) if isinstance(value, str) else str(value)
        return json.dumps(value, ensure_ascii=False, separators=separators)

    def passed(self, arguments: Mapping[str, Any], separators: tuple[str, str]) -> Mapping[str, Any]:
        """Arguments as the template gets them: one that only puts quotes around a text gets it with its escapes."""
        if self.literals != "shown":
            return arguments
        return {k: single_quoted(v)[1:-1] if isinstance(v, str) else v for k, v in arguments.items()}


@dataclass(frozen=True, slots=True)
class BareArguments:
    """Arguments with bare keys, in the order of these, and texts as they are between two of the token `quote`."""

    quote: str

    def render(self, arguments: Mapping[str, Any], separators: tuple[str, str]) -> str:
        """All arguments."""
        members = sorted(arguments.items(), key=lambda member: member[0].lower())
        return separators[0].join(f"{key}{separators[1]}{self._value(value, separators)}" for key, value in members)

    def _value(self, value: Any, separators: tuple[str, str]) -> str:
        if isinstance(value, str):
            return self.quote + value + self.quote
        if isinstance(value, Mapping):
            return "{" + self.render(value, separators) + "}"
        if isinstance(value, list):
            return f"[{separators[0].join(self._value(item, separators) for item in value)}]"
        return str(value) if value is None or not isinstance(value, bool) else json.dumps(value)

    def passed(self, arguments: Mapping[str, Any], separators: tuple[str, str]) -> Mapping[str, Any]:
        """Arguments as the template gets them."""
        return arguments


def _python(value: Any, separators: tuple[str, str]) -> str:
    """A value as Python has it, texts in double quotes."""
    if value is None or isinstance(value, bool):
        return _WORDS[value]
    if isinstance(value, list):
        return f"[{separators[0].join(_python(item, separators) for item in value)}]"
    if isinstance(value, Mapping):
        members = (json.dumps(k, ensure_ascii=False) + separators[1] + _python(v, separators) for k, v in value.items())
        return "{" + separators[0].join(members) + "}"
    return json.dumps(value, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class CallSyntax:
    """See the module. `begin` "" means that a call is the whole message.

    `bare`: a call's beginning where the model leaves out what stands before; it ends with
    `bare_tail`, and the rest of the tail may follow. `ends_reasoning`: a call ends reasoning that is still open."""

    head: str
    middle: str
    tail: str
    begin: str = ""
    open: str = ""
    between: str | None = None  # None: one call a message
    close: str = ""
    id_key: str = ""  # what stands between arguments and tail before an id, in what templates render; never asked for
    id_before: str = ""  # what stands between name and middle before an id, which the model may write
    id_first: str = ""  # what stands between an id and the name behind it, where a call begins with its id
    arguments: ArgumentTags | KeywordArguments | BareArguments | None = None  # None: they are a JSON object
    bare: str = ""
    bare_tail: str = ""
    ends_reasoning: bool = False
    item_separator: str = ", "
    key_separator: str = ": "

    @property
    def is_whole_message(self) -> bool:
        """Whether text and calls exclude each other."""
        return not self.begin

    @property
    def separators(self) -> tuple[str, str]:
        """Of JSON's items and keys."""
        return self.item_separator, self.key_separator

    def variants(self) -> Iterator[CallSyntax]:
        """The same with other blanks and words in the arguments, as templates may write them."""
        for separators in (self.separators, (",", ":")):
            one = replace(self, item_separator=separators[0], key_separator=separators[1])
            if not isinstance(self.arguments, ArgumentTags):
                yield one
                continue
            for as_texts in (False, True):
                for has_words in (False, True):
                    tags = replace(self.arguments, has_python_words=has_words, as_texts=as_texts)
                    yield replace(one, arguments=tags)

    def render(self, calls: Sequence[Call]) -> str:
        """The text of `calls`, as a template writes an earlier turn."""
        return self.begin + self.open + (self.between or "").join(map(self._render_one, calls)) + self.close

    def pieces(self, calls: Sequence[Call]) -> list[tuple[str, bool]]:
        """The same in pieces, each with whether it is fixed: what stands around names and arguments."""
        out = [(self.begin + self.open, True)]
        for i, call in enumerate(calls):
            out += [((self.between or "") * (i > 0) + self.head, True), (call.name, False), (self.middle, True)]
            out += [(self._arguments(call), False), (self.tail, True)]
        return [*out, (self.close, True)]

    def _render_one(self, call: Call) -> str:
        id_text = f'{self.id_key}"{call.id}"' if self.id_key and call.id else ""
        id_before = f"{self.id_before}{call.id}" if self.id_before and call.id else ""
        name = f"{call.id}{self.id_first}{call.name}" if self.id_first else call.name
        return self.head + name + id_before + self.middle + self._arguments(call) + id_text + self.tail

    def _arguments(self, call: Call) -> str:
        if self.arguments is None:
            return json.dumps(call.arguments, ensure_ascii=False, separators=self.separators)
        if isinstance(self.arguments, KeywordArguments | BareArguments):
            return self.arguments.render(call.arguments, self.separators)
        tags = self.arguments
        return "".join(tags.render(key, value, self.separators) for key, value in call.arguments.items())

    def texts(self) -> tuple[str, ...]:
        """Every fixed part."""
        tags = self.arguments
        parts = (self.begin, self.open, self.head, self.middle, self.tail, self.between or "", self.close, self.id_key,
                 self.id_before, self.id_first, self.bare, self.bare_tail)  # fmt: skip
        if isinstance(tags, ArgumentTags):
            return (*parts, tags.before, tags.middle, tags.after)
        return (*parts, tags.quote) if isinstance(tags, BareArguments) else parts

    def bind(self, marks: Marks) -> CallSyntax:
        """The same with special tokens as marks."""
        return replace(
            self,
            begin=marks.encode(self.begin),
            open=marks.encode(self.open),
            head=marks.encode(self.head),
            middle=marks.encode(self.middle),
            tail=marks.encode(self.tail),
            between=None if self.between is None else marks.encode(self.between),
            close=marks.encode(self.close),
            id_before=marks.encode(self.id_before),
            id_first=marks.encode(self.id_first),
            bare=marks.encode(self.bare),
            bare_tail=marks.encode(self.bare_tail),
            arguments=_bound(self.arguments, marks),
        )


def _bound(
    tags: ArgumentTags | KeywordArguments | BareArguments | None, marks: Marks
) -> ArgumentTags | KeywordArguments | BareArguments | None:
    if isinstance(tags, BareArguments):
        return BareArguments(marks.encode(tags.quote))
    if not isinstance(tags, ArgumentTags):
        return tags
    before, middle, after = map(marks.encode, (tags.before, tags.middle, tags.after))
    return replace(tags, before=before, middle=middle, after=after)


class Marks:
    """Special tokens as noncharacters: what the parser reads instead of text that only looks like them."""

    def __init__(self, tokenizer: Tokenizer, texts: Sequence[str]) -> None:
        """`texts`: in which special tokens may occur."""
        special = {tokenizer.decode([i], skip_special=False): i for i in sorted(tokenizer.special_ids, reverse=True)}
        found = [text for text in special if len(text) > 1 and any(text in part for part in texts)]
        self._texts = found[:MAX_MARKS]
        self._ids = [special[text] for text in self._texts]
        self._matcher = SpecialMatcher({text: i for i, text in enumerate(self._texts)})
        self._of_token = {token: chr(MARK_BASE + i) for i, token in enumerate(self._ids)}

    def encode(self, text: str) -> str:
        """`text` with marks in the places of special tokens."""
        pieces = self._matcher.split(text)
        return "".join(chr(MARK_BASE + piece) if isinstance(piece, int) else piece for piece in pieces)

    def decode(self, text: str) -> str:
        """Marks back to the text of their tokens."""
        return "".join(self._texts[i] if 0 <= (i := ord(c) - MARK_BASE) < len(self._texts) else c for c in text)

    def of_token(self, token: int) -> str:
        """The mark of a token, "" for any other."""
        return self._of_token.get(token, "")

    def token(self, mark: str) -> int:
        """The token of a mark."""
        return self._ids[ord(mark) - MARK_BASE]


def is_mark(character: str) -> bool:
    """Whether a character is a mark, or would be mistaken for one."""
    return MARK_BASE <= ord(character) < MARK_BASE + MAX_MARKS


def overlap(text: str, tag: str) -> int:
    """Length of the longest end of `text` that is a beginning of `tag`, but not all of it."""
    for size in range(min(len(tag) - 1, len(text)), 0, -1):
        if tag.startswith(text[-size:]):
            return size
    return 0


def shown_text(text: str) -> str:
    """Text without the marks in it: a special token that is neither tag nor call says nothing."""
    if text.isascii():
        return text
    return "".join(c for c in text if not is_mark(c))


def without_marks(text: str) -> str:
    """Text of a model in which noncharacters, which nobody can show, are U+FFFD."""
    if text.isascii():
        return text
    return "".join("\ufffd" if is_mark(c) else c for c in text)
