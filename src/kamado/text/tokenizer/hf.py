"""Tokenizers from a Hugging Face `tokenizer.json`: the `tokenizers` package runs it, we guard and decode."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import CorruptFileError, TokenizerError, UnsupportedError
from ...files.plain_file import BOM, read_limited
from ...files.types import TokenizerSource
from .base import Specials, Tokenizer
from .bounds import check_in_worker, check_text, flatten
from .hf_names import HfNames, add_named_tokens
from .hf_steps import from_steps, in_linear_time, steps_of
from .pieces import SPACE_MARK, Pieces, byte_alphabet, byte_fallback_value, byte_level_bytes, clean_wordpiece
from .rust import rust_errors
from .special import stop_token_ids

if TYPE_CHECKING:
    from tokenizers import Tokenizer as RustTokenizer
    from tokenizers.pre_tokenizers import PreTokenizer

# The largest known file (Gemma, 262 144 tokens with merges as pairs) has 33 MB.
_MAX_FILE_BYTES = 1 << 28


class HfEncoder:
    """Encodes with the file's own rules: added tokens, normalizer, words, model."""

    def __init__(
        self, rust: RustTokenizer, special: Mapping[int, str], unknown_id: int | None, growth: float = 1.0
    ) -> None:
        """`growth`: bytes that the file's normalizers may make of one byte of text."""
        self._growth = growth
        self._rust = rust
        self._special = special
        self._unknown_id = unknown_id
        # Whether special tokens are parsed is a state of the Rust object, so calls take turns.
        self._lock = threading.Lock()
        # "first": text that follows a special token does not begin anew, unlike "always".
        schemes = [step.get("prepend_scheme") for step in _metaspaces(rust.pre_tokenizer)]
        self.begins_after_special = "first" not in schemes
        self._middle = _without_prefix(rust.pre_tokenizer) if schemes else None
        self._byte_ids: list[int | None] = [rust.token_to_id(f"<0x{byte:02X}>") for byte in range(256)]
        if "ByteLevel" in type(rust.decoder).__name__:
            alphabet = byte_alphabet()
            known = enumerate(self._byte_ids)
            self._byte_ids = [rust.token_to_id(alphabet[i]) if byte_id is None else byte_id for i, byte_id in known]

    def encode(self, text: str, *, special: bool, start: bool) -> list[int]:
        """See `base.Encoder`."""
        if start:
            return self._encode(text, special)
        if self._middle is not None:
            return self._encode(text, special, self._middle)
        # In the middle of a text the file's leading space must not come again: encode after a newline, drop that.
        newline = self._encode("\n", False)
        ids = self._encode("\n" + text, special)
        return ids[len(newline) :] if ids[: len(newline)] == newline else self._encode(text, special)

    def _encode(self, text: str, special: bool, words: PreTokenizer | None = None) -> list[int]:
        """Ids of `text`, its words cut by `words` in place of the file's own way."""
        check_text(text, self._growth)
        with self._lock, rust_errors("text cannot be tokenized"):
            self._rust.encode_special_tokens = not special
            own = self._rust.pre_tokenizer
            if words is not None:
                self._rust.pre_tokenizer = words
            try:
                ids: list[int] = self._rust.encode(text, add_special_tokens=False).ids
            finally:
                if words is not None:
                    self._rust.pre_tokenizer = own
        if special or self._special.keys().isdisjoint(ids):
            return ids
        # The model itself can hold special tokens (unigram): spell those out.
        return [i for token_id in ids for i in (self._spell(token_id) if token_id in self._special else (token_id,))]

    def _spell(self, token_id: int) -> Iterator[int]:
        for char in self._special[token_id]:
            single = self._rust.token_to_id(char)
            if single is not None and single not in self._special:
                yield single
            else:
                yield from self.encode_bytes(char.encode())

    def encode_bytes(self, raw: bytes) -> list[int]:
        """See `base.Encoder`."""
        ids = (self._byte_ids[byte] for byte in raw)
        known = [self._unknown_id if token_id is None else token_id for token_id in ids]
        return [token_id for token_id in known if token_id is not None]


def _metaspaces(words: PreTokenizer | None) -> list[dict[str, Any]]:
    """The steps of a pre-tokenizer that put a space mark before text."""
    return [
        step for step in steps_of(words) if step.get("type") == "Metaspace" and step.get("prepend_scheme") != "never"
    ]


def _without_prefix(words: PreTokenizer) -> PreTokenizer:
    """A copy of a pre-tokenizer for text in the middle of other text."""
    steps = steps_of(words)
    for step in steps:
        if step.get("type") == "Metaspace":
            step["prepend_scheme"] = "never"
    return from_steps(steps)


def load_hf(source: TokenizerSource) -> Tokenizer:
    """The tokenizer that `source.path`, a `tokenizer.json`, describes."""
    from tokenizers import Tokenizer as RustTokenizer

    raw = _read(source.path)
    growth = check_in_worker(source.path, raw)
    names = HfNames(source)
    with rust_errors(f"{source.path}: no valid tokenizer"):
        rust: RustTokenizer = RustTokenizer.from_buffer(raw.removeprefix(BOM))
        rust.no_truncation()
        rust.no_padding()
        if rust.pre_tokenizer is not None:
            rust.pre_tokenizer = in_linear_time(rust.pre_tokenizer)
        add_named_tokens(rust, names)
        added = rust.get_added_tokens_decoder()
        del raw
        size = max(rust.get_vocab_size(True), max(added, default=-1) + 1)
        decoder = json.loads(rust.decoder.__getstate__()) if rust.decoder is not None else None
        unknown = getattr(rust.model, "unk_token", None)
        unknown_id = rust.token_to_id(unknown) if isinstance(unknown, str) else getattr(rust.model, "unk_id", None)
        prefix, suffix = _affixes(rust)
    special = {i: token.content for i, token in added.items() if token.special}
    bos_id = names.token("bos_token", rust)
    eos_id = names.token("eos_token", rust)
    # The unknown token is what unknown text becomes, not something parsed from text.
    special_in_text = {i: text for i, text in special.items() if i != unknown_id}
    add_bos, add_eos = names.flag("add_bos_token", bool(prefix)), names.flag("add_eos_token", bool(suffix))
    prefix = prefix or (() if bos_id is None else (bos_id,))
    suffix = suffix or (() if eos_id is None else (eos_id,))
    specials = Specials(
        bos_id=bos_id if bos_id is not None else names.token("cls_token", rust),
        eos_id=eos_id if eos_id is not None else names.token("sep_token", rust),
        prefix_ids=prefix,
        suffix_ids=suffix,
        add_bos=add_bos and bool(prefix),
        add_eos=add_eos and bool(suffix),
        stop_ids=stop_token_ids(
            {token.content: i for token in added.values() if (i := rust.token_to_id(token.content)) is not None},
            special,
            [eos_id, *names.generation_ends(size)],
        ),
        special_ids=frozenset(special),
        strips={i: (token.lstrip, token.rstrip) for i, token in added.items() if token.lstrip or token.rstrip},
    )
    pieces = _pieces(rust, size, {i: token.content for i, token in added.items()}, specials, decoder, source.path)
    return Tokenizer(HfEncoder(rust, special_in_text, unknown_id, growth), pieces, specials, rust.token_to_id)


def _read(path: Path) -> bytes:
    try:
        return read_limited(path, _MAX_FILE_BYTES)
    except CorruptFileError as error:
        raise TokenizerError(str(error)) from error


def _affixes(rust: RustTokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What the file's post-processor puts before and after a text."""
    bare = rust.encode("a", add_special_tokens=False).ids
    full = rust.encode("a", add_special_tokens=True).ids
    num_around = len(full) - len(bare)
    for num_before in range(num_around + 1):
        if full[num_before : num_before + len(bare)] == bare:
            return tuple(full[:num_before]), tuple(full[num_before + len(bare) :])
    return (), ()


def _pieces(
    rust: RustTokenizer, size: int, added: Mapping[int, str], specials: Specials, decoder: Any, path: Path
) -> Pieces:
    """How tokens become bytes: read off the file's decoder."""
    steps = flatten(decoder)
    kinds = [step.get("type") for step in steps]
    unsupported = {"BPEDecoder", "CTC"} & set(kinds)
    if unsupported:
        raise UnsupportedError(f"{path}: decoder {unsupported.pop()!r} is not supported")
    strip = any(
        (step.get("type") == "Strip" and step.get("start", 0) and step.get("content") == " ")
        or (step.get("type") == "Metaspace" and step.get("prepend_scheme", "always") != "never")
        for step in steps
    )
    wordpiece = next((step for step in steps if step.get("type") == "WordPiece"), None)
    byte_level = "ByteLevel" in kinds
    has_fallback = "ByteFallback" in kinds

    def bytes_of(token_id: int) -> bytes:
        text = added.get(token_id)
        if text is None:
            text = rust.id_to_token(token_id)
            if text is None:
                return b""  # a hole in the numbering
            if byte_level:
                return byte_level_bytes(text)
            if has_fallback and (value := byte_fallback_value(text)) is not None:
                return bytes((value,))
        if wordpiece is not None:
            prefix = str(wordpiece.get("prefix", "##"))
            text = text[len(prefix) :] if text.startswith(prefix) else " " + text
            text = clean_wordpiece(text) if wordpiece.get("cleanup", True) else text
        elif not steps:
            text = " " + text  # without a decoder, tokens are words
        elif not byte_level:
            text = text.replace(SPACE_MARK, " ")
        return text.encode("utf-8")

    return Pieces(size, bytes_of, specials.special_ids, strip_first_space=strip or wordpiece is not None or not steps)
