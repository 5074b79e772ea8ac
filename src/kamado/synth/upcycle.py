"""Sparse upcycling: a dense model becomes a Mixture of Experts with the same answers, to show and test streaming with.

Each feed-forward block is copied into experts under a random router, as `llama` with `expert_count`, which is how
llama.cpp names a Mixtral. The weights of a row's picked experts are divided by their sum, so equal experts add up to
the block they were copied from, whatever the router says.

That is exact in real numbers only: with weights such as 0.37 and 0.63 the sum differs from the block in the last bit,
and a model whose activations are rounded to 8 bits turns last bits into other roundings, layer after layer, until its
answers are as far from the parent's as the parent's are from unrounded arithmetic (KLD 3e-3 for SmolLM2). In a
"grouped" router the ids are dealt at random into groups of `top_k` that share one row: a token picks a whole group,
each weight is exactly 1 / top_k, a power of two, and the outputs equal the parent's bit for bit. In an "independent"
router every expert has a row of its own, as trained models do.

With jitter every expert differs a little from its siblings: all scales of a block of quantised values are multiplied
by one random factor near 1, so that a wrong expert in a slot shows.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..errors import CorruptFileError, UnsupportedError, UsageError
from ..files.gguf_header import Header, read_header
from ..files.gguf_writer import GgufWriter
from ..files.types import Checkpoint, Layout, TensorRef

MAX_EXPERTS = 1024
DEFAULT_JITTER_SCALE = 0.02  # of each scale; below what 4-bit rounding moves, far above float noise in the logits
MAX_JITTER_SCALE = 0.25

_ROUTER_STD = 1.5  # of a router's logits over experts: what trained routers show, roughly
_COPY_BYTES = 8 << 20
_FORGET_BYTES = 256 << 20  # written between two calls that give the page cache back
_ROLES = ("gate", "up", "down")

Router = Literal["grouped", "independent"]


@dataclass(frozen=True, slots=True)
class UpcycleReport:
    """What was written."""

    path: Path
    nbytes: int
    num_parameters: int
    num_layers: int
    num_experts: int
    top_k: int
    router: Router
    expert_nbytes: int  # of the largest expert: gate, up and down


def upcycle(
    parent: Checkpoint,
    out: Path,
    *,
    experts: int,
    top_k: int,
    seed: int = 0,
    jitter: int | None = None,
    jitter_scale: float = DEFAULT_JITTER_SCALE,
    router: Router | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> UpcycleReport:
    """Write `parent`, a dense `llama` GGUF, to `out` with `experts` copies of each feed-forward block.

    `seed` makes the routers. `jitter`, a second seed, makes each expert differ: every block's scale is multiplied by
    1 + `jitter_scale` · n, n normal and cut at ±3. `router` None: grouped without jitter, independent with it. The same
    arguments give the same bytes. `progress(done, total)` counts bytes. The file appears when it is whole; what it left
    in the page cache is given back, and memory stays below about 64 MB.

    Raises UsageError for settings out of range, UnsupportedError for a parent that is no dense `llama` GGUF file.
    """
    if router is None:
        router = "grouped" if jitter is None and _can_group(experts, top_k) else "independent"
    _check_settings(experts, top_k, jitter, jitter_scale, router)
    blocks = _feed_forward_blocks(parent)
    header = read_header(parent.files[0])
    writer = GgufWriter("llama")
    _add_metadata(writer, header, parent, experts, top_k, jitter)
    steps: list[tuple[str, _Chunks]] = []  # nothing is read before its turn
    rng = np.random.Generator(np.random.SFC64(seed))
    num_router_values = 0

    def announce(name: str, shape: tuple[int, ...], layout: Layout, chunks: _Chunks) -> None:
        writer.add_tensor(name, shape, layout)
        steps.append((name, chunks))

    for name, ref in parent.tensors.items():
        block = blocks.get(name)
        if block is None:
            announce(name, ref.shape, ref.layout, _copied(ref))
            continue
        role, layer = block
        stacked = f"blk.{layer}.ffn_{role}_exps.weight"
        key = None if jitter is None else (jitter, layer, _ROLES.index(role))
        if key is not None and not (ref.layout.is_float or ref.layout.scale_offsets):
            raise UnsupportedError(f"{ref.name}: {ref.layout.name} blocks have no float scale to jitter")
        announce(stacked, (experts, *ref.shape), ref.layout, _stacked(ref, experts, key, jitter_scale))
        if role == "gate":
            norm = parent.tensors.get(f"blk.{layer}.ffn_norm.weight")
            rows = _router_rows(ref, norm, experts, top_k if router == "grouped" else 1, rng)
            announce(f"blk.{layer}.ffn_gate_inp.weight", rows.shape, Layout.F32, iter((rows,)))
            num_router_values += rows.size
    total = writer.tensor_bytes()
    out = Path(out).absolute()
    done = forgotten = 0
    with writer.open(out) as sink:
        for name, chunks in steps:
            for chunk in chunks:
                sink.write(name, chunk)
                done += chunk.nbytes
                if progress is not None:
                    progress(done, total)
            if done - forgotten >= _FORGET_BYTES:
                sink.forget_written()
                forgotten = done
        sink.forget_written()
    for path in parent.files:
        _forget(path)
    records = [0] * (1 + max(layer for _, layer in blocks.values()))
    for name, (_, layer) in blocks.items():
        records[layer] += parent.tensors[name].nbytes
    copies = sum(parent.tensors[name].num_values for name in blocks) * (experts - 1)
    return UpcycleReport(
        path=out,
        nbytes=out.stat().st_size,
        num_parameters=sum(ref.num_values for ref in parent.tensors.values()) + copies + num_router_values,
        num_layers=len(records),
        num_experts=experts,
        top_k=top_k,
        router=router,
        expert_nbytes=max(records),
    )


def _can_group(experts: int, top_k: int) -> bool:
    return top_k.bit_count() == 1 and experts % top_k == 0


def _check_settings(experts: int, top_k: int, jitter: int | None, jitter_scale: float, router: Router) -> None:
    if not 2 <= experts <= MAX_EXPERTS:
        raise UsageError(f"experts={experts} is out of range: 2 to {MAX_EXPERTS}")
    if not 1 <= top_k <= experts:
        raise UsageError(f"top_k={top_k} with {experts} experts: it must be from 1 to {experts}")
    if router == "grouped" and not _can_group(experts, top_k):
        raise UsageError(f"a grouped router needs a top_k that is a power of two and divides experts, not {top_k}")
    if jitter is not None and jitter < 0:
        raise UsageError(f"jitter={jitter} is no seed: a whole number, 0 or more")
    if not 0 < jitter_scale <= MAX_JITTER_SCALE:
        raise UsageError(f"jitter_scale={jitter_scale:g} is out of range: more than 0, at most {MAX_JITTER_SCALE:g}")


def _feed_forward_blocks(parent: Checkpoint) -> dict[str, tuple[str, int]]:
    """Tensor name -> (role, layer) of every feed-forward matrix. Raises UnsupportedError when it is no dense llama."""
    if parent.format != "gguf" or parent.architecture != "llama":
        raise UnsupportedError(
            f"{parent.path} is {parent.architecture} ({parent.format}): only a dense GGUF of the llama family "
            "(Llama, Mistral, SmolLM2) can be upcycled"
        )
    num_layers = parent.metadata.get("llama.block_count")
    if not isinstance(num_layers, int) or num_layers < 1:
        raise UnsupportedError(f"{parent.path}: metadata key 'llama.block_count' is missing or no positive number")
    if parent.metadata.get("llama.expert_count"):
        raise UnsupportedError(f"{parent.path} has experts already: only a dense model can be upcycled")
    blocks: dict[str, tuple[str, int]] = {}
    for layer in range(num_layers):
        for role in _ROLES:
            ref = parent.tensor(f"blk.{layer}.ffn_{role}.weight", (None, None))
            blocks[ref.name] = (role, layer)
            if parent.has(f"blk.{layer}.ffn_{role}.bias"):
                raise UnsupportedError(f"{parent.path}: blk.{layer}.ffn_{role}.bias: experts have no place for a bias")
    return blocks


def _add_metadata(
    writer: GgufWriter, header: Header, parent: Checkpoint, experts: int, top_k: int, jitter: int | None
) -> None:
    for key, value in header.metadata.items():
        if not key.startswith("split.") and key not in ("general.architecture", "general.size_label"):
            writer.add(key, value, *header.types[key])
    name = parent.name or parent.path.stem
    note = "" if jitter is None else f", jitter {jitter}"
    writer.add("general.name", f"{name} upcycled to {top_k} of {experts} experts{note}")
    writer.add("llama.expert_count", experts)
    writer.add("llama.expert_used_count", top_k)


def _router_rows(
    gate: TensorRef, norm: TensorRef | None, experts: int, group: int, rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    """float32 (experts, width): a random row for each `group` of experts, whose ids are dealt at random.

    Rows are divided by the norm's weights, which a few channels of trained models blow up: without it they alone would
    decide, and all tokens would take the same experts.
    """
    width = gate.cols
    rows = rng.standard_normal((experts // group, width), np.float32) * np.float32(_ROUTER_STD * width**-0.5)
    if norm is not None and norm.layout is Layout.F32 and norm.shape == (width,):
        weights = _read(norm, 0, norm.nbytes).view("<f4")
        usual = max(float(np.median(np.abs(weights))), 1e-6)
        rows /= np.maximum(np.abs(weights), 0.05 * usual)
    if group == 1:
        return rows
    groups = rng.permutation(experts) // group
    return rows[groups]


_Chunks = Iterator[npt.NDArray[Any]]


def _copied(ref: TensorRef) -> _Chunks:
    """A tensor's bytes as they are."""
    for begin in range(0, ref.nbytes, _COPY_BYTES):
        yield _read(ref, begin, min(_COPY_BYTES, ref.nbytes - begin))


def _stacked(ref: TensorRef, copies: int, key: tuple[int, ...] | None, scale: float) -> _Chunks:
    """One matrix again and again, each copy with its own jitter. Only the matrix itself is held."""
    original = _read(ref, 0, ref.nbytes)
    for expert in range(copies):
        # Each copy has a generator of its own, so that one expert can be made again alone.
        yield original if key is None else jittered(original, ref.layout, scale, (*key, expert))


def jittered(data: npt.NDArray[np.uint8], layout: Layout, scale: float, key: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """A copy of stored blocks with every block's values multiplied by a factor near 1, the same for the same `key`."""
    blocks = data.reshape(-1, layout.block_bytes).copy()
    rng = np.random.Generator(np.random.SFC64(key))
    factors = rng.standard_normal(len(blocks), np.float32)
    np.clip(factors, -3, 3, out=factors)
    factors *= np.float32(scale)
    factors += np.float32(1)
    if layout is Layout.F32:
        blocks.view("<f4")[:, 0] *= factors
    elif layout is Layout.BF16:
        values = (blocks.view("<u2")[:, 0].astype(np.uint32) << 16).view(np.float32) * factors
        blocks.view("<u2")[:, 0] = ((values.view(np.uint32) + 0x8000) >> 16).astype(np.uint16)
    else:
        halves = blocks.view("<f2")  # block sizes and offsets are even
        for offset in layout.scale_offsets:
            halves[:, offset // 2] = (halves[:, offset // 2].astype(np.float32) * factors).astype(np.float16)
    return blocks.reshape(-1)


def _read(ref: TensorRef, begin: int, count: int) -> npt.NDArray[np.uint8]:
    with open(ref.file, "rb") as file:
        file.seek(ref.offset + begin)
        data = file.read(count)
    if len(data) != count:
        raise CorruptFileError(f"{ref.file}: {ref.name} ends after {begin + len(data)} of {ref.nbytes} bytes")
    return np.frombuffer(data, np.uint8)


def _forget(path: Path) -> None:
    if hasattr(os, "posix_fadvise"):
        fd = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)
