"""From an exception to an HTTP answer: one table, which each protocol family writes in its own shape."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from ..errors import (
    BusyError,
    CheckpointError,
    ClosedError,
    ContextOverflowError,
    DownloadError,
    KamadoError,
    MemoryBudgetError,
    ModelNotFoundError,
    TemplateError,
    TokenizerError,
    UsageError,
)

FaultKind = Literal[
    "invalid_request",  # the request contradicts itself, or asks for what cannot be had
    "context_overflow",  # both numbers are in `numbers`
    "unauthorized",  # no API key, or not one of ours
    "forbidden",  # the key lacks a scope; Host or Origin is not allowed
    "not_found",  # no such path or object
    "model_not_found",
    "method_not_allowed",
    "request_timeout",  # the client sent its body too slowly
    "conflict",
    "too_large",
    "unsupported_media_type",
    "header_too_large",
    "rate_limited",  # the queue is full
    "internal",
    "upstream",  # a download failed
    "unavailable",  # going down, or no memory for the model now
    "timeout",  # the deadline passed
]

STATUS: dict[FaultKind, int] = {
    "invalid_request": 400,
    "context_overflow": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "model_not_found": 404,
    "method_not_allowed": 405,
    "request_timeout": 408,
    "conflict": 409,
    "too_large": 413,
    "unsupported_media_type": 415,
    "header_too_large": 431,
    "rate_limited": 429,
    "internal": 500,
    "upstream": 502,
    "unavailable": 503,
    "timeout": 504,
}

MAX_MESSAGE_CHARACTERS = 700
# Of a client's words in one message. Sentences of ours have spaces: what runs on without one is somebody's text.
MAX_ECHO_CHARACTERS = 200
_RUN = re.compile(rf"\S{{{MAX_ECHO_CHARACTERS + 1},}}")
# What is quoted: shortly, or for longer than that, perhaps without an end.
_QUOTED = re.compile(
    rf"(?<!\w)(['\"`])(?:(?!\1).){{0,{MAX_ECHO_CHARACTERS}}}\1"
    rf"|(?<!\w)(?P<long>['\"`])(?:(?!(?P=long)).){{{MAX_ECHO_CHARACTERS + 1},}}(?:(?P=long)|$)",
    re.DOTALL,
)
# Directories of this machine, in errors of files: clients have no use for them.
_DIRECTORIES = re.compile(r"(?<![\w:/.~-])~?/(?:[^/\s:'\"]+/)+")


class OverloadedError(KamadoError):
    """The queue is full, or there is no memory for the model now. Try again after `retry_after` seconds."""

    def __init__(self, message: str, *, retry_after: float, is_queue: bool = True) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.is_queue = is_queue  # True: 429, too many requests; False: 503, the model cannot be had now


class DeadlineError(KamadoError):
    """The request's time was over before its answer was complete."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One refusal or failure. `param` names the offending parameter, as a path such as `messages[2].content`."""

    kind: FaultKind
    message: str
    param: str | None = None
    code: str | None = None  # a short word for programs, where a family has a place for it
    retry_after: float | None = None  # seconds
    numbers: Mapping[str, int] = field(default_factory=dict)  # num_prompt_tokens, context_tokens
    allow: str | None = None  # of 405: the methods that the path has

    @property
    def status(self) -> int:
        """The HTTP status."""
        return STATUS[self.kind]

    @property
    def headers(self) -> dict[str, str]:
        """What goes with it whatever the family."""
        headers = {}
        if self.retry_after is not None:
            headers["retry-after"] = str(max(1, math.ceil(self.retry_after)))
        if self.kind == "unauthorized":
            headers["www-authenticate"] = 'Bearer realm="kamado"'
        if self.allow is not None:
            headers["allow"] = self.allow
        return headers


class FaultError(KamadoError):
    """A fault, raised where it was found."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.message)
        self.fault = fault


class RequestError(FaultError):
    """A request is refused. `param` names the parameter."""

    def __init__(
        self, message: str, *, param: str | None = None, kind: FaultKind = "invalid_request", code: str | None = None
    ) -> None:
        super().__init__(Fault(kind, message, param=param, code=code))

    @classmethod
    def when(
        cls,
        is_wrong: object,
        message: str,
        *,
        param: str | None = None,
        kind: FaultKind = "invalid_request",
        code: str | None = None,
    ) -> None:
        """One rule of what may be asked: raises the error when it is broken."""
        if is_wrong:
            raise cls(message, param=param, kind=kind, code=code)


def shown(text: str, limit: int = MAX_ECHO_CHARACTERS) -> str:
    """A client's words as a message may repeat them: cut, and without what a terminal takes for an order."""
    cut = text if len(text) <= limit else text[:limit] + "…"
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in cut)


def fault_of(error: BaseException) -> Fault:
    """The fault that answers an exception. What was not foreseen says nothing of our inside: the log has it.

    However a message was made, it does not repeat more than 200 characters of what somebody wrote in one piece.
    """
    fault = _fault_of(error)
    message, param = fault.message, fault.param
    if len(message) > MAX_ECHO_CHARACTERS:
        message = message[: 2 * MAX_MESSAGE_CHARACTERS]
        message = _QUOTED.sub(_cut_quoted, message)
        message = _RUN.sub(lambda match: match[0][:MAX_ECHO_CHARACTERS] + "…", message)
        if len(message) > MAX_MESSAGE_CHARACTERS:
            message = message[:MAX_MESSAGE_CHARACTERS] + " …"
    if param is not None and len(param) > MAX_ECHO_CHARACTERS:
        param = param[:MAX_ECHO_CHARACTERS] + "…"
    return replace(fault, message=message, param=param)


def _cut_quoted(match: re.Match[str]) -> str:
    quote = match["long"]
    return match[0] if quote is None else match[0][:MAX_ECHO_CHARACTERS] + "…" + quote


# What is said of the errors that say no more of themselves than their text, by the first type that fits.
_FAULTS: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], Fault], ...] = (
    (DeadlineError, Fault("timeout", "", code="deadline_exceeded")),
    (ModelNotFoundError, Fault("model_not_found", "", param="model", code="model_not_found")),
    (MemoryBudgetError, Fault("unavailable", "", code="memory_budget", retry_after=60.0)),
    (ClosedError, Fault("unavailable", "the server is going down", code="closed", retry_after=5.0)),
    (BusyError, Fault("unavailable", "", code="busy", retry_after=5.0)),
    (DownloadError, Fault("upstream", "", code="download_failed")),
    ((UsageError, TemplateError, TokenizerError), Fault("invalid_request", "")),
)


def _fault_of(error: BaseException) -> Fault:
    text = str(error)
    if isinstance(error, FaultError):
        return error.fault
    if isinstance(error, ContextOverflowError):
        numbers = {"num_prompt_tokens": error.num_prompt_tokens, "context_tokens": error.context_tokens}
        return Fault("context_overflow", text, code="context_length_exceeded", numbers=numbers)
    if isinstance(error, OverloadedError):
        if error.is_queue:
            return Fault("rate_limited", text, code="queue_full", retry_after=error.retry_after)
        return Fault("unavailable", text, code="model_unavailable", retry_after=error.retry_after)
    for kind, fault in _FAULTS:
        if isinstance(error, kind):
            return replace(fault, message=text or fault.message)
    if isinstance(error, CheckpointError):
        return Fault("unavailable", _DIRECTORIES.sub("…/", text), param="model", code="model_unusable")
    if isinstance(error, RecursionError):
        return Fault("invalid_request", "the request is nested too deeply")
    if isinstance(error, MemoryError):
        return Fault("unavailable", "out of memory", code="memory", retry_after=5.0)
    return Fault("internal", "an error inside the server; its log has the details under this request's id")
