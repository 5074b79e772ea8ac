"""Kamado runs open-weight language models on the machine you own, and says beforehand what they will cost.

    import kamado

    with kamado.load("smollm2:135m") as model:
        for piece in model.chat([{"role": "user", "content": "Why is the sky blue?"}], max_tokens=100):
            print(piece.text, end="", flush=True)

Nothing heavy is imported until `load` is called.
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
    from collections.abc import Callable, Collection
    from pathlib import Path

    from .engine.generation import Generation
    from .engine.ledger import Ledger, LedgerRow
    from .engine.model import Model
    from .engine.piece import Piece, Usage
    from .engine.scoring import Perplexity
    from .engine.stats import Stats
    from .memory.forecast import Plan

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
    "Ledger": "engine.ledger",
    "LedgerRow": "engine.ledger",
    "Model": "engine.model",
    "Perplexity": "engine.scoring",
    "Piece": "engine.piece",
    "Plan": "memory.forecast",
    "Stats": "engine.stats",
    "Usage": "engine.piece",
}


def load(
    model: str | Path,
    memory: str | int | None = None,
    threads: int | None = None,
    kv: str = "auto",
    context: int | None = None,
    *,
    kv_tokens: int | None = None,
    max_rows: int | None = None,
    max_logit_rows: int | None = None,
    tier: str | None = None,
    trace: str | Path | None = None,
    prefix_cache: str | int | None = None,
    chat_template: str | None = None,
    constraints: bool = False,
    allow_unknown: Collection[str] = (),
    name: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Model:
    """Loads a model: a GGUF file, a safetensors directory, or a name in the store such as "smollm2:135m".

    memory    budget of the process, "6GiB" or bytes: weights, experts, KV cache, scratch, interpreter and cached pages
              of the model's files; None: what this machine and its cgroups have to give, less a margin. A model with
              experts that does not fit runs all the same, to the same bits: its experts are read from disk as needed
    threads   compute threads; None: the processors this process may use
    kv        KV cache: "exact" (f16), "f32", "safe" (keys of 8 bits, values of 4), "balanced" (4 and 4), "small" (3 and
              2), bits such as "k=4,v=3", layers that differ: "balanced,layers=0-1:exact"; "auto" is what `kamado kv`
              measured as safe for this very model, and "exact" until it was run
    context   tokens of a prompt and its answer together; None: the model's own length up to 4096, or the largest half,
              quarter … of that which fits the budget (256 at the least)
    kv_tokens tokens of all conversations together, running and kept for reuse; None: as many as `context`
    max_rows  rows of a step, the size of a prefill chunk; results do not depend on it; None: what the plan chooses, 512
              or less, up to 2048 when experts are streamed
    max_logit_rows  rows that `logits` may return; None: 32 MiB of them, 16 at the least
    tier      lowers the kernels' instruction set, e.g. "avx2"; None: the best that this processor has
    prefix_cache  a cap such as "2GiB" for prompts and conversations that are kept on disk, so that none is computed
              twice, not even after a restart; None or "off": nothing is kept
    trace     a file to write the steps to, for Perfetto (ui.perfetto.dev)
    chat_template  Jinja source in place of the file's own
    constraints  whether the budget has room for answers of a given form and tool calls: a trie of the vocabulary, which
              is made for the first of them, about 0.5 kB a token
    allow_unknown  settings of the file, by its own names for them ("llama.new_scale"), that this version neither reads
              nor knows to be harmless, and that are to be left out all the same: without it they are refused, since the
              answers may be wrong. `model.plan.overridden` lists those that the file has
    name      what messages and kept conversations call the model; None: its name in the store, else its path
    progress  called with (done bytes, total bytes) while weights are packed; an exception it raises stops the load

    Nothing is downloaded: `kamado pull NAME` does that. Raises ModelNotFoundError, CheckpointError and its kinds for a
    file that cannot be used, MemoryBudgetError (with the least budget that works), UsageError, NativeError.
    While a model streams, its file must stay as it is: ModelChangedError or ExpertReadError say when it did not.

        with kamado.load("smollm2:135m", memory="1GiB", context=2048) as model:
            print(model.plan.peak_bytes, "".join(p.text for p in model.generate("The answer is", max_tokens=20)))
    """
    from .engine.load import load_model

    return load_model(
        model,
        memory=memory,
        threads=threads,
        kv=kv,
        context=context,
        kv_tokens=kv_tokens,
        max_rows=max_rows,
        max_logit_rows=max_logit_rows,
        tier=tier,
        trace=trace,
        prefix_cache=prefix_cache,
        chat_template=chat_template,
        constraints=constraints,
        allow_unknown=allow_unknown,
        name=name,
        progress=progress,
    )


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
