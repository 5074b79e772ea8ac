"""The manual pages: one for each command, everything of --help in it, and no complaint of groff or mandoc."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from pages import ROOT

from kamado.cli.main import COMMANDS, cli

sys.path.insert(0, str(ROOT / "tools"))
import man_pages


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return man_pages.pages()


def plain(text: str) -> str:
    """A page's text as it is read, without roff's signs."""
    text = re.sub(r"^\.[A-Z]+ ?", "", text, flags=re.MULTILINE)
    for sign, char in ((r"\(aq", "'"), (r"\(ga", "`"), (r"\(ha", "^"), (r"\(ti", "~"), (r"\-", "-"), (r"\&", "")):
        text = text.replace(sign, char)
    return " ".join(re.sub(r"\\f[BIR]", "", text).replace(r"\e", "\\").split())


def test_a_page_for_each_command(pages: dict[str, str]) -> None:
    assert set(pages) == {"kamado.1", *(f"kamado-{name}.1" for name in COMMANDS)}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_page_says_what_help_says(name: str, pages: dict[str, str]) -> None:
    text = plain(pages[f"kamado-{name}.1"])
    top = click.Context(cli, info_name="kamado")
    command = cli.get_command(top, name)
    assert command is not None
    context = click.Context(command, info_name=name, parent=top, terminal_width=10_000)
    parts = [command] if not isinstance(command, click.Group) else [command, *command.commands.values()]
    for part in parts:
        for parameter in part.get_params(context):
            record = parameter.get_help_record(context)
            for words in record if record is not None and record[1] else ():
                assert " ".join(words.split()) in text
        for paragraph in man_pages.paragraphs(part.help or ""):
            assert paragraph in text
    assert f"kamado {name}" in text


def test_codes_and_variables_are_those_of_the_page(pages: dict[str, str]) -> None:
    text = plain(pages["kamado-run.1"])
    for words in (
        "the memory budget or the machine is too small",
        "KAMADO_HOME",
        "interrupted by Ctrl-C",
        "no colours",
    ):
        assert words in text


def test_signs_of_roff_in_a_help_text_are_text() -> None:
    assert man_pages.escaped(".x\n'y\\z -a ^~`") == "\\&.x\n\\(aqy\\ez \\-a \\(ha\\(ti\\(ga"


def test_every_page_is_taken_without_a_complaint(pages: dict[str, str], tmp_path: Path) -> None:
    checkers = [
        words for words in (["mandoc", "-Tlint", "-Wwarning"], ["groff", "-man", "-ww", "-z", "-Kutf8"])
        if shutil.which(words[0])
    ]  # fmt: skip
    if not checkers:
        pytest.skip("neither mandoc nor groff is here")
    files = []
    for name, text in pages.items():
        files.append(tmp_path / name)
        files[-1].write_text(text, encoding="utf-8")
    for words in checkers:
        done = subprocess.run([*words, *files], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout + done.stderr) == (0, ""), words[0]
