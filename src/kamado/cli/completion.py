"""`kamado completion`: a script that teaches the shell our commands, options and model names."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

# bash ends a word at ":", which model names hold: take it out of the word breaks for what this function completes.
# What ends with one (hf:) is to be gone on with: no blank after it.
_BASH_COLON = """\
# Model names hold a colon, which bash takes for a word break.
COMP_WORDBREAKS=${COMP_WORDBREAKS//:}
"""
_BASH_END = "    return 0\n"
_BASH_NO_BLANK = "    [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *: ]] && compopt -o nospace\n"


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print a completion script for SHELL.

    bash: eval "$(kamado completion bash)" in ~/.bashrc; zsh: the same in ~/.zshrc; fish: kamado completion fish >
    ~/.config/fish/completions/kamado.fish
    """
    from .main import cli

    kind = get_completion_class(shell)
    assert kind is not None  # click ships all three
    if shell == "bash":
        click.echo(_BASH_COLON)
    # click's own source() of the bash class runs `bash --version`; the template alone needs no bash here.
    completion = kind(cli, {}, "kamado", "_KAMADO_COMPLETE")
    script = completion.source_template % completion.source_vars()
    click.echo(script.replace(_BASH_END, _BASH_NO_BLANK + _BASH_END) if shell == "bash" else script)
