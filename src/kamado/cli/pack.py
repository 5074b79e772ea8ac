"""`kamado pack`: a model's experts as records that one read brings straight into memory."""

from __future__ import annotations

from pathlib import Path

import click

from ..memory.budget import format_size
from . import backend
from .options import model_argument
from .terminal import Progress, echo_json, note


@click.command("pack")
@model_argument
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write there instead of beside MODEL; name it with --packed later.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(model: str, out: Path | None, as_json: bool) -> None:
    """Pack the experts of MODEL for streaming: one aligned record an expert, in the form that it is computed in.

    Takes about as much disk as the experts do in MODEL, which is kept. Stopped in any way, it goes on from there when
    it is called again. The file is used by itself when it lies beside MODEL; results do not change.
    """
    from ..checkpoint.packed import find_packed, pack_experts
    from ..memory.sizes import expert_records
    from ..models import build_program

    checkpoint = backend.open_model_file(model)
    records = expert_records(build_program(checkpoint))
    try:
        with Progress("packing and reading back") as progress:
            report = pack_experts(checkpoint, records, out, progress=progress)
    except KeyboardInterrupt:
        note("kamado: what was packed is kept: the same command goes on from there")
        raise
    found = find_packed(checkpoint, records, report.path)
    assert found is not None, "it was written a moment ago"
    if as_json:
        echo_json(
            {
                "path": str(report.path),
                "bytes": report.nbytes,
                "records": report.num_records,
                "kept": report.num_kept,
            }
        )
        return
    kept = f", {report.num_kept} of them kept from before" if report.num_kept else ""
    click.echo(f"{report.path}  {format_size(report.nbytes)}, {report.num_records} experts{kept}")
