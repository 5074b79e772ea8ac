"""SentencePiece's precompiled normalisation (NFKC and the like): a double-array trie of texts and what each becomes.

Layout, all little-endian: the trie's size in bytes, the trie (32-bit units of the Darts library), then the
replacements, each ended by a zero byte. At every place of a text the longest match is replaced; other characters stay.

Covered: tables that lie about their sizes, units that point anywhere, replacements without an end: all are read
within bounds, at most a replacement's cap long. Nothing is unpacked ahead, so a table costs no memory by what it says.
"""

from __future__ import annotations

import re
import struct

_MAX_REPLACEMENT_BYTES = 1024  # the longest of NFKC has 33
_MAX_MATCH_BYTES = 256  # longer keys are not looked for; the longest of NFKC have 6 characters


class CharsMap:
    """Normalises text by one table. Raises ValueError when `table` does not hold what it claims."""

    def __init__(self, table: bytes) -> None:
        trie_bytes = int.from_bytes(table[:4], "little")
        if len(table) < 4 or trie_bytes < 4 or trie_bytes % 4 or 4 + trie_bytes >= len(table):
            raise ValueError(f"of {len(table)} bytes does not hold the {trie_bytes} bytes that it claims")
        self._units = struct.unpack_from(f"<{trie_bytes // 4}I", table, 4)
        self._texts = table[4 + trie_bytes :]
        # Of every character seen so far: what it becomes by itself, by its number, as `str.translate` wants it.
        self._single: dict[int, str] = {}
        self._starters: set[str] = set()  # those that begin longer keys

    def normalize(self, text: str) -> str:
        """`text` with every longest match replaced."""
        chars = set(text)
        for char in chars:
            if ord(char) not in self._single:
                self._learn(char)
        starters = self._starters & chars
        if not starters:
            return text.translate(self._single)
        parts: list[str] = []
        done = 0
        for hit in re.finditer("[" + re.escape("".join(sorted(starters))) + "]", text):
            begin = hit.start()
            if begin < done:
                continue  # inside the match before
            length, replacement = self._longest(text[begin : begin + _MAX_MATCH_BYTES])
            if length > 1:
                parts += (text[done:begin].translate(self._single), replacement)
                done = begin + length
        parts.append(text[done:].translate(self._single))
        return "".join(parts)

    def _learn(self, char: str) -> None:
        length, replacement = self._longest(char)
        self._single[ord(char)] = replacement if length else char
        node = self._walk(0, self._units[0], char.encode("utf-8", "surrogatepass"))[1]
        # A node with an offset but that of its own leaf may have children; asking each is cheap and done once.
        if node is not None and any(self._child(node, byte) is not None for byte in range(1, 256)):
            self._starters.add(char)

    def _longest(self, text: str) -> tuple[int, str]:
        """Characters of the longest key that `text` begins with, and its replacement; (0, "") when there is none."""
        raw = text.encode("utf-8", "surrogatepass")
        leaf = self._walk(0, self._units[0], raw[:_MAX_MATCH_BYTES])[0]
        if leaf is None:
            return 0, ""
        num_bytes, value = leaf
        end = self._texts.find(b"\0", value, value + _MAX_REPLACEMENT_BYTES)
        found = self._texts[value : end if end >= 0 else value + _MAX_REPLACEMENT_BYTES]
        key = raw[:num_bytes].decode("utf-8", "ignore")  # tries hold whole characters; a part of one matches none
        return len(key), found.decode("utf-8", "replace")

    def _walk(self, at: int, unit: int, raw: bytes) -> tuple[tuple[int, int] | None, int | None]:
        """(bytes and value of the longest key, where the children of all of `raw` lie, None when the trie ends)."""
        leaf: tuple[int, int] | None = None
        node: int | None = at ^ _offset(unit)
        for i, byte in enumerate(raw):
            assert node is not None
            child = self._child(node, byte)
            if child is None:
                return leaf, None
            unit = self._units[child]
            node = child ^ _offset(unit)
            if unit >> 8 & 1 and node < len(self._units):
                value = self._units[node] & 0x7FFFFFFF
                is_whole = i + 1 == len(raw) or raw[i + 1] & 0xC0 != 0x80
                if value < len(self._texts) and is_whole:
                    leaf = i + 1, value
        return leaf, node

    def _child(self, node: int, byte: int) -> int | None:
        """Where the child of the node at `node` for `byte` lies."""
        child = node ^ byte
        if byte == 0 or child >= len(self._units) or self._units[child] & 0x800000FF != byte:
            return None
        return child


def _offset(unit: int) -> int:
    return unit >> 10 << ((unit & 1 << 9) >> 6)
