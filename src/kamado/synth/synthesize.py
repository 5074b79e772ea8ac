"""Random-weight models of a family's real shape, as GGUF files: for speed at scale, memory tests and routing studies.

Activations stay finite and near norm 1: matrices that read the residual stream have standard deviation 1/sqrt(width),
those that write to it add a small fixed share each. Weights are random codes, not quantised random numbers, so a file
is written about as fast as the disk takes it. The tokenizer is copied from a model at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue
from threading import Event, Thread
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ..errors import UnsupportedError, UsageError
from ..files.gguf_header import read_header
from ..files.gguf_writer import GgufWriter
from ..files.strings import Strings
from ..files.types import Checkpoint, Layout
from .families import shape_of
from .quantise import quantize, random_blocks
from .routing import RouterPlan, plan_router, residual_growth, router_rows, shared_norm
from .shapes import Shape, described, divisors_of, metadata_of, part_of
from .tensors import LAYOUTS, Blueprint, TensorPlan, blueprint_of
from .vocabulary import Entry, resized

_T = TypeVar("_T")

_CHUNK_BYTES = 8 << 20
_DENSE_GROWTH = 4.0  # variance that all layers together add to an embedding's, in models without a router to steer
_BIAS_STD = 0.1  # against what it is added to
_GATED_STD = 0.6  # of silu(g) * u for normal g and u of variance 1
# Of trained delta rules, roughly: how fast a head forgets, from within a few tokens to within ten thousand.
_DECAYS = (0.01, 16.0)
_TIME_STEPS = (0.001, 0.1)


@dataclass(frozen=True, slots=True)
class SynthReport:
    """What was written."""

    path: Path
    nbytes: int
    shape: Shape
    hot_shares: tuple[float, ...]  # a layer: estimated share of picks of the hottest half of the experts

    @property
    def hot_share(self) -> float | None:
        """The mean over layers, None for a dense model."""
        return sum(self.hot_shares) / len(self.hot_shares) if self.hot_shares else None


def synthesize(
    out: Path,
    family: str,
    *,
    tokenizer_from: Checkpoint,
    layers: int | None = None,
    hidden: int | None = None,
    heads: int | None = None,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    ffn: int | None = None,
    experts: int | None = None,
    top_k: int | None = None,
    expert_width: int | None = None,
    context: int | None = None,
    vocab: int | None = None,
    part: float | None = None,
    layout: str = "q4_k",
    skew: float | None = None,
    seed: int = 0,
    header_only: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> SynthReport:
    """Write a model of `family` (a key of families.SHAPES) to `out`; what is None is the family's own.

    `layout`: a key of tensors.LAYOUTS; q4_k_m mixes layouts as real files do. `skew`: the share of picks that the
    hottest half of each layer's experts shall take, 0.5 (the default) is flat. `vocab`: tokens, the tokenizer's own
    when None; `part`: that share of the published layers and vocabulary. `header_only`: the tensors are a hole in the
    file, which a plan can be made of, and which takes no room. The same arguments give the same bytes.
    `progress(done, total)` counts bytes. The file appears when it is whole. Raises UsageError for settings that do not
    fit, UnsupportedError when the tokenizer does not come from a GGUF file.
    """
    if layout not in LAYOUTS:
        raise UsageError(f"no layout {layout!r}; there are {', '.join(LAYOUTS)}")
    changes = {
        "layers": layers, "hidden": hidden, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "ffn": ffn,
        "experts": experts, "top_k": top_k, "expert_width": expert_width, "context": context, "vocab": vocab,
    }  # fmt: skip
    if part is not None:
        if layers is not None or vocab is not None:
            raise UsageError("a part says how many layers and tokens there are: leave out layers and vocab")
        changes |= part_of(shape_of(family, {}), part)
    shape = shape_of(family, changes)
    if skew is not None and not shape.experts:
        raise UsageError(f"{family} is a dense family: skew has no meaning for it")
    if skew is not None and header_only:
        raise UsageError("a header alone has no routers: leave out skew")
    tokenizer = _tokenizer(tokenizer_from, changes["vocab"])
    vocab_size = len(tokenizer["tokenizer.ggml.tokens"][0])
    blueprint = blueprint_of(shape, vocab_size, layout)
    rng = np.random.Generator(np.random.SFC64(seed))
    routers = {
        i: plan_router(shape.experts, shape.top_k, skew or 0.5, layer=i, num_layers=shape.layers, rng=rng)
        for i in ([] if header_only else [plan.layer for plan in blueprint.tensors if plan.kind == "router"])
    }
    writer = GgufWriter(shape.architecture)
    _add_metadata(writer, described(shape, family), layout, list(routers.values()))
    for key, value in metadata_of(shape, vocab_size):
        writer.add(key, value)
    for key, entry in tokenizer.items():
        writer.add(key, *entry)
    for plan in blueprint.tensors:
        writer.add_tensor(plan.name, plan.shape, plan.layout)
    out = Path(out).absolute()
    if header_only:
        # The divisors are all that a program looks at.
        writer.write_hollow(out, {name: np.array(divisors_of(shape), np.float32) for name in shape.divisors})
    else:
        source = _Weights(shape, blueprint, skew or 0.5, routers, rng)
        _write(
            writer, out, ((plan.name, chunk) for plan in blueprint.tensors for chunk in source.chunks(plan)), progress
        )
    return SynthReport(out, out.stat().st_size, shape, tuple(router.share for router in routers.values()))


def _write(
    writer: GgufWriter,
    out: Path,
    chunks: Iterator[tuple[str, npt.NDArray[Any]]],
    progress: Callable[[int, int], None] | None,
) -> None:
    done, total = 0, writer.tensor_bytes()
    with writer.open(out) as sink:
        for name, chunk in _ahead(chunks):
            sink.write(name, chunk)
            done += chunk.nbytes
            if progress is not None:
                progress(done, total)


def _ahead(items: Iterator[_T], depth: int = 4) -> Iterator[_T]:
    """The items, made by a thread that is up to `depth` of them ahead: numbers are made while the disk writes."""
    pending: Queue[_T | BaseException | None] = Queue(depth)
    is_abandoned = Event()

    def make() -> None:
        try:
            for item in items:
                pending.put(item)
                if is_abandoned.is_set():
                    return
            pending.put(None)
        except BaseException as error:
            pending.put(error)

    thread = Thread(target=make, name="synth", daemon=True)
    thread.start()
    try:
        while (item := pending.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        is_abandoned.set()
        while thread.is_alive():  # a full queue would keep it waiting
            with suppress(Empty):
                pending.get(timeout=0.01)


def _tokenizer(source: Checkpoint, vocab_size: int | None) -> dict[str, Entry]:
    """The keys of the tokenizer, with as many tokens as are wanted: key -> (value, kinds as the writer takes them)."""
    if source.format != "gguf" or source.tokenizer is None:
        raise UnsupportedError(f"{source.path}: only a GGUF file with a tokenizer can lend it to another model")
    header = read_header(source.files[0])
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, (list, Strings)) or not tokens:
        raise UnsupportedError(f"{header.path}: metadata key 'tokenizer.ggml.tokens' is missing: no tokenizer to copy")
    entries: dict[str, Entry] = {
        key: (value, *header.types[key]) for key, value in header.metadata.items() if key.startswith("tokenizer.")
    }
    return entries if vocab_size in (None, len(tokens)) else resized(entries, vocab_size)


def _add_metadata(writer: GgufWriter, what: str, layout: str, routers: list[RouterPlan]) -> None:
    """What the file says of itself."""
    if routers:
        share = sum(router.share for router in routers) / len(routers)
        what += f", hottest half of the experts takes {share:.2f} of the picks"
    writer.add("general.type", "model")
    writer.add("general.name", f"synthetic {what}")
    writer.add("general.file_type", LAYOUTS[layout][1])
    writer.add("general.quantization_version", 2)


class _Weights:
    """Makes the bytes of each tensor, a few MB at a time."""

    def __init__(
        self,
        shape: Shape,
        blueprint: Blueprint,
        skew: float,
        routers: Mapping[int, RouterPlan],
        rng: np.random.Generator,
    ) -> None:
        self.shape = shape
        self.has_post_norms = blueprint.has_post_norms
        self.expert_scale = blueprint.expert_scale
        self.rng = rng
        self.routers = routers
        self.shared = shared_norm(skew) if shape.experts else 0.0
        direction = rng.standard_normal(shape.hidden).astype(np.float32)
        self.direction = direction / np.linalg.norm(direction)
        # Norms divide the residual stream's size out; a tied table is also the head, so it sets the logits' size.
        self.embedding_std = 2 * shape.hidden**-0.5 if shape.tied else 1.0 / blueprint.embedding_scale
        residual_std = self.embedding_std * blueprint.embedding_scale
        growth = residual_growth(skew) if shape.experts else _DENSE_GROWTH
        self.added_std = residual_std * (growth / (2 * shape.layers)) ** 0.5 / blueprint.residual_scale

    def chunks(self, plan: TensorPlan) -> Iterator[npt.NDArray[Any]]:
        """The tensor's data in order."""
        if plan.kind in ("ones", "out_norm"):
            value = self.added_std if plan.kind == "out_norm" else 1.0
            yield np.full(plan.shape, value, np.float32)
        elif plan.kind == "zeros":
            yield np.zeros(plan.shape, np.float32)
        elif plan.kind in ("bias", "out_bias"):
            std = _BIAS_STD * (self.added_std if plan.kind == "out_bias" else 1.0)
            yield self.rng.standard_normal(plan.shape, np.float32) * np.float32(std)
        elif plan.kind == "divisors":
            yield np.array(divisors_of(self.shape), np.float32)
        elif plan.kind == "routed":  # what the router sees is divided by that
            yield np.full(plan.shape, self.shape.hidden**0.5, np.float32)
        elif plan.kind == "taps":
            yield self.rng.standard_normal(plan.shape, np.float32) * np.float32(plan.shape[-1] ** -0.5)
        elif plan.kind == "decay":
            yield -_log_uniform(_DECAYS, plan.shape, self.rng)
        elif plan.kind == "dt_bias":
            steps = _log_uniform(_TIME_STEPS, plan.shape, self.rng)
            yield np.log(np.expm1(steps))  # softplus of it is the step
        elif plan.kind == "router":
            yield router_rows(self.routers[plan.layer], self.direction, self.rng)
        elif plan.kind == "embedding" and self.shared:
            yield from self._shared_embedding(plan)
        else:
            yield from self._random(plan.layout, plan.shape, self._std(plan))

    def _std(self, plan: TensorPlan) -> float:
        if plan.kind == "embedding":
            return self.embedding_std
        std = plan.shape[-1] ** -0.5
        if plan.kind == "outward" and not self.has_post_norms:
            std *= self.added_std
            if "ffn" in plan.name:
                std /= _GATED_STD
            if plan.name.endswith("_exps.weight"):
                # the sum of k experts weighted by about 1/k shrinks by sqrt(k)
                std *= self.shape.top_k**0.5 / self.expert_scale
        return float(std)

    def _random(self, layout: Layout, shape: tuple[int, ...], std: float) -> Iterator[npt.NDArray[Any]]:
        num_blocks = int(np.prod(shape, dtype=np.int64)) // layout.block_values
        step = _CHUNK_BYTES // layout.block_bytes
        for begin in range(0, num_blocks, step):
            yield random_blocks(layout, min(step, num_blocks - begin), std, self.rng)

    def _shared_embedding(self, plan: TensorPlan) -> Iterator[npt.NDArray[Any]]:
        """Rows with the shared direction: random numbers, so these are truly quantised."""
        num_rows, hidden = plan.shape
        shared = self.direction * np.float32(self.shared * hidden**0.5)
        scale = np.float32(self.embedding_std / (1 + self.shared**2) ** 0.5)
        step = max(1, _CHUNK_BYTES // 4 // hidden)
        for begin in range(0, num_rows, step):
            rows = self.rng.standard_normal((min(step, num_rows - begin), hidden), np.float32)
            rows += shared
            rows *= scale
            yield quantize(rows, plan.layout)


def _log_uniform(
    ends: tuple[float, float], shape: tuple[int, ...], rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    low, high = np.log(ends)
    return np.exp(rng.uniform(low, high, shape)).astype(np.float32)
