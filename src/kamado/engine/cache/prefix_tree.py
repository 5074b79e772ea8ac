"""Which sequences begin with which tokens: a radix tree whose edges are pages of 128 tokens.

A node stands for one page after all pages above it and knows the sequences that hold it. Edges are found by the page's
tokens themselves, so two prefixes meet in a node only if they are equal, never because a hash is. Every owner has a
tree of its own: what one API key computed is never seen by another. Where in a common beginning a sequence may be cut
or forked is the executor's to say; the tree says how far it is common, the deepest first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from ...plan.kv_pages import PAGE_TOKENS


class Holder(Protocol):
    """What the tree needs of a sequence."""

    tokens: list[int]
    owner: str


@dataclass(slots=True, eq=False)
class _Node:
    children: dict[bytes, _Node] = field(default_factory=dict)  # by the page's tokens
    holders: dict[int, Holder] = field(default_factory=dict)  # by id: every sequence that runs through here


class PrefixTree:
    """Sequences by their tokens. `update` after every change of a sequence's tokens; only its new pages cost time."""

    def __init__(self) -> None:
        self._roots: dict[str, _Node] = {}
        self._paths: dict[int, list[tuple[_Node, bytes]]] = {}  # of each holder: its nodes, and the edges to them

    def add(self, holder: Holder) -> None:
        """A new sequence, with whatever tokens it has."""
        root = self._roots.setdefault(holder.owner, _Node())
        root.holders[id(holder)] = holder
        self._paths[id(holder)] = []
        self.update(holder)

    def update(self, holder: Holder) -> None:
        """The sequence's tokens grew or were cut; those that stayed are the same as before."""
        path = self._paths[id(holder)]
        num_pages = len(holder.tokens) // PAGE_TOKENS
        while len(path) > num_pages:
            self._leave(holder, path)
        node = path[-1][0] if path else self._roots[holder.owner]
        for i in range(len(path), num_pages):
            edge = _edge(holder.tokens[i * PAGE_TOKENS : (i + 1) * PAGE_TOKENS])
            node = node.children.setdefault(edge, _Node())
            node.holders[id(holder)] = holder
            path.append((node, edge))

    def remove(self, holder: Holder) -> None:
        """The sequence is gone."""
        path = self._paths.pop(id(holder))
        while path:
            self._leave(holder, path)
        root = self._roots[holder.owner]
        del root.holders[id(holder)]
        if not root.holders:
            del self._roots[holder.owner]

    def match(self, owner: str, tokens: Sequence[int]) -> Iterator[tuple[Holder, int]]:
        """The owner's sequences with the length of the beginning they share with `tokens`, by pages the longest first.

        Sequences that share nothing are left out.
        """
        node = self._roots.get(owner)
        if node is None:
            return
        levels = [node]
        while len(levels) * PAGE_TOKENS <= len(tokens):
            begin = (len(levels) - 1) * PAGE_TOKENS
            child = levels[-1].children.get(_edge(tokens[begin : begin + PAGE_TOKENS]))
            if child is None:
                break
            levels.append(child)
        deeper: dict[int, Holder] = {}
        for num_pages in range(len(levels) - 1, -1, -1):
            begin = num_pages * PAGE_TOKENS
            holders = levels[num_pages].holders
            for key, holder in holders.items():
                if key not in deeper:
                    rest = holder.tokens[begin : begin + PAGE_TOKENS]
                    length = begin + common_prefix(rest, tokens[begin : begin + PAGE_TOKENS])
                    if length:
                        yield holder, length
            deeper = holders

    def num_nodes(self) -> int:
        """Distinct pages of all owners."""
        return len({id(node) for path in self._paths.values() for node, _ in path})

    def _leave(self, holder: Holder, path: list[tuple[_Node, bytes]]) -> None:
        node, edge = path.pop()
        del node.holders[id(holder)]
        if not node.holders:
            parent = path[-1][0] if path else self._roots[holder.owner]
            del parent.children[edge]


def common_prefix(a: Sequence[int] | str, b: Sequence[int] | str) -> int:
    """Length of the longest common beginning. Slices that grow are compared in C: 1 µs if short, 50 for 10k tokens."""
    low, size = 0, 16
    end = min(len(a), len(b))
    while low < end and a[low : low + size] == b[low : low + size]:
        low += size
        size *= 4
    if low >= end:
        return end
    high = min(low + size, end)
    if high == end and a[low:end] == b[low:end]:  # the longer one's slice went on
        return end
    while high - low > 1:  # equal before low, different before high
        middle = (low + high) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return low


def _edge(page: Sequence[int]) -> bytes:
    return np.array(page, np.int32).tobytes()
