"""`kamado connect`: another program pointed at the running server, and the proof that it is understood there."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from ..errors import KamadoError, ServerError, UsageError
from .clients.files import SettingsFile
from .clients.programs import NO_KEY, Program, Target, programs
from .clients.proof import Connection, Proof, Served
from .terminal import echo, echo_json, note, styled
from .user_config import user_config

_DEFAULT_URL = "http://127.0.0.1:8417"
_NAMED = 6  # models in a sentence


@click.command("connect")
@click.argument("program", type=click.Choice(list(programs())))
@click.option("--model", "-m", metavar="NAME", help="Which of the server's models.  [default: yours, or the only one]")
@click.option("--server", metavar="URL", help="Where it is.  [default: the server of yours that runs here]")
@click.option("--api-key", metavar="KEY", envvar="KAMADO_API_KEY", help="If the server needs one; or KAMADO_API_KEY.")
@click.option("--write", is_flag=True, help="Write the settings, once the request was answered; the old file is kept.")
@click.option("--file", type=click.Path(dir_okay=False, path_type=Path), help="Another file than the program's own.")
@click.option(
    "--wait", type=click.FloatRange(1, 3600), default=300, show_default=True, metavar="SECONDS", help="For the answer."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    program: str,
    model: str | None,
    server: str | None,
    api_key: str | None,
    write: bool,
    file: Path | None,
    wait: float,
    as_json: bool,
) -> None:
    """Print the settings with which PROGRAM uses the running server, and try them by one request as it makes them.

    With --write they are put into its file, what changes is shown, and the old file is kept beside it.
    """
    chosen = programs()[program]
    if api_key is not None and (not api_key.isascii() or not api_key.isprintable() or " " in api_key):
        raise UsageError("an API key has printable ASCII letters only, and no blanks")
    url = address(server) if server is not None else running_server()
    with Connection(url, api_key, seconds=wait) as connection:
        served = choose(connection.models(), model, url)
        target = Target(url, served.name, api_key, served.context)
        settings = chosen.settings(target, os.environ)
        if file is not None:
            settings = replace(settings, path=file.absolute())
        difference = settings.difference() if write else ""
        told = _described(chosen, target, settings)
        if not as_json and not write:
            echo(styled(f"# {settings.path}", dim=True))
            echo(settings.alone, nl=False)
        try:
            proof = connection.prove(chosen, target)
        except KamadoError as error:
            if as_json:
                echo_json({**told, "check": {"ok": False, "error": str(error)}})
            raise
    backup = settings.write() if write else None
    if as_json:
        told["check"] = {"ok": True, "endpoint": proof.endpoint, "seconds": proof.seconds, "tools": proof.tools}
        told |= {"written": write, "difference": difference, "backup": None if backup is None else str(backup)}
        echo_json(told)
        return
    if write:
        echo(difference or f"{settings.path} says so already\n", nl=False)
    if backup is not None:
        note(f"the file as it was: {backup}")
    note(_result(chosen, proof))
    for line in _notes(chosen, target):
        note(f"note: {line}")
    note(f"start it with: {chosen.start(target)}")


def address(text: str) -> str:
    """A server's address without /v1. Raises UsageError."""
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        is_right = parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.query and not parts.fragment
        is_right = is_right and parts.username is None and (parts.port is None or parts.port > 0)
    except ValueError:
        is_right = False
    if not is_right or not text.isprintable() or len(text) > 1000:
        raise UsageError(f"{text[:100]!r} is no address of a server, such as {_DEFAULT_URL}")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/v1')}"


def running_server() -> str:
    """Where the server of this user listens that runs here; else where one usually does. Raises ServerError."""
    from .link import Link

    link = Link.own()
    if link is None:
        return _DEFAULT_URL
    try:
        return address(_reachable(link.status().address))
    finally:
        link.close()


def _reachable(bound: str) -> str:
    """An address to connect to for one that was bound: a server that listens everywhere listens here, too."""
    parts = urlsplit(bound if "://" in bound else f"http://{bound}")
    if parts.hostname in ("0.0.0.0", "::"):
        return f"{parts.scheme}://127.0.0.1:{parts.port}"
    return bound


def choose(models: Sequence[Served], name: str | None, url: str) -> Served:
    """The model that was named; else the user's default if it is served, the only one, the only one in memory.

    Raises ServerError when none can be told.
    """
    able = [model for model in models if not model.capabilities or "chat" in model.capabilities]
    names = ", ".join(model.name for model in able[:_NAMED]) + (", …" if len(able) > _NAMED else "")
    if name is not None:
        wanted = user_config().aliases.get(name, name)
        for model in models:
            if model.name in (name, wanted):
                return model
        raise ServerError(f"{url} has no model {name!r}; it has {names or 'none'}")
    if not able:
        raise ServerError(f"{url} has no model that can chat: start it with one, 'kamado serve MODEL'")
    default = user_config().model
    default = user_config().aliases.get(default or "", default)
    for group in ([m for m in able if m.name == default], able, [m for m in able if m.is_loaded]):
        if len(group) == 1:
            return group[0]
    raise ServerError(f"{url} has several models: choose one with -m ({names})")


def _described(program: Program, target: Target, settings: SettingsFile) -> dict[str, Any]:
    return {
        "program": program.name,
        "server": target.url,
        "model": target.model,
        "context": target.context,
        "path": str(settings.path),
        "format": settings.format,
        "settings": settings.alone,
        "start": program.start(target),
        "notes": _notes(program, target),
        "written": False,
    }


def _notes(program: Program, target: Target) -> list[str]:
    notes = list(program.notes)
    if target.context is not None and target.context < program.least_context:
        notes.append(
            f"{program.title}'s first request needs {program.least_context} tokens, the context has {target.context}: "
            f"kamado serve {target.model} --context {program.least_context}"
        )
    if target.key is not None and program.key_variable:
        notes.append(f"{program.title} reads the key from the variable {program.key_variable}")
    elif target.key is not None and program.key_variable is not None:
        notes.append(f"{program.title} asks for the key itself, so that it is in no file: Manage Language Models")
    if target.key is None and NO_KEY in json.dumps(program.settings(target, os.environ).alone):
        notes.append(f"the server needs no key; {NO_KEY!r} only stands where {program.title} wants one")
    return notes


def _result(program: Program, proof: Proof) -> str:
    came = f"called {proof.tools[0]}" if proof.tools else f"{len(proof.text or proof.thought)} letters"
    asked = "a stream with a tool" if program.has_tools else "a stream"
    return f"tried as {program.title} asks: POST {proof.endpoint}, {asked}: {came} in {proof.seconds:.1f} s"
