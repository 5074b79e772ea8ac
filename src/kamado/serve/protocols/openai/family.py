"""What all of OpenAI's endpoints share: how faults are written, ids, whose prefixes are shared, what the log says."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

from ...config import parse_duration
from ...faults import Fault
from ...http.replies import sse
from ...http.routes import Call, Family
from ...models.contract import TokenCounts

_TYPES = {
    "unauthorized": "authentication_error",
    "forbidden": "permission_error",
    "rate_limited": "rate_limit_error",
    "internal": "server_error",
    "unavailable": "server_error",
    "upstream": "server_error",
    "timeout": "server_error",
}
SSE_DONE = b"data: [DONE]\n\n"
FINISH = {"stop": "stop", "stop_sequence": "stop", "length": "length", "tool_calls": "tool_calls"}


def fault_body(fault: Fault) -> Mapping[str, Any]:
    """OpenAI's error object."""
    error: dict[str, Any] = {
        "message": fault.message,
        "type": _TYPES.get(fault.kind, "invalid_request_error"),
        "param": fault.param,
        "code": fault.code,
    }
    return {"error": error | dict(fault.numbers)}


# In a stream the same, as the official clients expect it.
FAMILY = Family("openai", fault_body, lambda fault: sse(fault_body(fault)), keep_alive=b": keep-alive\n\n")


def new_id(prefix: str) -> str:
    """An id that nobody can guess."""
    return f"{prefix}{secrets.token_hex(16)}"


def keep_alive_of(value: float | str | None) -> float | None:
    """Seconds; None: as the server was told."""
    return None if value is None else parse_duration(value)


def owner_of(call: Call[Any], cache_key: str | None = None) -> str:
    """Whose prefixes a request may share. A cache key parts one API key's users from each other."""
    return call.key.id if not cache_key else f"{call.key.id}/{cache_key}"


def note_counts(call: Call[Any], counts: TokenCounts) -> None:
    """For the log."""
    call.notes |= {
        "prompt_tokens": counts.num_prompt_tokens,
        "cached_tokens": counts.num_cached_tokens,
        "generated_tokens": counts.num_generated_tokens,
        "queue_seconds": round(counts.queue_seconds, 4),
        "prefill_seconds": round(counts.prefill_seconds, 4),
        "decode_seconds": round(counts.decode_seconds, 4),
    }
