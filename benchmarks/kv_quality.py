#!/usr/bin/env python3
"""What the encoded KV cache costs in quality, preset by preset, on real models.

    kv_quality.py MODEL.gguf… [--presets …] [--simulation SIM.json] [--peer DIR] [--needles 4096:100 8192:100 …]

Whole texts are scored, so that encoded pages are really read: perplexity and the divergence of the next token against
the exact (f16) cache. The last preset should be a control of one bit, k=1,v=1: if that does not wreck perplexity, the
harness does not read the cache and nothing else here means anything.

--simulation  JSON of kv_simulation.py over the same texts (same --tokens and --skip), its --per-token beside it:
              the ratio of our divergence to that of the codec in float32. Quantised weights have a divergence of their
              own, so give an F32 copy of the model (f32_copy.py) and its original's name as --simulated-as
--peer        a folder with llama-perplexity: the divergence of llama.cpp's own caches on the same text
--needles     tokens:questions. One haystack a length holds a fact for each question; questions are forked from it.
              The score is relative to the questions that the exact cache answers, with Wilson intervals

What the --json file holds already (a model's texts, a needle row) is not measured again.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import kamado
from kamado.engine.measure.kv_measure import TEXTS, Scores, builtin_texts, compared, score_presets
from peers import circumstances, tool, write_json

Floats = NDArray[np.float64]

CONTROL = "k=1,v=1"
PRESETS = ("safe", "balanced", "k=4,v=3", "k=3,v=3", "small", "k=2,v=2", CONTROL)
CODES = {
    "safe": "8,4",
    "k=4,v=8": "4,8",
    "balanced": "4,4",
    "k=4,v=4": "4,4",
    "k=4,v=3": "4,3",
    "k=3,v=3": "3,3",
    "small": "3,2",
    "k=2,v=2": "2,2",
}
PEER_TYPES = ("q8_0", "q5_1", "q4_0")
WRECKED_PERCENT = 20.0  # the control's perplexity must rise by more

QUESTIONS_TOGETHER = 20
# Keys whose first tokens differ, so that a small model can tell the facts apart.
CITIES = (Path(__file__).resolve().parent / "data" / "cities.txt").read_text().split()


def scored(
    options: argparse.Namespace,
    model: Path,
    rows: list[dict[str, Any]],
    per_token: dict[str, Floats],
    save: Callable[[], None],
) -> None:
    """Adds perplexity and divergence of every preset on each text and over all of them, preset by preset.

    `per_token` gets every token's divergence under "model/text/codes", as kv_simulation.py keeps them.
    """
    exact: Scores | None = None
    names = [name for name in TEXTS if name in options.texts]
    texts = [text for name, text in zip(TEXTS, builtin_texts(), strict=True) if name in names]
    for kv, scores in score_presets(
        model,
        options.presets,
        texts,
        options.tokens,
        first_scored=options.skip,
        reference_bytes=options.reference_mib << 20,
        threads=options.threads,
    ):
        exact = exact or scores
        for text in (*range(len(names)), None):
            name = "all" if text is None else names[text]
            begin, end = (0, scores.ends[-1]) if text is None else ((0, *scores.ends)[text], scores.ends[text])
            divergences = scores.divergences[-(-begin // scores.stride) : -(-end // scores.stride)]
            if kv in CODES and scores.stride == 1 and text is not None:
                per_token[f"{model.name}/{name}/{CODES[kv]}"] = divergences
            row = compared(kv, scores, exact, text)
            rows.append(
                {
                    "model": model.name,
                    "text": name,
                    **{f: getattr(row, f) for f in row.__slots__},
                    "divergence_error": float(divergences.std()) / math.sqrt(max(1, len(divergences) - 1)),
                    "divergence_99": float(np.quantile(divergences, 0.99)),
                }
            )
            print(
                f"{model.stem:28} {name:10} {row.kv:10} {row.perplexity:10.3f} {row.rise_percent:+8.2f} % "
                f"± {row.rise_error_percent:.2f}  divergence {row.divergence:.5f} "
                f"± {rows[-1]['divergence_error']:.5f}  same {row.same_top_percent:.1f} %",
                flush=True,
            )
        save()


def check_control(rows: list[dict[str, Any]]) -> bool:
    """Whether one bit wrecks every model's perplexity."""
    controls = [row for row in rows if row["kv"] == CONTROL and row["text"] == "all"]
    return bool(controls) and all(row["rise_percent"] > WRECKED_PERCENT for row in controls)


def against_simulation(
    rows: list[dict[str, Any]], per_token: dict[str, Floats], path: Path, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Our divergence over the simulated one, text by text and over all texts that both have.

    The error is that of the ratio over pairs of tokens: sampled texts, not the codec, decide much of each mean.
    """
    document = json.loads(path.read_text())
    if document["skip"] != options.skip:
        sys.exit(f"{path} was scored from token {document['skip']} on, not {options.skip}")
    simulated = dict(np.load(path.with_suffix(".npz")))
    found = []
    for model in sorted({row["model"] for row in rows}):
        for codes in sorted({key.rsplit("/", 1)[1] for key in simulated}, reverse=True):
            pairs = {
                name: (
                    per_token[f"{model}/{name}/{codes}"],
                    simulated[f"{options.simulated_as or model}/{name}/{codes}"],
                )
                for name in TEXTS
                if f"{model}/{name}/{codes}" in per_token
                and f"{options.simulated_as or model}/{name}/{codes}" in simulated
            }
            if len(pairs) > 1:
                pairs["all"] = tuple(np.concatenate(side) for side in zip(*pairs.values(), strict=True))
            for name, (ours, theirs) in pairs.items():
                if len(ours) != len(theirs):
                    sys.exit(f"{path} scored {len(theirs)} tokens of {name}, not {len(ours)}")
                ratio = float(ours.mean() / theirs.mean())
                error = float((ours - ratio * theirs).std()) / math.sqrt(len(ours) - 1) / float(theirs.mean())
                worst = float(np.delete(ours, int(np.abs(ours - theirs).argmax())).mean() / theirs.mean())
                row = {"model": model, "text": name, "codes": codes, "ours": float(ours.mean())}
                row |= {"simulation": float(theirs.mean()), "ratio": ratio, "ratio_error": error, "tokens": len(ours)}
                row |= {"median_ratio": float(np.median(ours) / np.median(theirs)), "ratio_but_one_token": worst}
                found.append(row)
                print(
                    f"{model:36} {name:10} {codes:5} ours {row['ours']:.5f} simulation {row['simulation']:.5f}  "
                    f"ratio {ratio:.3f} ± {error:.3f}  of medians {row['median_ratio']:.3f}",
                    flush=True,
                )
    return found


def against_peer(options: argparse.Namespace, model: Path) -> list[dict[str, Any]]:
    """Mean divergence of llama.cpp's caches from its own f16, and ours on the same windows: their second half."""
    program = str(tool(options.peer, "llama-perplexity"))
    window = options.peer_window
    found = []
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        text = Path(folder) / "text.txt"
        text.write_text("\n".join(builtin_texts()))
        base = [program, "-m", str(model), "-f", str(text), "-c", str(window), "-b", str(window), "-fa", "on"]
        base += ["--chunks", str(options.peer_chunks), "--no-warmup", "--kl-divergence-base", f"{folder}/base"]
        _run(base)
        for kind in PEER_TYPES:
            out = _run([*base, "--kl-divergence", "-ctk", kind, "-ctv", kind])
            mean = re.search(r"Mean\s+KLD:\s+([-0-9.e]+)", out)
            if mean is None:
                sys.exit(f"llama-perplexity printed no mean KLD:\n{out[-1500:]}")
            found.append({"model": model.name, "cache": f"llama.cpp {kind}", "divergence": float(mean[1])})
        with kamado.load(model, threads=options.threads, context=window, kv="exact") as loaded:
            tokens = loaded.tokenize(text.read_text(), add_bos=False)
        windows = [tokens[i * window : (i + 1) * window] for i in range(options.peer_chunks)]
        scored = list(
            score_presets(
                model,
                [kv for kv in options.presets if kv != CONTROL],
                windows,
                window,
                first_scored=window // 2,
                reference_bytes=options.reference_mib << 20,
                threads=options.threads,
            )
        )
        rows = [compared(kv, scores, scored[0][1]) for kv, scores in scored]
        found += [{"model": model.name, "cache": f"kamado {r.kv}", "divergence": r.divergence} for r in rows[1:]]
    for row in found:
        print(f"{row['model']:36} {row['cache']:22} divergence {row['divergence']:.5f}", flush=True)
    return found


def _run(command: list[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{(result.stderr or result.stdout)[-1500:]}")
    return result.stdout + result.stderr


# --- needles ----------------------------------------------------------------------------------------------------------


def haystack(model: kamado.Model, num_tokens: int, num_facts: int) -> tuple[list[int], list[tuple[str, str]]]:
    """Tokens of a text of that length with facts spread over it, and what to ask: (question, answer).

    A fact is a number of five digits, which no model can guess or know, under a name whose first tokens are its own.
    """
    rng = random.Random(num_tokens)
    if num_facts > len(CITIES):
        sys.exit(f"there are {len(CITIES)} names for facts, not {num_facts}")
    names = rng.sample(CITIES, num_facts)
    numbers = rng.sample(range(10_000, 100_000), num_facts)
    facts = [(name, str(number)) for name, number in zip(names, numbers, strict=True)]
    needles = [model.tokenize(f"\nThe secret number of {name} is {n}.\n", add_bos=False) for name, n in facts]
    filler = model.tokenize("\n".join(builtin_texts()), add_bos=False)
    tokens = model.tokenize("", add_bos=None)
    room = num_tokens - sum(map(len, needles)) - len(tokens)
    if room < num_facts:
        sys.exit(f"{num_facts} facts do not fit into {num_tokens} tokens")
    for i, needle in enumerate(needles):
        begin, end = (room * j // num_facts for j in (i, i + 1))
        tokens += [filler[j % len(filler)] for j in range(begin, end)]
        tokens += needle
    return tokens, [(f"\nThe secret number of {name} is", number) for name, number in facts]


def ask(model: kamado.Model, tokens: list[int], questions: list[tuple[str, str]]) -> list[bool]:
    """Which questions about the haystack are answered rightly, by greedy completion; several run together."""
    list(model.generate(tokens, max_tokens=1, temperature=0))
    right = []
    for first in range(0, len(questions), QUESTIONS_TOGETHER):
        some = questions[first : first + QUESTIONS_TOGETHER]
        running = [
            model.generate([*tokens, *model.tokenize(question, add_bos=False)], max_tokens=6, temperature=0)
            for question, _ in some
        ]
        for generation, (_, answer) in zip(running, some, strict=True):
            right.append("".join(piece.text for piece in generation).strip().startswith(answer))
            if generation.usage.num_reused_tokens < len(tokens) - 1:
                sys.exit("a question was not forked from the haystack but computed again")
    return right


def needles(options: argparse.Namespace, model: Path, rows: list[dict[str, Any]], save: Callable[[], None]) -> None:
    """Adds to `rows` the share of the questions which the exact cache answers that each preset answers as well.

    Rows that are there already are not measured again.
    """
    for spec in options.needles:
        num_tokens, num_questions = (int(part) for part in spec.split(":"))
        known = {
            row["kv"]: row["answers"]
            for row in rows
            if (row["model"], row["tokens"], row["questions"]) == (model.name, num_tokens, num_questions)
        }
        for kv in ("exact", *(kv for kv in options.presets if kv not in ("exact", CONTROL))):
            if kv in known:
                continue
            spare = QUESTIONS_TOGETHER * 512  # each question holds the haystack's last pages of its own
            with kamado.load(
                model, threads=options.threads, context=num_tokens + 64, kv_tokens=num_tokens + spare, kv=kv
            ) as loaded:
                right = ask(loaded, *haystack(loaded, num_tokens, num_questions))
            known[kv] = "".join("01"[answer] for answer in right)
            kept = [ours == "1" for ours, exact in zip(known[kv], known["exact"], strict=True) if exact == "1"]
            low, high = wilson(sum(kept), len(kept))
            row = {
                "model": model.name,
                "kv": kv,
                "tokens": num_tokens,
                "questions": num_questions,
                "right": sum(right),
                "exact_answers": len(kept),
                "kept": sum(kept),
                "share": sum(kept) / max(1, len(kept)),
                "interval": [round(low, 4), round(high, 4)],
                "answers": known[kv],
            }
            rows.append(row)
            save()
            print(
                f"{model.stem:28} needles {num_tokens:6} {kv:10} {sum(right)}/{num_questions} right, of the exact "
                f"cache's {len(kept)}: {row['share']:.3f} [{low:.3f}, {high:.3f}]",
                flush=True,
            )


def wilson(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share."""
    if trials == 0:
        return 0.0, 1.0
    share, extra = successes / trials, z * z / trials
    centre = (share + extra / 2) / (1 + extra)
    half = z / (1 + extra) * math.sqrt(share * (1 - share) / trials + extra / (4 * trials))
    return max(0.0, centre - half), min(1.0, centre + half)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--kamado", default="kamado", help="the command, for its version and machine")
    parser.add_argument("--presets", nargs="+", default=list(PRESETS))
    parser.add_argument("--texts", nargs="+", choices=TEXTS, default=list(TEXTS))
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--skip", type=int, default=512, help="first position that is scored")
    parser.add_argument("--reference-mib", type=int, default=1536, help="disk for the exact distributions")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--no-texts", action="store_true")
    parser.add_argument("--simulation", type=Path)
    parser.add_argument("--simulated-as", metavar="FILE", help="the model's name there, when this is an F32 copy of it")
    parser.add_argument("--per-token", type=Path, help="npz of every token's divergence")
    parser.add_argument("--peer", type=Path, help="folder with llama-perplexity")
    parser.add_argument("--peer-window", type=int, default=2048)
    parser.add_argument("--peer-chunks", type=int, default=4)
    parser.add_argument("--needles", nargs="+", default=[])
    parser.add_argument("--scratch", type=Path, help="folder for large temporary files")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    document: dict[str, Any] = {}
    if options.json and options.json.exists():
        document = json.loads(options.json.read_text())  # what a stopped run left
    document["circumstances"] = circumstances(options.kamado, [], options.models)
    rows: list[dict[str, Any]] = document.get("texts", [])
    per_token: dict[str, Floats] = {}
    if options.per_token and options.per_token.exists():
        per_token = dict(np.load(options.per_token))
    for model in options.models:
        if not options.no_texts and model.name not in {row["model"] for row in rows}:
            document["texts"] = rows

            def save() -> None:
                if options.per_token:
                    np.savez_compressed(options.per_token, **per_token)
                write_json(document, options.json)

            scored(options, model, rows, per_token, save)
        if options.simulation:
            document["simulation"] = against_simulation(rows, per_token, options.simulation, options)
        if options.peer:
            document.setdefault("peer", []).extend(against_peer(options, model))
        if options.needles:
            found = document.setdefault("needles", [])
            needles(options, model, found, lambda: write_json(document, options.json))
        write_json(document, options.json)
    if rows and CONTROL in options.presets and not check_control(rows):
        print("the one-bit control did not wreck perplexity: the cache is not being read", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
