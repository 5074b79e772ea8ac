"""`kamado kv`: measures how small a model's KV cache may be, and records it for --kv auto."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from ..errors import UsageError
from . import loading
from .options import given, model_argument, unknown_option
from .terminal import Progress, echo, echo_json, echo_table, note, styled

if TYPE_CHECKING:
    from ..measure import KvLayerRow


@click.command("kv")
@model_argument
@click.option(
    "--presets", metavar="LIST", default="safe,balanced,small", show_default=True, help="By commas, or by ; for bits."
)
@click.option(
    "--tokens", type=click.IntRange(384, 1 << 20), default=2048, show_default=True, metavar="N", help="Of each text."
)
@click.option("--fresh", is_flag=True, help="Measure again what an earlier run measured.")
@click.option(
    "--threads", "-j", type=click.IntRange(min=1), metavar="N", help="Compute threads.  [default: the processors]"
)
@click.option("--memory", metavar="SIZE", help="Byte budget, e.g. 6GiB.  [default: what the machine allows]")
@unknown_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(model: str, presets: str, tokens: int, fresh: bool, as_json: bool, **values: Any) -> None:
    """Measure on MODEL itself what a smaller KV cache costs, and record what is safe.

    Three built-in texts are scored with each preset and with the exact cache; beside that the weights of attention are
    compared layer by layer, and a preset that a few layers may spoil is measured with those left exact, too.
    Afterwards --kv auto, the default of all commands, takes the smallest one that is safe for this model. Ctrl-C keeps
    what was measured so far; the next run goes on from there.
    """
    # Before numpy is there: its products are small, and on a busy machine a second thread of its own costs a minute.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from ..measure import MAX_DIVERGENCE, MAX_RISE_PERCENT, delicate_layers, is_safe, measure_kv
    from ..plan.kv_presets import AUTO, check_kv

    names = [name.strip() for name in presets.split(";" if ";" in presets else ",") if name.strip()]
    for name in names:
        check_kv(name)
        if name == AUTO:
            raise UsageError("auto is what this command finds out: name the presets to measure")
    if not names:
        raise UsageError("--presets names nothing to measure")
    path = loading.locate(model)
    with Progress("measuring", unit="tokens") as progress:
        found = measure_kv(
            path,
            presets=[name for name in names if name != "exact"],
            num_tokens=tokens,
            is_fresh=fresh,
            progress=progress,
            **given(values, ("threads", "memory", "allow_unknown")),
        )
    rows = [row for row in found.rows if row.kv in ("exact", *names) or row.kv.partition(",layers=")[0] in names]
    attention = {row.kv: found.layers_of(row.kv) for row in rows}
    exact_bytes = next(row.bytes_per_token for row in rows if row.kv == "exact")
    if as_json:
        echo_json(
            {
                "model": loading.called(path),
                "path": str(path),
                "recommended": found.recommended,
                "limits": {"rise_percent": MAX_RISE_PERCENT, "divergence": MAX_DIVERGENCE},
                "measured_at": found.measured_at,
                "presets": [
                    {name: getattr(row, name) for name in row.__slots__}
                    | {
                        "is_safe": is_safe(row),
                        "times_smaller": exact_bytes / row.bytes_per_token,
                        "delicate_layers": delicate_layers(attention[row.kv]),
                        "attention": [
                            {name: getattr(layer, name) for name in layer.__slots__ if name != "kv"}
                            for layer in attention[row.kv]
                        ],
                    }
                    for row in rows
                ],
            }
        )
        return
    table = [
        (
            row.kv,
            f"{row.bytes_per_token:,.0f}",
            f"{exact_bytes / row.bytes_per_token:.2f}x",
            f"{row.perplexity:.3f}",
            "" if row.kv == "exact" else f"{row.rise_percent:+.2f} % ± {row.rise_error_percent:.2f}",
            "" if row.kv == "exact" else f"{row.divergence:.4f}",
            _attention_cell(attention[row.kv]),
            "" if row.kv == "exact" else f"{row.same_top_percent:.1f} %",
            "" if row.kv == "exact" else ("yes" if is_safe(row) else "no"),
        )
        for row in rows
    ]
    header = (
        "kv",
        "bytes a token",
        "smaller",
        "perplexity",
        "rise",
        "divergence",
        "attention",
        "same top token",
        "safe",
    )
    echo_table(header, table, right=(1, 2, 3, 4, 5, 6, 7))
    for row in rows:
        layers = delicate_layers(attention[row.kv])
        for layer in attention[row.kv]:
            if layer.layer in layers:
                note(
                    f"{row.kv}: keys of layer {layer.layer} are delicate: the weights of its head {layer.worst_head} "
                    f"move by {layer.worst_divergence:.3f} nats, {layer.divergence:.4f} over all its heads"
                )
    echo(f"--kv auto now takes {styled(str(found.recommended), bold=True)} for {loading.called(path)}")
    note(
        f"safe: perplexity rises by {MAX_RISE_PERCENT:g} % at most with two standard errors, and the mean divergence "
        f"of the next token is {MAX_DIVERGENCE:g} nats at most; {rows[0].num_tokens} tokens were scored; attention: "
        "divergence of its weights, mean and worst head"
    )


def _attention_cell(layers: Sequence[KvLayerRow]) -> str:
    """Mean over layers and the worst head; empty where nothing is encoded or was compared."""
    if not layers:
        return ""
    mean = sum(row.divergence for row in layers) / len(layers)
    return f"{mean:.4f}, {max(row.worst_divergence for row in layers):.3f}"
