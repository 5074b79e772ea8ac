"""`kamado pull`: fetch a model, check it, keep it once."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from . import loading
from .agreeing import agree_to_pull
from .terminal import echo, echo_json, echo_table, is_tty, note

if TYPE_CHECKING:
    from ..library.catalog import CatalogEntry
    from ..library.pins import Pin


def complete_catalog(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of the catalog, and where hub names begin; never an error while a line is being typed."""
    from ..library.catalog import catalog

    return [CompletionItem(name) for name in (*catalog().entries, "hf:") if name.startswith(incomplete)]


@click.command("pull")
@click.argument("words", metavar="[NAME]", nargs=-1, shell_complete=complete_catalog)
@click.option("--revision", metavar="REV", help="Commit, tag or branch of a hub name.")
@click.option("--quant", metavar="KIND", help="Which file of a hub repository, e.g. Q4_K_M.")
@click.option("--yes", "-y", is_flag=True, help="Take revision and digests of a model that is not pinned yet.")
@click.option("--repin", is_flag=True, help="Forget what was pinned for NAME and take what its source has now.")
@click.option("--list", "list_catalog", is_flag=True, help="List the catalog; words after it choose among its models.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    words: tuple[str, ...],
    revision: str | None,
    quant: str | None,
    yes: bool,
    repin: bool,
    list_catalog: bool,
    as_json: bool,
) -> None:
    """Fetch a model, check it against its pinned hash and keep it.

    NAME is a catalog name (smollm2:135m) or hf:OWNER/REPO[@REVISION][:QUANT or :FILE.gguf]. A catalog name that nobody
    pinned yet shows revision and digests first and asks; later pulls must get the same. An interrupted pull goes on
    where it stopped when it is started again.
    """
    if list_catalog:
        list_models(words, as_json)
        return
    if not words:
        raise click.UsageError("missing argument 'NAME': a catalog name ('kamado pull --list') or hf:OWNER/REPO")
    if len(words) > 1:
        raise click.UsageError(f"one name at a time: {words[0]}, then {words[1]}; words choose with --list alone")
    store = loading.open_store()
    path = loading.fetch(words[0], store, revision=revision, quant=quant, agree=agree_to_pull(yes), repin=repin)
    if as_json:
        echo_json({"name": words[0], "path": str(path)})
    else:
        echo(path)


def list_models(words: tuple[str, ...], as_json: bool) -> None:
    """The catalog's entries that have all of `words`."""
    rows = catalog_rows(words)
    if as_json:
        echo_json(rows)
        return
    if not rows:
        note(f"no model of the catalog fits {' '.join(words)}: 'kamado search' asks the hub too")
        return
    echo_catalog(rows)


def catalog_rows(words: tuple[str, ...]) -> list[dict[str, Any]]:
    """What `--json` prints of the entries that have all of `words`. Broken entries are named on stderr."""
    from ..library.catalog import catalog
    from ..library.pins import Pins

    known = catalog()
    loading.tell_problems(known)
    store = loading.open_store()
    pins = Pins(store.root).read()
    here = {model.name: model for model in store.list()}
    rows = []
    for entry in known.entries.values():
        if entry.has(words):
            stored = here.get(entry.name)
            rows.append(_row(entry, pins.get(entry.name), None if stored is None else stored.nbytes))
    return rows


def _row(entry: CatalogEntry, pin: Pin | None, here_bytes: int | None) -> dict[str, Any]:
    if entry.hub is not None and pin is not None and pin.source != entry.hub.name:
        pin = None
    return {
        "name": entry.name,
        "aliases": list(entry.aliases),
        "description": entry.description,
        "bytes": here_bytes or entry.nbytes or None,
        "size": entry.size or None,
        "license": entry.license or None,
        "languages": entry.languages or None,
        "good_for": list(entry.good_for),
        "architecture": entry.architecture,
        "format": entry.format,
        "parameters": entry.parameters or None,
        "active": entry.active or None,
        "context": entry.context or None,
        "source": entry.source,
        "origin": entry.origin or None,
        "pin": "catalog" if entry.is_pinned else "lock" if pin is not None else "unpinned",
        "revision": None if pin is None else pin.revision,
        "digest_from": (entry.hub.sha256_from or None) if entry.hub is not None else None,
        "here": here_bytes is not None,
    }


def echo_catalog(rows: list[dict[str, Any]]) -> None:
    """The same as a table, and on a terminal what its signs mean."""
    from ..plan.budget import format_size

    def size(row: dict[str, Any]) -> str:
        if row["bytes"]:
            return format_size(row["bytes"])
        return "~" + row["size"].partition(" (")[0] if row["size"] else "?"

    def pin(row: dict[str, Any]) -> str:
        if row["pin"] != "unpinned":
            return "pinned"
        return "unpinned (digest)" if row["digest_from"] else "unpinned"

    echo_table(
        ("name", "size", "licence", "languages", "good for", "pin", "here"),
        [
            (
                row["name"], size(row), _short(row["license"] or "?", 18), _short(row["languages"] or "?", 20),
                ", ".join(row["good_for"]), pin(row), "yes" if row["here"] else "",
            )
            for row in rows
        ],
        right=(1,),
    )  # fmt: skip

    if is_tty(sys.stdout):
        note("~ about, as a source states it; ? unknown; (digest) another catalog states the file's digest")


def _short(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1].rstrip(" ,;") + "…"
