#!/usr/bin/env python3
"""Float simulation of the compressed KV cache on real models: what the codec itself costs, without our kernels.

    kv_simulation.py MODEL.gguf… [--codes 4,4 3,3 2,2] [--text FILE…] [--json OUT] [--per-token OUT.npz]

Rows that the JSON file holds already are not computed again, so a run that was stopped goes on where it was.

The codec is written here a second time, in numpy and from docs/kv-codec.md, the model runs in transformers with float32
weights. A whole text goes through at once: a query at position p reads its own page and the one before as f16, older
pages as codes, page 0's first tokens exactly; layers with a sliding window stay exact. Printed: the rise of perplexity
and the mean KL divergence of the output against the f16 cache, from token --skip on. `kv_quality.py` holds the engine
against these figures.

A variant follows the bits after a colon: `4,4:uncentred`, `4,4:nosinks`, `3,3:shrunk` (scale of least error in place of
the unbiased one), `4,4:onenorm` (one norm a vector, no gains), `3,3:sketch` (keys: one bit less and a sign sketch of
the residual, TurboQuant's product variant).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from kamado.engine.measure.kv_measure import TEXTS, builtin_texts
from kamado.files import open_checkpoint
from kamado.text.tokenizer import load_tokenizer

Floats = NDArray[np.float32]

PAGE_TOKENS = 128
SINK_TOKENS = 4
GROUP_DIMS = 32
LEVELS = {1: [63], 2: [19, 63], 3: [7, 22, 39, 63], 4: [3, 9, 15, 22, 29, 37, 48, 63]}
LEVEL_UNIT = {1: 63 / 0.7979, 2: 63 / 1.5104, 3: 63 / 2.1520, 4: 63 / 2.7326}
GAINS = np.rint(255 * 2.0 ** ((np.arange(16) - 15) / 12)).astype(np.float32)
TOP_GAIN = 11
VARIANTS = ("", "uncentred", "nosinks", "shrunk", "onenorm", "sketch")


@dataclass(frozen=True)
class Codes:
    """Bits of keys and values, and the variant of the codec."""

    k_bits: int
    v_bits: int
    variant: str = ""

    @classmethod
    def parse(cls, text: str) -> Codes:
        """`4,3` or `4,3:variant`."""
        bits, _, variant = text.partition(":")
        k_bits, v_bits = (int(part) for part in bits.split(","))
        if k_bits not in (1, 2, 3, 4, 8) or v_bits not in (1, 2, 3, 4, 8) or variant not in VARIANTS:
            raise ValueError(f"no codec {text!r}: bits are 1, 2, 3, 4 or 8, variants {', '.join(VARIANTS[1:])}")
        return cls(k_bits, v_bits, variant)

    def __str__(self) -> str:
        return f"{self.k_bits},{self.v_bits}" + (f":{self.variant}" if self.variant else "")


def paley(order: int) -> Floats:
    """The Hadamard matrix of order 12 or 20 (Paley's first construction)."""
    q = order - 1
    squares = {x * x % q for x in range(1, q)}
    matrix = np.ones((order, order), np.float32)
    for i in range(1, order):
        for j in range(order):
            matrix[i, j] = 1 if i == j or (j > 0 and (i - j) % q in squares) else -1
    return matrix


@cache
def rotation(dim: int) -> Floats:
    """R [dim][dim] of the codec: H diag(signs) / sqrt(dim)."""
    order = {80: 20, 96: 12, 192: 12}.get(dim, 1)
    matrix = paley(order) if order > 1 else np.ones((1, 1), np.float32)
    power = dim // order
    walsh = np.ones((1, 1), np.float32)
    while len(walsh) < power:
        walsh = np.block([[walsh, walsh], [walsh, -walsh]]).astype(np.float32)
    state, signs = 0x6B616D61646F, []
    for _ in range(dim):  # splitmix64
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        signs.append(-1.0 if (z ^ (z >> 31)) & 1 else 1.0)
    return (np.kron(matrix, walsh) * np.array(signs) / math.sqrt(dim)).astype(np.float32)


def f16(x: Floats) -> Floats:
    """Rounded to f16 and clamped to its range."""
    return np.clip(x, -65504, 65504).astype(np.float16).astype(np.float32)


@cache
def level_table(bits: int) -> Floats:
    """Level by twice the magnitude, rounded down: all borders are multiples of a half."""
    levels = np.array(LEVELS[bits], np.float32)
    return levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, np.arange(128) / 2, side="right")]


def nearest_levels(size: Floats, bits: int) -> Floats:
    """The level nearest to each magnitude, both in units of the integer levels."""
    return level_table(bits)[np.minimum(size * 2, 127).astype(np.uint8)]


def code_groups(x: Floats, bits: int, s: Floats) -> Floats:
    """gain * level of x [n][width]: the best of the even gains, then of its neighbours. s [n]: the vectors' unit."""
    size = np.abs(x)

    def attempt(number: NDArray[np.int64]) -> tuple[Floats, Floats]:
        a = s * GAINS[number]
        levels = nearest_levels(size / a[:, None], bits)
        error = size - a[:, None] * levels
        return np.einsum("ij,ij->i", error, error), GAINS[number][:, None] * levels

    best = np.zeros(len(x), np.int64)
    error, coded = attempt(best)
    for even in range(2, 16, 2):
        other, other_coded = attempt(np.full(len(x), even))
        better = other < error
        best[better], error[better], coded[better] = even, other[better], other_coded[better]
    centre = best.copy()
    for step in (-1, 1):
        other, other_coded = attempt(np.maximum(centre + step, 0))
        better = other < error
        error[better], coded[better] = other[better], other_coded[better]
    return coded * np.sign(x + 1e-30)


def code_uniform(x: Floats, s: Floats) -> Floats:
    """gain * code of x [n][width] in steps that reach +-127 at the smallest sufficient gain."""
    top = np.abs(x).max(1)
    number = (s[:, None] * GAINS[:-1] * 127 < top[:, None]).sum(1)
    a = s * GAINS[number]
    return GAINS[number][:, None] * np.clip(np.rint(x / a[:, None]), -127, 127)


def code_vectors(x: Floats, bits: int, variant: str = "") -> Floats:
    """x [n][dim] in the rotated space -> what its codes stand for."""
    if variant == "onenorm":
        unit = np.linalg.norm(x, axis=1, keepdims=True) / math.sqrt(x.shape[1]) / LEVEL_UNIT[bits] + 1e-30
        return f16(unit * LEVEL_UNIT[bits]) / LEVEL_UNIT[bits] * nearest_levels(np.abs(x) / unit, bits) * np.sign(x)
    groups = [x[:, i : i + GROUP_DIMS] for i in range(0, x.shape[1], GROUP_DIMS)]
    if bits == 8:
        top = np.abs(x).max(1)
        s = np.where(top > 1e-20, top / (127 * 255), 1).astype(np.float32)
        coded = np.concatenate([code_uniform(group, s) for group in groups], 1)
    else:
        top = np.max([np.sqrt((group**2).mean(1)) for group in groups], 0)
        s = np.where(top > 1e-20, top / (LEVEL_UNIT[bits] * GAINS[TOP_GAIN]), 1).astype(np.float32)
        coded = np.concatenate([code_groups(group, bits, s) for group in groups], 1)
    products, norms, squares = (x * coded).sum(1), (x * x).sum(1), (coded * coded).sum(1)
    scale = products / squares if variant == "shrunk" else norms / np.where(products > 0, products, 1)
    scale = f16(np.where(top > 1e-20, scale, 0) * 1024) / 1024
    return (coded * scale[:, None]).astype(np.float32)


@cache
def sketch_matrix(dim: int) -> Floats:
    """The Gaussian matrix of the sign sketch, independent of the rotation."""
    return np.random.default_rng(20261122).standard_normal((dim, dim)).astype(np.float32)


def sketch_vectors(x: Floats, bits: int) -> Floats:
    """bits - 1 bits of Lloyd-Max with one norm, and the signs of a sketch of the residual with its norm."""
    coarse = code_vectors(x, bits - 1, "onenorm")
    matrix, dim = sketch_matrix(x.shape[1]), x.shape[1]
    residual = x - coarse
    signs = np.where(residual @ matrix.T >= 0, 1, -1).astype(np.float32)
    length = f16(np.linalg.norm(residual, axis=1, keepdims=True).astype(np.float32))
    return coarse + length * np.float32(math.sqrt(math.pi / 2) / dim) * (signs @ matrix)


def code_pages(x: Floats, bits: int, is_key: bool, variant: str) -> Floats:
    """x [heads][pages][128][dim], f16 values -> what is read back of it."""
    dim = x.shape[-1]
    matrix = rotation(dim)
    rotated = x @ matrix.T
    mean: Floats | np.float32 = np.float32(0)
    if is_key and variant != "uncentred":
        first = 0 if variant == "nosinks" else SINK_TOKENS
        mean = x.mean(2, keepdims=True)
        mean[:, :1] = x[:, :1, first:].mean(2, keepdims=True)
        mean = f16(mean @ matrix.T)
    flat = (rotated - mean).reshape(-1, dim).astype(np.float32)
    coded = sketch_vectors(flat, bits) if variant == "sketch" and is_key else code_vectors(flat, bits, variant)
    out = ((coded.reshape(x.shape) + mean) @ matrix).astype(np.float32)
    if variant != "nosinks":
        out[:, 0, :SINK_TOKENS] = x[:, 0, :SINK_TOKENS]
    return out


class PagedAttention:
    """The attention function given to transformers; `codes` is None for the exact f16 cache."""

    def __init__(self, is_interleaved: bool) -> None:
        """`is_interleaved`: the file has the pairs that positions turn beside each other, transformers half a head
        apart. Coding them in the file's order makes the same codes as the engine, not only as good ones."""
        self.codes: Codes | None = None
        self.is_interleaved = is_interleaved

    def read_back(self, x: torch.Tensor, bits: int, is_key: bool) -> torch.Tensor:
        """x [heads][tokens][dim]: whole pages as codes, the rest zero (never read)."""
        assert self.codes is not None
        heads, tokens, dim = x.shape
        pages = max(tokens // PAGE_TOKENS - 1, 0)
        out = torch.zeros_like(x)
        if pages:
            whole = x[:, : pages * PAGE_TOKENS].reshape(heads, pages, PAGE_TOKENS, dim).numpy()
            order = np.arange(dim)
            if is_key and self.is_interleaved:
                order = order.reshape(2, dim // 2).T.reshape(dim)
            coded = np.empty_like(whole)
            coded[..., order] = code_pages(whole[..., order], bits, is_key, self.codes.variant)
            out[:, : pages * PAGE_TOKENS] = torch.from_numpy(coded.reshape(heads, -1, dim))
        return out

    def __call__(
        self,
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        _mask: Any,
        scaling: float | None = None,
        **options: Any,
    ) -> tuple[torch.Tensor, None]:
        """query [1][heads][tokens][dim], key and value [1][kv_heads][tokens][dim] -> [1][tokens][heads][dim]."""
        group, tokens = query.shape[1] // key.shape[1], query.shape[2]
        scale = scaling if scaling is not None else query.shape[-1] ** -0.5
        k, v = (x[0].clamp(-65504, 65504).half().float() for x in (key, value))
        position = torch.arange(tokens)
        hidden = position[None, :] > position[:, None]
        window = options.get("sliding_window") or getattr(module, "sliding_window", None)
        if window:
            hidden |= position[:, None] - position[None, :] >= window
        codes = None if window else self.codes
        if codes is not None:
            is_old = position[:, None] // PAGE_TOKENS - position[None, :] // PAGE_TOKENS >= 2
            k_old, v_old = self.read_back(k, codes.k_bits, True), self.read_back(v, codes.v_bits, False)
        out = torch.empty_like(query[0])
        for head in range(query.shape[1]):
            shared = head // group
            scores = query[0, head] @ k[shared].T
            if codes is not None:
                scores = torch.where(is_old, query[0, head] @ k_old[shared].T, scores)
            weights = torch.softmax((scores * scale).masked_fill(hidden, -torch.inf), -1)
            if codes is None:
                out[head] = weights @ v[shared]
            else:
                out[head] = (weights * ~is_old) @ v[shared] + (weights * is_old) @ v_old[shared]
        return out.transpose(0, 1)[None], None


def default_texts() -> dict[str, str]:
    """The package's own texts: those that `kamado kv` and `kv_quality` measure on."""
    return dict(sorted(zip(TEXTS, builtin_texts(), strict=True)))


class Subject:
    """One model with its tokenizer."""

    def __init__(self, path: Path) -> None:
        checkpoint = open_checkpoint(path)
        self.attention = PagedAttention(is_interleaved=checkpoint.architecture == "llama")
        transformers.AttentionInterface.register("kamado_pages", self.attention)
        options: dict[str, Any] = {"gguf_file": path.name}
        source = checkpoint.tokenizer  # our own, so that the engine scores the very same tokens
        if source is None:
            sys.exit(f"{path.name} has no tokenizer")
        self.tokenizer = load_tokenizer(source)
        config = transformers.AutoConfig.from_pretrained(path.parent, **options)
        self.model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        # from_pretrained would want accelerate, which has nothing to do here.
        loaded = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=self.model)["tensors"]
        missing = self.model.load_state_dict(loaded, strict=False).missing_keys
        if [name for name in missing if name != "lm_head.weight"]:
            sys.exit(f"{path.name} lacks {', '.join(missing)}")
        self.model.tie_weights()
        self.model.set_attn_implementation("kamado_pages")
        self.model.eval()

    def hidden(self, tokens: list[int], codes: Codes | None) -> torch.Tensor:
        """What the head reads, [tokens][width]."""
        self.attention.codes = codes
        with torch.inference_mode():
            result = self.model.model(torch.tensor([tokens]), use_cache=False)
        return result.last_hidden_state[0]

    def log_probabilities(self, hidden: torch.Tensor, first: int) -> Iterator[torch.Tensor]:
        """Blocks of 128 rows from row `first` to the last but one."""
        for at in range(first, len(hidden) - 1, 128):
            with torch.inference_mode():
                yield torch.log_softmax(self.model.lm_head(hidden[at : min(at + 128, len(hidden) - 1)]), -1)


def compare(
    subject: Subject, tokens: list[int], exact: torch.Tensor, coded: torch.Tensor, skip: int
) -> tuple[dict[str, Any], NDArray[np.float64]]:
    """KL divergence and perplexities over tokens `skip` + 1 … last; beside them the divergence of each token."""
    divergences, losses, exact_losses = [], [], []
    rows = zip(subject.log_probabilities(exact, skip), subject.log_probabilities(coded, skip), strict=True)
    at = skip + 1
    for p, q in rows:
        target = torch.tensor(tokens[at : at + len(p)])[:, None]
        at += len(p)
        divergences.append((p.exp() * (p - q)).sum(-1))
        exact_losses.append(-p.gather(1, target))
        losses.append(-q.gather(1, target))
    divergence = torch.cat(divergences)
    loss, exact_loss = (torch.cat(x).double().mean().item() for x in (losses, exact_losses))
    row = {
        "kld": divergence.double().mean().item(),
        "kld_error": (divergence.double().std() / math.sqrt(len(divergence))).item(),
        "kld_p99": divergence.quantile(0.99).item(),
        "perplexity": math.exp(loss),
        "exact_perplexity": math.exp(exact_loss),
        "rise": math.exp(loss - exact_loss) - 1,
    }
    return row, divergence.double().numpy()


def main() -> int:
    """Prints one row a model, text and codec."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--codes", nargs="+", type=Codes.parse, default=[Codes(4, 4), Codes(3, 3), Codes(2, 2)])
    parser.add_argument("--text", nargs="+", type=Path, help="files in place of the package's texts")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--skip", type=int, default=512, help="first position that is scored")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--per-token", type=Path, help="npz of every token's divergence, for paired errors")
    options = parser.parse_args()
    texts = {path.stem: path.read_text("utf-8") for path in options.text} if options.text else default_texts()
    results: list[dict[str, Any]] = []
    if options.json and options.json.exists():
        document = json.loads(options.json.read_text())
        if document["skip"] != options.skip:
            sys.exit(f"{options.json} was scored from token {document['skip']} on")
        results = document["results"]
    known = {(row["model"], row["text"], row["codes"], row["tokens"]) for row in results}
    per_token: dict[str, NDArray[np.float64]] = {}
    if options.per_token and options.per_token.exists():
        per_token = dict(np.load(options.per_token))
    print("| Model | Text | Codes | Rise of perplexity | KLD | its error | 99 % |\n|---|---|---|--:|--:|--:|--:|")
    for path in options.models:
        subject = Subject(path)
        for name, text in texts.items():
            tokens = subject.tokenizer.encode(text)[: options.tokens]
            if len(tokens) < options.tokens:
                sys.exit(f"{name} has {len(tokens)} tokens, {options.tokens} are wanted")
            missing = [codes for codes in options.codes if (path.name, name, str(codes), len(tokens)) not in known]
            exact = subject.hidden(tokens, None) if missing else torch.zeros(0)
            for codes in missing:
                row, divergences = compare(subject, tokens, exact, subject.hidden(tokens, codes), options.skip)
                print(
                    f"| {path.stem} | {name} | {codes} | {100 * row['rise']:+.2f} % | {row['kld']:.5f} | "
                    f"{row['kld_error']:.5f} | {row['kld_p99']:.4f} |",
                    flush=True,
                )
                results.append({"model": path.name, "text": name, "codes": str(codes), "tokens": len(tokens), **row})
                if options.per_token:
                    per_token[f"{path.name}/{name}/{codes}"] = divergences
                    np.savez_compressed(options.per_token, **per_token)
                if options.json:
                    document = {"skip": options.skip, "results": results}
                    options.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
