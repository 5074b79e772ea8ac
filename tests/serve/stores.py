"""A model store on disk, filled with small files under the names that a test wants."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from kamado.library.store import Store, StoredFile


def put(home: Path, name: str, file: Path) -> None:
    """Makes a copy of `file` the store's model of this name."""
    store = Store(home)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    store.downloads_dir.mkdir(parents=True, exist_ok=True)
    store.adopt(Path(shutil.copy(file, store.downloads_dir / digest)), digest)
    store.add(name, [StoredFile(file.name, digest, file.stat().st_size)], {"kind": "test"})
