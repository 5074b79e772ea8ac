"""Tags between which models reason before they answer."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ....text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class ReasoningTags:
    """What opens and closes reasoning. It stands at the beginning of an answer, with `recurs` also after other text.

    `stray`: a mark at the beginning of `open` that models write where it means nothing, or leave out.
    `again`: what stands before reasoning that begins once more, and what it begins with then: how it is kept from that
    when its tokens are used up."""

    open: str
    close: str
    recurs: bool = False
    stray: str = ""
    again: tuple[str, str] = ("", "")

    def bind(self, encode: Callable[[str], str]) -> ReasoningTags:
        """The same with special tokens as marks."""
        return replace(self, open=encode(self.open), close=encode(self.close), stray=encode(self.stray))


_KNOWN = (
    ReasoningTags("<think>", "</think>"),
    ReasoningTags("[THINK]", "[/THINK]"),
    ReasoningTags("<seed:think>", "</seed:think>"),
    ReasoningTags("<reasoning>", "</reasoning>"),
    ReasoningTags("<|START_THINKING|>", "<|END_THINKING|>"),
    ReasoningTags("<|inner_prefix|>", "<|inner_suffix|>"),
    ReasoningTags("<|channel>thought\n", "<channel|>", recurs=True, stray="<|channel>"),  # Gemma 4
)
# Switches that templates read, by the name of the variable.
SWITCHES = ("enable_thinking", "thinking")
BUDGET = "thinking_budget"  # in tokens; 0 is none (Seed-OSS)
# How templates take the reasoning of an earlier message: under a key, or as a part of the content.
PARTS = "parts"
WAYS = ("reasoning_content", "reasoning", "thinking", PARTS)
_TAG = r"(<[^<>\s]{1,48}>|\[[^\[\]\s]{1,48}\])"


def find_tags(template: str, tokenizer: Tokenizer, shown: ReasoningTags | None = None) -> ReasoningTags | None:
    """The tags of a model: those in its template, else those that it was seen to write (`shown`), else those that are
    tokens of their own in its vocabulary."""
    for tags in _KNOWN:
        if tags.close in template:
            return tags
    if shown is not None:
        return shown
    for tags in _KNOWN:
        if tokenizer.token_to_id(tags.open) is not None and tokenizer.token_to_id(tags.close) is not None:
            return tags
    return None


def tags_around(rendered: str, word: str) -> ReasoningTags | None:
    """The tags between which a template wrote the reasoning `word`, where they are what tags of reasoning look like."""
    match = re.search(rf"{_TAG}\s*{re.escape(word)}\s*{_TAG}", rendered)
    if match is None or "think" not in match[1].lower() or match[2][:2] not in ("</", "[/"):
        return None
    return ReasoningTags(match[1], match[2])


def switch_of(template: str) -> str | None:
    """The variable with which the template turns reasoning on and off, if it has one."""
    return next((name for name in SWITCHES if reads(template, name)), None)


def reads(template: str, name: str) -> bool:
    """Whether a template may read a variable: its name stands there, and not as a text or an attribute."""
    return re.search(rf"(?<![\w.'\"-]){name}(?![\w'\"-])", template) is not None
