"""Named conversations that outlive the process: one JSON file each, written whole or not at all, for the user alone,
with a checksum of its content.

The messages are here; what the model computed for them lies in the prefix store, labelled with the conversation, and
may go when room is needed: then it is computed again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ...errors import CorruptFileError, ModelNotFoundError, UsageError
from ...files.atomic import PRIVATE, user_folder, write_atomically
from ..cache import prefix_file
from ..cache.prefix_store import PrefixStore

_log = logging.getLogger("kamado.sessions")

_NAME = re.compile(r"\w[\w .@+-]{0,63}")
_VERSION = 2
_MAX_BYTES = 64 << 20

_TEXTS = ("reasoning", "tool_call_id", "name")  # of a message, beside its role and content
_OF_CALLS = ("id", "name", "arguments")


@dataclass(slots=True)
class Conversation:
    """A named conversation as it is on disk."""

    name: str
    model: str  # the model's name, for people
    messages: list[dict[str, Any]] = field(default_factory=list)  # as `Model.chat` takes them; a system message first
    owner: str = ""  # an API key's name; "" is the local user
    created: str = ""  # ISO 8601, UTC
    updated: str = ""

    @property
    def label(self) -> str:
        """What its entries in the prefix store are marked with."""
        return conversation_label(self.name, self.owner)


def check_name(name: object) -> str:
    """`name` if a conversation may be called so; else UsageError."""
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        raise UsageError(
            f"{name!r} is no name for a session: 1 to 64 letters, digits, spaces and . _ @ + -, a letter or digit first"
        )
    return name


def conversation_label(name: str, owner: str = "") -> str:
    """What entries of the prefix store that belong to a conversation are marked with."""
    return prefix_file.digest(owner.encode(), b"\0", name.encode()).hex()


class ConversationStore:
    """The conversations under one root. Holds no state: any number of processes may use it."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = Path(root or user_folder("data", "sessions")).absolute()

    def load(self, name: str, owner: str = "") -> Conversation | None:
        """The conversation, or None. Raises UsageError for an impossible name, CorruptFileError for a damaged file."""
        path = self._path(name, owner)
        try:
            found = _read(path)
        except FileNotFoundError:
            return None
        if found.name != name or found.owner != owner:
            raise CorruptFileError(f"{path}: it is another conversation's; remove it")
        return found

    def save(self, conversation: Conversation) -> None:
        """Writes the conversation in the place of what was there. Raises OSError."""
        path = self._path(conversation.name, conversation.owner)
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        conversation.created = conversation.created or now
        conversation.updated = now
        document = {"version": _VERSION, **asdict(conversation)}
        document["checksum"] = _checksum(document)
        data = json.dumps(document, ensure_ascii=False, indent=1).encode()
        for directory in (self.root, path.parent):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(path, data, mode=PRIVATE)

    def record(self, name: str, model: str, messages: Sequence[Mapping[str, Any]], owner: str = "") -> None:
        """Makes `messages` the conversation's content, its date of birth kept. Raises as `load` and `save`."""
        found = self.load(name, owner) or Conversation(name, model, owner=owner)
        found.model = model
        found.messages = [_message(m) for m in messages]
        self.save(found)

    def recorder(
        self, name: str, model: str, messages: Sequence[Mapping[str, Any]], owner: str
    ) -> Callable[[Mapping[str, Any]], None]:
        """What is to be called with the answer to `messages`, as far as it came: it records both. A disk that cannot be
        written costs one warning; a question without an answer is not recorded."""
        history = [dict(message) for message in messages]

        def record_answer(answer: Mapping[str, Any]) -> None:
            if not answer["content"] and not answer.get("tool_calls"):
                return
            try:
                self.record(name, model, [*history, answer], owner)
            except OSError as error:
                _log.warning("the session %s could not be kept: %s", name, error)

        return record_answer

    def list(self, owner: str = "") -> list[Conversation]:
        """The owner's conversations, the last used first. Damaged files are passed over."""
        found = []
        for path in self._directory(owner).glob("*.json"):
            with contextlib.suppress(OSError, CorruptFileError):
                found.append(_read(path))
        return sorted(found, key=lambda c: c.updated, reverse=True)

    def remove(self, name: str, owner: str = "") -> None:
        """Forgets the conversation, and what was computed for it. Raises ModelNotFoundError when there is none."""
        try:
            self._path(name, owner).unlink()
        except FileNotFoundError:
            known = ", ".join(c.name for c in self.list(owner)) or "there is none"
            raise ModelNotFoundError(f"no session {name!r}; known sessions: {known}") from None
        PrefixStore().remove_label(conversation_label(name, owner))

    def computed_bytes(self) -> dict[str, int]:
        """What the prefix store holds of conversations, by `Conversation.label`."""
        return PrefixStore().labels()

    def _directory(self, owner: str) -> Path:
        return self.root / (prefix_file.digest(b"owner", owner.encode()).hex() if owner else "local")

    def _path(self, name: str, owner: str) -> Path:
        return self._directory(owner) / f"{quote(check_name(name), safe='')}.json"


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as it is kept: role and content, and what else it has. Raises KeyError, TypeError, AttributeError."""
    kept: dict[str, Any] = {"role": str(message["role"]), "content": str(message.get("content") or "")}
    kept |= {name: str(text) for name in _TEXTS if (text := message.get(name))}
    if calls := message.get("tool_calls"):
        kept["tool_calls"] = [{key: str(call[key]) for key in _OF_CALLS} for call in calls]
    return kept


def _checksum(document: Mapping[str, object]) -> str:
    """Of all values: white space may change, a damaged letter is noticed."""
    return prefix_file.digest(json.dumps(document, sort_keys=True).encode()).hex()


def _read(path: Path) -> Conversation:
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise ValueError(f"more than {_MAX_BYTES} bytes")
        document = json.loads(data)
        if document["version"] != _VERSION:
            raise ValueError(f"version {document['version']!r}, not {_VERSION}")
        if document.pop("checksum") != _checksum(document):
            raise ValueError("the checksum is wrong")
        messages = [_message(m) for m in document["messages"]]
        texts = (str(document[key]) for key in ("owner", "created", "updated"))
        return Conversation(str(document["name"]), str(document["model"]), messages, *texts)
    except FileNotFoundError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptFileError(f"{path}: no session that this version wrote: {error}; remove the file") from None
