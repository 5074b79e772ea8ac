"""`kamado history`: the prompts and answers that were kept."""

from __future__ import annotations

import click

from .prompt_log import Entry, PromptLog
from .terminal import echo, echo_json, echo_table, note, one_line, styled

_SHOWN = 44  # letters of a prompt and of an answer in the table


@click.command("history")
@click.argument("word", required=False)
@click.option(
    "--number", "-n", type=click.IntRange(min=1), default=20, show_default=True, metavar="N", help="How many."
)
@click.option("--full", is_flag=True, help="Print prompts and answers whole.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, prompts and answers whole.")
@click.option("--clear", is_flag=True, help="Forget everything that was kept.")
def command(word: str | None, number: int, full: bool, as_json: bool, clear: bool) -> None:
    """List what was asked and answered, the latest first; with WORD only what has it in prompt or answer.

    Nothing is kept unless --log is given or log_prompts = true is set ('kamado config set log_prompts true').
    """
    log = PromptLog()
    if clear:
        if word is not None:
            raise click.UsageError("--clear forgets everything: leave out the word")
        count = log.clear()
        echo(f"forgot {count} {'answer' if count == 1 else 'answers'}")
        return
    entries = log.find(word, number)
    if as_json:
        echo_json([entry.as_json() for entry in entries])
    elif not entries:
        found = f"nothing that was kept has {word!r}" if word is not None else "nothing was kept yet"
        note(f"{found}: keep answers with --log, or all with 'kamado config set log_prompts true'")
    elif full:
        for entry in reversed(entries):
            _print(entry)
    else:
        rows = [
            (e.id, e.at.replace("T", " ").rstrip("Z"), e.model, _short(e.prompt), _short(e.answer)) for e in entries
        ]
        echo_table(("id", "time (UTC)", "model", "prompt", "answer"), rows, right=(0,))


def _print(entry: Entry) -> None:
    where = f", session {entry.session}" if entry.session else ""
    echo(styled(f"{entry.id}  {entry.at}  {one_line(entry.model)}{one_line(where)}", bold=True))
    echo(styled(f"> {entry.prompt}", dim=True))
    echo(f"{entry.answer}\n")


def _short(text: str) -> str:
    line = " ".join(one_line(text[: 4 * _SHOWN]).split())
    return line if len(line) <= _SHOWN else line[: _SHOWN - 1] + "…"
