"""`kamado list`: the models that are on this machine."""

from __future__ import annotations

from typing import Any

import click

from . import loading
from .terminal import echo_json, echo_table, note


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """List the models that were fetched, and those that Ollama, LM Studio and the hub's cache keep on this machine."""
    from ..library.elsewhere import elsewhere

    rows: list[dict[str, Any]] = [
        {
            "name": m.name, "bytes": m.nbytes, "path": str(m.path), "added": m.added, "source": dict(m.source),
            "from": "kamado",
        }
        for m in loading.open_store().list()
    ]  # fmt: skip
    rows += (
        {"name": m.name, "bytes": m.nbytes, "path": str(m.path), "added": None, "source": {}, "from": m.owner}
        for m in elsewhere().list()
    )
    if as_json:
        echo_json(rows)
        return
    if not rows:
        note("no model was fetched yet: 'kamado pull --list' names what there is")
        return
    from ..plan.budget import format_size

    cells = [(row["name"], format_size(row["bytes"]), row["from"], row["path"]) for row in rows]
    echo_table(("name", "size", "from", "path"), cells, right=(1,))
