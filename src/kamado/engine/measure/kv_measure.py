"""How small a model's KV cache may be, measured on the model itself: models differ far more than presets do.

Three built-in texts (prose, technical prose, code) are scored as a whole, so that most keys and values a token reads
are encoded ones; tokens before the first page is encoded are left out. Each preset is compared with the exact cache,
token by token: how much worse the text is predicted, and how far the distribution of the next token moves. Beside that
attention itself is compared, layer by layer (kv_attention.py); where a few layers alone may spoil a preset, it is
measured again with those left exact.

What is kept on disk while it runs: the exact cache's log-probabilities at some positions, 256 MiB at most.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import TokenizerError, UsageError
from ...files import open_checkpoint
from ...models import build_program
from ...plan.kv_pages import kv_needs, num_kv_layers
from ...plan.kv_presets import parse_kv
from ...program import Program
from ..cache import prefix_file
from ..cache.identity import model_identity
from ..load import load
from ..model import Model
from .kv_attention import AttentionProbe, layers_text, spoiling_layers
from .kv_results import KvResults, KvRow, load_results, results_root, save_results

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
class Scores:
    """What one cache makes of the texts: their scored positions, end to end."""

    log_probabilities: NDArray[np.float64]  # of the token that came, for each scored position
    best: NDArray[np.int64]  # the most likely token there
    divergences: NDArray[np.float64]  # from the reference at every `stride`th of them; the reference has zeros
    stride: int
    ends: tuple[int, ...]  # where each text's positions end
    bytes_per_token: float


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
    load: Callable[..., Model] = load,
    **options: Any,
) -> KvResults:
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
    program = build_program(checkpoint, options.get("allow_unknown", ()))
    identity = model_identity(checkpoint)
    texts = builtin_texts()
    setting = prefix_file.digest(*(text.encode() for text in texts), str(num_tokens).encode()).hex()
    known = None if is_fresh else load_results(identity)
    if known is None or known.text != setting:
        known = KvResults(identity, checkpoint.name or checkpoint.path.name, text=setting)
    found = known
    wanted = list(presets)

    def missing() -> list[str]:
        done = {row.kv for row in found.rows}
        return [kv for kv in wanted if kv not in done]

    num_layers = num_kv_layers(program)
    bits = {kv: parse_kv(kv, num_layers).for_program(program).bits for kv in wanted}
    wanted += [kv for kv in _exceptions(found, wanted, program) if kv not in wanted]
    queue = missing()
    if queue:
        probe = AttentionProbe(program, {kv: bits[kv] for kv in queue if kv in bits})
        scores = score_presets(path, queue, texts, num_tokens, progress=progress, load=load, probe=probe, **options)
        for kv, result in scores:
            if kv == "exact":
                exact = result
                if not any(row.kv == kv for row in found.rows):
                    found.rows.insert(0, compared(kv, exact, exact))
                found.layers = [row for row in found.layers if row.kv not in queue]  # an interrupted run's
                found.layers += [row for other in queue if other in bits for row in probe.losses(other)]
                continue
            found.rows.append(compared(kv, result, exact))
            save_results(found)
            # Only once all are measured does it show which is worth saving, so the queue may grow at its end.
            if not missing():
                more = [kv for kv in _exceptions(found, wanted, program) if kv not in wanted]
                wanted += more
                queue += more
    found.recommended = recommend(found.rows)
    found.measured_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    save_results(found)
    return found


def _exceptions(found: KvResults, presets: Sequence[str], program: Program) -> list[str]:
    """Presets that are not safe, with the layers exact that spoil them, where that would still be the smallest cache.

    Empty until all of `presets` are measured.
    """
    rows = {row.kv: row for row in found.rows}
    if any(kv not in rows for kv in presets):
        return []
    best = recommend(found.rows)
    least = rows[best].bytes_per_token if best in rows else math.inf
    made = []
    for kv in presets:
        layers = spoiling_layers(found.layers_of(kv))
        if not layers or is_safe(rows[kv]) or "layers=" in kv:
            continue
        text = f"{kv},layers={layers_text(layers)}:exact"
        if kv_needs(program, parse_kv(text, num_kv_layers(program))).token_bytes < least:
            made.append(text)
    return made


def score_presets(
    path: Path,
    presets: Sequence[str],
    texts: Sequence[str | Sequence[int]],
    num_tokens: int,
    *,
    first_scored: int = FIRST_SCORED,
    reference_bytes: int = REFERENCE_BYTES,
    progress: Progress | None = None,
    load: Callable[..., Model] = load,
    probe: AttentionProbe | None = None,
    **options: Any,
) -> Iterator[tuple[str, Scores]]:
    """The scores of "exact", then of each preset, token by token: of the first `num_tokens` of each text (or of its
    tokens), from `first_scored` on.

    `reference_bytes`: what the exact cache's distributions may take on disk; divergences are sampled to fit. `options`
    go to `load`. `presets` may be a list that grows meanwhile. `probe` is given the exact cache of each text.
    """
    steps = _Steps(progress, presets)
    with _reference_file() as file:
        run = _Run(path, texts, num_tokens, first_scored, reference_bytes, load, options, file)
        for kv in chain(("exact",), presets):
            yield kv, run.score(kv, steps, probe if kv == "exact" else None)


def compared(kv: str, scores: Scores, exact: Scores, text: int | None = None) -> KvRow:
    """The row of a cache beside the exact one: over all texts, or over one of them."""
    begin, end = (0, scores.ends[-1]) if text is None else ((0, *scores.ends)[text], scores.ends[text])
    worse = (exact.log_probabilities - scores.log_probabilities)[begin:end]
    rise = math.expm1(float(worse.mean()))
    error = float(worse.std()) / math.sqrt(max(1, len(worse) - 1)) * (1 + rise)
    divergences = scores.divergences[-(-begin // scores.stride) : -(-end // scores.stride)]
    if not len(divergences):
        divergences = np.zeros(1)
    return KvRow(
        kv=kv,
        bytes_per_token=scores.bytes_per_token,
        perplexity=math.exp(min(700.0, -float(scores.log_probabilities[begin:end].mean()))),
        rise_percent=100 * rise,
        rise_error_percent=100 * error,
        divergence=float(divergences.mean()),
        divergence_worst=float(divergences.max()),
        same_top_percent=100 * float((scores.best == exact.best)[begin:end].mean()),
        num_tokens=end - begin,
    )


def recommend(rows: Sequence[KvRow]) -> str:
    """The smallest cache of those that are safe; "exact" when none is."""
    safe = [row for row in rows if row.kv != "exact" and is_safe(row)]
    exact_bytes = next((row.bytes_per_token for row in rows if row.kv == "exact"), math.inf)
    best = min(safe, key=lambda row: row.bytes_per_token, default=None)
    return best.kv if best is not None and best.bytes_per_token < exact_bytes else "exact"


def is_safe(row: KvRow) -> bool:
    """Whether the row keeps to both limits."""
    return row.rise_percent + 2 * row.rise_error_percent <= MAX_RISE_PERCENT and row.divergence <= MAX_DIVERGENCE


class _Steps:
    """Progress over several presets as one bar."""

    def __init__(self, progress: Progress | None, presets: Sequence[str]) -> None:
        self._progress = progress
        self._presets = presets
        self._part = -1

    def begin(self) -> None:
        self._part += 1

    def __call__(self, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress(self._part * total + done, (1 + len(self._presets)) * total)


@dataclass
class _Run:
    """Scores the texts with one cache after another; the first one is the reference."""

    path: Path
    texts: Sequence[str | Sequence[int]]
    num_tokens: int
    first_scored: int
    reference_bytes: int
    load: Callable[..., Model]
    options: dict[str, Any]
    file: Any  # open, empty; gone when it is closed
    _reference: np.memmap[Any, np.dtype[np.float32]] | None = None  # [positions, vocab], log-probabilities
    _stride: int = 1

    def score(self, kv: str, steps: _Steps, probe: AttentionProbe | None = None) -> Scores:
        """Loads the model with cache `kv` and scores all texts."""
        steps.begin()
        with self.load(self.path, kv=kv, context=self.num_tokens, max_logit_rows=_LOGIT_ROWS, **self.options) as model:
            prompts = [
                (model.tokenize(text) if isinstance(text, str) else list(text))[: self.num_tokens]
                for text in self.texts
            ]
            prompts = [prompt for prompt in prompts if len(prompt) > self.first_scored + 1]
            ends = tuple(accumulate(len(prompt) - self.first_scored - 1 for prompt in prompts))
            is_reference = self._reference is None
            if self._reference is None:
                most = max(1, self.reference_bytes // (4 * model.vocab_size))
                self._stride = max(1, -(-ends[-1] // most))
                shape = (-(-ends[-1] // self._stride), model.vocab_size)
                self._reference = np.memmap(self.file, np.float32, "w+", shape=shape)
            scores = np.zeros(ends[-1])
            best = np.zeros(ends[-1], np.int64)
            divergences = np.zeros(len(self._reference))
            done, total = 0, sum(map(len, prompts))
            for prompt, begin in zip(prompts, (0, *ends), strict=False):

                def visit(
                    at: int,
                    logits: NDArray[np.float32],
                    prompt: list[int] = prompt,
                    begin: int = begin,
                    done: int = done,
                ) -> None:
                    for row in range(max(0, self.first_scored - at), min(len(logits), len(prompt) - 1 - at)):
                        index = begin + at + row - self.first_scored
                        x = logits[row].astype(np.float64)
                        x -= x.max()
                        x -= math.log(float(np.exp(x).sum()))
                        scores[index] = x[prompt[at + row + 1]]
                        best[index] = int(x.argmax())
                        self._compare(index, x, divergences, is_reference)
                    steps(done + at + len(logits), total)

                if probe is None:
                    model.visit_logits(prompt, visit)
                else:
                    model.visit_logits(prompt, visit, before=probe.begin, after=probe.add)
                done += len(prompt)
            return Scores(scores, best, divergences, self._stride, ends, model.plan.kv_bytes_per_token)

    def _compare(
        self, index: int, x: NDArray[np.float64], divergences: NDArray[np.float64], is_reference: bool
    ) -> None:
        """Keeps the reference's log-probabilities `x` of a sampled position, or their divergence from them."""
        assert self._reference is not None
        place, rest = divmod(index, self._stride)
        if rest:
            return
        if is_reference:
            self._reference[place] = x
        else:
            reference = self._reference[place].astype(np.float64)
            divergences[place] = max(0.0, float((np.exp(reference) * (reference - x)).sum()))


@contextlib.contextmanager
def _reference_file() -> Iterator[Any]:
    """A file on disk (a temporary directory may be memory) that is gone afterwards, even after a crash."""
    root = results_root()
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=root) as file:
        yield file
