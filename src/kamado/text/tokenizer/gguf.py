"""Tokenizers from GGUF metadata. Defaults where a file is silent are those of llama.cpp, which writes these files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Protocol

from ...errors import UnsupportedError
from ...files.types import TokenizerSource
from .base import Specials, Tokenizer
from .bounds import check_charsmap
from .metadata import MERGES_KEY, SCORES_KEY, Metadata, TokenKind, Vocabulary
from .pieces import SPACE_MARK, Pieces, byte_fallback_value, byte_level_bytes, clean_wordpiece
from .pretokenizers import PRE_TOKENIZERS
from .special import SpecialMatcher, mark_end_tokens, stop_token_ids

if TYPE_CHECKING:
    from .spm import SentencePieceEncoder
    from .unigram import UnigramEncoder

_MODEL_KEY = "tokenizer.ggml.model"
_PRE_KEY = "tokenizer.ggml.pre"
_CHARSMAP_KEY = "tokenizer.ggml.precompiled_charsmap"
_MAX_CHARSMAP_BYTES = 1 << 24
# Kind -> whether byte-pair merging must not know the token.
_HIDDEN = bytes(kind in (TokenKind.CONTROL, TokenKind.UNKNOWN, TokenKind.UNUSED) for kind in range(256))
_MAX_WORDPIECE_CHARS = 100  # longer words are unknown to BERT


class _TextEncoder(Protocol):
    def encode_text(self, text: str, *, start: bool) -> list[int]: ...

    def encode_bytes(self, raw: bytes) -> list[int]: ...


class GgufEncoder:
    """Cuts special tokens out of a text and hands what is between them to the vocabulary's own encoder."""

    begins_after_special = True  # as llama.cpp does it

    def __init__(self, vocabulary: Vocabulary, plain: _TextEncoder, *, finds_own: bool = False) -> None:
        """`finds_own`: `plain` matches user-defined tokens by itself."""
        tokens = vocabulary.tokens
        always = {} if finds_own else {tokens[i]: i for i in vocabulary.of_kind(TokenKind.USER_DEFINED)}
        parsed = {tokens[i]: i for i in vocabulary.of_kind(TokenKind.CONTROL, TokenKind.UNKNOWN)}
        self._always = SpecialMatcher(always)
        self._all = SpecialMatcher(always | parsed)
        self._plain = plain

    def encode(self, text: str, *, special: bool, start: bool) -> list[int]:
        """See `base.Encoder`."""
        ids: list[int] = []
        for piece in (self._all if special else self._always).split(text):
            if isinstance(piece, int):
                ids.append(piece)
                start = True  # llama.cpp puts its space prefix after every special token too
            else:
                ids += self._plain.encode_text(piece, start=start)
                start = False
        return ids

    def encode_bytes(self, raw: bytes) -> list[int]:
        """See `base.Encoder`."""
        return self._plain.encode_bytes(raw)


def load_gguf(source: TokenizerSource) -> Tokenizer:
    """The tokenizer that the metadata describes. Raises TokenizerError or UnsupportedError, naming file and key."""
    meta = Metadata(source.data, source.path)
    if not meta.has(_MODEL_KEY):
        meta.fail(_MODEL_KEY, "is missing")
    model = meta.text(_MODEL_KEY, "")
    builders = {
        "gpt2": _byte_level,
        "llama": _sentence_piece,
        "bert": _word_piece,
        "t5": _unigram,
        "gemma4": _marked_pairs,
        "plamo2": _plamo,
    }
    build = builders.get(model)
    if build is None:
        raise UnsupportedError(
            f"{source.path}: tokenizer model {model!r} ({_MODEL_KEY}) is not supported; "
            f"these are: {', '.join(sorted(builders))}"
        )
    vocabulary = meta.vocabulary()
    mark_end_tokens(vocabulary)
    return build(meta, vocabulary)


def _byte_level(meta: Metadata, vocabulary: Vocabulary) -> Tokenizer:
    from .rust import ByteLevelEncoder

    name = meta.text(_PRE_KEY, "default") or "default"
    pre = PRE_TOKENIZERS.get(name)
    if pre is None:
        raise UnsupportedError(
            f"{meta.path}: pre-tokenizer {name!r} ({_PRE_KEY}) is not supported; "
            f"these are: {', '.join(sorted(PRE_TOKENIZERS))}"
        )
    kinds, tokens = vocabulary.kinds, vocabulary.tokens
    # Control tokens stay out of the model: a word of plain text that spells one must not become it.
    is_hidden = bytes(kinds).translate(_HIDDEN)
    encoder = ByteLevelEncoder(meta.token_table(tokens), is_hidden, meta.merge_table(), pre, meta.about(MERGES_KEY))

    plain = {int(TokenKind.NORMAL), int(TokenKind.UNDEFINED)}
    unused = int(TokenKind.UNUSED)

    def bytes_of(token_id: int) -> bytes:
        kind = kinds[token_id]
        if kind == unused:
            return b""
        return byte_level_bytes(tokens[token_id]) if kind in plain else tokens[token_id].encode()

    specials = _specials(meta, vocabulary, add_bos=pre.add_bos, add_eos=False)
    pieces = Pieces(len(tokens), bytes_of, specials.special_ids, strip_first_space=False)
    return Tokenizer(GgufEncoder(vocabulary, encoder), pieces, specials, vocabulary.ids.get)


def _sentence_piece(meta: Metadata, vocabulary: Vocabulary) -> Tokenizer:
    from .spm import SentencePieceEncoder

    specials = _specials(meta, vocabulary, add_bos=True, add_eos=False, default_bos=1, default_eos=2)
    return _scored(meta, vocabulary, SentencePieceEncoder, specials, removes_spaces=False, unknown_id=0)


def _unigram(meta: Metadata, vocabulary: Vocabulary) -> Tokenizer:
    from .unigram import UnigramEncoder

    make = partial(UnigramEncoder, what=f"{meta.path}: tokenizer of model 't5'")
    specials = _specials(meta, vocabulary, add_bos=False, add_eos=True, default_eos=1)
    # The encoder finds user-defined tokens itself: they do not begin a text anew.
    return _scored(meta, vocabulary, make, specials, removes_spaces=True, unknown_id=2, finds_own=True)


def _scored(
    meta: Metadata,
    vocabulary: Vocabulary,
    make: Callable[..., SentencePieceEncoder | UnigramEncoder],
    specials: Specials,
    *,
    removes_spaces: bool,
    unknown_id: int,
    finds_own: bool = False,
) -> Tokenizer:
    """A tokenizer of a vocabulary with scores; keywords are what holds where the file does not say it."""
    if not vocabulary.scores:
        meta.fail(SCORES_KEY, "is missing: this kind of tokenizer needs scores")
    size = len(vocabulary.tokens)
    add_space_prefix = meta.flag("tokenizer.ggml.add_space_prefix", True)
    encoder = make(
        vocabulary,
        add_space_prefix=add_space_prefix,
        remove_extra_spaces=meta.flag("tokenizer.ggml.remove_extra_whitespaces", removes_spaces),
        normalize=_normalizer(meta),
        unknown_id=meta.token_id("tokenizer.ggml.unknown_token_id", size, unknown_id),
    )
    pieces = Pieces(
        size, partial(_space_mark_bytes, vocabulary), specials.special_ids, strip_first_space=add_space_prefix
    )
    return Tokenizer(GgufEncoder(vocabulary, encoder, finds_own=finds_own), pieces, specials, vocabulary.ids.get)


def _marked_pairs(meta: Metadata, vocabulary: Vocabulary) -> Tokenizer:
    from .marked_pairs import MarkedPairsEncoder

    # Gemma 4 always begins with BOS; files have said otherwise, and llama.cpp does not believe them.
    specials = _specials(meta, vocabulary, add_bos=True, add_eos=False, obey_flags=False)
    pieces = Pieces(
        len(vocabulary.tokens), partial(_space_mark_bytes, vocabulary), specials.special_ids, strip_first_space=False
    )
    encoder = GgufEncoder(vocabulary, MarkedPairsEncoder(meta, vocabulary))
    return Tokenizer(encoder, pieces, specials, vocabulary.ids.get)


def _plamo(meta: Metadata, vocabulary: Vocabulary) -> Tokenizer:
    from .plamo import PlamoEncoder

    if not vocabulary.scores:
        meta.fail(SCORES_KEY, "is missing: this kind of tokenizer needs scores")
    tokens, kinds = vocabulary.tokens, vocabulary.kinds

    def bytes_of(token_id: int) -> bytes:
        value = byte_fallback_value(tokens[token_id]) if kinds[token_id] == TokenKind.BYTE else None
        return tokens[token_id].encode() if value is None else bytes((value,))

    specials = _specials(meta, vocabulary, add_bos=False, add_eos=False, default_bos=1, default_eos=2)
    pieces = Pieces(len(tokens), bytes_of, specials.special_ids, strip_first_space=False)
    return Tokenizer(GgufEncoder(vocabulary, PlamoEncoder(meta, vocabulary)), pieces, specials, vocabulary.ids.get)


def _normalizer(meta: Metadata) -> Callable[[str], str] | None:
    """The file's normalisation table as a function; None when it has none."""
    # Nobody writes these, but SentencePiece has the options: other than so, text would be cut wrongly without a word.
    for key, usual in (("escape_whitespaces", True), ("treat_whitespace_as_suffix", False)):
        if meta.flag(f"tokenizer.ggml.{key}", usual) is not usual:
            raise UnsupportedError(f"{meta.about(f'tokenizer.ggml.{key}')} is {not usual}, which is not supported")
    if not meta.has(_CHARSMAP_KEY):
        return None
    from .charsmap import CharsMap

    values = meta.array(_CHARSMAP_KEY, _MAX_CHARSMAP_BYTES)
    try:
        table = bytes(value & 0xFF for value in values)
    except TypeError:
        meta.fail(_CHARSMAP_KEY, "holds something other than bytes")
    if not table:
        return None  # the identity
    if problem := check_charsmap(table):
        meta.fail(_CHARSMAP_KEY, problem)
    return CharsMap(table).normalize


def _word_piece(meta: Metadata, vocabulary: Vocabulary) -> Tokenizer:
    from tokenizers import Tokenizer as RustTokenizer
    from tokenizers import models, normalizers, pre_tokenizers

    from .rust import RustEncoder, rust_errors

    tokens, size = vocabulary.tokens, len(vocabulary.tokens)
    unknown_id = meta.token_id("tokenizer.ggml.unknown_token_id", size, 100)
    if unknown_id is None:
        meta.fail("tokenizer.ggml.unknown_token_id", "is missing: WordPiece needs an unknown token")
    words: dict[str, int] = {}
    special = {int(TokenKind.CONTROL), int(TokenKind.UNKNOWN), int(TokenKind.UNUSED)}
    for i, (token, kind) in enumerate(zip(tokens, vocabulary.kinds, strict=True)):
        # GGUF marks the beginning of a word; WordPiece marks what continues one.
        if kind in special or i == unknown_id:
            words[token] = i
        else:
            begins = token.startswith(SPACE_MARK) and token != SPACE_MARK
            words.setdefault(token[1:] if begins else "##" + token, i)
    lowercase = meta.flag("tokenizer.ggml.normalizer.lowercase", True)
    with rust_errors(f"{meta.path}: tokenizer of model 'bert'"):
        rust = RustTokenizer(
            models.WordPiece(words, unk_token=tokens[unknown_id], max_input_chars_per_word=_MAX_WORDPIECE_CHARS)
        )
        strip_accents = meta.flag("tokenizer.ggml.normalizer.strip_accents", lowercase)
        rust.normalizer = normalizers.BertNormalizer(strip_accents=strip_accents, lowercase=lowercase)
        rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()

    def bytes_of(token_id: int) -> bytes:
        token = tokens[token_id]
        if vocabulary.kinds[token_id] in special:
            return (" " + token).encode()
        begins = token.startswith(SPACE_MARK) and token != SPACE_MARK
        return (clean_wordpiece(" " + token[1:]) if begins else token).encode()

    specials = _specials(
        meta,
        vocabulary,
        add_bos=True,
        add_eos=True,
        default_bos=101,
        default_eos=102,
        bos_keys=("tokenizer.ggml.cls_token_id", "tokenizer.ggml.bos_token_id"),
        eos_keys=("tokenizer.ggml.seperator_token_id", "tokenizer.ggml.eos_token_id"),  # sic, as files have it
        obey_flags=False,  # BERT is always [CLS] text [SEP]; files say so in three different ways
    )
    pieces = Pieces(size, bytes_of, specials.special_ids, strip_first_space=True)
    return Tokenizer(GgufEncoder(vocabulary, RustEncoder(rust, unknown_id)), pieces, specials, vocabulary.ids.get)


def _space_mark_bytes(vocabulary: Vocabulary, token_id: int) -> bytes:
    """Bytes of a SentencePiece token: the space mark is a space, byte tokens are bytes."""
    text, kind = vocabulary.tokens[token_id], vocabulary.kinds[token_id]
    if kind == TokenKind.BYTE:
        value = byte_fallback_value(text)
        return bytes((value,)) if value is not None else b""
    return (text if kind in (TokenKind.CONTROL, TokenKind.UNKNOWN) else text.replace(SPACE_MARK, " ")).encode()


def _specials(
    meta: Metadata,
    vocabulary: Vocabulary,
    *,
    add_bos: bool,
    add_eos: bool,
    default_bos: int | None = None,
    default_eos: int | None = None,
    bos_keys: Sequence[str] = ("tokenizer.ggml.bos_token_id",),
    eos_keys: Sequence[str] = ("tokenizer.ggml.eos_token_id",),
    obey_flags: bool = True,
) -> Specials:
    """Ids with a meaning. Of several keys for one of them the first that the file has counts."""
    size = len(vocabulary.tokens)

    def first(keys: Sequence[str], default: int | None) -> int | None:
        present = next((key for key in keys if meta.has(key)), keys[0])
        return meta.token_id(present, size, default)

    bos_id, eos_id = first(bos_keys, default_bos), first(eos_keys, default_eos)
    control = frozenset(vocabulary.of_kind(TokenKind.CONTROL, TokenKind.UNKNOWN))
    if obey_flags:
        add_bos = meta.flag("tokenizer.ggml.add_bos_token", add_bos)
        add_eos = meta.flag("tokenizer.ggml.add_eos_token", add_eos)
    ends = [meta.token_id(f"tokenizer.ggml.{name}_token_id", size) for name in ("eot", "eom")]
    return Specials(
        bos_id=bos_id,
        eos_id=eos_id,
        prefix_ids=() if bos_id is None else (bos_id,),
        suffix_ids=() if eos_id is None else (eos_id,),
        add_bos=add_bos and bos_id is not None,
        add_eos=add_eos and eos_id is not None,
        stop_ids=stop_token_ids(vocabulary.ids, control, [eos_id, *ends]),
        special_ids=control,
    )
