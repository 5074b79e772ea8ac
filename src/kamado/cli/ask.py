"""`kamado ask`: one prompt to the model that is set as the default."""

from __future__ import annotations

from typing import Any

import click

from ..errors import UsageError
from . import loading
from .options import answer_options, complete_model
from .run import answer_prompt, prompt_options
from .user_config import user_config

_NAMED = 4  # models in the sentence


@click.command("ask")
@click.option("--model", "-m", metavar="MODEL", shell_complete=complete_model, help="Another model than the default.")
@prompt_options
@answer_options
def command(model: str | None, **values: Any) -> None:
    """Answer PROMPT by the default model ('kamado config set model NAME'), or by the only one that is here.

    Otherwise as 'kamado run'.
    """
    answer_prompt(_chosen(model, values["template"]), values)


def _chosen(model: str | None, template: str | None) -> str:
    """The model that was named here, by the template, by the settings; else the only one. Raises UsageError."""
    config = user_config()
    named = model
    if named is None and template is not None:
        named = config.template(template).model
    if named is None:
        named = config.model
    if named is not None:
        return config.aliases.get(named, named)
    models = [entry.name for entry in loading.open_store().list()]
    if len(models) == 1:
        return models[0]
    if not models:
        raise UsageError("no model is here yet: 'kamado pull --list' names what there is")
    names = ", ".join(models[:_NAMED]) + (", …" if len(models) > _NAMED else "")
    raise UsageError(f"no default model is set: 'kamado config set model NAME', or give one with -m (here are {names})")
