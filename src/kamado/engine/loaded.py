"""What a loaded model is: its plan, its executor's scheduler, and its vocabulary."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ContextOverflowError, TokenizerError, UsageError
from ..files.types import Checkpoint
from ..options import Sampling, sampling_from
from ..plan.forecast import Plan
from ..plan.sizes import transcript_bytes
from ..plan.usage import BudgetWatch
from ..program import Pooling
from .cache.prefix_saver import PrefixSaver
from .executor_protocol import ExecutorProtocol
from .schedule.sampler import suppressed_mask
from .schedule.scheduler import Scheduler
from .schedule.stats import Stats, make_stats
from .turns.answer_forms import Forms
from .turns.conversations import ConversationStore
from .turns.prompts import Prompts
from .turns.transcripts import Transcripts

if TYPE_CHECKING:
    from ..text.tokenizer import Tokenizer

# Sequences of the executor: conversations that run or wait in the cache for their next turn.
MAX_SEQUENCES = 64
MAX_LIVE = 32


class Loaded:
    """The part of `Model` that every other part of it uses."""

    def __init__(
        self,
        *,
        checkpoint: Checkpoint,
        plan: Plan,
        executor: ExecutorProtocol,
        tokenizer: Tokenizer | None,
        cancelled_error: type[BaseException],
        max_sequences: int = MAX_SEQUENCES,
        watch: BudgetWatch | None = None,
        forget_after: int | None = None,
        saver: PrefixSaver | None = None,
        conversations: ConversationStore | None = None,
        pooling: Pooling | None = None,
        is_encoder: bool = False,
        has_record: bool = False,
        before_step: Callable[[], None] | None = None,
        reserve: Callable[[int, str, str], int] | None = None,
    ) -> None:
        """`forget_after`: rows after which `watch` forgets its files. `saver`: the prefix store's, if prefixes outlive
        the process. `conversations`: where sessions are kept. `before_step` is called before each step;
        `reserve(num_bytes, what, advice)` makes room for what was not planned for, between steps, and returns what
        experts lost for it: see guard.py."""
        self._saver = saver
        self._conversations = conversations or ConversationStore()
        self._checkpoint = checkpoint
        self._tokenizer = tokenizer
        # No method, which would keep the model alive as long as the function is kept.
        self._require_tokenizer = partial(_required, tokenizer, checkpoint.path)
        self._executor = executor
        self.vocab_size = executor.vocab_size  # number of token ids, the width of a row of logits
        self._suppressed = suppressed_mask(checkpoint.suppressed, self.vocab_size, str(checkpoint.path))
        self._pooling: Pooling = pooling or "mean"
        self.is_encoder = is_encoder  # it makes vectors of texts, and no text
        self._has_record = has_record
        self.plan: Plan = plan
        self._watch = watch or BudgetWatch(plan.memory_bytes, ())
        self._scheduler = Scheduler(
            executor,
            max_rows=plan.max_rows,
            max_logit_rows=plan.max_logit_rows,
            max_sequences=max_sequences,
            max_live=MAX_LIVE,
            cancelled_error=cancelled_error,
            after_rows=(forget_after or plan.context, self._watch.forget_files) if self._watch.files else None,
            saver=saver,
            before_step=before_step,
        )
        self._transcripts = Transcripts(
            self.vocab_size,
            max_bytes=transcript_bytes(plan.kv_tokens),
            stored=saver.stored_tokens if saver else None,
        )
        self._forms = Forms(self._require_tokenizer, self._scheduler, plan, self.vocab_size, reserve)
        self._prompts = self._prompts_of(checkpoint)
        self._finalizer = weakref.finalize(self, self._scheduler.close)  # also at interpreter exit

    def _prompts_of(self, checkpoint: Checkpoint) -> Prompts:
        """What makes prompts of conversations, by this checkpoint's template."""
        return Prompts(
            checkpoint,
            self._require_tokenizer,
            self._transcripts,
            vocab_size=self.vocab_size,
            context=self.context,
            finds_turns=self._has_record,
        )

    @property
    def name(self) -> str:
        """What commands take for it: its name in the store, else its path; or what `load` was told."""
        return self.plan.model

    @property
    def context(self) -> int:
        """Tokens that a prompt and its answer may have together."""
        return self.plan.context

    @property
    def can_cut_anywhere(self) -> bool:
        """Whether a prompt reuses all tokens that it shares with earlier ones, up to any length. Else (encoded keys and
        values, windows, recurrent layers) it starts from the deepest reuse point among them: see docs/kv.md."""
        return self._executor.can_reuse_anywhere

    @property
    def default_sampling(self) -> Sampling:
        """How tokens are picked where nothing is said: the model file's recommendation, else our default."""
        return sampling_from(self._checkpoint.sampling, {})

    @property
    def has_chat_template(self) -> bool:
        """Whether `chat` can be used."""
        return self._checkpoint.chat_template is not None

    @property
    def has_tokenizer(self) -> bool:
        """Whether texts can be used, or token ids only."""
        return self._tokenizer is not None

    @property
    def stats(self) -> Stats:
        """Totals since the model was loaded: tokens, seconds by stage, bytes by owner, whether the budget was kept, and
        the ledger of streamed experts. Waits for the running step."""
        self._scheduler.check_process()
        return make_stats(
            self._scheduler.snapshot(), self.plan, self._watch, self._saver,
            constraint_bytes=self._forms.nbytes, unplanned=self._forms.unplanned,
        )  # fmt: skip

    def tokenize(self, text: str, *, special: bool = False, add_bos: bool | None = None) -> list[int]:
        """Token ids of `text`. With `special`, special tokens written in it become their ids; else they are plain text.

        `add_bos` None: as the model wants it. A model that generates gets no end token, even where its file asks for
        one (`add_eos_token`): the answer would begin after the end of its text. Vectors are of the text with that end.
        Raises TokenizerError when the model has no tokenizer.
        """
        add_eos = None if self.is_encoder else False
        return self._require_tokenizer().encode(text, special=special, add_bos=add_bos, add_eos=add_eos)

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Text of `tokens`, special tokens left out; bytes that are no UTF-8 become U+FFFD."""
        return self._require_tokenizer().decode(self._check_tokens(tokens))

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token, perhaps no whole character; of a special one, its name."""
        return self._require_tokenizer().token_bytes(token)

    def close(self) -> None:
        """Ends what runs (its iterators raise ClosedError) and gives the memory back. May be called again."""
        self._finalizer()

    def __repr__(self) -> str:
        state = "closed" if self._scheduler.is_closed else f"context {self.context}"
        return f"<kamado.Model {self.name!r}, {self.plan.architecture}, {state}>"

    def _require_generator(self) -> None:
        if self.is_encoder:
            raise UsageError(f"{self.name} is an encoder: it makes vectors of texts, and no text; use embed()")

    def _fitting(self, tokens: Sequence[int], least: int, why: str) -> list[int]:
        """Tokens that were checked, `least` at the least and no more than the context."""
        checked = self._check_tokens(tokens)
        UsageError.when(len(checked) < least, why)
        if len(checked) > self.context:
            raise ContextOverflowError(len(checked), self.context)
        return checked

    def _prompt_tokens(self, prompt: str | Sequence[int], special: bool) -> list[int]:
        tokens = self.tokenize(prompt, special=special) if isinstance(prompt, str) else self._check_tokens(prompt)
        if not tokens:
            raise UsageError("the prompt is empty: it must have one token at least")
        return tokens

    def _check_tokens(self, tokens: Sequence[int]) -> list[int]:
        try:
            ids = np.asarray(tokens)
        except ValueError:
            ids = np.zeros((1, 1))
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
            raise UsageError("tokens must be a sequence of whole numbers")
        if ids.size and not (int(ids.min()) >= 0 and int(ids.max()) < self.vocab_size):
            raise UsageError(
                f"token ids must be from 0 to {self.vocab_size - 1}, not {int(ids.min())} to {int(ids.max())}"
            )
        return [int(i) for i in ids]


def _required(tokenizer: Tokenizer | None, path: Path) -> Tokenizer:
    if tokenizer is None:
        raise TokenizerError(f"{path} has no tokenizer: give token ids, or put tokenizer.json beside the weights")
    return tokenizer


def is_whole(value: object) -> bool:
    """Whether a value that a caller gave is a whole number (True and False are not)."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
