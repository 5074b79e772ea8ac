"""The line to a Kamado server: the user's own socket, or an address. Everything that comes over it is bounded, in time
and size, and believed only after it was checked."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from contextlib import closing, contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx2

from .. import errors
from ..errors import ContextOverflowError, KamadoError, ServerError, UsageError
from ..local import place
from ..local.documents import STATUS_PATH, Status, read

_ASK_SECONDS = 5.0  # for an answer that needs no work
_WORK_SECONDS = 600.0  # for one that does, where no signs of life come
_CONNECT_SECONDS = 5.0
_LEAST_SILENCE_SECONDS = 30.0
_MOST_ANSWER_BYTES = 256 << 20
_MOST_LINE_BYTES = 4 << 20
_LOOPBACK = ("localhost", "127.0.0.1", "::1")

# Faults of the server and not of what was asked: another that answers, or a model loaded here, may do it.
_ITS_OWN = frozenset({"ClosedError", "BusyError", "OverloadedError", "DeadlineError", "MemoryBudgetError"})
_ITS_OWN_KINDS = frozenset({"internal", "rate_limited", "unavailable", "timeout", "unauthorized", "forbidden"})

Row = dict[str, Any]


class Link:
    """Asks one server. Close it at the end."""

    def __init__(self, client: httpx2.Client, what: str, folder: place.Folder | None = None) -> None:
        """`what` it is called in messages; `folder`: the socket's, closed with it."""
        self.what = what
        self.life_seconds = 0.0  # between signs of life, once the server said so
        self._client = client
        self._folder = folder

    @classmethod
    def own(cls) -> Link | None:
        """To this user's server on this machine; None: none runs. Raises ServerError for one that cannot be used."""
        folder = place.find()
        if folder is None:
            return None
        # No TLS there, and reading its certificates takes 0.2 s.
        transport = httpx2.HTTPTransport(uds=folder.address, verify=False)
        return cls(_client("http://localhost", transport=transport, trust_env=False), "the server here", folder)

    @classmethod
    def to(cls, url: str, key: str | None) -> Link:
        """To the server at an address. Raises UsageError for what is none."""
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"--server {url[:200]!r} is no address: write it as http://127.0.0.1:8417")
        base = f"{parts.scheme}://{parts.netloc}{parts.path}".rstrip("/").removesuffix("/v1")
        headers = {"authorization": f"Bearer {key}"} if key else {}
        is_near = parts.hostname in _LOOPBACK
        return cls(_client(base, headers=headers, trust_env=not is_near), f"the server at {base}")

    def close(self) -> None:
        """Ends what runs over it."""
        self._client.close()
        if self._folder is not None:
            self._folder.close()

    def status(self) -> Status:
        """What is going on there; over the user's own socket only."""
        found = read(Status, self.ask("GET", STATUS_PATH))
        self.life_seconds = found.life_seconds
        return found

    def ask(self, method: str, path: str, body: Row | None = None, *, has_work: bool = False) -> Row:
        """A whole answer. Raises what the server refused it with, and ServerError."""
        with self._begun(method, path, body, _WORK_SECONDS if has_work else _ASK_SECONDS) as response:
            return self._object(self._content(response))

    def lines(self, method: str, path: str, body: Row | None = None) -> Generator[Row, None, None]:
        """The lines of an answer as they come; closing it ends the work for it. Raises as `ask` does."""
        silence = max(_LEAST_SILENCE_SECONDS, 3 * self.life_seconds) if self.life_seconds else _WORK_SECONDS
        with self._begun(method, path, body, silence) as response:
            waiting = bytearray()
            for part in response.iter_raw():
                waiting += part
                *whole, rest = waiting.split(b"\n")
                for line in whole:
                    if line:
                        row = self._object(line)
                        self._check(row)
                        yield row
                ServerError.when(len(rest) > _MOST_LINE_BYTES, f"{self.what} answers nonsense: a line without an end")
                waiting = rest
            ServerError.when(waiting, f"{self.what} answers nonsense: half a line")

    @contextmanager
    def _begun(
        self, method: str, path: str, body: Row | None, seconds: float
    ) -> Generator[httpx2.Response, None, None]:
        """An answer whose header is good."""
        timeout = httpx2.Timeout(seconds, connect=_CONNECT_SECONDS)
        try:
            with self._client.stream(method, path, json=body, timeout=timeout) as response:
                if response.status_code != 200:
                    self._refuse(response)
                yield response
        except httpx2.TimeoutException:
            raise ServerError(f"{self.what} hangs: it said nothing for {seconds:.0f} seconds") from None
        except (httpx2.ConnectError, httpx2.UnsupportedProtocol) as error:
            raise ServerError(f"{self.what} cannot be reached: {str(error)[:200] or 'it is gone'}") from None
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise ServerError(f"{self.what} broke off: {str(error)[:200] or type(error).__name__}") from None

    def _refuse(self, response: httpx2.Response) -> None:
        """Raises what the status means."""
        try:
            row = self._object(self._content(response))
            self._check(row)
        except ServerError:
            if response.status_code not in (404, 405):
                raise
        raise ServerError(f"{self.what} is no Kamado server of this version: it has no {response.url.path}")

    def _content(self, response: httpx2.Response) -> bytes:
        content = bytearray()
        for part in response.iter_raw():
            content += part
            ServerError.when(len(content) > _MOST_ANSWER_BYTES, f"{self.what} answers nonsense: it has no end")
        return bytes(content)

    def _object(self, content: bytes | bytearray) -> Row:
        try:
            found = json.loads(content)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise ServerError(f"{self.what} answers nonsense: {bytes(content[:40])!r}")
        return found

    def _check(self, row: Mapping[str, Any]) -> None:
        """Raises the fault that a row tells of."""
        told = row.get("error")
        if told is not None:
            raise self._fault(told if isinstance(told, Mapping) else {})

    def _fault(self, told: Mapping[str, Any]) -> KamadoError:
        """What the same call would have raised here."""
        message, kind, code = str(told.get("message"))[:2000], told.get("kind"), told.get("code")
        if code in _ITS_OWN or kind in _ITS_OWN_KINDS or kind is None:
            return ServerError(f"{self.what} cannot answer: {message}")
        numbers = told.get("numbers")
        if code == "ContextOverflowError" and isinstance(numbers, Mapping):
            prompt, context = numbers.get("num_prompt_tokens"), numbers.get("context_tokens")
            if isinstance(prompt, int) and isinstance(context, int):
                return ContextOverflowError(prompt, context)
        found = getattr(errors, code, None) if isinstance(code, str) else None
        if isinstance(found, type) and issubclass(found, KamadoError) and found is not ContextOverflowError:
            return found(message)
        return UsageError(message) if kind == "invalid_request" else ServerError(f"{self.what} refuses: {message}")


def _client(base: str, *, headers: Mapping[str, str] | None = None, **more: Any) -> httpx2.Client:
    return httpx2.Client(
        base_url=base, headers={"accept-encoding": "identity", **(headers or {})}, follow_redirects=False, **more
    )


@contextmanager
def own_server() -> Generator[Link, None, None]:
    """The line to this user's server, for commands about it. Raises ServerError when there is none."""
    link = Link.own()
    if link is None:
        raise ServerError("no server of yours runs here: start one with 'kamado serve'")
    with closing(link):
        yield link
