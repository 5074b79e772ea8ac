"""The commands of `kamado chat`: what begins with a slash, in groups as /help shows them."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..errors import UsageError
from ..plan.budget import format_size
from . import chat_context
from .chat_files import attach
from .chat_settings import NAMES, set_option, show_options
from .report import memory_lines
from .tab import OPTIONS, PATHS, completions
from .terminal import echo, echo_table, note, one_line, styled

if TYPE_CHECKING:
    from .chat import Conversation

_SHOWN_TEXT = 40  # characters of a message in /context


class Command(NamedTuple):
    """`action(conversation, rest of the line)` is False when the conversation is to end."""

    action: Callable[[Conversation, str], bool]
    takes: str
    about: str
    completes: str = ""


def _help(_chat: Conversation, _rest: str) -> bool:
    for group, commands in GROUPS.items():
        echo(styled(group, bold=True))
        for name, command in commands.items():
            echo(f"  {f'/{name} {command.takes}':22}{command.about}")
    echo(styled("Text", bold=True))
    echo('  """                   begins and ends a text of several lines; a \\ at the end of a line goes on too')
    echo("  Ctrl-C                stops an answer")
    return True


def _clear(chat: Conversation, _rest: str) -> bool:
    chat.messages.clear()
    chat.files.clear()
    note("(forgotten)")
    return True


def _set_system(chat: Conversation, rest: str) -> bool:
    chat.system = rest or None
    note("(system message set)" if rest else "(no system message)")
    return True


def _set(chat: Conversation, rest: str) -> bool:
    words = rest.split(maxsplit=1)
    name = words[0].replace("-", "_") if words else None
    if name == "format" and len(words) == 2:
        UsageError.when(words[1] not in ("on", "off"), "format is on or off")
        chat.is_formatted = words[1] == "on"
    elif name is not None and (len(words) == 2 or name not in NAMES):
        set_option(chat.sampling, name, words[1] if len(words) == 2 else "")
    else:
        show_options(chat.sampling, chat.model, name)
        if name is None:
            echo(f"format {'on' if chat.is_formatted else 'off'}: lines wrapped and Markdown shown on a terminal")
    return True


def _undo(chat: Conversation, _rest: str) -> bool:
    while chat.messages and chat.messages.pop()["role"] != "user":
        pass
    note(f"({len(chat.messages)} messages)")
    return True


def _trim(chat: Conversation, _rest: str) -> bool:
    questions = [i for i, message in enumerate(chat.messages) if message["role"] == "user"]
    del chat.messages[: questions[1] if len(questions) > 1 else len(chat.messages)]
    note(f"({len(chat.messages)} messages)")
    return True


def _retry(chat: Conversation, _rest: str) -> bool:
    if chat.unanswered is not None:
        chat.answer(chat.unanswered)
        return True
    while chat.messages:
        message = chat.messages.pop()
        if message["role"] == "user":
            chat.answer(message["content"])
            return True
    raise UsageError("there is no question to answer again")


def _continue(chat: Conversation, _rest: str) -> bool:
    if not chat.messages or chat.messages[-1]["role"] != "assistant":
        raise UsageError("there is no answer to go on with")
    chat.go_on()
    return True


def _context(chat: Conversation, _rest: str) -> bool:
    messages = [*chat.system_messages(), *chat.messages]
    if not messages:
        note(f"(nothing was said yet; the context holds {chat.model.context:,} tokens)")
        return True
    counted = chat_context.tokens_by_message(chat.count, messages)
    rows: list[tuple[object, ...]] = []
    for i, num_tokens in counted:
        text = one_line(messages[i]["content"][: _SHOWN_TEXT + 1])
        rows.append(
            (i + 1, messages[i]["role"], num_tokens, f"{text[:_SHOWN_TEXT]}…" if len(text) > _SHOWN_TEXT else text)
        )
    if counted[0][0] > 0:
        first = counted[0]
        rows[0] = (f"1-{first[0] + 1}", "all before", first[1], "")
    echo_table(("message", "role", "tokens", "text"), rows, right=(0, 2))
    total = sum(num_tokens for _, num_tokens in counted)
    echo(f"{chat_context.how_full(total, chat.model.context)}; files for the next question: {_names(chat)}")
    if chat.last_usage is not None:
        usage = chat.last_usage
        echo(f"of the last question's {usage.num_prompt_tokens:,} tokens, {usage.num_reused_tokens:,} were cached")
    return True


def _names(chat: Conversation) -> str:
    return ", ".join(file.name for file in chat.files) or "none"


def _file(chat: Conversation, rest: str) -> bool:
    if not rest:
        note(f"(files for the next question: {_names(chat)}; /clear forgets them)")
        return True
    file = attach(rest)
    num_tokens = chat.count([{"role": "user", "content": file.block}])
    if num_tokens >= chat.model.context:
        raise UsageError(f"{rest} has {num_tokens:,} tokens and the context holds {chat.model.context:,}")
    chat.files.append(file)
    note(f"({file.name} goes with the next question: {chat_context.how_full(num_tokens, chat.model.context)})")
    return True


def _show(chat: Conversation, _rest: str) -> bool:
    model = chat.model
    facts = {"model": chat.title, "context": f"{model.context:,} tokens"}
    plan = getattr(model, "plan", None)
    if plan is not None:
        facts |= {
            "architecture": plan.architecture,
            "KV cache": f"{plan.kv}: {plan.kv_formula}",
            "threads": str(plan.num_threads),
            "weights read": f"{format_size(plan.weight_bytes_per_token)} a token",
        }
        if plan.is_streamed:
            facts["experts"] = f"{plan.expert_slots:,} of {plan.num_experts:,} in memory, the rest read from disk"
    width = max(map(len, facts))
    for name, value in facts.items():
        echo(f"{styled(name.ljust(width), bold=True)}  {one_line(value)}")
    for line in memory_lines(model.stats):
        echo(line)
    return True


def _toggle_stats(chat: Conversation, _rest: str) -> bool:
    chat.stats = not chat.stats
    note(f"(figures {'shown' if chat.stats else 'hidden'})")
    return True


def _save(chat: Conversation, rest: str) -> bool:
    if not rest:
        raise UsageError("/save needs a file name")
    document = {"system": chat.system, "messages": chat.messages}
    try:
        Path(rest).expanduser().write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{rest}: {error.strerror}") from None
    note(f"(saved {len(chat.messages)} messages)")
    return True


def _load(chat: Conversation, rest: str) -> bool:
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
    chat.messages, chat.system = messages, None if system is None else str(system)
    note(f"({len(messages)} messages)")
    return True


def _bye(_chat: Conversation, _rest: str) -> bool:
    return False


GROUPS: dict[str, dict[str, Command]] = {
    "Conversation": {
        "retry": Command(_retry, "", "answer the last question again"),
        "continue": Command(_continue, "", "go on with an answer that was cut"),
        "undo": Command(_undo, "", "forget the last question and answer"),
        "trim": Command(_trim, "", "forget the oldest question and its answer, for room in the context"),
        "clear": Command(_clear, "", "forget the conversation"),
        "system": Command(_set_system, "TEXT", "set the system message; alone: remove it"),
        "context": Command(_context, "", "how full the context is, by message"),
    },
    "Files": {
        "file": Command(_file, "PATH", "a text file that goes with the next question", PATHS),
        "save": Command(_save, "FILE", "write the conversation as JSON", PATHS),
        "load": Command(_load, "FILE", "go on with a saved conversation", PATHS),
    },
    "Settings": {
        "set": Command(_set, "NAME VALUE", "set an option, e.g. temperature 0.2; alone: all values", OPTIONS),
        "stats": Command(_toggle_stats, "", "show or hide the figures after an answer"),
        "show": Command(_show, "", "what is known of the model, and its memory"),
    },
    "Other": {
        "help": Command(_help, "", "show this list"),
        "bye": Command(_bye, "", "leave (as does Ctrl-D)"),
    },
}
COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}
completed = partial(completions, {name: command.completes for name, command in COMMANDS.items()})  # for Tab
ALIASES = {"?": "help", "exit": "bye", "quit": "bye"}


def carry_out(chat: Conversation, name: str, rest: str) -> bool:
    """Carries a command out; False ends the conversation. Raises UsageError for an unknown one."""
    command = COMMANDS.get(ALIASES.get(name, name))
    if command is None:
        raise UsageError(f"no command /{name}: /help lists them (begin with a space to send the text as it is)")
    return command.action(chat, rest)


def is_command(name: str) -> bool:
    """Whether there is such a command."""
    return ALIASES.get(name, name) in COMMANDS


def banner(chat: Conversation) -> str:
    """One line: who answers, how long a conversation may be, and what memory that takes."""
    parts = [chat.title, f"context {chat.model.context:,} tokens"]
    plan = getattr(chat.model, "plan", None)
    planned, budget = getattr(chat.model, "memory", (0, 0))
    if plan is not None:
        planned, budget = plan.peak_bytes, plan.memory_bytes
    if planned:
        parts.append(f"memory {format_size(planned)} planned of {format_size(budget)}")
    return " · ".join([*parts, f"answered by {getattr(chat.model, 'where', 'this process')}"])
