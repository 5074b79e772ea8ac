"""Streams one answer to stdout; `run` and `chat` share it."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING

import click

from .markdown import Page
from .terminal import columns_of, format_seconds, has_styles, is_moving, is_tty, printable
from .waiting import Waiting

if TYPE_CHECKING:
    from .. import Usage
    from .connection import Pieces


class Answer:
    """The text of an answer as far as it came, up to date also when Ctrl-C ends it."""

    def __init__(self) -> None:
        self.text = ""
        self.finish_reason: str | None = None
        self._is_shown_to_person = False

    def stream(self, pieces: Pieces, *, is_formatted: bool = True) -> None:
        """Writes the pieces to stdout as they come, and a line end after them. The work is cancelled when this is left.

        On a terminal, control characters of the model's are left out, lines are wrapped between words, and light
        Markdown is shown, unless it is not `is_formatted`: what is no prose. A pipe gets every byte and nothing else.
        """
        page = None
        if is_formatted and is_moving(sys.stdout):
            page = Page(partial(columns_of, sys.stdout), has_styles=has_styles(sys.stdout))
        self._is_shown_to_person = is_tty(sys.stdout)
        with Waiting(pieces) as waiting:
            try:
                for piece in pieces:
                    waiting.close()
                    self.text += piece.text
                    self.finish_reason = piece.finish_reason
                    if not piece.text:
                        continue
                    text = printable(piece.text) if self._is_shown_to_person else piece.text
                    click.echo(text if page is None else page.push(text), nl=False)
            except BaseException:
                waiting.close()
                self._end(page, is_whole=False)
                raise
            finally:
                waiting.close()
                pieces.close()
        self._end(page, is_whole=True)

    def _end(self, page: Page | None, *, is_whole: bool) -> None:
        """What was held, and the end of the line: also of an answer that broke off, if a person is to read on."""
        if page is not None:
            click.echo(page.finish(), nl=False)
        if not self.text.endswith("\n") and (is_whole or (self.text and self._is_shown_to_person)):
            click.echo()


def summary(usage: Usage) -> str:
    """One line for --stats."""
    reused = f" ({usage.num_reused_tokens} reused)" if usage.num_reused_tokens else ""
    return (
        f"prompt {usage.num_prompt_tokens} tokens{reused} in {format_seconds(usage.prefill_seconds)}, "
        f"{usage.prefill_tokens_per_second:.1f} tokens/s; answer {usage.num_generated_tokens} tokens in "
        f"{format_seconds(usage.decode_seconds)}, {usage.decode_tokens_per_second:.1f} tokens/s"
    )
