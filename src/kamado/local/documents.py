"""What a server and the command line of one user say to each other, each document one dataclass.

Read with `read`, which believes nothing: a document that lacks a field or has another kind of value in it is refused
with the field's name. Further fields are passed over, so that a newer server can say more. `PROTOCOL` counts up when an
older program would misunderstand.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from ..errors import ServerError

PROTOCOL = 1

T = TypeVar("T")

_MOST = 1 << 63  # of a whole number

STATUS_PATH = "/local/v1/status"
LOAD_PATH = "/local/v1/load"
UNLOAD_PATH = "/local/v1/unload"
STOP_PATH = "/local/v1/stop"
LOGS_PATH = "/local/v1/logs"
MODEL_PATH = "/kamado/v1/model"
ANSWER_PATH = "/kamado/v1/answer"
ENCODE_PATH = "/kamado/v1/encode"
EMBED_PATH = "/kamado/v1/embed"
STATS_PATH = "/kamado/v1/stats"


@dataclass(frozen=True, slots=True)
class Settings:
    """How a server was told to load models. None: as the machine and the model allow."""

    kv: str
    memory_bytes: int | None = None  # of all models together
    context: int | None = None
    threads: int | None = None
    prefix_cache_bytes: int = 0
    allow_unknown: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelState:
    """A model in a server's memory."""

    name: str
    kv: str  # as it came to be: "exact" for "auto", …
    threads: int
    context: int
    memory_bytes: int = 0  # planned; 0: another one that has the same weights pays
    budget_bytes: int = 0  # that it was planned within
    requests: int = 0  # that run or wait
    since: float = 0.0  # Unix seconds
    expires_at: float | None = None  # None: never
    is_pinned: bool = False
    is_loading: bool = False
    path: str = ""  # of its file; said to the same user only
    overridden: tuple[str, ...] = ()  # settings of the file that were left out
    asked: Mapping[str, str] = field(default_factory=dict)  # what it was loaded with in place of the server's settings
    has_chat_template: bool = False
    is_encoder: bool = False
    embeds: bool = False  # the server makes vectors with it


@dataclass(frozen=True, slots=True)
class Status:
    """A server, as it is now."""

    protocol: int
    kamado: str  # its version
    pid: int
    address: str  # of its TCP side
    settings: Settings
    models: tuple[ModelState, ...] = ()
    requests: int = 0  # that run or wait
    started_at: float = 0.0
    is_ready: bool = True
    memory_bytes: int | None = None  # what all models may take
    files: Mapping[str, str] = field(default_factory=dict)  # models outside the store: path by name
    state_folder: str = ""  # where it keeps conversations
    life_seconds: float = 10.0  # so often a silent answer has a sign of life; 0: never


@dataclass(frozen=True, slots=True)
class Told:
    """What a server says of one model over TCP: a `ModelState` and who it is."""

    protocol: int
    kamado: str
    model: ModelState
    life_seconds: float = 10.0


@dataclass(frozen=True, slots=True)
class Spent:
    """What an answer took: the numbers of `kamado.Usage`."""

    num_prompt_tokens: int = 0
    num_reused_tokens: int = 0
    num_generated_tokens: int = 0
    queue_seconds: float = 0.0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0


def write(document: Any) -> dict[str, Any]:
    """Plain data of one of these documents."""
    return dataclasses.asdict(document)


def read(kind: type[T], value: object, where: str = "") -> T:
    """A document of plain data. Raises ServerError naming the field that cannot be."""
    if not isinstance(value, Mapping):
        raise ServerError(f"the server's answer cannot be read: {where or kind.__name__} is no object")
    values: dict[str, Any] = {}
    for name, (wanted, is_needed) in _fields(cast("Any", kind)).items():
        place = f"{where}.{name}" if where else name
        if name in value:
            values[name] = _read(wanted, value[name], place)
        elif is_needed:
            raise ServerError(f"the server's answer cannot be read: it has no {place}")
    return kind(**values)


@cache
def _fields(kind: Any) -> dict[str, tuple[Any, bool]]:
    """Name, type and whether it must be there, of each field."""
    hints = get_type_hints(kind)
    missing = dataclasses.MISSING
    return {
        f.name: (hints[f.name], f.default is missing and f.default_factory is missing) for f in dataclasses.fields(kind)
    }


def _read(wanted: Any, value: object, place: str) -> Any:
    """A value of the wanted type. Raises ServerError."""
    origin = get_origin(wanted)
    if origin in (Union, types.UnionType):
        inner = [kind for kind in get_args(wanted) if kind is not type(None)]
        return None if value is None else _read(inner[0], value, place)
    if dataclasses.is_dataclass(wanted):
        return read(cast("type[Any]", wanted), value, place)
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(_read(get_args(wanted)[0], item, f"{place}[{i}]") for i, item in enumerate(value))
    if origin is not None and origin is not tuple and isinstance(value, Mapping):
        return {str(key): _read(get_args(wanted)[1], item, f"{place}.{key}") for key, item in value.items()}
    if isinstance(value, (bool, str)):
        if type(value) is wanted:
            return value
    elif isinstance(value, int) and abs(value) < _MOST and wanted in (int, float):
        return wanted(value)
    elif isinstance(value, float) and math.isfinite(value) and wanted is float:
        return value
    raise ServerError(f"the server's answer cannot be read: {place[:200]} is {repr(value)[:60]}")
