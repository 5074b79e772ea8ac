"""`kamado chat`: a conversation in the terminal."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ..errors import ContextOverflowError, KamadoError, UsageError
from ..files.atomic import user_folder
from ..options import ANSWER_RANGES
from .answer import Answer, summary
from .connection import Answering, opened
from .lines import Lines
from .options import SAMPLING_NAMES, answer_options, given, model_argument, typed
from .report import report_stats
from .sessions import complete_session
from .terminal import echo, note, styled

PROMPT = ">>> "
CONTINUED = "... "
_FENCE = '"""'

Message = dict[str, str]


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
    with opened(model, values, pull=pull, server=server, local=local, for_chat=True) as loaded:
        Conversation(loaded, system=system, sampling=given(values, SAMPLING_NAMES), stats=stats, kept=kept).run()
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
    """The messages so far and the loop that adds to them."""

    def __init__(
        self, model: Answering, *, system: str | None, sampling: dict[str, Any], stats: bool, kept: Kept | None = None
    ) -> None:
        self.model = model
        self._kept = kept
        self.sampling = sampling
        self.stats = stats
        self.system = None if system is None else typed(system)
        self.messages: list[Message] = []  # without the system message
        if kept is not None and kept.messages:
            self.messages = list(kept.messages)
            if self.messages[0]["role"] == "system":
                first = self.messages.pop(0)["content"]
                self.system = first if self.system is None else self.system
        self._lines = Lines(user_folder("state", "chat-history"))
        self._commands: dict[str, tuple[Callable[[str], bool], str]] = {
            "help": (self._help, "show this list"),
            "clear": (self._clear, "forget the conversation"),
            "system": (self._set_system, "TEXT  set the system message; alone: remove it"),
            "set": (self._set, "NAME VALUE  set a sampling option, e.g. temperature 0.2"),
            "undo": (self._undo, "forget the last question and answer"),
            "trim": (self._trim, "forget the oldest question and its answer, for room in the context"),
            "retry": (self._retry, "answer the last question again"),
            "stats": (self._toggle_stats, "show or hide the figures after an answer"),
            "save": (self._save, "FILE  write the conversation as JSON"),
            "load": (self._load, "FILE  go on with a saved conversation"),
            "bye": (self._bye, "leave (as does Ctrl-D)"),
        }

    def run(self) -> None:
        """Reads and answers until the input ends or /bye."""
        with self._lines.editing():
            if self._lines.is_interactive:
                note('/help lists the commands; """ begins and ends a text of several lines')
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
            self._kept.write(self.model.name, [*self._system_messages(), *self.messages])

    def _system_messages(self) -> list[Message]:
        return [{"role": "system", "content": self.system}] if self.system is not None else []

    def _handle(self, text: str) -> bool:
        """Answers a message or carries out a command; False ends the conversation."""
        if not text.startswith("/"):
            self._answer(text)
            return True
        name, _, rest = text[1:].partition(" ")
        name = {"?": "help", "exit": "bye", "quit": "bye"}.get(name, name)
        if name not in self._commands:
            if "\n" in text:  # pasted: a path or a comment that begins with a slash
                self._answer(text)
                return True
            raise UsageError(f"no command /{name}: /help lists them (begin with a space to send the text as it is)")
        return self._commands[name][0](rest.strip())

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

    def _answer(self, text: str) -> None:
        """Streams the answer to `text`. A stopped answer stays in the conversation as far as it came."""
        self.messages.append({"role": "user", "content": text})
        answer = Answer()
        session: dict[str, Any] = {} if self._kept is None else {"session": self._kept.name}
        usage = None
        try:
            pieces = self.model.chat([*self._system_messages(), *self.messages], **session, **self.sampling)
            try:
                answer.stream(pieces)
            finally:
                usage = pieces.usage
        except KeyboardInterrupt:
            echo()
            note("(stopped)")
        except KamadoError:
            self.messages.pop()  # the question was never answered: the next one stands in its place
            raise
        if answer.text:
            self.messages.append({"role": "assistant", "content": answer.text})
        else:
            self.messages.pop()
        if self.stats and usage is not None:
            note(styled(summary(usage), sys.stderr, dim=True))

    def _help(self, _rest: str) -> bool:
        for name, (_, description) in self._commands.items():
            echo(f"  /{name:8}{description}")
        echo('  """       begins and ends a text of several lines; a \\ at the end of a line goes on too')
        return True

    def _clear(self, _rest: str) -> bool:
        self.messages.clear()
        note("(forgotten)")
        return True

    def _set_system(self, rest: str) -> bool:
        self.system = rest or None
        note("(system message set)" if rest else "(no system message)")
        return True

    def _set(self, rest: str) -> bool:
        words = rest.split(maxsplit=1)
        if len(words) != 2 or words[0].replace("-", "_") not in SAMPLING_NAMES:
            names = ", ".join(name for name in SAMPLING_NAMES if name != "logit_bias")
            raise UsageError(f"/set takes one of {names}, and a value")
        name = words[0].replace("-", "_")
        if name == "logit_bias":
            raise UsageError("logit_bias is set on the command line: --logit-bias ID=BIAS")
        if name == "stop":
            self.sampling[name] = shlex.split(words[1])
            return True
        try:
            self.sampling[name] = ANSWER_RANGES[name].kind(words[1])
        except ValueError:
            raise UsageError(f"{words[1]!r} is no number") from None
        return True

    def _undo(self, _rest: str) -> bool:
        while self.messages and self.messages.pop()["role"] != "user":
            pass
        note(f"({len(self.messages)} messages)")
        return True

    def _trim(self, _rest: str) -> bool:
        questions = [i for i, message in enumerate(self.messages) if message["role"] == "user"]
        del self.messages[: questions[1] if len(questions) > 1 else len(self.messages)]
        note(f"({len(self.messages)} messages)")
        return True

    def _retry(self, _rest: str) -> bool:
        while self.messages:
            message = self.messages.pop()
            if message["role"] == "user":
                self._answer(message["content"])
                return True
        raise UsageError("there is no question to answer again")

    def _toggle_stats(self, _rest: str) -> bool:
        self.stats = not self.stats
        note(f"(figures {'shown' if self.stats else 'hidden'})")
        return True

    def _save(self, rest: str) -> bool:
        if not rest:
            raise UsageError("/save needs a file name")
        document = {"system": self.system, "messages": self.messages}
        try:
            Path(rest).expanduser().write_text(
                json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
            )
        except OSError as error:
            raise UsageError(f"{rest}: {error.strerror}") from None
        note(f"(saved {len(self.messages)} messages)")
        return True

    def _load(self, rest: str) -> bool:
        if not rest:
            raise UsageError("/load needs a file name")
        try:
            document = json.loads(Path(rest).expanduser().read_text(encoding="utf-8-sig"))
            messages = [{"role": str(m["role"]), "content": str(m["content"])} for m in document["messages"]]
            system = document.get("system")
        except OSError as error:
            raise UsageError(f"{rest}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UsageError(f"{rest} is no conversation that /save wrote") from None
        self.messages, self.system = messages, None if system is None else str(system)
        note(f"({len(messages)} messages)")
        return True

    def _bye(self, _rest: str) -> bool:
        return False


def _is_open_fence(text: str) -> bool:
    """Whether a fence begins with `text` and does not end in it."""
    return text.startswith(_FENCE) and text.count(_FENCE) == 1
