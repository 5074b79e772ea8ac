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
from kamado.engine.piece import FinishReason, Piece, Usage
from kamado.engine.schedule.stats import Stats
from kamado.errors import ContextOverflowError, ServerError, UsageError
from kamado.options import Sampling

CONTEXT = 4096
JAPANESE = (
    "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。「ニャーニャー」泣いていた事だけは記憶している。"
)
MARKDOWN = (
    "# Title\n\n- **bold** words that go on until the row is full\n\n"
    "```python\nx = 1  # a line of code that is longer\n```\n"
)
GONE = "\0gone"  # in the place of a word: the server goes away
SLOW_WORDS = 2000  # "slow" in a question: this many words, 10 ms each, so that only an interrupt ends the answer


class FakeGeneration(Iterator[Piece]):
    """Words as pieces; `close` is recorded."""

    def __init__(
        self, words: Sequence[str], delay: float, num_prompt_tokens: int = 7, limit: int | None = None
    ) -> None:
        self.words = list(words) if limit is None else list(words)[:limit]
        self.finish: FinishReason = "stop" if limit is None or len(words) <= limit else "length"
        self.delay = delay
        self.position = 0
        self.is_closed = False
        self.num_prompt_tokens = num_prompt_tokens

    def __next__(self) -> Piece:
        if self.is_closed or self.position == len(self.words):
            raise StopIteration
        time.sleep(self.delay)
        self.position += 1
        is_last = self.position == len(self.words)
        word = self.words[self.position - 1]
        if word == GONE:
            raise ServerError("the server at 127.0.0.1:8417 went away in the middle of its answer")
        return Piece(word, self.position, finish_reason=self.finish if is_last else None)

    def close(self) -> None:
        self.is_closed = True

    @property
    def usage(self) -> Usage:
        return Usage(self.num_prompt_tokens, 3, self.position, 0.0, 0.5, 1.0)

    @property
    def num_computed_tokens(self) -> int:
        return self.num_prompt_tokens + self.position


class FakeModel:
    """Records its calls."""

    name = "fake"
    is_encoder = False
    memory = (4 << 20, 6 << 30)
    default_sampling = Sampling(temperature=0.6)
    stats = Stats(
        {}, {}, {}, 0.0, 0.0, {"weights": 3 << 20}, 5 << 20, {}, {}, 0, 0, 0, budget_bytes=6 << 30,
        planned_by_owner={"weights": 4 << 20},
    )  # fmt: skip

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
        num_tokens = len(self.encode_chat(messages))
        if "overflow" in text or num_tokens >= self.context:
            raise ContextOverflowError(9000 if "overflow" in text else num_tokens, self.context)
        words = ["echo(", text, f")#{len(messages)}"]
        if sampling.get("continue_last"):
            words = [" and", " more"]
        elif "slow" in text:
            return self._answer(["word "] * SLOW_WORDS, delay=0.01)
        elif "gone" in text:
            words = ["half an ", "answer", GONE]
        elif "japanese" in text:
            words = list(JAPANESE)
        elif "markdown" in text:
            words = [MARKDOWN[i : i + 3] for i in range(0, len(MARKDOWN), 3)]
        return self._answer(words, num_tokens=num_tokens, limit=sampling.get("max_tokens"))

    @property
    def context(self) -> int:
        return int(self.options.get("context", CONTEXT))

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """A token a word, and four around each message."""
        return [0] * sum(4 + len(message["content"].split()) for message in messages)

    def _answer(
        self, words: Sequence[str], delay: float = 0.0, num_tokens: int = 7, limit: int | None = None
    ) -> FakeGeneration:
        self.generations.append(FakeGeneration(words, delay, num_tokens, limit))
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
