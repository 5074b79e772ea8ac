"""`kamado synth`: random-weight models of a family's real shape, for speed measurements and tests."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from ..errors import UsageError
from ..memory.budget import format_size
from . import backend
from .options import complete_model
from .terminal import Progress, echo_json


@click.command("synth")
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--family", required=True, metavar="NAME", help="The architecture, e.g. qwen3moe, llama, gemma3.")
@click.option(
    "--tokenizer-from",
    required=True,
    metavar="MODEL",
    shell_complete=complete_model,
    help="Model whose tokenizer is copied.",
)
@click.option("--layers", type=click.IntRange(min=1), metavar="N", help="Blocks.")
@click.option("--hidden", type=click.IntRange(min=1), metavar="N", help="Width of the residual stream.")
@click.option("--heads", type=click.IntRange(min=1), metavar="N", help="Query heads.")
@click.option("--kv-heads", type=click.IntRange(min=1), metavar="N", help="Key and value heads.")
@click.option("--head-dim", type=click.IntRange(min=1), metavar="N", help="Width of a head.")
@click.option("--ffn", type=click.IntRange(min=1), metavar="N", help="Width of the dense feed-forward part.")
@click.option("--experts", type=click.IntRange(min=1), metavar="N", help="Experts a layer.")
@click.option("--top-k", type=click.IntRange(min=1), metavar="N", help="Experts a token uses.")
@click.option("--expert-width", type=click.IntRange(min=1), metavar="N", help="Width inside an expert.")
@click.option("--context", type=click.IntRange(min=1), metavar="N", help="Context length that the file states.")
@click.option(
    "--layout", default="q4_k", show_default=True, metavar="KIND", help="One layout, or q4_k_m: mixed over layers."
)
@click.option(
    "--skew",
    type=click.FloatRange(0.5, 1),
    metavar="SHARE",
    help="Share of picks of each layer's hottest half of experts.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="N")
@click.option("--force", is_flag=True, help="Write over an existing file.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(out: Path, family: str, tokenizer_from: str, force: bool, as_json: bool, **shape: Any) -> None:
    """Write OUT, a GGUF file of random weights in the true shape of a family. What is not given is the family's own."""
    from ..checkpoint.synth import synthesize

    if out.exists() and not force:
        raise UsageError(f"{out} exists: name another file or give --force")
    tokenizer = backend.open_model_file(tokenizer_from)
    with Progress(f"writing {out.name}") as progress:
        report = synthesize(out, family, tokenizer_from=tokenizer, progress=progress, **shape)
    if as_json:
        shape_used = dataclasses.asdict(report.shape)
        echo_json(
            {"path": str(out), "bytes": report.nbytes, "shape": shape_used, "hot_shares": list(report.hot_shares)}
        )
        return
    click.echo(f"{out}  {format_size(report.nbytes)}")
    if report.hot_share is not None:
        click.echo(f"the hottest half of each layer's experts takes {report.hot_share:.1%} of the picks")
