"""`kamado list`: the models that were fetched."""

from __future__ import annotations

import click

from . import backend
from .terminal import echo_json, echo_table, note


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """List the models that were fetched."""
    from ..checkpoint.packed import packed_bytes

    models = backend.open_store().list()
    if as_json:
        fields = (
            {
                "name": m.name,
                "bytes": m.nbytes,
                "packed_bytes": packed_bytes(m.path),
                "path": str(m.path),
                "added": m.added,
                "source": dict(m.source),
            }
            for m in models
        )
        echo_json(list(fields))
        return
    if not models:
        note("no model was fetched yet: 'kamado pull --list' names what there is")
        return
    from ..memory.budget import format_size

    rows = [
        (m.name, format_size(m.nbytes), format_size(packed) if (packed := packed_bytes(m.path)) else "-", m.path)
        for m in models
    ]
    if all(row[2] == "-" for row in rows):
        echo_table(("name", "size", "path"), [(name, size, path) for name, size, _, path in rows], right=(1,))
    else:
        echo_table(("name", "size", "packed", "path"), rows, right=(1, 2))
