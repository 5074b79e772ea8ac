"""Special tokens: where they stand in a text, and which of them end a turn."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from .metadata import TokenKind, Vocabulary

# Ends of a turn or of a text in the model families in use. A token with one of these texts ends generation and is
# never read from plain text, whatever type the file gives it (files have marked some of them as ordinary tokens).
_END_TEXTS = frozenset(
    {
        "<|im_end|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<|end_of_role|>",
        "<end_of_utterance>",
        "<|eot|>",
        "<|END_OF_TURN_TOKEN|>",
        "<\uff5cend\u2581of\u2581sentence\uff5c>",
        "<|flush|>",
        "<|calls|>",
        "[e~[",
        "<seed:eos>",
        "<|plamo:eos|>",
        "[|endofturn|]",
        "<turn|>",
        "<|tool_response>",
        "<|endofassistant|>",
    }
)
# These are ends only as control tokens: Gemma and Qwen have an ordinary HTML token "</s>".
_CONTROL_END_TEXTS = frozenset(
    {"</s>", "<eos>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"}
)
# Where both of a pair exist (gpt-oss; Solar Open), "<|end|>" closes one message of several, and they close the turn.
_TURN_ENDS = (frozenset({"<|return|>", "<|call|>"}), frozenset({"<|flush|>", "<|calls|>"}))
# GLM: the next turn's name, written by the model itself, is the end of its own. Files say so, but not all of them.
_GLM_MARK = "[gMASK]"
_GLM_ENDS = frozenset({"<|user|>", "<|observation|>"})
_NO_ENDS = frozenset({"<|end_of_role|>"})  # closes a role name inside a turn (Granite), not the turn


def stop_token_ids(ids: Mapping[str, int], control: Iterable[int], declared: Iterable[int | None]) -> frozenset[int]:
    """Ids that end generation: the `declared` ones and those known by their text.

    `ids` finds a token by text; `control` are the ids of control tokens.
    """
    control = frozenset(control)
    stops = {token_id for token_id in declared if token_id is not None}
    stops.update(ids[text] for text in _END_TEXTS - _NO_ENDS if text in ids)
    stops.update(ids[text] for text in _CONTROL_END_TEXTS if ids.get(text) in control)
    if _GLM_MARK in ids:
        stops.update(ids[text] for text in _GLM_ENDS if ids.get(text) in control)
    if "<|end|>" in ids and any(ids.keys() >= turn_ends for turn_ends in _TURN_ENDS):
        stops.discard(ids["<|end|>"])
    return frozenset(stops)


def mark_end_tokens(vocabulary: Vocabulary) -> None:
    """Make every token that is an end by its text a control token, so that plain text can never produce it."""
    for text in _END_TEXTS:
        token_id = vocabulary.ids.get(text)
        if token_id is not None:
            vocabulary.kinds[token_id] = int(TokenKind.CONTROL)


class SpecialMatcher:
    """Finds tokens in text, leftmost first and the longest at each place (SentencePiece's and Hugging Face's rule)."""

    def __init__(self, tokens: Mapping[str, int]) -> None:
        self._trie: dict[str, Any] = {}
        prefixes: set[str] = set()
        for text, token_id in tokens.items():
            node = self._trie
            for char in text:
                node = node.setdefault(char, {})
            node[""] = token_id
            prefixes.add(text[:2])
        # Two characters are enough to skip nearly all text at the speed of `re`: runs of spaces or newlines are
        # tokens in Gemma, single ones must not be candidates.
        ones = {p for p in prefixes if len(p) == 1}
        choices = sorted(ones) + sorted(p for p in prefixes if p[0] not in ones)
        self._candidates = re.compile("|".join(map(re.escape, choices)), re.DOTALL) if choices else None

    def split(self, text: str) -> list[str | int]:
        """`text` as pieces of plain text (never empty) and token ids, in order."""
        if self._candidates is None:
            return [text] if text else []
        pieces: list[str | int] = []
        plain_begin = 0
        position = 0
        search = self._candidates.search
        while (hit := search(text, position)) is not None:
            begin = hit.start()
            end, token_id = self._longest(text, begin)
            if end < 0:
                position = begin + 1
                continue
            if plain_begin < begin:
                pieces.append(text[plain_begin:begin])
            pieces.append(token_id)
            plain_begin = position = end
        if plain_begin < len(text):
            pieces.append(text[plain_begin:])
        return pieces

    def _longest(self, text: str, begin: int) -> tuple[int, int]:
        """End and id of the longest token at `begin`; (-1, -1) when there is none."""
        node: Any = self._trie
        end, token_id = -1, -1
        for i in range(begin, len(text)):
            node = node.get(text[i])
            if node is None:
                break
            found = node.get("")
            if found is not None:
                end, token_id = i + 1, found
        return end, token_id
