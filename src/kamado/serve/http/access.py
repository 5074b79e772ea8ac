"""Who may reach the server at all: Host headers are checked against rebinding, Origin headers against foreign pages.

A page of another site can make its visitor's browser send requests to a server on the visitor's machine. Two headers
that a browser sets and a page cannot forge stop it: Host has the name that the page was told (a rebound name is not on
the list), Origin has the page's own. Neither list is ever made from DNS.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence

from ..config import ServeConfig, is_loopback
from ..faults import RequestError

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::([0-9]{1,5}))?")
_ORIGIN = re.compile(r"(https?)://(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::([0-9]{1,5}))?")
_MAX_AGE_SECONDS = "600"
# What the official clients send from browsers.
_ALLOWED_HEADERS = ", ".join(
    (
        "authorization", "content-type", "user-agent", "x-api-key", "x-request-id",
        "anthropic-version", "anthropic-beta", "anthropic-dangerous-direct-browser-access",
        "openai-organization", "openai-project", "openai-beta",
        *(
            f"x-stainless-{name}"
            for name in (
                "arch", "async", "helper-method", "lang", "os", "package-version", "poll-helper", "read-timeout",
                "retry-count", "runtime", "runtime-version", "timeout",
            )
        ),
    )
)  # fmt: skip


class Access:
    """The allow-lists of one server."""

    def __init__(self, config: ServeConfig) -> None:
        self._is_loopback = config.is_loopback
        self._hosts = {host.lower() for host in config.hosts}
        if not _is_address(config.host):
            self._hosts.add(config.host.lower())
        self._origins = {origin.lower().rstrip("/") for origin in config.origins}

    def check_host(self, host: str | None) -> None:
        """Raises FaultError for a name that is not ours. Addresses cannot be rebound, so they are taken as they are."""
        match = _HOST.fullmatch(host or "")
        if match is None:
            raise RequestError("the Host header is missing or malformed")
        name = match[1].lower().rstrip(".")
        if name in self._hosts or name == "localhost" or name.endswith(".localhost"):
            return
        if _is_address(name) and (not self._is_loopback or is_loopback(name)):
            return
        raise RequestError(
            f"this server does not answer to {name!r}; its `hosts` setting lists names that it does", kind="forbidden"
        )

    def check_origin(self, headers: Mapping[str, str], method: str = "GET") -> dict[str, str]:
        """Headers that let the asking page read the answer; {} when none asks. Raises FaultError for a foreign page."""
        origin = headers.get("origin")
        if origin is None:
            # A browser that says the request is another site's, but not which: an image, say, or a form that it sends
            # without Origin. A link may lead here, which is a GET.
            is_foreign = headers.get("sec-fetch-site") in ("cross-site", "same-site")
            is_link = headers.get("sec-fetch-mode") == "navigate" and method in ("GET", "HEAD")
            RequestError.when(is_foreign and not is_link, "requests of other sites are not taken", kind="forbidden")
            return {}
        match = _ORIGIN.fullmatch(origin)
        is_ours = False
        if match is not None:
            name = match[2].lower()
            is_same = origin.partition("://")[2].lower() == headers.get("host", "").lower()
            is_local = self._is_loopback and (name == "localhost" or (_is_address(name) and is_loopback(name)))
            is_ours = is_same or is_local or origin.lower() in self._origins
        RequestError.when(
            not is_ours,
            "pages of this origin are not allowed; the `origins` setting lists those that are",
            kind="forbidden",
        )
        # The page's own name, never "*", and no credentials: cookies are not ours.
        return {"access-control-allow-origin": origin, "vary": "Origin", "access-control-expose-headers": "*"}

    def preflight(self, cors: Mapping[str, str], methods: Sequence[str]) -> dict[str, str]:
        """Headers of the answer to a browser that asks beforehand."""
        if not cors:
            return {}
        return {
            **cors,
            "access-control-allow-methods": ", ".join(methods),
            "access-control-allow-headers": _ALLOWED_HEADERS,
            "access-control-max-age": _MAX_AGE_SECONDS,
        }


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
