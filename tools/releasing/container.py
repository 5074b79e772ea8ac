"""Reads packaging/Containerfile, and does its steps in Debian roots where no container engine is.

Only the instructions that the file uses are known, and an unknown one is an error. What an engine does beside the
steps, such as layers, networks and limits, is not tried by this.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .project import ReleaseError, run
from .roots import copy_root, entered, inside

_KNOWN = {"RUN", "COPY", "ENV", "USER", "WORKDIR", "VOLUME", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD"}


@dataclass(frozen=True, slots=True)
class Stage:
    """One FROM and what follows."""

    base: str
    name: str
    steps: tuple[tuple[str, str], ...]  # (instruction, what stands behind it)


@dataclass(slots=True)
class Image:
    """What the steps of a stage have made."""

    root: Path
    env: dict[str, str] = field(default_factory=dict)
    user: str = ""
    folder: str = "/"
    volumes: list[str] = field(default_factory=list)
    ports: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)
    entry: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)

    def started(self, *command: str) -> list[str]:
        """The command that starts it, as its user in its folder; `command` in the place of CMD."""
        words = [*self.entry, *(command or self.command)]
        return entered(self.root, self._in_folder(words), user=self.user, env=self.env)

    def ask_health(self) -> str:
        """Runs the health check. Raises ReleaseError when it fails."""
        return inside(self.root, *self._in_folder(self.health), user=self.user, env=self.env)

    def _in_folder(self, words: list[str]) -> list[str]:
        return ["sh", "-c", f"cd {shlex.quote(self.folder)} && exec {shlex.join(words)}"]


def read_stages(text: str) -> tuple[Stage, ...]:
    """The stages of a Containerfile. Raises ReleaseError for what it does not know."""
    defaults: dict[str, str] = {}
    stages: list[tuple[str, str, list[tuple[str, str]]]] = []
    for line in _lines(text):
        word, _, rest = line.partition(" ")
        rest = rest.strip()
        if word == "ARG" and not stages and "=" in rest:
            name, _, defaults[name] = rest.partition("=")
        elif word == "FROM":
            match = re.fullmatch(r"(\S+)(?: AS (\S+))?", re.sub(r"\$\{(\w+)\}", lambda m: defaults[m[1]], rest))
            if match is None:
                raise ReleaseError(f"Containerfile: cannot read: {line}")
            stages.append((match[1], match[2] or "", []))
        elif word in _KNOWN and stages:
            stages[-1][2].append((word, rest))
        else:
            raise ReleaseError(f"Containerfile: cannot read: {line}")
    return tuple(Stage(base, name, tuple(steps)) for base, name, steps in stages)


def _lines(text: str) -> Iterator[str]:
    for line in re.sub(r"\\\n", " ", text).splitlines():
        if line.strip() and not line.startswith("#"):
            yield " ".join(line.split())


def build(stages: tuple[Stage, ...], context: Path, work: Path, base: Callable[[str], Path]) -> Image:
    """Does the steps of all stages in copies of what `base` gives for their names; returns the last one's image."""
    images: dict[str, Image] = {}
    image = None
    for number, stage in enumerate(stages):
        image = Image(copy_root(base(stage.base), work / f"stage-{number}"))
        for word, rest in stage.steps:
            _do(image, word, rest, context, images)
        images[stage.name or str(number)] = image
    if image is None:
        raise ReleaseError("Containerfile: has no FROM")
    return image


def _do(image: Image, word: str, rest: str, context: Path, images: dict[str, Image]) -> None:
    if word == "RUN":
        print(f"[container] {rest}", flush=True)
        run(*entered(image.root, ["sh", "-c", rest], user=image.user, env=image.env))
    elif word == "COPY":
        _copy(image, rest, context, images)
    elif word == "ENV":
        name, _, value = rest.partition("=")
        image.env[name] = value
    elif word == "USER":
        image.user = rest
    elif word == "WORKDIR":
        image.folder = rest
    elif word == "VOLUME":
        image.volumes.append(rest)
    elif word == "EXPOSE":
        image.ports.append(rest)
    elif word == "HEALTHCHECK":
        image.health = json.loads(rest.partition("CMD ")[2])
    elif word == "ENTRYPOINT":
        image.entry = json.loads(rest)
    else:
        image.command = json.loads(rest)


def _copy(image: Image, rest: str, context: Path, images: dict[str, Image]) -> None:
    *words, target = rest.split()
    source = images[words.pop(0).removeprefix("--from=")].root if words[0].startswith("--from=") else context
    to = image.root / target.lstrip("/")
    for word in words:
        found = sorted(source.glob(word.lstrip("/")))
        if not found:
            raise ReleaseError(f"Containerfile: {word} is not in {source}")
        for path in found:
            if path.is_dir():
                shutil.copytree(path, to, symlinks=True, dirs_exist_ok=True)
            else:
                place = to / path.name if target.endswith("/") else to
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, place)
