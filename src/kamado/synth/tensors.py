"""The tensors of a synthetic model: those that the family's own program asks for, in the layouts that llama.cpp's
quantiser gives them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from .. import program as op
from ..files.types import Checkpoint, Layout, TensorRef
from ..models import build_program
from .shapes import Shape, metadata_of, turned_values

Kind = Literal[
    "embedding", "ones", "out_norm", "bias", "zeros", "inward", "outward", "router", "routed", "head", "taps", "decay",
    "dt_bias", "divisors", "out_bias",
]  # fmt: skip

# our layout names -> (layout, llama.cpp's file type)
LAYOUTS: Final[Mapping[str, tuple[Layout, int]]] = {
    "q4_k": (Layout.Q4_K, 14),
    "q4_k_m": (Layout.Q4_K, 15),
    "q6_k": (Layout.Q6_K, 18),
    "q5_0": (Layout.Q5_0, 8),
    "q8_0": (Layout.Q8_0, 7),
    "q4_0": (Layout.Q4_0, 2),
    "q4_1": (Layout.Q4_1, 3),
    "mxfp4": (Layout.MXFP4, 38),  # of experts; all else is Q8_0
    "f16": (Layout.F16, 1),
    "bf16": (Layout.BF16, 32),
    "f32": (Layout.F32, 0),
}
# what llama.cpp takes instead when a row is no whole number of 256-value blocks
_FALLBACK: Final = {Layout.Q4_K: Layout.Q5_0, Layout.Q5_K: Layout.Q5_1, Layout.Q6_K: Layout.Q8_0}
_LAYERS_OF_70B: Final = 80  # in which the quantiser recognises Llama 70B, whose values it gives more bits
_ADDED: Final = ("h", "moe", "shared", "dense")  # buffers of what layers add to the stream
_VALUES: Final = ("attn_v.weight", "attn_qkv.weight")
_TABLES: Final = ("token_embd.weight", "per_layer_token_embd.weight")
_KEPT: Final = ("per_layer_model_proj.weight",)  # which the quantiser leaves as they are
# Another bias of a router would move picks away from the planned share.
_BIAS_KINDS: Final[Mapping[str, Kind]] = {"router": "zeros", "outward": "out_bias", "inward": "bias"}
_DENSE: Final = ("ffn_gate.weight", "ffn_up.weight", "ffn_down.weight")


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """One tensor to be written. `layer` is -1 outside the blocks."""

    name: str
    shape: tuple[int, ...]
    layout: Layout
    kind: Kind
    layer: int = -1


@dataclass(frozen=True, slots=True)
class Blueprint:
    """What a file of a shape holds, in its order, and the factors of its program on embeddings and what is added."""

    tensors: tuple[TensorPlan, ...]
    embedding_scale: float
    residual_scale: float
    expert_scale: float
    has_post_norms: bool


class _Tensors(dict[str, TensorRef]):
    """The tensors asked for so far; says that it has those that the shape's files have."""

    def __init__(self, shape: Shape, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self._optional = frozenset(shape.optional)
        self._dense = shape.dense or 0
        if not shape.tied:
            self._optional |= {"output.weight"}

    def __contains__(self, name: object) -> bool:
        layer, role = _split(str(name))
        return role in self._optional or (role in _DENSE and 0 <= layer < self._dense)


class _Wishes(Checkpoint):
    """A file that has every tensor that is asked for, in the shape in which it is."""

    def tensor(self, name: str, shape: Sequence[int | None] | None = None) -> TensorRef:
        """The tensor, noted down when the shape is known; the vocabulary is the only size that is not."""
        assert isinstance(self.tensors, _Tensors)
        sizes = tuple(self.tensors.vocab_size if size is None else size for size in shape or (1,))
        ref = TensorRef(name, self.path, 0, Layout.F32.nbytes(math.prod(sizes)), sizes, Layout.F32)
        return ref if shape is None else self.tensors.setdefault(name, ref)


def _split(name: str) -> tuple[int, str]:
    """(layer or -1, role with its ending) of a name."""
    found = re.fullmatch(r"blk\.(\d+)\.(.+)", name)
    return (int(found[1]), found[2]) if found else (-1, name)


def blueprint_of(shape: Shape, vocab_size: int, layout: str) -> Blueprint:
    """All tensors of a file of `shape`, and the scales of its program.

    The program is built on a file that has what is asked for, so names, shapes and order are the family's own.
    """
    tensors, metadata = _Tensors(shape, vocab_size), dict(metadata_of(shape, vocab_size))
    wishes = _Wishes(Path(shape.architecture), (), "gguf", shape.architecture, metadata, tensors, None, None)
    program = build_program(wishes)
    kinds: dict[str, Kind] = {}
    for name, kind in _kinds(program.ops):
        kinds.setdefault(name, kind)
    assert kinds.keys() == tensors.keys(), kinds.keys() ^ tensors.keys()
    values = [name for name in kinds if _split(name)[1] in _VALUES]
    plans = [_planned(name, tensors[name].shape, kind, shape, layout, values) for name, kind in kinds.items()]
    divided = (turned_values(shape) // 2,)
    plans += [TensorPlan(name, divided, Layout.F32, "divisors") for name in shape.divisors]
    table = program.ops[0]
    assert isinstance(table, op.Embed)
    return Blueprint(
        tuple(plans),
        table.scale,
        next((step.factor for step in program.ops if isinstance(step, op.Scale) and _stem(step.out) in _ADDED), 1.0),
        next((step.scale for step in program.ops if isinstance(step, op.Route)), 1.0),
        any(kind == "out_norm" for kind in kinds.values()),
    )


def tensors_of(shape: Shape, vocab_size: int, layout: str) -> tuple[TensorPlan, ...]:
    """All tensors in the file's order."""
    return blueprint_of(shape, vocab_size, layout).tensors


def _kinds(steps: Sequence[op.Op]) -> Iterator[tuple[str, Kind]]:
    """(name, kind) of every tensor in the order in which they are used; some come again."""
    for step in steps:
        match step:
            case op.Embed(table=table):
                yield _whole(table), "embedding"
            case op.Norm(out=out, x=x, weight=weight) if weight is not None:
                is_last = out.name == x.name and _stem(out) in _ADDED
                yield _whole(weight), "out_norm" if is_last else "routed" if _stem(out) == "routed" else "ones"
            case op.Linear(outs=outs, weights=weights, biases=biases):
                for out, weight in zip(outs, weights, strict=True):
                    yield _whole(weight), _linear_kind(_stem(out))
                for out, bias in zip(outs, biases, strict=False):
                    if bias is not None:
                        yield _whole(bias), _BIAS_KINDS[_linear_kind(_stem(out))]
            case op.Conv(weight=weight, bias=bias):
                yield _whole(weight), "taps"
                if bias is not None:
                    yield _whole(bias), "bias"
            case op.DeltaScan(decay=decay, dt_bias=dt_bias):
                yield _whole(decay), "decay"
                yield _whole(dt_bias), "dt_bias"
            case op.Route(bias=bias, expert_scale=scale):
                if bias is not None:
                    yield _whole(bias), "zeros"  # another one would move picks away from the planned share
                if scale is not None:
                    yield _whole(scale), "ones"
            case op.Rescale(weight=weight):
                yield _whole(weight), "ones"
            case op.Attend(sinks=sinks) if sinks is not None:
                yield _whole(sinks), "zeros"
            case op.Experts(gate=gate, up=up, down=down, gate_biases=one, up_biases=two, down_biases=three):
                yield from ((_whole(part[0]), "inward") for part in (gate, up))
                yield _whole(down[0]), "outward"
                yield from ((_whole(part[0]), "bias") for part in (one, two) if part)
                if three:
                    yield _whole(three[0]), "out_bias"
            case op.Head(weight=weight):
                yield _whole(weight), "head"


def _whole(ref: TensorRef) -> str:
    """The name of the tensor that a slice is of."""
    return ref.name.partition("[")[0]


def _stem(rows: op.Buffer) -> str:
    """The buffer's name without the width that tells it from others of its kind."""
    return rows.name.rstrip("0123456789")


def _linear_kind(out: str) -> Literal["router", "outward", "inward"]:
    return "router" if out == "router" else "outward" if out in _ADDED else "inward"


def _planned(
    name: str, dims: tuple[int, ...], kind: Kind, shape: Shape, layout: str, values: Sequence[str]
) -> TensorPlan:
    """One tensor; `values`: names of all those that make values of attention, which the quantiser counts."""
    layer, role = _split(name)
    if dims[:-1] == (1,):  # the converter writes a row as a vector
        dims = dims[1:]
    if len(dims) == 1 or kind in ("router", "taps", "bias", "out_bias") or not role.endswith(".weight"):
        return TensorPlan(name, dims, Layout.F32, kind, layer)
    if role in _KEPT:
        return TensorPlan(name, dims, Layout.F32 if layout == "f32" else Layout.BF16, kind, layer)
    at = (values.index(name), len(values)) if name in values else (layer, shape.layers)
    return TensorPlan(name, dims, _layout(layout, role, dims, shape, at), kind, layer)


def _layout(layout: str, role: str, dims: tuple[int, ...], shape: Shape, at: tuple[int, int]) -> Layout:
    """The layout of one matrix, as llama.cpp's quantiser decides for the same file type. `at`: (which one, of how
    many) of its kind."""
    chosen, cols = LAYOUTS[layout][0], dims[-1]
    if chosen is Layout.MXFP4 and len(dims) < 3:
        chosen = Layout.Q8_0
    if layout == "q4_k_m":
        i, n = at
        if role.startswith("ffn_down"):
            loops = shape.keys.get("num_loops", 1)  # it counts layers as often as they run, here
            n *= loops if isinstance(loops, int) else 1
        more_bits = i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2
        if role == "output.weight" or (role in _TABLES and shape.tied):
            chosen = Layout.Q6_K
        elif shape.experts == 8 and role in ("attn_k.weight", "attn_v.weight"):
            chosen = Layout.Q8_0
        elif shape.experts == 8 and role == "attn_output.weight":
            chosen = Layout.Q5_K
        elif role.startswith(("attn_v.", "attn_qkv.", "ffn_down")) and more_bits:
            chosen = Layout.Q6_K
        elif role == "attn_v.weight" and shape.architecture == "llama" and n == _LAYERS_OF_70B:
            chosen = Layout.Q5_K
    if cols % chosen.block_values:
        chosen = _FALLBACK.get(chosen, Layout.F16)
    return chosen if cols % chosen.block_values == 0 else Layout.F16
