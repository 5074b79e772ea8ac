"""Getting bytes over HTTP: resumable, bounded by the size we expect, checked against a hash before anyone uses them.

A download lives in `NAME.part` until its hash is right, then takes its name by rename. Parts are kept when a try fails
or the user interrupts, and the next try goes on behind them.
"""

from __future__ import annotations

import errno
import hashlib
import re
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from ..errors import DownloadError
from ..files.atomic import put_in_place

if TYPE_CHECKING:
    import httpx2

CHUNK_BYTES = 1 << 20
NUM_TRIES = 4  # in a row without a new byte
FIRST_PAUSE_S = 0.5  # doubled at each further try
DISK_SLACK_BYTES = 64 << 20

Progress = Callable[[int, int], None]


class OfflineError(DownloadError):
    """Nobody answers at the address: no network, a wrong name, a closed port."""


class Meter:
    """Adds up what several downloads have; calls `progress(done, total)`."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.total = total
        self._progress = progress
        self._finished = 0

    def at(self, position: int) -> None:
        """The current file has `position` bytes."""
        if self._progress is not None:
            self._progress(min(self._finished + position, self.total), self.total)

    def finish(self, nbytes: int) -> None:
        """The current file, of `nbytes`, is done."""
        self._finished += nbytes
        self.at(0)


def shown(url: str) -> str:
    """`url` for messages: user, password, query and fragment left out."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def file_hash(path: Path, algorithm: str = "sha256", prefix: bytes = b"") -> str:
    """The hex digest of `prefix` and the file's bytes."""
    digest = hashlib.new(algorithm, prefix)
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def check_disk(directory: Path, nbytes: int, what: str) -> None:
    """Raises DownloadError when `directory`'s disk has less than `nbytes` and some slack free."""
    free = shutil.disk_usage(directory).free
    missing = nbytes + DISK_SLACK_BYTES - free
    if missing > 0:
        raise DownloadError(
            f"{what} needs {(nbytes + DISK_SLACK_BYTES) / 1e9:.2f} GB of disk and {directory} has {free / 1e9:.2f} GB "
            f"free, {missing} bytes too few: make room, or set KAMADO_HOME to a larger disk"
        )


def write_fault(error: OSError, place: Path, missing_bytes: int | None = None) -> DownloadError:
    """What to say when `place` could not be written. `missing_bytes`: what was still to come."""
    if error.errno not in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        return DownloadError(f"{error.filename or place}: {error.strerror or error}")
    folder = place if place.is_dir() else place.parent
    missing = "" if missing_bytes is None else f", {missing_bytes} bytes were still to come"
    return DownloadError(
        f"the disk of {folder} is full{missing}: what has arrived is kept; make room and start again to go on "
        "there, or set KAMADO_HOME to a larger disk"
    )


def network_fault(error: Exception, url: str) -> DownloadError:
    """What to say of an exception of the HTTP client that asked `url`."""
    import httpx2

    reason = " ".join(str(error).split())[:200]
    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
        host = urlsplit(shown(url)).netloc
        return OfflineError(f"no network: {host} cannot be reached ({reason or type(error).__name__})")
    return DownloadError(f"{shown(url)}: {type(error).__name__}: {reason}".rstrip(": "))


def download(
    client: httpx2.Client,
    url: str,
    target: Path,
    *,
    nbytes: int,
    is_right: Callable[[Path], bool],
    headers: Mapping[str, str] | None = None,
    meter: Meter | None = None,
) -> None:
    """Make `target` the `nbytes` bytes of `url`. Keeps `target`.part for the next try when it fails.

    `is_right` checks the whole file; one wrong result throws the part away and starts over (a stale part), the second
    is a DownloadError. So is every network fault that lasts.
    """
    part = target.with_name(target.name + ".part")
    for is_last in (False, True):
        was_resumed = part.exists() and part.stat().st_size > 0
        _complete(client, url, part, nbytes, headers or {}, meter)
        if is_right(part):
            put_in_place(part, target)
            return
        part.unlink()
        if is_last or not was_resumed:
            raise DownloadError(
                f"{shown(url)}: what arrived has another hash than the pinned one: not used. "
                "The server or something on the way changed the file"
            )


def _complete(
    client: httpx2.Client, url: str, part: Path, nbytes: int, headers: Mapping[str, str], meter: Meter | None
) -> None:
    """Extend `part` to exactly `nbytes` bytes."""
    import httpx2

    num_failures, most, fault = 0, 0, ""
    while True:
        have = part.stat().st_size if part.exists() else 0
        if have > nbytes:
            part.unlink()
            have = 0
        if meter is not None:
            meter.at(have)
        if have == nbytes and part.exists():
            return
        # a server that ignores ranges starts over each time: only bytes beyond the most we ever had are progress
        if num_failures and have > most:
            num_failures = 1
        most = max(most, have)
        if num_failures >= NUM_TRIES:
            raise DownloadError(f"{shown(url)}: {fault}; {have} of {nbytes} bytes are kept, start again to go on")
        if num_failures:
            time.sleep(FIRST_PAUSE_S * 2 ** (num_failures - 1))
        try:
            _stream(client, url, part, have, nbytes, headers, meter)
            fault = "the connection ended early"
        except (httpx2.TransportError, httpx2.DecodingError) as error:
            fault = f"{type(error).__name__}: {error}".rstrip(": ")
        except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError) as error:
            raise DownloadError(f"{shown(url)}: {error}") from error
        except OSError as error:
            have = part.stat().st_size if part.exists() else 0
            raise write_fault(error, part, nbytes - have) from error
        num_failures += 1


def _stream(
    client: httpx2.Client, url: str, part: Path, have: int, nbytes: int, headers: Mapping[str, str], meter: Meter | None
) -> None:
    """One request; what it brings goes behind the `have` bytes there are. DownloadError for answers that will last."""
    asked = {**headers, "Accept-Encoding": "identity"}  # ranges of a compressed answer would be another file's
    if have:
        asked["Range"] = f"bytes={have}-"
    with client.stream("GET", url, headers=asked) as response:
        status = response.status_code
        if status == 416:
            part.unlink(missing_ok=True)
            return
        if status in (408, 429) or status >= 500:
            import httpx2

            raise httpx2.RemoteProtocolError(f"the server answered {status}")
        if status not in (200, 206):
            raise DownloadError(f"{shown(url)}: the server answered {status} {response.reason_phrase}".rstrip())
        if status == 206 and have and not _begins_at(response.headers.get("Content-Range", ""), have):
            raise DownloadError(f"{shown(url)}: the server sent another range than the one asked for")
        position = have if status == 206 else 0
        with open(part, "r+b" if part.exists() else "wb") as file:
            file.seek(position)
            file.truncate()
            for chunk in response.iter_bytes():  # as it comes: what a larger chunk waits for is lost at a break
                if position + len(chunk) > nbytes:
                    raise DownloadError(f"{shown(url)}: the server sends more than the {nbytes} bytes expected")
                file.write(chunk)
                position += len(chunk)
                if meter is not None:
                    meter.at(position)


def _begins_at(content_range: str, position: int) -> bool:
    match = re.match(r"bytes (\d+)-", content_range)
    return match is not None and int(match[1]) == position


def http_client(settings: Mapping[str, Any] | None = None) -> httpx2.Client:
    """A client that follows redirects; `settings` are further arguments of httpx2.Client (verify, proxy)."""
    import httpx2

    options: dict[str, Any] = {
        "follow_redirects": True,
        "timeout": httpx2.Timeout(60.0, connect=15.0),
        "headers": {"User-Agent": "kamado"},
        **(settings or {}),
    }
    return httpx2.Client(**options)
