"""What the tests know of a family apart from the code under test: one file in families/ each, found by itself."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import tiny_sizes

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, FFN, LAYERS, VOCAB = tiny_sizes.WIDTHS
EXPERTS, TOP_K, EXPERT_WIDTH = tiny_sizes.EXPERTS

Shapes = dict[str, tuple[int, ...]]

BASE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": FFN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 512,
}
# For families without a head_dim of their own.
NO_HEAD_DIM = {**{k: v for k, v in BASE.items() if k != "head_dim"}, "hidden_size": HEADS * HEAD_DIM}
QK_NORMS: Shapes = {"self_attn.q_norm.weight": (HEAD_DIM,), "self_attn.k_norm.weight": (HEAD_DIM,)}

QKV_BIASES: Shapes = {
    "self_attn.q_proj.bias": (HEADS * HEAD_DIM,),
    "self_attn.k_proj.bias": (KV_HEADS * HEAD_DIM,),
    "self_attn.v_proj.bias": (KV_HEADS * HEAD_DIM,),
}

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
# Router bias and shared expert of DeepSeek's kin, as the converter calls the bias.
SCORE_BIAS = {"e_score_correction_bias": "e_score_correction.bias"}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}


def heads(q: int, kv: int, **more: Any) -> dict[str, Any]:
    """Settings with q query heads and kv key-value heads."""
    return {"num_attention_heads": q, "num_key_value_heads": kv, **more}


def mlp(hidden: int, layer: int) -> Shapes:
    """The usual MLP."""
    inward, outward = (FFN, hidden), (hidden, FFN)
    return {"mlp.gate_proj.weight": inward, "mlp.up_proj.weight": inward, "mlp.down_proj.weight": outward}


def experts(
    width: int, block: str = "mlp.", parts: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
) -> Any:
    """A router and one tensor an expert, gate, up and down being called `parts`."""
    gate, up, down = parts

    def shapes(hidden: int, layer: int) -> Shapes:
        result: Shapes = {f"{block}gate.weight": (EXPERTS, hidden)}
        for e in range(EXPERTS):
            expert = f"{block}experts.{e}."
            result |= {f"{expert}{gate}.weight": (width, hidden), f"{expert}{up}.weight": (width, hidden)}
            result[f"{expert}{down}.weight"] = (hidden, width)
        return result

    return shapes


def shared_experts(width: int) -> Any:
    """Experts of `experts` with a bias for their choice, and one that sees every row."""
    routed, shared = experts(width), "mlp.shared_experts."

    def shapes(hidden: int, layer: int) -> Shapes:
        inward, outward = (width, hidden), (hidden, width)
        result = {**routed(hidden, layer), "mlp.gate.e_score_correction_bias": (EXPERTS,)}
        result |= {f"{shared}gate_proj.weight": inward, f"{shared}up_proj.weight": inward}
        return {**result, f"{shared}down_proj.weight": outward}

    return shapes


TRAINED = ("A_log", "dt_bias")  # ends of names of what `as_trained` draws


def as_trained(name: str, shares: Any) -> Any:
    """A delta rule's decays of 0.01 to 16 and time steps of 0.001 to 1, where the shares of the ways there lie."""
    if name.endswith("A_log"):
        return np.log(0.01) + shares * np.log(16 / 0.01)
    steps = 0.001 ** (1 - shares)
    return steps + np.log(-np.expm1(-steps))  # what softplus makes them of


@dataclass(frozen=True)
class Wrapper:
    """A multimodal config.json: the model_type of its `text_config`, and what stands beside that."""

    text: str
    beside: dict[str, Any]


_EYE = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28}

_QWEN_EYE = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
_QWEN_TOKENS = {"image_token_id": 90, "video_token_id": 91, "vision_start_token_id": 92, "vision_end_token_id": 93}

WRAPPERS = {
    "gemma3": Wrapper("gemma3_text", {"vision_config": _EYE, "image_token_index": 90}),
    "gemma4": Wrapper(
        "gemma4_text",
        {
            "vision_config": {**_EYE, "num_key_value_heads": 2, "head_dim": 8, "position_embedding_size": 64},
            "audio_config": None,
            "image_token_id": 90,
        },
    ),
    "mistral3": Wrapper("mistral", {"vision_config": {**_EYE, "head_dim": 8}, "image_token_index": 90}),
    "step3p7": Wrapper(
        "step3p5", {"vision_config": {**_EYE, "patch_size": 14, "mlp_ratio": 1.0}, "image_token_id": 90}
    ),
    **{
        name: Wrapper(f"{name}_text", {"vision_config": _QWEN_EYE, **_QWEN_TOKENS})
        for name in ("qwen3_5", "qwen3_5_moe")
    },
}


@dataclass(frozen=True)
class Case:
    """One comparison with transformers; `config` holds arguments of its configuration class."""

    name: str
    config: dict[str, Any] = field(default_factory=dict)  # of its text part, where it has one
    gguf: bool = True  # whether GGUF can express it
    exact: bool = False  # whether the GGUF route has the very same sums: no permuted heads, no rounded rope factors
    family: str = ""  # model_type; that of the file when empty
    continues: bool = True  # False: transformers' forward would go on from a cache that is not valid any more


@dataclass(frozen=True)
class Gguf:
    """How a converter makes a GGUF file of it."""

    member: str  # of gguf.MODEL_ARCH, whose names of tensors it takes
    architecture: str | None = None  # what the file calls itself, where that is not the member's name
    permuted: bool = False  # q and k are stored in the order of interleaved pairs
    settings: Callable[[Any, dict[str, Any]], None] | None = None  # (gguf writer, config.json) beyond the usual
    names: Mapping[str, str] = field(default_factory=dict)  # ends of names that it changes first
    # (name, values, config.json) -> what it writes in the place of a tensor, before it looks the names up
    converted: Callable[[str, Any, dict[str, Any]], Mapping[str, Any]] | None = None
    keys: Mapping[str, Any] = field(default_factory=dict)  # what converters write beyond gguf_export.py

    @property
    def called(self) -> str:
        """The architecture of its files."""
        return self.architecture or gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH[self.member]]


@dataclass(frozen=True)
class Family:
    """A tiny model of the family, its text, how it becomes a GGUF file, and comparisons with transformers."""

    name: str  # model_type
    tiny: dict[str, Any]  # config.json
    attention: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # tensors of a layer beyond Llama's
    layers: str = "layers"  # what stands before the number of a layer
    without: tuple[str, ...] = ()  # tensors of a layer that Llama has and this has not
    outside: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # tensors of no layer, beyond Llama's
    ffn: Callable[[int, int], Shapes] = mlp  # (hidden, layer) -> tensors; a shape of () leaves one out
    number: int | None = None  # of the random numbers; None makes one from the name
    norm_base: float = 1.0  # 0: files store the norms' weights less 1
    stretched: Mapping[str, float] = field(default_factory=dict)  # ends of names whose values are so many times larger
    plain_norms: tuple[str, ...] = ()  # ends of names of those that they store as they are
    last_norm: str = "norm"
    golden: tuple[int, list[int]] | None = None  # seed and greedy text, from test_models_golden.py
    heading: str = f"layers 0-{LAYERS - 1}"  # in the program's text, of layers that are alike
    gguf: Gguf | None = None  # None: there is no GGUF of it
    cases: tuple[Case, ...] = ()
    published: Mapping[str, Any] = field(default_factory=dict)  # what config.json in the wild has beyond `tiny`

    def base_of(self, norm: str) -> float:
        """What the weights of a norm lie around."""
        return 1.0 if norm.endswith(self.plain_norms) else self.norm_base

    @property
    def has_reference(self) -> bool:
        """Whether transformers runs the family by itself, and not as a part of another."""
        return any(not case.family for case in self.cases)


def _found() -> dict[str, Family]:
    folder = Path(__file__).parent / "families"
    modules = [importlib.import_module(f"families.{module.name}") for module in pkgutil.iter_modules([str(folder)])]
    return {module.FAMILY.name: module.FAMILY for module in modules}


def families() -> dict[str, Family]:
    """Every family by its model_type."""
    if not _FAMILIES:
        _FAMILIES.update(_found())
    return _FAMILIES


_FAMILIES: dict[str, Family] = {}


def cases() -> tuple[Case, ...]:
    """The comparisons of all families."""
    return tuple(
        case if case.family else replace(case, family=family.name)
        for family in families().values()
        for case in family.cases
    )
