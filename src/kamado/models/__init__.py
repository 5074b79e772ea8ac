"""Model families: each file turns a checkpoint's settings and tensor names into a `Program`.

A family is found by the file's own name for it: `general.architecture` in GGUF, `model_type` in config.json. One that
needs no new operation is a file here, found by itself, and its cases in `tests/models/families/`: see docs/adding.md.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Collection

from ..errors import UnsupportedError
from ..files.types import Checkpoint
from ..program import Program, validate
from .registry import FAMILIES

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def build_program(checkpoint: Checkpoint, allow_unknown: Collection[str] = ()) -> Program:
    """The forward pass of `checkpoint`. Reads settings and names only, no weights but rope factors.

    `allow_unknown`: settings, as the file writes their names, that need not be read; what that let pass is in the
    program's `overridden`. Raises UnsupportedError (unknown architecture, or a setting this version cannot honour),
    MetadataError or MissingTensorError; each names the key or tensor and the file.
    """
    found = FAMILIES.get((checkpoint.format, checkpoint.architecture))
    if found is None:
        known = sorted(name for kind, name in FAMILIES if kind == checkpoint.format)
        raise UnsupportedError(
            f"{checkpoint.path}: architecture {checkpoint.architecture!r} is not supported; "
            f"{checkpoint.format} files may be {', '.join(known)}"
        )
    family, read = found
    program = family.build(read, checkpoint, allow_unknown)
    validate(program)
    if program.longer is not None:
        validate(program.longer[1])
    return program


def supported_architectures() -> tuple[str, ...]:
    """Every architecture name that `build_program` knows, of both formats, sorted."""
    return tuple(sorted({name for _, name in FAMILIES}))
