"""What both comparisons record: the machine, versions, file hashes; and how a program is called."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def call(command: list[str], *, timeout: float = 3600, env: dict[str, str] | None = None) -> str:
    """stdout of a command; exits with its last lines of stderr when it fails."""
    result = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=env, check=False)
    if result.returncode != 0:
        tail = "\n".join((result.stderr or result.stdout).splitlines()[-8:])
        sys.exit(f"{command[0]} failed with exit code {result.returncode}:\n{' '.join(command)}\n{tail}")
    return result.stdout


def called_object(command: list[str], env: dict[str, str]) -> dict[str, Any]:
    """The JSON object on the last line that a command prints."""
    value = json.loads(call(command, env=env).splitlines()[-1])
    assert isinstance(value, dict)
    return value


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tool(folder: Path, name: str) -> Path:
    """A program of the peer; exits when it is not there."""
    path = folder / name
    if not path.is_file():
        sys.exit(f"{path} is missing: build llama.cpp's {name} there")
    return path


def idle_share(seconds: float = 0.5) -> float:
    """How much of the processors nobody used for a moment; 1.0 where /proc/stat does not tell."""

    def read() -> tuple[int, int]:
        fields = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
        return fields[3] + fields[4], sum(fields[:8])

    try:
        idle, total = read()
        time.sleep(seconds)
        idle_after, total_after = read()
    except (OSError, ValueError, IndexError):
        return 1.0
    return (idle_after - idle) / max(1, total_after - total)


def circumstances(kamado: str, peers: list[Path], files: list[Path]) -> dict[str, Any]:
    """Everything that a figure needs beside it to mean something."""
    doctor = subprocess.run([kamado, "doctor", "--json"], capture_output=True, text=True, check=False)
    git = shutil.which("git")
    here = Path(__file__).resolve().parent
    commit = (
        subprocess.run([git, "-C", here, "describe", "--always", "--dirty"], capture_output=True, text=True)
        if git
        else None
    )
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": [Path(word).name if "/" in word else word for word in sys.argv],
        "machine": json.loads(doctor.stdout)["machine"] if doctor.stdout else platform.uname()._asdict(),
        "kamado": call([kamado, "--version"]).strip(),
        "commit": commit.stdout.strip() if commit else None,
        "peers": {path.name: sha256(path) for path in peers},
        "files": {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in files},
    }


def write_json(document: dict[str, Any], path: Path | None) -> None:
    if path is not None:
        path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
