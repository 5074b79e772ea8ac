"""A copied vocabulary with fewer tokens than it had, or more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ..errors import UsageError
from ..files.gguf_header import ValueType

Entry = tuple[Any, ValueType, ValueType | None]  # a key's value, and its kinds as the writer takes them

_GGML: Final = "tokenizer.ggml."
_NORMAL, _UNUSED = 1, 5  # of `token_type`
_PAD_SCORE: Final = -1000.0  # the converter's, for tokens that it fills a vocabulary with


def resized(entries: Mapping[str, Entry], vocab_size: int | None) -> dict[str, Entry]:
    """The tokenizer's keys with `vocab_size` tokens; None leaves them as they are.

    More: filled as llama.cpp's converter fills, with tokens that no text has. Fewer: special and byte tokens stay, of
    the others the first; merges that need a lost token go too. Raises UsageError when the special ones are too many.
    """
    result = dict(entries)
    tokens = list(entries[_GGML + "tokens"][0])
    if vocab_size is None or vocab_size == len(tokens):
        return result
    values = {name: list(entries[_GGML + name][0]) for name in ("token_type", "scores") if _GGML + name in entries}
    if vocab_size > len(tokens):
        added = range(len(tokens), vocab_size)
        tokens += [f"[PAD{i}]" for i in added]
        for name, filler in (("token_type", _UNUSED), ("scores", _PAD_SCORE)):
            if name in values:
                values[name] += [filler] * len(added)
    else:
        kinds = values.get("token_type", [_NORMAL] * len(tokens))
        named = {value for _, value in _ids(entries)}
        needed = [i for i, kind in enumerate(kinds) if kind != _NORMAL or i in named]
        if len(needed) > vocab_size:
            raise UsageError(f"a vocabulary of {vocab_size} has no room for {len(needed)} special tokens: give more")
        is_needed = set(needed)
        others = [i for i in range(len(tokens)) if i not in is_needed][: vocab_size - len(needed)]
        kept = sorted([*needed, *others])
        place = {old: new for new, old in enumerate(kept)}
        tokens = [tokens[i] for i in kept]
        values = {name: [items[i] for i in kept] for name, items in values.items()}
        for key, value in _ids(entries):
            result[key] = (place[value], *entries[key][1:])
        if (key := _GGML + "merges") in entries:
            known = set(tokens)
            merges = [merge for merge in entries[key][0] if _is_whole(merge, known)]
            result[key] = (merges, *entries[key][1:])
    for name, items in {"tokens": tokens, **values}.items():
        result[_GGML + name] = (items, *entries[_GGML + name][1:])
    return result


def _ids(entries: Mapping[str, Entry]) -> list[tuple[str, int]]:
    """(key, token) of the keys that name one; one that names a token which there is not goes unmentioned."""
    count = len(entries[_GGML + "tokens"][0])
    return [
        (key, value)
        for key, (value, *_) in entries.items()
        if key.endswith("_token_id") and isinstance(value, int) and 0 <= value < count
    ]


def _is_whole(merge: str, known: set[str]) -> bool:
    left, _, right = merge.partition(" ")
    return left in known and right in known and left + right in known
