"""JSON Schemas that clients send: bounds before any compiler sees them, and what is said of what is not kept.

An answer to a request with a schema has the header `x-kamado-schema`, a list of

    declared-keys      objects have the keys of `properties` only where the schema does not speak of others
    open=<where>       a keyword that is not enforced while the answer is written; the finished answer is checked
    remark=<where>     a format that is a remark here
    violated           the finished answer violates what was left open (of whole answers; a stream says so at its end)

where <where> is `answer` or the tool's name, `#`, and the keyword's JSON pointer. A violation stands in the
answer's own account too (`kamado.schema_violations`; Ollama: `schema_violations`), and in the log.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from ..faults import RequestError
from ..http.replies import to_json
from ..http.routes import Call
from ..models.contract import Done, Event, Finish, Started

MAX_SCHEMA_BYTES = 256 << 10
HEADER = "x-kamado-schema"

_log = logging.getLogger("kamado.serve")


def check_schema(schema: Mapping[str, Any], param: str, max_bytes: int = MAX_SCHEMA_BYTES) -> None:
    """Raises RequestError for a schema of too many bytes. What is in it is the engine's to judge (json_schema/)."""
    if not schema:
        return
    num_bytes = len(to_json(schema))
    RequestError.when(
        num_bytes > max_bytes, f"{param} has {num_bytes} bytes, more than the {max_bytes} that are taken", param=param
    )


async def noted(call: Call[Any], events: AsyncGenerator[Event, None]) -> AsyncGenerator[Event, None]:
    """The events, with what is to be said of schemas put into the answer's header, its account and the log."""
    violations: list[str] = []
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Started) and event.schemas:
                call.answer_headers[HEADER] = event.schemas
            elif isinstance(event, Finish):
                violations += event.violations
            elif isinstance(event, Done) and violations:
                call.answer_headers[HEADER] = f"{call.answer_headers.get(HEADER, '')}, violated".lstrip(", ")
                call.notes["schema_violations"] = len(violations)
                _log.warning("an answer violates its schema", extra={"id": call.id, "violations": violations[:10]})
                event = replace(event, counts=replace(event.counts, violations=tuple(violations)))
            yield event
