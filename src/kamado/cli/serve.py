"""`kamado serve`: models over HTTP."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from hashlib import sha256
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import MissingPackageError, UsageError
from .loading import locate, open_store
from .options import complete_kv, complete_model, unknown_option
from .terminal import echo, note

_KEY_VARIABLE = "KAMADO_SERVE_API_KEY"
_FOLDERS = ("KAMADO_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME")

if TYPE_CHECKING:
    from ..serve.config import ServeConfig
    from ..serve.http.keys import KeyRing


@click.command("serve")
@click.argument("models", metavar="[MODEL]...", nargs=-1, shell_complete=complete_model)
@click.option("--all", "serve_all", is_flag=True, help="Serve the rest of the store, too.")
@click.option("--config", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Settings in TOML.")
@click.option("--host", metavar="ADDRESS", help="Where to listen.  [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), metavar="N", help="0 takes a free one.  [default: 8417]")
@click.option("--api-key", metavar="KEY", help="Needed from every client. Made and shown once if others can connect.")
@click.option("--memory", metavar="SIZE", help="Byte budget of all models, e.g. 6GiB.")
@click.option("--context", type=click.IntRange(min=2), metavar="N", help="Tokens of prompt and answer together.")
@click.option("--threads", "-j", type=click.IntRange(min=1), metavar="N", help="Compute threads.")
@click.option(
    "--kv",
    metavar="PRESET",
    shell_complete=complete_kv,
    help="KV cache: exact, safe, balanced, small, auto, or k=4,v=3.",
)
@click.option(
    "--prefix-cache", metavar="SIZE|off", help="Disk for computed prompts and conversations.  [default: 2GiB]"
)
@unknown_option
@click.option("--keep-alive", metavar="TIME", help="Unload a model that is idle for so long, e.g. 10m; -1 never.")
@click.option("--max-requests", type=click.IntRange(min=1), metavar="N", help="That run or wait; more get status 429.")
@click.option("--deadline", metavar="TIME", help="Ends answers that take longer.")
@click.option("--allow-origin", "origins", multiple=True, metavar="URL", help="A web page that may call; repeatable.")
@click.option("--allow-host", "hosts", multiple=True, metavar="NAME", help="A name of this server; repeatable.")
@click.option("--log", type=click.Choice(["json", "text"]), help="Form of the log on stderr.")
@click.option("--pull", is_flag=True, help="Fetch each MODEL first that is not here.")
@click.option("--unit", is_flag=True, help="Print a systemd (macOS: launchd) unit for these options, and leave.")
def command(
    models: tuple[str, ...],
    serve_all: bool,
    config: Path | None,
    api_key: str | None,
    pull: bool,
    unit: bool,
    **values: Any,
) -> None:
    """Serve each MODEL and no other, loaded at the start; without one all that were pulled, each when it is first used.

    Speaks the OpenAI, Ollama and Anthropic protocols and has a chat page at /. Only this machine can connect unless
    --host says otherwise. Settings come from the file, then KAMADO_SERVE_… variables, then these options.
    """
    flags = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    flags = {name: value for name, value in flags.items() if value not in (None, [])}
    if serve_all:
        flags["serve_all"] = True
    try:
        from ..serve.config import config_file, load_config
        from ..serve.models.library import StoreLibrary
        from ..serve.models.loader import EngineLoader, EngineSettings
        from ..serve.run import address_of, bind, key_file, listen_for_user, make_keys, make_server, run
        from ..serve.share import server_share
    except ModuleNotFoundError as error:
        raise MissingPackageError(f"{error.name} is missing: pip install 'kamado[serve]'") from None
    if api_key is not None:
        flags["api_keys"] = [{"name": "command line", "key": api_key, "scopes": _scopes()}]
    store = open_store()
    files: dict[str, Path] = {}
    for model in models:
        path = locate(model, pull=pull)
        stored = {entry.path: entry.name for entry in store.list()}
        name = stored.get(path)
        if name is None:
            name = _free_name(_name_of(path), path, files)
            files[name] = path
        flags.setdefault("models", []).append(name)
    settings, sources = load_config(file=config, environment=os.environ, flags=flags)
    if unit:
        from ..serve.ops.unit import unit_text

        own = {name: value for name, value in flags.items() if name != "api_keys"}
        plain, _ = load_config(file=config, environment=_without_key(os.environ), flags=own)
        secret = api_key if api_key is not None else os.environ.get(_KEY_VARIABLE)
        if secret is not None:
            _keep_key(secret, plain, config or config_file(), key_file())
        names = [str(files[name]) if name in files else name for name in flags.get("models", [])]
        words = _command_line(click.get_current_context(), names)
        echo(unit_text(words, environment=_of_service(os.environ)), nl=False)
        return
    made: list[str] = []
    keys = make_keys(settings, announce=made.append)
    if made:
        _announce(made[0], key_file())
    elif not settings.is_loopback and not settings.api_keys:
        note(f"API keys are those of {key_file()}; a new one is made and shown when that file is removed")
    library = StoreLibrary(store, files, settings.allow_unknown)
    loader = EngineLoader(
        library,
        EngineSettings(
            settings.threads,
            settings.kv,
            settings.context,
            settings.prefix_cache_bytes,
            settings.allow_unknown,
            server_bytes=server_share(settings).total,
        ),
    )
    server = make_server(settings, library, loader, keys=keys)
    listener = bind(settings)
    beside, reason = listen_for_user()
    address = address_of(listener)
    if sources:
        note(f"settings from {', '.join(sources)}")
    note(f"kamado serves on {address} (OpenAI clients: {address}/v1)")
    if beside is None:
        note(f"run, chat and embed do not find this server by themselves: {reason}")

    def load_settings() -> tuple[ServeConfig, KeyRing]:
        found, _ = load_config(file=config, environment=os.environ, flags=flags)
        return found, make_keys(found, announce=None)

    watched = [config or config_file(), key_file()]
    run(settings, server, listener, load_settings=load_settings, watched=watched, own=beside, files=files)


def _scopes() -> list[str]:
    from ..serve.scopes import SCOPES

    return list(SCOPES)


def _announce(key: str, file: Path) -> None:
    note("an API key was made, since others can connect. It is shown this once:")
    note(f"  {key}")
    note(f"its hash is in {file}; a new one is made and shown when that file is removed")


def _keep_key(secret: str, settings: ServeConfig, settings_file: Path, keys_file: Path) -> None:
    """Puts the hash of a key where the service will find it, since its unit holds none. `settings`: without the key.

    Raises UsageError where the service would not look: with keys in its settings, or open to this machine only.
    """
    from ..serve.http.keys import KeyRing

    ring = KeyRing()
    digest = sha256(secret.encode()).hexdigest()
    ring.add(secret, name="command line")
    if settings.is_loopback or settings.api_keys:
        raise UsageError(
            f"a unit holds no API key: put it into {settings_file}, and leave it out here: "
            f'[[api_keys]] with sha256 = "{digest}" and scopes = {json.dumps(_scopes())}'
        )
    ring.load(keys_file)
    ring.save(keys_file)
    note(f"the key's hash is in {keys_file} now, where the service finds it")


def _without_key(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name != _KEY_VARIABLE}


def _of_service(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of this shell that Kamado reads, for a service that would not have them; folders are absolute."""
    found = {}
    for name, value in sorted(_without_key(environment).items()):
        if name in _FOLDERS and value:
            found[name] = str(Path(value).expanduser().absolute())
        elif name.startswith("KAMADO_SERVE_") or name == "KAMADO_TIER":
            found[name] = value
    odd = next((name for name, value in found.items() if not value.isprintable()), None)
    if odd is not None:
        raise UsageError(f"{odd} has a character that cannot stand in a unit")
    return found


def _name_of(path: Path) -> str:
    """A name for a file outside the store: its own, without what a name may not have."""
    stem = path.name.removesuffix(".gguf")
    return re.sub(r"[^A-Za-z0-9._@+-]+", "-", stem).strip("-.") or "model"


def _free_name(name: str, path: Path, files: Mapping[str, Path]) -> str:
    """`name`, or with a number behind it when another file of this command line has it."""
    taken = {known for known, other in files.items() if other != path}
    numbered = (f"{name}-{n}" for n in count(2))
    return next(free for free in chain([name], numbered) if free not in taken)


def _command_line(context: click.Context, models: Sequence[str]) -> list[str]:
    """These options as they were typed, for a unit file. A key does not belong into one."""
    words = list(models)
    for param in context.command.params:
        if not isinstance(param, click.Option) or param.name in ("unit", "pull", "api_key"):
            continue
        value = context.params.get(param.name or "")
        for item in value if isinstance(value, tuple) else (value,):
            if param.is_flag:
                words += [param.opts[0]] if item else []
            elif item is not None:
                words += [param.opts[0], str(item.absolute() if isinstance(item, Path) else item)]
    return words
