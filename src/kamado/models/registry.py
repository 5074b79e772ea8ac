"""How a family makes itself known: a decorator that says what files call it, and in what it departs from the tables."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from ..files.types import Checkpoint
from ..program import Program
from .config import Config, Keys, shown
from .names import HF_KEYS, HF_TENSORS
from .weights import Weights

__all__ = ["FAMILIES", "Config", "Family", "Program", "Weights"]  # what a family needs beside the kit

Reader = Callable[[Config, Weights], Program]


@dataclass(frozen=True, slots=True)
class Family:
    """One family. As a decorator it registers the function that turns settings and tensors into the program.

    `gguf` and `hf` are its names: `general.architecture` in GGUF, `model_type` in config.json. The rest is for
    safetensors: `keys` and `tensors` come before those of names.HF_KEYS and names.HF_TENSORS (`tensors` that name even
    the token table stand alone); `defaults` are what the configuration class of transformers takes for keys left out,
    by their names there; `classes` are the ends of the names that `architectures` may have; `has_text_config`: files of
    several senses keep the language model's settings in `text_config`.
    """

    gguf: tuple[str, ...] = ()
    hf: tuple[str, ...] = ()
    keys: Keys = field(default_factory=dict)
    tensors: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] = ("ForCausalLM", "ForConditionalGeneration", "Model")
    has_text_config: bool = False

    def __call__(self, read: Reader) -> Reader:
        """Registers `read` under the family's names. Raises ValueError when another has one of them."""
        for name in (*(("gguf", one) for one in self.gguf), *(("safetensors", one) for one in self.hf)):
            if name in FAMILIES:
                raise ValueError(f"two families are called {name[1]!r} in {name[0]} files")
            FAMILIES[name] = (self, read)
        return read

    def hf_tensors(self) -> Mapping[str, str]:
        """Role -> name in a safetensors directory."""
        return self.tensors if "token_embd" in self.tensors else {**HF_TENSORS, **self.tensors}

    def build(self, read: Reader, checkpoint: Checkpoint, allow_unknown: Collection[str]) -> Program:
        """The program of a file. Raises UnsupportedError for files of classifiers, which share a name with others."""
        c = Config.of(checkpoint, allow_unknown, {**HF_KEYS, **self.keys}, self.defaults)
        for name in [] if c.is_gguf else c.sequence("architectures") or []:
            if isinstance(name, str) and not name.endswith(self.classes):
                known = ", ".join(f"…{ending}" for ending in self.classes)
                raise c.unsupported("architectures", f"names {shown(name)}; supported are {known}")
        part = c.text_part() if self.has_text_config else c
        program = read(part, Weights(checkpoint, self.hf_tensors()))
        return replace(program, overridden=tuple(c.overridden()))


FAMILIES: Final[dict[tuple[str, str], tuple[Family, Reader]]] = {}  # by format and the file's own name
