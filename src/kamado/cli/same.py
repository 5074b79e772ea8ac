"""Whether a server would give what this command was asked for: every option about loading that the user gave, held
against how the server loads, or has loaded, the model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files.atomic import user_folder
from ..local.documents import ModelState, Status
from ..plan.budget import format_size, given_size
from ..plan.kv_presets import AUTO, parse_kv
from .options import DEFAULT_PREFIX_CACHE

_ANY_LAYERS = 1 << 16


def differences(values: Mapping[str, Any], status: Status, state: ModelState | None) -> list[str]:
    """What of `values` (the options that the user gave) is otherwise there, as "--context 4096 (there 512)".

    `state`: of the model, if it is in the server's memory. What was not given may be as the server has it.
    """
    told = status.settings
    asked: Mapping[str, str] = {} if state is None else state.asked
    found: list[tuple[str, object, object]] = []
    if (context := values.get("context")) is not None:
        there = told.context if state is None else state.context
        found.append((f"--context {context}", context, there))
    if (threads := values.get("threads")) is not None:
        found.append((f"--threads {threads}", threads, _threads(status, state)))
    if (memory := values.get("memory")) is not None:
        there = _size(asked.get("memory_bytes"), told.memory_bytes)
        shown = "what the machine allows" if there is None else format_size(there)
        found.append((f"--memory {memory}", given_size(memory), there if there == given_size(memory) else shown))
    if (kv := values.get("kv")) is not None:
        known = {_kv(asked.get("kv", told.kv)), *(() if state is None else (_kv(state.kv),))}
        found.append((f"--kv {kv}", True, _kv(kv) in known or asked.get("kv", told.kv)))
    prefixes = values.get("prefix_cache")
    if prefixes not in (None, DEFAULT_PREFIX_CACHE):
        wanted = 0 if prefixes == "off" else given_size(prefixes)
        there = told.prefix_cache_bytes
        found.append((f"--prefix-cache {prefixes}", wanted, there if wanted == there else format_size(there)))
    allowed = tuple(values.get("allow_unknown") or ())
    there_allowed = asked["allow_unknown"].split(",") if "allow_unknown" in asked else told.allow_unknown
    for key in allowed:
        found.append((f"--allow-unknown {key}", True, key in there_allowed or "not"))
    for key in () if state is None else state.overridden:
        found.append((f"no --allow-unknown {key}", True, key in allowed or "left out"))
    if values.get("trace") is not None:
        found.append(("--trace", True, "not possible"))
    if status.state_folder != str(user_folder("data", "sessions")):
        found.append(("its folders", True, status.state_folder))
    return [f"{what} (there {there})" for what, here, there in found if here != there]


def name_there(path: Path, called: str, status: Status) -> str | None:
    """The name under which the server may know the model that lies at `path`; None: under none.

    `called`: what commands take for it, which is a path for a file outside the store.
    """
    real = os.path.realpath(path)
    known = [state.name for state in status.models if state.path == real]
    known += [name for name, file in status.files.items() if file == real]
    if called in known:
        return called
    if os.sep in called or called == str(path):
        return known[0] if known else None
    return called


def _threads(status: Status, state: ModelState | None) -> int:
    if state is not None:
        return state.threads
    if status.settings.threads is not None:
        return status.settings.threads
    from ..plan.machine import machine

    return machine().cpus


def _size(asked: str | None, told: int | None) -> int | None:
    return int(asked) if asked is not None and asked.isdigit() else told


def _kv(text: str) -> str:
    """A preset's whole name, so that "k=4, v=3" is "k=4,v=3"."""
    return text if text in (AUTO, "") else parse_kv(text, _ANY_LAYERS).name
