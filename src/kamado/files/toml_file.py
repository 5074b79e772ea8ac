"""Files that a person writes: TOML of a bounded size."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from ..errors import UsageError

MAX_BYTES = 1 << 20


def read_toml(path: Path) -> dict[str, Any]:
    """The document at `path`. Raises UsageError that names it when it is not there, larger than 1 MiB, or no TOML."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        UsageError.when(len(data) > MAX_BYTES, f"{path}: larger than {MAX_BYTES >> 20} MiB")
        return tomllib.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # a number of too many digits is a plain ValueError
        raise UsageError(f"{path}: {error}") from None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
