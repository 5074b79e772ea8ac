#!/usr/bin/env python3
"""Random-weight GGUF files of every family: how far from exact arithmetic, in units of llama.cpp's own distance?

    gguf_parity.py --peer DIR [FAMILY…]   (DIR holds peer-logits, see peer_logits.cpp, llama-quantize, llama-perplexity)

For each family and seed two files are made, F16 and llama-quantize's Q4_K_M. On both, the same prompts: the NumPy
oracle in float64 on the dequantised weights is the truth, Kamado and llama.cpp run with 16-bit keys and values. A row's
divergence is KL(truth, logits) in nats; a ratio is Kamado's mean over llama.cpp's. A router's choice between two
experts that are nearly equal is luck, and what it changes is read by every later row: of each prompt, the rows from the
first on in which the three do not pick the same experts are counted apart. The oracle itself is held against
transformers in float32 on the F16 values, where transformers has the family, and peer-logits against
`llama-perplexity --save-all-logits`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from parity_files import MIX, Files, make_files, wide_families
from peers import call, circumstances, sha256, tool, write_json

LIMITS = {"F16": 1.0, MIX: 1.5}
SAME_MODEL = {"F16": 1e-4, MIX: 0.1}  # nats; llama.cpp computes something else where its divergence is larger
ORACLE_TOLERANCE = 1e-4  # of the logits' standard deviation: transformers computes in float32
OTHER_GROUPS = 0.02  # of the rows that llama-perplexity scores
SEVERAL = 200  # draws for the ratio's interval


@dataclass(frozen=True)
class Run:
    """Logits [tokens, vocabulary] and the picked experts [layers, tokens, k], each row ascending."""

    logits: np.ndarray
    picks: list[np.ndarray]


def oracle(model: Path, tokens: np.ndarray, length: int) -> Run:
    from numpy_executor import NumpyExecutor

    from kamado.files import open_checkpoint
    from kamado.models import build_program

    picks: list[list[np.ndarray]] = []

    class Watched(NumpyExecutor):
        def _route(self, *arguments: Any) -> Any:
            result = super()._route(*arguments)
            picks[-1].append(np.sort(result[0], axis=-1))
            return result

    executor = Watched(build_program(open_checkpoint(model)))
    logits = []
    for prompt in tokens.reshape(-1, length):
        picks.append([])
        logits.append(executor.forward(prompt))
    return Run(np.concatenate(logits), [np.concatenate(layer) for layer in zip(*picks, strict=True)])


def kamado(model: Path, tokens: np.ndarray, length: int, threads: int) -> Run:
    from kamado.files import open_checkpoint
    from kamado.lower import build_executor
    from kamado.models import build_program

    executor = build_executor(
        build_program(open_checkpoint(model)),
        num_threads=threads, max_rows=length, max_logit_rows=length, max_kv_tokens=length, max_sequences=1, kv="f16",
    )  # fmt: skip
    executor.record_routing(True)
    logits, picks = [], []
    for prompt in tokens.reshape(-1, length):
        sequence = executor.create_sequence()
        rows = np.arange(length, dtype=np.int32)
        logits.append(executor.step(np.array([sequence], np.int32), np.array([length], np.int32), prompt, rows).copy())
        executor.free_sequence(sequence)
        routed = executor.routing()
        picks.append([])
        for layer in np.unique(routed[:, 1]):
            of_layer = routed[routed[:, 1] == layer]
            ordered = of_layer[np.argsort(of_layer[:, 2])][:, 3:]
            picks[-1].append(ordered[:, (ordered >= 0).all(axis=0)])
    executor.close()
    return Run(np.concatenate(logits), [np.concatenate(layer) for layer in zip(*picks, strict=True)])


def peer(program: Path, model: Path, tokens: np.ndarray, length: int, threads: int, folder: Path) -> Run:
    ids, logits, routes = folder / "tokens", folder / "logits", folder / "routes"
    tokens.astype("<i4").tofile(ids)
    call([str(program), str(model), str(ids), str(logits), str(routes), str(threads), str(length)])
    words = np.fromfile(routes, "<i4")
    picks: dict[int, list[np.ndarray]] = {}
    at = 0
    while at < len(words):
        layer, rows, k = (int(word) for word in words[at : at + 3])
        picks.setdefault(layer, []).append(np.sort(words[at + 3 : at + 3 + rows * k].reshape(rows, k), axis=-1))
        at += 3 + rows * k
    ordered = [np.concatenate(picks[layer]) for layer in sorted(picks)]
    return Run(np.fromfile(logits, "<f4").reshape(len(tokens), -1), ordered)


def check_peer(program: Path, model: Path, text: Path, tokens: np.ndarray, length: int, run: Run, saved: Path) -> None:
    """Exits unless llama-perplexity's own log-probabilities are those of `run`, but for their rounding to 16 bits.

    It leaves rows out of the last layer, which changes how llama.cpp groups the others: a few may differ by more.
    """
    sizes = ["-c", str(length), "-b", str(length), "-ub", str(length), "-t", "1"]
    call([str(program), "-m", str(model), "-f", str(text), *sizes, "--no-warmup", "--save-all-logits", str(saved)])
    raw = saved.read_bytes()
    vocabulary = run.logits.shape[1]
    header = 8 + 3 * 4  # its mark, context, vocabulary, windows
    if not np.array_equal(np.frombuffer(raw, "<i4", len(tokens), header), tokens):
        sys.exit(f"{model}: llama-perplexity read other tokens out of {text}")
    # The second half of each window but its last row: scale, least log-probability, then 16 bits a token.
    words = 2 * ((vocabulary + 1) // 2) + 4
    rows = np.frombuffer(raw, "<u2", offset=header + 4 * len(tokens)).reshape(-1, words)
    scale, least = rows[:, :4].copy().view("<f4").T.astype(np.float64)
    theirs = least[:, None] + scale[:, None] * rows[:, 4 : 4 + vocabulary]
    scored = run.logits.reshape(-1, length, vocabulary)[:, length // 2 : length - 1].reshape(-1, vocabulary)
    off = np.abs(np.maximum(_log_softmax(scored), least[:, None]) - theirs).max(axis=1)
    if (off > scale + 1e-5).mean() > OTHER_GROUPS:
        sys.exit(f"{model}: llama-perplexity and peer-logits differ by {off.max():.2e}")


def against_transformers(files: Files, truth: Run, length: int) -> list[float]:
    """The oracle's largest error over the logits' standard deviation; empty without such a model there."""
    from model_cases import reference_logits
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if files.family not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return []
    reference = reference_logits(files.directory, files.tokens[:length].tolist()).astype(np.float64)
    return [float(np.abs(reference - truth.logits[:length]).max() / truth.logits.std())]


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def divergences(truth: Run, other: Run) -> np.ndarray:
    """KL(truth, other) of every row, in nats."""
    log_p, log_q = _log_softmax(truth.logits), _log_softmax(other.logits)
    return (np.exp(log_p) * (log_p - log_q)).sum(axis=-1)


def unlike(one: Run, other: Run) -> np.ndarray:
    """Rows in which a router of one picked other experts than that of the other."""
    if [picks.shape for picks in one.picks] != [picks.shape for picks in other.picks]:
        sys.exit(f"the routers are not the same: {[p.shape for p in one.picks]} and {[p.shape for p in other.picks]}")
    rows = np.zeros(len(one.logits), dtype=bool)
    for a, b in zip(one.picks, other.picks, strict=True):
        rows |= (a != b).any(axis=-1)
    return rows


def interval(own: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """Of the ratio of means, 5 to 95 %, by drawing rows anew."""
    draws = np.random.default_rng(0).integers(0, len(own), (SEVERAL, len(own)))
    ratios = own[draws].mean(axis=1) / theirs[draws].mean(axis=1)
    low, high = np.percentile(ratios, [5, 95])
    return float(low), float(high)


def compare(family: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each kind of file, over all seeds."""
    results: dict[str, list[Rows]] = {kind: [] for kind in LIMITS}
    hashes: dict[str, list[str]] = {kind: [] for kind in LIMITS}
    oracle_off: list[float] = []
    length, threads = options.length, options.threads
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as name:
            scratch = Path(name)
            folder = options.keep / f"{family}-{seed}" if options.keep else scratch / "files"
            quantize = tool(options.peer, "llama-quantize")
            files = make_files(family, folder, quantize, seed=seed, num_tokens=options.tokens)
            tokens = files.tokens
            for kind, model in (("F16", files.f16), (MIX, files.mix)):
                truth = oracle(model, tokens, length)
                own = kamado(model, tokens, length, threads)
                theirs = peer(tool(options.peer, "peer-logits"), model, tokens, length, threads, scratch)
                if seed == 0:
                    program = tool(options.peer, "llama-perplexity")
                    check_peer(program, model, files.text, tokens, length, theirs, scratch / "saved")
                if kind == "F16":
                    oracle_off += against_transformers(files, truth, length)
                results[kind].append(Rows.of(truth, own, theirs, length))
                hashes[kind].append(sha256(model))
    worst = max(oracle_off, default=None)
    return [
        {"family": family, "file": kind, **summary(results[kind]), "oracle_off": worst, "sha256": hashes[kind]}
        for kind in LIMITS
    ]


@dataclass(frozen=True)
class Rows:
    """What is known of each row."""

    own: np.ndarray  # divergence of Kamado
    theirs: np.ndarray
    own_greedy: np.ndarray  # whether the likeliest token is the truth's
    their_greedy: np.ndarray
    own_unlike: np.ndarray  # whether a router picked otherwise than the truth's
    their_unlike: np.ndarray
    apart: np.ndarray  # whether this or an earlier row of the prompt has unlike routers

    @classmethod
    def of(cls, truth: Run, own: Run, theirs: Run, length: int) -> Rows:
        best, own_best, their_best = (run.logits.argmax(axis=-1) for run in (truth, own, theirs))
        own_unlike, their_unlike = unlike(truth, own), unlike(truth, theirs)
        apart = np.logical_or.accumulate((own_unlike | their_unlike).reshape(-1, length), axis=1).ravel()
        return cls(
            divergences(truth, own), divergences(truth, theirs), own_best == best, their_best == best,
            own_unlike, their_unlike, apart,
        )  # fmt: skip


def summary(parts: list[Rows]) -> dict[str, Any]:
    together = {name: np.concatenate([getattr(part, name) for part in parts]) for name in Rows.__dataclass_fields__}
    rows = Rows(**together)
    like = ~rows.apart
    own, theirs = rows.own[like], rows.theirs[like]
    low, high = interval(own, theirs)
    return {
        "ratio": float(own.mean() / theirs.mean()),
        "ratio_5_percent": low,
        "ratio_95_percent": high,
        "kl_mean": float(own.mean()),
        "kl_max": float(own.max()),
        "peer_kl_mean": float(theirs.mean()),
        "peer_kl_max": float(theirs.max()),
        "ratio_of_all_rows": float(rows.own.mean() / rows.theirs.mean()),
        "greedy": float(rows.own_greedy[like].mean()),
        "peer_greedy": float(rows.their_greedy[like].mean()),
        "rows": len(rows.own),
        "rows_apart": int(rows.apart.sum()),
        "unlike_rows": int(rows.own_unlike.sum()),
        "peer_unlike_rows": int(rows.their_unlike.sum()),
    }


def table(rows: list[dict[str, Any]]) -> str:
    heads = (
        "Family", "File", "Ratio (5–95 %)", "KL mean, max", "llama.cpp's", "Same greedy token", "llama.cpp's",
        "Tokens", "Unlike routers", "llama.cpp's", "Apart", "Ratio of all rows", "Oracle", "sha256",
    )  # fmt: skip
    lines = ["| " + " | ".join(heads) + " |", "|---|---|" + "--:|" * (len(heads) - 3) + "---|"]
    for row in rows:
        cells = (
            row["family"],
            row["file"],
            f"**{row['ratio']:.3f}** ({row['ratio_5_percent']:.3f}–{row['ratio_95_percent']:.3f})",
            f"{row['kl_mean']:.2e}, {row['kl_max']:.1e}",
            f"{row['peer_kl_mean']:.2e}, {row['peer_kl_max']:.1e}",
            f"{row['greedy']:.2%}",
            f"{row['peer_greedy']:.2%}",
            str(row["rows"]),
            str(row["unlike_rows"]),
            str(row["peer_unlike_rows"]),
            str(row["rows_apart"]),
            f"{row['ratio_of_all_rows']:.3f}",
            "alone" if row["oracle_off"] is None else f"{row['oracle_off']:.0e}",
            " ".join(digest[:12] for digest in row["sha256"]),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def faults(row: dict[str, Any]) -> list[str]:
    """What a row breaks of what is promised."""
    found = []
    if not row["ratio"] <= LIMITS[row["file"]]:
        found.append(f"{row['family']} {row['file']}: {row['ratio']:.3f} times llama.cpp's divergence")
    if not row["peer_kl_mean"] <= SAME_MODEL[row["file"]]:
        found.append(
            f"{row['family']} {row['file']}: llama.cpp reads another model in the file, {row['peer_kl_mean']:.1e}"
        )
    if (row["oracle_off"] or 0.0) > ORACLE_TOLERANCE:
        found.append(f"{row['family']}: the oracle is {row['oracle_off']:.1e} off transformers")
    return found


def in_its_own_process(family: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of one family, none when it failed; its sizes are its own, and a fault there ends no other."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.json"
        command = [sys.executable, __file__, family, "--json", str(path)]
        for name in ("peer", "seeds", "tokens", "length", "threads", "kamado", "keep"):
            if (value := getattr(options, name)) is not None:
                command += [f"--{name}", str(value)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        rows = json.loads(path.read_text(encoding="utf-8"))["results"] if path.is_file() else []
    shown = ", ".join(format(row["ratio"], ".3f") for row in rows) or f"failed\n{result.stderr[-1500:]}"
    print(f"{family}: {shown}", file=sys.stderr, flush=True)
    return rows


def merged(path: Path | None, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, and those of other families that the file at `path` has already, by family."""
    families = {row["family"] for row in rows}
    kept = json.loads(path.read_text(encoding="utf-8"))["results"] if path is not None and path.is_file() else []
    return sorted([*(row for row in kept if row["family"] not in families), *rows], key=lambda row: row["family"])


def put_into(page: Path, text: str) -> None:
    """Replaces what is between the page's marks."""
    before, begin, rest = page.read_text(encoding="utf-8").partition("<!-- results begin -->\n")
    _, end, after = rest.partition("<!-- results end -->")
    assert end, f"{page} has no marks for the results"
    page.write_text(f"{before}{begin}\n{text}\n\n{end}{after}", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="model_type; all when none is given")
    parser.add_argument("--peer", type=Path, required=True, help="folder with llama.cpp's programs and peer-logits")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=512, help="of a seed, in prompts of --length")
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="folder that the files are left in")
    parser.add_argument("--kamado", default=shutil.which("kamado") or "kamado", help="for its version")
    parser.add_argument("--json", type=Path, help="results; rows of other families stay in it")
    parser.add_argument("--page", type=Path, help="a page to put the table of --json into")
    options = parser.parse_args()
    only = options.families[0] if len(options.families) == 1 else ""
    known = wide_families(only)
    if wrong := set(options.families) - set(known):
        sys.exit(f"no family {', '.join(sorted(wrong))}; there are {', '.join(known)}")
    programs = [tool(options.peer, name) for name in ("peer-logits", "llama-quantize", "llama-perplexity")]
    about = circumstances(options.kamado, programs, [])
    wanted = options.families or list(known)
    found = []
    rows: list[dict[str, Any]] = []
    for family in wanted:
        compared = compare(family, options) if only else in_its_own_process(family, options)
        rows += [{**row, "date": about["date"], "commit": about["commit"]} for row in compared]
        found += [fault for row in compared for fault in faults(row)] if compared else [f"{family}: not compared"]
        write_json({**about, "results": merged(options.json, rows)}, options.json)
    shown = table(merged(options.json, rows))
    print(shown)
    if options.page:
        put_into(options.page, shown)
    print("\n".join(found), file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
