"""`kamado rm`: remove fetched models."""

from __future__ import annotations

import click

from . import loading
from .options import complete_model
from .terminal import echo


@click.command("rm")
@click.argument("names", metavar="NAME...", nargs=-1, required=True, shell_complete=complete_model)
def command(names: tuple[str, ...]) -> None:
    """Remove models from the store; files elsewhere are never touched.

    Every name is looked up before the first is removed.
    """
    from ..library.elsewhere import elsewhere

    store = loading.open_store()
    known = {model.name for model in store.list()}
    names = tuple(_real_name(name, known) for name in names)
    for name in names:
        if name not in known:
            path = store.resolve(name)  # raises the store's own error, with near names
            owner = elsewhere().at(path)
            if owner is not None:
                raise click.UsageError(
                    f"{name} is {owner.name}, which {owner.owner} keeps: kamado removes only what it fetched itself; "
                    f"remove it with {owner.remove_with}"
                )
            raise click.UsageError(f"{name} is no model of the store: 'kamado list' names them; files are not removed")
    for name in names:
        store.remove(name)
        echo(f"removed {name}")


def _real_name(name: str, known: set[str]) -> str:
    """The store's name for a catalog alias, else `name` itself."""
    from ..library.catalog import find_entry

    entry = None if name in known else find_entry(name)
    return entry.name if entry is not None and entry.name in known else name
