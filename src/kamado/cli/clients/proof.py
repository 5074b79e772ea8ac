"""One real request to a server, as another program makes it, its answer read as that program would.

Nothing that comes back is believed: bytes, lines and time are bounded, every event must be what the protocol says, and
whatever is not is a ServerError of one sentence.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...errors import ServerError
from .programs import Program, Target

if TYPE_CHECKING:
    import httpx2

MAX_BYTES = 4 << 20
MAX_MODELS = 10_000
_MAX_LINE = 512 << 10
_CONNECT_SECONDS = 5.0
_MAX_ANSWER = 32  # tokens
_SHOWN = 200  # letters of what a server says
_QUESTION = "Answer with one word: which planet do we live on?"
_TOOL = {
    "name": "get_time",
    "description": "The time of day in a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


@dataclass(frozen=True, slots=True)
class Served:
    """A model that a server lists."""

    name: str
    context: int | None
    is_loaded: bool
    capabilities: tuple[str, ...] = ()


@dataclass(slots=True)
class Proof:
    """What came back."""

    endpoint: str
    seconds: float = 0.0
    num_events: int = 0
    text: str = ""
    thought: str = ""
    tools: list[str] = field(default_factory=list)  # names of those that were called
    is_finished: bool = False  # the answer said why it ended
    is_ended: bool = False  # and the stream that it did


class Connection:
    """Requests to one server. A context manager."""

    def __init__(self, url: str, key: str | None, *, seconds: float, client: httpx2.Client | None = None) -> None:
        """`seconds`: for everything together."""
        import httpx2

        self.url = url
        self._until = time.monotonic() + seconds
        self._seconds = seconds
        self._key = key
        # Proxies of the environment are no way to a server that may be on this very machine.
        self._client = client or httpx2.Client(
            timeout=httpx2.Timeout(seconds, connect=_CONNECT_SECONDS), follow_redirects=False, trust_env=False
        )

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def models(self) -> list[Served]:
        """What the server lists. Raises ServerError."""
        with self._asked("GET", "/v1/models", {"Authorization": f"Bearer {self._key}"} if self._key else {}) as pieces:
            document = _object(b"".join(pieces), "its list of models")
        entries = document.get("data")
        if not isinstance(entries, list):
            raise ServerError(f"{self.url} lists no models at /v1/models: it is no OpenAI-compatible server")
        found = []
        for entry in entries[:MAX_MODELS]:
            if not isinstance(entry, dict) or not isinstance(entry.get("id"), str):
                raise ServerError(f"{self.url} lists a model without an id")
            context = entry.get("context_length")
            is_number = isinstance(context, int) and not isinstance(context, bool) and context > 0
            able = entry.get("capabilities")
            names = tuple(map(str, able)) if isinstance(able, list) else ()
            found.append(Served(entry["id"], context if is_number else None, entry.get("is_loaded") is True, names))
        return found

    def prove(self, program: Program, target: Target) -> Proof:
        """Asks as `program` does, with a stream, and a tool where it offers some. Raises ServerError."""
        path, body, headers, take = _REQUESTS[program.protocol](target, program.has_tools)
        proof = Proof(path)
        began = time.monotonic()
        with self._asked("POST", path, headers, body) as pieces:
            for name, data in _events(pieces):
                proof.num_events += 1
                take(proof, name, data)
                if proof.is_ended:
                    break
        proof.seconds = round(time.monotonic() - began, 3)
        if not proof.is_ended:
            raise ServerError(f"{path} ended its stream in the middle: after {proof.num_events} events")
        if not proof.is_finished:
            raise ServerError(f"{path} ended its stream without saying why the answer ended")
        if not (proof.text or proof.thought or proof.tools):
            raise ServerError(f"{path} answered with nothing: no text and no call of a tool")
        return proof

    @contextmanager
    def _asked(
        self, method: str, path: str, headers: Mapping[str, str], body: Mapping[str, Any] | None = None
    ) -> Iterator[Iterator[bytes]]:
        """The body of an answer in pieces. Raises ServerError for a status that is no success, and while it is read."""
        import httpx2

        own = {"User-Agent": "kamado-connect", "Accept-Encoding": "identity"}
        try:
            with self._client.stream(method, self.url + path, headers={**own, **headers}, json=body) as response:
                pieces = self._pieces(response, path)
                self._check(response.status_code, path, pieces)
                yield pieces
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError) as error:
            raise self._fault(error, path) from None

    def _check(self, status: int, path: str, pieces: Iterator[bytes]) -> None:
        if status == 200:
            return
        said = _message(b"".join(pieces))
        where = f"{path} answered {status}"
        if status in (401, 403):
            raise ServerError(f"{where}: it needs another API key (--api-key, or KAMADO_API_KEY): {said}")
        if 300 <= status < 400:
            raise ServerError(f"{where}, a redirect: give the address itself with --server")
        raise ServerError(f"{where}: {said}")

    def _pieces(self, response: httpx2.Response, path: str) -> Iterator[bytes]:
        count = 0
        for piece in response.iter_raw():  # nothing is unpacked: no encoding was asked for
            count += len(piece)
            if count > MAX_BYTES:
                raise ServerError(f"{path} answered with more than {MAX_BYTES >> 20} MiB")
            if time.monotonic() > self._until:
                raise ServerError(f"{path} did not end its answer within {self._seconds:g} s")
            yield piece

    def _fault(self, error: Exception, path: str) -> ServerError:
        import httpx2

        if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
            return ServerError(f"no server answers at {self.url}: start one with 'kamado serve MODEL'")
        if isinstance(error, httpx2.TimeoutException):
            return ServerError(f"{path} said nothing for {self._seconds:g} s")
        if isinstance(error, httpx2.HTTPError):
            return ServerError(f"{path} broke off its answer: {_short(str(error)) or type(error).__name__}")
        return ServerError(f"{self.url} cannot be asked: {_short(str(error))}")


def _events(pieces: Iterator[bytes]) -> Iterator[tuple[str, str]]:
    """Server-sent events, (name, data). Raises ServerError for a stream that has none."""
    rest, name, has_any = b"", "", False
    data: list[str] = []
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        if len(rest) > _MAX_LINE:
            raise ServerError(f"a stream was asked for, and one line of it has more than {_MAX_LINE >> 10} KiB")
        for raw in lines:
            line = raw.rstrip(b"\r").decode("utf-8", "replace")
            if not line:
                if data:
                    has_any = True
                    yield name, "\n".join(data)
                name, data = "", []
            elif not line.startswith(":"):
                key, _, value = line.partition(":")
                value = value.removeprefix(" ")
                if key == "data":
                    data.append(value)
                elif key == "event":
                    name = value
                elif not has_any and key not in ("id", "retry"):
                    raise ServerError(f"a stream was asked for, and this came: {_short(line)}")
    if not has_any and (rest or data):
        raise ServerError(f"a stream was asked for, and this came: {_short((rest or b'').decode('utf-8', 'replace'))}")


def _object(data: bytes | str, what: str) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        shown = data.decode("utf-8", "replace") if isinstance(data, bytes) else data
        raise ServerError(f"{what} is no JSON object: {_short(shown) or 'it is empty'}")
    return found


def _message(data: bytes) -> str:
    """What an error says, whichever protocol's."""
    try:
        found: Any = json.loads(data)
        error = found.get("error", found)
        text = error.get("message", error) if isinstance(error, dict) else error
        return _short(str(text))
    except (ValueError, AttributeError, RecursionError):
        return _short(data.decode("utf-8", "replace")) or "and no word"


def _short(text: str) -> str:
    line = " ".join(text[: 4 * _SHOWN].split())
    return line if len(line) <= _SHOWN else line[: _SHOWN - 1] + "…"


def _bearer(target: Target) -> dict[str, str]:
    return {"Authorization": f"Bearer {target.shown_key}"}


def _texts(value: object) -> str:
    return value if isinstance(value, str) else ""


Request = tuple[str, dict[str, Any], dict[str, str], Callable[[Proof, str, str], None]]


def _chat(target: Target, has_tools: bool) -> Request:
    """Open WebUI, VS Code, opencode, aider."""
    body: dict[str, Any] = {
        "model": target.model,
        "messages": [{"role": "user", "content": _QUESTION}],
        "stream": True,
        "max_tokens": _MAX_ANSWER,
    }
    if has_tools:
        body["tools"] = [{"type": "function", "function": _TOOL}]
    return "/v1/chat/completions", body, _bearer(target), _take_chat


def _take_chat(proof: Proof, _name: str, data: str) -> None:
    if data.strip() == "[DONE]":
        proof.is_ended = True
        return
    event = _object(data, "an event of its stream")
    if event.get("error"):
        raise ServerError(f"{proof.endpoint} failed in its stream: {_message(data.encode())}")
    choices = event.get("choices")
    if not isinstance(choices, list):
        raise ServerError(f"{proof.endpoint} sent an event without choices: {_short(data)}")
    for choice in choices:  # none in the event that counts tokens
        delta = choice.get("delta") if isinstance(choice, dict) else None
        if not isinstance(delta, dict):
            raise ServerError(f"{proof.endpoint} sent a choice without a delta: {_short(data)}")
        proof.text += _texts(delta.get("content"))
        proof.thought += _texts(delta.get("reasoning_content")) or _texts(delta.get("reasoning"))
        for call in delta.get("tool_calls") or ():
            function = call.get("function") if isinstance(call, dict) else None
            if not isinstance(function, dict):
                raise ServerError(f"{proof.endpoint} sent a call that is none: {_short(data)}")
            if isinstance(function.get("name"), str):
                proof.tools.append(function["name"])
        proof.is_finished |= isinstance(choice.get("finish_reason"), str)


def _typed_event(proof: Proof, name: str, data: str) -> tuple[str, dict[str, Any]]:
    """An event that says what it is, as those of the responses and messages protocols do."""
    event = _object(data, "an event of its stream")
    kind = event.get("type", name)
    if not isinstance(kind, str) or not kind:
        raise ServerError(f"{proof.endpoint} sent an event without a type: {_short(data)}")
    return kind, event


def _responses(target: Target, has_tools: bool) -> Request:
    """Codex."""
    body: dict[str, Any] = {
        "model": target.model,
        "input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": _QUESTION}]}],
        "stream": True,
        "store": False,
        "max_output_tokens": _MAX_ANSWER,
    }
    if has_tools:
        body["tools"] = [{"type": "function", "strict": False, **_TOOL}]
        body["tool_choice"] = "auto"
    return "/v1/responses", body, _bearer(target), _take_response


def _take_response(proof: Proof, name: str, data: str) -> None:
    kind, event = _typed_event(proof, name, data)
    if kind in ("error", "response.failed"):
        response = event.get("response")
        said = json.dumps(response) if isinstance(response, dict) else data
        raise ServerError(f"{proof.endpoint} failed in its stream: {_message(said.encode())}")
    if kind == "response.output_text.delta":
        proof.text += _texts(event.get("delta"))
    elif kind.startswith("response.reasoning"):
        proof.thought += _texts(event.get("delta"))
    elif kind == "response.output_item.added":
        item = event.get("item")
        if isinstance(item, dict) and item.get("type") == "function_call":
            proof.tools.append(_texts(item.get("name")))
    elif kind in ("response.completed", "response.incomplete"):
        response = event.get("response")
        proof.is_finished = isinstance(response, dict) and isinstance(response.get("output"), list)
        proof.is_ended = True


def _messages(target: Target, has_tools: bool) -> Request:
    """Claude Code."""
    body: dict[str, Any] = {
        "model": target.model,
        "messages": [{"role": "user", "content": [{"type": "text", "text": _QUESTION}]}],
        "stream": True,
        "max_tokens": _MAX_ANSWER,
    }
    if has_tools:
        named = {"name": _TOOL["name"], "description": _TOOL["description"], "input_schema": _TOOL["parameters"]}
        body["tools"] = [named]
    return "/v1/messages", body, {**_bearer(target), "anthropic-version": "2023-06-01"}, _take_message


def _take_message(proof: Proof, name: str, data: str) -> None:
    kind, event = _typed_event(proof, name, data)
    if kind == "error":
        raise ServerError(f"{proof.endpoint} failed in its stream: {_message(data.encode())}")
    if kind == "content_block_start":
        block = event.get("content_block")
        if not isinstance(block, dict):
            raise ServerError(f"{proof.endpoint} sent a block that is none: {_short(data)}")
        if block.get("type") == "tool_use":
            proof.tools.append(_texts(block.get("name")))
    elif kind == "content_block_delta":
        delta = event.get("delta")
        if not isinstance(delta, dict):
            raise ServerError(f"{proof.endpoint} sent a delta that is none: {_short(data)}")
        proof.text += _texts(delta.get("text"))
        proof.thought += _texts(delta.get("thinking"))
    elif kind == "message_delta":
        delta = event.get("delta")
        proof.is_finished |= isinstance(delta, dict) and isinstance(delta.get("stop_reason"), str)
    elif kind == "message_stop":
        proof.is_ended = True


_REQUESTS: Mapping[str, Callable[[Target, bool], Request]] = {
    "chat": _chat,
    "responses": _responses,
    "messages": _messages,
}
