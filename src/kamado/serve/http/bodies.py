"""Request bodies: bounded in size, time, depth, values and memory before anything is made of them, then decoded and
checked against their type.

What decoding would cost is found in the bytes as they come (native/text/json_cost.cpp, a millisecond a megabyte at the
most), so a body that is past a bound is refused before the rest of it is read. Large ones are decoded on a thread of
their own, one at a time; what decodes them (msgspec) holds the interpreter, and the bound of values keeps that short.
All bodies together have one budget of memory; see `BodyBudget`.
"""

from __future__ import annotations

import asyncio
import gc
import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import msgspec

from ..._native import JsonCost
from ...plan.budget import format_size
from ..faults import Fault, FaultError, RequestError

_WHERE = re.compile(r"^(.*?)(?: - at `(?:key in )?\$\.?(.*?)`)?$", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
# Sent by `curl -d` when nobody says otherwise. No page of another site gets here: its Origin was refused.
_CURL_TYPES = ("application/x-www-form-urlencoded", "text/plain", "application/octet-stream")
_BOM = b"\xef\xbb\xbf"  # what some editors put before a file

SMALL_BYTES = 64 << 10  # decoded where it was read: a millisecond at the most
MEMORY_FACTOR = 3  # of the largest body: what one may take while it is decoded, itself included
SMALL_SHARE = 4  # the part of the budget that large bodies cannot take from small ones: a quarter
_RETRY_SECONDS = 2.0
_MAX_ECHO = 160  # characters of the decoder's words: it repeats what clients wrote


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """Bounds of every body."""

    max_bytes: int
    max_depth: int
    timeout_seconds: float
    max_values: int = 1_000_000  # as JsonCost.weight counts them
    max_memory_bytes: int = 96 << 20  # of one body while it is decoded, itself included

    def check(self, cost: JsonCost, num_bytes: int) -> None:
        """Raises FaultError when a body of so many bytes costs more than it may."""
        if cost.depth > self.max_depth:
            raise _too_deep(self)
        if cost.weight > self.max_values:
            text = f"the body has more than {self.max_values} values (a list counts as four, a key as 16)"
        elif cost.nbytes > max(0, self.max_memory_bytes - num_bytes):
            text = f"the body would take more than {format_size(self.max_memory_bytes)} of memory"
        else:
            return
        raise FaultError(Fault("too_large", text + ", the limit here"))


class BodyBudget:
    """Memory of all bodies in flight: bytes as they come, what decoding takes, then what was decoded until its request
    has ended. The first 64 KiB of each are counted apart, so that a few large bodies cannot lock out small ones.

    One event loop's own.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._used_small = 0
        self._used_large = 0

    @property
    def used_bytes(self) -> int:
        """Of all bodies now."""
        return self._used_small + self._used_large

    def open(self) -> BodyCharge:
        """The account of one more body."""
        return BodyCharge(self)

    def take(self, old: int, new: int) -> None:
        """Another size of one body. Raises FaultError (503) when a larger one has no room; nothing is changed then."""
        small = min(new, SMALL_BYTES) - min(old, SMALL_BYTES)
        large = new - old - small
        most_small = self.max_bytes // SMALL_SHARE
        if (small > 0 and self._used_small + small > most_small) or (
            large > 0 and self._used_large + large > self.max_bytes - most_small
        ):
            raise FaultError(
                Fault(
                    "unavailable",
                    f"the bodies of other requests take the {format_size(self.max_bytes)} that they may take together: "
                    "try again soon",
                    code="bodies_in_flight",
                    retry_after=_RETRY_SECONDS,
                )
            )
        self._used_small += small
        self._used_large += large


class BodyCharge:
    """What one body takes of a budget."""

    def __init__(self, budget: BodyBudget) -> None:
        self._budget = budget
        self.nbytes = 0

    def resize(self, nbytes: int) -> None:
        """Takes `nbytes` from now on. Raises FaultError (503) when there is no room for more."""
        self._budget.take(self.nbytes, nbytes)
        self.nbytes = nbytes

    def close(self) -> None:
        """Gives all back."""
        self.resize(0)


@dataclass(frozen=True, slots=True)
class BodyDecoder:
    """From bytes to a request's Struct. `admit` is called with the plain object in between, and may change it."""

    kind: type
    limits: BodyLimits
    admit: Callable[[dict[str, Any]], object] | None = None

    def decode(self, raw: bytes | bytearray) -> Any:
        """The Struct of a body whose cost was checked. Raises FaultError naming the parameter."""
        is_collected = gc.isenabled()
        if len(raw) > SMALL_BYTES:
            gc.disable()  # it would look for garbage again and again among what is being made: 20 times the time
        try:
            value = msgspec.json.decode(memoryview(raw)[len(_BOM) :] if raw.startswith(_BOM) else raw)
        except RecursionError:
            raise _too_deep(self.limits) from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            text = "the body is empty: send a JSON object" if not raw.strip() else f"the body is no valid JSON: {error}"
            raise FaultError(Fault("invalid_request", text)) from None
        finally:
            if is_collected:
                gc.enable()
        RequestError.when(not isinstance(value, dict), "the body must be a JSON object")
        if self.admit is not None:
            self.admit(value)
        try:
            return msgspec.convert(value, self.kind, strict=True)
        except msgspec.ValidationError as error:
            raise _invalid(error) from None


async def take_body(
    receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
    headers: Mapping[str, str],
    decoder: BodyDecoder,
    charge: BodyCharge,
) -> Any:
    """The body as its Struct; `charge` then counts what that takes. Raises FaultError for what cannot be taken."""
    raw = bytearray()
    try:
        cost = await read_body(receive, headers, decoder.limits, charge, raw)
        if cost is None:
            return decode_body(raw, decoder)
        charge.resize(len(raw) + cost.nbytes)
        value = await asyncio.get_running_loop().run_in_executor(_thread(), decoder.decode, raw)
        charge.resize(cost.nbytes)
        return value
    finally:
        with suppress(BufferError):  # cancelled while the thread reads it, which then drops it
            raw.clear()  # here and not when the traceback that may hold it goes


def decode_body(raw: bytes | bytearray, decoder: BodyDecoder) -> Any:
    """The body as its Struct, here and now. Raises FaultError naming the parameter."""
    # A small body can be too deep only if it has that many brackets, and too costly not at all.
    if len(raw) > SMALL_BYTES or raw.count(b"[") + raw.count(b"{") > decoder.limits.max_depth:
        cost = JsonCost()
        cost.take(bytes(raw))
        decoder.limits.check(cost, len(raw))
    return decoder.decode(raw)


@cache
def _thread() -> ThreadPoolExecutor:
    """One: two decoders would only wait for each other, and take the memory of two."""
    return ThreadPoolExecutor(1, thread_name_prefix="kamado-bodies")


async def read_body(
    receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
    headers: Mapping[str, str],
    limits: BodyLimits,
    charge: BodyCharge,
    body: bytearray,
) -> JsonCost | None:
    """Reads the whole body into `body`; what it costs when it is large, else None.

    Raises FaultError when it is too large, costs too much, comes too slowly, or is no JSON."""
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    is_json = media_type in ("", "application/json") or media_type.endswith("+json")
    RequestError.when(
        not is_json and not (media_type in _CURL_TYPES and "origin" not in headers),
        f"send JSON (application/json), not {media_type[:80]!r}",
        kind="unsupported_media_type",
    )
    RequestError.when(
        headers.get("content-encoding", "identity").lower() != "identity",  # nothing that can swell
        "compressed bodies are not taken",
        kind="unsupported_media_type",
    )
    length = headers.get("content-length", "0")
    if length.isdigit() and int(length) > limits.max_bytes:
        raise _too_large(limits)
    cost: JsonCost | None = None
    try:
        async with asyncio.timeout(limits.timeout_seconds or None):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise asyncio.CancelledError
                chunk = message.get("body", b"")
                if len(body) + len(chunk) > limits.max_bytes:
                    raise _too_large(limits)
                charge.resize(len(body) + len(chunk))
                body += chunk
                if cost is not None:
                    cost.take(chunk)
                elif len(body) > SMALL_BYTES:
                    cost = JsonCost()
                    cost.take(bytes(body))
                if cost is not None:
                    limits.check(cost, len(body))
                if not message.get("more_body", False):
                    return cost
    except TimeoutError:
        raise FaultError(
            Fault("request_timeout", f"the body was not complete after {limits.timeout_seconds:g} seconds")
        ) from None


def _invalid(error: msgspec.ValidationError) -> FaultError:
    match = _WHERE.match(str(error))
    assert match is not None
    problem, where = match[1], match[2] or None
    unknown = _UNKNOWN.fullmatch(problem)
    if unknown is not None:
        name = unknown[1][:80]
        where = f"{where}.{name}" if where else name
        problem = f"unknown parameter {where!r}: nothing here would honour it"
    elif where is None and problem.startswith("Expected `object`"):
        problem = "the body must be a JSON object"
    else:
        problem = f"{where}: {problem[:_MAX_ECHO]}" if where else problem[:_MAX_ECHO]
    return FaultError(Fault("invalid_request", problem, param=where))


def _too_deep(limits: BodyLimits) -> FaultError:
    return FaultError(Fault("invalid_request", f"the body is nested deeper than {limits.max_depth} levels"))


def _too_large(limits: BodyLimits) -> FaultError:
    return FaultError(Fault("too_large", f"the body is larger than {limits.max_bytes} bytes, the limit here"))
