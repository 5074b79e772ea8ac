#!/usr/bin/env python3
"""What a fresh installation must be able to do, without the network: run by the Python that Kamado was installed for.

A byte-level tokenizer is written by hand, a tiny mixture-of-experts model is made around it, and every command that
needs no download is run on it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

BYTES = 256
TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def byte_alphabet() -> list[str]:
    """GPT-2's printable stand-in for each byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(BYTES)]


def write_donor(path: Path) -> None:
    """A GGUF file with a tokenizer and one small tensor."""
    import numpy as np

    from kamado.files.gguf_writer import GgufWriter
    from kamado.files.types import Layout

    tokens = [*byte_alphabet(), "<|start|>", "<|end|>", "th"]
    writer = GgufWriter("llama")
    writer.add("tokenizer.ggml.model", "gpt2")
    writer.add("tokenizer.ggml.pre", "gpt-2")
    writer.add("tokenizer.ggml.tokens", tokens)
    writer.add("tokenizer.ggml.token_type", [1] * BYTES + [3, 3, 1])  # 3: control
    writer.add("tokenizer.ggml.merges", ["t h"])
    writer.add("tokenizer.ggml.bos_token_id", BYTES)
    writer.add("tokenizer.ggml.eos_token_id", BYTES + 1)
    writer.add("tokenizer.ggml.add_bos_token", False)
    writer.add("tokenizer.chat_template", TEMPLATE)
    writer.add_tensor("token_embd.weight", (len(tokens), 32), Layout.F32)
    with writer.open(path) as sink:
        sink.write("token_embd.weight", np.zeros((len(tokens), 32), np.float32))


def kamado(*arguments: str | int | Path) -> str:
    """stdout of `python -m kamado …`; ends the smoke test when it fails."""
    words = [sys.executable, "-I", "-m", "kamado", *map(str, arguments)]
    result = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300)
    if result.returncode != 0:
        sys.exit(f"kamado {' '.join(words[4:])}: exit code {result.returncode}\n{result.stdout}{result.stderr}")
    return result.stdout


def check(condition: bool, text: str) -> None:
    if not condition:
        sys.exit(f"smoke: {text}")


def main() -> None:
    version = kamado("--version")
    print(version.strip())
    flags = set(Path("/proc/cpuinfo").read_text().split())
    if {"avx2", "fma", "f16c"} <= flags:  # a run-time library that looks at no processor would leave the scalar tier
        check("avx2" in version, "this processor has AVX2, but the AVX2 kernels are not found")
    with tempfile.TemporaryDirectory() as name:
        donor, model = Path(name) / "donor.gguf", Path(name) / "tiny.gguf"
        write_donor(donor)
        kamado(
            "synth", model, "--family", "qwen3moe", "--tokenizer-from", donor, "--layers", 2, "--hidden", 256,
            "--heads", 4, "--kv-heads", 2, "--head-dim", 32, "--experts", 4, "--top-k", 2, "--expert-width", 256,
            "--context", 1024, "--layout", "q4_k_m",
        )  # fmt: skip
        greedy = ("--temperature", 0, "--max-tokens", 12)
        first = kamado("run", model, "Why is the sky blue?", *greedy, "--threads", 1)
        second = kamado("run", model, "Why is the sky blue?", *greedy, "--threads", 2)
        check(first == second and first.strip() != "", f"one and two threads answer differently: {first!r}, {second!r}")
        check("qwen3moe" in kamado("show", model, "--program"), "show --program does not name the family")
        check(json.loads(kamado("plan", model, "--json"))["fits"] is True, "a tiny model does not fit")
        bench = json.loads(kamado("bench", model, "--prefill", 64, "--decode", 8, "--depth", "0,512", "--json"))
        kinds = [(result["kind"], result["depth"]) for result in bench["results"]]
        check(kinds == [("prefill", 0), ("decode", 0), ("decode", 512)], f"bench printed {kinds}")
        text = Path(name) / "text"
        text.write_text("the hearth keeps the house warm " * 40)
        score = json.loads(kamado("perplexity", model, text, "--context", 128, "--json"))
        check(score["perplexity"] > 1, f"perplexity {score}")
        import kamado as library

        with library.load(model, context=256) as loaded:
            answer = "".join(piece.text for piece in loaded.generate("the ", max_tokens=4, temperature=0))
            check(loaded.stats.tokens["decode"] > 0, "the library counted no token")
            print(f"library: {answer!r}, peak {loaded.stats.peak_bytes / 1e6:.0f} MB")
    print("smoke: passed")


if __name__ == "__main__":
    main()
