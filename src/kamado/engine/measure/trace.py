"""A trace of the steps for Perfetto (ui.perfetto.dev) or chrome://tracing.

Steps are exact. The native executor counts each layer's experts but keeps no time line, so that within a step the
layers' computing and waiting lie end to end in the order they ran: lengths are measured, the places are not.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from ...errors import UsageError
from ..executor_protocol import ExecutorProtocol, Ids, Rows
from ..schedule.ledger import Ledger, read_ledger

_STEPS, _EXPERTS = 1, 2  # rows of the picture
_MICROSECONDS = 1e6


class Tracer:
    """Stands between the engine and its executor and writes an event for every step.

    The file is a JSON array that is written as it grows; viewers also take one that was cut off.
    """

    def __init__(self, executor: ExecutorProtocol, path: Path) -> None:
        self._executor = executor
        self._start = time.perf_counter()
        self._num_steps = 0
        self._pid = os.getpid()
        self._before: Ledger | None = read_ledger(executor)
        self._file: TextIO | None
        try:
            self._file = open(path, "w", encoding="utf-8")  # noqa: SIM115 (closed with the executor)
        except OSError as error:
            raise UsageError(f"{path}: the trace cannot be written: {error.strerror}") from None
        self._file.write("[")
        self._separator = "\n"
        for tid, name in ((_STEPS, "steps"), (_EXPERTS, "experts")):
            self._emit({"ph": "M", "name": "thread_name", "tid": tid, "args": {"name": name}})
        self._emit({"ph": "M", "name": "process_name", "tid": _STEPS, "args": {"name": "kamado"}})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._executor, name)

    def step(self, sequences: Ids, counts: Ids, tokens: Ids, logit_rows: Ids, hidden: bool = False) -> Rows:
        """The executor's, with an event."""
        begin = time.perf_counter()
        try:
            return self._executor.step(sequences, counts, tokens, logit_rows, hidden)
        finally:
            self._record(begin, len(counts), len(tokens))

    def score(self, sequence: int, tokens: Ids, targets: Ids) -> NDArray[np.float64]:
        """The executor's, with an event."""
        begin = time.perf_counter()
        try:
            return self._executor.score(sequence, tokens, targets)
        finally:
            self._record(begin, 1, len(tokens))

    def close(self) -> None:
        """Ends the array and closes the executor. May be called again."""
        if self._file is not None:
            self._file.write("\n]\n")
            self._file.close()
            self._file = None
        self._executor.close()

    def _record(self, begin: float, num_sequences: int, num_rows: int) -> None:
        end = time.perf_counter()
        self._num_steps += 1
        name = "decode" if num_rows == num_sequences else "prefill"
        args: dict[str, Any] = {"step": self._num_steps, "sequences": num_sequences, "rows": num_rows}
        ledger = read_ledger(self._executor)
        if ledger is not None:
            added = ledger.since(self._before) if self._before is not None else ledger
            self._before = ledger
            args |= added.total.to_dict()
            self._emit_layers(begin, end, added)
            self._count(begin, "bytes read", added.total.bytes_read)
            self._count(begin, "experts read", added.total.misses)
            if added.total.hit_rate is not None:
                self._count(begin, "hit rate", round(added.total.hit_rate, 4))
        self._slice(_STEPS, name, begin, end - begin, args)

    def _emit_layers(self, begin: float, end: float, added: Ledger) -> None:
        total = added.total
        measured = total.compute_seconds + total.wait_seconds
        # What a step does beside its experts is spread evenly between the layers.
        gap = max(0.0, end - begin - measured) / (len(added.layers) + 1)
        at = begin
        for layer, row in added.layers.items():
            at += gap
            for kind, seconds in (("wait", row.wait_seconds), ("compute", row.compute_seconds)):
                if seconds > 0:
                    args = {"layer": layer, "hits": row.hits, "misses": row.misses, "bytes_read": row.bytes_read}
                    self._slice(_EXPERTS, kind, at, seconds, args)
                at += seconds

    def _slice(self, tid: int, name: str, begin: float, seconds: float, args: dict[str, Any]) -> None:
        self._emit(
            {"ph": "X", "name": name, "tid": tid, "ts": self._stamp(begin), "dur": round(seconds * _MICROSECONDS, 1)}
            | {"args": args}
        )

    def _count(self, at: float, name: str, value: float) -> None:
        self._emit({"ph": "C", "name": name, "tid": _STEPS, "ts": self._stamp(at), "args": {name: value}})

    def _stamp(self, at: float) -> float:
        return round((at - self._start) * _MICROSECONDS, 1)

    def _emit(self, event: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(self._separator + json.dumps({"pid": self._pid} | event))
            self._separator = ",\n"
