"""The tokenizer that the engine sees, whatever file it came from."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from ...errors import UsageError
from .pieces import Pieces, StreamDecoder

_SURROGATES = re.compile("[\ud800-\udfff]+")


class Encoder(Protocol):
    """What a vocabulary must be able to do; `Tokenizer` adds BOS and EOS, and text that is no valid Unicode."""

    @property
    def begins_after_special(self) -> bool:
        """Whether text after a special token is encoded as if nothing stood before it (a space mark in front)."""

    def encode(self, text: str, *, special: bool, start: bool) -> list[int]:
        """Ids of valid Unicode. `start`: nothing stands before `text`. `special`: special tokens in it are parsed."""

    def encode_bytes(self, raw: bytes) -> list[int]:
        """Ids of bytes that are no valid UTF-8: byte tokens when the vocabulary has them, else the unknown token."""


@dataclass(frozen=True, slots=True)
class Specials:
    """The ids that have a meaning of their own, and what is put around a text by default."""

    bos_id: int | None
    eos_id: int | None
    prefix_ids: tuple[int, ...]  # what `add_bos` puts in front: BOS, or [CLS]
    suffix_ids: tuple[int, ...]  # what `add_eos` puts at the end: EOS, or [SEP]
    add_bos: bool
    add_eos: bool
    stop_ids: frozenset[int]
    special_ids: frozenset[int]
    # Special tokens that take the white space before or after them along: (before, after).
    strips: Mapping[int, tuple[bool, bool]] = field(default_factory=dict)


class Tokenizer:
    """Text to token ids and back. Made by `load_tokenizer`; safe to share between threads."""

    def __init__(
        self, encoder: Encoder, pieces: Pieces, specials: Specials, token_to_id: Callable[[str], int | None]
    ) -> None:
        self._encoder = encoder
        self._pieces = pieces
        self._specials = specials
        self._token_to_id = token_to_id
        self.bos_id = specials.bos_id  # beginning of sequence, if the vocabulary has one
        self.eos_id = specials.eos_id
        self.add_bos = specials.add_bos  # whether `encode` puts BOS (or [CLS]) in front unless told otherwise
        self.add_eos = specials.add_eos  # and EOS (or [SEP]) at the end
        self.stop_ids = specials.stop_ids  # that end generation: end of sequence, of turn, of message
        self.special_ids = specials.special_ids  # control tokens: `decode` hides them, plain text never makes them

    @property
    def vocab_size(self) -> int:
        """Number of tokens. The model's embedding may have more rows; those ids decode to nothing."""
        return self._pieces.size

    def strips(self, token_id: int) -> tuple[bool, bool]:
        """Whether a special token, when it is parsed from text, takes the white space before and after it along."""
        return self._specials.strips.get(token_id, (False, False))

    def encode(
        self,
        text: str | bytes,
        *,
        special: bool = False,
        add_bos: bool | None = None,
        add_eos: bool | None = None,
        after: Literal["nothing", "special", "text"] = "nothing",
    ) -> list[int]:
        """Ids of `text`.

        special: parse special tokens written in the text (a rendered chat template). Otherwise they are plain text:
        nothing a user writes becomes a control token. Tokens the vocabulary calls user-defined are matched either way.
        add_bos, add_eos: None is what the file says, and never doubles one that `text` itself has at that place.
        after: what stands before `text`, whose ids are then as if both were encoded at once (but for tokens that would
        reach across).
        Bytes that are no valid UTF-8 (in `bytes`, or in a str as lone surrogates) become byte tokens where the
        vocabulary has them. Raises UsageError when BOS or EOS is asked for and the vocabulary has none.
        """
        ids: list[int] = []
        begins = after == "nothing" or (after == "special" and self._encoder.begins_after_special)
        for segment in _segments(text):
            if isinstance(segment, bytes):
                ids += self._encoder.encode_bytes(segment)
            elif segment:
                ids += self._encoder.encode(segment, special=special, start=begins and not ids)
        prefix = self._affix(add_bos, self._specials.add_bos, self._specials.prefix_ids, "BOS")
        suffix = self._affix(add_eos, self._specials.add_eos, self._specials.suffix_ids, "EOS")
        if prefix and not (add_bos is None and tuple(ids[: len(prefix)]) == prefix):
            ids = [*prefix, *ids]
        if suffix and not (add_eos is None and tuple(ids[-len(suffix) :]) == suffix):
            ids = [*ids, *suffix]
        return ids

    @staticmethod
    def _affix(asked: bool | None, default: bool, ids: tuple[int, ...], name: str) -> tuple[int, ...]:
        if asked and not ids:
            raise UsageError(f"this model's vocabulary has no {name} token")
        return ids if (default if asked is None else asked) else ()

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Text of `ids`. Invalid UTF-8 becomes U+FFFD. Special tokens are left out, or spelled as in the file."""
        return self._pieces.decode(ids, skip_special=skip_special)

    def stream(self, *, skip_special: bool = True, continuation: bool = False) -> StreamDecoder:
        """A decoder that takes one id at a time.

        continuation: the text follows other text, so a leading space of the first token is kept (SentencePiece
        vocabularies; `decode` drops that space, since it stands for the one the encoder put in front).
        """
        return StreamDecoder(self._pieces, skip_special=skip_special, continuation=continuation)

    def token_bytes(self, token_id: int) -> bytes:
        """What one token says, as bytes; often a part of a character."""
        return self._pieces[int(token_id)]

    def token_to_id(self, token: str) -> int | None:
        """Id of a token as the file spells it (special tokens as themselves), or None."""
        return self._token_to_id(token)


def _segments(text: str | bytes) -> list[str | bytes]:
    """`text` as valid Unicode (str) and undecodable bytes (bytes), in order.

    In a str, U+DC80..U+DCFF stand for bytes (Python's surrogateescape); surrogate pairs are joined to the character
    they mean; any other lone surrogate has no byte form and becomes U+FFFD.
    """
    if isinstance(text, bytes):
        try:
            return [text.decode("utf-8")]
        except UnicodeDecodeError:
            text = text.decode("utf-8", "surrogateescape")
    elif not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
    if text.isascii() or _SURROGATES.search(text) is None:
        return [text]
    segments: list[str | bytes] = []
    # Lone surrogates that are no escaped bytes become U+FFFD, ordinary text.
    text = re.sub("[\ud800-\udc7f\udd00-\udfff]", "\ufffd", text)
    position = 0
    for run in _SURROGATES.finditer(text):
        segments.append(text[position : run.start()])
        segments.append(run.group().encode("utf-8", "surrogateescape"))
        position = run.end()
    segments.append(text[position:])
    return [segment for segment in segments if segment]
