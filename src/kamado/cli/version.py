"""`kamado --version`: which version this is, what it was built from and with, and which kernels it may use here."""

from __future__ import annotations

import json
import platform
from importlib import metadata
from pathlib import Path

_BUILD = Path(__file__).resolve().parents[1] / "build.json"  # written by CMakeLists.txt: none without a build
_MAX_BUILD_BYTES = 4096


def version_line() -> str:
    """One line: version, build (commit, compiler, wheel), tiers (the one in use first named), Python."""
    from ..plan.machine import kernel_tiers, machine

    try:
        version = metadata.version("kamado")
    except metadata.PackageNotFoundError:
        version = "not installed"
    tiers = kernel_tiers()
    tier = f"tier {machine().tier} of {', '.join(tiers)}" if tiers else "tier none: the native module is not built"
    return f"kamado {version} (build {_build()}; {tier}; Python {platform.python_version()})"


def _build() -> str:
    known = _read(_BUILD)
    parts = [known["commit"] or "of no commit", *filter(None, (known["compiler"], _wheel_tag()))] if known else []
    return ", ".join(parts) or "from a source tree"


def _read(path: Path) -> dict[str, str]:
    """commit and compiler; empty where the file is missing or is not ours."""
    try:
        with open(path, "rb") as file:
            said = json.loads(file.read(_MAX_BUILD_BYTES))
    except (OSError, ValueError):
        return {}
    if not isinstance(said, dict):
        return {}
    return {name: " ".join(str(said.get(name, "")).split())[:100] for name in ("commit", "compiler")}


def _wheel_tag() -> str:
    """The platform that the wheel was made for; empty for a source tree."""
    try:
        text = metadata.distribution("kamado").read_text("WHEEL") or ""
    except metadata.PackageNotFoundError:
        return ""
    return next((line.removeprefix("Tag: ").strip() for line in text.splitlines() if line.startswith("Tag: ")), "")
