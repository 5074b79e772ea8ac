"""Kamado runs open-weight language models on the machine you own, and says beforehand what they will cost.

    import kamado

    with kamado.load("smollm2:135m") as model:
        for piece in model.chat([{"role": "user", "content": "Why is the sky blue?"}], max_tokens=100):
            print(piece.text, end="", flush=True)

Nothing heavy is imported until `load` or a class is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import (
    CheckpointError,
    ClosedError,
    ConstraintError,
    ContextOverflowError,
    CorruptFileError,
    DownloadError,
    ExpertReadError,
    KamadoError,
    MemoryBudgetError,
    MetadataError,
    MissingPackageError,
    MissingTensorError,
    ModelChangedError,
    ModelNotFoundError,
    NativeError,
    TemplateError,
    TokenizerError,
    UnsupportedError,
    UsageError,
)

if TYPE_CHECKING:
    from .engine.generation import Generation
    from .engine.load import load
    from .engine.measure.scoring import Perplexity
    from .engine.model import Model
    from .engine.piece import Piece, Usage
    from .engine.schedule.ledger import Ledger, LedgerRow
    from .engine.schedule.stats import Stats
    from .plan.forecast import Plan

    __version__: str

__all__ = [
    "CheckpointError",
    "ClosedError",
    "ConstraintError",
    "ContextOverflowError",
    "CorruptFileError",
    "DownloadError",
    "ExpertReadError",
    "Generation",
    "KamadoError",
    "Ledger",
    "LedgerRow",
    "MemoryBudgetError",
    "MetadataError",
    "MissingPackageError",
    "MissingTensorError",
    "Model",
    "ModelChangedError",
    "ModelNotFoundError",
    "NativeError",
    "Perplexity",
    "Piece",
    "Plan",
    "Stats",
    "TemplateError",
    "TokenizerError",
    "UnsupportedError",
    "Usage",
    "UsageError",
    "__version__",
    "load",
]

_LAZY = {
    "Generation": "engine.generation",
    "Ledger": "engine.schedule.ledger",
    "LedgerRow": "engine.schedule.ledger",
    "Model": "engine.model",
    "Perplexity": "engine.measure.scoring",
    "Piece": "engine.piece",
    "Plan": "plan.forecast",
    "Stats": "engine.schedule.stats",
    "Usage": "engine.piece",
    "load": "engine.load",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("kamado")
        except PackageNotFoundError:  # a source tree that was not installed
            return "0+source"
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
