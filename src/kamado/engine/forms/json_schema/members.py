"""What the writers of an object's members and those of its values know of each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from .rules import Name, Row
from .shapes import Atom, Conjunction
from .trees import Tree


class Members(Protocol):
    """How the members of an object are written: what stands around and between them, and each of them. A member that
    cannot be written is None."""

    opening: Row
    closing: Row
    comma: Row

    def member(self, name: str, conjunction: Conjunction) -> Row | None:
        """One that is named."""

    def other(self, names: Tree, conjunction: Conjunction) -> Row | None:
        """Any whose name is in `names`."""

    def const(self, value: Mapping[str, Any]) -> Row | None:
        """All of one given object."""


class Values(Protocol):
    """How values are written; see emit.Emitter."""

    def value(self, conjunction: Conjunction) -> Name:
        """The rule of values that match."""

    def rows(self, conjunction: Conjunction, atom: Atom) -> list[Row]:
        """The ways to write what an atom of a schema allows."""

    def const(self, value: Any) -> Row:
        """One given value."""
