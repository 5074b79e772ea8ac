"""A real model in another family's shape gives the same text as itself, and does not where the reading is broken.

    python benchmarks/donors.py                        # all shapes, 20 texts, all checks: 2 GB of memory and disk
    python benchmarks/donors.py --shape glm4moe --json found.json

The donor, SmolLM2-135M, dequantised to float32, is the baseline; donor_files.py writes it as GLM-4.5 to 4.7
(`glm4moe`), MiniMax M2 (`minimax-m2`), LFM2 8B-A1B (`lfm2moe`) and Qwen3.5 with experts (`qwen35moe`), and says how.
Keys and values are float32 in all runs. Checks of a shape:

- Given text: 20 texts of 200 tokens. The likeliest token is the same wherever the baseline's two best differ by more
  than 1e-3; the divergence is printed.
- Free text: 20 questions by the chat template, the likeliest token always. At least 18 of 20 answers are the same.
- The picks are those that were planned, in all layers and rows.
- Experts read from disk as they are needed give the same bits.
- Each mistake, in one layer only, is seen: the check of given text fails, or a logit moves a hundred times as far as
  any of the right program's.
"""

from __future__ import annotations

import argparse
import gc
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import kamado
from donor_files import Made, write_baseline, write_shape
from donor_shapes import SHAPES, Donor, Experts
from kamado import program as p
from kamado.files import open_checkpoint
from kamado.library.store import Store
from kamado.lower import build_executor
from kamado.models import build_program
from peers import write_json

DONOR = "smollm2:135m"
TEXT = Path(__file__).resolve().parent / "data" / "hearth.txt"
CLEAR = 1e-3  # of the baseline's logits: a lead of which the argmax must be the same
SAME_TEXTS = 0.9
SEEN = 100  # times the right program's largest change of a logit

QUESTIONS = (
    "Why is the sky blue?", "What is the capital of France?", "Write a haiku about a hearth.", "What is 12 times 11?",
    "Name three rivers in Europe.", "How does a candle burn?", "Explain what a compiler does.", "Who wrote Hamlet?",
    "Give me a recipe for flat bread.", "What is the largest planet?", "Tell me a short story about a fox.",
    "How do I boil an egg?", "What is photosynthesis?", "Translate 'good morning' into Spanish.",
    "List the months that have 31 days.", "What causes the tides?", "Write a Python function that adds two numbers.",
    "What is the boiling point of water?", "Why do cats purr?", "Describe a winter morning in two sentences.",
)  # fmt: skip

Logits = npt.NDArray[np.float32]


@dataclass(slots=True)
class Agreement:
    """Of two models' logits over the same rows."""

    rows: int = 0
    clear_rows: int = 0  # in which the baseline's two best differ by more than CLEAR
    unequal_clear_rows: int = 0  # of them, with another argmax
    unequal_rows: int = 0
    largest_change: float = 0.0
    divergence: float = 0.0  # summed nats
    largest_divergence: float = 0.0

    def add(self, right: Logits, other: Logits) -> None:
        """The rows of one text."""
        best = np.partition(right, -2, axis=1)[:, -2:]
        is_clear = best[:, 1] - best[:, 0] > CLEAR
        is_unequal = right.argmax(axis=1) != other.argmax(axis=1)
        a, b = _log_softmax(right), _log_softmax(other)
        divergence = (np.exp(a) * (a - b)).sum(axis=1)
        self.rows += len(right)
        self.clear_rows += int(is_clear.sum())
        self.unequal_clear_rows += int((is_clear & is_unequal).sum())
        self.unequal_rows += int(is_unequal.sum())
        self.largest_change = max(self.largest_change, float(np.abs(right - other).max()))
        self.divergence += float(divergence.sum())
        self.largest_divergence = max(self.largest_divergence, float(divergence.max()))

    def figures(self) -> dict[str, float]:
        """All of them, the divergence a row too."""
        return asdict(self) | {"mean_divergence": self.divergence / self.rows}


def _log_softmax(logits: Logits) -> npt.NDArray[np.float64]:
    shifted = logits - logits.max(axis=1, keepdims=True).astype(np.float64)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


class Run:
    """A program's executor, for one text after the other."""

    def __init__(self, program: p.Program, length: int, **options: Any) -> None:
        self._executor = build_executor(
            program, num_threads=2, max_rows=length, max_logit_rows=length, max_kv_tokens=length, max_sequences=1,
            kv="f32", **options,
        )  # fmt: skip

    def logits(self, tokens: Sequence[int]) -> Logits:
        """Of every row; valid until the next call."""
        sequence = self._executor.create_sequence()
        try:
            ids, count = np.array(tokens, np.int32), np.array([len(tokens)], np.int32)
            rows = np.arange(len(tokens), dtype=np.int32)
            return self._executor.step(np.array([sequence], np.int32), count, ids, rows)
        finally:
            self._executor.free_sequence(sequence)

    def picks(self, tokens: Sequence[int]) -> npt.NDArray[np.int32]:
        """Rows of step, layer, the step's row, and the experts picked in ascending order."""
        self._executor.record_routing(True)
        self.logits(tokens)
        return self._executor.routing()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.close()
        gc.collect()


def mistakes(program: p.Program, made: Made, options: argparse.Namespace) -> Iterator[tuple[str, p.Program]]:
    """(what is wrong, the program with that mistake in one layer, in the middle of those with experts)"""
    layers = sorted(made.picked)
    own = [layer for layer in layers if layer in made.own]
    layer = own[len(own) // 2]
    at = [i for i, op in enumerate(program.ops) if isinstance(op, p.Experts)][layers.index(layer)]
    yield from _router_mistakes(program, at, made.picked[layer], options.pairs)
    yield from _gate_mistakes(program, at)
    yield from _rope_mistakes(program, at)


def _changed(program: p.Program, index: int, change: Callable[[Any], Any]) -> p.Program:
    ops = list(program.ops)
    ops[index] = change(ops[index])
    return replace(program, ops=ops)


def _last(program: p.Program, before: int, kind: type[p.Op]) -> int:
    return max(i for i, op in enumerate(program.ops[:before]) if isinstance(op, kind))


def _router_mistakes(program: p.Program, at: int, picked: list[int], pairs: int) -> Iterator[tuple[str, p.Program]]:
    """Of the router and of the experts' order; the experts are the operation `at`."""
    index = _last(program, at, p.Route)
    route = program.ops[index]
    assert isinstance(route, p.Route)

    def exchanged(one: int, other: int) -> p.Program:
        order = list(range(len(program.ops[at].gate)))
        order[one], order[other] = other, one
        return _changed(
            program, at,
            lambda op: replace(op, **{part: [getattr(op, part)[e] for e in order] for part in ("gate", "up", "down")}),
        )  # fmt: skip

    def routed(**changes: Any) -> p.Program:
        return _changed(program, index, lambda op: replace(op, **changes))

    unpicked = next(e for e in range(len(program.ops[at].gate)) if e not in picked)
    yield "a picked and an unpicked expert exchanged", exchanged(picked[0], unpicked)
    if route.score == "sigmoid":
        yield "choice bias dropped", routed(bias=None)
        yield "picked ½ and picked 1 exchanged", exchanged(picked[2 * pairs], picked[2 * pairs + 1])
        yield "picked σ(l) and picked ½ exchanged", exchanged(picked[0], picked[2 * pairs])
        if pairs > 1:
            yield "picked σ(l) and picked σ(m) exchanged", exchanged(picked[0], picked[2])
        yield "softmax router", routed(score="softmax")
        yield "weights not divided by their sum", routed(normalize=False)
    else:
        if program.ops[index - 1].biases:
            yield "router's bias dropped", _changed(program, index - 1, lambda op: replace(op, biases=()))
        yield "two picked experts exchanged", exchanged(picked[0], picked[3])
        yield "one expert less", routed(top_k=route.top_k - 1)
    if route.scale != 1:
        yield "router's factor dropped", routed(scale=1.0)
    if getattr(program.ops[at], "alpha", None):
        yield "experts' gate is a silu", _changed(program, at, lambda op: replace(op, alpha=None))
        yield "experts' biases dropped", _changed(program, at, lambda op: replace(op, up_biases=()))
    else:
        yield "experts' gate not activated", _changed(program, at, lambda op: replace(op, activation="none"))


def _gate_mistakes(program: p.Program, at: int) -> Iterator[tuple[str, p.Program]]:
    """Of the gates of attention before, and of the shared expert after, the experts at `at`."""
    attend = _last(program, at, p.Attend)
    if isinstance(program.ops[attend + 1], p.Linear) and program.ops[attend + 1].biases:
        yield "bias of attention's output dropped", _changed(program, attend + 1, lambda op: replace(op, biases=()))
    if isinstance(program.ops[attend + 1], p.Gate):
        yield "attention's gate left out", _changed(program, attend + 1, _ungated)
    end = next(i for i, op in enumerate(program.ops) if i > at and isinstance(op, p.Add) and op.a == program.ops[0].out)
    gates = [i for i in range(at + 1, end) if isinstance(program.ops[i], p.Gate)]
    if gates:
        yield (
            "shared expert's gate left out",
            _changed(program, gates[0], lambda op: replace(op, a=op.b, b=None, activation="none")),
        )
        yield "shared expert left out", _changed(program, end - 1, lambda op: p.Scale(op.out, op.a, 1.0))
    if len(gates) > 1:
        yield "gate of the whole shared expert left out", _changed(program, gates[1], _ungated)


def _ungated(gate: p.Gate) -> p.Gate:
    """What it multiplies, as it is."""
    assert gate.b is not None
    return replace(gate, a=gate.b, b=None, activation="none", group=None)


def _rope_mistakes(program: p.Program, at: int) -> Iterator[tuple[str, p.Program]]:
    """Of the rotation before the experts at `at`."""
    of_k = _last(program, _last(program, at, p.Attend), p.Rope)
    of_q = _last(program, of_k, p.Rope)
    for rows, index in (("k", of_k), ("q", of_q)):
        yield f"rope pairs of {rows}", _changed(program, index, lambda op: replace(op, interleaved=True))
    rope = program.ops[of_k]
    assert isinstance(rope, p.Rope)
    is_whole = 2 * len(rope.inv_freq) == rope.head_dim
    steps = np.arange(rope.head_dim // (4 if is_whole else 2)) * (2 if is_whole else 0.5)
    other = p.Rope(rope.x, rope.head_dim, rope.inv_freq[1] ** steps)
    yield f"rope of {'half' if is_whole else 'the whole'} head", _changed(program, of_k, lambda _: other)


def _unlimited(program: p.Program) -> tuple[p.Program, bool]:
    """The program without the limits of gpt-oss's gates, which the donor's few greatest values would feel, and whether
    there were any. A GGUF file cannot say it, so no answers are asked of such a shape."""
    ops = [replace(op, limit=None) if isinstance(op, p.Experts) and op.alpha else op for op in program.ops]
    return replace(program, ops=ops), ops != list(program.ops)


def answers(path: Path, count: int, max_tokens: int) -> list[list[int]]:
    """The token ids of free answers to the first `count` questions, all running together."""
    if not count:
        return []
    with kamado.load(path, kv="f32", context=256, kv_tokens=256 * count) as model:
        running = [
            model.chat([{"role": "user", "content": text}], temperature=0, max_tokens=max_tokens)
            for text in QUESTIONS[:count]
        ]
        return [[piece.token for piece in answer] for answer in running]


def texts_of(path: Path, count: int, length: int) -> list[list[int]]:
    """Consecutive pieces of the text."""
    with kamado.load(path, context=256) as model:
        tokens = model.tokenize(TEXT.read_text(encoding="utf-8"))
    count = min(count, len(tokens) // length)
    return [tokens[i * length : (i + 1) * length] for i in range(count)]


def check(
    baseline: Run, baseline_path: Path, made: Made, texts: list[list[int]], options: argparse.Namespace
) -> dict[str, Any]:
    """All checks of one shape."""
    program, has_limits = _unlimited(build_program(open_checkpoint(made.path)))
    num_answers = 0 if has_limits else options.answers
    length = len(texts[0])
    right = Agreement()
    few = texts[: options.broken_texts]
    streamed_bytes = sum(ref.nbytes for op in program.ops if isinstance(op, p.Experts) for ref in op.gate)
    with Run(program, length) as run:
        planned = run.picks(texts[0])
        of_layer = [sorted(made.picked[layer]) for layer in sorted(made.picked)]
        wrong_picks = sum(row[3:].tolist() != of_layer[row[1]] for row in planned)
        for text in texts:
            right.add(baseline.logits(text), run.logits(text))
        resident = run.logits(texts[0]).copy()
    with Run(program, length, expert_bytes=streamed_bytes) as run:
        same_bits = bool(np.array_equal(resident, run.logits(texts[0])))
    expected = [baseline.logits(text).copy() for text in few]
    found: list[dict[str, Any]] = []
    for name, wrong in mistakes(program, made, options) if few else ():
        agreement = Agreement()
        with Run(wrong, length) as run:
            for text, logits in zip(few, expected, strict=True):
                agreement.add(logits, run.logits(text))
        breaks = agreement.unequal_clear_rows > 0
        seen = breaks or agreement.largest_change > SEEN * right.largest_change
        found.append({"mistake": name, "seen": seen, "argmax_breaks": breaks, **agreement.figures()})
    free = zip(
        answers(baseline_path, num_answers, options.tokens), answers(made.path, num_answers, options.tokens),
        strict=True,
    )  # fmt: skip
    same_answers = sum(a == b for a, b in free)
    holds = (
        right.unequal_clear_rows == 0 and wrong_picks == 0 and same_bits
        and same_answers >= SAME_TEXTS * num_answers and all(row["seen"] for row in found)
    )  # fmt: skip
    return {
        "shape": program.architecture, "holds": holds, "file_bytes": made.path.stat().st_size,
        "texts": len(texts), "text_tokens": length, **right.figures(), "routed_rows": len(planned),
        "wrong_picks": wrong_picks, "streamed_same_bits": same_bits, "answers": num_answers,
        "same_answers": same_answers, "mistakes": found,
    }  # fmt: skip


def table(result: dict[str, Any]) -> str:
    """What was found, to be read."""
    argmax = (
        f"unequal in {result['unequal_clear_rows']} of {result['clear_rows']} clear rows, "
        f"in {result['unequal_rows']} of all {result['rows']}"
    )
    moved = (
        f"{result['mean_divergence']:.1e} nats, at most {result['largest_divergence']:.1e}; "
        f"a logit moves by at most {result['largest_change']:.1e}"
    )
    lines = [
        f"{result['shape']}: {'holds' if result['holds'] else 'DOES NOT HOLD'}",
        f"  given text    {result['texts']} × {result['text_tokens']} tokens",
        f"    argmax      {argmax}",
        f"    divergence  {moved}",
        f"  free text     {result['same_answers']} of {result['answers']} answers the same",
        f"  picks         {result['wrong_picks']} of {result['routed_rows']} not as planned",
        f"  streamed      {'the same bits' if result['streamed_same_bits'] else 'OTHER BITS'}",
        "  | Mistake, in one layer | Seen | Argmax unequal | Divergence | Largest change |",
        "  |---|---|--:|--:|--:|",
    ]
    for row in result["mistakes"]:
        lines.append(
            f"  | {row['mistake']} | {'yes' if row['seen'] else 'NO'} | {row['unequal_clear_rows']} of "
            f"{row['clear_rows']} | {row['mean_divergence']:.1e} | {row['largest_change']:.2g} |"
        )
    return "\n".join(lines)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), help="only this one")
    parser.add_argument("--donor", help=f"file of the donor; else {DONOR} of the store")
    parser.add_argument("--texts", type=int, default=20)
    parser.add_argument("--length", type=int, default=200, help="tokens of a text")
    parser.add_argument("--answers", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=64, help="of an answer, at most")
    parser.add_argument("--broken-texts", type=int, default=1, help="that each mistake is shown; 0: no mistakes")
    parser.add_argument("--experts", type=int, default=12)
    parser.add_argument("--pairs", type=int, default=3, help="2 experts a pair, and 2 more, are picked")
    parser.add_argument("--folder", type=Path, help="for the files, which are kept; else a temporary one")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        donor = Donor(open_checkpoint(options.donor or Store().resolve(DONOR)))
        baseline_path = write_baseline(donor, folder / "donor-f32.gguf")
        texts = texts_of(baseline_path, options.texts, options.length)
        with Run(build_program(open_checkpoint(baseline_path)), options.length) as baseline:
            for name in [options.shape] if options.shape else SHAPES:
                began = time.monotonic()
                experts = Experts(options.experts, options.pairs)
                made = write_shape(donor, SHAPES[name], experts, folder / f"donor-{name}.gguf")
                results.append(check(baseline, baseline_path, made, texts, options))
                print(table(results[-1]))
                print(f"  {time.monotonic() - began:.0f} s", file=sys.stderr)
                if options.folder is None:
                    made.path.unlink()
    peak_bytes = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    settings = {key: str(value) for key, value in vars(options).items() if key not in ("json", "folder", "donor")}
    write_json(
        {"kamado": kamado.__version__, "settings": settings, "peak_bytes": peak_bytes, "results": results}, options.json
    )
    return 0 if all(result["holds"] for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
