"""Fetching from the Hugging Face Hub, or any server that speaks its protocol (HF_ENDPOINT).

huggingface_hub finds the repository, the commit, the files' hashes and the user's token; the bytes come through our own
resumable download, since the library's (2.4) throws an interrupted file away. The revision is resolved to a commit
first and every file is asked for by that commit, so a push in between cannot mix two versions.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ..errors import DownloadError, ModelNotFoundError, UnsupportedError, UsageError
from .fetch import Meter, Progress, check_disk, download, file_hash, http_client
from .store import Store, StoredFile, safe_path

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

DEFAULT_QUANT = "Q4_K_M"
_NAME = re.compile(
    r"hf:(?P<repo>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@(?P<revision>[\w./-]{1,100}))?(?::(?P<quant>[\w.-]{1,60}))?"
)
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})")
_DIRECTORY_FILES = frozenset({
    "config.json", "generation_config.json", "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt", "tokenizer.model",
    "chat_template.jinja", "chat_template.json", "modules.json", "sentence_bert_config.json",
    "config_sentence_transformers.json", "1_Pooling/config.json", "2_Normalize/config.json",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class HubName:
    """hf:OWNER/REPO[@REVISION][:QUANT], taken apart."""

    repo: str
    revision: str | None = None
    quant: str | None = None

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"hf:{self.repo}{revision}" + (f":{self.quant}" if self.quant else "")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file of a repository at one commit."""

    path: str
    nbytes: int
    sha256: str | None  # of large files
    git_id: str | None  # git's hash of small ones


def parse_name(name: str, *, revision: str | None = None, quant: str | None = None) -> HubName:
    """Take a name apart and join it with the options. UsageError for another form, or when both say different."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise UsageError(
            f"{name!r}: a hub name looks like hf:OWNER/REPO, hf:OWNER/REPO:Q4_K_M or hf:OWNER/REPO@REVISION"
        )
    for option, given in (("revision", revision), ("quant", quant)):
        if given and match[option] and match[option] != given:
            raise UsageError(f"{name} names {option} {match[option]!r} and the option says {given!r}")
    return HubName(match["repo"], revision or match["revision"], quant or match["quant"])


def pull_from_hub(wanted: HubName, store: Store, progress: Progress | None = None) -> Path:
    """Fetch a model from the hub; see pull.pull(). Its entry records the commit. A branch that moved is fetched anew,
    keeping the files that did not change."""
    endpoint, headers, info = _ask(wanted)
    commit = info.sha
    if not commit or re.fullmatch(r"[0-9a-f]{40,64}", commit) is None:
        raise DownloadError(f"{wanted}: the hub did not say which commit this revision is")
    files = choose(wanted, _remote_files(info))
    stored = store.get(str(wanted))
    if stored is not None and stored.source.get("commit") == commit:
        return stored.path
    try:
        with store.lock(str(wanted)):
            kept = _fetch(wanted, endpoint, commit, files, headers, store, progress)
            source = {"kind": "hub", "repo": wanted.repo, "revision": wanted.revision or "main", "commit": commit}
            return store.add(str(wanted), kept, source)
    except OSError as error:
        raise DownloadError(f"{error.filename or store.root}: {error.strerror or error}") from error


def _ask(wanted: HubName) -> tuple[str, dict[str, str], ModelInfo]:
    """(endpoint, request headers with the user's token if there is one, the repository at the revision)."""
    import httpx2
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from huggingface_hub.utils._headers import build_hf_headers

    endpoint = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
    try:
        info = HfApi(endpoint=endpoint).model_info(wanted.repo, revision=wanted.revision, files_metadata=True)
    except GatedRepoError:
        raise DownloadError(
            f"{wanted.repo} asks for its terms to be accepted on its page first; then set HF_TOKEN and pull again"
        ) from None
    except RevisionNotFoundError:
        raise ModelNotFoundError(f"{wanted.repo} has no revision {wanted.revision!r}") from None
    except RepositoryNotFoundError:
        raise ModelNotFoundError(f"{wanted.repo} is not on {endpoint}, or private: then set HF_TOKEN") from None
    except HFValidationError as error:
        raise UsageError(f"{wanted}: {error}") from None
    except OfflineModeIsEnabled:
        raise DownloadError(f"{wanted}: HF_HUB_OFFLINE is set, so the hub is not asked") from None
    except (HfHubHTTPError, httpx2.HTTPError, OSError, ValueError) as error:
        raise DownloadError(f"{endpoint}: {' '.join(str(error).split())[:200] or repr(error)}") from error
    return endpoint, build_hf_headers(), info


def _remote_files(info: ModelInfo) -> list[RemoteFile]:
    out = []
    for sibling in info.siblings or []:
        lfs: Any = sibling.lfs
        if sibling.size is not None:
            out.append(RemoteFile(sibling.rfilename, sibling.size, lfs.sha256 if lfs else None, sibling.blob_id))
    return out


def choose(wanted: HubName, files: Iterable[RemoteFile]) -> list[RemoteFile]:
    """The files of one model: a GGUF file, all shards of a split one, or a safetensors directory.

    With a quant: the one GGUF whose name has it. Without: Q4_K_M, else the only GGUF, else the safetensors.
    Raises UsageError listing the choices when several fit, ModelNotFoundError when none does.
    """
    files = list(files)
    models = _gguf_models(files)
    quant = wanted.quant
    if quant is not None and quant.lower() != "safetensors":
        fitting = [stem for stem in models if _has_quant(stem, quant)]
        if not fitting:
            raise ModelNotFoundError(f"{wanted.repo} has no {quant}; {_choices(models, files)}")
    elif models and quant is None:
        fitting = [stem for stem in models if _has_quant(stem, DEFAULT_QUANT)] or list(models)
    else:
        return _directory_files(wanted, files)
    if len(fitting) > 1:
        raise UsageError(f"{wanted}: several files fit: {_choices({s: models[s] for s in fitting}, files)}")
    shards = models[fitting[0]]
    match = _SHARD.fullmatch(Path(shards[0].path).stem)
    if match is not None and len(shards) != int(match["count"]):
        raise ModelNotFoundError(f"{wanted}: {fitting[0]} has {len(shards)} of its {int(match['count'])} shards")
    return shards


def _gguf_models(files: Iterable[RemoteFile]) -> dict[str, list[RemoteFile]]:
    """Path without shard number and suffix -> files, projectors and matrices for other tools left out."""
    models: dict[str, list[RemoteFile]] = {}
    for file in sorted(files, key=lambda file: file.path):
        if not file.path.endswith(".gguf") or re.search(r"mmproj|imatrix", file.path, re.IGNORECASE):
            continue
        stem = file.path.removesuffix(".gguf")
        match = _SHARD.fullmatch(stem)
        models.setdefault(match["stem"] if match else stem, []).append(file)
    return models


def _has_quant(stem: str, quant: str) -> bool:
    return re.search(rf"(?:^|[-._/]){re.escape(quant)}(?:$|[-./])", stem, re.IGNORECASE) is not None


def _choices(models: Iterable[str], files: Iterable[RemoteFile]) -> str:
    names = sorted(models)
    if any(file.path == "config.json" for file in files) and any(f.path.endswith(".safetensors") for f in files):
        names.append("safetensors")
    return "choose with :QUANT from " + ", ".join(names) if names else "it has no GGUF or safetensors files at all"


def _directory_files(wanted: HubName, files: list[RemoteFile]) -> list[RemoteFile]:
    weights = [f for f in files if re.fullmatch(r"model(-\d{5}-of-\d{5})?\.safetensors", f.path)]
    if not weights or not any(f.path == "config.json" for f in files):
        raise UnsupportedError(f"{wanted.repo}: neither GGUF files nor config.json with model.safetensors are there")
    extra = [f for f in files if f.path in _DIRECTORY_FILES or f.path.startswith("additional_chat_templates/")]
    if whole := [f for f in weights if f.path == "model.safetensors"]:
        weights, extra = whole, [f for f in extra if f.path != "model.safetensors.index.json"]
    return weights + extra


def _fetch(
    wanted: HubName,
    endpoint: str,
    commit: str,
    files: list[RemoteFile],
    headers: dict[str, str],
    store: Store,
    progress: Progress | None,
) -> list[StoredFile]:
    directory = store.downloads_dir / f"hub-{quote(wanted.repo, safe='')}-{commit}"
    directory.mkdir(parents=True, exist_ok=True)
    known = {f.path: f for f in files if f.sha256 is not None and store.blob(f.sha256).is_file()}
    have = sum(p.stat().st_size for p in directory.iterdir() if p.is_file())
    check_disk(directory, max(0, sum(f.nbytes for f in files if f.path not in known) - have), str(wanted))
    meter = Meter(sum(f.nbytes for f in files), progress)
    is_gguf = files[0].path.endswith(".gguf")
    kept = []
    with http_client() as client:
        for file in files:
            # a GGUF may lie in a folder of its repository; in the store it does not
            path = file.path.rpartition("/")[2] if is_gguf else str(safe_path(file.path))
            if file.path in known and file.sha256 is not None:
                kept.append(StoredFile(path, file.sha256, file.nbytes))
            else:
                target = directory / quote(file.path, safe="")
                if not (target.is_file() and _check(file)(target)):
                    url = f"{endpoint}/{wanted.repo}/resolve/{commit}/{quote(file.path)}"
                    download(
                        client, url, target, nbytes=file.nbytes, is_right=_check(file), headers=headers, meter=meter
                    )
                sha256 = file.sha256 or file_hash(target)
                store.adopt(target, sha256)
                kept.append(StoredFile(path, sha256, file.nbytes))
            meter.finish(file.nbytes)
    directory.rmdir()
    return kept


def _check(file: RemoteFile) -> Callable[[Path], bool]:
    """Whether a downloaded file is `file`: size, and the hash that the hub states."""

    def is_right(path: Path) -> bool:
        if path.stat().st_size != file.nbytes:
            return False
        if file.sha256 is not None:
            return file_hash(path) == file.sha256
        if file.git_id is not None:
            return file_hash(path, "sha1", b"blob %d\0" % file.nbytes) == file.git_id
        return True

    return is_right
