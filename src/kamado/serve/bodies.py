"""Request bodies: bounded in size, time and depth before anything is made of them, then checked against their type."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import msgspec

from .faults import Fault, FaultError

_WHERE = re.compile(r"^(.*?)(?: - at `(?:key in )?\$\.?(.*?)`)?$", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
# Sent by `curl -d` when nobody says otherwise. No page of another site gets here: its Origin was refused.
_CURL_TYPES = ("application/x-www-form-urlencoded", "text/plain", "application/octet-stream")
_BOM = b"\xef\xbb\xbf"  # what some editors put before a file


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """Bounds of every body."""

    max_bytes: int
    max_depth: int
    timeout_seconds: float


async def read_body(
    receive: Callable[[], Awaitable[MutableMapping[str, Any]]], headers: Mapping[str, str], limits: BodyLimits
) -> bytes:
    """The whole body. Raises FaultError when it is too large, too slow or of a type that cannot be JSON."""
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    is_json = media_type in ("", "application/json") or media_type.endswith("+json")
    if not is_json and not (media_type in _CURL_TYPES and "origin" not in headers):
        raise FaultError(Fault("unsupported_media_type", f"send JSON (application/json), not {media_type[:80]!r}"))
    if headers.get("content-encoding", "identity").lower() != "identity":  # nothing that can swell
        raise FaultError(Fault("unsupported_media_type", "compressed bodies are not taken"))
    length = headers.get("content-length", "0")
    if length.isdigit() and int(length) > limits.max_bytes:
        raise _too_large(limits)
    chunks: list[bytes] = []
    num_bytes = 0
    try:
        async with asyncio.timeout(limits.timeout_seconds or None):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise asyncio.CancelledError
                chunk = message.get("body", b"")
                num_bytes += len(chunk)
                if num_bytes > limits.max_bytes:
                    raise _too_large(limits)
                chunks.append(chunk)
                if not message.get("more_body", False):
                    return b"".join(chunks)
    except TimeoutError:
        raise FaultError(
            Fault("request_timeout", f"the body was not complete after {limits.timeout_seconds:g} seconds")
        ) from None


def decode_body(
    raw: bytes, kind: type, limits: BodyLimits, admit: Callable[[dict[str, Any]], object] | None = None
) -> Any:
    """The body as its Struct, after `admit` has taken out what is left out. Raises FaultError naming the parameter."""
    try:
        value = msgspec.json.decode(raw.removeprefix(_BOM))
    except RecursionError:
        raise _too_deep(limits) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        text = "the body is empty: send a JSON object" if not raw.strip() else f"the body is no valid JSON: {error}"
        raise FaultError(Fault("invalid_request", text)) from None
    if not isinstance(value, dict):
        raise FaultError(Fault("invalid_request", "the body must be a JSON object"))
    _check_depth(value, limits)
    if admit is not None:
        admit(value)
    try:
        return msgspec.convert(value, kind, strict=True)
    except msgspec.ValidationError as error:
        match = _WHERE.match(str(error))
        assert match is not None
        problem, where = match[1], match[2] or None
        unknown = _UNKNOWN.fullmatch(problem)
        if unknown is not None:
            name = unknown[1][:80]
            where = f"{where}.{name}" if where else name
            problem = f"unknown parameter {where!r}: nothing here would honour it"
        else:
            problem = f"{where}: {problem[:400]}" if where else problem[:400]
        raise FaultError(Fault("invalid_request", problem, param=where)) from None


def _check_depth(value: Any, limits: BodyLimits) -> None:
    """Without recursion, since depth is what is in doubt."""
    level: list[Any] = [value]
    for _ in range(limits.max_depth):
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, (dict, list))
        ]
        if not level:
            return
    raise _too_deep(limits)


def _too_deep(limits: BodyLimits) -> FaultError:
    return FaultError(Fault("invalid_request", f"the body is nested deeper than {limits.max_depth} levels"))


def _too_large(limits: BodyLimits) -> FaultError:
    return FaultError(Fault("too_large", f"the body is larger than {limits.max_bytes} bytes, the limit here"))
