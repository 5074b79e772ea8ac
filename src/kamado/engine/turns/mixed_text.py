"""A message's content in which some parts are ours and not the author's."""

from __future__ import annotations

from collections.abc import Sequence


class MixedText(str):
    """A text in `parts`, each with whether it is our own: the special tokens that are spelled there are meant, as those
    of a template are. In any other part they are plain text."""

    parts: tuple[tuple[str, bool], ...]

    def __new__(cls, parts: Sequence[tuple[str, bool]]) -> MixedText:
        """The parts, joined."""
        text = super().__new__(cls, "".join(part for part, _ in parts))
        text.parts = tuple(parts)
        return text
