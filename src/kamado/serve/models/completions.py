"""Text that is filled into a gap: the marks around it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from ...errors import UsageError

if TYPE_CHECKING:
    from ... import Model

# Around what is to be filled in, in the vocabularies that know of it: before the beginning, before the end, in between.
_INSERT_MARKS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen, Granite
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder
    ("<|fim_begin|>", "<|fim_hole|>", "<|fim_end|>"),  # DeepSeek, whose order of parts is this one too
)


def insert_marks(model: Model) -> tuple[int, int, int] | None:
    """The ids around a gap, for models that were taught to fill one; None for others."""
    for literals in _INSERT_MARKS:
        ids = [model.tokenize(literal, special=True, add_bos=False) for literal in literals]
        if all(len(found) == 1 for found in ids) and len({found[0] for found in ids}) == 3:
            plain = model.tokenize(literals[0], special=False, add_bos=False)
            if len(plain) > 1:  # a mark, and no word that happens to be one token
                return ids[0][0], ids[1][0], ids[2][0]
    return None


def around_gap(model: Model, marks: tuple[int, int, int], prompt: str | tuple[int, ...], suffix: str) -> list[int]:
    """The ids of a prompt whose answer goes between `prompt` and `suffix`."""
    if not isinstance(prompt, str):
        raise UsageError("suffix needs a prompt of text")
    begin, end, middle = marks
    tokenize = partial(model.tokenize, add_bos=False)
    return [begin, *tokenize(prompt), end, *tokenize(suffix), middle]
