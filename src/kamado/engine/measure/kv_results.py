"""What `kamado kv` measured on a model, kept so that kv="auto" can use it: one small JSON file a model.

A file is bound to the model's content and to the codec's version. A measurement that was interrupted is kept as well
and goes on where it stopped.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TypeVar

from ...errors import UsageError
from ...files.atomic import user_folder, write_atomically
from ...files.types import Checkpoint
from ...plan.kv_presets import AUTO, check_kv
from ..cache.identity import model_identity

CODEC_VERSION = 1  # that of native/state: `Executor.kv_fingerprint` begins with "kv1-"
_VERSION = 2
_MAX_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class KvRow:
    """One preset on one model, against the exact cache."""

    kv: str
    bytes_per_token: float  # of a long sequence, all layers
    perplexity: float
    rise_percent: float  # of perplexity
    rise_error_percent: float  # standard error of that, text by text, pairs of tokens
    divergence: float  # mean Kullback-Leibler divergence of the output, in nats
    divergence_worst: float  # of any token
    same_top_percent: float  # how often the most likely token is the same
    num_tokens: int  # scored


@dataclass(frozen=True, slots=True)
class KvLayerRow:
    """What one preset does to the attention of one layer, whose own keys and values alone are encoded."""

    kv: str
    layer: int
    divergence: float  # mean KL of the attention weights from the exact ones, over queries and heads, in nats
    worst_head: int
    worst_divergence: float  # the mean of that head
    output_error: float  # |o' - o|² / |o|² of the heads' outputs, keys and values encoded


@dataclass(slots=True)
class KvResults:
    """All that is known of a model's KV cache."""

    identity: str
    model: str
    recommended: str | None = None
    measured_at: str = ""  # ISO 8601, UTC
    text: str = ""  # digest of the texts and settings that were used
    rows: list[KvRow] = field(default_factory=list)
    layers: list[KvLayerRow] = field(default_factory=list)

    def layers_of(self, kv: str) -> list[KvLayerRow]:
        """Those of one preset, by layer."""
        return [row for row in self.layers if row.kv == kv]


def results_root() -> Path:
    """Below KAMADO_HOME if set, else the user's XDG cache directory."""
    return user_folder("cache", "kv")


def load_results(identity: str, root: Path | None = None) -> KvResults | None:
    """What was measured for the model; None when nothing was, or what is there cannot be believed."""
    path = _path(identity, root)
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_BYTES + 1)
        document = json.loads(data) if len(data) <= _MAX_BYTES else {}
        found = (document["version"], document["codec"], document["identity"])
        if found != (_VERSION, CODEC_VERSION, identity):
            return None
        rows = [_row(KvRow, values) for values in document["rows"]]
        layers = [_row(KvLayerRow, values) for values in document["layers"]]
        recommended = document["recommended"]
        if recommended is not None:
            check_kv(recommended)
        texts = [str(document[name]) for name in ("model", "measured_at", "text")]
        return KvResults(identity, texts[0], recommended, texts[1], texts[2], rows, layers)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, UsageError):
        return None  # a cache: it is measured again


def recommended_for(checkpoint: Checkpoint, kv: str) -> str | None:
    """What kv="auto" stands for on this model; None when nothing was measured, or `kv` is another."""
    results = load_results(model_identity(checkpoint)) if kv == AUTO else None
    return None if results is None else results.recommended


def save_results(results: KvResults, root: Path | None = None) -> Path:
    """Writes the file whole or not at all. Raises OSError."""
    path = _path(results.identity, root)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    document = {"version": _VERSION, "codec": CODEC_VERSION, **asdict(results)}
    write_atomically(path, json.dumps(document, indent=1), "\n")
    return path


def _path(identity: str, root: Path | None) -> Path:
    assert identity.isalnum()
    return (root or results_root()) / f"{identity}.json"


_Row = TypeVar("_Row", KvRow, KvLayerRow)


def _row(kind: type[_Row], values: dict[str, object]) -> _Row:
    row = kind(**{f.name: values[f.name] for f in fields(kind)})  # type: ignore[arg-type]
    check_kv(row.kv)
    if not all(isinstance(v, (int, float)) and math.isfinite(v) for k, v in asdict(row).items() if k != "kv"):
        raise ValueError("no number")
    return row
