"""Typed, checked reads of a model file's settings, under GGUF's names in either format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, Final, TypeVar, cast

import numpy as np

from ..checkpoint.types import Checkpoint
from ..errors import MetadataError, UnsupportedError
from ..program import Activation
from .names import HF_KEYS

_T = TypeVar("_T")

# Bounds on what a file may ask for, checked before anything is built from it. Far above any published model.
MAX_LAYERS: Final = 1024
MAX_HEADS: Final = 1024
MAX_HEAD_DIM: Final = 4096
MAX_WIDTH: Final = 1 << 20
MAX_VOCAB: Final = 1 << 24
MAX_EXPERTS: Final = 4096
MAX_CONTEXT: Final = (1 << 31) - 1


class Required(Enum):
    """The default of a key that must be in the file."""

    REQUIRED = 0


REQUIRED: Final = Required.REQUIRED

Keys = Mapping[str, str | tuple[str, ...]]  # GGUF's name of a setting -> config.json's, or several in order

_ACTIVATIONS: Final[dict[str, Activation]] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu_erf",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "relu": "relu",
}

# Settings that change the result unless they have one of the values given. Checked for the keys no family code read.
_NEUTRAL_GGUF: Final[dict[str, tuple[Any, ...]]] = {
    "use_parallel_residual": (False,),
    "logit_scale": (0, 1),
    "residual_scale": (0, 1),
    "embedding_scale": (0, 1),
    "attn_logit_softcapping": (0,),
    "router_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
    "activation_sparsity_scale": (),
    "swin_norm": (False,),
    "dense_2_feat_out": (0,),
    "dense_3_feat_out": (0,),
    "leading_dense_block_count": (0,),
    "nextn_predict_layers": (0,),
    "moe_every_n_layers": (0, 1),
    "interleave_moe_layer_step": (0, 1),
    "expert_count": (0,),
    "expert_shared_count": (0,),
    "expert_shared_feed_forward_length": (0,),
    "expert_group_count": (0, 1),
    "expert_group_used_count": (0, 1),
    "expert_weights_scale": (0, 1),
    "expert_weights_norm": (),
    "expert_gating_func": (),
    "expert_group_scale": (0, 1),
    "attention.causal": (True,),
    "attention.scale": (0,),
    "attention.output_scale": (0, 1),
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.sliding_window": (0,),
    "attention.sliding_window_pattern": (),
    "attention.shared_kv_layers": (0,),
    "attention.key_length_mla": (0,),
    "attention.value_length_mla": (0,),
    "attention.key_length_swa": (0,),
    "attention.value_length_swa": (0,),
    "attention.temperature_length": (0,),
    "attention.temperature_scale": (0,),
    "rope.dimension_sections": (),
    "rope.dimension_count_swa": (),
    "rope.freq_base_swa": (),
    "rope.scaling.alpha": (0, 1),
    "rope.scaling.yarn_log_multiplier": (0,),
    "rope.pattern": (),
}
_NEUTRAL_HF: Final[dict[str, tuple[Any, ...]]] = {
    "quantization_config": (),
    "compression_config": (),
    "is_causal": (True,),
    "use_bidirectional_attention": (False,),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "use_bias": (False,),
    "bias": (False,),
    "clip_qkv": (),
    "qk_layernorm": (False,),
    "use_qk_norm": (False,),
    "use_sliding_window": (False,),
    "sliding_window": (),
    "sliding_window_pattern": (),
    "layer_types": (),
    "no_rope_layers": (),
    "attention_chunk_size": (),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "router_logit_softcapping": (),
    "attention_multiplier": (),
    "embedding_multiplier": (1,),
    "residual_multiplier": (1,),
    "logits_scaling": (1,),
    "logit_scale": (1,),
    "partial_rotary_factor": (1,),
    "num_local_experts": (0,),
    "num_experts": (0,),
    "n_routed_experts": (0,),
    "n_shared_experts": (0,),
    "shared_intermediate_size": (0,),
    "shared_expert_intermediate_size": (0,),
    "num_nextn_predict_layers": (0,),
    "first_k_dense_replace": (0,),
    "routed_scaling_factor": (1,),
}


class Config:
    """Typed reads of a file's settings. Every fault names the key and the file; null counts as absent.

    Keys are GGUF's, which `keys` turns into what config.json calls them; a key that is not in it is read as it is.
    `defaults` are by the file's own keys, and only for those that it leaves out.
    Numbers are rounded to float32, which is what GGUF stores: one model then gives one program in either format.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        values: Mapping[str, Any],
        prefix: str = "",
        keys: Keys | None = None,
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.prefix = prefix
        self.whole = self  # the settings of the whole file, where these are those of its text part
        self._values = values
        self._keys = keys or {}
        self._defaults = defaults or {}
        self._read: set[str] = set()

    @classmethod
    def of(cls, checkpoint: Checkpoint, keys: Keys = HF_KEYS, defaults: Mapping[str, Any] | None = None) -> Config:
        """The settings of the whole file: keys below `general.architecture` in GGUF, all of config.json else.

        `keys` and `defaults` (those of transformers' configuration class) are for config.json only.
        """
        if checkpoint.format == "safetensors":
            return cls(checkpoint, checkpoint.metadata, "", keys, defaults)
        prefix = checkpoint.architecture + "."
        values = {k.removeprefix(prefix): v for k, v in checkpoint.metadata.items() if k.startswith(prefix)}
        return cls(checkpoint, values, prefix)

    def text_part(self) -> Config:
        """The language model's settings: `text_config` of a multimodal config.json, else the whole."""
        values = None if self.is_gguf else self._object("text_config")
        if values is None:
            return self
        part = Config(self.checkpoint, values, f"{self.prefix}text_config.", self._keys, self._defaults)
        part.whole = self
        return part

    @property
    def is_gguf(self) -> bool:
        """Whether keys are GGUF's; else they are config.json's."""
        return self.checkpoint.format == "gguf"

    def name(self, key: str) -> str:
        """`key` as the file writes it."""
        return repr(self.prefix + self._spellings(key)[0])

    def _spellings(self, key: str) -> tuple[str, ...]:
        """The file's names for `key`, the preferred one first."""
        names = self._keys.get(key, key)
        return (names,) if isinstance(names, str) else names

    def invalid(self, key: str, problem: str) -> MetadataError:
        """The error for a value that cannot be right."""
        return MetadataError(f"{self.checkpoint.path}: {self.name(key)} {problem}")

    def unsupported(self, key: str, problem: str) -> UnsupportedError:
        """The error for a value that may be right, but that this version does not run."""
        return UnsupportedError(f"{self.checkpoint.path}: {self.name(key)} {problem}")

    def get(self, key: str) -> Any:
        """The raw value, None when absent. Counts as read."""
        return self._first((key,))[1]

    def has(self, key: str) -> bool:
        """Whether the key is there, null included."""
        return any(name in self._values for name in self._spellings(key))

    def default(self, key: str) -> Any:
        """What the family takes for `key` when config.json leaves it out, None when it has no such default."""
        return next((self._defaults[name] for name in self._spellings(key) if name in self._defaults), None)

    def present(self) -> list[str]:
        """Keys with a value."""
        return [k for k, v in self._values.items() if v is not None]

    def _first(self, keys: Sequence[str]) -> tuple[str, Any]:
        names = [name for key in keys for name in self._spellings(key)]
        self._read.update(names)
        found = [(name, value) for name in names if (value := self._values.get(name)) is not None]
        if len({repr(v) for _, v in found}) > 1:
            raise self.invalid(found[0][0], f"is {found[0][1]!r} while {self.name(found[1][0])} is {found[1][1]!r}")
        return found[0] if found else (names[0], None)

    def _otherwise(self, key: str, default: _T | Required) -> _T:
        """What holds for a key that is not in the file: the family's default, then the reader's."""
        value = self.default(key)
        if value is None:
            value = default
        if isinstance(value, Required):
            raise MetadataError(f"{self.checkpoint.path}: required key {self.name(key)} is missing")
        return cast("_T", value)

    def optional_integer(self, *keys: str, low: int = 1, high: int = MAX_WIDTH) -> int | None:
        """An integer in [low, high]; several keys are names of one setting, in order of preference."""
        key, value = self._first(keys)
        if value is None:
            return None
        if isinstance(value, Sequence | np.ndarray) and not isinstance(value, str | bytes):
            per_layer = list(value[: MAX_LAYERS + 1])
            if not per_layer or len(per_layer) > MAX_LAYERS or any(v != per_layer[0] for v in per_layer):
                raise self.unsupported(key, "differs from layer to layer, which this family does not support")
            value = per_layer[0]
        return self._integer(key, value, low, high)

    def _integer(self, key: str, value: Any, low: int, high: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise self.invalid(key, f"must be an integer, got {shown(value)}")
        if not low <= value <= high:
            raise self.invalid(key, f"must lie in {low}..{high}, got {value}")
        return int(value)

    def integer(self, *keys: str, default: int | Required = REQUIRED, low: int = 1, high: int = MAX_WIDTH) -> int:
        """Like `optional_integer`, with a default for an absent key."""
        value = self.optional_integer(*keys, low=low, high=high)
        return self._otherwise(keys[0], default) if value is None else value

    def integers(self, key: str, count: int, *, low: int = 1, high: int = MAX_WIDTH) -> tuple[int, ...]:
        """An integer in [low, high] for each of `count` layers, from a list or from one number for all."""
        values = self.get(key)
        if not isinstance(values, list | tuple | np.ndarray):
            return (self.integer(key, low=low, high=high),) * count
        name = self._first((key,))[0]
        return tuple(self._integer(name, value, low, high) for value in self.sequence(key, count) or ())

    def optional_number(self, key: str, *, low: float = 0.0, high: float = 1e30) -> float | None:
        """A finite number in [low, high], rounded to float32."""
        value = self.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float | np.floating | np.integer):
            raise self.invalid(key, f"must be a number, got {shown(value)}")
        value = float(min(max(value, -1e39), 1e39))  # JSON has integers that no float holds; nan stays
        if not (abs(value) <= 1e38 and low <= value <= high):
            raise self.invalid(key, f"must lie in {low:g}..{high:g}, got {value}")
        return float(np.float32(value))

    def number(self, key: str, *, default: float | Required = REQUIRED, low: float = 0.0, high: float = 1e30) -> float:
        """Like `optional_number`, with a default for an absent key."""
        value = self.optional_number(key, low=low, high=high)
        return float(np.float32(self._otherwise(key, default))) if value is None else value

    def flag(self, key: str, *, default: bool) -> bool:
        """A boolean."""
        value = self.get(key)
        if value is None:
            return self._otherwise(key, default)
        if not isinstance(value, bool | np.bool_):
            raise self.invalid(key, f"must be true or false, got {shown(value)}")
        return bool(value)

    def text(self, key: str, *, default: str) -> str:
        """A string."""
        value = self.get(key)
        if value is None:
            return self._otherwise(key, default)
        if not isinstance(value, str):
            raise self.invalid(key, f"must be a string, got {shown(value)}")
        return value

    def sequence(self, key: str, length: int | None = None) -> list[Any] | None:
        """A list, of `length` entries when given."""
        value = self.get(key)
        if value is None:
            return None
        if isinstance(value, np.ndarray):
            value = value.tolist()
        if not isinstance(value, list | tuple):
            raise self.invalid(key, f"must be a list, got {shown(value)}")
        if length is not None and len(value) != length:
            raise self.invalid(key, f"has {len(value)} entries, the model has {length} layers")
        return list(value)

    def section(self, key: str) -> Config | None:
        """A nested object of config.json."""
        value = self._object(key)
        return None if value is None else Config(self.checkpoint, value, f"{self.prefix}{key}.")

    def _object(self, key: str) -> Mapping[str, Any] | None:
        value = self.get(key)
        if value is not None and not isinstance(value, Mapping):
            raise self.invalid(key, f"must be an object, got {shown(value)}")
        return value

    def activation(self, key: str, default: str) -> Activation:
        """The gate's activation under transformers' names, of which GGUF has the `default` only."""
        name = default if self.is_gguf else self.text(key, default=default)
        if name not in _ACTIVATIONS:
            raise self.unsupported(key, f"is {name!r}; supported are {', '.join(sorted(_ACTIVATIONS))}")
        return _ACTIVATIONS[name]

    def refuse_unread(self) -> None:
        """Raises UnsupportedError when a setting that would change the result was read by nobody."""
        if self.whole is not self:
            self.whole.refuse_unread()
        for key, neutral in (_NEUTRAL_GGUF if self.is_gguf else _NEUTRAL_HF).items():
            value = self._values.get(key)
            if key in self._read or value is None:
                continue
            if isinstance(value, list | tuple) and all(v == "full_attention" for v in value):
                continue  # layer_types that say nothing new
            if not any(type(value) in (bool, int, float) and value == fine for fine in neutral):
                family = self.checkpoint.architecture
                raise self.unsupported(key, f"is {shown(value)}, which this version cannot apply to {family!r} models")


def shown(value: Any) -> str:
    """A value for a message, cut short."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
