"""What a loaded model makes of given tokens, without an answer: logits, log-probabilities, perplexity, vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..errors import ContextOverflowError, UsageError
from ..options import MAX_LOGPROBS
from .embed import Embedded, Embedder, shortened
from .loaded import Loaded, is_whole
from .measure.prompt_scores import PromptLogprobs, PromptScores
from .measure.scoring import Look, Perplexity, Scoring, Visit
from .turns.chat_types import TokenLogprob


class Measured(Loaded):
    """The part of `Model` that scores and embeds."""

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """float32[len(tokens), vocab_size]: row i predicts the token after tokens[: i + 1].

        Raises UsageError when that is more than the scratch that was planned (`plan.max_logit_rows` rows): use
        `score` or `perplexity`, which never hold all logits at once.
        """
        self._require_generator()
        checked = self._check_tokens(tokens)
        if not checked:
            raise UsageError("logits needs one token at least")
        limit = self.plan.max_logit_rows
        if len(checked) > limit:
            raise UsageError(
                f"logits of {len(checked)} tokens are more than the scratch that was planned, for {limit} rows: "
                f"use score() or perplexity(), or load the model with max_logit_rows={len(checked)}"
            )
        if len(checked) > self.context:
            raise ContextOverflowError(len(checked), self.context)
        return self._scoring.logits(checked)

    def visit_logits(
        self, tokens: Sequence[int], visit: Visit, *, before: Look | None = None, after: Look | None = None
    ) -> None:
        """Calls `visit(begin, float32[n, vocab_size])` for all positions in order; row i predicts the token after
        tokens[begin + i].

        The rows are valid during the call only, which is on the scheduler's thread. All of it may begin anew, so what
        `visit` does must not depend on how often it is called. `before` and `after`, for measurements, get the executor
        and the sequence before its first token and after its last. Raises ContextOverflowError, UsageError.
        """
        checked = self._fitting(tokens, 1, "logits needs one token at least")
        self._scoring.visit(checked, visit, before=before, after=after)

    def embed(
        self, texts: Sequence[str | Sequence[int]], *, dimensions: int | None = None, truncate: bool = False
    ) -> NDArray[np.float32]:
        """float32[len(texts), d]: a vector of length 1 for each text (or its token ids), whatever the others are.

        An encoder's rows are pooled as its file says (mean, first or last); a generating model's too, by their mean
        when the file does not say. `dimensions`: only the first so many values. `truncate`: longer texts are cut to the
        context; else they raise ContextOverflowError. Raises UsageError for texts that are empty or malformed.
        """
        return self.embed_counted(texts, dimensions=dimensions, truncate=truncate).vectors

    def embed_counted(
        self, texts: Sequence[str | Sequence[int]], *, dimensions: int | None = None, truncate: bool = False
    ) -> Embedded:
        """As `embed`, with the number of tokens of each text."""
        self._scheduler.check_process()
        if isinstance(texts, str):
            raise UsageError("texts must be a list of texts, not one text")
        ids = [self._prompt_tokens(self._text_tokens(text), special=False) for text in texts]
        if truncate:
            ids = [self._cut(tokens) for tokens in ids]
        longest = max(map(len, ids), default=0)
        if longest > self.context:
            raise ContextOverflowError(longest, self.context)
        vectors = shortened(self._embedder.embed(ids), dimensions)
        return Embedded(vectors, tuple(map(len, ids)))

    def _text_tokens(self, text: str | Sequence[int]) -> Sequence[int]:
        """A text to make a vector of, with the end that the file wants."""
        return self._require_tokenizer().encode(text) if isinstance(text, str) else text

    def _cut(self, tokens: list[int]) -> list[int]:
        """At most the context; the token that ends a text stays."""
        if len(tokens) <= self.context:
            return tokens
        end = tokens[-1:] if self._tokenizer is not None and self._tokenizer.add_eos else []
        return tokens[: self.context - len(end)] + end

    def score(self, prompt: str | Sequence[int]) -> NDArray[np.float64]:
        """float64[n - 1]: the natural log-probability of every token but the first, given those before it.

        Raises ContextOverflowError when the prompt is longer than the context.
        """
        self._require_generator()
        self._scheduler.check_process()
        tokens = self._fitting(self._prompt_tokens(prompt, special=False), 2, "score needs two tokens at least")
        return self._scoring.log_probabilities(tokens, 0)

    def prompt_logprobs(self, tokens: Sequence[int], top: int = 0, *, owner: str = "") -> tuple[TokenLogprob, ...]:
        """Log-probabilities of a prompt's tokens with the `top` likeliest in their places; the first one's is NaN.

        Beginnings that earlier calls of the same `owner` shared are not computed again. Raises ContextOverflowError.
        """
        return next(self.score_prompts([tokens], top, owner=owner)).tokens

    def score_prompts(
        self, prompts: Sequence[Sequence[int]], top: int = 0, *, owner: str = ""
    ) -> Iterator[PromptLogprobs]:
        """As `prompt_logprobs` for many prompts, which are computed together; each comes when it is done, in any order.

        Raises at once what `prompt_logprobs` does for a prompt that is wrong.
        """
        self._require_generator()
        self._scheduler.check_process()
        checked = [
            self._fitting(tokens, 1, "the prompt is empty: it must have one token at least") for tokens in prompts
        ]
        if not is_whole(top) or not 0 <= top <= MAX_LOGPROBS:
            raise UsageError(f"top must be a whole number from 0 to {MAX_LOGPROBS}, not {top!r}")
        return self._prompt_scores.logprobs(checked, top, self.token_bytes, owner)

    def perplexity(
        self,
        prompt: str | Sequence[int],
        *,
        window: int = 512,
        progress: Callable[[int, int], None] | None = None,
    ) -> Perplexity:
        """How well the model predicts a text of any length, by llama.cpp's method, so that figures compare.

        The tokens are cut into windows; each begins with the BOS token if the model has one (in place of its first
        token), and its second half is scored. The rest after the last whole window is left out; a text shorter than a
        window is one. `progress(done, total)` counts windows.
        """
        self._require_generator()
        self._scheduler.check_process()
        tokens = self._prompt_tokens(prompt, special=False)
        if not is_whole(window) or not 4 <= window <= self.context:
            raise UsageError(f"window must be a whole number from 4 to {self.context}, the context, not {window!r}")
        window = min(window, len(tokens))
        if window < 4:
            raise UsageError(f"perplexity needs four tokens at least, the text has {len(tokens)}")
        bos = self._tokenizer.bos_id if self._tokenizer and self._tokenizer.add_bos else None
        return self._scoring.perplexity(tokens, window, bos, progress)

    @property
    def _rows(self) -> dict[str, int]:
        """Rows of a step, as planned."""
        return {"max_rows": self.plan.max_rows, "max_logit_rows": self.plan.max_logit_rows}

    @cached_property
    def _scoring(self) -> Scoring:
        return Scoring(self._scheduler, vocab_size=self.vocab_size, **self._rows)

    @cached_property
    def _prompt_scores(self) -> PromptScores:
        return PromptScores(self._scheduler, **self._rows)

    @cached_property
    def _embedder(self) -> Embedder:
        return Embedder(
            self._scheduler,
            pooling=self._pooling,
            width=self._executor.hidden_width,
            max_rows=self.plan.max_rows,
            max_pooled_rows=self.plan.max_logit_rows,
            kv_tokens=self.plan.kv_tokens,
        )
