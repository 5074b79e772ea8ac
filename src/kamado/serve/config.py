"""What a server may be told: a file, then the environment, then flags; each may say only what it wants changed.

The file is `$XDG_CONFIG_HOME/kamado/serve.toml` or the one that `--config` names:

    memory = "6GiB"
    keep_alive = "10m"
    [[api_keys]]
    name = "editor"
    sha256 = "…"
    scopes = ["infer", "read"]

The environment has the same names in capitals after `KAMADO_SERVE_`; lists are separated by commas. Unknown names and
values out of range are refused with the place they came from.
"""

from __future__ import annotations

import ipaddress
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from ..errors import UsageError
from ..files.toml_file import read_toml
from ..plan.budget import given_size

ENV_PREFIX = "KAMADO_SERVE_"
_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)(?:s)?)?(?:(\d+)ms)?")

_BODIES_BYTES = 128 << 20
_LEAST_BODIES_BYTES = 8 << 20

Seconds = Annotated[float, Meta(ge=0)]


class KeyConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An API key of the file: its hash, or the key itself for those who keep the file to themselves."""

    name: str = "key"
    key: str | None = None
    sha256: str | None = None
    scopes: tuple[str, ...] = ("infer", "read")


class ServeConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything a server may be told. Durations are seconds here, and may be written "5m" or "1h30m" outside."""

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8417  # 0: one that is free
    models: list[str] = []  # loaded at the start, kept, and the only ones that are served; none: all are
    serve_all: bool = False  # beside `models` the rest of the store is served, too
    aliases: dict[str, str] = {}  # another name -> a model's name
    memory: str | int | None = None  # of all models together
    context: Annotated[int, Meta(ge=2)] | None = None
    threads: Annotated[int, Meta(ge=1, le=1024)] | None = None
    kv: str = "auto"
    prefix_cache: str | int = "2GiB"  # disk for what prompts and conversations computed; "off": nothing is kept
    allow_unknown: list[str] = []  # settings of model files that are left out, though nobody knows them here
    keep_alive: Seconds = 300.0  # a model without work is unloaded after it
    max_requests: Annotated[int, Meta(ge=1, le=100_000)] = 256  # that run or wait; more get 429
    max_requests_per_key: Annotated[int, Meta(ge=1, le=100_000)] | None = None
    deadline: Seconds = 0.0  # 0: none, but the request's own
    load_wait: Seconds = 120.0  # for memory that running requests of other models hold
    drain: Seconds = 30.0  # after SIGTERM, for streams to end by themselves
    write_timeout: Seconds = 60.0  # a client that takes nothing for so long is gone
    body_timeout: Seconds = 60.0
    header_timeout: Seconds = 10.0  # from connecting, or the first byte of a further request, to its whole header
    idle_timeout: Seconds = 60.0  # of a connection between two requests
    keep_alive_comment: Seconds = 10.0  # between signs of life in a silent stream
    api_keys: list[KeyConfig] = []
    hosts: list[str] = []  # further names in Host headers
    origins: list[str] = []  # web pages that may call, "https://chat.example"
    max_connections: Annotated[int, Meta(ge=16, le=100_000)] = 512
    max_silent_connections: Annotated[int, Meta(ge=16, le=100_000)] = 128  # without a whole request header
    max_connections_per_address: Annotated[int, Meta(ge=1)] | None = None  # a proxy is one address
    max_body_bytes: Annotated[int, Meta(ge=1024, le=1 << 30)] = 32 << 20  # three times that in memory while decoded
    # Memory of all bodies in flight; more get 503. None: 128 MiB, or an eighth of `memory` where that is less.
    max_bodies_bytes: Annotated[int, Meta(ge=1 << 20)] | None = None
    max_json_values: Annotated[int, Meta(ge=1024, le=1 << 30)] = 1_000_000  # of a body; a list is four, a key 16
    max_json_depth: Annotated[int, Meta(ge=4, le=200)] = 64
    max_header_bytes: Annotated[int, Meta(ge=1024, le=1 << 20)] = 32 << 10
    max_schema_bytes: Annotated[int, Meta(ge=256, le=16 << 20)] = 256 << 10
    max_image_bytes: Annotated[int, Meta(ge=1024)] = 20 << 20
    max_stored_responses: Annotated[int, Meta(ge=0, le=1_000_000)] = 1000
    log: str = "json"  # or "text"

    @property
    def memory_bytes(self) -> int | None:
        """The budget in bytes; None: what the machine has to give."""
        return None if self.memory is None else given_size(self.memory)

    @property
    def bodies_bytes(self) -> int:
        """What all bodies in flight may take together."""
        if self.max_bodies_bytes is not None:
            return self.max_bodies_bytes
        memory = self.memory_bytes
        return _BODIES_BYTES if memory is None else max(_LEAST_BODIES_BYTES, min(_BODIES_BYTES, memory // 8))

    @property
    def prefix_cache_bytes(self) -> int:
        """The prefix store's cap in bytes; 0: it is off."""
        return 0 if self.prefix_cache == "off" else given_size(self.prefix_cache)

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether an address to bind to is of this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def parse_duration(value: str | float) -> float:
    """Seconds of "90", "90s", "1h30m", "250ms" or a number; a negative one is forever. Raises UsageError."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds = float(value)
    else:
        text = str(value).strip().lower()
        sign, digits = (-1.0, text[1:]) if text.startswith("-") else (1.0, text)
        match = _DURATION.fullmatch(digits) if len(digits) <= 40 else None
        if not digits or match is None:
            raise UsageError(f"{str(value)[:40]!r} is no duration: write seconds, or 5m, 1h30m, 250ms; -1 is forever")
        hours, minutes, secs, millis = (float(part) if part else 0.0 for part in match.groups())
        seconds = sign * (hours * 3600 + minutes * 60 + secs + millis / 1000)
    UsageError.when(math.isnan(seconds), "a duration must be a number")
    return math.inf if seconds < 0 else seconds


def load_config(
    *, file: Path | None = None, environment: Mapping[str, str], flags: Mapping[str, Any]
) -> tuple[ServeConfig, list[str]]:
    """The settings, and where they came from. `file` None: the usual one, if there is one. `flags`: None is not given.

    Raises UsageError naming the place and the setting.
    """
    values: dict[str, Any] = {}
    sources: list[str] = []
    path = file if file is not None else config_file()
    if file is not None or path.is_file():
        values.update(_checked(read_toml(path), str(path)))
        sources.append(str(path))
    from_environment = _from_environment(environment)
    if from_environment:
        values.update(_checked(from_environment, "the environment"))
        sources.extend(ENV_PREFIX + name.upper() for name in from_environment)
    given = {name: value for name, value in flags.items() if value is not None}
    if given:
        values.update(_checked(given, "the command line"))
    config = _convert(values, "the settings")
    for name in ("memory", "prefix_cache"):
        try:
            getattr(config, f"{name}_bytes")
        except UsageError as error:
            raise UsageError(f"{name}: {error}") from None
    UsageError.when(config.log not in ("json", "text"), f"log must be json or text, not {config.log!r}")
    for origin in config.origins:
        UsageError.when(
            not re.fullmatch(r"https?://[A-Za-z0-9.\-\[\]:]{1,255}", origin),
            f"{origin!r} is no origin such as https://chat.example; '*' is not taken: name each page",
        )
    return config, sources


def exposed_keys(path: Path, config: ServeConfig) -> str:
    """A warning, when a file of settings has API keys in plain text and others may read it; "" when all is well."""
    if os.name == "nt" or not any(entry.key is not None for entry in config.api_keys):
        return ""
    try:
        found = path.stat()
        if not found.st_mode & 0o077 or not any(entry.get("key") for entry in read_toml(path).get("api_keys", ())):
            return ""
    except (OSError, UsageError, AttributeError):
        return ""
    return (
        f"{path} has an API key in plain text and other users may read it (mode {found.st_mode & 0o777:o}): "
        f"chmod 600 it, or give the key's sha256 instead"
    )


def config_file() -> Path:
    """The settings that are read when no others are named."""
    return config_dir() / "serve.toml"


def config_dir() -> Path:
    """Where the settings and the hashes of API keys lie."""
    import platformdirs

    return platformdirs.user_config_path("kamado", appauthor=False)


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    kinds = {field.name: field.type for field in msgspec.structs.fields(ServeConfig)}
    for variable, text in environment.items():
        if not variable.startswith(ENV_PREFIX):
            continue
        name = variable[len(ENV_PREFIX) :].lower()
        if name == "api_key":
            from .scopes import SCOPES

            found["api_keys"] = [{"name": "environment", "key": text, "scopes": list(SCOPES)}]
        elif name not in kinds or name in ("api_keys", "aliases"):
            raise UsageError(f"{variable}: there is no such setting")
        elif kinds[name] == list[str]:
            found[name] = [part.strip() for part in text.split(",") if part.strip()]
        else:
            found[name] = text
    return found


_DURATIONS = {
    "keep_alive",
    "deadline",
    "load_wait",
    "drain",
    "write_timeout",
    "body_timeout",
    "keep_alive_comment",
    "header_timeout",
    "idle_timeout",
}


def _checked(values: Mapping[str, Any], place: str) -> dict[str, Any]:
    """`values` as plain data of the right types."""
    out: dict[str, Any] = {}
    for name, value in values.items():
        if name in _DURATIONS:
            try:
                value = parse_duration(value)
            except UsageError as error:
                raise UsageError(f"{place}: {name}: {error}") from None
        out[name] = value
    converted = _convert(out, place)
    return {name: getattr(converted, name) for name in out}


def _convert(values: Mapping[str, Any], place: str) -> ServeConfig:
    try:
        return msgspec.convert(dict(values), ServeConfig, strict=False)
    except msgspec.ValidationError as error:
        raise UsageError(f"{place}: {error}") from None
