"""Arguments with bare keys out of pieces of text, as JSON: `city:"x",n:-1,more:{k:[null]}`, each `"` a mark."""

from __future__ import annotations

import json

from .keyword_reader import KeywordReader
from .syntax import shown_text


class BareReader(KeywordReader):
    """Reads up to the `}` of the call, which is left. See ArgumentReader."""

    _end = "}"
    _assign = ":"
    _has_bare_keys = True

    def __init__(self, item_separator: str, key_separator: str, quote: str) -> None:
        """`quote`: the mark before and behind each text."""
        super().__init__(item_separator, key_separator)
        self._quotes = quote

    def _text(self, text: str, at: int, out: list[str]) -> int | None:
        """As it is, up to the next mark."""
        end = text.find(self._quote, at)
        if end == at:
            out.append('"')
            self._state = "colon" if self._is_key else "after"
            return at + 1
        end = len(text) if end < 0 else end
        out.append(json.dumps(shown_text(text[at:end]), ensure_ascii=False)[1:-1])
        return end
