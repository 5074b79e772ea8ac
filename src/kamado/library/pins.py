"""What was taken at the first pull of a catalog model: revision and digests, kept in pins.json beside the models.

A catalog entry that lies on a hub has no digest of ours: nobody here could fetch and check it. Its first pull takes the
repository's newest revision and the digests that the hub states, shows them, and once they are agreed to writes them
down. Every later pull of that name asks for that revision and must get these digests.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import CorruptFileError, DownloadError
from ..files.atomic import write_atomically
from .names import MODEL_NAME, SHA256

PINS_FILE = "pins.json"
MAX_BYTES = 16 << 20
_COMMIT = re.compile(r"[0-9a-f]{40,64}")

# catalog: the bytes are pinned by the catalog itself; lock: by an earlier pull; new: taken now; none: the name follows
# a branch of a repository, as `hf:` names do.
PinState = Literal["catalog", "lock", "new", "none"]


@dataclass(frozen=True, slots=True)
class Pin:
    """What one name is held to."""

    source: str  # hf:OWNER/REPO[:FILE or QUANT]
    revision: str  # the commit
    sha256: Mapping[str, str]  # by path in the repository
    date: str  # ISO 8601, UTC


@dataclass(frozen=True, slots=True)
class Offer:
    """What a pull would fetch, for the one who agrees to it or not. `files` are (path, sha256 or "" for small ones)."""

    name: str
    nbytes: int
    license: str
    source: str
    pin: PinState
    revision: str = ""
    files: tuple[tuple[str, str], ...] = ()
    expected_from: str = ""  # who else states these digests
    warning: str = ""  # why the digests may be wrong


Agree = Callable[[Offer], bool]


class Pins:
    """pins.json of one store."""

    def __init__(self, root: Path) -> None:
        self.path = root / PINS_FILE

    def read(self) -> dict[str, Pin]:
        """All pins by model name. Raises CorruptFileError for a file that is none of ours."""
        try:
            with open(self.path, "rb") as file:
                data = file.read(MAX_BYTES + 1)
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise CorruptFileError(f"{self.path}: cannot be read: {error.strerror or error}") from None
        try:
            if len(data) > MAX_BYTES:
                raise ValueError(f"more than {MAX_BYTES} bytes")
            return {str(name): _pin(name, pin) for name, pin in json.loads(data)["pins"].items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CorruptFileError(
                f"{self.path}: damaged: {' '.join(str(error).split())[:200]}; mend it, or remove it and pull again, "
                "which takes revisions and digests anew"
            ) from None

    def get(self, name: str) -> Pin | None:
        """The pin of a name."""
        return self.read().get(name)

    def put(self, name: str, source: str, revision: str, sha256: Mapping[str, str]) -> Pin:
        """Writes a pin, in the place of an older one. The caller holds `Store.changing`. Raises OSError."""
        pin = Pin(source, revision, dict(sha256), time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
        pins = {**self.read(), name: pin}
        document = {
            "version": 1,
            "pins": {
                key: {"source": one.source, "revision": one.revision, "sha256": dict(one.sha256), "date": one.date}
                for key, one in sorted(pins.items())
            },
        }
        write_atomically(self.path, json.dumps(document, indent=1), "\n")
        return pin

    def check(self, name: str, pin: Pin, revision: str, sha256: Mapping[str, str]) -> None:
        """Raises DownloadError when what a hub offers is not what was pinned; the message says what to do."""
        for path in sorted({*pin.sha256, *sha256}):
            was, now = pin.sha256.get(path, "not there"), sha256.get(path, "not there")
            if was != now:
                raise DownloadError(
                    f"{name}: {path} was pinned on {pin.date[:10]} with sha256 {was}, and {pin.source} now offers "
                    f"{now}: nothing was fetched. If you trust the new file, take it with: kamado pull --repin {name}"
                )
        if revision != pin.revision:
            raise DownloadError(
                f"{name}: revision {pin.revision} was pinned on {pin.date[:10]}, and {pin.source} answered with "
                f"{revision}: nothing was fetched. If you trust that, take it with: kamado pull --repin {name}"
            )


def _pin(name: object, data: Mapping[str, object]) -> Pin:
    source, revision, date, sha256 = data["source"], data["revision"], data["date"], data["sha256"]
    if not isinstance(name, str) or MODEL_NAME.fullmatch(name) is None:
        raise ValueError(f"{str(name)[:80]!r} is no model's name")
    if not isinstance(source, str) or not isinstance(date, str) or len(source) > 400 or len(date) > 40:
        raise ValueError(f"the pin of {name} has no source and date")
    if not isinstance(revision, str) or _COMMIT.fullmatch(revision) is None:
        raise ValueError(f"the pin of {name} has no revision")
    if not isinstance(sha256, dict) or not all(isinstance(d, str) and SHA256.fullmatch(d) for d in sha256.values()):
        raise ValueError(f"the pin of {name} has no digests")
    return Pin(source, revision, {str(path): digest for path, digest in sha256.items()}, date)
