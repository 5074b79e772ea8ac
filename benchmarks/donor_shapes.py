"""The donor's tensors, the shapes that it is put into, and what all parts of such a shape need: see donor_files.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from kamado import _native
from kamado.files.types import Checkpoint

Array = npt.NDArray[np.float32]
Tensors = dict[str, Callable[[], Array]]  # by name; each is made when its turn comes

SMALL = 1e-9  # q and k before their norm
CONSTANT = 1e-4  # of the shortest embedding
LARGEST_ROW = 1e5  # no row of the stream is longer (SmolLM2's reach some thousands)
LOGIT_STD = 1.5  # of a router's logits over rows
CERTAIN = 30.0  # σ of it is 1 in float32
CHOSEN = 1.5  # choice bias of picked experts: above any score of the others and their bias
OTHERS_BIAS = 0.2  # others have up to so much
SINK = -1e4  # so far below all scores that nothing of it is left
OSS_ALPHA = float(np.float32(1.702))
OSS_UP = 2.0**-6  # what up gives is so much smaller, so that its limit of 7 is out of the way
ONE_FURTHER = 3  # one of so many layers is a further one, in shapes that have such


@dataclass(frozen=True, slots=True)
class Shape:
    """What one family adds to a Llama."""

    architecture: str
    row_norm: bool = False  # q and k are normed whole, not head by head
    wide_heads: bool = True  # each twice as wide as the donor's; else one more query head for each of keys
    has_biases: bool = False  # gpt-oss: of everything, sinks, gates of its own, and no norms of q and k
    router: Literal["sigmoid", "softmax"] = "sigmoid"  # softmax: no choice bias
    dense: int = 0  # layers at the beginning without experts
    shared: int = 0  # neurons of the donor that the shared expert takes
    scale: float = 1.0  # on the experts' weights
    gated: bool = False  # what attention and the shared expert give is multiplied by a sigmoid
    drafts: int = 0  # layers behind the others that only draft tokens
    between: Literal["conv", "delta"] | None = None  # what layers that the donor has not have for attention
    wider: int = 32  # values of the hidden state that the donor does not have
    ffn_norm: str = "ffn_norm"
    last_norm: str = "output_norm"
    has_output: bool = False  # a matrix of its own for the logits

    def sources(self, layers: int) -> list[tuple[int, bool]]:
        """For each layer of the file the donor's one, and whether it is that one's words or only stands before it."""
        if self.between is None:
            return [(i, True) for i in range(layers)]
        return [
            (i, is_own) for i in range(layers) for is_own in ((False, True) if i % (ONE_FURTHER - 1) == 0 else (True,))
        ]


SHAPES = {
    "glm4moe": Shape("glm4moe", dense=1, shared=256, scale=2.5, drafts=1, ffn_norm="post_attention_norm"),
    "minimax-m2": Shape("minimax-m2", row_norm=True, has_output=True),
    "lfm2moe": Shape(
        "lfm2moe", wide_heads=False, dense=2, between="conv", wider=192, last_norm="token_embd_norm"
    ),
    "qwen35moe": Shape(
        "qwen35moe", router="softmax", shared=256, gated=True, between="delta", ffn_norm="post_attention_norm",
        has_output=True,
    ),
    "gpt-oss": Shape(
        "gpt-oss", wide_heads=False, has_biases=True, router="softmax", wider=192, ffn_norm="post_attention_norm",
        has_output=True,
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Experts:
    """How many there are. Picked by a sigmoid: two a pair, one with score ½, one with 1; by a softmax: pairs only."""

    count: int
    pairs: int

    @property
    def top_k(self) -> int:
        """Picked ones."""
        return 2 * self.pairs + 2

    def groups(self, shape: Shape) -> list[int]:
        """How many experts have each share of the neurons, in the order of their ids."""
        return [2] * (self.pairs + 1) if shape.router == "softmax" else [2] * self.pairs + [1, 1]


class Donor:
    """The dense model's tensors as float32, read when they are asked for."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.layers, self.hidden = self._count("block_count"), self._count("embedding_length")
        self.ffn = self._count("feed_forward_length")
        self.heads, self.kv_heads = self._count("attention.head_count"), self._count("attention.head_count_kv")
        self.head_dim = self.hidden // self.heads
        if f"{checkpoint.architecture}.attention.key_length" in checkpoint.metadata:
            self.head_dim = self._count("attention.key_length")
        self.eps = float(self.metadata("attention.layer_norm_rms_epsilon"))

    def metadata(self, key: str) -> Any:
        """A setting, without the architecture before it."""
        return self.checkpoint.metadata[f"{self.checkpoint.architecture}.{key}"]

    def _count(self, key: str) -> int:
        return int(self.metadata(key))

    def __call__(self, name: str) -> Array:
        """One tensor."""
        ref = self.checkpoint.tensors[name]
        with ref.file.open("rb") as file:
            file.seek(ref.offset)
            data = np.frombuffer(file.read(ref.nbytes), np.uint8)
        return _native.dequantize(int(ref.layout), data, ref.num_values).reshape(ref.shape)


@dataclass(frozen=True, slots=True)
class Fitted:
    """A donor, the shape that it is put into, and sizes that follow from both."""

    donor: Donor
    shape: Shape
    experts: Experts
    seed: int

    @property
    def width(self) -> int:
        """Of the hidden state."""
        return self.donor.hidden + self.shape.wider

    @property
    def eps(self) -> float:
        """Of the norms: x / sqrt(Σx² / width) is sqrt(width / hidden) times as large."""
        return self.donor.eps * self.donor.hidden / self.width

    @property
    def heads(self) -> int:
        """Of queries."""
        return self.donor.heads if self.shape.wide_heads else self.donor.heads + self.donor.kv_heads

    @property
    def head_dim(self) -> int:
        """Of one head."""
        return 2 * self.donor.head_dim if self.shape.wide_heads else self.donor.head_dim

    @property
    def expert_width(self) -> int:
        """Neurons of one expert."""
        return -(-(self.donor.ffn - self.shape.shared) // len(self.experts.groups(self.shape)))

    def norm(self, name: str, constant: float = 0.0) -> Array:
        """A norm's weights for the greater width."""
        wide = np.zeros(self.width, np.float32)
        wide[: self.donor.hidden] = self.donor(name).astype(np.float64) * np.sqrt(self.donor.hidden / self.width)
        wide[self.donor.hidden] = constant
        return wide

    def constant(self) -> float:
        """What stands in the first further value of each embedding."""
        lengths = np.sqrt((self.donor("token_embd.weight").astype(np.float64) ** 2).sum(axis=1))
        return CONSTANT * float(np.percentile(lengths, 1))

    def embedding(self) -> Array:
        """The table of tokens, with the constant."""
        table = self.donor("token_embd.weight")
        wide = np.zeros((len(table), self.width), np.float32)
        wide[:, : self.donor.hidden] = table
        wide[:, self.donor.hidden] = self.constant()
        return wide

    def output(self) -> Array:
        """The donor's embeddings again; what meets the zeros of the last norm is noise."""
        table = self.donor("token_embd.weight")
        return np.concatenate([table, noise(np.random.default_rng(self.seed), len(table), self.shape.wider)], axis=1)


def noise(rng: np.random.Generator, *shape: int) -> Array:
    """Of about the size of trained weights."""
    return rng.standard_normal(shape, np.float32) * np.float32(0.1)
