"""`kamado`: the group of commands and how each fault ends. A command is imported when it is called."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from ..errors import KamadoError
from .terminal import note

# name -> (module, one line for --help). The line stands here so that `kamado --help` imports no command.
COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("run", "Answer one prompt."),
    "chat": ("chat", "Talk with a model."),
    "ask": ("ask", "Answer one prompt by your default model."),
    "history": ("history", "List prompts and answers that were kept."),
    "sessions": ("sessions", "List or remove kept conversations."),
    "serve": ("serve", "Serve models over HTTP: OpenAI's, Ollama's and Anthropic's protocols."),
    "ps": ("ps", "List the models in the memory of the server here."),
    "load": ("load", "Load a model into the server here."),
    "stop": ("stop", "Unload models, or end the server here."),
    "logs": ("logs", "Show the log of the server here."),
    "pull": ("pull", "Fetch a model and check it."),
    "list": ("list_models", "List the models that were fetched."),
    "show": ("show", "Show what a model file holds."),
    "rm": ("rm", "Remove fetched models."),
    "plan": ("plan", "Forecast memory and speed before loading."),
    "bench": ("bench", "Measure prefill, decode and this machine's limits."),
    "kv": ("kv", "Measure how small this model's KV cache may be."),
    "perplexity": ("perplexity", "Score a text; comparable with llama-perplexity."),
    "embed": ("embed", "Turn texts into vectors."),
    "synth": ("synth", "Write a random-weight model of a family's shape."),
    "doctor": ("doctor", "Look over the machine and the model store."),
    "connect": ("connect", "Point another program at the running server, and try it."),
    "config": ("config", "Show or change your settings: default model, aliases, templates."),
    "completion": ("completion", "Print a shell completion script."),
}
ALIASES = {"ls": "list"}

EXIT_USAGE = 2
EXIT_MEMORY = 7
EXIT_INTERNAL = 70
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141


class KamadoGroup(click.Group):
    """Imports a command's module when it is called; turns every fault into one sentence and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of --help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, its module imported now; an alias counts."""
        entry = COMMANDS.get(ALIASES.get(cmd_name, cmd_name))
        if entry is None:
            return None
        command = importlib.import_module(f"kamado.cli.{entry[0]}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Click's own, but an unknown command is answered with the nearest name."""
        if args and not args[0].startswith("-") and ALIASES.get(args[0], args[0]) not in COMMANDS:
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "see 'kamado --help'"
            raise click.UsageError(f"no command {args[0]!r}: {hint}")
        name, command, rest = super().resolve_command(ctx, args)
        if command is not None and name is not None and not ctx.resilient_parsing:
            ctx.default_map = {name: _defaults(ctx, command, name, rest)}
        return name, command, rest

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command; a reader of our output that has gone is no fault."""
        try:
            result = super().invoke(ctx)
            if sys.stdout is not None:
                sys.stdout.flush()
        except BrokenPipeError:
            _abandon_stdout()
            raise click.exceptions.Exit(EXIT_BROKEN_PIPE) from None
        return result

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> NoReturn:
        """Runs the command line and leaves with its exit code; no traceback but for KAMADO_DEBUG=1."""
        try:
            result = super().main(
                args,
                prog_name or "kamado",
                complete_var,
                standalone_mode=False,
                windows_expand_args=windows_expand_args,
                **extra,
            )
            code = result if isinstance(result, int) else 0
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()  # all lines of the help: it is no sentence
            code = EXIT_USAGE
        except (click.exceptions.Abort, KeyboardInterrupt):
            code = EXIT_INTERRUPTED
        except Exception as error:
            if os.environ.get("KAMADO_DEBUG", "") not in ("", "0"):
                raise
            code = _report(error)
        sys.exit(code)


def _defaults(ctx: click.Context, command: click.Command, name: str, words: Sequence[str]) -> dict[str, Any]:
    """What the user's settings say of a command's options."""
    from .user_config import CONFIGURED

    if name not in CONFIGURED:
        return {}
    from .defaults import defaults_of

    return defaults_of(ctx, command, name, words)


def _report(error: Exception) -> int:
    """Prints one sentence for `error` on stderr and returns the exit code."""
    message, code = _describe(error)
    note(f"kamado: error: {' '.join(message.split())}")
    return code


def _describe(error: Exception) -> tuple[str, int]:
    if isinstance(error, KamadoError):
        return str(error), error.exit_code
    if isinstance(error, click.UsageError):
        where = f" (see '{error.ctx.command_path} --help')" if error.ctx is not None else ""
        return error.format_message().rstrip(".") + where, EXIT_USAGE
    if isinstance(error, click.ClickException):
        return error.format_message(), error.exit_code
    if isinstance(error, MemoryError):
        return "out of memory: give a smaller --memory or --context, or a smaller model", EXIT_MEMORY
    if isinstance(error, OSError):
        name = f"{error.filename}: " if error.filename is not None else ""
        return f"{name}{error.strerror or error}", 1
    text = f"unexpected {type(error).__name__}: {error}; this is a fault of Kamado's, KAMADO_DEBUG=1 shows where"
    return text, EXIT_INTERNAL


def _abandon_stdout() -> None:
    """The reader of our stdout has gone: send the rest nowhere, so that the interpreter's last flush cannot fail."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    except (OSError, ValueError):
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (lives as long as the process)


def _version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    import platform
    from importlib import metadata

    try:
        version = metadata.version("kamado")
    except metadata.PackageNotFoundError:
        version = "not installed"
    from ..plan.machine import machine

    tier = machine().tier or "none: the native module is not built"
    click.echo(f"kamado {version} (tier {tier}; Python {platform.python_version()})")
    ctx.exit()


@click.group(
    cls=KamadoGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version and leave."
)
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Run open-weight language models on the machine you own.

    Start with: kamado run --pull smollm2:135m "Why is the sky blue?"
    """
    if ctx.invoked_subcommand is None:
        from .start import say_what_next

        say_what_next()


def main() -> NoReturn:
    """The console script."""
    # Text of any language must come out whatever the locale says, and a lone surrogate in a file name is no fault.
    for stream, errors in ((sys.stdin, "replace"), (sys.stdout, "backslashreplace"), (sys.stderr, "backslashreplace")):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors=errors)
    cli.main()


if __name__ == "__main__":
    main()
