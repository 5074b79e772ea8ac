#!/usr/bin/env python3
"""How long a short question after a long text waits for its first token: the text computed before by the same process,
read back from the prefix store by a new one whose files are not in the page cache, and computed anew.

    first_token_after.py MODEL.gguf… [--text 4000] [--question 20] [--runs 5] [--most-ms 150] [--json out.json]

The model is loaded before time is taken. Each question has other tokens, and every one must find all of the text and
the answer to it. The exit code is 1 when a median, in memory or from the store, is above `--most-ms`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from peers import called_object, circumstances, idle_share, write_json

ANSWER_TOKENS = 8
CAP = "16GiB"


def worker(request: dict[str, Any]) -> dict[str, Any]:
    """What one process does: loads, computes the text if it is asked to, then asks."""
    import kamado

    rng = random.Random(1)
    with kamado.load(
        request["model"],
        kv=request["kv"],
        threads=request["threads"],
        context=request["text"] + request["question"] + 4 * ANSWER_TOKENS,
        kv_tokens=2 * request["text"] + 1024,
        prefix_cache=CAP if request["keeps"] else None,
    ) as model:
        text = rng.choices(range(10, min(model.vocab_size, 30_000)), k=request["text"])
        greedy: dict[str, Any] = {"temperature": 0.0}
        if request["computes"]:
            answer = [piece.token for piece in model.generate(text, max_tokens=ANSWER_TOKENS, **greedy)]
        else:
            answer = request["answer"]
        samples = []
        for seed in request["seeds"]:
            tokens = [*text, *answer, *random.Random(seed).choices(text, k=request["question"])]
            began = time.perf_counter()
            generation = model.generate(tokens, max_tokens=1, **greedy)
            next(generation)
            seconds = time.perf_counter() - began
            generation.close()
            samples.append({"seconds": seconds, "computed": len(tokens) - generation.usage.num_reused_tokens})
        stats = model.stats
        owners = {name: stats.bytes_by_owner.get(name, 0) for name in ("records", "kv")}
        found = {"answer": answer, "samples": samples, "records": stats.records, "bytes": owners}
        return {**found, "store": stats.prefix_store}


def in_process(request: dict[str, Any], home: str) -> dict[str, Any]:
    """Runs `worker` in a process of its own, with a prefix store in `home`."""
    run = [sys.executable, __file__, "--worker", json.dumps(request)]
    environment = {**os.environ, "XDG_CACHE_HOME": home}
    return called_object(run, environment)


def forget(folder: Path) -> None:
    """Nothing of the folder's files stays in the page cache."""
    for path in folder.rglob("*.kv"):
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def measure(options: argparse.Namespace, model: Path) -> dict[str, Any]:
    """One model's row."""
    base = {"model": str(model), "kv": options.kv, "threads": options.threads, "text": options.text,
            "question": options.question}  # fmt: skip
    seeds = list(range(options.runs))
    with tempfile.TemporaryDirectory(dir=options.scratch) as home:
        filled = in_process({**base, "keeps": True, "computes": True, "seeds": seeds}, home)
        stored = []
        for seed in seeds:
            forget(Path(home))
            again = {**base, "keeps": True, "computes": False, "answer": filled["answer"], "seeds": [100 + seed]}
            found = in_process(again, home)
            stored += found["samples"]
        anew = in_process({**base, "keeps": False, "computes": False, "answer": filled["answer"], "seeds": [0]}, home)
    row: dict[str, Any] = {**base, "model": model.name, "records": filled["records"], "bytes": filled["bytes"]}
    for name, samples in (("memory", filled["samples"]), ("store", stored), ("anew", anew["samples"])):
        most = max(sample["computed"] for sample in samples)
        if name != "anew" and most > options.question + ANSWER_TOKENS:
            sys.exit(
                f"{model.name}: {most} tokens were computed again ({name}), and the question has {options.question}"
            )
        median = 1000 * statistics.median(sample["seconds"] for sample in samples)
        row[name] = {"median_ms": round(median, 2), "samples": samples}
    row["holds"] = max(row["memory"]["median_ms"], row["store"]["median_ms"]) <= options.most_ms
    print(
        f"{model.stem:32} {options.kv:9} in memory {row['memory']['median_ms']:8.1f} ms   "
        f"from the store {row['store']['median_ms']:8.1f} ms   anew {row['anew']['median_ms']:9.1f} ms   "
        f"{'holds' if row['holds'] else 'MISSED'}",
        flush=True,
    )
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--kamado", default="kamado")
    parser.add_argument("--text", type=int, default=4000, help="tokens before the question")
    parser.add_argument("--question", type=int, default=20, help="tokens of the question")
    parser.add_argument("--kv", default="exact")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--most-ms", type=float, default=150.0)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--scratch", type=Path, help="folder for the store, on the disk to be measured")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(worker(json.loads(options.worker))))
        return 0
    document: dict[str, Any] = {"circumstances": circumstances(options.kamado, [], options.models)}
    document |= {"idle": idle_share(), "rows": [measure(options, model) for model in options.models]}
    write_json(document, options.json)
    return 0 if all(row["holds"] for row in document["rows"]) else 1


if __name__ == "__main__":
    sys.exit(main())
