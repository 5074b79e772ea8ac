"""`kamado search`: models by a word, in the catalog and on the hub."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import click

from ..errors import DownloadError
from .pull import catalog_rows, complete_catalog, echo_catalog
from .terminal import echo, echo_json, echo_table, note

if TYPE_CHECKING:
    from ..library.hub_api import Hit


@click.command("search")
@click.argument("words", metavar="WORD...", nargs=-1, required=True, shell_complete=complete_catalog)
@click.option("--limit", type=click.IntRange(1, 100), default=20, show_default=True, help="Most lines of the hub's.")
@click.option("--catalog", "catalog_only", is_flag=True, help="Only the catalog: no network is used.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(words: tuple[str, ...], limit: int, catalog_only: bool, as_json: bool) -> None:
    """Find models that have every WORD: in the catalog first, then GGUF repositories on the hub.

    What the hub lists is fetched with: kamado pull hf:OWNER/REPO. "runs" says whether the architecture of its files is
    one that runs here; "?" where the hub does not tell it.
    """
    rows = catalog_rows(words)
    hits: list[dict[str, Any]] = []
    fault = ""
    if not catalog_only:
        from ..library.hub_api import find

        try:
            hits = [_hit(hit) for hit in find(words, limit)]
        except DownloadError as error:
            fault = str(error)
    if as_json:
        echo_json({"catalog": rows, "hub": hits, "hub_error": fault or None})
    else:
        _print(rows, hits)
        if not rows and not hits and not fault:
            note(f"nothing fits {' '.join(words)}")
    if fault:
        if not rows:
            raise DownloadError(f"nothing in the catalog fits {' '.join(words)}, and the hub was not asked: {fault}")
        note(f"kamado: note: the hub was not asked: {fault}")


def _hit(hit: Hit) -> dict[str, Any]:
    from ..measure import supported_architectures

    runs = hit.architecture in supported_architectures() if hit.architecture else None
    return {"name": f"hf:{hit.repo}", **dataclasses.asdict(hit), "runs": runs}


def _print(rows: list[dict[str, Any]], hits: list[dict[str, Any]]) -> None:
    if rows:
        echo_catalog(rows)
    if hits:
        if rows:
            echo()
        echo_table(
            ("on the hub", "downloads", "parameters", "licence", "architecture", "runs"),
            [
                (
                    hit["name"], hit["downloads"], _billions(hit["parameters"]),
                    ("asks for agreement, " if hit["is_gated"] else "") + (hit["license"] or "?"),
                    hit["architecture"] or "?", {True: "yes", False: "no", None: "?"}[hit["runs"]],
                )
                for hit in hits
            ],
            right=(1, 2),
        )  # fmt: skip


def _billions(count: int) -> str:
    if not count:
        return "?"
    return f"{count / 1e9:.3g}B" if count >= 1e9 else f"{count / 1e6:.3g}M"
