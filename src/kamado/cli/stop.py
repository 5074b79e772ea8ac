"""`kamado stop`: unloads models of the server that runs here, or ends the server."""

from __future__ import annotations

import click

from ..errors import ModelNotFoundError, ServerError, UsageError
from ..local.documents import STOP_PATH, UNLOAD_PATH
from .options import complete_model
from .terminal import echo


@click.command("stop")
@click.argument("models", metavar="[MODEL]...", nargs=-1, shell_complete=complete_model)
@click.option("--server", "ends_server", is_flag=True, help="End the server; answers that run may end before.")
def command(models: tuple[str, ...], ends_server: bool) -> None:
    """Unload each MODEL from your server on this machine, as soon as nothing runs on it; with --server end the server.

    A model comes back when it is asked for. With exit code 9 when no server runs.
    """
    from .link import own_server

    UsageError.when(bool(models) == ends_server, "name the models to unload, or give --server to end the server")
    with own_server() as link:
        if ends_server:
            found = link.ask("POST", STOP_PATH)
            echo(f"the server {found.get('stopping')} ends")
            return
        status = link.status()
        names = [_name(model, [state.name for state in status.models]) for model in models]
        for name in dict.fromkeys(names):
            rows = list(link.lines("POST", UNLOAD_PATH, {"model": name}))
            ServerError.when(not rows or not rows[-1].get("unloaded"), f"{name} was not unloaded")
            echo(f"unloaded {name}")


def _name(model: str, loaded: list[str]) -> str:
    """The loaded model that is meant: by its name, or the part before ":" of just one. Raises ModelNotFoundError."""
    starts = [name for name in loaded if name == model or name.startswith(f"{model}:")]
    if model in loaded:
        return model
    if len(starts) != 1:
        raise ModelNotFoundError(f"{model} is not in the server's memory; there: {', '.join(loaded) or 'no model'}")
    return starts[0]
