"""Hashes of logits before and after a change that must not move a bit.

    python benchmarks/same_bits.py models FOLDER           # once: small random models of every family, both formats
    python benchmarks/same_bits.py record FOLDER before.json   # with the code before
    python benchmarks/same_bits.py record FOLDER after.json    # with the code after
    python benchmarks/same_bits.py compare before.json after.json

A row is a model, a tier, a KV preset, a budget (all in memory, or experts streamed through a third of their bytes) and
a chunking; its value is the sha256 over the logits of 64 steps: a prompt in chunks, then single tokens, beside a second
sequence every third step. Real models of the catalog that are there are recorded too, over a prompt of 600 tokens.
`models` needs the test requirements (torch, transformers, gguf).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

_ROOT = Path(__file__).resolve().parents[1]
REAL = ("smollm2:135m", "gemma3:270m", "qwen2.5-coder:1.5b", "minilm:l6")
TIERS = ("scalar", "avx2", "avx512")
PRESETS = ("f32", "exact", "safe", "balanced", "small", "k=2,v=4")
NUM_STEPS = 64


def make_models(folder: Path) -> None:
    """Writes every case of the parity tests as safetensors and, where it can be said in it, as GGUF."""
    sys.path.insert(0, str(_ROOT / "tests" / "models"))
    import gguf_export
    import model_cases

    folder.mkdir(parents=True, exist_ok=True)
    for case in model_cases.CASES:
        directory = folder / case.name
        model_cases.build_model(case).save_pretrained(directory)
        if case.gguf:
            gguf_export.export(directory, folder / f"{case.name}.gguf")


def runs(name: str, program: Any, tiers: list[str]) -> Iterator[tuple[str, dict[str, Any], int]]:
    """(row name, options of the executor, prompt tokens a step) of every way to run a program."""
    from kamado.plan.kv_pages import num_kv_layers
    from kamado.plan.kv_presets import parse_kv

    is_real = name in REAL
    seen = set()
    for tier in tiers:
        for preset in PRESETS:
            plan = parse_kv(preset, num_kv_layers(program)).for_program(program)
            key = (tier, plan.element, plan.bits)
            if key in seen or (is_real and tier == "scalar"):
                continue
            seen.add(key)
            is_coded = any(k for k, _ in plan.bits)
            kv = {"kv": plan.element, "kv_bits": list(plan.bits) if is_coded else None}
            kv["kv_reuse_points"] = 2 if is_coded else 0
            for threads, chunk in ((1, 40), (2, 7)) if not is_real else ((2, 512),):
                yield (
                    f"{tier} {preset} threads={threads} chunk={chunk}",
                    {**kv, "tier": tier, "num_threads": threads},
                    chunk,
                )
        if program.num_experts:
            expert_bytes = sum(
                ref.nbytes
                for op in program.ops
                if type(op).__name__ == "Experts"
                for part in (op.gate, op.up, op.down)
                for ref in part
            )
            options = {"kv": "f16", "tier": tier, "num_threads": 2, "expert_bytes": max(expert_bytes // 3, 4 << 20)}
            yield f"{tier} streamed", options, 40


def hash_of(program: Any, options: dict[str, Any], chunk: int, num_prompt: int) -> str:
    """sha256 over the logits of the prompt's last rows and of the steps after it."""
    from kamado.lower import build_executor

    rng = np.random.default_rng(20261130)
    vocab = min(program.vocab_size, 30_000)
    prompt, other = rng.integers(0, vocab, num_prompt + NUM_STEPS), rng.integers(0, vocab, NUM_STEPS)
    executor = build_executor(
        program, max_rows=max(chunk + 1, 512), max_logit_rows=2, max_kv_tokens=4096, max_sequences=3, **options
    )
    digest = hashlib.sha256()
    try:
        first, second = executor.create_sequence(), executor.create_sequence()
        at = 0
        while at < num_prompt:
            count = min(chunk, num_prompt - at)
            logits = executor.step(
                np.array([first], np.int32), np.array([count], np.int32),
                prompt[at : at + count].astype(np.int32), np.array([count - 1], np.int32),
                program.is_encoder,
            )  # fmt: skip
            at += count
        digest.update(np.ascontiguousarray(logits).tobytes())
        for i in range(0 if program.is_encoder else NUM_STEPS):
            with_other = i % 3 == 0
            tokens = [prompt[num_prompt + i], other[i]] if with_other else [prompt[num_prompt + i]]
            sequences = [first, second] if with_other else [first]
            logits = executor.step(
                np.array(sequences, np.int32), np.ones(len(sequences), np.int32),
                np.array(tokens, np.int32), np.arange(len(tokens), dtype=np.int32),
            )  # fmt: skip
            digest.update(np.ascontiguousarray(logits).tobytes())
    finally:
        executor.close()
    return digest.hexdigest()


def record(folder: Path, only: str | None) -> dict[str, str]:
    """All rows that this machine can run."""
    from kamado.files import open_checkpoint
    from kamado.library.store import Store
    from kamado.models import build_program
    from kamado.plan.machine import machine

    tiers = list(TIERS[: TIERS.index(machine().tier) + 1])
    files = {path.name: path for path in sorted(folder.iterdir()) if path.suffix == ".gguf" or path.is_dir()}
    for name in REAL:
        try:
            files[name] = Store().resolve(name)
        except Exception as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
    rows: dict[str, str] = {}
    for name, path in files.items():
        if only is not None and only not in name:
            continue
        program = build_program(open_checkpoint(path))
        num_prompt = 600 if name in REAL and not program.is_encoder else 40
        for row, options, chunk in runs(name, program, tiers):
            if program.is_encoder and chunk < num_prompt:
                continue
            rows[f"{name} {row}"] = hash_of(program, options, chunk, num_prompt)
        print(f"{name}: {len(rows)} rows", file=sys.stderr)
    return rows


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("models", "record", "compare"))
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path, nargs="?")
    parser.add_argument("--only", help="models whose name has this in it")
    arguments = parser.parse_args()
    if arguments.what == "models":
        make_models(arguments.first)
    elif arguments.what == "record":
        arguments.second.write_text(json.dumps(record(arguments.first, arguments.only), indent=1) + "\n")
    else:
        before, after = (json.loads(path.read_text()) for path in (arguments.first, arguments.second))
        unlike = [row for row in before if row in after and after[row] != before[row]]
        missing = [row for row in before if row not in after]
        for row in unlike:
            print(f"unlike: {row}")
        print(f"{len(before) - len(missing)} rows compared, {len(unlike)} unlike, {len(missing)} missing")
        return 1 if unlike or missing else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
