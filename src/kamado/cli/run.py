"""`kamado run`: one prompt, one answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..errors import UsageError
from .answer import Answer, summary
from .connection import opened
from .options import SAMPLING_NAMES, answer_options, given, model_argument, read_prompt, typed
from .report import report_stats
from .terminal import note


@click.command("run")
@model_argument
@click.argument("prompt", nargs=-1)
@click.option("--file", "-f", type=click.Path(exists=True, dir_okay=False), help="Read the prompt from a file.")
@click.option("--system", metavar="TEXT", help="System message.")
@click.option("--raw", is_flag=True, help="No chat template: continue the prompt as it is.")
@click.option("--plain", is_flag=True, help="With --raw: special tokens such as <|im_start|> are plain text.")
@click.option("--pull", is_flag=True, help="Fetch the model first when it is not here.")
@answer_options
def command(
    model: str,
    prompt: tuple[str, ...],
    file: str | None,
    system: str | None,
    raw: bool,
    plain: bool,
    pull: bool,
    server: str | None,
    local: bool,
    stats: bool,
    trace: Path | None,
    **values: Any,
) -> None:
    """Answer PROMPT and leave. "-" stands for standard input, which is also read when no prompt is given.

    Nothing is downloaded unless --pull is given.
    """
    if raw and system is not None:
        raise UsageError("--system needs the chat template, --raw switches it off")
    if plain and not raw:
        raise UsageError("--plain goes with --raw: in a conversation, what you write is always plain text")
    text = read_prompt(prompt, file)
    sampling = given(values, SAMPLING_NAMES)
    with opened(model, values | {"trace": trace}, pull=pull, server=server, local=local) as loaded:
        if not raw and not loaded.has_chat_template:
            if system is not None:
                raise UsageError(f"{model} has no chat template, so it has no place for --system")
            note("kamado: note: this model has no chat template; it continues the prompt as plain text")
            raw = True
        if raw:
            pieces = loaded.generate(text, special=not plain, **sampling)
        else:
            messages = [{"role": "user", "content": text}]
            if system is not None:
                messages.insert(0, {"role": "system", "content": typed(system)})
            pieces = loaded.chat(messages, **sampling)
        Answer().stream(pieces)
        if stats:
            note(summary(pieces.usage))
            report_stats(loaded)
