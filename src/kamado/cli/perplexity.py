"""`kamado perplexity`: how well a model predicts a text, scored as llama-perplexity does."""

from __future__ import annotations

from typing import Any

import click

from ..errors import UsageError
from . import loading
from .options import KV_HELP, given, model_argument, read_text, unknown_option
from .terminal import Progress, echo, echo_json, styled


@click.command("perplexity")
@model_argument
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True), default="-")
@click.option(
    "--context", type=click.IntRange(4), default=512, show_default=True, metavar="N", help="Tokens of a window."
)
@click.option(
    "--threads", "-j", type=click.IntRange(min=1), metavar="N", help="Compute threads.  [default: the processors]"
)
@click.option("--memory", metavar="SIZE", help="Byte budget, e.g. 6GiB.  [default: what the machine allows]")
@click.option("--kv", metavar="PRESET", help=KV_HELP)
@unknown_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(model: str, file: str, context: int, as_json: bool, **values: Any) -> None:
    """Score the text in FILE (or standard input).

    The text is cut into windows of --context tokens and the second half of each is scored, as llama-perplexity does, so
    that the figures compare.
    """
    text = read_text(file)
    if not text.strip():
        raise UsageError("there is no text to score")
    path = loading.locate(model)
    with loading.load(
        path, {**given(values, ("threads", "memory", "kv", "allow_unknown")), "context": context}
    ) as loaded:
        with Progress("scoring", unit="windows") as progress:
            result = loaded.perplexity(text, window=context, progress=progress)
        name = loaded.name
    if as_json:
        echo_json(
            {
                "model": name,
                "path": str(path),
                "perplexity": result.value,
                "standard_error": result.standard_error,
                "scored_tokens": result.num_tokens,
                "context": context,
            }
        )
    else:
        value = styled(f"{result.value:.4f}", bold=True)
        echo(f"perplexity {value} ± {result.standard_error:.4f} over {result.num_tokens} tokens, windows of {context}")
