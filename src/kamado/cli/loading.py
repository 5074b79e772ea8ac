"""Where commands meet models: finding one by name, fetching it, loading it. Tests put a fake in the place of `load`."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ModelNotFoundError, UsageError
from .agreeing import agree_to_missing, agree_to_pull, can_ask
from .terminal import Progress, note

if TYPE_CHECKING:
    from .. import Model
    from ..files import Checkpoint
    from ..library.catalog import Catalog
    from ..library.store import Store
    from ..measure import Executor
    from ..program import Program


def open_store() -> Store:
    """The store at its XDG place (or KAMADO_HOME)."""
    from ..library.store import Store

    return Store()


def locate(name: str, *, pull: bool = False) -> Path:
    """Where the model called `name` lies: a path, a name in the store, or one that another program keeps here.

    A missing one is fetched first with `pull`, or when a person at the terminal agrees. Otherwise nothing is
    downloaded, and ModelNotFoundError says how to fetch it.
    """
    store = open_store()
    try:
        path = store.resolve(name)
    except ModelNotFoundError:
        if pull:
            return fetch(name, store, agree=agree_to_pull(yes=False))
        if not can_ask() or not is_fetchable(name):
            raise
    else:
        _tell_owner(name, path, store)
        return path
    return fetch(name, store, agree=agree_to_missing)


def is_fetchable(name: str) -> bool:
    """Whether `kamado pull` knows what this name means."""
    from ..library.catalog import catalog

    known = catalog()
    tell_problems(known)
    return name.startswith("hf:") or known.find(name) is not None


def tell_problems(known: Catalog) -> None:
    """Names on stderr what of the catalog could not be used."""
    for problem in known.problems:
        note(f"kamado: warning: {problem}")


def _tell_owner(name: str, path: Path, store: Store) -> None:
    """Says whose file is used where the name did not say it."""
    from ..library.elsewhere import elsewhere
    from ..library.names import OUTSIDE

    if store.root in path.parents or name.startswith(OUTSIDE) or path == Path(name).expanduser().absolute():
        return
    owner = elsewhere().at(path)
    if owner is not None:
        note(f"kamado: note: {name} is not fetched; {owner.name} is used, which {owner.owner} keeps in {path}")


def fetch(name: str, store: Store, **options: Any) -> Path:
    """Pulls a model with a progress bar on stderr and returns where it lies. `options` are `pull`'s own."""
    from ..library.pull import pull

    with Progress(f"pulling {name}") as progress:
        path = pull(name, store, progress=progress, **options)
    note(f"{name} is in {path}")
    return path


def open_model_file(name: str) -> Checkpoint:
    """The checkpoint called `name`, its header read and checked, no weight loaded."""
    from ..files import open_checkpoint

    return open_checkpoint(locate(name))


def open_named(name: str) -> Checkpoint:
    """The same, and what the checkpoint is called in messages is what commands take, not what the file calls itself."""
    checkpoint = open_model_file(name)
    return dataclasses.replace(checkpoint, name=called(checkpoint.path))


def called(path: Path) -> str:
    """What commands take for the model that lies at `path`."""
    return open_store().name_of(path)


def require_chat(path: Path, name: str, allow_unknown: Collection[str] = ()) -> None:
    """Raises UsageError unless the header says that the model can chat. No weight is loaded for that."""
    from ..files import open_checkpoint
    from ..measure import program_of

    checkpoint = open_checkpoint(path)
    if program_of(checkpoint, allow_unknown).is_encoder:
        raise UsageError(f"{name} is an encoder: it makes vectors of texts and does not answer: use kamado embed")
    if checkpoint.chat_template is None:
        raise UsageError(
            f"{name} has no chat template: it is a base model, made to continue text; use kamado run --raw, or a model "
            "that was taught to chat"
        )


def load(path: Path, options: Mapping[str, Any]) -> Model:
    """Loads a model with a progress bar on stderr. `options` are what the user gave of `kamado.load`'s own."""
    import kamado

    with Progress("loading") as progress:
        model = kamado.load(path, progress=progress, **options)
    tell_unknown(options.get("allow_unknown", ()), model.plan.overridden)
    return model


def tell_unknown(allowed: Collection[str], overridden: Collection[str]) -> None:
    """Notes on stderr what --allow-unknown let pass, and where it did nothing."""
    for key in allowed:
        if key in overridden:
            note(f"kamado: note: the file's {key} is not applied: the answers may be wrong")
        else:
            note(f"kamado: note: --allow-unknown {key} does nothing: the file has no such key that would be refused")


def build_executor(program: Program, **settings: Any) -> Executor:
    """The native executor for measurements that must not pay for sampling and text."""
    from ..measure import executor_of

    return executor_of(program, **settings)
