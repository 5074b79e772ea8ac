"""gpt-oss as it is published, experts in MXFP4 with scales apart: the same numbers as transformers', the same bits as
from GGUF; and the mistakes of its readers that no other program can show."""

from __future__ import annotations

import dataclasses
import json
import re
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
from kamado.errors import CheckpointError, CorruptFileError, MemoryBudgetError, NativeError, UnsupportedError
from kamado.files import open_checkpoint
from kamado.files.layouts import Layout
from kamado.models import build_program
from kamado.plan import sizes

RNG = np.random.default_rng(12)
TOKENS = RNG.integers(0, tiny_models.VOCAB, 150).tolist()
HIDDEN, WIDTH, EXPERTS = 96, 32, tiny_models.EXPERTS  # whole blocks of 32 values, and two tiles of rows
QUANTISED = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)


def _random_mxfp4(rows: int, cols: int, magnitude: int) -> tuple[np.ndarray, np.ndarray]:
    """Blocks and scales as files have them; values around 2 ** magnitude."""
    blocks = RNG.integers(0, 256, (EXPERTS, rows, cols // 32, 16), np.uint8)
    scales = RNG.integers(124 + magnitude, 127 + magnitude, (EXPERTS, rows, cols // 32), np.uint8)
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
    packed, _ = written
    experts = [op for op in program(packed).ops if isinstance(op, p.Experts)]
    assert {ref.layout for op in experts for ref in (*op.gate, *op.up, *op.down)} == {Layout.MXFP4}
    one, other = (NumpyExecutor(program(folder)).forward(TOKENS) for folder in written)
    assert np.array_equal(one, other)
    checkpoint = open_checkpoint(packed)
    assert 0 <= (packed / "model.safetensors").stat().st_size - checkpoint.weight_bytes < 8192  # all but the header


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
        found = re.fullmatch(r"blk\.(\d+)\.ffn_(gate|up|down)_exps\.weight", tensor.name)
        if found:
            layer, part = found.groups()
            stem = f"model.layers.{layer}.mlp.experts.{'down' if part == 'down' else 'gate_up'}_proj"
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
    # Products are of 8-bit activations, and now and then another expert is picked.
    assert np.median(np.abs(wanted - exact)) < 0.03 * exact.std()
    for folder in (packed, floats):
        resident = native_logits(program(folder), TOKENS)
        with pytest.raises(MemoryBudgetError, match="too little") as caught:
            build(program(folder), expert_bytes=1)
        least = int(str(caught.value).rsplit(" ", 1)[1])
        for expert_bytes in (least, 2 * least):
            executor = build(program(folder), expert_bytes=expert_bytes, num_threads=2, verify_slots=True)
            streamed = append(executor, [(executor.create_sequence(), TOKENS)])
            ledger, resident_bytes = executor.ledger(), executor.stats()["weight_bytes"]
            executor.close()
            assert np.array_equal(streamed, resident)
            assert sizes.expert_needs(program(folder)).least_bytes == least
            assert sizes.dense_weight_bytes(program(folder)) == resident_bytes  # biases of experts among them
            assert ledger["expert_record_bytes"] == sizes.expert_needs(program(folder)).largest_record_bytes


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


@pytest.mark.parametrize(
    "kind", ["clamped after the activation", "gate clamped below too", "up not clamped", "up without 1"]
)
def test_a_wrong_gate_is_seen(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = program(tiny_models.write(tmp_path, "gpt_oss", swiglu_limit=1.0))
    right = NumpyExecutor(model).forward(TOKENS)
    monkeypatch.setattr(numpy_executor, "_gate", _gate("right"))
    assert np.abs(NumpyExecutor(model).forward(TOKENS) - right).max() < 1e-9
    monkeypatch.setattr(numpy_executor, "_gate", _gate(kind))
    assert np.abs(NumpyExecutor(model).forward(TOKENS) - right).max() > 1e-2 * right.std()


class _SinkWithValue(NumpyExecutor):
    """Takes the value of the first key for that of a sink."""

    def _sink_value(self, v: Any) -> Any:
        return v[:1]


class _BiasOutside(NumpyExecutor):
    """Adds the bias of each picked expert whole."""

    def _experts(self, op: p.Experts, x: Any, picked: Any, weights: Any) -> Any:
        out = super()._experts(dataclasses.replace(op, down_biases=()), x, picked, weights)
        return out + sum(self._get(op.down_biases[e]) * (picked == e).sum(-1, keepdims=True) for e in range(EXPERTS))


@pytest.mark.parametrize("wrong", [_SinkWithValue, _BiasOutside])
def test_a_wrong_sum_is_seen(wrong: type[NumpyExecutor], tmp_path: Path) -> None:
    model = program(tiny_models.write(tmp_path, "gpt_oss"))
    right = NumpyExecutor(model).forward(TOKENS)
    assert np.abs(wrong(model).forward(TOKENS) - right).max() > 1e-2 * right.std()


def _as_halves(op: Any) -> Any:
    """The first half of the rows for gate, the second for up."""
    if not isinstance(op, p.Experts):
        return op
    both = [
        dataclasses.replace(gate, blocks=None, shape=(2 * WIDTH, HIDDEN), nbytes=2 * gate.nbytes) for gate in op.gate
    ]
    gate, up = (tuple(pair.row_range(at, at + WIDTH) for pair in both) for at in (0, WIDTH))
    return dataclasses.replace(op, gate=gate, up=up)


def test_alternating_rows_read_as_halves_are_seen(written: tuple[Path, Path]) -> None:
    model = program(written[0])
    right = NumpyExecutor(model).forward(TOKENS)
    wrong = dataclasses.replace(model, ops=[_as_halves(op) for op in model.ops])
    assert np.abs(NumpyExecutor(wrong).forward(TOKENS) - right).max() > 1e-2 * right.std()


def test_rounded_corners_of_yarn_are_seen(tmp_path: Path) -> None:
    rope = {"rope_type": "yarn", "rope_theta": 150000.0, "factor": 32.0, "original_max_position_embeddings": 64}
    one, other = (
        NumpyExecutor(
            program(tiny_models.write(tmp_path / str(rounds), "gpt_oss", rope_parameters={**rope, "truncate": rounds}))
        )
        for rounds in (True, False)
    )
    right = one.forward(TOKENS)
    assert np.abs(other.forward(TOKENS) - right).max() > 1e-2 * right.std()


def test_without_a_word_on_rotation_yarn_is_what_the_class_of_transformers_takes(tmp_path: Path) -> None:
    folder = tiny_models.write(tmp_path, "gpt_oss", max_position_embeddings=131072)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    del config["rope_parameters"]
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    told = {"rope_type": "yarn", "rope_theta": 150000.0, "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0}
    told |= {"truncate": False, "original_max_position_embeddings": 4096}
    other = tiny_models.write(tmp_path / "told", "gpt_oss", rope_parameters=told, max_position_embeddings=131072)
    assert p.format_program(program(folder)) == p.format_program(program(other))


# --- files that cannot be -----------------------------------------------------------------------------------------


def _changed(packed: Path, to: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> Path:
    tensors = load_file(packed / "model.safetensors")
    config = json.loads((packed / "config.json").read_text(encoding="utf-8"))
    change(tensors, config)
    save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})
    (to / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return to


_GATE_UP = "model.layers.1.mlp.experts.gate_up_proj"


@pytest.mark.parametrize(
    ("change", "fault", "message"),
    [
        (lambda t, c: t.pop(f"{_GATE_UP}_scales"), CorruptFileError, f"{_GATE_UP}_blocks' has no '{_GATE_UP}_scales'"),
        (lambda t, c: t.pop(f"{_GATE_UP}_blocks"), CheckpointError, _GATE_UP),
        (lambda t, c: t.update({f"{_GATE_UP}_scales": t[f"{_GATE_UP}_scales"][:, ::2]}), CorruptFileError, "16 bytes"),
        (lambda t, c: t.update({f"{_GATE_UP}_blocks": t[f"{_GATE_UP}_blocks"][..., :8]}), CorruptFileError, "16 bytes"),
        (
            lambda t, c: t.update({f"{_GATE_UP}_scales": t[f"{_GATE_UP}_scales"].astype(np.int8)}),
            CorruptFileError,
            "of U8 beside it",
        ),
        (lambda t, c: t.update({_GATE_UP: np.zeros(3, np.float32)}), CorruptFileError, "is there, and"),
        (lambda t, c: t.pop(f"{_GATE_UP}_bias"), CheckpointError, f"{_GATE_UP}_bias"),
        (lambda t, c: t.pop("model.layers.0.self_attn.sinks"), CheckpointError, "sinks"),
        (lambda t, c: c.pop("quantization_config"), CheckpointError, "gate_up_proj"),
        (
            lambda t, c: c["quantization_config"].update(quant_method="fp8"),
            CheckpointError,
            "gate_up_proj|quant_method",
        ),
        (
            lambda t, c: c["quantization_config"].update(group_size=16),
            UnsupportedError,
            r"quantization_config\.group_size",
        ),
        (lambda t, c: c.update(swiglu_limit=0.0), CheckpointError, "swiglu_limit"),
        (lambda t, c: c.update(hidden_act="gelu"), UnsupportedError, "hidden_act"),
        (lambda t, c: c.update(intermediate_size=33), CheckpointError, "down_proj|gate_up_proj"),
        (lambda t, c: c.update(experts_per_token=4), CheckpointError, "experts_per_token"),
    ],
)
def test_a_file_that_cannot_be_is_refused_by_name(
    change: Any, fault: type[Exception], message: str, written: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(fault, match=message):
        program(_changed(written[0], tmp_path, change))


def test_blocks_of_another_family_stay_unread(written: tuple[Path, Path], tmp_path: Path) -> None:
    folder = tiny_models.write(tmp_path, "qwen3", quantization_config=QUANTISED)
    with pytest.raises(UnsupportedError, match="quantization_config"):
        program(folder)


@needs_native
@pytest.mark.parametrize("part", ["gate_up_proj_scales", "down_proj_blocks"])
def test_a_file_that_ends_too_early_is_refused(part: str, written: tuple[Path, Path]) -> None:
    """Whatever a tensor's place says: the executor asks the file itself."""
    model = program(written[0])

    def moved(op: Any) -> Any:
        if not isinstance(op, p.Experts):
            return op
        far = 1 << 40
        if part.endswith("scales"):
            assert op.gate[0].scales is not None
            first = dataclasses.replace(op.gate[0], scales=(op.gate[0].scales[0], far))
            return dataclasses.replace(op, gate=(first, *op.gate[1:]))
        return dataclasses.replace(op, down=(dataclasses.replace(op.down[0], offset=far), *op.down[1:]))

    with pytest.raises(NativeError, match="reaches past the end of"):
        build(dataclasses.replace(model, ops=[moved(op) for op in model.ops]))
