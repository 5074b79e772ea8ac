"""`kamado run`: one prompt, one answer; on a terminal without a prompt, the conversation."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from ..errors import UsageError
from .answer import Answer, summary
from .connection import opened
from .forms import check_whole, form_of, form_options
from .options import (
    LOAD_NAMES,
    SAMPLING_NAMES,
    Function,
    answer_options,
    given,
    model_argument,
    read_prompt,
    typed,
)
from .prompt_log import RecordedModel
from .report import report_stats
from .sessions import complete_session
from .templates import INPUT, Template, field_values
from .terminal import is_tty, note
from .user_config import user_config


def _complete_template(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of templates; never an error while a line is being typed."""
    try:
        names = list(user_config().templates)
    except Exception:
        names = []
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def prompt_options(function: Function) -> Function:
    """PROMPT and all that says what is asked, of `run` and `ask`."""
    for option in reversed(
        (
            click.argument("prompt", nargs=-1),
            click.option(
                "--file", "-f", type=click.Path(exists=True, dir_okay=False), help="Read the prompt from a file."
            ),
            click.option("--system", metavar="TEXT", help="System message."),
            click.option(
                "--template",
                "-T",
                metavar="NAME",
                shell_complete=_complete_template,
                help="A template of your settings, which takes the prompt.",
            ),
            click.option(
                "--param", "-p", "params", multiple=True, metavar="FIELD=VALUE", help="A field of the template."
            ),
            click.option(
                "--session",
                metavar="NAME",
                shell_complete=complete_session,
                help="Keep question and answer under this name, and go on with what is there.",
            ),
            form_options,
            click.option("--raw", is_flag=True, help="No chat template: continue the prompt as it is."),
            click.option(
                "--plain", is_flag=True, help="With --raw: special tokens such as <|im_start|> are plain text."
            ),
            click.option("--pull", is_flag=True, help="Fetch the model first when it is not here."),
        )
    ):
        function = option(function)
    return function


@click.command("run")
@model_argument
@prompt_options
@answer_options
@click.pass_context
def command(ctx: click.Context, /, model: str, **values: Any) -> None:
    """Answer PROMPT and leave. "-" stands for standard input, which is also read when no prompt is given.

    On a terminal without a prompt it is a conversation, as 'kamado chat' is. Nothing is downloaded unless --pull is
    given.
    """
    if opens_chat(values):
        from .chat import command as chat

        own = {param.name for param in chat.params}
        ctx.invoke(chat, model=model, **{name: value for name, value in values.items() if name in own})
        return
    answer_prompt(model, values)


def opens_chat(values: Mapping[str, Any]) -> bool:
    """Whether a person gave a model and nothing to ask of it."""
    asks = ("prompt", "file", "template", "schema", "regex", "as_json", "raw", "plain")
    return not any(values[name] for name in asks) and is_tty(sys.stdin)


def answer_prompt(model: str, values: Mapping[str, Any]) -> None:
    """Asks `model` what the options say and prints the answer. Raises UsageError for options that contradict."""
    form = form_of(values["schema"], values["regex"], values["as_json"])
    raw, plain, session = values["raw"], values["plain"], values["session"]
    template = None if values["template"] is None else user_config().template(values["template"])
    UsageError.when(values["params"] and template is None, "-p goes with --template")
    was_typed = click.get_current_context().get_parameter_source("system") is ParameterSource.COMMANDLINE
    system = values["system"]
    if template is not None and template.system is not None and not was_typed:
        system, was_typed = template.system, True
    UsageError.when(raw and was_typed, "--system needs the chat template, --raw switches it off")
    UsageError.when(
        plain and not raw, "--plain goes with --raw: in a conversation, what you write is always plain text"
    )
    UsageError.when(raw and session is not None, "--session keeps conversations, and --raw asks for none")
    kept = _kept_messages(session)
    text = _prompt(values["prompt"], values["file"], template, values["params"])
    sampling = given(values, SAMPLING_NAMES)
    loading = {**values, "constraints": True if form else None}
    with opened(
        model,
        loading,
        pull=values["pull"],
        server=values["server"],
        local=values["local"],
        names=(*LOAD_NAMES, "constraints"),
    ) as loaded:
        if not raw and not loaded.has_chat_template:
            UsageError.when(was_typed, f"{model} has no chat template, so it has no place for --system")
            UsageError.when(session is not None, f"{model} has no chat template, so it has no conversations to keep")
            note("kamado: note: this model has no chat template; it continues the prompt as plain text")
            raw = True
        question = {"role": "user", "content": text}
        if raw:
            messages = [question]
            pieces = loaded.generate(text, special=not plain, **form, **sampling)
        else:
            messages = [*_with_system(kept, system, was_typed), question]
            named = {} if session is None else {"session": session}
            pieces = loaded.chat(messages, **named, **form, **sampling)
        if values["log"]:
            name = click.get_current_context().info_name or "run"
            pieces = RecordedModel(loaded, name).kept(pieces, messages, session, {**sampling, **form})
        answer = Answer()
        answer.stream(pieces, is_formatted=not raw and not form)  # what is no prose stays as it is
        if values["stats"]:
            note(summary(pieces.usage))
            report_stats(loaded)
    if form:
        check_whole(answer.text, answer.finish_reason, form)


def _kept_messages(session: str | None) -> list[dict[str, str]]:
    """What the session has, read before the model is loaded so that a wrong name costs no time."""
    if session is None:
        return []
    from .chat import Kept

    return list(Kept(typed(session)).messages)


def _with_system(kept: list[dict[str, str]], system: str | None, was_typed: bool) -> list[dict[str, str]]:
    """The conversation so far below its system message: one that was typed is its new one, a default only its first."""
    has_one = bool(kept) and kept[0]["role"] == "system"
    if system is None or (kept and not was_typed):
        return kept
    return [{"role": "system", "content": typed(system)}, *kept[has_one:]]


def _prompt(words: tuple[str, ...], file: str | None, template: Template | None, params: tuple[str, ...]) -> str:
    """What is asked, inside the template if there is one."""
    if template is None:
        return read_prompt(words, file)
    fields = field_values([typed(param) for param in params])
    if not template.has_input:
        UsageError.when(
            bool(words) or file is not None, f"the template {template.name!r} has no place for a prompt: {{input}}"
        )
        return template.prompt(fields)
    template.prompt({**fields, INPUT: ""})  # a field that is missing costs no reading
    return template.prompt({**fields, INPUT: read_prompt(words, file)})
