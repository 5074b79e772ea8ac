"""What a hub says of its models: one repository at one revision, and a search. Read with bounds, believed in nothing.

The answers come from a server that may be wrong, hostile or something else altogether (a login page of a hotel): size,
time, counts, lengths and types are checked before anything is used, and what does not fit is one sentence.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from ..errors import DownloadError, ModelNotFoundError, UsageError
from .fetch import OfflineError, http_client, network_fault, shown
from .names import REPO, SHA256

PUBLIC_HUB = "https://huggingface.co"
MAX_ANSWER_BYTES = 32 << 20
MAX_ANSWER_S = 120.0
MAX_FILES = 20_000
MAX_HITS = 100
_COMMIT = re.compile(r"[0-9a-f]{40,64}")
_GIT_ID = re.compile(r"[0-9a-f]{40}")
_ON = frozenset({"1", "on", "yes", "true"})


@dataclass(frozen=True, slots=True)
class Hit:
    """One repository that a search found. Empty texts and 0 mean unknown."""

    repo: str
    downloads: int
    likes: int
    license: str
    architecture: str  # of its GGUF files
    parameters: int
    context: int
    is_gated: bool
    updated: str  # YYYY-MM-DD


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file of a repository at one commit."""

    path: str
    nbytes: int
    sha256: str | None  # of large files
    git_id: str | None  # git's hash of small ones


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository at one commit."""

    repo: str
    commit: str
    license: str  # "" when it states none
    files: tuple[RemoteFile, ...]


def endpoint() -> str:
    """The hub that is asked: HF_ENDPOINT, else the public one."""
    return (os.environ.get("HF_ENDPOINT") or PUBLIC_HUB).rstrip("/")


def headers() -> dict[str, str]:
    """The user's token, if there is one, and who asks."""
    from huggingface_hub.utils._headers import build_hf_headers

    return build_hf_headers()


def repository(repo: str, revision: str | None) -> Repository:
    """What the hub says of a repository. Raises ModelNotFoundError, DownloadError, UsageError, OfflineError."""
    where = f"/api/models/{repo}" + (f"/revision/{_quoted(revision)}" if revision else "")
    answer = _ask(where, {"blobs": "true"}, repo, revision)
    if not isinstance(answer, dict):
        raise _nonsense("a repository")
    commit, siblings = answer.get("sha"), answer.get("siblings")
    if not isinstance(commit, str) or _COMMIT.fullmatch(commit) is None:
        raise DownloadError(f"{repo}: the hub did not say which commit this revision is")
    if not isinstance(siblings, list) or len(siblings) > MAX_FILES:
        raise _nonsense("a repository's files")
    files = [_remote_file(sibling) for sibling in siblings]
    return Repository(repo, commit, _license(answer), tuple(file for file in files if file is not None))


def find(words: Sequence[str], limit: int = 20) -> list[Hit]:
    """Repositories with GGUF files that fit `words`, those that are fetched most first. Raises as `repository`."""
    query = " ".join(words).strip()
    if not query or len(query) > 200:
        raise UsageError("a search has one to 200 characters")
    limit = min(max(limit, 1), MAX_HITS)
    wanted = ["downloads", "gated", "gguf", "lastModified", "likes", "tags"]
    options: dict[str, str | list[str]] = {
        "search": query,
        "filter": "gguf",
        "sort": "downloads",
        "limit": str(limit),
        "expand": wanted,
    }
    answer = _ask("/api/models", options, query, None)
    if not isinstance(answer, list):
        raise _nonsense("a search")
    hits = [_hit(item) for item in answer[:limit]]
    return [hit for hit in hits if hit is not None]


def _ask(path: str, params: Mapping[str, str | list[str]], what: str, revision: str | None) -> Any:
    """The JSON document at `path` of the hub."""
    import httpx2

    if any(os.environ.get(name, "").lower() in _ON for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")):
        raise OfflineError("HF_HUB_OFFLINE is set, so the hub is not asked")
    hub = endpoint()
    if urlsplit(hub).scheme not in ("http", "https"):
        raise UsageError(f"HF_ENDPOINT is {hub[:200]!r}: it is the address of a hub, such as {PUBLIC_HUB}")
    try:
        with http_client() as client, client.stream("GET", hub + path, params=params, headers=headers()) as response:
            if response.status_code != 200:
                raise _refusal(response.status_code, response.headers, hub, what, revision)
            body, end = bytearray(), time.monotonic() + MAX_ANSWER_S
            for chunk in response.iter_bytes():
                body += chunk
                if len(body) > MAX_ANSWER_BYTES or time.monotonic() > end:
                    raise DownloadError(
                        f"{shown(hub)}: an answer of more than {MAX_ANSWER_BYTES >> 20} MiB or {MAX_ANSWER_S:.0f} s: "
                        "not used"
                    )
        return json.loads(bytes(body))
    except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError) as error:
        raise network_fault(error, hub) from None
    except (ValueError, RecursionError):
        raise _nonsense("JSON") from None


def _refusal(
    status: int, answered: Mapping[str, str], hub: str, what: str, revision: str | None
) -> DownloadError | ModelNotFoundError:
    code = answered.get("X-Error-Code", "")
    if code == "GatedRepo":
        return DownloadError(
            f"{what} asks for its terms to be accepted on its page first; then set HF_TOKEN and pull again"
        )
    if code == "RevisionNotFound":
        return ModelNotFoundError(f"{what} has no revision {revision!r}")
    if code == "RepoNotFound" or status in (401, 404):
        return ModelNotFoundError(f"{what} is not on {shown(hub)}, or private: then set HF_TOKEN")
    reason = f": {_line(answered.get('X-Error-Message', ''))}".rstrip(": ")
    kind = {400: "Bad request, ", 429: "asked too often, try again later, "}.get(status, "")
    return DownloadError(f"{shown(hub)}: {kind}the hub answered {status}{reason}")


def _nonsense(what: str) -> DownloadError:
    return DownloadError(
        f"{shown(endpoint())} answered with something that is not {what}: is that address a hub (HF_ENDPOINT), and "
        "does the network ask for a login first?"
    )


def _remote_file(sibling: object) -> RemoteFile | None:
    """A file of a repository; None for one whose name, size or hash is none."""
    if not isinstance(sibling, dict):
        return None
    path, size, git_id, lfs = (sibling.get(key) for key in ("rfilename", "size", "blobId", "lfs"))
    if not isinstance(path, str) or not 0 < len(path) <= 1000 or type(size) is not int or not 0 <= size <= 1 << 50:
        return None
    sha256 = lfs.get("sha256") if isinstance(lfs, dict) else None
    if sha256 is not None and not (isinstance(sha256, str) and SHA256.fullmatch(sha256)):
        return None
    is_id = isinstance(git_id, str) and _GIT_ID.fullmatch(git_id) is not None
    return RemoteFile(path, size, sha256, git_id if is_id else None)


def _hit(item: object) -> Hit | None:
    """One line of a search; None for what is no repository."""
    if not isinstance(item, dict):
        return None
    repo = item.get("id")
    if not isinstance(repo, str) or REPO.fullmatch(repo) is None:
        return None
    gguf = item.get("gguf")
    gguf = gguf if isinstance(gguf, dict) else {}
    architecture, updated = gguf.get("architecture"), item.get("lastModified")
    return Hit(
        repo=repo,
        downloads=_count(item.get("downloads")),
        likes=_count(item.get("likes")),
        license=_license(item),
        architecture=_line(architecture, 40) if isinstance(architecture, str) else "",
        parameters=_count(gguf.get("total")),
        context=_count(gguf.get("context_length")),
        is_gated=item.get("gated") not in (None, False),
        updated=updated[:10] if isinstance(updated, str) and re.match(r"\d{4}-\d\d-\d\d", updated) else "",
    )


def _license(answer: Mapping[str, Any]) -> str:
    card, tags = answer.get("cardData"), answer.get("tags")
    stated = card.get("license_name") or card.get("license") if isinstance(card, dict) else None
    if isinstance(stated, str) and stated:
        return _line(stated)
    for tag in tags[:1000] if isinstance(tags, list) else ():
        if isinstance(tag, str) and tag.startswith("license:"):
            return _line(tag.removeprefix("license:"))
    return ""


def _count(value: object) -> int:
    return value if type(value) is int and 0 <= value <= 1 << 53 else 0


def _line(text: str, longest: int = 120) -> str:
    return " ".join(text.split())[:longest]


def _quoted(revision: str) -> str:
    from urllib.parse import quote

    return quote(revision, safe="")
