"""A real model in another family's shape gives the same text as itself, and does not where the reading is broken.

    python benchmarks/donors.py                        # all shapes, 20 texts, all checks: 5 GB of memory, 3 of disk
    python benchmarks/donors.py --shape glm4moe --json found.json

The donor, dequantised to float32, is the baseline. SmolLM2-135M is written by donor_files.py, which says how, as
GLM-4.5 to 4.7 (`glm4moe`), MiniMax M2 (`minimax-m2`), LFM2 8B-A1B (`lfm2moe`), Qwen3.5 with experts (`qwen35moe`) and
gpt-oss (`gpt-oss`, safetensors); Gemma 3 270M by donor_gemma.py as Gemma 4's E shape (`gemma4`). Keys and values are
float32 in all runs. Checks of a shape:

- Given text: 20 texts of 200 tokens. The likeliest token is the same wherever the baseline's two best differ by more
  than 1e-3; the divergence is printed.
- Free text: 20 questions, by the chat template where the donor has one, the likeliest token always. At least 18 of 20
  answers are the same.
- The picks are those that were planned, in all layers and rows.
- Experts read from disk as they are needed give the same bits.
- Each mistake, in one layer only, is seen: the check of given text fails, or a logit moves a hundred times as far as
  any of the right program's.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import kamado
from donor_files import Made, write_baseline, write_shape
from donor_gemma import write_gemma4
from donor_mistakes import mistakes
from donor_safetensors import as_directory
from donor_shapes import SHAPES, Donor, Experts
from kamado import program as p
from kamado.files import open_checkpoint
from kamado.library.store import Store
from kamado.lower import build_executor
from kamado.models import build_program
from peers import write_json

SMOLLM2, GEMMA3 = "smollm2:135m", "gemma3:270m"
DONORS = dict.fromkeys(SHAPES, SMOLLM2) | {"gemma4": GEMMA3}  # by shape
TEXT = Path(__file__).resolve().parent / "data" / "hearth.txt"
CLEAR = 1e-3  # of the baseline's logits: a lead of which the argmax must be the same
SAME_TEXTS = 0.9
ROWS = 32  # that are compared at once: Gemma has 262,144 logits a row
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
        for begin in range(0, len(right), ROWS):
            self._add(right[begin : begin + ROWS], other[begin : begin + ROWS])

    def _add(self, right: Logits, other: Logits) -> None:
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


def answers(path: Path, count: int, max_tokens: int) -> list[list[int]]:
    """The token ids of free answers to the first `count` questions, all running together."""
    if not count:
        return []
    with kamado.load(path, kv="f32", context=256, kv_tokens=256 * count) as model:
        options: dict[str, Any] = {"temperature": 0, "max_tokens": max_tokens}
        if model.has_chat_template:
            running = [model.chat([{"role": "user", "content": text}], **options) for text in QUESTIONS[:count]]
        else:
            running = [model.generate(f"Question: {text}\nAnswer:", **options) for text in QUESTIONS[:count]]
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
    program, num_answers = build_program(open_checkpoint(made.path)), options.answers
    length = len(texts[0])
    right = Agreement()
    few = texts[: options.broken_texts]
    streamed_bytes = sum(ref.nbytes for op in program.ops if isinstance(op, p.Experts) for ref in op.gate)
    with Run(program, length) as run:
        planned = run.picks(texts[0]) if made.picked else []
        of_layer = [sorted(made.picked[layer]) for layer in sorted(made.picked)]
        wrong_picks = sum(row[3:].tolist() != of_layer[row[1]] for row in planned)
        for text in texts:
            right.add(baseline.logits(text), run.logits(text))
        resident = run.logits(texts[0]).copy()
    same_bits = True
    if streamed_bytes:
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
        "shape": program.architecture, "holds": holds, "file_bytes": _file_bytes(made.path),
        "texts": len(texts), "text_tokens": length, **right.figures(), "routed_rows": len(planned),
        "wrong_picks": wrong_picks, "streamed_same_bits": same_bits, "answers": num_answers,
        "same_answers": same_answers, "mistakes": found,
    }  # fmt: skip


def _file_bytes(path: Path) -> int:
    files = path.iterdir() if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)


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
    ]
    if result["routed_rows"]:
        lines += [
            f"  picks         {result['wrong_picks']} of {result['routed_rows']} not as planned",
            f"  streamed      {'the same bits' if result['streamed_same_bits'] else 'OTHER BITS'}",
        ]
    lines += [
        "  | Mistake, in one layer | Seen | Argmax unequal | Divergence | Largest change |",
        "  |---|---|--:|--:|--:|",
    ]
    for row in result["mistakes"]:
        lines.append(
            f"  | {row['mistake']} | {'yes' if row['seen'] else 'NO'} | {row['unequal_clear_rows']} of "
            f"{row['clear_rows']} | {row['mean_divergence']:.1e} | {row['largest_change']:.2g} |"
        )
    return "\n".join(lines)


@contextmanager
def written(donor: Donor, name: str, options: argparse.Namespace, folder: Path) -> Iterator[Made]:
    """The donor in a shape, which is removed at the end unless a folder for it was named."""
    path = folder / f"donor-{name}.gguf"
    if name == "gemma4":
        made = write_gemma4(donor, path)
    else:
        made = write_shape(donor, SHAPES[name], Experts(options.experts, options.pairs), path)
    if name == "gpt-oss":
        made = as_directory(made, folder / f"donor-{name}")
    yield made
    if options.folder is None:
        shutil.rmtree(made.path) if made.path.is_dir() else made.path.unlink()


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(DONORS), help="only this one")
    parser.add_argument("--donor", help="file of the donor; else that of the store")
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
    names = [options.shape] if options.shape else list(DONORS)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        for which, shapes in itertools.groupby(names, DONORS.__getitem__):
            donor = Donor(open_checkpoint(options.donor or Store().resolve(which)))
            baseline_path = write_baseline(donor, folder / f"donor-{donor.checkpoint.architecture}-f32.gguf")
            texts = texts_of(baseline_path, options.texts, options.length)
            with Run(build_program(open_checkpoint(baseline_path)), options.length) as baseline:
                for name in shapes:
                    began = time.monotonic()
                    with written(donor, name, options, folder) as made:
                        results.append(check(baseline, baseline_path, made, texts, options))
                    print(table(results[-1]))
                    print(f"  {time.monotonic() - began:.0f} s", file=sys.stderr)
    peak_bytes = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    settings = {key: str(value) for key, value in vars(options).items() if key not in ("json", "folder", "donor")}
    write_json(
        {"kamado": kamado.__version__, "settings": settings, "peak_bytes": peak_bytes, "results": results}, options.json
    )
    return 0 if all(result["holds"] for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
