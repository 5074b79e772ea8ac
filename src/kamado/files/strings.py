"""A long array of strings from a file, made into Python strings when somebody first looks at them.

A vocabulary and its merges are 300 000 strings; as Python objects they take 60 ms to make, and merges are never
needed as such: the tokenizer takes them as bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, overload

if TYPE_CHECKING:
    from .._native import StringTable


class Strings(Sequence[str]):
    """Strings that behave as a list of them. Equal to any list or `Strings` with the same items; not hashable."""

    __slots__ = ("_list", "table")

    def __init__(self, table: StringTable) -> None:
        self.table = table  # the same strings as bytes
        self._list: list[str] | None = None

    def tolist(self) -> list[str]:
        """All of them; the same list each time. Bytes that are no UTF-8 are surrogates (surrogateescape)."""
        if self._list is None:
            self._list = self.table.tolist()
        return self._list

    def __len__(self) -> int:
        return len(self.table)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        return self.tolist()[index]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tolist())

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Strings):
            other = other.tolist()
        return self.tolist() == other if isinstance(other, list) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # as a list

    def __repr__(self) -> str:
        return f"<{len(self)} strings>"
