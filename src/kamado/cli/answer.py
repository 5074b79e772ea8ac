"""Streams one answer to stdout; `run` and `chat` share it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from .terminal import format_seconds, is_tty, printable

if TYPE_CHECKING:
    from .. import Usage
    from .connection import Pieces


class Answer:
    """The text of an answer as far as it came, up to date also when Ctrl-C ends it."""

    def __init__(self) -> None:
        self.text = ""
        self.finish_reason: str | None = None

    def stream(self, pieces: Pieces) -> None:
        """Writes the pieces to stdout as they come, and a line end after them. The work is cancelled when this is left.

        On a terminal, control characters of the model's are left out; a pipe gets every byte.
        """
        shown_to_person = is_tty(sys.stdout)
        try:
            for piece in pieces:
                self.text += piece.text
                self.finish_reason = piece.finish_reason
                if piece.text:
                    click.echo(printable(piece.text) if shown_to_person else piece.text, nl=False)
        finally:
            pieces.close()
        if not self.text.endswith("\n"):
            click.echo()


def summary(usage: Usage) -> str:
    """One line for --stats."""
    reused = f" ({usage.num_reused_tokens} reused)" if usage.num_reused_tokens else ""
    return (
        f"prompt {usage.num_prompt_tokens} tokens{reused} in {format_seconds(usage.prefill_seconds)}, "
        f"{usage.prefill_tokens_per_second:.1f} tokens/s; answer {usage.num_generated_tokens} tokens in "
        f"{format_seconds(usage.decode_seconds)}, {usage.decode_tokens_per_second:.1f} tokens/s"
    )
