"""`kamado plan`: memory and speed, forecast from the file's header and the limits of this machine or of another one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..plan.budget import format_size, format_size_up, given_size
from . import loading
from .options import load_options, model_argument
from .terminal import echo, echo_json, one_line, styled

if TYPE_CHECKING:
    from ..plan.device import Device
    from ..plan.forecast import Plan

_WORDS = {
    "memory_bytes": "memory",
    "usable_bytes": "usable",
    "threads": "threads",
    "memory_bytes_per_second": "memory reads",
    "int8_ops_per_second": "int8",
    "f32_ops_per_second": "float32",
    "disk_bytes_per_second": "disk",
    "disk_curve": "disk",
}


@click.command("plan")
@model_argument
@load_options
@click.option(
    "--device",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Plan for the machine that FILE (TOML) describes instead of this one.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    model: str,
    memory: str | None,
    threads: int | None,
    context: int | None,
    kv: str | None,
    allow_unknown: tuple[str, ...],
    device: Path | None,
    as_json: bool,
) -> None:
    """Forecast what MODEL will take and how fast it can be here; nothing is loaded.

    Shows who gets how many bytes of --memory. Speeds are upper bounds from the limits that `kamado bench --limits`
    measured, or from those that the file of --device states. The exit code is 0 also when it does not fit.
    """
    from ..measure import program_of, recommended_for
    from ..plan.device import device_here, read_device
    from ..plan.forecast import plan

    planned_for = device_here(threads) if device is None else read_device(device)
    checkpoint = loading.open_named(model)
    forecast = plan(
        checkpoint,
        program_of(checkpoint, allow_unknown),
        context=context,
        kv=kv or "auto",
        threads=threads,
        memory=given_size(memory) if memory is not None else None,
        kv_recommended=recommended_for(checkpoint, kv or "auto"),
        profile=planned_for.profile,
        on=planned_for.machine,
    )
    loading.tell_unknown(allow_unknown, forecast.overridden)
    if as_json:
        echo_json({**forecast.to_dict(), "device": planned_for.to_dict()})
        return
    _tell_memory(forecast)
    _tell_state(forecast)
    _tell_speed(forecast, planned_for)


def _tell_memory(forecast: Plan) -> None:
    """Who gets how many bytes, and where the experts are."""
    verdict = styled("fits", fg="green") if forecast.fits else styled("does not fit", fg="red")
    echo(f"{forecast.model}: {verdict}, {format_size(forecast.peak_bytes)} of {format_size(forecast.memory_bytes)}")
    for owner, size in forecast.bytes_by_owner.items():
        if size:
            echo(f"  {owner.replace('_', ' '):12}{format_size(size):>10}")
    echo(f"context {forecast.context} tokens, KV cache {forecast.kv}, {forecast.num_threads} threads")
    for note in forecast.notes:
        echo(f"note: {note}")
    if forecast.is_streamed and forecast.fits:
        echo(
            f"experts are streamed: {forecast.expert_slots} of {forecast.num_experts} in memory, a token reads "
            f"{format_size(forecast.miss_bytes_per_token)} of {format_size(forecast.expert_bytes_per_token)} when "
            f"routing is flat, less when it is not; prefill by {forecast.max_rows} rows"
        )
    elif forecast.num_experts and forecast.fits:
        echo(f"all {forecast.num_experts} experts are resident")
    if not forecast.fits or forecast.is_streamed:
        owners = ", ".join(
            f"{owner.replace('_', ' ')} {format_size(size)}"
            for owner, size in forecast.least_bytes_by_owner.items()
            if size
        )
        echo(
            f"the least budget that works with a context of {forecast.least_context} tokens is "
            f"{format_size_up(forecast.least_bytes)} ({owners})"
        )


def _tell_state(forecast: Plan) -> None:
    """What a conversation takes, how many fit, and what going back costs."""
    echo(f"KV cache of a sequence: {forecast.kv_formula}")
    if not forecast.conversation_bytes:
        return
    size = format_size(forecast.conversation_bytes)
    many = f"{forecast.num_conversations} fit" if forecast.num_conversations != 1 else "1 fits"
    echo(f"a conversation of {forecast.context} tokens takes {size}; {many}")
    if forecast.record_bytes:
        echo(
            f"state of a conversation: {format_size(forecast.record_bytes)}, two for each of {forecast.max_sequences} "
            f"sequences, one for each of {forecast.kv_reuse_points} reuse points and "
            f"{forecast.max_records - 2 * forecast.max_sequences - forecast.kv_reuse_points} more; a decoded token "
            f"reads and writes {format_size(forecast.state_bytes_per_token)}"
        )
    if forecast.reuse_point_bytes:
        echo(f"a reuse point takes {format_size(forecast.reuse_point_bytes)}")


def _tell_speed(forecast: Plan, device: Device) -> None:
    """The two speeds at most, and the figures that they rest on."""
    if forecast.decode_tokens_per_second is None or forecast.prefill_tokens_per_second is None:
        from ..plan.machine import why_no_profile

        echo(f"speed: unknown; limits of this machine: {why_no_profile(device.machine, forecast.num_threads)}")
        return
    echo(
        f"speed at most: prefill {forecast.prefill_tokens_per_second:.0f} tokens/s (by {forecast.prefill_limited_by}), "
        f"decode {forecast.decode_tokens_per_second:.3g} tokens/s (by {forecast.decode_limited_by})"
    )
    if forecast.is_streamed and not device.figures.keys() & {"disk_bytes_per_second", "disk_curve"}:
        todo = "kamado bench --limits MODEL measures it" if device.file is None else "the file does not state it"
        echo(f"the disk's speed is not known, so reading experts is not counted: {todo}")
    where = "this machine" if device.file is None else str(device.file)
    echo(f"figures of {one_line(device.name)} ({where}):")
    for name, figure in device.figures.items():
        echo(f"  {_WORDS[name]:14}{_figure(name, figure.value):>12}  {one_line(figure.source)}")


def _figure(name: str, value: float | tuple[tuple[int, float], ...]) -> str:
    """One figure for people."""
    if isinstance(value, tuple):
        return f"{len(value)} sizes"
    if name == "threads":
        return str(value)
    if name.endswith("ops_per_second"):
        return f"{value / 1e9:,.0f} GOPS"
    return f"{value / 1e9:,.3g} GB/s" if name.endswith("per_second") else format_size(int(value))
