"""What the small JSON files beside `tokenizer.json` say: special tokens by text, ends by id, tokens it lacks.

The rules are transformers': `special_tokens_map.json` and `added_tokens.json` are older than `added_tokens_decoder` of
tokenizer_config.json and count only where that is absent; `eos_token_id` of config.json counts only where
generation_config.json has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import TokenizerError
from ...files.types import TokenizerSource
from .metadata import MAX_TOKENS

if TYPE_CHECKING:
    from tokenizers import Tokenizer as RustTokenizer

_CONFIG = "tokenizer_config.json"
_MAP = "special_tokens_map.json"
_ADDED = "added_tokens.json"
_DECODER_KEY = "added_tokens_decoder"
_FLAGS = ("special", "lstrip", "rstrip", "normalized", "single_word")


class HfNames:
    """The parsed files. Every getter raises TokenizerError naming the file."""

    def __init__(self, source: TokenizerSource) -> None:
        self._data = source.data
        self.folder: Path = source.path.parent

    def file(self, name: str) -> Mapping[str, Any]:
        """One of them; empty when it is not there."""
        value = self._data.get(name, {})
        if not isinstance(value, Mapping):
            raise TokenizerError(f"{self.folder / name}: not a JSON object")
        return value

    def fail(self, name: str, key: str, what: str) -> TokenizerError:
        """The error about `key` of file `name`."""
        return TokenizerError(f"{self.folder / name}: key '{key}' {what}")

    def token_files(self) -> tuple[str, str]:
        """The files that name special tokens, the one that counts first."""
        return (_CONFIG, _MAP) if self.file(_CONFIG).get(_DECODER_KEY) else (_MAP, _CONFIG)

    def text(self, name: str, key: str) -> str | None:
        """A token's text, which may be an object that has it as `content`."""
        value = self.file(name).get(key)
        if isinstance(value, Mapping):
            value = value.get("content")
        if value is not None and not _is_text(value):
            raise self.fail(name, key, "is no token")
        return value

    def token(self, key: str, rust: RustTokenizer) -> int | None:
        """Id in `rust` of a token named in one of the files, e.g. "eos_token"."""
        for name in self.token_files():
            text = self.text(name, key)
            if text is None:
                continue
            token_id: int | None = rust.token_to_id(text)
            if token_id is None:
                raise self.fail(name, key, f"names {text!r}, which tokenizer.json lacks")
            return token_id
        return None

    def flag(self, key: str, default: bool) -> bool:
        """A boolean of tokenizer_config.json."""
        value = self.file(_CONFIG).get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.fail(_CONFIG, key, "is not a boolean")
        return value

    def generation_ends(self, size: int) -> list[int]:
        """`eos_token_id`, one id or several below `size`, of generation_config.json, else config.json; -1 is none."""
        for name in ("generation_config.json", "config.json"):
            value = self.file(name).get("eos_token_id")
            if value is None:
                continue
            ends = []
            for token_id in value if isinstance(value, list) else [value]:
                if isinstance(token_id, bool) or not isinstance(token_id, int):
                    raise self.fail(name, "eos_token_id", f"has {token_id!r:.60}, no token id")
                if 0 <= token_id < size:
                    ends.append(token_id)
                elif token_id != -1 and name != "config.json":  # there it may be a default that nobody looked at
                    raise self.fail(name, "eos_token_id", f"has {token_id!r:.60}, no id of the {size} tokens")
            return ends
        return []


def add_named_tokens(rust: RustTokenizer, files: HfNames) -> None:
    """Add the tokens that only tokenizer_config.json or added_tokens.json have, and set what they say of others.

    Raises TokenizerError when one is no token, or would get another id than it is said to have.
    """
    from tokenizers import AddedToken

    for name, key, token_id, token in _named_tokens(files):
        known = rust.token_to_id(token["content"])
        flags = {flag: token[flag] for flag in _FLAGS if isinstance(token.get(flag), bool)}
        added = AddedToken(token["content"], **flags)
        rust.add_special_tokens([added]) if flags.get("special") else rust.add_tokens([added])
        if known is None and rust.token_to_id(token["content"]) != token_id:
            raise files.fail(
                name,
                key,
                f"has {token['content']!r:.60} as token {token_id}, and tokenizer.json has "
                f"{rust.get_vocab_size(True) - 1} before it",
            )


def _named_tokens(files: HfNames) -> list[tuple[str, str, int, Mapping[str, Any]]]:
    """(file, key, id, token) by ascending id."""
    listed = files.file(_CONFIG).get(_DECODER_KEY)
    found: list[tuple[str, str, int, Mapping[str, Any]]] = []
    if listed:
        if not isinstance(listed, Mapping) or len(listed) > MAX_TOKENS:
            raise files.fail(_CONFIG, _DECODER_KEY, "is no object of tokens by id")
        for written, token in listed.items():
            if not (written.isascii() and written.isdecimal() and len(written) < 10):
                raise files.fail(_CONFIG, _DECODER_KEY, f"has {written!r:.60}, no token id")
            if not isinstance(token, Mapping) or not _is_text(token.get("content")) or not token["content"]:
                raise files.fail(_CONFIG, f"{_DECODER_KEY}.{written}", "is no token")
            found.append((_CONFIG, f"{_DECODER_KEY}.{written}", int(written), token))
    else:
        added = files.file(_ADDED)
        if len(added) > MAX_TOKENS:
            raise TokenizerError(f"{files.folder / _ADDED}: has {len(added)} tokens, more than are allowed")
        special = _special_texts(files) if added else frozenset()
        for text, token_id in added.items():
            if isinstance(token_id, bool) or not isinstance(token_id, int) or not text or not _is_text(text):
                raise files.fail(_ADDED, text[:60], "is no token id")
            is_special = text in special
            token = {"content": text, "special": is_special, "normalized": not is_special}
            found.append((_ADDED, text[:60], token_id, token))
    return sorted(found, key=lambda entry: entry[2])


def _is_text(value: Any) -> bool:
    """Whether it is valid Unicode: JSON can write halves of characters, which Rust cannot take."""
    return isinstance(value, str) and not any("\ud800" <= char <= "\udfff" for char in value)


def _special_texts(files: HfNames) -> frozenset[str]:
    """Every text that the files name as a special token."""
    texts: set[str] = set()
    for name in files.token_files():
        for key, value in files.file(name).items():
            if key.endswith("_token"):
                values = [value]
            elif key in ("additional_special_tokens", "extra_special_tokens") and isinstance(value, list):
                values = value
            else:
                continue
            contents = (v.get("content") if isinstance(v, Mapping) else v for v in values)
            texts.update(content for content in contents if isinstance(content, str))
    return frozenset(texts)
