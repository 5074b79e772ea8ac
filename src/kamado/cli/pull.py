"""`kamado pull`: fetch a model, check it, keep it once."""

from __future__ import annotations

import click

from . import loading
from .options import complete_model
from .terminal import echo, echo_json, echo_table


@click.command("pull")
@click.argument("name", required=False, shell_complete=complete_model)
@click.option("--revision", metavar="REV", help="Commit, tag or branch on the hub; a catalog name is pinned already.")
@click.option("--quant", metavar="KIND", help="Which file of a hub repository, e.g. Q4_K_M.")
@click.option("--list", "list_catalog", is_flag=True, help="List the names that the catalog knows.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(name: str | None, revision: str | None, quant: str | None, list_catalog: bool, as_json: bool) -> None:
    """Fetch a model, check it against its pinned hash and keep it.

    NAME is a catalog name (smollm2:135m) or hf:OWNER/REPO[@REVISION][:QUANT]. An interrupted pull goes on where it
    stopped when it is started again.
    """
    if list_catalog:
        _list_catalog(as_json)
        return
    if name is None:
        raise click.UsageError("missing argument 'NAME': a catalog name ('kamado pull --list') or hf:OWNER/REPO")
    path = loading.fetch(name, loading.open_store(), revision=revision, quant=quant)
    if as_json:
        echo_json({"name": name, "path": str(path)})
    else:
        echo(path)


def _list_catalog(as_json: bool) -> None:
    from ..library.catalog import CATALOG
    from ..plan.budget import format_size

    if as_json:
        entries = (
            {"name": name, "bytes": entry.nbytes, "license": entry.license, "description": entry.description}
            for name, entry in CATALOG.items()
        )
        echo_json(list(entries))
        return
    rows = [(name, format_size(e.nbytes), e.license, e.description) for name, e in CATALOG.items()]
    echo_table(("name", "size", "licence", "what it is"), rows, right=(1,))
