"""Fetching from the Hugging Face Hub, or any server that speaks its protocol (HF_ENDPOINT).

hub_api.py finds the repository, the commit and the files' hashes, huggingface_hub the user's token; the bytes come
through our own resumable download, since the library's (2.4) throws an interrupted file away. The revision is resolved
to a commit first and every file is asked for by that commit, so a push in between cannot mix two versions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from ..errors import DownloadError, ModelNotFoundError, UnsupportedError, UsageError
from .fetch import Meter, Progress, check_disk, download, file_hash, http_client, write_fault
from .hub_api import RemoteFile, Repository, endpoint, headers, repository
from .names import REPO, SHARD, safe_path
from .pins import Agree, Offer, PinState
from .store import Store, StoredFile

DEFAULT_QUANT = "Q4_K_M"
_NAME = re.compile(
    rf"hf:(?P<repo>{REPO.pattern})(?:@(?P<revision>[\w./-]{{1,100}}))?"
    r"(?::(?P<quant>[\w.-]{1,60}|[\w./-]{1,180}\.gguf))?",
    re.ASCII,
)
_DIRECTORY_FILES = frozenset({
    "config.json", "generation_config.json", "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt", "tokenizer.model",
    "chat_template.jinja", "chat_template.json", "modules.json", "sentence_bert_config.json",
    "config_sentence_transformers.json", "1_Pooling/config.json", "2_Normalize/config.json",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class HubName:
    """hf:OWNER/REPO[@REVISION][:QUANT or FILE.gguf], taken apart."""

    repo: str
    revision: str | None = None
    quant: str | None = None

    @property
    def source(self) -> str:
        """The name without the revision."""
        return f"hf:{self.repo}" + (f":{self.quant}" if self.quant else "")

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"hf:{self.repo}{revision}" + (f":{self.quant}" if self.quant else "")


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


def look(wanted: HubName) -> tuple[Repository, list[RemoteFile]]:
    """The repository at the revision, and the files of the model. Raises what `repository` and `choose` raise."""
    found = repository(wanted.repo, wanted.revision)
    return found, choose(wanted, found.files)


def pull_from_hub(wanted: HubName, store: Store, progress: Progress | None = None, agree: Agree | None = None) -> Path:
    """Fetch a model from the hub; see pull.pull(). Its entry records the commit. A branch that moved is fetched anew,
    keeping the files that did not change."""
    found, files = look(wanted)
    name = str(wanted)
    stored = store.get(name)
    if stored is not None and stored.source.get("commit") == found.commit:
        return stored.path
    ask(agree, offer_of(name, wanted.source, found, files, "none"))
    with storing(name, store):
        kept = fetch_files(name, found, files, store, progress)
        return store.add(name, kept, {**source_of(found), "revision": wanted.revision or "main"})


def offer_of(name: str, source: str, found: Repository, files: list[RemoteFile], pin: PinState) -> Offer:
    """What a pull of these files would fetch."""
    total = sum(file.nbytes for file in files)
    listed = tuple((file.path, file.sha256 or "") for file in files)
    return Offer(name, total, found.license, source, pin, found.commit, listed)


def ask(agree: Agree | None, offer: Offer) -> None:
    """Raises DownloadError when whoever is asked does not agree."""
    if agree is not None and not agree(offer):
        raise DownloadError(f"{offer.name} was not fetched: it was declined")


def source_of(found: Repository) -> dict[str, str]:
    """What a stored model keeps of where it came from."""
    stated = {"license": found.license} if found.license else {}
    return {"kind": "hub", "repo": found.repo, "commit": found.commit, **stated}


@contextmanager
def storing(name: str, store: Store) -> Iterator[None]:
    """The lock of one model's pull; what cannot be written is a DownloadError."""
    try:
        with store.lock(name):
            yield
    except OSError as error:
        raise write_fault(error, store.root) from error


def choose(wanted: HubName, files: Iterable[RemoteFile]) -> list[RemoteFile]:
    """The files of one model: a GGUF file, all shards of a split one, or a safetensors directory.

    With a quant: the one GGUF whose name has it. Without: Q4_K_M, else the only GGUF, else the safetensors.
    Raises UsageError listing the choices when several fit, ModelNotFoundError when none does.
    """
    files = list(files)
    models = _gguf_models(files)
    quant = wanted.quant
    if quant is not None and quant.lower() != "safetensors":
        fits = _is_file if quant.endswith(".gguf") else _has_quant
        fitting = [stem for stem in models if fits(stem, quant)]
        if not fitting:
            raise ModelNotFoundError(f"{wanted.repo} has no {quant}; {_choices(models, files)}")
    elif models and quant is None:
        fitting = [stem for stem in models if _has_quant(stem, DEFAULT_QUANT)] or list(models)
    else:
        return _directory_files(wanted, files)
    if len(fitting) > 1:  # "UD-Q4_K_M" is another kind beside "Q4_K_M", and not what was asked for
        plain = [stem for stem in fitting if not re.search(rf"UD-{re.escape(quant or DEFAULT_QUANT)}", stem, re.I)]
        fitting = plain if len(plain) == 1 else fitting
    if len(fitting) > 1:
        raise UsageError(f"{wanted}: several files fit: {_choices({s: models[s] for s in fitting}, files)}")
    shards = models[fitting[0]]
    match = SHARD.fullmatch(Path(shards[0].path).stem)
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
        match = SHARD.fullmatch(stem)
        models.setdefault(match["stem"] if match else stem, []).append(file)
    for stem, parts in models.items():  # where a model is there whole and split, whole
        models[stem] = [file for file in parts if file.path == f"{stem}.gguf"] or parts
    return models


def _is_file(stem: str, file: str) -> bool:
    """Whether `file`, a path in the repository or its last part, is (the first shard of) this model."""
    asked = file.removesuffix(".gguf")
    match = SHARD.fullmatch(asked)
    asked = match["stem"] if match else asked
    return asked in (stem, stem.rpartition("/")[2])


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


def fetch_files(
    name: str, found: Repository, files: list[RemoteFile], store: Store, progress: Progress | None
) -> list[StoredFile]:
    """Brings the files into the store; each is checked against what the hub stated."""
    directory = store.downloads_dir / f"hub-{quote(found.repo, safe='')}-{found.commit}"
    directory.mkdir(parents=True, exist_ok=True)
    known = {f.path: f for f in files if f.sha256 is not None and store.blob(f.sha256).is_file()}
    have = sum(p.stat().st_size for p in directory.iterdir() if p.is_file())
    check_disk(directory, max(0, sum(f.nbytes for f in files if f.path not in known) - have), name)
    meter = Meter(sum(f.nbytes for f in files), progress)
    is_gguf = files[0].path.endswith(".gguf")
    kept, token = [], headers()
    with http_client() as client:
        for file in files:
            # a GGUF may lie in a folder of its repository; in the store it does not
            path = file.path.rpartition("/")[2] if is_gguf else str(safe_path(file.path))
            if file.path in known and file.sha256 is not None:
                kept.append(StoredFile(path, file.sha256, file.nbytes))
            else:
                target = directory / quote(file.path, safe="")
                if not (target.is_file() and _check(file)(target)):
                    url = f"{endpoint()}/{found.repo}/resolve/{found.commit}/{quote(file.path)}"
                    download(client, url, target, nbytes=file.nbytes, is_right=_check(file), headers=token, meter=meter)
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
