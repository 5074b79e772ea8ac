"""What a release is made from: version, commit, date, locks; and programs that are run for it."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "build" / "release"
# The oldest C library that the wheels run with, and the processors they are for.
GLIBC = (2, 28)
PROCESSORS = ("x86_64", "aarch64")
_PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)(?:\s*;\s*([^\\]*?))?\s*\\?$")
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


class ReleaseError(Exception):
    """The release cannot be made; the message says why and what to do."""


def finish(tag: str, step: Callable[[], None]) -> int:
    """Runs a step of a program; its exit status. What went wrong is printed after the program's tag."""
    try:
        step()
    except ReleaseError as error:
        print(f"[{tag}] {error}", file=sys.stderr)
        return 1
    return 0


@dataclass(frozen=True, slots=True)
class Pin:
    """One package of a lock."""

    name: str
    version: str
    marker: str  # "" when it is for every machine
    sha256: tuple[str, ...]  # of its files, one for each machine
    wanted_by: tuple[str, ...]  # names of packages; "kamado" is this one

    def is_for(self, environment: Mapping[str, str]) -> bool:
        """Whether the marker holds in `environment` (as PEP 508 names it)."""
        from packaging.markers import Marker

        return not self.marker or Marker(self.marker).evaluate(dict(environment))


def read_lock(name: str, root: Path = ROOT) -> tuple[Pin, ...]:
    """The packages of requirements/NAME.txt. Raises ReleaseError for a line that is none."""
    pins = []
    for block in re.split(r"^(?=[A-Za-z0-9])", (root / "requirements" / f"{name}.txt").read_text(), flags=re.MULTILINE):
        head = block.splitlines()[0] if block else ""
        if not head or head.startswith("#"):
            continue
        match = _PIN.match(head)
        hashes = tuple(_HASH.findall(block))
        if match is None or not hashes:
            raise ReleaseError(f"requirements/{name}.txt: {head!r} pins no version and hash; write the lock anew")
        pins.append(Pin(match[1], match[2], (match[3] or "").strip(), hashes, tuple(_wanted_by(block))))
    return tuple(pins)


def _wanted_by(block: str) -> Iterator[str]:
    """Who wants a package, from the comment that uv writes behind it."""
    text = block.partition("# via")[2]
    for line in text.splitlines():
        name = line.strip(" #")
        if name.startswith("-r") or "(pyproject.toml)" in name:
            yield "kamado"
        elif name and not name.startswith("-c"):
            yield name


def environment(python: str, processor: str) -> dict[str, str]:
    """PEP 508's names for CPython `python` ("3.11") on Linux."""
    return {
        "implementation_name": "cpython",
        "os_name": "posix",
        "platform_machine": processor,
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": f"{python}.0",
        "python_version": python,
        "sys_platform": "linux",
    }


def version(root: Path = ROOT) -> str:
    """The version that pyproject.toml names."""
    with open(root / "pyproject.toml", "rb") as file:
        return str(tomllib.load(file)["project"]["version"])


def check_tag(tag: str, root: Path = ROOT) -> None:
    """Raises ReleaseError unless tag, pyproject.toml and the newest heading of CHANGELOG.md name one version."""
    number = version(root)
    if tag != f"v{number}":
        raise ReleaseError(f"the tag is {tag}, but pyproject.toml has version {number}: tag v{number}, or change it")
    headings = re.findall(r"^## (.+)$", (root / "CHANGELOG.md").read_text(), re.MULTILINE)
    newest = next((text for text in headings if text != "Unreleased"), "nothing")
    if "(no tag)" in newest or not re.fullmatch(rf"\[?{re.escape(number)}\]?( .*)?", newest):
        raise ReleaseError(
            f"the newest version in CHANGELOG.md is {newest}: give what is new the heading '## {number}'"
        )
    if headings and headings[0] == "Unreleased" and _has_text(root, "Unreleased"):
        raise ReleaseError(f"CHANGELOG.md has lines under Unreleased: move them under '## {number}'")


def _has_text(root: Path, heading: str) -> bool:
    text = (root / "CHANGELOG.md").read_text().partition(f"## {heading}\n")[2]
    return bool(re.split(r"^## ", text, flags=re.MULTILINE)[0].strip())


def git(*arguments: str) -> str:
    """What git says in the project's folder; "" where there is no git or no repository."""
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def commit() -> str:
    """The commit that is built, with "-dirty" when files differ from it; "" outside a repository.

    KAMADO_BUILD_COMMIT names it where git cannot, such as in a container.
    """
    return os.environ.get("KAMADO_BUILD_COMMIT") or git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def epoch() -> int:
    """The commit's time: what every date inside the artefacts is, so that the same commit gives the same bytes."""
    return int(os.environ.get("SOURCE_DATE_EPOCH") or git("log", "-1", "--format=%ct") or 315532800)


def sha256(path: Path) -> str:
    """Of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def run(*words: str | Path, cwd: Path = ROOT, env: Mapping[str, str] | None = None) -> None:
    """Runs a program with its output shown. Raises ReleaseError when it fails or is missing."""
    command = [str(word) for word in words]
    try:
        code = subprocess.run(command, cwd=cwd, env={**os.environ, **(env or {})}, check=False).returncode
    except FileNotFoundError:
        raise ReleaseError(f"{command[0]} is missing: docs/install.md says what a release is built with") from None
    if code != 0:
        raise ReleaseError(f"exit code {code} from: {' '.join(command)}")
