"""A model that answers by echoing, for the command line's tests; run as a program it is `kamado` with that model."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kamado.cli import loading
from kamado.engine.embed import Embedded
from kamado.engine.measure.scoring import Perplexity
from kamado.engine.piece import Piece, Usage
from kamado.errors import ContextOverflowError, UsageError

SLOW_WORDS = 2000  # "slow" in a question: this many words, 10 ms each, so that only an interrupt ends the answer


class FakeGeneration(Iterator[Piece]):
    """Words as pieces; `close` is recorded."""

    def __init__(self, words: Sequence[str], delay: float) -> None:
        self.words = list(words)
        self.delay = delay
        self.position = 0
        self.is_closed = False

    def __next__(self) -> Piece:
        if self.is_closed or self.position == len(self.words):
            raise StopIteration
        time.sleep(self.delay)
        self.position += 1
        is_last = self.position == len(self.words)
        return Piece(self.words[self.position - 1], self.position, finish_reason="stop" if is_last else None)

    def close(self) -> None:
        self.is_closed = True

    @property
    def usage(self) -> Usage:
        return Usage(7, 3, self.position, 0.0, 0.5, 1.0)


class FakeModel:
    """Records its calls."""

    name = "fake"

    def __init__(self, *, has_chat_template: bool = True) -> None:
        self.has_chat_template = has_chat_template
        self.options: dict[str, Any] = {}
        self.path: Path | None = None
        self.calls: list[tuple[str, Any, dict[str, Any]]] = []
        self.generations: list[FakeGeneration] = []
        self.is_closed = False

    def __enter__(self) -> FakeModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.is_closed = True

    def require_chat(self, path: Path, name: str, allow_unknown: Sequence[str] = ()) -> None:
        if not self.has_chat_template:
            raise UsageError(f"{name} has no chat template: use kamado run --raw")

    def generate(self, prompt: str, **sampling: Any) -> FakeGeneration:
        self.calls.append(("generate", prompt, sampling))
        return self._answer(["raw:", prompt])

    def chat(self, messages: Sequence[Mapping[str, str]], **sampling: Any) -> FakeGeneration:
        self.calls.append(("chat", [dict(message) for message in messages], sampling))
        text = messages[-1]["content"]
        if "overflow" in text:
            raise ContextOverflowError(9000, 4096)
        if "slow" in text:
            return self._answer(["word "] * SLOW_WORDS, delay=0.01)
        return self._answer(["echo(", text, f")#{len(messages)}"])

    def _answer(self, words: Sequence[str], delay: float = 0.0) -> FakeGeneration:
        self.generations.append(FakeGeneration(words, delay))
        return self.generations[-1]

    def perplexity(self, text: str, *, window: int, progress: Any) -> Perplexity:
        self.calls.append(("perplexity", text, {"window": window}))
        progress(1, 1)
        return Perplexity(12.5, 0.25, 255)

    def embed_counted(self, texts: Sequence[str], **options: Any) -> Embedded:
        """Vectors of length 1 in the plane: the more letters, the steeper."""
        self.calls.append(("embed", list(texts), options))
        angles = np.array([len(text) / 10 for text in texts])
        vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
        return Embedded(vectors, tuple(len(text.split()) for text in texts))

    def install(self, patch: Any) -> FakeModel:
        """Puts this model in the place of every load; `patch` has setattr, as pytest's monkeypatch."""

        def load(path: Path, options: Mapping[str, Any]) -> FakeModel:
            self.path, self.options = path, dict(options)
            return self

        patch.setattr(loading, "load", load)
        patch.setattr(loading, "locate", lambda name, pull=False: Path(f"/models/{name}"))
        patch.setattr(loading, "require_chat", self.require_chat)
        return self


if __name__ == "__main__":
    import builtins
    import types

    from kamado.cli.main import main

    FakeModel().install(types.SimpleNamespace(setattr=builtins.setattr))
    main()
