"""`kamado doctor`: is this machine, this installation and this store in order?"""

from __future__ import annotations

import dataclasses
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from ..errors import KamadoError
from ..plan.budget import format_size
from . import loading
from .terminal import echo, echo_json, one_line, styled

if TYPE_CHECKING:
    from ..library.store import StoredModel
    from ..plan.machine import Machine

_LOW_DISK_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    name: str
    state: Literal["ok", "warning", "error"]
    text: str


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """Look over the machine, the installation and the model store. Exit code 1 when something is broken."""
    from ..plan.machine import machine

    here = machine()
    findings = [*_machine(here), *_limits(here), *_store(), *_settings(), *_server()]
    broken = any(finding.state == "error" for finding in findings)
    if as_json:
        echo_json(
            {
                "ok": not broken,
                "machine": dataclasses.asdict(here),
                "findings": [dataclasses.asdict(f) for f in findings],
            }
        )
    else:
        width = max(len(finding.name) for finding in findings)
        colours: dict[str, dict[str, Any]] = {
            "ok": {"fg": "green"},
            "warning": {"fg": "yellow"},
            "error": {"fg": "red"},
        }
        for finding in findings:
            state = styled(finding.state.ljust(7), **colours[finding.state])
            echo(f"{state}  {finding.name.ljust(width)}  {one_line(finding.text)}")
    if broken:
        raise click.exceptions.Exit(1)


def _machine(here: Machine) -> list[Finding]:
    memory = f"{format_size(here.memory_bytes)} usable"
    if here.memory_limited_by != "machine":
        memory += f" of {format_size(here.memory_total_bytes)}, limited by {here.memory_limited_by}"
    findings = [
        Finding("processor", "ok", f"{here.cpu_model}, {here.cpus} of {here.cpus_online} processors usable"),
        Finding("memory", "ok", memory),
    ]
    if here.tier is None:
        return [*findings, Finding("native", "error", "the native module is missing: install Kamado again")]
    lowered = os.environ.get("KAMADO_TIER")
    if here.tier == "scalar" and lowered != "scalar":
        findings.append(Finding("native", "warning", "no AVX2: the scalar reference kernels are correct but very slow"))
    else:
        text = f"tier {here.tier}" + (f", lowered by KAMADO_TIER={lowered}" if lowered else "")
        findings.append(Finding("native", "ok", text))
    return findings


def _limits(here: Machine) -> list[Finding]:
    from ..plan.machine import load_device_profile, why_no_profile

    profile = load_device_profile(here.cpu_model, here.cpus, here.tier)
    if profile is None:
        why = why_no_profile(here, here.cpus)
        return [Finding("limits", "warning", f"{why} (forecasts of speed need them)")]
    reads, int8 = profile.read_bytes_per_second / 1e9, profile.int8_ops_per_second / 1e9
    text = f"reads {reads:.1f} GB/s, int8 {int8:.0f} GOPS with {profile.num_threads} threads ({profile.measured_at})"
    return [Finding("limits", "ok", text)]


def _store() -> list[Finding]:
    try:
        store = loading.open_store()
        models = store.list()
    except (KamadoError, OSError) as error:
        return [Finding("store", "error", str(error))]
    findings = [_disk(Path(store.root), len(models))]
    findings += [_model(model) for model in models]
    return findings


def _settings() -> list[Finding]:
    """What the user set for all calls, if there is anything."""
    from .defaults import check_options
    from .user_config import config_path, read_config

    path = config_path()
    if not path.exists():
        return []
    try:
        check_options(read_config(path))
    except (KamadoError, OSError) as error:
        return [Finding("settings", "error", str(error))]
    return [Finding("settings", "ok", str(path))]


def _server() -> list[Finding]:
    """The settings of `kamado serve`, if there are any."""
    try:
        from ..serve.config import config_file, exposed_keys, load_config
    except ModuleNotFoundError:  # the extra is not installed
        return []
    path = config_file()
    if not path.is_file():
        return []
    try:
        config, _ = load_config(environment={}, flags={})
    except KamadoError as error:
        return [Finding("server", "error", str(error))]
    warning = exposed_keys(path, config)
    return [Finding("server", "warning" if warning else "ok", warning or f"settings in {path}")]


def _disk(root: Path, num_models: int) -> Finding:
    existing = next(path for path in (root, *root.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    text = f"{num_models} models in {root}, {format_size(free)} free"
    if not os.access(existing, os.W_OK):
        return Finding("store", "error", f"{text}, but it cannot be written to")
    return Finding("store", "warning" if free < _LOW_DISK_BYTES else "ok", text)


def _model(model: StoredModel) -> Finding:
    """Whether the header still reads; weights are checked when they are pulled."""
    from ..files import open_checkpoint

    try:
        checkpoint = open_checkpoint(model.path)
    except (KamadoError, OSError) as error:
        return Finding(model.name, "error", f"{error}; remove it and pull it again")
    return Finding(model.name, "ok", f"{checkpoint.architecture}, {format_size(checkpoint.weight_bytes)}")
