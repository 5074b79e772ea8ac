"""`kamado` alone: what to do next, from what is on this machine."""

from __future__ import annotations

import shlex

from ..errors import KamadoError
from . import loading
from .terminal import echo, one_line

_FIRST_MODEL = "smollm2:135m"


def say_what_next() -> None:
    """A few lines on stdout. What cannot be looked up (a damaged store, broken settings) is said in its line."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        release = f" {version('kamado')}"
    except PackageNotFoundError:
        release = ""
    echo(f"kamado{release} runs open-weight language models on this machine.\n")
    for command, text in [*_of_models(), *_of_server(), ("kamado --help", "all commands")]:
        echo(f"  {command}  # {text}" if command else f"  {text}")


def _of_models() -> list[tuple[str, str]]:
    try:
        models = [model.name for model in loading.open_store().list()]
    except (KamadoError, OSError) as error:
        return [("kamado doctor", f"the store cannot be read: {one_line(str(error))}")]
    if not models:
        return [
            (f"kamado run --pull {_FIRST_MODEL}", "no model is here yet: fetch a small one (100 MB) and talk with it"),
            ("kamado pull --list", "what else there is"),
        ]
    default = _default_model()
    name = shlex.quote(default if default is not None else models[0])
    count = "1 model is" if len(models) == 1 else f"{len(models)} models are"
    lines = [
        (f"kamado run {name}", "talk with it"),
        (f'kamado run {name} "Why is the sky blue?"', "one answer"),
        (f"kamado serve {name}", "for other programs, and a chat page"),
        ("kamado list", f"{count} here"),
    ]
    if default is not None:
        lines.insert(2, ('kamado ask "Why is the sky blue?"', f"the same by your default model, {one_line(default)}"))
    return lines


def _default_model() -> str | None:
    from .user_config import user_config

    try:
        return user_config().model
    except (KamadoError, OSError):  # 'kamado config' says what is wrong with the settings
        return None


def _of_server() -> list[tuple[str, str]]:
    """A server of this user that runs here."""
    from ..local import place

    try:
        folder = place.find()
    except (KamadoError, OSError) as error:
        return [("kamado ps", one_line(str(error)))]
    if folder is None:
        return []
    folder.close()
    return [("kamado ps", "a server of yours is running: what it has loaded")]
