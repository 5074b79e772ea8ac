"""What the runs of `benchmarks/streaming.py` say: each claim against its bound, a table of runs, and the curve."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

from curve import Curve, svg
from kamado.plan.budget import format_size

Run = dict[str, Any]
BEGIN, END = "<!-- streaming-figures -->", "<!-- /streaming-figures -->"
_ZERO_GROWTH_BYTES = 1 << 20  # what sampling resident memory cannot tell from none


@dataclass(frozen=True, slots=True)
class Claim:
    """One line of the table: what was measured against what it must be."""

    measure: str
    value: float
    target: float
    _: KW_ONLY
    at_most: bool
    note: str = ""

    @property
    def is_met(self) -> bool:
        return self.value <= self.target if self.at_most else self.value >= self.target

    def row(self) -> str:
        sign, verdict = "≤" if self.at_most else "≥", "yes" if self.is_met else "**no**"
        return f"| {self.measure} | {sign} {self.target:g} | {self.value:.3g} | {verdict} | {self.note} |"


def claims(runs: Sequence[Run]) -> list[Claim]:
    """All claims about one model, as far as their runs are there."""
    good = [run for run in runs if "failed" not in run]
    step = in_memory_step(good)
    found: list[Claim] = []
    for judge in (_against_peer, _against_ideal, _whole, _prefill, _soak, _least, _beyond):
        found += judge(good)
    return [*found, *_against_bound(good, step)]


def in_memory_step(runs: Sequence[Run]) -> float | None:
    """Seconds of a token when everything is in memory."""
    speeds = [r["tokens_per_second"] for r in runs if r["cell"] in ("memory", "whole") and r["budget"] == "none"]
    return 1 / statistics.median(speeds) if speeds else None


def _groups(runs: Iterable[Run], *cells: str) -> dict[tuple[str, str], list[Run]]:
    """(budget, engine) -> runs."""
    found: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        if run["cell"] in cells:
            found.setdefault((run["budget"], run["engine"]), []).append(run)
    return found


def _median(runs: Sequence[Run], value: Callable[[Run], float]) -> float:
    return statistics.median(value(run) for run in runs)


def _against_peer(runs: Sequence[Run]) -> list[Claim]:
    groups = _groups(runs, "decode")
    found = []
    is_skewed = any(run.get("hottest_half", 0) > 0.75 for run in runs)
    for (budget, engine), theirs in groups.items():
        ours = groups.get((budget, "kamado"))
        if engine == "kamado" or not ours:
            continue
        target = 10.0 if engine.endswith("as set") else 1.6
        if is_skewed and engine.endswith("tuned"):
            target = 3.0 if budget.startswith("6") else 2.0
        target = theirs[-1].get("least_ratio", target)

        def per_disk(run: Run) -> float:
            return float(run["tokens_per_second"] / run["disk_bytes_per_second"])

        raw = _median(ours, lambda r: r["tokens_per_second"]) / _median(theirs, lambda r: r["tokens_per_second"])
        note = f"as timed {raw:.2f}; {len(ours)} and {len(theirs)} runs"
        ratio = _median(ours, per_disk) / _median(theirs, per_disk)
        found.append(
            Claim(
                f"{budget}: faster than {engine}, each by its own disk probe", ratio, target, at_most=False, note=note
            )
        )
    return found


def _against_ideal(runs: Sequence[Run]) -> list[Claim]:
    found = []
    for (budget, _), mine in _groups([r for r in runs if "over_ideal" in r], "decode", "shares").items():
        belady = _median(mine, lambda r: r["belady_bytes_per_token"] / r["ideal_bytes_per_token"])
        note = f"Belady's: {belady:.2f}; hottest half takes {mine[0]['hottest_half']:.1%} of the picks"
        found.append(
            Claim(f"{budget}: bytes a token, of an ideal LRU's", _median(mine, lambda r: r["over_ideal"]), 1.03,
                  at_most=True, note=note)
        )  # fmt: skip
    return found


def over_bound(run: Run, step: float, *, is_ideal: bool = False) -> float:
    """Time a token over max(bytes ÷ disk, in-memory step), the median of the blocks, each with its own probes."""
    ratios = []
    for part in run["parts"]:
        disk = statistics.mean(part["probe_bytes_per_second"])
        read = run["ideal_bytes_per_token"] if is_ideal else part["ledger"]["bytes_read"] / part["tokens"]
        ratios.append(part["seconds"] / part["tokens"] / max(read / disk, step))
    return statistics.median(ratios)


def _against_bound(runs: Sequence[Run], step: float | None) -> list[Claim]:
    if step is None:
        return []
    found = []
    for (budget, _), mine in _groups([r for r in runs if r.get("slots")], "shares").items():
        value = _median(mine, lambda r: over_bound(r, step))
        found.append(Claim(f"{budget}: time a token over max(disk, compute)", value, 1.15, at_most=True))
    for (budget, _), mine in _groups([r for r in runs if "over_ideal" in r], "decode").items():
        share = 1 / _median(mine, lambda r: over_bound(r, step, is_ideal=True))
        found.append(Claim(f"{budget}: speed, of the bound by replay and disk", share, 0.85, at_most=False))
    return found


def _whole(runs: Sequence[Run]) -> list[Claim]:
    groups = _groups(runs, "whole")
    plain = groups.get(("none", "kamado"))
    if not plain:
        return []
    speed = _median(plain, lambda r: r["tokens_per_second"])
    return [
        Claim(
            f"{engine} in a budget that holds everything, of in-memory speed",
            _median(mine, lambda r: r["tokens_per_second"]) / speed, 0.97, at_most=False, note=f"{len(mine)} runs",
        )
        for (budget, engine), mine in groups.items()
        if budget == "all"
    ]  # fmt: skip


def _prefill(runs: Sequence[Run]) -> list[Claim]:
    by_budget = {run["budget"]: run for run in runs if run["cell"] == "prefill"}
    plain = by_budget.pop("none", None)
    if not by_budget:
        return []
    budget, capped = by_budget.popitem()
    reads = max(step["most_misses_a_layer"] for part in capped["parts"] for step in part["steps"])
    a_layer = capped["experts_a_layer"]
    largest = max(step["bytes_read"] for part in capped["parts"] for step in part["steps"])
    once = max(reads / a_layer, largest / (a_layer * sum(capped["record_bytes"])))
    found = [
        Claim(f"prefill at {budget}: reads of an expert, a layer and chunk", once, 1, at_most=True,
              note=f"chunks of {capped['max_rows']} rows")
    ]  # fmt: skip
    if plain is not None:
        compute = statistics.median(part["seconds"] for part in plain["parts"][1:])
        ratios = [
            part["seconds"]
            / max(part["ledger"]["bytes_read"] / statistics.mean(part["probe_bytes_per_second"]), compute)
            for part in capped["parts"][1:]
        ]
        tokens = capped["parts"][0]["tokens"]
        note = f"in memory {compute:.1f} s"
        found.append(
            Claim(f"prefill of {tokens} at {budget}: time over max(disk, compute)", statistics.median(ratios), 1.25,
                  at_most=True, note=note)
        )  # fmt: skip
    return found


def _soak(runs: Sequence[Run]) -> list[Claim]:
    found = []
    for run in runs:
        if run["cell"] != "soak" or "grown_bytes" not in run:
            continue
        minutes = run["sampled_seconds"] / 60
        peak = max(run["peak_bytes"], run["resident_peak_bytes"]) / run["budget_bytes"]
        note = (
            f"{run['tokens']} tokens; budget {format_size(run['budget_bytes'])}, cgroup's peak "
            f"{format_size(run['cgroup_peak_bytes'])} of {format_size(run['cgroup_bytes'])}"
        )
        found.append(Claim(f"peak over {minutes:.0f} minutes, of the budget", peak, 1, at_most=True, note=note))
        slope = f"{run['slope_bytes_per_hour'] / 2**20:+.2f} MiB an hour"
        growth = max(0.0, run["grown_bytes"]) / _ZERO_GROWTH_BYTES
        found.append(Claim(f"growth in {0.8 * minutes:.0f} minutes, MiB", growth, 1, at_most=True, note=slope))
    return found


def _least(runs: Sequence[Run]) -> list[Claim]:
    return [
        Claim("least budget, GB, planned and then run", int(run["budget"]) / 1e9, 1.5, at_most=True,
              note=f"peak {run['peak_bytes'] / 1e9:.2f} GB, {'kept' if run['has_held'] else '**exceeded**'}")
        for run in runs
        if run["cell"] == "least"
    ]  # fmt: skip


def _beyond(runs: Sequence[Run]) -> list[Claim]:
    found = []
    for run in runs:
        if run["cell"] == "beyond":
            note = f"{run['tokens'] / run['seconds']:.2f} tokens/s, budget {format_size(run['budget_bytes'])}"
            peak = run["peak_bytes"] / run["budget_bytes"]
            found.append(
                Claim(f"{run['tokens']} tokens, no cgroup: peak, of the budget", peak, 1, at_most=True, note=note)
            )
    return found


_COLUMNS = (
    "Budget", "Engine", "Tokens/s", "Cold start", "Read a token", "Ideal LRU", "Disk, GB/s", "Of the bound",
    "Cgroup's peak", "Runs",
)  # fmt: skip


def table(runs: Sequence[Run]) -> list[str]:
    """Speeds by budget and engine, medians over runs: of the steady state, and of the first tokens after loading where
    those were told apart."""
    lines = [
        "| " + " | ".join(_COLUMNS) + " |",
        "|---" * len(_COLUMNS) + "|",
    ]
    good = [run for run in runs if "failed" not in run and "tokens_per_second" in run]
    step = in_memory_step(good)
    for cell in ("memory", "whole", "decode", "shares", "curve"):
        for (budget, engine), mine in _groups(good, cell).items():
            ideal = share = cold = "–"
            if all("cold_tokens_per_second" in run for run in mine) and mine[0].get("slots"):
                cold = format(_median(mine, lambda r: r["cold_tokens_per_second"]), ".3g")
            if all("ideal_bytes_per_token" in run for run in mine):
                ideal = format_size(round(_median(mine, lambda r: r["ideal_bytes_per_token"])))
                if step is not None:
                    share = format(1 / _median(mine, lambda r: over_bound(r, step, is_ideal=True)), ".0%")
            size = mine[0]["cgroup_bytes"]
            budget = f"{budget} ({format_size(size)})" if size and budget.endswith(("%", "all")) else budget
            cells = (
                "in memory" if budget == "none" else budget, engine,
                format(_median(mine, lambda r: r["tokens_per_second"]), ".3g"), cold,
                format_size(round(_median(mine, lambda r: r["bytes_per_token"]))), ideal,
                format(_median(mine, lambda r: r["disk_bytes_per_second"]) / 1e9, ".2f"), share,
                format_size(round(max(run["cgroup_peak_bytes"] for run in mine))), str(len(mine)),
            )  # fmt: skip
            lines.append("| " + " | ".join(cells) + " |")
    for run in runs:
        if "failed" in run:
            lines.append(f"| {run['budget']} | {run['engine']} | failed ({run['cell']}): {run['failed']} |" + " |" * 7)
    return lines


def latest(runs: Sequence[Run]) -> list[Run]:
    """Of runs with the same settings the last; a failure counts only where nothing succeeded."""
    kept: dict[tuple[object, ...], Run] = {}
    for run in runs:
        key = tuple(run[name] for name in ("cell", "model", "model_bytes", "engine", "budget", "round"))
        if key not in kept or "failed" not in run or "failed" in kept[key]:
            kept[key] = run
    return list(kept.values())


def markdown(runs: Sequence[Run]) -> str:
    """Claims and runs of every model."""
    parts: list[str] = []
    for model in dict.fromkeys(run["model"] for run in runs):
        mine = [run for run in runs if run["model"] == model]
        parts += [f"### {model}, {format_size(mine[0]['model_bytes'])}", ""]
        judged = claims(mine)
        if judged:
            parts += [
                "| Measure | Target | Measured | Met | |",
                "|---|---|---|---|---|",
                *(c.row() for c in judged),
                "",
            ]
        parts += [*table(mine), ""]
    return "\n".join(parts)


def picture(runs: Sequence[Run]) -> str:
    """Tokens a second against budget, with the limits and the peer."""
    good = [run for run in runs if "failed" not in run and run["cell"] in ("decode", "curve", "shares")]
    step = in_memory_step([run for run in runs if "failed" not in run])

    def points(engine: str, value: Callable[[Run], float | None]) -> list[tuple[float, float]]:
        by_size: dict[float, list[float]] = {}
        for run in good:
            y = value(run) if run["engine"] == engine else None
            if y:
                by_size.setdefault(run["cgroup_bytes"] / 2**30, []).append(y)
        return sorted((x, statistics.median(ys)) for x, ys in by_size.items())

    def disk_limit(run: Run) -> float | None:
        read = run.get("ideal_bytes_per_token")
        return run["disk_bytes_per_second"] / read if read else None

    def speed(run: Run) -> float:
        return float(run["tokens_per_second"])

    ours = points("kamado", speed)
    ceiling = 1 / step if step else None
    limits = points("kamado", disk_limit)
    if ceiling:  # far above it the disk is no limit, and would squeeze the picture
        limits = [(x, min(y, 1.25 * ceiling)) for x, y in limits]
    curves = [
        Curve("kamado", ours, "#c2410c", 3),
        Curve("disk limit (ideal LRU, probed disk)", limits, "#0369a1", 1.5, is_dashed=True),
        Curve("llama.cpp mmap, read-ahead 128 KiB", points("llama.cpp tuned", speed), "#4d7c0f", 2),
        Curve("llama.cpp mmap, as set", points("llama.cpp as set", speed), "#a1a1aa", 2),
    ]
    if ceiling and ours:
        line = [(ours[0][0], ceiling), (ours[-1][0], ceiling)]
        curves.insert(2, Curve("compute limit (in memory)", line, "#57534e", 1.5, is_dashed=True))
    title = f"{runs[0]['model']}, {format_size(runs[0]['model_bytes'])}: decode in a memory cgroup"
    return svg(title, "cgroup, GiB (page cache included)", "tokens a second", curves)


def write_report(runs: Sequence[Run], options: argparse.Namespace) -> int:
    """Prints the report and writes what `options` name (markdown, svg, docs). 1 when there is nothing to say."""
    runs = latest(runs)
    if not runs:
        return 1
    text = markdown(runs)
    print(text)
    if options.markdown:
        options.markdown.write_text(text + "\n", encoding="utf-8")
    drawn = [r for r in runs if not options.models or r["model"] == options.models[0].name]
    first = [r for r in drawn if r["model"] == drawn[0]["model"]]
    if options.svg:
        options.svg.write_text(picture(first), encoding="utf-8")
    if options.docs:
        _write_between(options.docs, text, options.svg)
    return 0


def _write_between(page: Path, text: str, image: Path | None) -> None:
    """Puts the report between the page's marks."""
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    shown = f"![Tokens a second against budget]({image.name})\n\n" if image else ""
    page.write_text(f"{before}{BEGIN}\n{shown}{text.strip()}\n{END}{after}", encoding="utf-8")
