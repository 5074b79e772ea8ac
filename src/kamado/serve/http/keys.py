"""API keys: who asks, and what he may do. Only hashes are kept; a key is shown once, when it is made."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ...errors import UsageError
from ...files.atomic import PRIVATE, write_atomically
from ..scopes import SCOPES, Scope

PREFIX = "kmd-"
MAX_KEY_CHARACTERS = 512
_MIN_KEY_CHARACTERS = 16  # of keys that a person chose: shorter ones can be guessed over a network


@dataclass(frozen=True, slots=True)
class Key:
    """Who asks. `id` is the owner of cached prefixes and stored responses; it is derived from the key's hash."""

    id: str
    name: str
    scopes: frozenset[Scope]

    def may(self, scope: Scope) -> bool:
        """Whether a route of this scope is open to it."""
        return scope == "public" or scope in self.scopes


LOCAL = Key(id="local", name="local", scopes=frozenset(SCOPES))  # whoever reaches a loopback server without keys
NOBODY = Key(id="", name="", scopes=frozenset())  # asked without a key where one is needed


class KeyRing:
    """The keys of one server. Empty: everybody is LOCAL, which app.py allows on loopback only."""

    def __init__(self) -> None:
        self._keys: dict[bytes, Key] = {}  # by sha256 of the key

    def __len__(self) -> int:
        return len(self._keys)

    def __eq__(self, other: object) -> bool:
        return self._keys == other._keys if isinstance(other, KeyRing) else NotImplemented

    __hash__ = None  # type: ignore[assignment] # it changes

    def add(self, key: str, *, name: str = "key", scopes: Iterable[str] = SCOPES) -> Key:
        """Takes a key as it is typed. Raises UsageError for one that is too short, too long or has an odd letter."""
        UsageError.when(
            not _MIN_KEY_CHARACTERS <= len(key) <= MAX_KEY_CHARACTERS or not (key.isascii() and key.isprintable()),
            f"an API key must have {_MIN_KEY_CHARACTERS} to {MAX_KEY_CHARACTERS} printable ASCII characters; "
            "leave it out and one is made",
        )
        UsageError.when(" " in key, "an API key must not contain spaces")
        return self.add_hash(_digest(key).hex(), name=name, scopes=scopes)

    def add_hash(self, sha256: str, *, name: str = "key", scopes: Iterable[str] = SCOPES) -> Key:
        """Takes a key's sha256, 64 hexadecimal digits. Raises UsageError for anything else and for unknown scopes."""
        try:
            digest = bytes.fromhex(sha256)
        except ValueError:
            digest = b""
        UsageError.when(len(digest) != 32, "a key's sha256 must be 64 hexadecimal digits")
        wanted = set(scopes)
        unknown = wanted - set(SCOPES)
        if unknown:
            raise UsageError(f"unknown scope {sorted(unknown)[0]!r}: there are {', '.join(SCOPES)}")
        entry = Key(id=f"key-{digest.hex()[:16]}", name=name, scopes=frozenset(s for s in SCOPES if s in wanted))
        self._keys[digest] = entry
        return entry

    def find(self, key: str | None) -> Key | None:
        """Whose key this is: LOCAL when there are no keys, None when it is not one of ours. Time says nothing of it."""
        if not self._keys:
            return LOCAL
        if key is None or len(key) > MAX_KEY_CHARACTERS:
            return None
        digest = _digest(key)
        found: Key | None = None
        for known, entry in self._keys.items():
            if hmac.compare_digest(known, digest):
                found = entry
        return found

    def load(self, path: Path) -> None:
        """Adds the keys of a file that `save` wrote. A missing file has none. Raises UsageError for a damaged one."""
        try:
            entries = json.loads(path.read_text("utf-8"))
            for entry in entries:
                self.add_hash(str(entry["sha256"]), name=str(entry["name"]), scopes=[str(s) for s in entry["scopes"]])
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError, RecursionError, OSError) as error:
            raise UsageError(f"{path}: no list of API keys: {error}; remove it and a new key is made") from None

    def save(self, path: Path) -> None:
        """Writes hashes, names and scopes, readable by this user only."""
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        text = json.dumps(
            [
                {"sha256": digest.hex(), "name": key.name, "scopes": sorted(key.scopes)}
                for digest, key in self._keys.items()
            ],
            indent=1,
        )
        write_atomically(path, text, "\n", mode=PRIVATE)


def new_key() -> str:
    """A key that nobody can guess: 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
