"""Options that several commands share. Only what the user gave is passed on: the rest is the model's own."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from ..errors import UsageError
from ..options import ANSWER_RANGES, Range
from .user_config import user_config

KV_HELP = "KV cache: exact, safe, balanced, small, auto, or bits as k=4,v=3.  [default: auto]"

Function = TypeVar("Function", bound=Callable[..., Any])

LOAD_NAMES = ("memory", "threads", "context", "kv", "trace", "prefix_cache", "allow_unknown")
DEFAULT_PREFIX_CACHE = "2GiB"
_OFFERED = {name: allowed for name, allowed in ANSWER_RANGES.items() if allowed.help}
_SHORT = {"max_tokens": "-n", "temperature": "-t"}
SAMPLING_NAMES = (*_OFFERED, "stop", "logit_bias")


class Bias(click.ParamType[tuple[int, float]]):
    """TOKEN_ID=BIAS."""

    name = "id=bias"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, float]:
        """The pair; click shows what is wrong with another text."""
        token, _, bias = str(value).partition("=")
        try:
            return int(token), float(bias)
        except ValueError:
            self.fail(f"{value!r} is no TOKEN_ID=BIAS, such as 42=-1.5", param, ctx)


def model_argument(function: Function) -> Function:
    """MODEL, completed with the names in the store; an alias of the user's settings is what it stands for."""
    return click.argument("model", metavar="MODEL", shell_complete=complete_model, callback=_of_alias)(function)


def _of_alias(ctx: click.Context, _param: click.Parameter, value: Any) -> Any:
    return value if ctx.resilient_parsing or not isinstance(value, str) else user_config().aliases.get(value, value)


def log_option(function: Function) -> Function:
    """--log and --no-log."""
    return click.option(
        "--log/--no-log",
        default=None,
        help="Keep prompt and answer for 'kamado history'.  [default: log_prompts of the settings, else not]",
    )(function)


def unknown_option(function: Function) -> Function:
    """--allow-unknown."""
    return click.option(
        "--allow-unknown", multiple=True, metavar="KEY", help="Leave out a setting of the file that is not known here."
    )(function)


def load_options(function: Function) -> Function:
    """--memory --threads --context --kv --allow-unknown."""
    for option in (
        unknown_option,
        click.option("--kv", metavar="PRESET", shell_complete=complete_kv, help=KV_HELP),
        click.option(
            "--context", type=click.IntRange(min=1), metavar="N", help="Tokens that prompt and answer may take."
        ),
        click.option(
            "--threads",
            "-j",
            type=click.IntRange(min=1),
            metavar="N",
            help="Compute threads.  [default: the processors]",
        ),
        click.option("--memory", metavar="SIZE", help="Byte budget, e.g. 6GiB.  [default: what the machine allows]"),
    ):
        function = option(function)
    return function


def prefix_option(function: Function) -> Function:
    """--prefix-cache, on unless it is switched off."""
    return click.option(
        "--prefix-cache",
        metavar="SIZE|off",
        default=DEFAULT_PREFIX_CACHE,
        show_default=True,
        help="Disk space for computed prompts and conversations, to go on from them later.",
    )(function)


def server_options(function: Function) -> Function:
    """--local and --server: who answers."""
    for option in (
        click.option(
            "--server",
            metavar="URL",
            help="Have the Kamado server there answer; its API key stands in KAMADO_API_KEY.",
        ),
        click.option("--local", is_flag=True, help="Load the model here, also when a server of yours runs."),
    ):
        function = option(function)
    return function


def stats_options(function: Function) -> Function:
    """--stats and --trace."""
    for option in (
        click.option(
            "--trace",
            type=click.Path(dir_okay=False, path_type=Path),
            metavar="FILE",
            help="Write the steps as a trace that ui.perfetto.dev opens.",
        ),
        click.option(
            "--stats",
            is_flag=True,
            help="Print speed, memory by owner and the ledger of streamed experts on stderr afterwards.",
        ),
    ):
        function = option(function)
    return function


def sampling_options(function: Function) -> Function:
    """--max-tokens, --temperature and the rest; what is not given comes from the model file."""
    for option in reversed(
        (
            *(_ranged(name, allowed) for name, allowed in _OFFERED.items()),
            click.option("--stop", multiple=True, metavar="TEXT", help="End the answer here; may be repeated."),
            click.option("--logit-bias", type=Bias(), multiple=True, help="Added to a token's logit; may be repeated."),
        )
    ):
        function = option(function)
    return function


def _ranged(name: str, allowed: Range) -> Callable[[Function], Function]:
    """The option of one of the parameters of an answer."""
    names = [f"--{name.replace('_', '-')}", *([_SHORT[name]] if name in _SHORT else [])]
    kind: click.ParamType[Any] = (
        click.IntRange(allowed.low, allowed.high)
        if allowed.kind is int
        else click.FloatRange(allowed.low, allowed.high, min_open=allowed.low_is_open)
    )
    return click.option(*names, type=kind, metavar=allowed.metavar, help=allowed.help)


def answer_options(function: Function) -> Function:
    """All that says how a model is loaded and answers."""
    for options in (log_option, server_options, prefix_option, load_options, sampling_options, stats_options):
        function = options(function)
    return function


def given(values: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Those of `names` that the user gave, ready to be passed on."""
    found = {name: values[name] for name in names if values.get(name) not in (None, ())}
    if "stop" in found:
        found["stop"] = [typed(text) for text in found["stop"]]
    if "logit_bias" in found:
        found["logit_bias"] = dict(found["logit_bias"])
    return found


def typed(argument: str) -> str:
    """Text that was typed as an argument: UTF-8 also where the locale says otherwise."""
    return os.fsencode(argument).decode("utf-8", "replace")


def read_text(source: str) -> str:
    """The UTF-8 text of a file, or of stdin for "-", without the mark (BOM) that some editors put before it.

    Raises UsageError that names the source when it is no UTF-8.
    """
    if source == "-" and sys.stdin is None:
        raise UsageError("standard input is closed")
    data = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        where = "standard input" if source == "-" else source
        raise UsageError(f"{where} is not UTF-8 text (byte {error.start})") from None


def read_prompt(words: tuple[str, ...], file: str | None) -> str:
    """The prompt from the arguments, `--file` and stdin, in this order, parted by blank lines.

    "-" among the words stands for stdin; with neither words nor a file, piped stdin is read.
    """
    piped = sys.stdin is not None and not sys.stdin.isatty()
    use_stdin = "-" in words or (not words and file is None and piped)
    parts = [typed(" ".join(word for word in words if word != "-"))]
    if file is not None:
        parts.append(read_text(file))
    if use_stdin:
        parts.append(read_text("-"))
    prompt = "\n\n".join(part for part in (part.strip("\n") for part in parts) if part)
    if not prompt.strip():
        raise UsageError("there is no prompt: give it as an argument, with --file, or on standard input")
    return prompt


def complete_kv(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The presets."""
    from ..plan.kv_presets import AUTO, PRESETS

    return [CompletionItem(name) for name in (*PRESETS, AUTO) if name.startswith(incomplete)]


def complete_model(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names in the store, then catalog names, else files; never an error while a line is being typed."""
    names: list[str] = []
    try:
        from ..library.catalog import CATALOG
        from ..library.store import Store

        names = [*user_config().aliases, *(model.name for model in Store().list()), *CATALOG]
    except Exception:
        pass  # the command itself reports a damaged store
    names.append("hf:")  # what follows is known to the hub alone
    found = [CompletionItem(name) for name in dict.fromkeys(names) if name.startswith(incomplete)]
    return found or [CompletionItem(incomplete, type="file")]
