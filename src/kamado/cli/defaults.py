"""Defaults from the user's settings for the options of a command: checked as if they had been typed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from ..errors import UsageError
from ..files.toml_edit import shown_key
from .options import LOAD_NAMES, SAMPLING_NAMES, answer_options
from .user_config import CONFIGURED, Setting, UserConfig, option_name, user_config

# What may be set for all calls: how a model is loaded, how it answers, and what is kept of it.
SETTABLE = tuple(
    name for name in (*LOAD_NAMES, *SAMPLING_NAMES, "system", "stats", "log") if name not in ("trace", "logit_bias")
)


def defaults_of(parent: click.Context, command: click.Command, name: str, words: Sequence[str]) -> dict[str, Any]:
    """What click takes as `default_map` of a command that is called with `words`: what the user's settings say.

    Nothing is read for a command without such options, or when only its help is wanted. Raises UsageError that names
    the file, the line and the key.
    """
    if name not in CONFIGURED:
        return {}
    context = click.Context(command, info_name=name, parent=parent, resilient_parsing=True)
    try:
        found, _, _ = command.make_parser(context).parse_args(list(words))
    except click.UsageError:  # the command itself says what is wrong
        return {}
    wants_help = command.get_help_option(context)
    if wants_help is not None and found.get(wants_help.name or "") is True:
        return {}
    config = user_config()
    model = found.get("model")
    if not isinstance(model, str):
        model = config.model
    own = {param.name for param in command.params}
    settings = config.options(name, model)
    values = {option: checked_value(setting) for option, setting in settings.items()}
    for option, setting in settings.items():
        if option not in own and setting.key[0] == "commands":
            raise UsageError(f"{setting.place}: {name} has no option {shown_key(setting.key[-1:])}")
    if "log" in own:
        values.setdefault("log", config.log_prompts)
    return {option: value for option, value in values.items() if option in own}


def checked_value(setting: Setting) -> Any:
    """The value of a default if its option takes it. Raises UsageError."""
    name = option_name(setting.key[-1])
    where = f"{setting.place}: {shown_key(setting.key)}"
    if name not in SETTABLE:
        raise UsageError(f"{where} is no option that can be set: there are {', '.join(SETTABLE)}")
    param = _options()[name]
    value = setting.value
    if isinstance(value, bool) != bool(param.is_flag):
        raise UsageError(f"{where} must be {'true or false' if param.is_flag else 'a number or a text'}")
    if isinstance(value, list) != bool(param.multiple) and not param.is_flag:
        if not isinstance(value, str):
            raise UsageError(f"{where} must be {'a list of texts' if param.multiple else 'a number or a text'}")
        value = [value]
    for item in value if isinstance(value, list) else [value]:
        if not isinstance(item, str | int | float):
            raise UsageError(f"{where} must be made of texts and numbers")
    command = click.Command("settings", params=[param])
    try:
        param.type_cast_value(click.Context(command), _spelled(value, param))
    except click.BadParameter as error:
        raise UsageError(f"{where}: {error.message.rstrip('.')}") from None
    return value


def _spelled(value: Any, param: click.Option) -> Any:
    """As it would be typed: 2.5 is no whole number then."""
    if param.is_flag:
        return value
    return [str(item) for item in value] if param.multiple else str(value)


def check_options(config: UserConfig) -> None:
    """Looks at every default in the file. Raises UsageError for the first that is wrong."""
    for _, setting in config.all_options():
        checked_value(setting)


def _options() -> Mapping[str, click.Option]:
    """The options by name, as the commands have them."""

    def nothing() -> None: ...

    params = getattr(answer_options(nothing), "__click_params__")  # noqa: B009
    system = click.Option(["--system"])
    return {param.name: param for param in [*params, system] if isinstance(param, click.Option) and param.name}
