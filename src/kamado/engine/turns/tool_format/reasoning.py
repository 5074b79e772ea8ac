"""Tags between which models reason before they answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ....text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class ReasoningTags:
    """What opens and closes reasoning. It stands at the beginning of an answer only."""

    open: str
    close: str


_KNOWN = (
    ReasoningTags("<think>", "</think>"),
    ReasoningTags("[THINK]", "[/THINK]"),
    ReasoningTags("<seed:think>", "</seed:think>"),
    ReasoningTags("<reasoning>", "</reasoning>"),
    ReasoningTags("<|START_THINKING|>", "<|END_THINKING|>"),
    ReasoningTags("<|inner_prefix|>", "<|inner_suffix|>"),
)
# Switches that templates read, by the name of the variable.
SWITCHES = ("enable_thinking", "thinking")


def find_tags(template: str, tokenizer: Tokenizer) -> ReasoningTags | None:
    """The tags of a model: those in its template, else those that are tokens of their own in its vocabulary."""
    for tags in _KNOWN:
        if tags.close in template:
            return tags
    for tags in _KNOWN:
        if tokenizer.token_to_id(tags.open) is not None and tokenizer.token_to_id(tags.close) is not None:
            return tags
    return None


def switch_of(template: str) -> str | None:
    """The variable with which the template turns reasoning on and off, if it has one."""
    return next((name for name in SWITCHES if name in template), None)
