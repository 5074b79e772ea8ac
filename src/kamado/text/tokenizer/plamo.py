"""PLaMo 2's and 3's tokenizer: the cheapest way to cut a text into tokens, found from its end.

Scores are whole numbers of a ten-thousandth. A character that no token covers costs a thousand and becomes its bytes.
Of ways that cost the same, the longest first token wins, at each place. Unlike SentencePiece's unigram model there is
no normalisation and no mark for spaces.

Held against llama.cpp. Two things differ from it as they do from PLaMo's own code: text never becomes a control token,
and a byte order mark in front stays. PLaMo 3's own code also cuts around long runs of one character; how long is in
none of a GGUF file's keys, so that is left out, as llama.cpp leaves it out.
"""

from __future__ import annotations

from array import array

from .metadata import SCORES_KEY, TOKENS_KEY, Metadata, TokenKind, Vocabulary

_UNITS = 10_000  # of a score
_UNKNOWN_COST = 1000 * _UNITS  # of a character without a token
_LEAST_COST_NEVER_TAKEN = 2000 * _UNITS
_MAX_UNITS = 1 << 31  # 4 billion characters of such tokens are still summed exactly
# A step is taken for each character of each token that begins at a place; and a node is kept for each of a token.
# PLaMo's longest token has some dozens of characters, and all of its 100,000 have half a million.
_MAX_TOKEN_CHARS = 1024
_MAX_CHARS = 1 << 23


class PlamoEncoder:
    """Encodes text without special tokens."""

    def __init__(self, meta: Metadata, vocabulary: Vocabulary) -> None:
        """Raises TokenizerError for a vocabulary that lacks bytes, or whose tokens or scores are too large."""
        byte_ids = vocabulary.byte_ids()
        missing = next((byte for byte in range(256) if byte not in byte_ids), None)
        if missing is not None:
            meta.fail(TOKENS_KEY, f"has no byte token <0x{missing:02X}>: this kind of tokenizer needs all 256")
        self._byte_ids = [byte_ids[byte] for byte in range(256)]
        ids = vocabulary.ids_without(TokenKind.CONTROL, TokenKind.UNKNOWN, TokenKind.UNUSED, TokenKind.BYTE)
        for token in ids:
            if len(token) > _MAX_TOKEN_CHARS:
                meta.fail(TOKENS_KEY, f"has a token of {len(token)} characters: {_MAX_TOKEN_CHARS} are allowed")
        if sum(map(len, ids)) > _MAX_CHARS:
            meta.fail(TOKENS_KEY, f"has tokens of more than {_MAX_CHARS} characters together")
        # A tree of the tokens' characters: (node << 21 | character) -> node, and at each node the token that ends
        # there.
        self._steps: dict[int, int] = {}
        self._ends: list[tuple[int, int] | None] = [None]
        for token, token_id in ids.items():
            units = vocabulary.scores[token_id] * _UNITS
            if abs(units) >= _MAX_UNITS:
                meta.fail(
                    SCORES_KEY, f"has {vocabulary.scores[token_id]:g} for token {token_id}, beyond what is summed"
                )
            cost = -round(units)
            if cost < _LEAST_COST_NEVER_TAKEN:
                self._add(token, token_id, cost)

    def _add(self, token: str, token_id: int, cost: int) -> None:
        node = 0
        for char in token:
            after = self._steps.setdefault(node << 21 | ord(char), len(self._ends))
            if after == len(self._ends):
                self._ends.append(None)
            node = after
        self._ends[node] = (token_id, cost)

    def encode_text(self, text: str, *, start: bool) -> list[int]:
        """Ids of `text`; its position does not matter."""
        tokens, lengths = self._cheapest(text)
        ids: list[int] = []
        position = 0
        while position < len(text):
            if tokens[position] < 0:
                ids += self.encode_bytes(text[position].encode())
            else:
                ids.append(tokens[position])
            position += lengths[position]
        return ids

    def _cheapest(self, text: str) -> tuple[array[int], array[int]]:
        """The token to take at each place, -1 for a character's bytes, and how many characters it has."""
        step_to, ends = self._steps.get, self._ends
        size = len(text)
        codes = array("i", map(ord, text))
        tokens = array("i", [-1]) * size
        lengths = array("i", [1]) * size
        costs = array("q", [0]) * (size + 1)  # of the text from a place to its end
        for begin in range(size - 1, -1, -1):
            best = costs[begin + 1] + _UNKNOWN_COST
            node = 0
            for place in range(begin, size):
                node = step_to(node << 21 | codes[place], 0)  # nothing leads back to the root
                if not node:
                    break
                found = ends[node]
                if found is not None and (cost := costs[place + 1] + found[1]) <= best:
                    best = cost
                    tokens[begin] = found[0]
                    lengths[begin] = place + 1 - begin
            costs[begin] = best
        return tokens, lengths

    def encode_bytes(self, raw: bytes) -> list[int]:
        """Byte tokens of `raw`."""
        return [self._byte_ids[byte] for byte in raw]
