"""One request on its way through the gate, and how what came of it is written and logged."""

from __future__ import annotations

import logging
import time
from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..faults import Fault, fault_of
from .bodies import BodyCharge
from .keys import NOBODY, Key
from .parameters import HEADER
from .replies import to_json
from .routes import Family, Response, Route
from .writer import Writer

_log = logging.getLogger("kamado.serve")

_MAX_LEFT_OUT = 50  # names in one answer's header
_SECURITY_HEADERS = {"x-content-type-options": "nosniff"}
CLIENT_LEFT = 499  # what the log and the metrics call an answer that was never begun


@dataclass(eq=False)
class Exchange:
    """One request and its answer."""

    id: str
    method: str
    path: str
    family: Family
    headers: Mapping[str, str]
    started: float
    route: Route | None = None
    key: Key = NOBODY
    cors: Mapping[str, str] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    body: BodyCharge | None = None  # memory of its body, until it has been answered
    left_out: Sequence[str] = ()  # names of parameters
    answer_headers: dict[str, str] = field(default_factory=dict)  # of the handler; a stream adds some before it begins

    def headers_of(self, own: Mapping[str, str]) -> dict[str, str]:
        """An answer's headers: its `own`, and what every answer has."""
        return {**own, **self.cors, self.family.request_id_header: self.id, **_SECURITY_HEADERS}

    async def write(self, writer: Writer, response: Response, *, comment_seconds: float) -> None:
        """Writes what a handler answered. `comment_seconds`: so often a silent stream says that it lives."""
        headers = self.headers_of(response.headers)
        if self.left_out:
            headers[HEADER] = ", ".join(self.left_out[:_MAX_LEFT_OUT])
        all_headers = ChainMap(headers, self.answer_headers)
        if response.chunks is None:
            await writer.whole(response.status, response.content, response.media_type, all_headers)
            return
        try:
            await writer.stream(
                response.status,
                response.chunks,
                response.media_type,
                all_headers,
                comment=self.family.keep_alive,
                comment_seconds=comment_seconds,
            )
        except Exception as error:
            if not writer.is_started:
                raise
            fault = fault_of(error)
            self.notes["fault"] = fault.kind
            if fault.kind == "internal":
                _log.exception("a stream failed", extra={"id": self.id, "path": self.path})
            await writer.finish(self.family.fault_event(fault))

    async def write_fault(self, writer: Writer, fault: Fault) -> None:
        """Writes what went wrong in the family's shape."""
        self.notes["fault"] = fault.kind
        if fault.kind not in ("not_found", "unauthorized"):
            self.notes["reason"] = fault.message[:300]
        if writer.is_started:  # a handler of its own wrote half an answer
            writer.abort()
            return
        headers = self.headers_of(fault.headers)
        if fault.kind in ("too_large", "request_timeout"):
            headers["connection"] = "close"  # the rest of the body is not looked at
        await writer.whole(fault.status, to_json(self.family.fault_body(fault)), "application/json", headers)

    def log(self, writer: Writer) -> None:
        """Its line in the log."""
        if not _log.isEnabledFor(logging.INFO):
            return
        is_quiet = self.route is not None and self.route.scope == "public"  # asked every few seconds
        _log.log(
            logging.DEBUG if is_quiet else logging.INFO,
            "request",
            extra={
                "id": self.id,
                "method": self.method,
                "path": self.path[:200],
                "status": writer.status or CLIENT_LEFT,
                "seconds": round(time.perf_counter() - self.started, 4),
                "bytes": writer.num_bytes,
                "key": self.key.name or None,
                **self.notes,
            },
        )
