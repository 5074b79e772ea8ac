"""The shapes that `kamado synth` knows: as large as published, and alive when small."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from files.builders import tokenizer_metadata, write_gguf

from kamado.errors import MemoryBudgetError, UsageError
from kamado.files import open_checkpoint
from kamado.files.types import Checkpoint
from kamado.measure import program_of
from kamado.models import build_program
from kamado.plan.forecast import plan
from kamado.program import Attend, Conv, DeltaScan, Op, Program
from kamado.synth.families import SHAPES, shape_of
from kamado.synth.shapes import metadata_of
from kamado.synth.synthesize import synthesize
from kamado.synth.tensors import tensors_of

from .small import small

sys.path.append(str(Path(__file__).parents[1] / "models"))

from native_runner import append, build, needs_native

# Billions of parameters that the published model's page or name states; drafting layers are not among ours.
PARAMETERS = {
    "qwen3moe": 30.5, "olmoe": 6.9, "granitemoe": 1.3, "llama": 8.0, "mixtral": 46.7, "qwen2": 1.54, "qwen3": 1.7,
    "gemma3": 1.0, "glm4moe": 355, "glm4moe-air": 106, "solar-open": 102, "minimax-m2": 230, "step35": 196,
    "afmoe": 26, "ernie4_5": 0.36, "ernie4_5-moe": 21, "hunyuan-dense": 7.5, "hunyuan-moe": 80, "mistral-small": 24,
    "ministral3": 8.4, "smollm3": 3.1, "phi4": 14.7, "phi4-mini": 3.8, "olmo2": 7.3, "olmo3": 7.3, "seed_oss": 36,
    "arcee": 4.6, "nanbeige": 3.9, "plamo3": 2.0, "iquestcoder": 40, "granite": 8.2, "glm4": 9.4, "exaone4": 32,
    "lfm2": 1.17, "lfm2-8b-a1b": 8.3, "qwen35": 4.2, "qwen35moe": 35, "qwen35moe-397b": 397, "qwen3next": 80,
    "gpt-oss": 20.9, "gpt-oss-120b": 117, "gemma4-e2b": 4.6, "gemma4-26b-a4b": 25.2,
}  # fmt: skip
SPARSE = [name for name, shape in SHAPES.items() if shape.experts]

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """synthesize() into the test's directory, from a tokenizer of 512 tokens."""
    tokenizer = open_checkpoint(write_gguf(tmp_path / "tokenizer.gguf", tokenizer_metadata(512)))

    def run(family: str, **settings: Any) -> Path:
        return synthesize(tmp_path / "out.gguf", family, tokenizer_from=tokenizer, **settings).path

    return run


def tiny(family: str) -> dict[str, int]:
    """Sizes of a small model of the family, with experts whose rows are whole blocks of every layout."""
    return small(family, experts=16, top_k=4, expert_width=256)


@pytest.mark.parametrize("family", SHAPES)
def test_a_shape_has_the_parameters_of_the_published_model(family: str) -> None:
    shape = SHAPES[family]
    num = sum(math.prod(tensor.shape) for tensor in tensors_of(shape, shape.vocab, "f16"))
    assert num / 1e9 == pytest.approx(PARAMETERS[family], rel=0.04)


@pytest.mark.parametrize("family", SHAPES)
def test_a_header_alone_makes_a_program(family: str, make: Make) -> None:
    """Of the published size, in the room of a header."""
    shape = SHAPES[family]
    path = make(family, header_only=True, layout="q4_k_m")
    size = path.stat()
    program = build_program(open_checkpoint(path))
    assert (program.num_layers, program.hidden, program.vocab_size) == (shape.layers, shape.hidden, 512)
    assert (program.num_experts, program.top_k) == (shape.experts, shape.top_k)
    assert size.st_size > 50e6
    assert size.st_blocks * 512 < 2e6


@pytest.mark.parametrize(
    ("family", "cache", "record"),
    [
        ("glm4moe", 2 * 92 * 8 * 128 * 2, 0),
        ("glm4moe-air", 2 * 46 * 8 * 128 * 2, 0),
        ("minimax-m2", 2 * 62 * 8 * 128 * 2, 0),
        # A matrix of 128 by 128 a value head, and three rows of the convolved keys, queries and values.
        ("qwen35moe", 2 * 10 * 2 * 256 * 2, 30 * 4 * (32 * 128 * 128 + 3 * (2 * 16 + 32) * 128)),
        ("qwen35moe-397b", 2 * 15 * 2 * 256 * 2, 45 * 4 * (64 * 128 * 128 + 3 * (2 * 16 + 64) * 128)),
        ("qwen3next", 2 * 12 * 2 * 256 * 2, 36 * 4 * (32 * 128 * 128 + 3 * (2 * 16 + 32) * 128)),
    ],
)
def test_large_models_are_planned_from_a_header(family: str, cache: int, record: int, make: Make) -> None:
    """All of the published layers and vocabulary, in 16 GB; what a conversation keeps was worked out by hand."""
    shape = SHAPES[family]
    checkpoint = open_checkpoint(make(family, header_only=True, layout="q4_k_m", part=1.0))
    program = program_of(checkpoint, ())
    assert program.vocab_size == shape.vocab
    forecast = plan(checkpoint, program, memory=16 << 30, context=4096, kv="exact")
    assert forecast.fits
    assert forecast.kv_formula.partition(" + ")[0] == f"{cache:,} B a token"
    assert forecast.record_bytes == record
    assert forecast.reuse_point_bytes == record
    assert forecast.conversation_bytes == 4096 * cache + 2 * record
    assert forecast.state_bytes_per_token == 2 * record
    assert 0 < forecast.bytes_by_owner["experts"] < 14 << 30


@needs_native
@pytest.mark.parametrize("family", SHAPES)
def test_small_ones_run(family: str, make: Make) -> None:
    """Logits are finite and of the size that synthetic weights aim at; streamed experts change no bit."""
    program = build_program(open_checkpoint(make(family, layout="q4_k_m", **tiny(family))))
    tokens = np.random.default_rng(1).integers(0, 512, 40).tolist()
    logits = _run(program, tokens)
    assert np.isfinite(logits).all()
    assert 0.05 < logits.std() < 4
    # No token says what another one does.
    assert np.abs(np.diff(logits, axis=0)).max(axis=1).min() > 0.1 * logits.std()
    if family in SPARSE:
        with pytest.raises(MemoryBudgetError, match="too little") as caught:
            build(program, expert_bytes=1)
        least = int(str(caught.value).rsplit(" ", 1)[1])
        assert np.array_equal(_run(program, tokens, expert_bytes=least, verify_slots=True), logits)


def _run(program: Program, tokens: list[int], **options: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    executor = build(program, max_rows=64, max_tokens=256, **options)
    try:
        return append(executor, [(executor.create_sequence(), tokens)])
    finally:
        executor.close()


def test_what_belongs_to_layers_follows_their_number() -> None:
    keys = dict(metadata_of(shape_of("step35", {"layers": 6, "heads": 8, "kv_heads": 4}), 512))
    assert keys["step35.attention.head_count"] == [8, 12, 12, 12, 8, 12]
    assert keys["step35.attention.head_count_kv"] == [4] * 6
    assert keys["step35.attention.sliding_window_pattern"] == [False, True, True, True, False, True]
    assert dict(metadata_of(shape_of("glm4moe", {"head_dim": 64}), 512))["glm4moe.rope.dimension_count"] == 32
    tensors = {tensor.name: tensor for tensor in tensors_of(shape_of("step35", {"layers": 6}), 512, "q4_k_m")}
    assert tensors["blk.0.attn_q.weight"].shape == (64 * 128, 4096)
    assert tensors["blk.1.attn_q.weight"].shape == (96 * 128, 4096)
    assert tensors["blk.1.attn_gate.weight"].shape == (96, 4096)
    assert "blk.2.ffn_gate.weight" in tensors
    assert "blk.3.ffn_gate.weight" not in tensors
    assert tensors["rope_freqs.weight"].shape == (64,)


def test_q4_k_m_of_parts_that_only_some_families_have() -> None:
    """As llama-quantize of llama.cpp decides for files of these shapes with nine layers."""

    def layouts(family: str, role: str, **changes: int) -> str:
        plans = tensors_of(shape_of(family, {"layers": 9, **changes}), 512, "q4_k_m")
        return " ".join(plan.layout.name for plan in plans if plan.name.removeprefix(f"blk.{plan.layer}.") == role)

    mixed = "Q6_K Q4_K Q4_K Q6_K Q4_K Q4_K Q6_K Q6_K Q6_K"
    assert layouts("phi4", "attn_qkv.weight") == mixed
    assert layouts("glm4moe-air", "ffn_down_exps.weight") == "Q5_0 Q5_0 Q8_0 Q5_0 Q5_0 Q8_0 Q8_0 Q8_0"
    assert layouts("minimax-m2", "ffn_down_exps.weight") == mixed
    assert layouts("hunyuan-moe", "ffn_down_shexp.weight") == mixed
    assert layouts("glm4moe", "ffn_down.weight") == "Q6_K Q4_K Q4_K"
    assert layouts("glm4moe", "ffn_down_shexp.weight") == "Q6_K Q4_K Q4_K Q6_K Q6_K Q6_K"
    assert layouts("step35", "attn_gate.weight") == "Q4_K " * 8 + "Q4_K"
    assert layouts("minimax-m2", "ffn_gate_inp.weight") == "F32 " * 8 + "F32"
    # Two passes through nine layers: for ffn_down it counts 18.
    assert layouts("nanbeige", "attn_v.weight") == mixed
    assert layouts("nanbeige", "ffn_down.weight", ffn=10240) == "Q6_K Q6_K Q4_K Q4_K Q6_K Q4_K Q4_K Q6_K Q4_K"
    assert layouts("iquestcoder", "attn_v.weight", layers=80).split()[10:13] == ["Q5_K", "Q5_K", "Q6_K"]


def test_a_part_keeps_the_proportions(make: Make) -> None:
    whole, part = SHAPES["glm4moe-air"], 0.25
    program = build_program(open_checkpoint(make("glm4moe-air", header_only=True, part=part)))
    assert (program.num_layers, program.vocab_size) == (round(46 * part), 151552 * part)
    assert (program.hidden, program.num_experts) == (whole.hidden, whole.experts)


@pytest.mark.parametrize(
    ("family", "part", "layers", "kinds"),
    [
        # Whole patterns of four, and as much of the vocabulary as of the layers.
        ("qwen35moe", 0.5, 20, "dddA" * 5),
        ("qwen35moe", 0.44, 16, "dddA" * 4),
        ("qwen35moe-397b", 0.25, 16, "dddA" * 4),
        ("qwen3next", 0.01, 4, "dddA"),
        ("qwen35", 1.0, 32, "dddA" * 8),
        # No pattern: as many of a kind, and about where they are.
        ("lfm2", 1.0, 16, "ccAccAccAcAcAcAc"),
        ("lfm2", 0.5, 8, "ccAccAcA"),
        ("lfm2-8b-a1b", 0.5, 12, "cccAcccAccAc"),
        ("gpt-oss", 0.5, 12, "lAlAlAlAlAlA"),
        ("gemma4-26b-a4b", 0.5, 12, "lllllAlllllA"),  # two patterns: 2.5 rounds to even
        ("gemma4-e2b", 0.3, 10, "llllAlllls"),  # local ones that read another's keys have a window too
    ],
)
def test_a_part_keeps_what_kinds_of_layers_there_are(
    family: str, part: float, layers: int, kinds: str, make: Make
) -> None:
    program = build_program(open_checkpoint(make(family, header_only=True, part=part)))
    assert program.num_layers == layers
    if kinds[0] == "d":
        assert program.vocab_size == round(SHAPES[family].vocab * layers / SHAPES[family].layers)
    assert "".join(map(_letter, program.ops)).replace("c", "c" if "d" not in kinds else "") == kinds


def _letter(op: Op) -> str:
    """Of an operation that a layer has one of; "" of all others."""
    if isinstance(op, Attend):
        return "l" if op.window else "A" if op.stores else "s"
    return "d" if isinstance(op, DeltaScan) else "c" if isinstance(op, Conv) else ""


def test_layers_that_share_keys_stand_behind_whole_patterns() -> None:
    """llama.cpp takes the keys of the last layer before them for global ones, of the one before it for local ones."""
    for layers, sharing in ((35, 20), (20, 10), (15, 10), (10, 5), (5, 0)):
        keys = dict(metadata_of(shape_of("gemma4-e2b", {"layers": layers}), 512))
        assert keys["gemma4.attention.shared_kv_layers"] == sharing
        assert keys["gemma4.feed_forward_length"] == [6144] * (layers - sharing) + [12288] * sharing
        assert (layers - sharing) % 5 == 0


def test_of_global_heads_a_quarter_turns(make: Make) -> None:
    checkpoint = open_checkpoint(make("gemma4-e2b", header_only=True))
    ref = checkpoint.tensor("rope_freqs.weight", (256,))
    divisors = np.fromfile(ref.file, np.float32, 256, offset=ref.offset)
    assert (divisors[:64] == 1).all()
    assert (divisors[64:] == np.float32(1e30)).all()


def test_more_layers_than_were_chosen_repeat_them() -> None:
    keys = dict(metadata_of(shape_of("lfm2", {"layers": 20}), 512))
    assert keys["lfm2.attention.head_count_kv"] == [0, 0, 8, 0, 0, 8, 0, 0, 8, 0, 8, 0, 8, 0, 8, 0, 0, 0, 8, 0]


def test_q4_k_m_of_layers_that_have_no_values() -> None:
    """llama-quantize counts the tensors of values, not the layers: of six in sixteen layers the third and the
    last get more bits. Taps and decays stay as they are."""
    plans = {plan.name: plan for plan in tensors_of(shape_of("lfm2", {}), 512, "q4_k_m")}
    values = [plan.layout.name for name, plan in plans.items() if name.endswith("attn_v.weight")]
    assert " ".join(values) == "Q4_K Q4_K Q6_K Q4_K Q4_K Q6_K"
    assert plans["blk.0.shortconv.conv.weight"].layout.name == "F32"
    delta = {plan.name: plan for plan in tensors_of(shape_of("qwen35moe", {"layers": 8}), 512, "q4_k_m")}
    assert [delta[f"blk.{i}.attn_qkv.weight"].layout.name for i in (0, 1, 2)] == ["Q6_K", "Q4_K", "Q4_K"]
    assert delta["blk.3.attn_v.weight"].layout.name == "Q6_K"
    assert delta["blk.0.ssm_conv1d.weight"].layout.name == delta["blk.0.ssm_a"].layout.name == "F32"
    assert delta["blk.0.ffn_gate_inp_shexp.weight"].shape == (2048,)
    assert delta["blk.0.ssm_alpha.weight"].layout.name == "Q4_K"


@pytest.mark.parametrize("family", ["qwen35", "qwen3next"])
def test_decays_are_as_trained_ones(family: str, make: Make) -> None:
    """Of a head a step: from half an hour's talk to a word, so that no state grows or dies at once."""
    checkpoint = open_checkpoint(make(family, **tiny(family)))

    def floats(name: str) -> np.ndarray[Any, np.dtype[np.float32]]:
        ref = checkpoint.tensor(name)
        return np.fromfile(ref.file, np.float32, ref.num_values, offset=ref.offset)

    decay = np.concatenate([floats(f"blk.{i}.ssm_a") for i in range(3)])
    step = np.log1p(np.exp(np.concatenate([floats(f"blk.{i}.ssm_dt.bias") for i in range(3)])))
    assert (decay >= -16).all()
    assert (decay <= -0.01).all()
    assert ((step > 0.0009) & (step < 0.11)).all()
    assert np.ptp(np.log(-decay)) > 3


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        ("glm4moe", {"part": 0.03}, "leaves 3 of 92 layers: too few"),
        ("qwen3", {"part": 1.5}, "a part of 1.5 is out of range"),
        ("qwen3", {"part": 0.5, "layers": 3}, "leave out layers and vocab"),
        ("qwen3", {"part": 0.5, "vocab": 64}, "leave out layers and vocab"),
        ("minimax-m2", {"skew": 0.7, "header_only": True}, "a header alone has no routers"),
        ("qwen3", {"vocab": 1}, "no room for 2 special tokens"),
    ],
)
def test_refusals(family: str, settings: dict[str, Any], message: str, make: Make, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        make(family, **settings)
    assert not (tmp_path / "out.gguf").exists()


def test_vocabularies_grow_and_shrink(tmp_path: Path) -> None:
    words = [*"abcd", "ab", "cd", "abcd", "<s>", "bc"]
    source = write_gguf(
        tmp_path / "tokenizer.gguf",
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "default",
            "tokenizer.ggml.tokens": words,
            "tokenizer.ggml.token_type": [1, 1, 1, 1, 1, 1, 1, 3, 1],
            "tokenizer.ggml.merges": ["a b", "c d", "ab cd", "b c"],
            "tokenizer.ggml.bos_token_id": 7,
            "tokenizer.ggml.eos_token_id": 8,
        },
    )

    def resized(vocab: int) -> tuple[Checkpoint, dict[str, Any]]:
        path = tmp_path / f"{vocab}.gguf"
        synthesize(path, "llama", tokenizer_from=open_checkpoint(source), vocab=vocab, header_only=True, layers=1)
        checkpoint = open_checkpoint(path)
        assert checkpoint.tokenizer is not None
        data = {key.removeprefix("tokenizer.ggml."): value for key, value in checkpoint.tokenizer.data.items()}
        return checkpoint, data

    checkpoint, fewer = resized(7)
    assert list(fewer["tokens"]) == ["a", "b", "c", "d", "ab", "<s>", "bc"]
    assert list(fewer["token_type"]) == [1, 1, 1, 1, 1, 3, 1]
    assert list(fewer["merges"]) == ["a b", "b c"]
    assert (fewer["bos_token_id"], fewer["eos_token_id"]) == (5, 6)
    assert checkpoint.tensor("token_embd.weight").rows == 7
    checkpoint, more = resized(12)
    assert list(more["tokens"]) == [*words, "[PAD9]", "[PAD10]", "[PAD11]"]
    assert list(more["token_type"])[-4:] == [1, 5, 5, 5]
    assert list(more["merges"]) == ["a b", "c d", "ab cd", "b c"]
    assert checkpoint.tensor("output.weight").rows == 12
