"""`kamado synth`: random-weight models of a family's real shape, and real ones upcycled, for measurements and tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from ..errors import UsageError
from ..plan.budget import format_size
from . import loading
from .options import Function, complete_model
from .terminal import Progress, echo, echo_json


def _model_option(name: str, text: str) -> Callable[[Function], Function]:
    return click.option(name, metavar="MODEL", shell_complete=complete_model, help=text)


def complete_family(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Families that there are shapes of."""
    from ..synth.families import SHAPES

    return [CompletionItem(name) for name in SHAPES if name.startswith(incomplete)]


@click.command("synth")
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--family",
    metavar="NAME",
    shell_complete=complete_family,
    help="The shape, e.g. qwen3moe, llama, glm4moe-air, minimax-m2.",
)
@_model_option("--upcycle", "Instead: MODEL, a dense llama, with its feed-forward blocks copied into experts.")
@_model_option("--tokenizer-from", "Model whose tokenizer is copied.")
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
@click.option("--vocab", type=click.IntRange(min=1), metavar="N", help="Tokens.  [default: the tokenizer's]")
@click.option(
    "--part",
    type=click.FloatRange(0, 1, min_open=True),
    metavar="SHARE",
    help="That share of the published layers and vocabulary: a model cut to what fits, in true proportions.",
)
@click.option("--layout", metavar="KIND", help="One layout, or q4_k_m: mixed over layers.  [default: q4_k]")
@click.option(
    "--skew",
    type=click.FloatRange(0.5, 1),
    metavar="SHARE",
    help="Share of picks of each layer's hottest half of experts.",
)
@click.option(
    "--jitter", type=click.IntRange(min=0), metavar="SEED", help="With --upcycle: make every expert a little different."
)
@click.option("--jitter-scale", type=float, metavar="S", help="Spread of the experts' scales.  [default: 0.02]")
@click.option(
    "--router",
    type=click.Choice(("grouped", "independent")),
    help="With --upcycle: equal rows for top-k experts each, exact; or a row each.  [default: grouped, with --jitter "
    "independent]",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="N")
@click.option("--header-only", is_flag=True, help="No weights: the tensors are a hole in the file. Enough for a plan.")
@click.option("--force", is_flag=True, help="Write over an existing file.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    out: Path,
    family: str | None,
    upcycle: str | None,
    tokenizer_from: str | None,
    force: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Write OUT, a GGUF file of random weights in the true shape of a family. What is not given is the family's own.

    With --upcycle, write a real model as a Mixture of Experts: its feed-forward blocks copied --experts times, of which
    a token uses --top-k. Without --jitter its answers are the dense model's, bit for bit.
    """
    if out.exists() and not force:
        raise UsageError(f"{out} exists: name another file or give --force")
    given = {name: value for name, value in settings.items() if value is not None and value is not False}
    if upcycle is not None:
        if family is not None or tokenizer_from is not None:
            raise UsageError("--upcycle takes shape and tokenizer from its model: leave --family and --tokenizer-from")
        _upcycle(out, upcycle, as_json, given)
    elif family is None or tokenizer_from is None:
        raise UsageError("name a --family and a model for --tokenizer-from, or a model to --upcycle")
    else:
        _synthesize(out, family, tokenizer_from, as_json, given)


def _upcycle(out: Path, parent: str, as_json: bool, settings: dict[str, Any]) -> None:
    from ..synth.upcycle import upcycle

    known = ("experts", "top_k", "seed", "jitter", "jitter_scale", "router")
    if lost := [name for name in settings if name not in known]:
        raise UsageError(f"--{lost[0].replace('_', '-')} has no meaning with --upcycle")
    if "experts" not in settings or "top_k" not in settings:
        raise UsageError("--upcycle needs --experts and --top-k")
    if "jitter_scale" in settings and "jitter" not in settings:
        raise UsageError("--jitter-scale needs --jitter")
    with Progress(f"writing {out.name}") as progress:
        report = upcycle(loading.open_model_file(parent), out, progress=progress, **settings)
    if as_json:
        echo_json(dataclasses.asdict(report))
        return
    echo(
        f"{out}  {format_size(report.nbytes)}, {report.num_parameters / 1e9:.2f} billion parameters, "
        f"{report.top_k} of {report.num_experts} experts of {format_size(report.expert_nbytes)} in each of "
        f"{report.num_layers} layers"
    )


def _synthesize(out: Path, family: str, tokenizer_from: str, as_json: bool, settings: dict[str, Any]) -> None:
    from ..synth.synthesize import synthesize

    if lost := [name for name in ("jitter", "jitter_scale", "router") if name in settings]:
        raise UsageError(f"--{lost[0].replace('_', '-')} goes with --upcycle")
    tokenizer = loading.open_model_file(tokenizer_from)
    with Progress(f"writing {out.name}") as progress:
        report = synthesize(out, family, tokenizer_from=tokenizer, progress=progress, **settings)
    if as_json:
        shape_used = dataclasses.asdict(report.shape)
        echo_json(
            {"path": str(out), "bytes": report.nbytes, "shape": shape_used, "hot_shares": list(report.hot_shares)}
        )
        return
    echo(f"{out}  {format_size(report.nbytes)}")
    if report.hot_share is not None:
        echo(f"the hottest half of each layer's experts takes {report.hot_share:.1%} of the picks")
