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
    store = loading.open_store()
    known = {model.name for model in store.list()}
    for name in names:
        if name not in known:
            store.resolve(name)  # raises the store's own error, with near names
            raise click.UsageError(f"{name} is no model of the store: 'kamado list' names them; files are not removed")
    for name in names:
        store.remove(name)
        echo(f"removed {name}")
