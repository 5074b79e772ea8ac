"""`kamado logs`: the latest lines of the server that runs here."""

from __future__ import annotations

import click

from ..errors import ServerError
from ..local.documents import LOGS_PATH
from .terminal import echo


@click.command("logs")
@click.option("--follow", "-f", is_flag=True, help="Go on with the lines that come, until Ctrl-C.")
@click.option("--lines", "-n", type=click.IntRange(0, 2000), default=100, show_default=True, metavar="N")
def command(follow: bool, lines: int) -> None:
    """Show the latest log lines of your server on this machine.

    It keeps 2000 of them, 1 MiB at the most, in memory. With exit code 9 when no server runs.
    """
    from .link import own_server

    with own_server() as link:
        if follow:
            link.status()  # how often it says that it lives, while no line comes
        for row in link.lines("GET", f"{LOGS_PATH}?n={lines}&follow={int(follow)}"):
            if not isinstance(row.get("line"), str):
                raise ServerError("the server here answers nonsense: no log line")
            echo(row["line"])
