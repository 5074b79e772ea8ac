"""Typed, checked reads of a model file's settings, under GGUF's names in either format."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from enum import Enum
from typing import Any, Final, TypeVar, cast

import numpy as np

from ..errors import MetadataError, UnsupportedError
from ..files.types import Checkpoint
from ..program import Activation
from . import harmless
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

_MOST_NAMED: Final = 8  # settings in one message

_ACTIVATIONS: Final[dict[str, Activation]] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu_erf",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
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
        allow_unknown: Collection[str] = (),
        keys: Keys | None = None,
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.prefix = prefix
        self.whole = self  # the settings of the whole file, where these are those of its text part
        self._values = values
        self._allow_unknown = allow_unknown
        self._keys = keys or {}
        self._defaults = defaults or {}
        self._read: set[str] = set()
        self._sections: dict[str, Config] = {}
        self._joined: set[str] = set()  # sections whose keys are among these

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        allow_unknown: Collection[str] = (),
        keys: Keys = HF_KEYS,
        defaults: Mapping[str, Any] | None = None,
    ) -> Config:
        """The settings of the whole file: keys below `general.architecture` in GGUF, all of config.json else.

        `allow_unknown`: keys, as the file writes them, that may stay unread on the user's word. `keys` and `defaults`
        (those of transformers' configuration class) are for config.json only.
        """
        if checkpoint.format == "safetensors":
            return cls(checkpoint, checkpoint.metadata, "", allow_unknown, keys, defaults)
        prefix = checkpoint.architecture + "."
        values = {k.removeprefix(prefix): v for k, v in checkpoint.metadata.items() if k.startswith(prefix)}
        return cls(checkpoint, values, prefix, allow_unknown)

    def text_part(self) -> Config:
        """The language model's settings: `text_config` of a multimodal config.json, else the whole."""
        part = None if self.is_gguf else self.section("text_config")
        if part is None:
            return self
        part.whole, part._keys, part._defaults = self, self._keys, self._defaults
        return part

    def assume(self, defaults: Mapping[str, Any]) -> None:
        """Takes `defaults` for the family's: those of the text model's class, in wrappers that have several."""
        self._defaults = defaults

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
        """The raw value under the file's own name of the key, None when absent. Counts as read."""
        self._read.add(key)
        return self._values.get(key)

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
        found = [(name, value) for name in names if (value := self.get(name)) is not None]
        if len({repr(v) for _, v in found}) > 1:
            (one, other) = (f"{self.prefix + name!r} is {value!r}" for name, value in found[:2])
            raise MetadataError(f"{self.checkpoint.path}: {one} while {other}")
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

    def integers(self, key: str, count: int, *, low: int = 1, high: int = MAX_WIDTH, spare: int = 0) -> tuple[int, ...]:
        """An integer in [low, high] for each of `count` layers, from a list (see `sequence`) or from one for all."""
        name, values = self._first((key,))
        if not isinstance(values, list | tuple | np.ndarray):
            return (self.integer(key, low=low, high=high),) * count
        return tuple(self._integer(name, value, low, high) for value in self.sequence(key, count, spare) or ())

    def optional_number(self, key: str, *, low: float = 0.0, high: float = 1e30) -> float | None:
        """A finite number in [low, high], rounded to float32."""
        name, value = self._first((key,))
        return None if value is None else self._number(name, value, low, high)

    def _number(self, key: str, value: Any, low: float, high: float) -> float:
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

    def numbers(
        self, key: str, count: int, *, default: float, low: float = 0.0, high: float = 1e30, spare: int = 0
    ) -> tuple[float, ...]:
        """A number in [low, high] for each of `count` layers, from a list (see `sequence`; null is 0) or from one."""
        name, values = self._first((key,))
        if not isinstance(values, list | tuple | np.ndarray):
            return (self.number(key, default=default, low=low, high=high),) * count
        return tuple(
            self._number(name, 0.0 if value is None else value, low, high)
            for value in self.sequence(key, count, spare) or ()
        )

    def flag(self, key: str, *, default: bool) -> bool:
        """A boolean."""
        value = self._first((key,))[1]
        if value is None:
            return self._otherwise(key, default)
        if not isinstance(value, bool | np.bool_):
            raise self.invalid(key, f"must be true or false, got {shown(value)}")
        return bool(value)

    def text(self, key: str, *, default: str) -> str:
        """A string."""
        value = self._first((key,))[1]
        if value is None:
            return self._otherwise(key, default)
        if not isinstance(value, str):
            raise self.invalid(key, f"must be a string, got {shown(value)}")
        return value

    def sequence(self, key: str, length: int | None = None, spare: int = 0) -> list[Any] | None:
        """A list, of `length` entries when given; `spare` more, of layers that only draft, may follow, and are cut."""
        value = self._first((key,))[1]
        if value is None:
            return None
        if isinstance(value, np.ndarray):
            value = value.tolist()
        if not isinstance(value, list | tuple):
            raise self.invalid(key, f"must be a list, got {shown(value)}")
        if length is not None and len(value) not in (length, length + spare):
            raise self.invalid(key, f"has {len(value)} entries, the model has {length} layers")
        return list(value[:length])

    def section(self, key: str) -> Config | None:
        """A nested object of config.json. Its keys count as the file's own: what nobody reads of them is refused."""
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self.invalid(key, f"must be an object, got {shown(value)}")
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
        """The gate's activation under transformers' names, of which GGUF has the `default` only."""
        name = default if self.is_gguf else self.text(key, default=default)
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
        settings = " and ".join(f"{name!r} is {shown(value)}" for name, value in refused[:_MOST_NAMED])
        rest = len(refused) - _MOST_NAMED
        more = f" and {rest} more" if rest > 0 else ""
        options = " ".join(f"--allow-unknown {_as_word(name)}" for name, _ in refused[:_MOST_NAMED])
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
            elif key not in self._read and value is not None and not (isinstance(value, Mapping) and not value):
                name = self.prefix + key
                place = key if self.is_gguf else name.removeprefix("text_config.")
                if harmless.reason(self.checkpoint.format, self.checkpoint.architecture, place, value) is None:
                    yield name, value


def _as_word(name: str) -> str:
    """A key as a shell takes it as one word; what cannot be shown on a line is escaped, as Python writes it."""
    return shlex.quote(name) if name.isprintable() else repr(name)


def shown(value: Any) -> str:
    """A value for a message, cut short."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
