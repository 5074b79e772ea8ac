"""What a model, a repository, a digest and a file of a model may be called."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from ..errors import UsageError

MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,199}")
REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
SHA256 = re.compile(r"[0-9a-f]{64}")
SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})", re.ASCII)
ENTRY_FILE = "entry.json"  # what the store itself keeps beside a model's files

OUTSIDE = ("ollama:", "lmstudio:", "hfcache:")  # names of what other programs keep, see elsewhere.py


def safe_path(path: str) -> PurePosixPath:
    """`path` if it stays below the directory it is relative to; else UsageError."""
    pure = PurePosixPath(path)
    if (
        not path or pure.is_absolute() or ".." in pure.parts or any(c in path for c in "\\:\0")
        or pure.name == ENTRY_FILE
    ):  # fmt: skip
        raise UsageError(f"{path[:200]!r} is no file name that a model may have")
    return pure
