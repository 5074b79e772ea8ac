"""From token ids back to text: what each token says in bytes, and a decoder that never cuts a character."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable

from ...errors import TokenizerError

SPACE_MARK = "\u2581"  # how SentencePiece writes a space


def byte_alphabet() -> dict[int, str]:
    """Byte -> the character that stands for it in byte-level BPE vocabularies (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {byte: chr(byte) for byte in printable}
    others = (byte for byte in range(256) if byte not in table)
    table.update({byte: chr(0x100 + i) for i, byte in enumerate(others)})
    return table


_CHAR_BYTES = {char: bytes((byte,)) for byte, char in byte_alphabet().items()}


def byte_level_bytes(text: str) -> bytes:
    """Bytes of a byte-level token. A character outside the alphabet, which no trainer writes, stands for itself."""
    try:
        return b"".join([_CHAR_BYTES[char] for char in text])
    except KeyError:
        return b"".join(_CHAR_BYTES.get(char) or char.encode("utf-8", "replace") for char in text)


def byte_fallback_value(text: str) -> int | None:
    """The byte that a token like "<0x0A>" stands for; None for any other text."""
    if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
        try:
            return int(text[3:5], 16)
        except ValueError:
            return None
    return None


def clean_wordpiece(text: str) -> str:
    """Join punctuation and English contractions to the word before, as BERT's decoder does, token by token."""
    for spaced, joined in _CLEAN_UP:
        text = text.replace(spaced, joined)
    return text


_CLEAN_UP = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" do not", " don't"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)


class Pieces:
    """The bytes of every token, worked out when first asked for.

    `bytes_of` maps an id inside the vocabulary to its bytes. With `strip_first_space` the text of a whole sequence
    loses one leading space: the one that the encoder put in front.
    """

    def __init__(
        self, size: int, bytes_of: Callable[[int], bytes], hidden: frozenset[int], *, strip_first_space: bool
    ) -> None:
        self.size = size
        self.hidden = hidden
        self.strip_first_space = strip_first_space
        self._bytes_of = bytes_of
        self._known: dict[int, bytes] = {}

    def __getitem__(self, token_id: int) -> bytes:
        """Bytes of one token. Ids past the vocabulary (rows that only pad the embedding) say nothing.

        Raises TokenizerError for a negative id.
        """
        piece = self._known.get(token_id)
        if piece is None:
            if token_id < 0:
                raise TokenizerError(f"token id {token_id} is negative")
            piece = self._known[token_id] = self._bytes_of(token_id) if token_id < self.size else b""
        return piece

    def decode(self, token_ids: Iterable[int], *, skip_special: bool) -> str:
        """Text of a whole sequence; bytes that are no valid UTF-8 become U+FFFD."""
        hidden: frozenset[int] = self.hidden if skip_special else frozenset()
        text = b"".join([self[i] for i in map(int, token_ids) if i not in hidden])
        if self.strip_first_space and text.startswith(b" "):
            text = text[1:]
        return text.decode("utf-8", "replace")


class StreamDecoder:
    """Text of a growing sequence. What `push` and `flush` return, joined, is `decode` of all ids.

    Only whole characters come out: bytes that may still become one are held back, and those that no longer can are
    U+FFFD. With `continuation` the leading space of the first token is kept: the text goes on from other text.
    """

    def __init__(self, pieces: Pieces, *, skip_special: bool = True, continuation: bool = False) -> None:
        self._pieces = pieces
        self._hidden: frozenset[int] = pieces.hidden if skip_special else frozenset()
        self._strip = pieces.strip_first_space and not continuation
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """Add one token; return the text that is now certain, which may be empty."""
        if token_id in self._hidden:
            return ""
        piece = self._pieces[int(token_id)]
        if self._strip and piece:
            self._strip = False
            if piece.startswith(b" "):
                piece = piece[1:]
        return self._utf8.decode(piece)

    def flush(self) -> str:
        """End of the sequence: U+FFFD for an unfinished character, else nothing."""
        return self._utf8.decode(b"", True)
