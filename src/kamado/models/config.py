"""Typed, checked reads of a model file's settings, and the few rules that families share in reading them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from enum import Enum
from typing import Any, Final

import numpy as np

from ..checkpoint.types import Checkpoint
from ..errors import MetadataError, UnsupportedError
from ..program import Activation
from . import harmless

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

_MOST_NAMED: Final = 8  # settings in one message

_ACTIVATIONS: Final[dict[str, Activation]] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu_erf",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "relu": "relu",
}


class Config:
    """Typed reads of a file's settings. Every fault names the key and the file; null counts as absent.

    Numbers are rounded to float32, which is what GGUF stores: one model then gives one program in either format.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        values: Mapping[str, Any],
        prefix: str = "",
        allow_unknown: Collection[str] = (),
    ) -> None:
        self.checkpoint = checkpoint
        self.prefix = prefix
        self._values = values
        self._allow_unknown = allow_unknown
        self._read: set[str] = set()
        self._sections: dict[str, Config] = {}
        self._joined: set[str] = set()  # sections whose keys are among these

    @classmethod
    def of(cls, checkpoint: Checkpoint, allow_unknown: Collection[str] = ()) -> Config:
        """The settings of the whole file: keys below `general.architecture` in GGUF, all of config.json else.

        `allow_unknown`: keys, as the file writes them, that may stay unread on the user's word.
        """
        if checkpoint.format == "safetensors":
            return cls(checkpoint, checkpoint.metadata, "", allow_unknown)
        prefix = checkpoint.architecture + "."
        values = {k.removeprefix(prefix): v for k, v in checkpoint.metadata.items() if k.startswith(prefix)}
        return cls(checkpoint, values, prefix, allow_unknown)

    @property
    def is_gguf(self) -> bool:
        """Whether keys are GGUF's; else they are config.json's."""
        return self.checkpoint.format == "gguf"

    def name(self, key: str) -> str:
        """`key` as the file writes it."""
        return repr(self.prefix + key)

    def invalid(self, key: str, problem: str) -> MetadataError:
        """The error for a value that cannot be right."""
        return MetadataError(f"{self.checkpoint.path}: {self.name(key)} {problem}")

    def unsupported(self, key: str, problem: str) -> UnsupportedError:
        """The error for a value that may be right, but that this version does not run."""
        return UnsupportedError(f"{self.checkpoint.path}: {self.name(key)} {problem}")

    def get(self, key: str) -> Any:
        """The raw value, None when absent. Counts as read."""
        self._read.add(key)
        return self._values.get(key)

    def has(self, key: str) -> bool:
        """Whether the key is there, null included."""
        return key in self._values

    def present(self) -> list[str]:
        """Keys with a value."""
        return [k for k, v in self._values.items() if v is not None]

    def _first(self, keys: Sequence[str]) -> tuple[str, Any]:
        found = [(k, v) for k in keys if (v := self.get(k)) is not None]
        if len({repr(v) for _, v in found}) > 1:
            raise self.invalid(found[0][0], f"is {found[0][1]!r} while {self.name(found[1][0])} is {found[1][1]!r}")
        return found[0] if found else (keys[0], None)

    def _missing(self, key: str) -> MetadataError:
        return MetadataError(f"{self.checkpoint.path}: required key {self.name(key)} is missing")

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
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise self.invalid(key, f"must be an integer, got {_shown(value)}")
        if not low <= value <= high:
            raise self.invalid(key, f"must lie in {low}..{high}, got {value}")
        return int(value)

    def integer(self, *keys: str, default: int | Required = REQUIRED, low: int = 1, high: int = MAX_WIDTH) -> int:
        """Like `optional_integer`, with a default for an absent key."""
        value = self.optional_integer(*keys, low=low, high=high)
        if value is not None:
            return value
        if isinstance(default, Required):
            raise self._missing(keys[0])
        return default

    def optional_number(self, key: str, *, low: float = 0.0, high: float = 1e30) -> float | None:
        """A finite number in [low, high], rounded to float32."""
        value = self.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float | np.floating | np.integer):
            raise self.invalid(key, f"must be a number, got {_shown(value)}")
        value = float(min(max(value, -1e39), 1e39))  # JSON has integers that no float holds; nan stays
        if not (abs(value) <= 1e38 and low <= value <= high):
            raise self.invalid(key, f"must lie in {low:g}..{high:g}, got {value}")
        return float(np.float32(value))

    def number(self, key: str, *, default: float | Required = REQUIRED, low: float = 0.0, high: float = 1e30) -> float:
        """Like `optional_number`, with a default for an absent key."""
        value = self.optional_number(key, low=low, high=high)
        if value is not None:
            return value
        if isinstance(default, Required):
            raise self._missing(key)
        return float(np.float32(default))

    def flag(self, key: str, *, default: bool) -> bool:
        """A boolean."""
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, bool | np.bool_):
            raise self.invalid(key, f"must be true or false, got {_shown(value)}")
        return bool(value)

    def text(self, key: str, *, default: str) -> str:
        """A string."""
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.invalid(key, f"must be a string, got {_shown(value)}")
        return value

    def sequence(self, key: str, length: int | None = None) -> list[Any] | None:
        """A list, of `length` entries when given."""
        value = self.get(key)
        if value is None:
            return None
        if isinstance(value, np.ndarray):
            value = value.tolist()
        if not isinstance(value, list | tuple):
            raise self.invalid(key, f"must be a list, got {_shown(value)}")
        if length is not None and len(value) != length:
            raise self.invalid(key, f"has {len(value)} entries, the model has {length} layers")
        return list(value)

    def section(self, key: str) -> Config | None:
        """A nested object of config.json. Its keys count as the file's own: what nobody reads of them is refused."""
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self.invalid(key, f"must be an object, got {_shown(value)}")
        if key not in self._sections:
            self._sections[key] = Config(self.checkpoint, value, f"{self.prefix}{key}.", self._allow_unknown)
        return self._sections[key]

    def joined_section(self, key: str, other: str) -> Config | None:
        """Two nested objects that say parts of one thing, under the name of the first. They must not contradict."""
        one, two = self.section(key), self.section(other)
        if one is None or two is None or other in one._joined:
            return one or two
        for name in sorted(set(one.present()) & set(two.present())):
            if one.get(name) != two.get(name):
                raise one.invalid(name, f"is {one.get(name)!r} while {two.name(name)} is {two.get(name)!r}")
        two.known(two.present())
        values = {name: section.get(name) for section in (two, one) for name in section.present()}
        joined = self._sections[key] = Config(self.checkpoint, values, one.prefix, self._allow_unknown)
        joined._joined.add(other)
        return joined

    def known(self, keys: Collection[str]) -> None:
        """Counts as read what has a meaning that does not matter here, e.g. the factor of a rope that is not scaled."""
        self._read.update(keys)

    def activation(self, key: str, default: str) -> Activation:
        """The gate's activation under transformers' names."""
        name = self.text(key, default=default)
        if name not in _ACTIVATIONS:
            raise self.unsupported(key, f"is {name!r}; supported are {', '.join(sorted(_ACTIVATIONS))}")
        return _ACTIVATIONS[name]

    def overridden(self) -> dict[str, Any]:
        """Keys that nobody read and that no row of harmless.py has, but the user allowed; as the file writes them."""
        return {name: value for name, value in self._unknown() if name in self._allow_unknown}

    def refuse_unread(self) -> None:
        """Raises UnsupportedError naming the keys that nobody read, unless harmless.py or the user says they may be."""
        refused = [(name, value) for name, value in self._unknown() if name not in self._allow_unknown]
        if not refused:
            return
        settings = " and ".join(f"{name!r} is {_shown(value)}" for name, value in refused[:_MOST_NAMED])
        rest = len(refused) - _MOST_NAMED
        more = f" and {rest} more" if rest > 0 else ""
        options = " ".join(f"--allow-unknown {name}" for name, _ in refused[:_MOST_NAMED])
        raise UnsupportedError(
            f"{self.checkpoint.path}: {settings}{more}, which this version cannot apply to "
            f"{self.checkpoint.architecture!r} models: without it the answers may be wrong. A newer version may know "
            f"it; to leave it out all the same: {options} (allow_unknown in load() and serve.toml)"
        )

    def _unknown(self) -> Iterator[tuple[str, Any]]:
        """Keys with a value that nobody read and no row of harmless.py has, with those of sections."""
        for key, value in self._values.items():
            if key in self._sections:
                yield from self._sections[key]._unknown()
            elif key not in self._read and value is not None:
                name = self.prefix + key
                place = key if self.is_gguf else name.removeprefix("text_config.")
                if harmless.reason(self.checkpoint.format, self.checkpoint.architecture, place, value) is None:
                    yield name, value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def head_counts(
    config: Config,
    heads_key: str,
    kv_key: str,
    default: tuple[int, int] | None = None,
    *,
    absent_kv: int | None = None,
) -> tuple[int, int]:
    """Query and key-value heads; the first must be a multiple of the second.

    `absent_kv`: key-value heads of a file that leaves the key out, where that is possible; one that says null, or
    leaves it out without such a default, has as many as query heads.
    """
    num_heads = config.integer(heads_key, default=default[0] if default else REQUIRED, high=MAX_HEADS)
    usual = num_heads
    if absent_kv is not None and not config.has(kv_key) and num_heads % absent_kv == 0:
        usual = absent_kv
    num_kv_heads = config.integer(kv_key, default=default[1] if default else usual, high=MAX_HEADS)
    if num_heads % num_kv_heads:
        raise config.invalid(heads_key, f"is {num_heads}, no multiple of {config.name(kv_key)}, {num_kv_heads}")
    return num_heads, num_kv_heads


def gguf_head_dim(config: Config, hidden: int, num_heads: int) -> int:
    """Width of one head. Keys and values of different width, or a partial rotation, belong to no family here."""
    head_dim = config.optional_integer("attention.key_length", high=MAX_HEAD_DIM)
    if head_dim is None:
        head_dim = _divide(config, "embedding_length", hidden, num_heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        value = config.integer(key, default=head_dim, high=MAX_HEAD_DIM)
        if value != head_dim:
            raise config.unsupported(key, f"is {value} while a head is {head_dim} wide")
    return _even(config, "attention.key_length", head_dim)


def hf_head_dim(config: Config, hidden: int, num_heads: int, default: int | None = None) -> int:
    """Width of one head: `head_dim`, else the family's default, else hidden_size / num_attention_heads."""
    head_dim = config.optional_integer("head_dim", high=MAX_HEAD_DIM) or default
    if head_dim is None:
        head_dim = _divide(config, "hidden_size", hidden, num_heads)
    return _even(config, "head_dim", head_dim)


def _divide(config: Config, key: str, hidden: int, num_heads: int) -> int:
    if hidden % num_heads or hidden // num_heads > MAX_HEAD_DIM:
        raise config.invalid(key, f"is {hidden}, which {num_heads} heads do not divide into heads of a possible width")
    return hidden // num_heads


def _even(config: Config, key: str, head_dim: int) -> int:
    if head_dim % 2:
        raise config.invalid(key, f"gives heads of width {head_dim}: rotary positions need an even one")
    return head_dim


def expert_counts(
    config: Config, count: tuple[str, ...], used: str, default: tuple[int, int] | None = None
) -> tuple[int, int]:
    """Experts a layer and experts a token; the second is at most the first."""
    num_experts = config.integer(*count, default=default[0] if default else REQUIRED, high=MAX_EXPERTS)
    top_k = config.integer(used, default=default[1] if default else REQUIRED, high=MAX_EXPERTS)
    if top_k > num_experts:
        raise config.invalid(used, f"is {top_k}, more than the {num_experts} experts of {config.name(count[0])}")
    return num_experts, top_k


def gguf_softmax_router(config: Config) -> float:
    """The factor on the experts' weights; refuses routers that do not score by softmax."""
    if config.integer("expert_gating_func", default=1, low=0, high=255) not in (0, 1):
        raise config.unsupported("expert_gating_func", "asks for a router that is not softmax")
    return config.number("expert_weights_scale", default=1.0) or 1.0


def inverse_sqrt(value: float) -> float:
    """The usual attention scale, 1 / sqrt(head_dim)."""
    return 1.0 / math.sqrt(value)


def sliding_windows(
    config: Config, num_layers: int, window: int | None, is_sliding: list[bool]
) -> tuple[int | None, ...]:
    """The window of every layer. `layer_types`, when the file has it, wins over the family's own pattern."""
    types = config.sequence("layer_types", num_layers)
    if types is not None:
        for kind in types:
            if kind not in ("full_attention", "sliding_attention"):
                raise config.unsupported(
                    "layer_types", f"has {_shown(kind)}; known are full_attention, sliding_attention"
                )
        is_sliding = [kind == "sliding_attention" for kind in types]
    if any(is_sliding) and window is None:
        raise config.unsupported("layer_types", "asks for sliding_attention while no sliding window is in force")
    return tuple(window if sliding else None for sliding in is_sliding)


def qwen_windows(config: Config, num_layers: int) -> tuple[int | None, ...]:
    """Qwen's rule: with `use_sliding_window`, layers from `max_window_layers` on have the window."""
    window = config.optional_integer("sliding_window", high=MAX_CONTEXT)
    first = config.integer("max_window_layers", default=28, low=0)
    if not config.flag("use_sliding_window", default=False):
        window = None  # published files carry a window that is not in force
    return sliding_windows(config, num_layers, window, [window is not None and i >= first for i in range(num_layers)])


def check_causal_lm(config: Config) -> None:
    """Refuses config.json of classifiers, which share a model_type with the language models. `…Model` is a base."""
    for name in config.sequence("architectures") or []:
        if isinstance(name, str) and not name.endswith(("ForCausalLM", "ForConditionalGeneration", "Model")):
            raise config.unsupported("architectures", f"names {_shown(name)}, which is no language model")
