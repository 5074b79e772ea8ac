"""Tiny hand-made programs for tests of the native executor, their weights written to one raw file."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kamado import program as p
from kamado.files.types import Layout, TensorRef

VOCAB = 101


class TensorFile:
    """Appends tensors to a file at offsets that are multiples of 32, as GGUF has them."""

    def __init__(self, path: Path, seed: int = 0) -> None:
        self.path = path
        self.rng = np.random.default_rng(seed)
        path.write_bytes(b"\0" * 32)

    def add(self, name: str, values: NDArray[Any], layout: Layout = Layout.F32) -> TensorRef:
        data = encode(values.astype(np.float32), layout)
        with self.path.open("ab") as file:
            offset = file.tell()
            file.write(data + b"\0" * (-len(data) % 32))
        return TensorRef(name, self.path, offset, len(data), values.shape, layout)

    def matrix(self, name: str, rows: int, cols: int, layout: Layout = Layout.F32) -> TensorRef:
        """Random values that keep the size of what they multiply."""
        return self.add(name, self.rng.standard_normal((rows, cols)) / np.sqrt(cols), layout)

    def vector(self, name: str, length: int, around: float = 1.0) -> TensorRef:
        return self.add(name, around + 0.2 * self.rng.standard_normal(length))

    def experts(self, name: str, count: int, rows: int, cols: int, layout: Layout) -> tuple[TensorRef, ...]:
        return tuple(self.matrix(f"{name}.{i}", rows, cols, layout) for i in range(count))


def encode(values: NDArray[np.float32], layout: Layout) -> bytes:
    match layout:
        case Layout.F32:
            return values.astype("<f4").tobytes()
        case Layout.F16:
            return values.astype("<f2").tobytes()
        case Layout.Q4_K | Layout.Q6_K:
            return k_blocks(values, layout)
    import gguf

    quantised: NDArray[np.uint8] = gguf.quants.quantize(values, gguf.GGMLQuantizationType(int(layout)))
    return quantised.tobytes()


def k_blocks(values: NDArray[np.float32], layout: Layout) -> bytes:
    """Blocks of a K layout with random codes and small scales; the gguf package has no quantiser for these."""
    rng = np.random.default_rng(values.size)
    blocks = rng.integers(0, 256, (values.size // 256, layout.block_bytes), dtype=np.uint8)
    scale = np.float32(values.std() / (400.0 if layout is Layout.Q4_K else 1500.0)).astype("<f2").tobytes()
    if layout is Layout.Q4_K:
        blocks[:, 0:2] = np.frombuffer(scale, np.uint8)
        blocks[:, 2:4] = np.frombuffer((np.frombuffer(scale, "<f2") * np.float16(7)).tobytes(), np.uint8)
    else:
        blocks[:, 208:210] = np.frombuffer(scale, np.uint8)
    return blocks.tobytes()


def inv_freq(rot_dim: int, base: float = 10000.0) -> NDArray[np.float64]:
    return base ** (-np.arange(0, rot_dim, 2, dtype=np.float64) / rot_dim)


def dense(
    path: Path, *, hidden: int = 64, heads: int = 6, kv_heads: int = 2, head_dim: int = 16, ffn: int = 96,
    layers: int = 3, layout: Layout = Layout.F32, v_layout: Layout | None = None, seed: int = 1,
) -> p.Program:  # fmt: skip
    """Norms, biases, QK norm, both kinds of rope, a window, soft caps, a tied head: one of each feature."""
    file = TensorFile(path, seed)
    x, h = p.Buffer("x", hidden), p.Buffer("h", hidden)
    q, k, v = p.Buffer("q", heads * head_dim), p.Buffer("k", kv_heads * head_dim), p.Buffer("v", kv_heads * head_dim)
    attended, gate, up = p.Buffer("attended", heads * head_dim), p.Buffer("gate", ffn), p.Buffer("up", ffn)
    table = file.matrix("table", VOCAB, hidden, layout)
    ops: list[p.Op] = [p.Embed(x, table, scale=1.5)]
    for i in range(layers):
        weights = (
            file.matrix(f"q{i}", q.width, hidden, layout),
            file.matrix(f"k{i}", k.width, hidden, layout),
            file.matrix(f"v{i}", v.width, hidden, v_layout or layout),
        )
        ops += [
            p.Norm(h, x, file.vector(f"norm{i}", hidden), eps=1e-5),
            p.Linear((q, k, v), h, weights, (file.vector(f"bias{i}", q.width, 0.0), None, None)),
            p.Norm(q, q, file.vector(f"q_norm{i}", head_dim), group=head_dim),
            p.Norm(k, k, file.vector(f"k_norm{i}", head_dim, 0.0), group=head_dim, weight_offset=1.0),
            p.Rope(q, head_dim, inv_freq(head_dim - 4 * (i % 2)), interleaved=i % 2 == 0),
            p.Rope(k, head_dim, inv_freq(head_dim - 4 * (i % 2)), interleaved=i % 2 == 0),
            p.Attend(
                attended, q, k, v, i, heads, kv_heads, head_dim, head_dim, scale=head_dim**-0.5,
                window=40 if i == 1 else None, softcap=20.0 if i == 0 else None,
            ),
            p.Linear((h,), attended, (file.matrix(f"o{i}", hidden, attended.width, layout),)),
            p.Add(x, x, h),
            p.Norm(
                h, x, file.vector(f"ffn_norm{i}", hidden), kind="layer", bias=file.vector(f"ffn_bias{i}", hidden, 0.0)
            ),
            p.Linear((gate,), h, (file.matrix(f"gate{i}", ffn, hidden, layout),)),
            p.Linear((up,), h, (file.matrix(f"up{i}", ffn, hidden, layout),), (file.vector(f"up_bias{i}", ffn, 0.0),)),
            p.Gate(gate, gate, up, "silu" if i else "gelu_tanh"),
            p.Linear((h,), gate, (file.matrix(f"down{i}", hidden, ffn, layout),)),
            p.Add(x, x, h),
        ]  # fmt: skip
    ops += [p.Norm(h, x, file.vector("last_norm", hidden)), p.Head(h, table, scale=2.0, softcap=30.0)]
    return p.Program("dense", ops, layers, hidden, VOCAB, 4096)


def moe(
    path: Path, *, hidden: int = 64, experts: int = 8, top_k: int = 3, width: int = 48, layers: int = 2,
    layout: Layout = Layout.F32, down_layout: Layout | None = None, seed: int = 2,
) -> p.Program:  # fmt: skip
    """Attention and experts read the same norm (parallel), a shared expert, and a gate that cannot be fused."""
    file = TensorFile(path, seed)
    heads, head_dim = 2, hidden // 2
    x, h, out = p.Buffer("x", hidden), p.Buffer("h", hidden), p.Buffer("out", hidden)
    q, k, v, attended = (p.Buffer(name, hidden) for name in ("q", "k", "v", "attended"))
    logits, a, b, c = p.Buffer("router", experts), p.Buffer("a", width), p.Buffer("b", width), p.Buffer("c", width)
    ops: list[p.Op] = [p.Embed(x, file.matrix("table", VOCAB, hidden))]
    for i in range(layers):
        ops += [
            p.Norm(h, x, file.vector(f"norm{i}", hidden)),
            p.Linear((logits,), h, (file.matrix(f"router{i}", experts, hidden),)),
            p.Route(
                logits, experts, top_k, score=("softmax", "sigmoid", "topk_softmax")[i % 3], normalize=i % 2 == 0,
                bias=file.vector(f"router_bias{i}", experts, 0.0) if i else None, num_groups=4 if i else 1,
                top_groups=2 if i else 1, scale=1.25,
            ),
            p.Linear((q, k, v), h, tuple(file.matrix(f"{n}{i}", hidden, hidden, layout) for n in "qkv")),
            p.Rope(q, head_dim, inv_freq(head_dim), attention_factor=1.1),
            p.Rope(k, head_dim, inv_freq(head_dim), attention_factor=1.1),
            p.Attend(attended, q, k, v, i, heads, heads, head_dim, head_dim, scale=head_dim**-0.5),
            p.Experts(
                out, h, logits, file.experts(f"gate{i}", experts, width, hidden, layout),
                file.experts(f"up{i}", experts, width, hidden, layout),
                file.experts(f"down{i}", experts, hidden, width, down_layout or layout), "silu",
            ),
            p.Linear((a, b), h, tuple(file.matrix(f"{n}{i}", width, hidden, layout) for n in "ab")),
            p.Gate(c, a, None, "relu"),
            p.Add(c, c, b),
            p.Scale(c, c, 0.5),
            p.Softcap(c, c, 3.0),
            p.Linear((h,), c, (file.matrix(f"c{i}", hidden, width, down_layout or layout),)),
            p.Add(x, x, out),
            p.Add(x, x, h),
            p.Add(x, x, attended),
        ]  # fmt: skip
    ops.append(p.Head(x, file.matrix("head", VOCAB, hidden, layout), file.vector("head_bias", VOCAB, 0.0)))
    return p.Program("moe", ops, layers, hidden, VOCAB, 4096, experts, top_k)


def routing(path: Path, logits: NDArray[Any], **route: Any) -> p.Program:
    """Token r's router logits are row r of `logits`; its first results are the experts' weights, 0 where not picked."""
    num_experts = logits.shape[1]
    vocab = max(logits.shape)
    table = np.zeros((vocab, num_experts))
    table[: len(logits)] = logits
    file = TensorFile(path)
    ones, routed, out = p.Buffer("ones", num_experts), p.Buffer("logits", num_experts), p.Buffer("out", num_experts)
    bias = {name: file.add(name, values) for name, values in route.items() if name == "bias" and values is not None}
    first = np.eye(num_experts)
    inward = (file.add("one", first[:1]),) * num_experts  # expert e gives 1 at e
    downs = tuple(file.add(f"down.{e}", first[:, e : e + 1]) for e in range(num_experts))
    ops: list[p.Op] = [
        p.Embed(routed, file.add("table", table)),
        p.Embed(ones, file.add("ones", np.ones((1, num_experts))), index="first"),
        p.Route(routed, num_experts, **{**route, **bias}),
        p.Experts(out, ones, routed, inward, inward, downs, "none"),
        p.Head(out, file.add("head", np.eye(vocab, num_experts))),
    ]
    return p.Program("routing", ops, 0, num_experts, vocab, 64, num_experts, route["top_k"])


def random_tokens(count: int, seed: int = 0) -> list[int]:
    return [int(t) for t in np.random.default_rng(seed).integers(0, VOCAB, count)]


def step(
    executor: Any, batch: Iterable[tuple[int, list[int]]], rows: Iterable[int] | None = None
) -> NDArray[np.float32]:
    """One step over (sequence, tokens) pairs; a copy of the logits of `rows`, all of them when None."""
    batch = list(batch)
    tokens = [token for _, part in batch for token in part]
    logits = executor.step(
        np.array([sequence for sequence, _ in batch], np.int32),
        np.array([len(part) for _, part in batch], np.int32),
        np.array(tokens, np.int32),
        np.array(list(range(len(tokens)) if rows is None else rows), np.int32),
    )
    return np.array(logits, copy=True)


def check_chunks_and_company(
    executor: Any, tokens: list[int], expected: NDArray[np.float32], chunks: list[int], company: list[int], random: Any
) -> None:
    """Any chunking of `tokens`, with any other sequences in the same steps (320 rows), gives the `expected` logits."""
    sequence = executor.create_sequence()
    others = [executor.create_sequence() for _ in company]
    try:
        begin = 0
        for chunk in itertools.chain(chunks, itertools.repeat(300)):
            part = tokens[begin : begin + min(chunk, 300)]
            if not part:
                break
            batch = [(other, random_tokens(min(size, 320 - len(part)), random.randrange(99)))
                     for other, size in zip(others, company, strict=True)]  # fmt: skip
            batch = [(other, tokens_of_it) for other, tokens_of_it in batch if tokens_of_it]
            while sum(len(tokens_of_it) for _, tokens_of_it in batch) + len(part) > 320:
                batch.pop()
            at = random.randrange(len(batch) + 1)
            row = sum(len(tokens_of_it) for _, tokens_of_it in batch[:at])
            batch.insert(at, (sequence, part))
            wanted = sorted(random.sample(range(len(part)), min(len(part), 5)))
            logits = step(executor, batch, [row + i for i in wanted])
            assert logits.tobytes() == expected[[begin + i for i in wanted]].tobytes()
            begin += len(part)
    finally:
        for used in [sequence, *others]:
            executor.free_sequence(used)
