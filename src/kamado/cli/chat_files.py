"""Text files that go with a question: read once, bounded, and fenced so that the model sees where they end."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from ..errors import UsageError
from .terminal import one_line

MAX_FILE_BYTES = 1 << 20


class Attached(NamedTuple):
    """A file of text."""

    name: str
    text: str

    @property
    def block(self) -> str:
        """What the model reads: the name and the text between fences that do not occur in it."""
        longest = max((len(run) for run in re.findall(r"`{3,}", self.text)), default=2)
        fence = "`" * (longest + 1)
        kind = Path(self.name).suffix.removeprefix(".")
        text = self.text if self.text.endswith("\n") else self.text + "\n"
        return f"{self.name}:\n{fence}{kind if kind.isalnum() else ''}\n{text}{fence}\n"


def attach(path: str) -> Attached:
    """Reads a text file. Raises UsageError, with its name, for what is no file, too long, empty, or no text."""
    file = Path(path).expanduser()
    if file.is_dir():
        raise UsageError(f"{path} is a folder: /file takes one text file")
    if file.exists() and not file.is_file():
        raise UsageError(f"{path} is no file that can be read to its end")
    try:
        with file.open("rb") as source:
            data = source.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    except ValueError:  # a zero byte in the name
        raise UsageError(f"{path!r} is no name of a file") from None
    UsageError.when(len(data) > MAX_FILE_BYTES, f"{path} is longer than {MAX_FILE_BYTES >> 20} MiB: give a part of it")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    UsageError.when("\0" in text, f"{path} is binary or no UTF-8: /file takes text")
    UsageError.when(not text.strip(), f"{path} is empty")
    return Attached(one_line(file.name), text.replace("\r\n", "\n"))


def with_files(files: list[Attached], question: str) -> str:
    """The question below its files."""
    return "\n".join([*(file.block for file in files), question])
