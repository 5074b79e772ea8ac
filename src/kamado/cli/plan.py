"""`kamado plan`: memory and speed, forecast from the file's header and this machine's measured limits."""

from __future__ import annotations

import click

from ..plan.budget import format_size, format_size_up, given_size
from . import loading
from .options import load_options, model_argument
from .terminal import echo, echo_json, styled


@click.command("plan")
@model_argument
@load_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    model: str,
    memory: str | None,
    threads: int | None,
    context: int | None,
    kv: str | None,
    allow_unknown: tuple[str, ...],
    as_json: bool,
) -> None:
    """Forecast what MODEL will take and how fast it can be here; nothing is loaded.

    Shows who gets how many bytes of --memory. Speeds are upper bounds from the limits that `kamado bench --limits`
    measured. The exit code is 0 also when it does not fit.
    """
    from ..measure import program_of, recommended_for
    from ..plan.forecast import plan
    from ..plan.machine import load_device_profile, machine, why_no_profile

    checkpoint = loading.open_named(model)
    here = machine()
    forecast = plan(
        checkpoint,
        program_of(checkpoint, allow_unknown),
        context=context,
        kv=kv or "auto",
        threads=threads,
        memory=given_size(memory) if memory is not None else None,
        kv_recommended=recommended_for(checkpoint, kv or "auto"),
        profile=load_device_profile(here.cpu_model, threads or here.cpus, here.tier),
        on=here,
    )
    loading.tell_unknown(allow_unknown, forecast.overridden)
    if as_json:
        echo_json(forecast.to_dict())
        return
    verdict = styled("fits", fg="green") if forecast.fits else styled("does not fit", fg="red")
    echo(f"{forecast.model}: {verdict}, {format_size(forecast.peak_bytes)} of {format_size(forecast.memory_bytes)}")
    for owner, size in forecast.bytes_by_owner.items():
        if size:
            echo(f"  {owner.replace('_', ' '):12}{format_size(size):>10}")
    echo(f"context {forecast.context} tokens, KV cache {forecast.kv}, {forecast.num_threads} threads")
    echo(f"KV cache of a sequence: {forecast.kv_formula}")
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
    if forecast.decode_tokens_per_second is None or forecast.prefill_tokens_per_second is None:
        echo(f"speed: unknown; limits of this machine: {why_no_profile(here, forecast.num_threads)}")
    else:
        echo(
            f"speed at most: prefill {forecast.prefill_tokens_per_second:.0f} tokens/s, "
            f"decode {forecast.decode_tokens_per_second:.3g} tokens/s"
        )
