"""Shapes of synthetic models: what sizes one, the options that change it, and the keys that such a file has.

Keys are those of llama.cpp's converter, so that the files load there too. Which families there are says families.py;
the tensors come from the family's own program: see tensors.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from typing import Any, Final

from ..errors import UsageError

MAX_WIDTH: Final = 1 << 20
_STILL: Final = 1e30  # what the converter divides the frequencies of pairs by that shall not turn


@dataclass(frozen=True, slots=True)
class Share:
    """A key's value as a share of one of the shape's sizes, so that it changes with it."""

    of: str
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class ByLayer:
    """A key's value as a list by layer: `values` over and over, as shares of the shape's size `of` when it is named."""

    values: tuple[float | bool, ...]
    of: str | None = None

    def by_layer(self, layers: int) -> list[float | bool]:
        """The values of so many layers."""
        return [self.values[i % len(self.values)] for i in range(layers)]


@dataclass(frozen=True, slots=True)
class Chosen(ByLayer):
    """The same for a model whose layers come in no pattern: `values` has one for each published layer. Of fewer layers
    those that have a value keep their share, and about their places."""

    def by_layer(self, layers: int) -> list[float | bool]:
        """The values of so many layers: where the number of values so far, scaled, reaches the next whole one."""
        published = len(self.values)
        if layers > published:
            return ByLayer.by_layer(self, layers)
        value = next(value for value in self.values if value)
        before = [
            sum(map(bool, self.values[: i * published // layers])) * layers // published for i in range(layers + 1)
        ]
        return [value if after > so_far else 0.0 for so_far, after in pairwise(before)]


@dataclass(frozen=True, slots=True)
class LastLayers:
    """Layers at the end, about that share of all, behind whole patterns of `step`: their number, or a key's value as a
    list by layer: the shape's size `of`, and in those layers `factor` times that."""

    share: float
    step: int
    of: str | None = None
    factor: float = 1.0

    def count(self, layers: int) -> int:
        """Of so many layers."""
        return max(0, layers - self.step * max(1, round(layers * (1 - self.share) / self.step)))

    def by_layer(self, layers: int) -> list[float]:
        """The values of so many layers, as shares of the size."""
        return [1.0] * (layers - self.count(layers)) + [self.factor] * self.count(layers)


# None: the family's converter does not write the key, although others do. A tuple is a list of numbers.
Value = bool | int | float | str | Share | ByLayer | LastLayers | tuple[int, ...] | None


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
    dense: int | None = None  # layers at the beginning that have no experts; None: the family has no key for it
    vocab: int = 0  # tokens of the published model
    context: int = 32768
    rope_base: float = 1e6
    eps: float = 1e-6
    tied: bool = False
    states_head_dim: bool = False  # the converter writes key_length although it equals hidden / heads
    keys: Mapping[str, Value] = field(default_factory=dict)  # all other keys, without the architecture before them
    # Roles of tensors that a program asks for when the file has them ("attn_q.bias").
    optional: tuple[str, ...] = ()
    divisors: tuple[str, ...] = ()  # tensors outside the blocks that divide the frequencies of a head
    turning: float = 1.0  # the share of those frequencies that is left; all others are divided to nothing

    @property
    def attention_width(self) -> int:
        """Of all query heads together."""
        return self.heads * self.head_dim

    @property
    def pattern(self) -> int:
        """Layers after which their kinds come again, where whole patterns make up the published model; else 1."""
        found = [len(value.values) for value in self.keys.values() if type(value) is ByLayer]
        interval = self.keys.get("full_attention_interval")
        length = math.lcm(*found, interval if isinstance(interval, int) else 1)
        return 1 if self.layers % length else length


def part_of(shape: Shape, share: float) -> dict[str, int]:
    """Layers and vocabulary of a model cut to `share` of both: all that a token costs shrinks by the same factor. Where
    kinds of layers come in a pattern, that is a whole number of patterns, and the share changes with it.

    Raises UsageError when `share` is not above 0 and at most 1, or leaves no layer behind those without experts.
    """
    if not 0 < share <= 1:
        raise UsageError(f"a part of {share:g} is out of range: above 0, at most 1")
    layers = round(shape.layers * share)
    if shape.pattern > 1:
        layers = shape.pattern * max(1, round(layers / shape.pattern))
        share = layers / shape.layers
    if layers <= (shape.dense or 0):
        raise UsageError(f"a part of {share:g} leaves {layers} of {shape.layers} layers: too few")
    return {"layers": layers, "vocab": round(shape.vocab * share)}


def changed(base: Shape, family: str, changes: Mapping[str, int | None]) -> Shape:
    """`base`, called `family`, with `changes` (names as in Shape; None leaves the family's own).

    Raises UsageError for sizes that do not fit each other and settings the family has no use for.
    """
    known = {f.name for f in fields(Shape)}
    given = {key: value for key, value in changes.items() if value is not None}
    assert given.keys() <= known, given.keys() - known
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
    shape = replace(shape, vocab=vocab_size)
    found: dict[str, Any] = {
        "block_count": shape.layers,
        "context_length": shape.context,
        "embedding_length": shape.hidden,
        "feed_forward_length": shape.ffn or shape.expert_width,
        "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.kv_heads,
        "rope.freq_base": shape.rope_base,
        "attention.layer_norm_rms_epsilon": shape.eps,
    }
    if shape.states_head_dim or shape.head_dim * shape.heads != shape.hidden:
        found |= {"attention.key_length": shape.head_dim, "attention.value_length": shape.head_dim}
    if shape.experts:
        found |= {"expert_count": shape.experts, "expert_used_count": shape.top_k}
        if shape.ffn:
            found["expert_feed_forward_length"] = shape.expert_width
        if shape.dense is not None:
            found["leading_dense_block_count"] = min(shape.dense, shape.layers)
    found |= {key: _resolved(value, shape) for key, value in shape.keys.items()}
    yield from ((f"{shape.architecture}.{key}", value) for key, value in found.items() if value is not None)


def _resolved(value: Value, shape: Shape) -> Any:
    if isinstance(value, Share):
        return round(getattr(shape, value.of) * value.share)
    if isinstance(value, LastLayers) and value.of is None:
        return value.count(shape.layers)
    if isinstance(value, (ByLayer, LastLayers)):
        items = value.by_layer(shape.layers)
        if value.of is None:
            return items
        whole = getattr(shape, value.of)
        return [max(1, round(whole * item)) if item else 0 for item in items]
    return list(value) if isinstance(value, tuple) else value


def turned_values(shape: Shape) -> int:
    """Values of each head that positions turn."""
    stated = shape.keys.get("rope.dimension_count")
    return int(_resolved(stated, shape)) if stated is not None else shape.head_dim


def divisors_of(shape: Shape) -> list[float]:
    """What the frequencies of a head are divided by, in shapes that have such tensors."""
    count = turned_values(shape) // 2
    kept = round(count * shape.turning)
    return [1.0] * kept + [_STILL] * (count - kept)


def described(shape: Shape, family: str) -> str:
    """A name such as `qwen3moe 48 layers, 8 of 128 experts`.

    The family's name, not the architecture's: llama.cpp takes a "phi3" in it for Phi-3, whose vocabulary has a token
    that others lack.
    """
    experts = f", {shape.top_k} of {shape.experts} experts" if shape.experts else ""
    return f"{family} {shape.layers} layers{experts}"
