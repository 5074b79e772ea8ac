"""Pages of the documentation as tests read them: sections, fenced blocks and the commands in those of a shell."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAST = {"lab-notes.md"}  # tells of what was typed then
SHELLS = ("sh", "bash")


@dataclass(slots=True)
class Block:
    """A fenced block: its language, the line of the page where its text begins, the text."""

    language: str
    line: int
    text: str


@dataclass(slots=True)
class Section:
    """A heading and what stands below it, up to the next one."""

    level: int
    title: str
    prose: list[str] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)


def pages() -> list[str]:
    """README, CONTRIBUTING and the pages of docs/, in both languages."""
    found = [*(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "ja").glob("*.md")]
    names = sorted(path.relative_to(ROOT).as_posix() for path in found if path.name not in PAST)
    return ["README.md", "README.ja.md", "CONTRIBUTING.md", *names]


def pages_with(*languages: str) -> list[str]:
    """Those with a fenced block of one of these languages."""
    return [
        page
        for page in pages()
        if any(block.language in languages for block in blocks((ROOT / page).read_text(encoding="utf-8")))
    ]


def sections(text: str) -> list[Section]:
    """The sections of a page; what stands before the first heading is one of level 0."""
    found = [Section(0, "")]
    block: Block | None = None
    for number, line in enumerate(text.splitlines(), 1):
        if fence := re.match(r"\s*```(\S*)", line):
            if block is None:
                block = Block(fence[1], number + 1, "")
            else:
                found[-1].blocks.append(block)
                block = None
        elif block is not None:
            block.text += f"{line}\n"
        elif heading := re.match(r"(#+) (.*)", line):
            found.append(Section(len(heading[1]), heading[2]))
        else:
            found[-1].prose.append(line)
    assert block is None, f"a block that begins in line {block.line} does not end"
    return found


def blocks(text: str) -> Iterator[Block]:
    """All fenced blocks of a page."""
    for section in sections(text):
        yield from section.blocks


def without_comment(line: str) -> str:
    """A shell's line without the comment at its end; a # inside quotes or a word begins none."""
    quote = ""
    for i, char in enumerate(line):
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char == "#" and (i == 0 or line[i - 1].isspace()):
            return line[:i].rstrip()
    return line.rstrip()


def shell_lines(block: Block) -> Iterator[tuple[int, str]]:
    """(line of the page, command) of a shell block; a line that ends in a backslash goes on in the next."""
    begun, first = "", 0
    for number, line in enumerate(block.text.splitlines(), block.line):
        text = without_comment(line)
        if text.endswith("\\"):
            begun, first = begun + text[:-1] + " ", first or number
            continue
        if whole := (begun + text).strip():
            yield first or number, whole
        begun, first = "", 0
    assert not begun, f"line {first} of the page goes on nowhere"


def commands(page: str) -> Iterator[tuple[int, str]]:
    """(line, command) of every command in the shell blocks of a page, in their order."""
    for block in blocks((ROOT / page).read_text(encoding="utf-8")):
        if block.language in SHELLS:
            yield from shell_lines(block)
