"""`kamado list`: the models that were fetched."""

from __future__ import annotations

import click

from . import loading
from .terminal import echo_json, echo_table, note


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """List the models that were fetched."""
    models = loading.open_store().list()
    if as_json:
        fields = (
            {"name": m.name, "bytes": m.nbytes, "path": str(m.path), "added": m.added, "source": dict(m.source)}
            for m in models
        )
        echo_json(list(fields))
        return
    if not models:
        note("no model was fetched yet: 'kamado pull --list' names what there is")
        return
    from ..plan.budget import format_size

    echo_table(("name", "size", "path"), [(m.name, format_size(m.nbytes), m.path) for m in models], right=(1,))
