"""Models that other programs keep on this machine, used where they lie: Ollama's, LM Studio's, the hub's own cache.

Nothing there is ever written, moved or deleted. What their folders say is taken as data of strangers: sizes and counts
are bounded, digests must be digests, and a link is followed only to a regular file inside one of these folders.

    ollama:NAME[:TAG]                    OLLAMA_MODELS, ~/.ollama/models, the system service's folder
    lmstudio:PUBLISHER/REPO/FILE.gguf    ~/.lmstudio/models, ~/.cache/lm-studio/models
    hfcache:OWNER/REPO[/FILE.gguf]       HF_HUB_CACHE, HF_HOME/hub, ~/.cache/huggingface/hub

`KAMADO_ELSEWHERE=off` looks at none of them.
"""

from __future__ import annotations

import builtins
import os
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from ..errors import ModelNotFoundError
from .catalog import HubSource
from .elsewhere_files import hub_cache_models, lmstudio_models
from .elsewhere_ollama import ollama_models
from .folders import Found, Looker
from .names import SHARD

SWITCH = "KAMADO_ELSEWHERE"
_OFF = frozenset({"off", "0", "no", "false"})


@dataclass(frozen=True, slots=True)
class Places:
    """The folders that are looked at."""

    ollama: tuple[Path, ...] = ()
    lmstudio: tuple[Path, ...] = ()
    hub: tuple[Path, ...] = ()

    @classmethod
    def of(cls, environ: Mapping[str, str], home: Path) -> Places:
        """Where the programs keep their models by default and by the variables that they read."""
        if environ.get(SWITCH, "").lower() in _OFF:
            return cls()
        own = environ.get("OLLAMA_MODELS")
        ollama = (Path(own),) if own else (home / ".ollama/models", Path("/usr/share/ollama/.ollama/models"))
        cache = Path(environ.get("XDG_CACHE_HOME") or home / ".cache")
        hub = environ.get("HF_HUB_CACHE") or Path(environ.get("HF_HOME") or cache / "huggingface") / "hub"
        lmstudio = (home / ".lmstudio/models", home / ".cache/lm-studio/models")
        known = [[one for one in places if one.is_absolute()] for places in (ollama, lmstudio, (Path(hub),))]
        return cls(*map(tuple, known))  # a user without a home has but what the variables name

    def all(self) -> tuple[Path, ...]:
        """Every folder, in order."""
        return (*self.ollama, *self.lmstudio, *self.hub)


class Elsewhere:
    """The models of all places. Reads the folders anew at each call."""

    def __init__(self, places: Places) -> None:
        self._places = places

    def list(self) -> builtins.list[Found]:
        """All of them, program by program, in name order; what is damaged or unreadable is passed over."""
        look = Looker(self._places.all())
        found: dict[str, Found] = {}
        for scan, folders in (
            (ollama_models, self._places.ollama),
            (lmstudio_models, self._places.lmstudio),
            (hub_cache_models, self._places.hub),
        ):
            models = sorted((one for folder in folders for one in scan(folder, look)), key=lambda one: one.name)
            for model in models:
                found.setdefault(model.name, model)
        return list(found.values())

    def at(self, path: Path) -> Found | None:
        """The model that lies at `path`."""
        if not any(folder in path.parents for folder in self._places.all()):
            return None
        return next((found for found in self.list() if found.path == path), None)

    def get(self, name: str) -> Found:
        """The model of this name, prefix included. Raises ModelNotFoundError with near names."""
        models = self.list()
        prefix, _, bare = name.partition(":")
        wanted = {name, f"{name}:latest"} if prefix == "ollama" else {name, f"{name}.gguf"}
        hits = [one for one in models if one.name in wanted]
        hits = hits or [one for one in models if one.name.startswith(prefix + ":") and _is_called(one, bare)]
        if len(hits) == 1:
            return hits[0]
        names = [one.name for one in hits or models if one.name.startswith(prefix + ":")]
        if hits:
            raise ModelNotFoundError(f"{name[:200]!r} may be any of {', '.join(names[:10])}: give the whole name")
        near = get_close_matches(name, names, n=3, cutoff=0.5) or names[:5]
        there = f"it has {', '.join(near)}" if near else "it has none that could be read"
        raise ModelNotFoundError(f"there is no model {name[:200]!r} on this machine; {there}")

    def meant_by(self, text: str, source: HubSource | None = None) -> builtins.list[Found]:
        """Models that a name without a prefix may mean; `source`: of the catalog entry of that name."""
        models = self.list()
        if text.startswith("hf:"):
            repo, _, file = text[3:].partition(":")
            source = HubSource(repo, file if file.endswith(".gguf") else None, None if file.endswith(".gguf") else file)
        else:
            exact = [one for one in models if one.bare in (text, f"{text}:latest")]
            if exact:
                return exact
        if source is not None:
            return [one for one in models if _is_from(one, source)]
        return [one for one in models if _is_called(one, text)]


def elsewhere() -> Elsewhere:
    """Of this user's places."""
    return Elsewhere(Places.of(os.environ, Path(os.path.expanduser("~"))))


def _is_called(one: Found, text: str) -> bool:
    """By a repository's name, a file's name or its stem, in any letters."""
    text = text.casefold()
    called = {one.bare, one.bare.removesuffix(".gguf"), one.repo, one.repo.rpartition("/")[2]}
    last = one.file.rpartition("/")[2].removesuffix(".gguf")
    match = SHARD.fullmatch(last)
    return text in {name.casefold() for name in (*called, last, match["stem"] if match else "") if name}


def _is_from(one: Found, source: HubSource) -> bool:
    if one.repo.casefold() != source.repo.casefold():
        return False
    last = one.file.rpartition("/")[2]
    if source.file:
        return last == source.file.rpartition("/")[2]
    if source.quant and source.quant.casefold() == "safetensors":
        return not last
    return not source.quant or source.quant.casefold() in last.casefold()
