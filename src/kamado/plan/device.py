"""The machine that a plan is for: this one, with what was measured of it, or one that a file describes.

A file gives each figure with where it is from, so that a forecast says what it rests on:

    name = "A workstation"
    memory_bytes = { value = 68_719_476_736, source = "its data sheet" }
    threads = { value = 16, source = "its data sheet" }
    memory_bytes_per_second = { value = 80e9, source = "measured with stream" }
    int8_ops_per_second = { value = 2e12, source = "kamado bench --limits there" }
    disk_bytes_per_second = { value = 7e9, source = "measured with fio, 1 MiB at random places, 4 at once" }

docs/plan-device.md has every name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from ..errors import UsageError
from ..files.toml_file import read_toml
from .machine import DeviceProfile, DiskCurve, Machine, load_device_profile, machine, margin_bytes

MAX_NAME_LENGTH: Final = 200
MAX_SOURCE_LENGTH: Final = 1000
MAX_CURVE_POINTS: Final = 64

# name -> (least, most, whether it is a whole number)
_BOUNDS: Final[Mapping[str, tuple[float, float, bool]]] = MappingProxyType(
    {
        "memory_bytes": (16 << 20, 1 << 60, True),
        "usable_bytes": (1 << 20, 1 << 60, True),
        "threads": (1, 4096, True),
        "memory_bytes_per_second": (1e6, 1e17, False),
        "int8_ops_per_second": (1e6, 1e21, False),
        "f32_ops_per_second": (1e6, 1e21, False),
        "disk_bytes_per_second": (1e3, 1e15, False),
    }
)
_REQUIRED: Final = ("memory_bytes", "threads", "memory_bytes_per_second")
_PEAKS: Final = ("int8_ops_per_second", "f32_ops_per_second")
_CURVE: Final = "disk_curve"
_CURVE_BOUNDS: Final = {"request_bytes": (512, 1 << 32, True), "bytes_per_second": (1e3, 1e15, False)}


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of a machine, and where it is from."""

    value: float | tuple[tuple[int, float], ...]
    source: str


@dataclass(frozen=True, slots=True)
class Device:
    """A machine to plan for."""

    name: str
    machine: Machine
    profile: DeviceProfile | None  # None: this machine, which nobody measured
    figures: Mapping[str, Figure] = field(default_factory=dict)
    file: Path | None = None  # None: this machine

    def to_dict(self) -> dict[str, object]:
        """Plain data, as `kamado plan --json` prints it under "device"."""
        figures = {name: {"value": figure.value, "source": figure.source} for name, figure in self.figures.items()}
        return {"name": self.name, "file": None if self.file is None else str(self.file), "figures": figures}


def device_here(num_threads: int | None) -> Device:
    """This machine, with the limits that `kamado bench --limits` measured for so many threads (None: the usual)."""
    here = machine()
    profile = load_device_profile(here.cpu_model, num_threads or here.cpus, here.tier)
    limited = "" if here.memory_limited_by == "machine" else f", limited by {here.memory_limited_by}"
    figures = {
        "memory_bytes": Figure(here.memory_bytes, f"this machine{limited}"),
        "usable_bytes": Figure(here.usable_bytes or here.memory_bytes, "what others leave now, less a margin"),
        "threads": Figure(here.cpus, "processors that this process may use"),
    }
    if profile is not None:
        measured = f"kamado bench --limits with {profile.num_threads} threads, {profile.measured_at or 'date unknown'}"
        rates = {
            "memory_bytes_per_second": profile.read_bytes_per_second,
            "int8_ops_per_second": profile.int8_ops_per_second,
            "f32_ops_per_second": profile.f32_ops_per_second,
            "disk_bytes_per_second": profile.disk_bytes_per_second,
        }
        figures |= {name: Figure(rate, measured) for name, rate in rates.items() if rate is not None}
    return Device(here.cpu_model, here, profile, figures)


def read_device(path: Path) -> Device:
    """The machine that the file at `path` describes. Raises UsageError that names the file and the key when one is
    missing, unknown, of the wrong kind, out of bounds, or without a source."""
    document = read_toml(path)
    try:
        return _device(document, path)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def _device(document: dict[str, Any], path: Path) -> Device:
    known = ("name", *_BOUNDS, _CURVE)
    for key in document:
        UsageError.when(key not in known, f"there is no key {_short(key)}; there are {', '.join(known)}")
    name = _text(document.get("name"), "name", MAX_NAME_LENGTH)
    figures: dict[str, Figure] = {}
    for key, bounds in _BOUNDS.items():
        if key in document:
            value, source = _stated(document[key], key, "value")
            figures[key] = Figure(_number(value, f"{key}.value", bounds), source)
    missing = [key for key in _REQUIRED if key not in figures]
    UsageError.when(missing, f'{", ".join(missing)} missing: a figure is {{ value = …, source = "…" }}')
    UsageError.when(not figures.keys() & set(_PEAKS), f"{' or '.join(_PEAKS)} is missing")
    curve = _curve(document.get(_CURVE), figures)
    values = {key: figure.value for key, figure in figures.items() if isinstance(figure.value, (int, float))}
    memory_bytes, threads = int(values["memory_bytes"]), int(values["threads"])
    usable_bytes = int(values.get("usable_bytes", memory_bytes - margin_bytes(memory_bytes)))
    UsageError.when(usable_bytes > memory_bytes, "usable_bytes is more than memory_bytes")
    described = Machine(
        cpus=threads,
        cpus_online=threads,
        memory_bytes=memory_bytes,
        memory_total_bytes=memory_bytes,
        memory_limited_by=name,
        cpu_model=name,
        cpu_features=(),
        usable_bytes=usable_bytes,
    )
    profile = DeviceProfile(
        cpu_model=name,
        num_threads=threads,
        tier="",
        read_bytes_per_second=values["memory_bytes_per_second"],
        int8_ops_per_second=next(values[key] for key in _PEAKS if key in values),
        f32_ops_per_second=values.get("f32_ops_per_second"),
        disk_bytes_per_second=values.get("disk_bytes_per_second"),
        disk_curve=curve,
    )
    return Device(name, described, profile, MappingProxyType(figures), path)


def _curve(stated: object, figures: dict[str, Figure]) -> DiskCurve:
    """The points of `disk_curve`, which is added to the figures; none when it is not stated."""
    if stated is None:
        return ()
    UsageError.when("disk_bytes_per_second" in figures, f"{_CURVE} and disk_bytes_per_second: give one of them")
    points, source = _stated(stated, _CURVE, "points")
    if not isinstance(points, list) or not 1 <= len(points) <= MAX_CURVE_POINTS:
        raise UsageError(f"{_CURVE}.points must be a list of 1 to {MAX_CURVE_POINTS}")
    curve: list[tuple[int, float]] = []
    for i, point in enumerate(points):
        place = f"{_CURVE}.points[{i}]"
        if not isinstance(point, dict) or point.keys() != _CURVE_BOUNDS.keys():
            raise UsageError(f"{place} must be {{ request_bytes = …, bytes_per_second = … }}")
        size, rate = (_number(point[key], f"{place}.{key}", bounds) for key, bounds in _CURVE_BOUNDS.items())
        UsageError.when(curve and size <= curve[-1][0], f"{place}.request_bytes is not above the one before")
        curve.append((int(size), rate))
    figures[_CURVE] = Figure(tuple(curve), source)
    return tuple(curve)


def _stated(stated: object, key: str, what: str) -> tuple[object, str]:
    """(what is stated, its source) of one key."""
    if not isinstance(stated, dict):
        raise UsageError(f'{key} must be {{ {what} = …, source = "…" }}, not {_kind(stated)}')
    for name in stated:
        UsageError.when(name not in (what, "source"), f"{key} has {what} and source, no {_short(name)}")
    UsageError.when(what not in stated, f"{key}.{what} is missing")
    return stated[what], _text(stated.get("source"), f"{key}.source", MAX_SOURCE_LENGTH)


def _text(stated: object, key: str, most: int) -> str:
    """A text with something in it, on one line."""
    UsageError.when(stated is None, f"{key} is missing")
    if not isinstance(stated, str):
        raise UsageError(f"{key} must be a text, not {_kind(stated)}")
    text = " ".join(stated.split())
    UsageError.when(not 1 <= len(text) <= most, f"{key} must have 1 to {most} characters")
    return text


def _number(stated: object, key: str, bounds: tuple[float, float, bool]) -> float:
    least, most, is_whole = bounds
    if isinstance(stated, bool) or not isinstance(stated, (int, float)):
        raise UsageError(f"{key} must be a number, not {_kind(stated)}")
    is_in = math.isfinite(stated) if isinstance(stated, float) else True
    UsageError.when(not is_in or not least <= stated <= most, f"{key} is out of range: {least:,.15g} to {most:,.15g}")
    UsageError.when(is_whole and stated != int(stated), f"{key} must be a whole number")
    return int(stated) if is_whole else float(stated)


def _kind(stated: object) -> str:
    """What TOML calls it."""
    kinds = {bool: "a boolean", int: "a number", float: "a number", str: "a text", list: "a list", dict: "a table"}
    return kinds.get(type(stated), "a date")


def _short(key: str) -> str:
    return repr(key if len(key) <= 60 else key[:57] + "…")
