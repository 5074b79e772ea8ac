"""Shapes of synthetic models: published sizes of each family, and the metadata and tensors that make such a file.

Names and keys are those of llama.cpp's converter, so that the files load there too; so are the layouts that its
quantiser gives each tensor of a Q4_K_M file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from ..errors import UsageError
from ..files.types import Layout

Kind = Literal["embedding", "ones", "out_norm", "bias", "inward", "outward", "router", "head"]


@dataclass(frozen=True, slots=True)
class Shape:
    """Everything that sizes one model. `ffn` is the dense width; `experts` of 0 means a dense model."""

    architecture: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int = 0
    experts: int = 0
    top_k: int = 0
    expert_width: int = 0
    context: int = 32768
    rope_base: float = 1e6
    eps: float = 1e-6
    tied: bool = False
    has_bias: bool = False  # on q, k and v
    qk_norm: Literal["", "head", "full"] = ""
    has_post_norms: bool = False
    window: int = 0
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_divisor: float = 0.0  # above 0: a family of multipliers, whose keys are written
    states_head_dim: bool = False  # the converter writes key_length although it equals hidden / heads
    states_rope: bool = False  # the converter writes how many values of a head are turned, and the vocabulary's size


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """One tensor to be written. `layer` is -1 outside the blocks."""

    name: str
    shape: tuple[int, ...]
    layout: Layout
    kind: Kind
    layer: int = -1


# Qwen3-30B-A3B, OLMoE-1B-7B, Granite-3.0-1B-A400M, Llama-3-8B, Mixtral-8x7B, Qwen2.5-1.5B, Qwen3-1.7B, Gemma-3-1B
SHAPES: Mapping[str, Shape] = {
    "qwen3moe": Shape(
        "qwen3moe", 2048, 48, 32, 4, 128, ffn=6144, experts=128, top_k=8, expert_width=768, context=40960,
        qk_norm="head", states_head_dim=True,
    ),
    "olmoe": Shape(
        "olmoe", 2048, 16, 16, 16, 128, experts=64, top_k=8, expert_width=1024, context=4096, rope_base=1e4, eps=1e-5,
        qk_norm="full",
    ),
    "granitemoe": Shape(
        "granitemoe", 1024, 24, 16, 8, 64, experts=32, top_k=8, expert_width=512, context=4096, rope_base=1e4,
        tied=True, embedding_scale=12.0, residual_scale=0.22, logit_divisor=6.0, states_rope=True,
    ),
    "llama": Shape(
        "llama", 4096, 32, 32, 8, 128, ffn=14336, context=8192, rope_base=5e5, eps=1e-5, states_rope=True
    ),
    "mixtral": Shape(
        "llama", 4096, 32, 32, 8, 128, experts=8, top_k=2, expert_width=14336, eps=1e-5, states_rope=True
    ),
    "qwen2": Shape("qwen2", 1536, 28, 12, 2, 128, ffn=8960, tied=True, has_bias=True),
    "qwen3": Shape(
        "qwen3", 2048, 28, 16, 8, 128, ffn=6144, context=40960, tied=True, qk_norm="head", states_head_dim=True
    ),
    "gemma3": Shape(
        "gemma3", 1152, 26, 4, 1, 256, ffn=6912, tied=True, qk_norm="head", has_post_norms=True, window=512,
        states_head_dim=True,
    ),
}  # fmt: skip

# our layout names -> (layout, llama.cpp's file type)
LAYOUTS: Mapping[str, tuple[Layout, int]] = {
    "q4_k": (Layout.Q4_K, 14),
    "q4_k_m": (Layout.Q4_K, 15),
    "q6_k": (Layout.Q6_K, 18),
    "q5_0": (Layout.Q5_0, 8),
    "q8_0": (Layout.Q8_0, 7),
    "q4_0": (Layout.Q4_0, 2),
    "q4_1": (Layout.Q4_1, 3),
    "f16": (Layout.F16, 1),
    "bf16": (Layout.BF16, 32),
    "f32": (Layout.F32, 0),
}
# what llama.cpp takes instead when a row is no whole number of 256-value blocks
_FALLBACK = {Layout.Q4_K: Layout.Q5_0, Layout.Q5_K: Layout.Q5_1, Layout.Q6_K: Layout.Q8_0}
MAX_WIDTH = 1 << 20


def shape_of(family: str, changes: Mapping[str, int | None]) -> Shape:
    """The family's published shape with `changes` (names as in Shape; None leaves the family's own).

    Raises UsageError for unknown families, sizes that do not fit each other and settings the family has no use for.
    """
    base = SHAPES.get(family)
    if base is None:
        raise UsageError(f"no family {family!r} to synthesise; there are {', '.join(SHAPES)}")
    known = {f.name for f in fields(Shape)}
    given = {key: value for key, value in changes.items() if value is not None}
    assert given.keys() <= known, given.keys() - known
    if family == "llama" and given.get("experts"):
        base = SHAPES["mixtral"]
    for key, value in given.items():
        if not 0 < value <= MAX_WIDTH:
            raise UsageError(f"{key} of {value} is out of range: 1 to {MAX_WIDTH}")
    if not base.experts and (lost := given.keys() & {"experts", "top_k", "expert_width"}):
        raise UsageError(f"{family} is a dense family: {', '.join(sorted(lost))} has no meaning for it")
    if base.experts and not base.ffn and "ffn" in given:
        raise UsageError(f"{family} has experts in every layer: give expert_width, not ffn")
    if "head_dim" not in given and not base.states_head_dim and given.keys() & {"hidden", "heads"}:
        given["head_dim"] = given.get("hidden", base.hidden) // given.get("heads", base.heads)
    if "kv_heads" not in given and given.get("heads", base.heads) % base.kv_heads:
        given["kv_heads"] = given["heads"]
    shape = replace(base, **given)  # type: ignore[arg-type]
    if shape.heads % shape.kv_heads:
        raise UsageError(f"{shape.heads} heads cannot share {shape.kv_heads} key-value heads evenly")
    if shape.head_dim % 2:
        raise UsageError(f"a head dimension of {shape.head_dim} cannot be rotated: it must be even")
    if shape.experts and not 0 < shape.top_k <= shape.experts:
        raise UsageError(f"top_k of {shape.top_k} with {shape.experts} experts")
    return shape


def metadata_of(shape: Shape, vocab_size: int) -> Iterator[tuple[str, Any]]:
    """The architecture's own keys as the converter writes them (`general.*` and the tokenizer's are not among them)."""
    a = shape.architecture
    yield from {
        f"{a}.block_count": shape.layers,
        f"{a}.context_length": shape.context,
        f"{a}.embedding_length": shape.hidden,
        f"{a}.feed_forward_length": shape.ffn or shape.expert_width,
        f"{a}.attention.head_count": shape.heads,
        f"{a}.attention.head_count_kv": shape.kv_heads,
        f"{a}.rope.freq_base": shape.rope_base,
        f"{a}.attention.layer_norm_rms_epsilon": shape.eps,
    }.items()
    if shape.states_head_dim or shape.head_dim * shape.heads != shape.hidden:
        yield f"{a}.attention.key_length", shape.head_dim
        yield f"{a}.attention.value_length", shape.head_dim
    if shape.states_rope:
        yield f"{a}.vocab_size", vocab_size
        yield f"{a}.rope.dimension_count", shape.head_dim
    if shape.experts:
        yield f"{a}.expert_count", shape.experts
        yield f"{a}.expert_used_count", shape.top_k
        if shape.ffn:
            yield f"{a}.expert_feed_forward_length", shape.expert_width
    if shape.window:
        yield f"{a}.attention.sliding_window", shape.window
    if shape.logit_divisor:
        yield f"{a}.attention.scale", 1 / shape.head_dim
        yield f"{a}.embedding_scale", shape.embedding_scale
        yield f"{a}.residual_scale", shape.residual_scale
        yield f"{a}.logit_scale", shape.logit_divisor


def tensors_of(shape: Shape, vocab_size: int, layout: str) -> Iterator[TensorPlan]:
    """All tensors in the file's order."""
    h, q, kv = shape.hidden, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    projections = {"q": q, "k": kv, "v": kv}
    experts, suffix, f = ((shape.experts,), "_exps", shape.expert_width) if shape.experts else ((), "", shape.ffn)

    def plan(role: str, dims: tuple[int, ...], kind: Kind, i: int = -1) -> TensorPlan:
        name = f"blk.{i}.{role}" if i >= 0 else role
        is_vector = len(dims) == 1 or kind == "router"
        chosen = Layout.F32 if is_vector else _layout(layout, role, dims[-1], shape, i)
        return TensorPlan(name, dims, chosen, kind, i)

    yield plan("token_embd.weight", (vocab_size, h), "embedding")
    for i in range(shape.layers):
        yield plan("attn_norm.weight", (h,), "ones", i)
        for name, width in projections.items():
            yield plan(f"attn_{name}.weight", (width, h), "inward", i)
        if shape.has_bias:
            for name, width in projections.items():
                yield plan(f"attn_{name}.bias", (width,), "bias", i)
        if shape.qk_norm:
            for name in "qk":
                width = projections[name] if shape.qk_norm == "full" else shape.head_dim
                yield plan(f"attn_{name}_norm.weight", (width,), "ones", i)
        yield plan("attn_output.weight", (h, q), "outward", i)
        if shape.has_post_norms:
            yield plan("post_attention_norm.weight", (h,), "out_norm", i)
        yield plan("ffn_norm.weight", (h,), "ones", i)
        if shape.experts:
            yield plan("ffn_gate_inp.weight", (shape.experts, h), "router", i)
        yield plan(f"ffn_gate{suffix}.weight", (*experts, f, h), "inward", i)
        yield plan(f"ffn_up{suffix}.weight", (*experts, f, h), "inward", i)
        yield plan(f"ffn_down{suffix}.weight", (*experts, h, f), "outward", i)
        if shape.has_post_norms:
            yield plan("post_ffw_norm.weight", (h,), "out_norm", i)
    yield plan("output_norm.weight", (h,), "ones")
    if not shape.tied:
        yield plan("output.weight", (vocab_size, h), "head")


def _layout(layout: str, role: str, cols: int, shape: Shape, i: int) -> Layout:
    """The layout of one matrix, as llama.cpp's quantiser decides for the same file type."""
    chosen = LAYOUTS[layout][0]
    if layout == "q4_k_m":
        n = shape.layers
        more_bits = i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2
        if role == "output.weight" or (role == "token_embd.weight" and shape.tied):
            chosen = Layout.Q6_K
        elif shape.experts == 8 and role in ("attn_k.weight", "attn_v.weight"):
            chosen = Layout.Q8_0
        elif shape.experts == 8 and role == "attn_output.weight":
            chosen = Layout.Q5_K
        elif role.startswith(("attn_v.", "ffn_down")) and more_bits:
            chosen = Layout.Q6_K
    if cols % chosen.block_values:
        chosen = _FALLBACK.get(chosen, Layout.F16)
    return chosen if cols % chosen.block_values == 0 else Layout.F16


def with_experts_note(shape: Shape) -> str:
    """A name such as `qwen3moe 48 layers, 8 of 128 experts`."""
    experts = f", {shape.top_k} of {shape.experts} experts" if shape.experts else ""
    return f"{shape.architecture} {shape.layers} layers{experts}"
