"""`kamado chat`: a conversation in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import ContextOverflowError, KamadoError
from ..files.atomic import user_folder
from .answer import Answer, summary
from .chat_commands import banner, carry_out, completed, is_command
from .chat_context import WARN_SHARE, Message, how_full, leave_out, room_wanted, why_cut
from .chat_files import Attached, with_files
from .connection import Answering, opened
from .lines import Lines
from .options import SAMPLING_NAMES, answer_options, given, model_argument, typed
from .prompt_log import RecordedModel
from .report import report_stats
from .sessions import complete_session
from .terminal import echo, note, styled

if TYPE_CHECKING:
    from .. import Usage

PROMPT = ">>> "
CONTINUED = "... "
_FENCE = '"""'


@click.command("chat")
@model_argument
@click.option("--system", metavar="TEXT", help="System message.")
@click.option(
    "--session",
    metavar="NAME",
    shell_complete=complete_session,
    help="Keep the conversation under this name, and go on with it if it is there.",
)
@click.option("--pull", is_flag=True, help="Fetch the model first when it is not here.")
@answer_options
def command(
    model: str,
    system: str | None,
    session: str | None,
    pull: bool,
    server: str | None,
    local: bool,
    stats: bool,
    trace: Path | None,
    **values: Any,
) -> None:
    """Talk with MODEL. Ctrl-C stops an answer, Ctrl-D leaves, /help lists the commands.

    With --session the conversation outlives the program, what was computed for it included: 'kamado sessions' lists
    them.
    """
    kept = None if session is None else Kept(typed(session))
    values["trace"] = trace
    with opened(model, values, pull=pull, server=server, local=local, for_chat=True) as answering:
        loaded = RecordedModel.around(answering, "chat") if values["log"] else answering
        Conversation(
            loaded, system=system, sampling=given(values, SAMPLING_NAMES), stats=stats, kept=kept, title=model
        ).run()
        if stats:
            report_stats(loaded)


class Kept:
    """A session on disk, read before the model is loaded so that a wrong name costs no time."""

    def __init__(self, name: str) -> None:
        from .. import ConversationStore

        self.name = name
        self._store = ConversationStore()
        found = self._store.load(name)
        self.messages: list[Message] = [] if found is None else found.messages

    def write(self, model: str, messages: list[Message]) -> None:
        """Makes `messages` the session's content, if they are other ones."""
        if messages != self.messages:
            try:
                self._store.record(self.name, model, messages)
                self.messages = [dict(message) for message in messages]
            except OSError as error:
                note(f"kamado: warning: the session is not kept: {error.strerror or error}")


class Conversation:
    """The messages so far and the loop that adds to them. Commands are in chat_commands.py."""

    def __init__(
        self,
        model: Answering,
        *,
        system: str | None,
        sampling: dict[str, Any],
        stats: bool,
        kept: Kept | None = None,
        title: str = "",
    ) -> None:
        """`title`: what the user called the model."""
        self.model = model
        self.title = title if title in ("", model.name) else f"{title} ({model.name})"
        self.title = self.title or model.name
        self._kept = kept
        self.sampling = sampling
        self.stats = stats
        self.is_formatted = True
        self.system = None if system is None else typed(system)
        self.messages: list[Message] = []  # without the system message
        self.files: list[Attached] = []  # that go with the next question
        self.unanswered: str | None = None  # a question that failed, for /retry
        self.last_usage: Usage | None = None
        self._was_warned = False  # that the context is filling
        if kept is not None and kept.messages:
            self.messages = list(kept.messages)
            if self.messages[0]["role"] == "system":
                first = self.messages.pop(0)["content"]
                self.system = first if self.system is None else self.system
        self._lines = Lines(user_folder("state", "chat-history"), completed)

    def run(self) -> None:
        """Reads and answers until the input ends or /bye."""
        with self._lines.editing():
            if self._lines.is_interactive:
                note(styled(banner(self), sys.stderr, bold=True))
                note('/help lists the commands, Tab completes them; """ begins and ends a text of several lines')
            if self._kept is not None and self.messages:
                note(f"(session {self._kept.name} goes on: {len(self.messages)} messages)")
            while True:
                try:
                    text = self._read()
                    if text is None or (text.strip() and not self._handle(text)):
                        break
                    self._keep()
                except KeyboardInterrupt:
                    note("\n(Ctrl-D or /bye leaves)")
                except KamadoError as error:  # a wrong value or a full context ends no conversation
                    note(f"kamado: error: {' '.join(str(error).split())}")
                    if isinstance(error, ContextOverflowError):
                        note("(/trim forgets the oldest question and its answer, /undo the last, /clear all of them)")

    def _keep(self) -> None:
        if self._kept is not None:
            self._kept.write(self.model.name, [*self.system_messages(), *self.messages])

    def system_messages(self) -> list[Message]:
        """The system message, if there is one."""
        return [{"role": "system", "content": self.system}] if self.system is not None else []

    def count(self, messages: Sequence[Message]) -> int:
        """Tokens of the prompt that these messages make."""
        return len(self.model.encode_chat(messages))

    def _handle(self, text: str) -> bool:
        """Answers a message or carries out a command; False ends the conversation."""
        name, _, rest = text[1:].partition(" ")
        # What is no command and has several lines was pasted: a path or a comment that begins with a slash.
        if text.startswith("/") and (is_command(name) or "\n" not in text):
            return carry_out(self, name, rest.strip())
        try:
            self.answer(with_files(self.files, text))
        finally:
            if self.unanswered is None:  # what was said has them
                self.files.clear()
        return True

    def _read(self) -> str | None:
        """One message, of several lines perhaps; None at the end of the input."""
        line = self._lines.read(PROMPT)
        if line is None:
            return None
        if "\n" in line and not _is_open_fence(line):  # pasted: a message as it is, but for the fence around all of it
            fenced = line.startswith(_FENCE) and line.endswith(_FENCE) and line.count(_FENCE) == 2
            return line.removeprefix(_FENCE).removesuffix(_FENCE).strip("\n") if fenced else line
        if line.startswith(_FENCE):
            lines = [line[len(_FENCE) :]]
            while not lines[-1].rstrip().endswith(_FENCE):
                line = self._lines.read(CONTINUED)
                if line is None:
                    break
                lines.append(line)
            text = "\n".join(lines).rstrip()
            return text.removesuffix(_FENCE).strip("\n")
        lines = [line]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            line = self._lines.read(CONTINUED)
            if line is None:
                break
            lines.append(line)
        return "\n".join(lines)

    def answer(self, text: str) -> None:
        """Streams the answer to `text`. A stopped answer stays in the conversation as far as it came, and so does one
        that a fault ended; a question without an answer is kept for /retry alone."""
        self.unanswered = None
        self.messages.append({"role": "user", "content": text})
        try:
            said = self._stream()
        except BaseException:
            self._take_back(text)
            raise
        if not said:
            self._take_back(text)

    def go_on(self) -> None:
        """Goes on with the last answer, where the model can."""
        self._stream(continue_last=True)

    def _take_back(self, text: str) -> None:
        if self.messages and self.messages[-1]["role"] == "user":
            self.messages.pop()
            self.unanswered = text

    def _stream(self, **how: Any) -> bool:
        """Streams an answer to the messages, with room made for it if that is wanted, and adds it to them. False when
        nothing came."""
        while True:
            try:
                return self._stream_once(**how)
            except ContextOverflowError as error:
                if not self._makes_room(error):
                    raise

    def _stream_once(self, **how: Any) -> bool:
        answer = Answer()
        session: dict[str, Any] = {} if self._kept is None else {"session": self._kept.name}
        usage = None
        try:
            pieces = self.model.chat([*self.system_messages(), *self.messages], **session, **how, **self.sampling)
            try:
                answer.stream(pieces, is_formatted=self.is_formatted)
            finally:
                usage = pieces.usage
                self.last_usage = usage
        except KeyboardInterrupt:
            if not answer.text:
                echo()
            note("(stopped)")
        finally:
            if answer.text:
                # Half a character, where the answer was cut, is nothing to go on from.
                text = answer.text.removesuffix("\ufffd") if answer.finish_reason == "length" else answer.text
                self._add(text, is_more=bool(how))
        if answer.finish_reason is not None and not answer.text:
            note("(the model has nothing to say)")
        if usage is not None:
            self._tell(usage, answer.finish_reason)
        return bool(answer.text)

    def _add(self, text: str, *, is_more: bool) -> None:
        if is_more:
            self.messages[-1] = {"role": "assistant", "content": self.messages[-1]["content"] + text}
        else:
            self.messages.append({"role": "assistant", "content": text})

    def _tell(self, usage: Usage, finish_reason: str | None) -> None:
        """What a person should know after an answer: figures, the limit that cut it, a context that fills."""
        if self.stats:
            note(styled(summary(usage), sys.stderr, dim=True))
        if finish_reason == "length":
            note(styled(why_cut(usage, self.model.context, self.sampling), sys.stderr, dim=True))
        if not self._lines.is_interactive:
            return
        num_tokens = usage.num_prompt_tokens + usage.num_generated_tokens
        is_filling = num_tokens >= WARN_SHARE * self.model.context
        if is_filling and not self._was_warned and finish_reason != "length":
            full = how_full(num_tokens, self.model.context)
            note(styled(f"(the context is filling: {full}; /trim leaves out the oldest)", sys.stderr, fg="yellow"))
        self._was_warned = is_filling

    def _makes_room(self, error: ContextOverflowError) -> bool:
        """Offers a person to leave out the oldest messages, and does so. False: nothing was left out."""
        if not self._lines.is_interactive:
            return False
        room = room_wanted(self.model.context, self.sampling.get("max_tokens"))
        num_oldest = leave_out(self.count, self.system_messages(), self.messages, self.model.context, room)
        if num_oldest is None:
            return False
        many = "message" if num_oldest == 1 else f"{num_oldest} messages"
        question = f"the conversation needs {error.num_prompt_tokens:,} of {error.context_tokens:,} tokens; "
        if not self._lines.agrees(f"{question}leave out the oldest {many}? [Y/n] "):
            return False
        del self.messages[:num_oldest]
        return True


def _is_open_fence(text: str) -> bool:
    """Whether a fence begins with `text` and does not end in it."""
    return text.startswith(_FENCE) and text.count(_FENCE) == 1
