"""gpt-oss as it is published, experts in MXFP4 with scales apart: the same numbers as transformers', the same bits as
from GGUF; and the mistakes of its readers that no other program can show."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy_executor
import pytest
import tiny_models
from native_runner import append, build, native_logits, needs_native
from numpy_executor import NumpyExecutor
from safetensors.numpy import load_file, save_file

from kamado import program as p
from kamado.errors import CheckpointError, CorruptFileError, MemoryBudgetError, UnsupportedError
from kamado.files import open_checkpoint
from kamado.files.layouts import Layout
from kamado.models import build_program

RNG = np.random.default_rng(12)
TOKENS = RNG.integers(0, tiny_models.VOCAB, 150).tolist()
HIDDEN, WIDTH, EXPERTS = 96, 32, tiny_models.EXPERTS  # whole blocks of 32 values, and two tiles of rows
QUANTISED = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)


def _random_mxfp4(rows: int, cols: int, magnitude: int) -> tuple[np.ndarray, np.ndarray]:
    """Blocks and scales as files have them; values around 2 ** magnitude."""
    blocks = RNG.integers(0, 256, (EXPERTS, rows, cols // 32, 16), np.uint8)
    scales = RNG.integers(124, 127, (EXPERTS, rows, cols // 32), np.uint8) + np.uint8(magnitude)
    return blocks, scales


def _values(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """What they mean: the lower half of a byte first."""
    codes = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(*blocks.shape[:-1], 32)
    values = FP4[codes & 7] * np.where(codes & 8, -1, 1) * np.exp2(scales.astype(np.float32) - 127)[..., None]
    return values.reshape(*values.shape[:-2], -1).astype(np.float32)


def _write(folder: Path, **changes: Any) -> tuple[Path, Path]:
    """A model in MXFP4, and the same in the transposed floats that transformers writes of it."""
    config = {"hidden_size": HIDDEN, "intermediate_size": WIDTH, **changes}
    floats = _floats(folder / "floats", config)
    tensors = load_file(floats / "model.safetensors")
    wide = dict(tensors)
    for i in range(tiny_models.LAYERS):
        experts = f"model.layers.{i}.mlp.experts."
        for part, rows, cols, magnitude in (("gate_up_proj", 2 * WIDTH, HIDDEN, 0), ("down_proj", HIDDEN, WIDTH, -1)):
            blocks, scales = _random_mxfp4(rows, cols, magnitude)
            del tensors[experts + part]
            tensors |= {f"{experts}{part}_blocks": blocks, f"{experts}{part}_scales": scales}
            wide[experts + part] = np.ascontiguousarray(_values(blocks, scales).swapaxes(1, 2))
    save_file(wide, floats / "model.safetensors", metadata={"format": "pt"})
    packed = folder / "mxfp4"
    packed.mkdir()
    save_file(tensors, packed / "model.safetensors", metadata={"format": "pt"})
    written = json.loads((floats / "config.json").read_text(encoding="utf-8"))
    text = json.dumps({**written, "quantization_config": QUANTISED})
    (packed / "config.json").write_text(text, encoding="utf-8")
    return packed, floats


def _floats(folder: Path, config: dict[str, Any]) -> Path:
    tiny_models.write(folder, "gpt_oss", **config)
    tensors = load_file(folder / "model.safetensors")
    sizes = {tiny_models.HIDDEN: HIDDEN}
    for name, values in tensors.items():
        if ".experts." in name and not name.endswith("_bias"):
            continue  # written anew
        shape = tuple(sizes.get(size, size) for size in values.shape)
        tensors[name] = tiny_models.random_tensor(name, shape, RNG, norm_base=1.0)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return _write(tmp_path_factory.mktemp("gpt-oss"))


def program(folder: Path) -> p.Program:
    return build_program(open_checkpoint(folder))


def test_blocks_and_scales_are_the_numbers_that_transformers_makes_of_them(written: tuple[Path, Path]) -> None:
    packed, floats = written
    experts = [op for op in program(packed).ops if isinstance(op, p.Experts)]
    assert {ref.layout for op in experts for ref in (*op.gate, *op.up, *op.down)} == {Layout.MXFP4}
    one, other = (NumpyExecutor(program(folder)).forward(TOKENS) for folder in written)
    assert np.array_equal(one, other)
    checkpoint = open_checkpoint(packed)
    sizes = (folder / "model.safetensors" for folder in (packed, floats))
    assert 0 <= next(sizes).stat().st_size - checkpoint.weight_bytes < 8192  # all but the header


@pytest.mark.parity
def test_transformers_agrees(written: tuple[Path, Path]) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("transformers", reason="transformers is not installed")
    from model_cases import reference_logits

    packed, floats = written
    reference = reference_logits(floats, TOKENS)
    assert np.abs(NumpyExecutor(program(packed)).forward(TOKENS) - reference).max() < 1e-4 * reference.std()


@pytest.mark.parity
def test_transformers_reads_the_same_of_blocks_and_scales(written: tuple[Path, Path]) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    mxfp4 = pytest.importorskip("transformers.integrations.mxfp4", reason="transformers is not installed")
    tensors = load_file(written[0] / "model.safetensors")
    wide = load_file(written[1] / "model.safetensors")
    for name in (name for name in tensors if name.endswith("_blocks")):
        stem = name.removesuffix("_blocks")
        blocks, scales = (torch.from_numpy(tensors[f"{stem}_{end}"]) for end in ("blocks", "scales"))
        made = mxfp4.convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
        assert np.array_equal(made.numpy(), wide[stem])


def _as_gguf(packed: Path, path: Path) -> Path:
    """As the converter does it: gate and up apart, a block's scale before its codes, values k and k + 16 in a byte."""
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    from gguf_export import export

    floats = packed.parent / "floats"
    export(floats, path)
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(path.with_name("packed.gguf"), "gpt-oss")
    for field in reader.fields.values():
        if field.name.startswith("gpt-oss."):
            writer.add_key_value(field.name, field.contents(), field.types[0])
    tensors = load_file(packed / "model.safetensors")
    for tensor in reader.tensors:
        found = tensor.name.split(".")
        part = found[2].removeprefix("ffn_").removesuffix("_exps")
        if tensor.name.endswith("_exps.weight"):
            stem = f"model.layers.{found[1]}.mlp.experts.{'down' if part == 'down' else 'gate_up'}_proj"
            blocks, scales = tensors[f"{stem}_blocks"], tensors[f"{stem}_scales"]
            if part != "down":
                blocks, scales = (both[:, ("gate", "up").index(part) :: 2] for both in (blocks, scales))
            codes = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(*blocks.shape[:-1], 32)
            halves = codes[..., :16] | codes[..., 16:] << 4
            raw = np.concatenate([scales[..., None], halves], axis=-1)
            raw = raw.reshape(*raw.shape[:-2], -1)
            writer.add_tensor(tensor.name, raw, raw_dtype=gguf.GGMLQuantizationType.MXFP4)
        else:
            writer.add_tensor(tensor.name, np.array(tensor.data))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    return path.with_name("packed.gguf")


@needs_native
def test_the_same_bits_from_both_formats_and_at_every_budget(written: tuple[Path, Path], tmp_path: Path) -> None:
    packed, floats = written
    wanted = native_logits(program(_as_gguf(packed, tmp_path / "model.gguf")), TOKENS)
    assert np.array_equal(native_logits(program(packed), TOKENS, num_threads=2), wanted)
    exact = NumpyExecutor(program(packed)).forward(TOKENS)
    assert np.abs(wanted - exact).max() < 0.2 * exact.std()  # products are of 8-bit activations
    for folder in (packed, floats):
        resident = native_logits(program(folder), TOKENS)
        with pytest.raises(MemoryBudgetError, match="too little") as caught:
            build(program(folder), expert_bytes=1)
        least = int(str(caught.value).rsplit(" ", 1)[1])
        for expert_bytes in (least, 2 * least):
            executor = build(program(folder), expert_bytes=expert_bytes, num_threads=2, verify_slots=True)
            streamed = append(executor, [(executor.create_sequence(), TOKENS)])
            ledger = executor.ledger()
            executor.close()
            assert np.array_equal(streamed, resident)
            assert ledger["record_bytes"] == sum(
                ref.nbytes + ref.scales_nbytes
                for op in program(folder).ops[:40]
                if isinstance(op, p.Experts)
                for ref in (op.gate[0], op.up[0], op.down[0])
            )


# --- mistakes ---------------------------------------------------------------------------------------------------------


def _gate(kind: str) -> Callable[..., Any]:
    """The gate as it must not be."""

    def wrong(activation: str, a: Any, b: Any, limit: float, alpha: float) -> Any:
        if kind == "clamped after the activation":
            return np.minimum(a / (1 + np.exp(-alpha * a)), limit) * (np.clip(b, -limit, limit) + 1)
        g = np.minimum(a, limit)
        if kind == "gate clamped below too":
            g = np.maximum(g, -limit)
        u = b if kind == "up not clamped" else np.clip(b, -limit, limit)
        return g / (1 + np.exp(-alpha * g)) * (u + (kind != "up without 1"))

    return wrong


@pytest.mark.parametrize("kind", ["clamped after the activation", "up not clamped", "up without 1"])
def test_a_wrong_gate_is_seen(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = program(tiny_models.write(tmp_path, "gpt_oss", swiglu_limit=1.0))
    right = NumpyExecutor(model).forward(TOKENS)
    monkeypatch.setattr(numpy_executor, "_gate", _gate("right"))
    assert np.abs(NumpyExecutor(model).forward(TOKENS) - right).max() < 1e-9
    monkeypatch.setattr(numpy_executor, "_gate", _gate(kind))
    assert np.abs(NumpyExecutor(model).forward(TOKENS) - right).max() > 1e-2 * right.std()


def _broken(model: p.Program, change: Callable[[Any], Any]) -> p.Program:
    return dataclasses.replace(model, ops=[change(op) for op in model.ops])


def _read_as_halves(op: Any) -> Any:
    """Gate the first half of the rows, up the second."""
    if not isinstance(op, p.Experts):
        return op
    def halves(refs: Any, first: int) -> Any:
        size = refs[0].layout.block_bytes * refs[0].rows
        return tuple(
            dataclasses.replace(ref, blocks=(ref.rows, 2 * ref.rows), offset=ref.offset - shift + first * size)
            for ref, shift in ((ref, 0 if first == 0 else refs[0].layout.block_bytes) for ref in refs)
        )
    del halves
    return dataclasses.replace(op, gate=op.up, up=op.gate)


class _SinkWithValue(NumpyExecutor):
    """Takes a sink for one more key whose value is that of the first."""

    def _attend(self, op: p.Attend, *rest: Any) -> Any:
        without = super()._attend(dataclasses.replace(op, sinks=None), *rest)
        return without


def test_a_sink_that_carries_a_value_is_seen(tmp_path: Path) -> None:
    model = program(tiny_models.write(tmp_path, "gpt_oss"))
    right = NumpyExecutor(model).forward(TOKENS)
    assert np.abs(_SinkWithValue(model).forward(TOKENS) - right).max() > 1e-2 * right.std()
