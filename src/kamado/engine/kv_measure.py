"""How small a model's KV cache may be, measured on the model itself: models differ far more than presets do.

Three built-in texts (prose, technical prose, code) are scored as a whole, so that most keys and values a token reads
are encoded ones; tokens before the first page is encoded are left out. Each preset is compared with the exact cache,
token by token: how much worse the text is predicted, and how far the distribution of the next token moves.

What is kept on disk while it runs: the exact cache's log-probabilities at some positions, 256 MiB at most.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checkpoint import open_checkpoint
from ..errors import TokenizerError, UsageError
from . import record
from .identity import model_identity
from .kv_record import KvRecord, KvRow, load_record, records_root, save_record
from .load import load_model
from .model import Model

TEXTS = ("prose", "technical", "code")
PRESETS = ("safe", "balanced", "small")
DEFAULT_TOKENS = 2048

# A preset is safe when perplexity rises by no more than this, two standard errors included, and the mean divergence
# stays below what 8-bit activations already cost.
MAX_RISE_PERCENT = 1.0
MAX_DIVERGENCE = 0.01

FIRST_SCORED = 256  # before it a query reads its whole past exactly
REFERENCE_BYTES = 256 << 20
_LOGIT_ROWS = 128

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class _Scores:
    """What one cache makes of the texts, end to end."""

    log_probabilities: NDArray[np.float64]  # of the token that came, for each scored position
    best: NDArray[np.int64]  # the most likely token there
    divergences: NDArray[np.float64]  # from the reference at sampled positions; empty for the reference itself
    bytes_per_token: float
    is_encoded: bool


def builtin_texts() -> list[str]:
    """The texts, in the order of TEXTS."""
    folder = Path(__file__).with_name("texts")
    return [(folder / f"{name}.txt").read_text("utf-8") for name in TEXTS]


def measure_kv(
    path: Path,
    *,
    presets: Sequence[str] = PRESETS,
    num_tokens: int = DEFAULT_TOKENS,
    is_fresh: bool = False,
    progress: Progress | None = None,
    load: Callable[..., Model] = load_model,
    **options: Any,
) -> KvRecord:
    """Measures `presets` on the model at `path`, records the rows and a recommendation, and returns both.

    `num_tokens`: of each text. Rows that an earlier run measured on the same texts are taken over unless `is_fresh`;
    an interrupt keeps those that were finished. `options` go to `load`. Raises UsageError for a number of tokens out of
    range, TokenizerError for a model without one, and what loading raises.
    """
    if not FIRST_SCORED + 128 <= num_tokens <= 1 << 20:
        raise UsageError(f"tokens must be from {FIRST_SCORED + 128} to {1 << 20}, not {num_tokens}")
    checkpoint = open_checkpoint(path)
    if checkpoint.tokenizer is None:
        raise TokenizerError(f"{path} has no tokenizer, so no text can be scored with it")
    identity = model_identity(checkpoint)
    texts = builtin_texts()
    setting = record.digest(*(text.encode() for text in texts), str(num_tokens).encode()).hex()
    found = None if is_fresh else load_record(identity)
    if found is None or found.text != setting:
        found = KvRecord(identity, checkpoint.name or checkpoint.path.name, text=setting)
    done = found
    missing = [kv for kv in presets if kv not in {row.kv for row in found.rows}]

    def keep(row: KvRow) -> None:
        if row.kv != "exact":
            done.rows.append(row)
            save_record(done)
        elif not any(known.kv == "exact" for known in done.rows):
            done.rows.insert(0, row)

    if missing:
        compare_presets(path, missing, texts, num_tokens, progress=progress, load=load, on_row=keep, **options)
    found.recommended = recommend(found.rows)
    found.measured_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    save_record(found)
    return found


def compare_presets(
    path: Path,
    presets: Sequence[str],
    texts: Sequence[str | Sequence[int]],
    num_tokens: int,
    *,
    first_scored: int = FIRST_SCORED,
    reference_bytes: int = REFERENCE_BYTES,
    progress: Progress | None = None,
    load: Callable[..., Model] = load_model,
    on_row: Callable[[KvRow], None] | None = None,
    **options: Any,
) -> list[KvRow]:
    """Rows of the exact cache and of `presets` on the first `num_tokens` of each text (or of its tokens), scored from
    `first_scored` on. Nothing is recorded; `on_row` gets each row when it is there.

    `reference_bytes`: what the exact cache's distributions may take on disk; divergences are sampled to fit.
    """
    steps = _Steps(progress, 1 + len(presets))
    with _reference_file() as file:
        run = _Run(path, texts, num_tokens, first_scored, reference_bytes, load, options, file)
        exact = run.score("exact", steps)
        rows = []
        for kv in ("exact", *presets):
            rows.append(_row(kv, exact if kv == "exact" else run.score(kv, steps), exact))
            if on_row is not None:
                on_row(rows[-1])
    return rows


def recommend(rows: Sequence[KvRow]) -> str:
    """The smallest cache of those that are safe; "exact" when none is."""
    safe = [row for row in rows if row.kv != "exact" and is_safe(row)]
    exact_bytes = next((row.bytes_per_token for row in rows if row.kv == "exact"), math.inf)
    best = min(safe, key=lambda row: row.bytes_per_token, default=None)
    return best.kv if best is not None and best.bytes_per_token < exact_bytes else "exact"


def is_safe(row: KvRow) -> bool:
    """Whether the row keeps to both limits."""
    return row.rise_percent + 2 * row.rise_error_percent <= MAX_RISE_PERCENT and row.divergence <= MAX_DIVERGENCE


def _row(kv: str, scores: _Scores, exact: _Scores) -> KvRow:
    worse = exact.log_probabilities - scores.log_probabilities
    rise = math.expm1(float(worse.mean()))
    error = float(worse.std()) / math.sqrt(max(1, len(worse) - 1)) * (1 + rise)
    divergences = scores.divergences if len(scores.divergences) else np.zeros(1)
    return KvRow(
        kv=kv,
        bytes_per_token=scores.bytes_per_token,
        perplexity=math.exp(min(700.0, -float(scores.log_probabilities.mean()))),
        rise_percent=100 * rise,
        rise_error_percent=100 * error,
        divergence=float(divergences.mean()),
        divergence_worst=float(divergences.max()),
        same_top_percent=100 * float((scores.best == exact.best).mean()),
        num_tokens=len(worse),
    )


class _Steps:
    """Progress over several presets as one bar."""

    def __init__(self, progress: Progress | None, num_parts: int) -> None:
        self._progress = progress
        self._num_parts = num_parts
        self._part = -1

    def begin(self) -> None:
        self._part += 1

    def __call__(self, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress(self._part * total + done, self._num_parts * total)


class _Run:
    """Scores the texts with one cache after another; the first one is the reference."""

    def __init__(
        self,
        path: Path,
        texts: Sequence[str | Sequence[int]],
        num_tokens: int,
        first_scored: int,
        reference_bytes: int,
        load: Callable[..., Model],
        options: dict[str, Any],
        file: Any,
    ) -> None:
        self._path = path
        self._texts = texts
        self._num_tokens = num_tokens
        self._first_scored = first_scored
        self._reference_bytes = reference_bytes
        self._load = load
        self._options = options
        self._file = file
        self._reference: np.memmap[Any, np.dtype[np.float32]] | None = None  # [positions, vocab], log-probabilities
        self._stride = 1

    def score(self, kv: str, progress: Progress) -> _Scores:
        """Loads the model with cache `kv` and scores all texts."""
        if isinstance(progress, _Steps):
            progress.begin()
        with self._load(
            self._path, kv=kv, context=self._num_tokens, max_logit_rows=_LOGIT_ROWS, **self._options
        ) as model:
            prompts = [
                (model.tokenize(text) if isinstance(text, str) else list(text))[: self._num_tokens]
                for text in self._texts
            ]
            prompts = [prompt for prompt in prompts if len(prompt) > self._first_scored + 1]
            total = sum(len(prompt) for prompt in prompts)
            is_reference = self._reference is None
            if self._reference is None:
                num_scored = total - self._first_scored * len(prompts)
                most = max(1, self._reference_bytes // (4 * model.vocab_size))
                self._stride = max(1, -(-num_scored // most))
                shape = (-(-num_scored // self._stride), model.vocab_size)
                self._reference = np.memmap(self._file, np.float32, "w+", shape=shape)
            scores = [np.zeros(len(prompt)) for prompt in prompts]
            best = [np.zeros(len(prompt), np.int64) for prompt in prompts]
            divergences = np.zeros(len(self._reference))
            begin = done = 0
            for i, prompt in enumerate(prompts):
                first = begin - self._first_scored  # a position's place among all scored ones, less its own index

                def visit(
                    at: int, logits: NDArray[np.float32], i: int = i, first: int = first, done: int = done
                ) -> None:
                    self._visit(at, logits, prompts[i], scores[i], best[i], divergences, first, is_reference)
                    progress(done + at + len(logits), total)

                model.visit_logits(prompt, visit)
                begin += len(prompt) - self._first_scored
                done += len(prompt)
            return _Scores(
                np.concatenate([part[self._first_scored : -1] for part in scores]),
                np.concatenate([part[self._first_scored : -1] for part in best]),
                np.zeros(0) if is_reference else divergences,
                model.plan.kv_bytes_per_token,
                any(bits != (0, 0) for bits in model.plan.kv_bits),
            )

    def _visit(
        self,
        at: int,
        logits: NDArray[np.float32],
        prompt: list[int],
        scores: NDArray[np.float64],
        best: NDArray[np.int64],
        divergences: NDArray[np.float64],
        first: int,
        is_reference: bool,
    ) -> None:
        """Takes rows [at, at + n) of logits. May be called again for the same rows."""
        assert self._reference is not None
        for row in range(len(logits)):
            position = at + row
            if position < self._first_scored:
                continue
            x = logits[row].astype(np.float64)
            x -= x.max()
            x -= math.log(float(np.exp(x).sum()))
            if position + 1 < len(prompt):
                scores[position] = x[prompt[position + 1]]
            best[position] = int(x.argmax())
            place, rest = divmod(first + position, self._stride)
            if rest == 0:
                if is_reference:
                    self._reference[place] = x
                else:
                    reference = self._reference[place].astype(np.float64)
                    divergences[place] = max(0.0, float((np.exp(reference) * (reference - x)).sum()))


@contextlib.contextmanager
def _reference_file() -> Iterator[Any]:
    """A file on disk (a temporary directory may be memory) that is gone afterwards, even after a crash."""
    root = records_root()
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=root) as file:
        yield file
