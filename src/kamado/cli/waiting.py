"""What a person sees while the model reads: a bar with tokens and rate for a long prompt, else a sign that turns.

Both stand on stderr, appear after a moment only, and are wiped before the first word of the answer.
"""

from __future__ import annotations

import sys
import threading
from types import TracebackType
from typing import Protocol, TextIO

from .terminal import Progress, is_moving

_PATIENCE_S = 0.3  # an answer that comes sooner needs no sign
_INTERVAL_S = 0.1
_LONG_PROMPT_TOKENS = 256
_FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


class Counted(Protocol):
    """Tokens of a prompt, as `kamado.Usage` has them."""

    @property
    def num_prompt_tokens(self) -> int:
        """Of the whole prompt."""
        ...

    @property
    def num_reused_tokens(self) -> int:
        """Of these, those that need not be read."""
        ...


class Waiting:
    """A context manager around an answer; `close` ends the sign and may be called again."""

    def __init__(self, pieces: object, stream: TextIO | None = None) -> None:
        """`pieces`: the answer. How far its prompt has come is asked of it where it can say that."""
        self._pieces = pieces
        self._stream = sys.stderr if stream is None else stream
        self._is_over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Waiting:
        if is_moving(self._stream):
            self._thread = threading.Thread(target=self._draw, name="waiting", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Wipes the sign; when this returns, the terminal is the caller's."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._is_over.set()
            thread.join()

    def _draw(self) -> None:
        if self._is_over.wait(_PATIENCE_S):
            return
        frame = 0
        has_sign = False
        with Progress("reading", unit="tokens", stream=self._stream) as bar:
            while True:
                done, total, reused = self._count()
                if total - reused >= _LONG_PROMPT_TOKENS and done < total:
                    bar(done, total)
                else:
                    bar.close()
                    self._stream.write(f"{_FRAMES[frame % len(_FRAMES)]}\r")
                    self._stream.flush()
                    frame, has_sign = frame + 1, True
                if self._is_over.wait(_INTERVAL_S):
                    break
            if has_sign:
                self._stream.write(" \r")

    def _count(self) -> tuple[int, int, int]:
        """Tokens read, of how many, and how many of them were there already; 0, 0, 0 where that is not known."""
        usage: Counted | None = getattr(self._pieces, "usage", None)
        done: int | None = getattr(self._pieces, "num_computed_tokens", None)
        if usage is None or done is None:
            return 0, 0, 0
        return done, usage.num_prompt_tokens, usage.num_reused_tokens
