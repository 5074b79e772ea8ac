"""How a family makes itself known: a decorator that says what files call it, and in what it departs from the tables."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from ..checkpoint.types import Checkpoint
from ..program import Program
from .config import Config, Keys, shown
from .names import HF_KEYS, HF_TENSORS
from .weights import Weights

__all__ = ["FAMILIES", "Config", "Family", "Program", "Weights", "family"]  # what a family needs beside the kit

Reader = Callable[[Config, Weights], Program]


@dataclass(frozen=True, slots=True)
class Family:
    """One family: `read` turns settings and tensors into the program; the rest is as in `family`."""

    read: Reader
    keys: Keys
    tensors: Mapping[str, str]
    defaults: Mapping[str, Any]
    classes: tuple[str, ...]
    has_text_config: bool

    def build(self, checkpoint: Checkpoint, allow_unknown: Collection[str]) -> Program:
        """The program of a file. Raises UnsupportedError for files of classifiers, which share a name with others."""
        c = Config.of(checkpoint, allow_unknown, self.keys, self.defaults)
        for name in [] if c.is_gguf else c.sequence("architectures") or []:
            if isinstance(name, str) and not name.endswith(self.classes):
                known = ", ".join(f"…{ending}" for ending in self.classes)
                raise c.unsupported("architectures", f"names {shown(name)}; supported are {known}")
        part = c.text_part() if self.has_text_config else c
        program = self.read(part, Weights(checkpoint, self.tensors))
        c.refuse_unread()
        return replace(program, overridden=tuple(c.overridden()))


FAMILIES: Final[dict[tuple[str, str], Family]] = {}  # by format and the file's own name of the architecture


def family(
    *,
    gguf: tuple[str, ...] = (),
    hf: tuple[str, ...] = (),
    keys: Keys | None = None,
    tensors: Mapping[str, str] | None = None,
    defaults: Mapping[str, Any] | None = None,
    classes: tuple[str, ...] = ("ForCausalLM", "ForConditionalGeneration", "Model"),
    has_text_config: bool = False,
) -> Callable[[Reader], Reader]:
    """Registers a family under its names: `general.architecture` in GGUF, `model_type` in config.json (`hf`).

    For safetensors: `keys` and `tensors` come before those of names.HF_KEYS and names.HF_TENSORS (`tensors` that name
    even the token table stand alone); `defaults` are what the configuration class of transformers takes for keys left
    out, by their names there; `classes` are the ends of the names that `architectures` may have; `has_text_config`:
    files of several senses keep the language model's settings in `text_config`.
    """

    def register(read: Reader) -> Reader:
        stems = tensors or {}
        stems = stems if "token_embd" in stems else {**HF_TENSORS, **stems}
        made = Family(read, {**HF_KEYS, **(keys or {})}, stems, defaults or {}, classes, has_text_config)
        for name in (*(("gguf", one) for one in gguf), *(("safetensors", one) for one in hf)):
            if name in FAMILIES:
                raise ValueError(f"two families are called {name[1]!r} in {name[0]} files")
            FAMILIES[name] = made
        return read

    return register
