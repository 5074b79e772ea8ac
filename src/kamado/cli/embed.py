"""`kamado embed`: texts to vectors."""

from __future__ import annotations

from typing import Any

import click

from ..errors import UsageError
from . import loading
from .connection import opened
from .options import load_options, model_argument, read_text, server_options
from .terminal import echo, echo_json, styled

_LOAD_NAMES = ("memory", "threads", "context", "kv", "allow_unknown")
_SHOWN = 6  # values of a vector that are shown where JSON was not asked for


@click.command("embed")
@model_argument
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@click.option(
    "--file",
    "-f",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
    help="Embed each line of a file; - is standard input.",
)
@click.option(
    "--dimensions", type=click.IntRange(min=1), metavar="N", help="The first N values only, of length 1 again."
)
@click.option("--truncate", is_flag=True, help="Cut texts that are longer than the context, in place of refusing them.")
@click.option("--pull", is_flag=True, help="Fetch the model first if it is missing.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@server_options
@load_options
def command(
    model: str,
    texts: tuple[str, ...],
    file: str | None,
    dimensions: int | None,
    truncate: bool,
    pull: bool,
    server: str | None,
    local: bool,
    as_json: bool,
    **values: Any,
) -> None:
    """Turn each TEXT into a vector of length 1.

    Without texts, each line of standard input is one. With two texts or more and no --json, the likeness of each to the
    first is shown: the cosine of the angle between them.
    """
    if file is not None and texts:
        raise UsageError("give texts or --file, not both")
    lines = list(texts) if texts else [line for line in read_text(file or "-").splitlines() if line.strip()]
    if not lines:
        raise UsageError("there is no text to embed")
    path = None if server is not None else loading.locate(model, pull=pull)
    with opened(model, values, server=server, local=local, for_vectors=True, names=_LOAD_NAMES) as loaded:
        result = loaded.embed_counted(lines, dimensions=dimensions, truncate=truncate)
        name = loaded.name
    if as_json:
        embeddings = [
            {"text": text, "tokens": count, "embedding": [float(x) for x in vector]}
            for text, count, vector in zip(lines, result.num_tokens, result.vectors, strict=True)
        ]
        dims = int(result.vectors.shape[1])
        shown = None if path is None else str(path)
        echo_json({"model": name, "path": shown, "dimensions": dims, "embeddings": embeddings})
        return
    likeness = result.vectors @ result.vectors[0]
    for text, vector, cosine in zip(lines, result.vectors, likeness, strict=True):
        shown = " ".join(f"{x:+.4f}" for x in vector[:_SHOWN]) + (" …" if len(vector) > _SHOWN else "")
        first = f"{styled(f'{cosine:.4f}', bold=True)}  " if len(lines) > 1 else ""
        echo(f"{first}{shown}  {' '.join(text.split())[:60]}")
