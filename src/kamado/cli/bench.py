"""`kamado bench`: prefill and decode speed, and this machine's own limits."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from ..errors import UsageError
from ..plan.budget import format_size, given_size
from . import loading
from .options import complete_model, load_options
from .terminal import Progress, echo, echo_json, echo_table, note, styled

if TYPE_CHECKING:
    from ..measure import Executor, Measurement
    from ..plan.machine import DeviceProfile, Machine

MAX_DEPTH = 1 << 24  # tokens; only stops a slip of the finger from asking for terabytes


class NumberList(click.ParamType[tuple[int, ...]]):
    """N,N,… in ascending order as given; an empty text is no number."""

    name = "list"

    def __init__(self, least: int) -> None:
        self.least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """The numbers; click shows what is wrong with others."""
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(int(part) for part in str(value).split(",") if part.strip())
        except ValueError:
            self.fail(f"{value!r} is no list of numbers such as 0,4096", param, ctx)
        if any(not self.least <= number <= MAX_DEPTH for number in numbers):
            self.fail(f"{value!r}: numbers from {self.least} to {MAX_DEPTH}", param, ctx)
        return numbers


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is measured, and how the model is loaded for it: the options of the command."""

    prefill: tuple[int, ...]  # lengths of prompts
    decode: int  # tokens of a run
    depth: tuple[int, ...]  # tokens that are in the cache before
    batch: tuple[int, ...]  # sequences that are decoded together
    repeat: int
    chunk: int | None
    trace: Path | None
    memory: str | None
    threads: int | None
    context: int | None
    kv: str | None
    allow_unknown: tuple[str, ...]


@click.command("bench")
@click.argument("model", metavar="[MODEL]", required=False, shell_complete=complete_model)
@click.option("--prefill", type=NumberList(1), default="512", show_default=True, metavar="N,…", help="Prompt lengths.")
@click.option(
    "--decode",
    type=click.IntRange(min=0),
    default=64,
    show_default=True,
    metavar="N",
    help="Tokens to decode; 0: none.",
)
@click.option(
    "--depth", type=NumberList(0), default="0", show_default=True, metavar="D,…", help="Tokens already in the cache."
)
@click.option(
    "--batch", type=NumberList(1), default="1", show_default=True, metavar="B,…", help="Sequences decoded together."
)
@click.option(
    "--repeat", type=click.IntRange(1, 1000), default=3, show_default=True, help="Runs of each; the median counts."
)
@click.option(
    "--chunk", type=click.IntRange(1, 8192), metavar="N", help="Rows of a prefill step.  [default: the plan's]"
)
@click.option("--limits", is_flag=True, help="Measure this machine's memory, int8 peak and MODEL's disk.")
@click.option(
    "--trace",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write the steps as a trace that ui.perfetto.dev opens.",
)
@load_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(model: str | None, limits: bool, as_json: bool, **options: Any) -> None:
    """Measure prefill and decode speed, and with --limits what the machine itself can do.

    Depths above 256 are filled by repeating real keys and values: right for speed, meaningless as text.

    Of a model whose experts are streamed, cold start (the first tokens after loading, no expert in memory) and steady
    state are told apart; no run decodes the tokens of another.
    """
    from ..plan.machine import load_device_profile, machine, why_no_profile

    if model is None and not limits:
        raise UsageError("name a MODEL, or give --limits to measure the machine alone")
    here = machine()
    wanted = Wanted(**options)
    num_threads = wanted.threads or here.cpus
    document: dict[str, Any] = {"model": None, "machine": dataclasses.asdict(here), "threads": num_threads}
    if limits:
        document["limits"] = [dataclasses.asdict(profile) for profile in _measure_limits(here, num_threads, model)]
    profile = load_device_profile(here.cpu_model, num_threads, here.tier)
    results: list[Measurement] = []
    if model is not None:
        results = _measure_model(document, here, model, wanted, profile)
        document["results"] = [result.to_dict() for result in results]
        if profile is None:
            why = why_no_profile(here, num_threads)
            note(f"kamado: note: percentages need this machine's limits, {why} {model}")
    if as_json:
        echo_json(document)
    else:
        _print(document, results)


def _measure_limits(here: Machine, num_threads: int, model: str | None) -> list[DeviceProfile]:
    """One thread's and all threads' limits, measured now and kept for plan and bench; the disk's where `model` lies."""
    from ..plan.disk import measure_disk
    from ..plan.machine import measure_device, save_device_profile

    if here.tier is None:
        raise UsageError("the native module is not built, so there is nothing to measure with")
    profiles = []
    files = () if model is None else loading.open_model_file(model).files
    disk_speed = measure_disk(files[0]) if files else None
    for count in sorted({1, num_threads}):
        profiles.append(dataclasses.replace(measure_device(count), disk_bytes_per_second=disk_speed))
        save_device_profile(profiles[-1])
    return profiles


def _measure_model(
    document: dict[str, Any], here: Machine, model: str, wanted: Wanted, profile: DeviceProfile | None
) -> list[Measurement]:
    from ..measure import (
        WARM_UP_STEPS,
        Bench,
        Tracer,
        cost_of,
        program_of,
        read_ledger,
        recommended_for,
        reset_peak_rss,
    )
    from ..plan.forecast import plan
    from ..plan.usage import BudgetWatch

    checkpoint = loading.open_named(model)
    program = program_of(checkpoint, wanted.allow_unknown)
    loading.tell_unknown(wanted.allow_unknown, program.overridden)
    prefill, decode, kv = wanted.prefill, wanted.decode, wanted.kv or "auto"
    steps = decode + WARM_UP_STEPS
    decode_runs = [(depth, count) for depth in wanted.depth for count in wanted.batch] if decode else []
    sequence_tokens = max([*prefill, *(depth + steps for depth, _ in decode_runs), wanted.context or 1])
    # Each sequence takes whole pages, so a batch takes that many times a sequence's pages.
    largest = [-(-(depth + steps) // 128) * 128 * count for depth, count in decode_runs]
    kv_tokens = max([-(-sequence_tokens // 128) * 128, *largest])
    max_sequences = max([1, *(count for _, count in decode_runs)])
    logit_rows = max(max_sequences, 16)
    forecast = plan(
        checkpoint,
        program,
        context=min(max(sequence_tokens, 2), program.context_length),
        kv=kv,
        threads=wanted.threads,
        memory=None if wanted.memory is None else given_size(wanted.memory),
        kv_tokens=kv_tokens,
        max_rows=None if wanted.chunk is None else max(wanted.chunk, max_sequences),
        max_logit_rows=logit_rows,
        max_sequences=max_sequences,
        kv_recommended=recommended_for(checkpoint, kv),
        worker=False,  # there is no text
        profile=profile,
        on=here,
    )
    forecast.require_fit()
    program = program.for_context(forecast.context)
    chunk = wanted.chunk or forecast.max_rows
    # As kamado.load: a budget that was asked for covers cached pages of the files.
    is_strict = wanted.memory is not None or forecast.is_streamed
    cost = cost_of(program, forecast.weight_bytes_per_token, forecast.ops_per_token, forecast.kv)
    reset_peak_rss()
    watch = BudgetWatch(forecast.memory_bytes, checkpoint.files if is_strict else ())

    def load() -> Executor:
        with Progress("loading") as progress:
            return loading.build_executor(
                program,
                num_threads=forecast.num_threads,
                max_rows=max(chunk, max_sequences),
                max_logit_rows=logit_rows,
                expert_bytes=forecast.expert_bytes,
                max_kv_tokens=kv_tokens,
                max_sequences=max_sequences,
                kv="f32" if forecast.kv_element == "f32" else "f16",
                kv_bits=forecast.kv_bits,
                kv_reuse_points=forecast.kv_reuse_points,
                max_records=forecast.max_records or None,
                drop_file_cache=is_strict,
                progress=progress,
            )

    def bench_of(executor: Executor, seed: int) -> Bench:
        return Bench(
            executor, cost, max_rows=chunk, profile=profile, repetitions=wanted.repeat, seed=seed,
            ledger=lambda: read_ledger(executor),
        )  # fmt: skip

    cold: list[Measurement] = []
    if forecast.is_streamed:
        # Each from a load of its own, so that not one expert is in memory.
        if prefill:
            with contextlib.closing(load()) as executor:
                cold.append(bench_of(executor, seed=2).prefill_cold(prefill[0]))
        if decode_runs:
            with contextlib.closing(load()) as executor:
                cold.append(bench_of(executor, seed=3).decode_cold(decode, decode_runs[0][1]))
    start = time.perf_counter()
    executor = load()
    try:
        load_seconds = time.perf_counter() - start
        watch.forget_files()
        if wanted.trace is not None:
            executor = cast("Executor", Tracer(executor, wanted.trace))
        bench = bench_of(executor, seed=1)
        results = [*cold, *(bench.prefill(tokens) for tokens in prefill)]
        results += [bench.decode(decode, depth, count) for depth, count in decode_runs]
        stats = executor.stats()
        ledger = read_ledger(executor)
        use = watch.sample()
    finally:
        executor.close()
    document.update(
        {
            "model": checkpoint.name or checkpoint.path.name,
            "path": str(checkpoint.path),
            "architecture": program.architecture,
            "weight_bytes": checkpoint.weight_bytes,
            "weight_bytes_per_token": cost.weight_bytes,
            "kv_bytes_per_token": forecast.kv_bytes_per_token,
            "state_bytes_per_token": forecast.state_bytes_per_token,
            "tier": here.tier,
            "kv": forecast.kv,
            "chunk": chunk,
            "load_seconds": round(load_seconds, 4),
            "peak_bytes": watch.peak_bytes,
            "planned_peak_bytes": forecast.peak_bytes,
            "cgroup_peak_bytes": use.cgroup_peak_bytes,  # of others in it too
            "budget_bytes": forecast.memory_bytes,
            "has_held": watch.has_held,
            "planned_by_owner": forecast.bytes_by_owner,
            "expert_bytes": forecast.expert_bytes,
            "ledger": None if ledger is None else ledger.to_dict(),
            "executor": stats,
        }
    )
    return results


# How the table of a streamed model names the kinds of measurements.
_WORK = {
    f"{kind}{mark}": f"{kind}, {state}"
    for mark, state in (("_cold", "cold start"), ("", "steady state"))
    for kind in ("prefill", "decode")
}


def _streamed_cells(result: Measurement) -> tuple[str, str]:
    """Hit rate, and bytes that a token read."""
    read = result.bytes_read_per_token
    return (
        "-" if result.hit_rate is None else f"{result.hit_rate:.1%}",
        "-" if read is None else format_size(round(read)),
    )


def _print(document: dict[str, Any], results: list[Measurement]) -> None:
    here = document["machine"]
    echo(f"{here['cpu_model']}, {document['threads']} threads, tier {here['tier']}")
    for limit in document.get("limits", []):
        bandwidth, int8 = limit["read_bytes_per_second"] / 1e9, limit["int8_ops_per_second"] / 1e9
        disk, f32 = limit["disk_bytes_per_second"], limit["f32_ops_per_second"]
        echo(
            f"limits, {limit['num_threads']} threads: reads {bandwidth:.1f} GB/s, int8 {int8:.0f} GOPS"
            + (f", f32 {f32 / 1e9:.0f} GFLOPS" if f32 else "")
            + (f", disk {disk / 1e9:.2f} GB/s" if disk else "")
        )
    if document["model"] is None:
        return
    echo(
        f"{styled(document['model'], bold=True)}: {format_size(document['weight_bytes'])}, "
        f"loaded in {document['load_seconds']:.2f} s, peak {format_size(document['peak_bytes'])}"
    )
    if document["ledger"] is not None:
        total = document["ledger"]["total"]
        hits = total["hit_rate"] or 0.0
        echo(
            f"experts streamed through {document['ledger']['slots']} slots: {format_size(total['bytes_read'])} read, "
            f"hit rate {hits:.1%}, waited {total['wait_seconds']:.2f} s"
        )
    if not document["has_held"]:
        echo(f"more than the budget of {format_size(document['budget_bytes'])}")
    rows = [
        (
            _WORK[result.kind] if document["ledger"] is not None else result.kind,
            result.tokens,
            f"{result.depth}{'*' if result.kv_tiled else ''}",
            result.batch,
            f"{result.tokens_per_second:.1f}",
            "-" if result.percent_of_bandwidth is None else f"{result.percent_of_bandwidth:.0f} %",
            "-" if result.percent_of_int8_peak is None else f"{result.percent_of_int8_peak:.0f} %",
            *(_streamed_cells(result) if document["ledger"] is not None else ()),
        )
        for result in results
    ]
    header: tuple[str, ...] = ("work", "tokens", "depth", "batch", "tokens/s", "of bandwidth", "of int8")
    header += ("hit rate", "read a token") if document["ledger"] is not None else ()
    echo_table(header, rows, right=tuple(range(1, len(header))))
    if document["ledger"] is not None:
        click.echo("cold start: from an empty memory, once; steady state: the median of runs on tokens of their own")
    if any(result.kv_tiled for result in results):
        echo("* cache filled by repeating real keys and values: for speed only")
