"""Gemma 3 270M as a GGUF file of Gemma 4's E shape that computes what it computes; donors.py runs the checks.

How each part is made to say the donor's words, all weights F32:

- Global heads are twice as wide: each holds the donor's head twice, the second time with its pairs in another order.
  The mean of squares is the same, so the norms of q and k are the donor's; a product of q and k comes twice and is
  halved. The divisors of the rotation give each pair the donor's frequency.
- Attention's scale is 1: the donor's is in the norm of q.
- v is normed, in the donor it is not: v is made so small that eps is nearly all that is under the root, and
  `attn_output` brings it back.
- The stream is scaled behind each layer by ½, 2 and 1 in turn: what a layer adds is multiplied by what the scales
  before it make, and norms do not see it.
- Each layer's own embeddings, and six further layers that attend to what others stored, hold noise; the norms before
  what they add to the stream have weights of zero. This shows where their tensors lie and that they do no harm; what
  they compute is shown by tests/models/test_models_parity.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from donor_files import Made, copy_keys, write_tensors
from donor_shapes import Array, Donor, Tensors, noise
from kamado.files.gguf_header import read_header
from kamado.files.gguf_writer import GgufWriter

GLOBAL_EVERY = 6  # of six layers the last sees all tokens, in the donor too
FURTHER = 6  # layers that attend to what the last two of the others stored
OWN_WIDTH = 16  # values of a layer's own embedding
V_GAIN = 2.0**-13  # of v by its norm: the greatest values of a row stay far below 1, where it is linear
SCALES = (0.5, 2.0, 1.0)  # of the stream, behind a layer: three of them leave it as it was
LOCAL_THETA = 10_000.0


class Layer:
    """One layer; `is_own`: it says what the donor's of its number says, else it is noise that adds nothing."""

    def __init__(self, donor: Donor, index: int, seed: int) -> None:
        self.donor, self.index = donor, index
        self.is_own = index < donor.layers
        self.is_global = index % GLOBAL_EVERY == GLOBAL_EVERY - 1
        self.rng = np.random.default_rng((seed, index))
        self.size = math.prod(SCALES[: index % len(SCALES)])  # of the stream where it comes in

    @property
    def head_dim(self) -> int:
        """Of this layer's heads."""
        return self.donor.head_dim * (2 if self.is_global else 1)

    @property
    def ffn(self) -> int:
        """Neurons: twice as many in layers that share keys and values."""
        return self.donor.ffn * (1 if self.is_own else 2)

    def tensors(self) -> Tensors:
        """By the end of their names."""
        hidden, rng = self.donor.hidden, self.rng
        return (self._own() if self.is_own else self._further()) | {
            "inp_gate.weight": lambda: noise(rng, OWN_WIDTH, hidden),
            "proj.weight": lambda: noise(rng, hidden, OWN_WIDTH),
            "post_norm.weight": lambda: np.zeros(hidden, np.float32),
            "layer_output_scale.weight": lambda: np.array([SCALES[self.index % len(SCALES)]], np.float32),
        }

    def _read(self, role: str) -> Array:
        return self.donor(f"blk.{self.index}.{role}.weight")

    def _own(self) -> Tensors:
        donor, seen = self.donor, pairs_seen(self.donor.head_dim) if self.is_global else np.arange(self.donor.head_dim)
        copies = 2 if self.is_global else 1
        v_factor = V_GAIN * math.sqrt(float(np.float32(donor.eps)))
        q_scale = donor.head_dim**-0.5 / copies

        def rows(role: str, heads: int, factor: float = 1.0) -> Array:
            wide = self._read(role).reshape(heads, donor.head_dim, -1)[:, seen] * np.float32(factor)
            return wide.reshape(-1, donor.hidden)

        def output() -> Array:
            columns = self._read("attn_output").reshape(donor.hidden, donor.heads, donor.head_dim)[:, :, seen]
            return columns.reshape(donor.hidden, -1) * np.float32(1 / V_GAIN / copies)

        same = ("attn_norm", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down")
        found: Tensors = {f"{role}.weight": lambda role=role: self._read(role) for role in same}
        return found | {
            "attn_q.weight": lambda: rows("attn_q", donor.heads),
            "attn_k.weight": lambda: rows("attn_k", donor.kv_heads),
            "attn_v.weight": lambda: rows("attn_v", donor.kv_heads, v_factor),
            "attn_output.weight": output,
            "attn_q_norm.weight": lambda: self._read("attn_q_norm")[seen] * np.float32(q_scale),
            "attn_k_norm.weight": lambda: self._read("attn_k_norm")[seen],
            "post_attention_norm.weight": lambda: self._read("post_attention_norm") * np.float32(self.size),
            "post_ffw_norm.weight": lambda: self._read("post_ffw_norm") * np.float32(self.size),
        }

    def _further(self) -> Tensors:
        """Published files have k and v in such layers too, which nothing reads."""
        donor, dim = self.donor, self.head_dim
        wide, narrow = donor.heads * dim, donor.kv_heads * dim
        shapes: dict[str, tuple[int, ...]] = {
            "attn_norm": (donor.hidden,), "ffn_norm": (donor.hidden,), "attn_q_norm": (dim,), "attn_k_norm": (dim,),
            "attn_q": (wide, donor.hidden), "attn_k": (narrow, donor.hidden), "attn_v": (narrow, donor.hidden),
            "attn_output": (donor.hidden, wide), "ffn_gate": (self.ffn, donor.hidden),
            "ffn_up": (self.ffn, donor.hidden), "ffn_down": (donor.hidden, self.ffn),
        }  # fmt: skip
        found: Tensors = {f"{role}.weight": lambda size=size: noise(self.rng, *size) for role, size in shapes.items()}
        silent = ("post_attention_norm", "post_ffw_norm")
        return found | {f"{role}.weight": lambda: np.zeros(donor.hidden, np.float32) for role in silent}


def pairs_seen(head_dim: int) -> npt.NDArray[np.int64]:
    """For each value of a global head the donor's: pairs of halves, each pair twice, in another order behind."""
    pairs = head_dim // 2
    order = np.concatenate([np.arange(pairs), np.random.default_rng(head_dim).permutation(pairs)])
    return np.concatenate([order, order + pairs])


def divisors(head_dim: int, theta: float) -> Array:
    """By which the frequencies of a head twice as wide become those of the donor's pairs."""
    of_wide = theta ** (-np.arange(head_dim) / head_dim)
    wanted = theta ** (-2 * (pairs_seen(head_dim)[:head_dim]) / head_dim)
    return (of_wide / wanted).astype(np.float32)


def write_gemma4(donor: Donor, path: Path, seed: int = 13) -> Made:
    """Gemma 3 in Gemma 4's E shape."""
    layers = [Layer(donor, i, seed) for i in range(donor.layers + FURTHER)]
    theta = float(donor.metadata("rope.freq_base"))
    writer = GgufWriter("gemma4")
    copy_keys(writer, read_header(donor.checkpoint.files[0]), ("general.", "tokenizer."))
    for key, value in _settings(donor, layers, theta).items():
        writer.add(f"gemma4.{key}", value)
    vocab, width = donor.checkpoint.tensors["token_embd.weight"].shape[0], len(layers) * OWN_WIDTH
    rng = np.random.default_rng(seed)
    entries: list[tuple[str, tuple[int, ...], Callable[[], Array]]] = [
        ("token_embd.weight", (vocab, donor.hidden), lambda: donor("token_embd.weight")),
        ("rope_freqs.weight", (donor.head_dim,), lambda: divisors(donor.head_dim, theta)),
        ("per_layer_token_embd.weight", (vocab, width), lambda: noise(rng, vocab, width)),
        ("per_layer_model_proj.weight", (width, donor.hidden), lambda: noise(rng, width, donor.hidden)),
        ("per_layer_proj_norm.weight", (OWN_WIDTH,), lambda: 1 + noise(rng, OWN_WIDTH)),
    ]
    for layer in layers:
        for role, make in layer.tensors().items():
            entries.append((f"blk.{layer.index}.{role}", make().shape, make))
    entries.append(("output_norm.weight", (donor.hidden,), lambda: donor("output_norm.weight")))
    write_tensors(writer, path, entries)
    return Made(path, {}, frozenset(range(donor.layers)))


def _settings(donor: Donor, layers: list[Layer], theta: float) -> dict[str, Any]:
    window = donor.metadata("attention.sliding_window")
    return {
        "block_count": len(layers),
        "context_length": donor.metadata("context_length"),
        "embedding_length": donor.hidden,
        "embedding_length_per_layer_input": OWN_WIDTH,
        "feed_forward_length": [layer.ffn for layer in layers],
        "attention.head_count": donor.heads,
        "attention.head_count_kv": [donor.kv_heads] * len(layers),
        "attention.layer_norm_rms_epsilon": donor.eps,
        "attention.sliding_window": window,
        "attention.sliding_window_pattern": [not layer.is_global for layer in layers],
        "attention.shared_kv_layers": FURTHER,
        **{f"attention.{part}_length": 2 * donor.head_dim for part in ("key", "value")},
        **{f"attention.{part}_length_swa": donor.head_dim for part in ("key", "value")},
        "rope.dimension_count": 2 * donor.head_dim,
        "rope.dimension_count_swa": donor.head_dim,
        "rope.freq_base": theta,
        "rope.freq_base_swa": LOCAL_THETA,
    }
