"""Stop strings in streamed text: text that may be the beginning of one is held back until that is known."""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import UsageError

MAX_STOPS = 16
MAX_STOP_CHARACTERS = 512


def check_stops(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """Stop strings as a tuple. Raises UsageError for an empty, too long or wrongly typed one."""
    stops = () if stop is None else (stop,) if isinstance(stop, str) else tuple(stop)
    if len(stops) > MAX_STOPS:
        raise UsageError(f"{len(stops)} stop strings: {MAX_STOPS} are allowed")
    for text in stops:
        _check_stop(text)
    return stops


def _check_stop(text: object) -> None:
    if not isinstance(text, str) or not 1 <= len(text) <= MAX_STOP_CHARACTERS:
        raise UsageError(f"a stop string must be text of 1 to {MAX_STOP_CHARACTERS} characters, not {repr(text)[:60]}")


class StopMatcher:
    """Passes text on and ends at the stop string that is complete first; the stop string itself is never passed on.

    The result does not depend on how the text was cut into pieces. Less than the longest stop string is held back.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._longest = max(map(len, stops), default=0)
        self._held = ""
        self.is_stopped = False
        self.matched: str | None = None  # the stop string that came

    def push(self, text: str) -> str:
        """What may be shown now that `text` came. After a match: what came before it, and `is_stopped` is set."""
        if not self._longest or not text:
            return text
        text = self._held + text
        # The first to be complete; of those that end together the longest.
        match = min(((at + len(s), at) for s in self._stops if (at := text.find(s)) >= 0), default=None)
        if match is not None:
            self.is_stopped = True
            self.matched = text[match[1] : match[0]]
            self._held = ""
            return text[: match[1]]
        for size in range(min(self._longest - 1, len(text)), 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self._stops):
                self._held = text[-size:]
                return text[:-size]
        self._held = ""
        return text

    def flush(self) -> str:
        """The text still held back, when the answer ended without the rest of a stop string."""
        text, self._held = self._held, ""
        return text
