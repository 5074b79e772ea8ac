"""Tab in a shell: real bash, and zsh and fish where they are, with the script that `kamado completion` prints."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from terminals import SEQUENCE, Terminal

from kamado.engine.turns.conversations import ConversationStore
from kamado.library.catalog import CATALOG
from kamado.synth.families import SHAPES


@pytest.fixture
def shell_path(tmp_path: Path) -> str:
    """A PATH whose first folder has `kamado`."""
    program = tmp_path / "bin" / "kamado"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m kamado "$@"\n')
    program.chmod(0o755)
    return f"{program.parent}{os.pathsep}{os.environ['PATH']}"


def bash(line: str, path: str) -> list[str]:
    """What bash offers for the last word of `line`."""
    words = line.split(" ")
    script = (
        'eval "$(kamado completion bash)"; '
        f"COMP_WORDS=({' '.join(repr(word) for word in words)}); COMP_CWORD={len(words) - 1}; "
        'COMPREPLY=(); _kamado_completion kamado 2>/dev/null; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", script], capture_output=True, text=True, env={**os.environ, "PATH": path}, check=True
    )
    return done.stdout.split()


def test_bash(shell_path: str) -> None:
    ConversationStore().record("trip", "m", [{"role": "user", "content": "hi"}])
    assert bash("kamado per", shell_path) == ["perplexity"]
    assert bash("kamado run smoll", shell_path) == [name for name in CATALOG if name.startswith("smoll")]
    assert bash("kamado run h", shell_path) == ["hf:"]
    assert bash("kamado run m --kv s", shell_path) == ["safe", "small"]
    assert bash("kamado chat m --session t", shell_path) == ["trip"]
    assert bash("kamado run m --tempe", shell_path) == ["--temperature"]
    assert bash("kamado synth out --family qwen3m", shell_path) == [n for n in SHAPES if n.startswith("qwen3m")]


def test_bash_at_a_prompt(shell_path: str, tmp_path: Path) -> None:
    """A name goes on over its colon, and nothing stands behind `hf:`."""
    rc = tmp_path / "rc"
    rc.write_text('PS1="$ "; bind "set enable-bracketed-paste off"; eval "$(kamado completion bash)"; echo ready\n')
    terminal = Terminal(
        "--noprofile", "--rcfile", str(rc), "-i",
        interpreter="/usr/bin/env", program=("bash",), columns=200,
        environment={"PATH": shell_path, "HOME": str(tmp_path)},
    )  # fmt: skip
    terminal.wait_for("ready")
    terminal.type("echo kamado | cat; kamado run smollm2:1\t")
    terminal.wait_for("smollm2:135m ")
    terminal.type("\x15kamado run h\t")
    terminal.wait_for("kamado run hf:")
    terminal.type("x/y\x15")
    terminal.wait_for("hf:x/y")
    assert terminal.exit_code(press="exit\n") == 0


@pytest.mark.skipif(shutil.which("fish") is None, reason="no fish: apt-get install fish")
def test_fish(shell_path: str) -> None:
    def fish(line: str) -> list[str]:
        done = subprocess.run(
            ["fish", "--no-config", "-c", f"kamado completion fish | source; complete -C '{line}'"],
            capture_output=True, text=True, env={**os.environ, "PATH": shell_path}, check=True,
        )  # fmt: skip
        return [row.split("\t")[0] for row in done.stdout.splitlines()]

    assert fish("kamado per") == ["perplexity"]
    assert fish("kamado run smollm2:1") == ["smollm2:135m"]
    assert fish("kamado run m --kv s") == ["safe", "small"]


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh: apt-get install zsh")
def test_zsh(shell_path: str, tmp_path: Path) -> None:
    (tmp_path / ".zshrc").write_text(
        'PS1="%% "; autoload -Uz compinit; compinit -u -D; eval "$(kamado completion zsh)"; echo ready\n'
    )
    terminal = Terminal(
        "-i", interpreter="/usr/bin/env", program=("zsh",),
        environment={"PATH": shell_path, "ZDOTDIR": str(tmp_path), "HOME": str(tmp_path)}, term="xterm", columns=200,
    )  # fmt: skip
    terminal.wait_for("ready")
    for typed, expected in (
        ("kamado per\t", "perplexity"),
        ("kamado run smollm2:1\t", "smollm2:135m"),
        ("kamado run m --kv sa\t", "safe"),
    ):
        terminal.type(f"\x15{typed}")
        terminal.wait_for(expected)
    assert terminal.exit_code(press="\x15exit\n") == 0
    assert "command not found" not in SEQUENCE.sub("", terminal.output)
