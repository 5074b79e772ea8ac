"""`kamado ps`: what the server here has in memory."""

from __future__ import annotations

import time

import click

from ..local.documents import ModelState, write
from ..plan.budget import format_size
from .terminal import echo_json, echo_table, format_seconds, note


@click.command("ps")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """List the models in the memory of your server on this machine.

    With exit code 9 when none runs.
    """
    from .link import own_server

    with own_server() as link:
        status = link.status()
    if as_json:
        echo_json(write(status))
        return
    now = time.time()
    rows = [
        (
            state.name,
            format_size(state.memory_bytes) if state.memory_bytes else "-",
            state.context or "-",
            state.kv or "-",
            state.requests,
            "loading" if state.is_loading else format_seconds(max(0.0, now - state.since)),
            _until(state, now),
        )
        for state in status.models
    ]
    echo_table(("name", "memory", "context", "kv", "requests", "for", "until"), rows, right=(1, 2, 4))
    budget = "" if status.memory_bytes is None else f", {format_size(status.memory_bytes)} for models"
    note(f"server {status.pid} at {status.address}, Kamado {status.kamado}: {status.requests} requests{budget}")


def _until(state: ModelState, now: float) -> str:
    if state.is_pinned:
        return "the server ends"
    return "stopped" if state.expires_at is None else f"idle for {format_seconds(max(0.0, state.expires_at - now))}"
