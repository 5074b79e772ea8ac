#!/usr/bin/env python3
"""What the encoded KV cache costs in quality, preset by preset, on real models.

    kv_quality.py MODEL.gguf… [--presets …] [--simulation SIM.json] [--peer DIR] [--needles 4096:100 8192:100 …]

Whole texts are scored, so that encoded pages are really read: perplexity and the divergence of the next token against
the exact (f16) cache. The last preset should be a control of one bit, k=1,v=1: if that does not wreck perplexity, the
harness does not read the cache and nothing else here means anything.

--simulation  JSON of kv_simulation.py over the same texts (--text of the package's own, same --tokens and --skip):
              the ratio of our divergence to that of the codec in float32
--peer        a folder with llama-perplexity: the divergence of llama.cpp's own caches on the same text
--needles     tokens:questions. One haystack a length holds a fact for each question; questions are forked from it.
              The score is relative to the questions that the exact cache answers, with Wilson intervals
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
from pathlib import Path
from typing import Any

import kamado
from kamado.engine.kv_measure import TEXTS, builtin_texts, compare_presets
from peers import circumstances, tool, write_json

CONTROL = "k=1,v=1"
PRESETS = ("safe", "balanced", "k=4,v=3", "k=3,v=3", "small", "k=2,v=2", CONTROL)
CODES = {"balanced": "4,4", "k=4,v=4": "4,4", "k=4,v=3": "4,3", "k=3,v=3": "3,3", "small": "3,2", "k=2,v=2": "2,2"}
PEER_TYPES = ("q8_0", "q5_1", "q4_0")
WRECKED_PERCENT = 20.0  # the control's perplexity must rise by more

# Keys whose first tokens differ, so that a small model can tell the facts apart.
CITIES = (Path(__file__).resolve().parent / "data" / "cities.txt").read_text().split()


def scored(options: argparse.Namespace, model: Path) -> list[dict[str, Any]]:
    """Perplexity and divergence of every preset on each text, then over all of them."""
    rows = []
    texts = builtin_texts()
    for name, chosen in [*((name, [text]) for name, text in zip(TEXTS, texts, strict=True)), ("all", texts)]:
        found = compare_presets(
            model,
            options.presets,
            chosen,
            options.tokens,
            first_scored=options.skip,
            reference_bytes=options.reference_mib << 20,
            threads=options.threads,
        )
        for row in found:
            rows.append({"model": model.name, "text": name, **{f: getattr(row, f) for f in row.__slots__}})
            print(
                f"{model.stem:28} {name:10} {row.kv:10} {row.perplexity:10.3f} {row.rise_percent:+8.2f} % "
                f"± {row.rise_error_percent:.2f}  divergence {row.divergence:.5f}  same {row.same_top_percent:.1f} %",
                flush=True,
            )
    return rows


def check_control(rows: list[dict[str, Any]]) -> bool:
    """Whether one bit wrecks every model's perplexity."""
    controls = [row for row in rows if row["kv"] == CONTROL and row["text"] == "all"]
    return bool(controls) and all(row["rise_percent"] > WRECKED_PERCENT for row in controls)


def against_simulation(rows: list[dict[str, Any]], path: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Our divergence over the simulated one, for the texts that both have."""
    document = json.loads(path.read_text())
    if document["skip"] != options.skip:
        sys.exit(f"{path} was scored from token {document['skip']} on, not {options.skip}")
    ours = {
        (row["model"], row["text"], CODES[row["kv"]]): row["divergence"]
        for row in rows
        if row["kv"] in CODES and row["text"] != "all"
    }
    found = []
    for theirs in document["results"]:
        key = (theirs["model"], theirs["text"].removesuffix(".txt"), theirs["codes"])
        if key in ours and theirs["tokens"] == options.tokens:
            ratio = ours[key] / theirs["kld"]
            found.append(dict(zip(("model", "text", "codes"), key, strict=True)) | {"ratio": round(ratio, 4)})
            print(f"{key[0]:36} {key[1]:10} {key[2]:5} simulation {theirs['kld']:.5f}  ratio {ratio:.3f}")
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
        rows = compare_presets(
            model,
            [kv for kv in options.presets if kv != CONTROL],
            windows,
            window,
            first_scored=window // 2,
            reference_bytes=options.reference_mib << 20,
            threads=options.threads,
        )
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
    """Tokens of a text of that length with facts spread over it, and what to ask: (question, answer)."""
    rng = random.Random(num_tokens)
    names = [*CITIES, *(f"New {city}" for city in CITIES)]
    if num_facts > len(names):
        sys.exit(f"there are {len(names)} names for facts, not {num_facts}")
    names = names[: max(num_facts, len(CITIES))]
    rng.shuffle(names)
    facts = list(zip(names[:num_facts], rng.sample(names, num_facts), strict=True))
    needles = [model.tokenize(f"\nThe twin town of {name} is {code}.\n", add_bos=False) for name, code in facts]
    filler = model.tokenize("\n".join(builtin_texts()), add_bos=False)
    room = num_tokens - sum(map(len, needles)) - 1
    if room < num_facts:
        sys.exit(f"{num_facts} facts do not fit into {num_tokens} tokens")
    tokens = model.tokenize("", add_bos=None) or []
    for i, needle in enumerate(needles):
        begin, end = (room * j // num_facts for j in (i, i + 1))
        tokens += [filler[j % len(filler)] for j in range(begin, end)]
        tokens += needle
    return tokens, [(f"\nThe twin town of {name} is", code) for name, code in facts]


def needles(options: argparse.Namespace, model: Path) -> list[dict[str, Any]]:
    """Share of the questions which the exact cache answers that each preset answers as well."""
    found = []
    for spec in options.needles:
        num_tokens, num_questions = (int(part) for part in spec.split(":"))
        right: dict[str, list[bool]] = {}
        for kv in ("exact", *options.presets):
            with kamado.load(model, threads=options.threads, context=num_tokens + 64, kv=kv) as loaded:
                tokens, questions = haystack(loaded, num_tokens, num_questions)
                list(loaded.generate(tokens, max_tokens=1, temperature=0))
                right[kv] = []
                for question, answer in questions:
                    prompt = [*tokens, *loaded.tokenize(question, add_bos=False)]
                    generation = loaded.generate(prompt, max_tokens=8, temperature=0)
                    right[kv].append("".join(piece.text for piece in generation).strip().startswith(answer))
                    if generation.usage.num_reused_tokens < len(tokens) - 1:
                        sys.exit(f"{kv}: a question was not forked from the haystack but computed again")
            kept = [is_right for is_right, was_right in zip(right[kv], right["exact"], strict=True) if was_right]
            low, high = wilson(sum(kept), len(kept))
            row = {
                "model": model.name,
                "kv": kv,
                "tokens": len(tokens),
                "questions": num_questions,
                "exact_answers": len(kept),
                "kept": sum(kept),
                "share": sum(kept) / max(1, len(kept)),
                "interval": [round(low, 4), round(high, 4)],
                "right": sum(right[kv]),
            }
            found.append(row)
            print(
                f"{model.stem:28} needles {len(tokens):6} {kv:10} {sum(right[kv])}/{num_questions} right, of the exact "
                f"cache's {len(kept)}: {row['share']:.3f} [{low:.3f}, {high:.3f}]",
                flush=True,
            )
    return found


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
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--skip", type=int, default=512, help="first position that is scored")
    parser.add_argument("--reference-mib", type=int, default=1536, help="disk for the exact distributions")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--no-texts", action="store_true")
    parser.add_argument("--simulation", type=Path)
    parser.add_argument("--peer", type=Path, help="folder with llama-perplexity")
    parser.add_argument("--peer-window", type=int, default=2048)
    parser.add_argument("--peer-chunks", type=int, default=4)
    parser.add_argument("--needles", nargs="+", default=[])
    parser.add_argument("--scratch", type=Path, help="folder for large temporary files")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    document: dict[str, Any] = {"circumstances": circumstances(options.kamado, [], options.models)}
    rows: list[dict[str, Any]] = []
    for model in options.models:
        if not options.no_texts:
            rows += scored(options, model)
            document["texts"] = rows
        if options.simulation:
            document["simulation"] = against_simulation(rows, options.simulation, options)
        if options.peer:
            document.setdefault("peer", []).extend(against_peer(options, model))
        if options.needles:
            document.setdefault("needles", []).extend(needles(options, model))
        write_json(document, options.json)
    if rows and CONTROL in options.presets and not check_control(rows):
        print("the one-bit control did not wreck perplexity: the cache is not being read", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
