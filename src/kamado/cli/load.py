"""`kamado load`: into the memory of the server that runs here."""

from __future__ import annotations

from typing import Any

import click

from ..errors import MissingPackageError, ServerError, UsageError
from ..local.documents import LOAD_PATH, ModelState, read
from ..plan.budget import format_size, given_size
from . import loading
from .options import given, load_options, model_argument
from .terminal import echo

_NAMES = ("memory", "threads", "context", "kv", "allow_unknown")


@click.command("load")
@model_argument
@click.option("--pull", is_flag=True, help="Fetch the model first when it is not here.")
@click.option(
    "--keep-alive",
    metavar="TIME",
    help="Unload it when it is idle for so long.  [default: kept until its room is needed]",
)
@load_options
def command(model: str, pull: bool, keep_alive: str | None, **values: Any) -> None:
    """Load MODEL into your server on this machine, and keep it there.

    Options that are not given are the server's own. A model that is there with other settings must be stopped first.
    With exit code 9 when no server runs.
    """
    from .link import own_server
    from .same import differences, name_there

    options = given(values, _NAMES)
    path = loading.locate(model, pull=pull)
    with own_server() as link:
        status = link.status()
        name = name_there(path, loading.called(path), status)
        UsageError.when(name is None, f"{model} is no model of the store, and the server was not started with it")
        there = next((one for one in status.models if one.name == name and not one.is_loading), None)
        other = [] if there is None else differences(options, status, there)
        UsageError.when(
            other, f"{name} is in memory with other settings: {', '.join(other)}; unload it first: kamado stop {name}"
        )
        body: dict[str, Any] = {"model": name, "keep_alive": _seconds(keep_alive)}
        if there is None:
            body |= {key: options[key] for key in ("context", "threads", "kv") if key in options}
            if "memory" in options:
                body["memory_bytes"] = given_size(options["memory"])
            if "allow_unknown" in options:
                body["allow_unknown"] = list(options["allow_unknown"])
        rows = list(link.lines("POST", LOAD_PATH, body))
    if not rows or not rows[-1].get("model"):
        raise ServerError("the server here did not say what it loaded")
    state = read(ModelState, rows[-1]["model"], "model")
    echo(f"{state.name}: {format_size(state.memory_bytes)}, context {state.context}, kv {state.kv}")


def _seconds(text: str | None) -> float:
    """Of --keep-alive; negative: until its room is needed."""
    if text is None:
        return -1.0
    try:
        from ..serve.config import parse_duration
    except ModuleNotFoundError as error:
        raise MissingPackageError(f"{error.name} is missing: pip install 'kamado[serve]'") from None
    seconds = parse_duration(text)
    return -1.0 if seconds == float("inf") else seconds
