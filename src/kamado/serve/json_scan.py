"""What decoding a JSON text would cost, found in its bytes before anything is made of them.

Brackets, commas and colons outside strings are counted with NumPy, which lets go of the interpreter, in pieces that
stay in the processor's cache. The text need not be valid JSON: what is wrong with it is the decoder's to say.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_PIECE_BYTES = 128 << 10
_QUOTE, _BACKSLASH = 0x22, 0x5C
# Kinds of bytes outside strings.
_LIST, _OBJECT, _END, _COMMA, _COLON = 1, 2, 3, 4, 5
_KINDS = np.zeros(256, np.uint8)
for _kind, _letters in ((_LIST, b"["), (_OBJECT, b"{"), (_END, b"]}"), (_COMMA, b","), (_COLON, b":")):
    _KINDS[list(_letters)] = _kind
_DEPTH = np.array([0, 1, 1, -1, 0, 0], np.int32)
# Bytes of a Python string a byte of UTF-8, at the worst moment of decoding: CPython begins with one byte a character
# and copies when a wider one comes. By the first byte of a character: ASCII and Latin-1, the basic plane, beyond it.
_WIDTHS = np.ones(256, np.uint8)
_WIDTHS[0xC4:0xF0] = 3
_WIDTHS[0xF0:] = 5

# Bytes of objects, CPython 3.11, with the slot that holds them: plain first, then their Struct beside them.
_LIST_BYTES, _OBJECT_BYTES, _VALUE_BYTES, _STRING_BYTES = 160, 384, 48, 56
# A key costs a dict some 0.5 µs and a container more than a number does, so they count more.
_CONTAINER_WEIGHT, _KEY_WEIGHT = 4, 4


@dataclass(slots=True)
class JsonCost:
    """Upper estimates. `weight`: values, a key or a container as four; `nbytes`: memory while it is decoded."""

    depth: int = 0
    weight: int = 0
    nbytes: int = 0


def json_cost(text: bytes | bytearray, *, max_depth: int, max_weight: int, max_bytes: int) -> JsonCost:
    """The cost of decoding `text`; of its beginning only, when that is past a bound already.

    Raises nothing, so that no traceback keeps the text alive.
    """
    scan = _Scan()
    cost = scan.cost
    for at in range(0, len(text), _PIECE_BYTES):
        scan.take(np.frombuffer(text, np.uint8, min(_PIECE_BYTES, len(text) - at), at))
        if cost.depth > max_depth or cost.weight > max_weight or cost.nbytes > max_bytes:
            return cost
    scan.end()
    return cost


class _Scan:
    """The state between two pieces."""

    def __init__(self) -> None:
        self.cost = JsonCost()
        self._level = 0
        self._is_in_string = False
        self._is_escaped = False  # the next byte is
        self._open_bytes = 0  # of the string that the last piece ended in, and its widest character
        self._open_width = 1

    def take(self, piece: NDArray[np.uint8]) -> None:
        """The next bytes."""
        was_in_string = self._is_in_string
        quotes, escapes = self._quotes(piece)
        self._count(piece, quotes, was_in_string)
        self._measure(piece, quotes, was_in_string, escapes)
        self._is_in_string = was_in_string ^ bool(len(quotes) & 1)

    def end(self) -> None:
        """A string that was never closed."""
        self.cost.nbytes += self._open_bytes * self._open_width
        self._open_bytes = 0

    def _quotes(self, piece: NDArray[np.uint8]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Where strings begin and end, and where the u of an escape is."""
        quotes = np.flatnonzero(piece == _QUOTE)
        slashes = np.flatnonzero(piece == _BACKSLASH)
        if not len(slashes):
            if self._is_escaped and len(quotes) and quotes[0] == 0:
                quotes = quotes[1:]
            escapes = np.array([0] if self._is_escaped and piece[0] == ord("u") else [], np.intp)
            self._is_escaped = False
            return quotes, escapes
        # Every other backslash of a run escapes what follows it.
        is_first = np.empty(len(slashes), bool)
        is_first[0] = True
        np.not_equal(slashes[1:], slashes[:-1] + 1, out=is_first[1:])
        place = slashes - np.maximum.accumulate(np.where(is_first, slashes, 0))
        if self._is_escaped and slashes[0] == 0:
            run = int(is_first[1:].argmax()) + 1 if is_first[1:].any() else len(slashes)
            place[:run] -= 1
        escaped = slashes[place % 2 == 0] + 1
        marks = np.zeros(len(piece) + 1, bool)
        marks[escaped] = True
        marks[0] |= self._is_escaped
        self._is_escaped = bool(marks[-1])
        quotes = quotes[~marks[quotes]]
        return quotes, np.flatnonzero(marks[:-1] & (piece == ord("u")))

    def _count(self, piece: NDArray[np.uint8], quotes: NDArray[np.intp], was_in_string: bool) -> None:
        kinds = _KINDS[piece]
        places = np.flatnonzero(kinds)
        if not len(places):
            return
        kinds = kinds[places]
        if len(quotes) or was_in_string:
            is_inside = (np.searchsorted(quotes, places) + was_in_string) & 1
            kinds = kinds[is_inside == 0]
            if not len(kinds):
                return
        levels = self._level + np.cumsum(_DEPTH[kinds], dtype=np.int64)
        self._level = int(levels[-1])
        counts = np.bincount(kinds, minlength=6)
        cost = self.cost
        cost.depth = max(cost.depth, int(levels.max()))
        containers = int(counts[_LIST] + counts[_OBJECT])
        cost.weight += int(counts[_COMMA]) + _CONTAINER_WEIGHT * containers + _KEY_WEIGHT * int(counts[_COLON])
        cost.nbytes += _LIST_BYTES * int(counts[_LIST]) + _OBJECT_BYTES * int(counts[_OBJECT])
        cost.nbytes += _VALUE_BYTES * int(counts[_COMMA]) + _STRING_BYTES * (len(quotes) // 2)

    def _measure(
        self, piece: NDArray[np.uint8], quotes: NDArray[np.intp], was_in_string: bool, escapes: NDArray[np.intp]
    ) -> None:
        """Adds what the strings of a piece take, each by its own widest character."""
        edges = np.concatenate(([0], quotes, [len(piece)]))
        lengths = np.diff(edges)
        if not len(escapes) and int(piece.max()) < 0xC4:
            widths = np.ones(len(lengths), np.int64)
        else:
            each = _WIDTHS[piece]
            if len(escapes):  # \ud8 to \udf are halves of wide characters
                after = piece[np.minimum(escapes + 1, len(piece) - 1)]
                each[escapes] = np.where((after | 0x20 == ord("d")) | (escapes + 1 == len(piece)), 5, 3)
            widths = np.maximum.reduceat(each, np.minimum(edges[:-1], len(piece) - 1)).astype(np.int64)
        first = 0 if was_in_string else 1  # segments of strings are every other one
        lengths, widths = lengths[first::2], widths[first::2]
        if not len(lengths):
            return
        ends_open = was_in_string ^ bool(len(quotes) & 1)
        if was_in_string:
            lengths[0] += self._open_bytes
            widths[0] = max(int(widths[0]), self._open_width)
        self._open_bytes, self._open_width = 0, 1
        if ends_open:
            self._open_bytes, self._open_width = int(lengths[-1]), int(widths[-1])
            lengths, widths = lengths[:-1], widths[:-1]
        self.cost.nbytes += int((lengths * widths).sum())
