"""A small shell in this process: pipes, `&&`, redirections and variables before a command; its programs are given.

Nothing is started but by a program that the caller gave, so that the commands of a page can be run on any machine.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

PUNCTUATION = "|&;<>()"


@dataclass(slots=True)
class Call:
    """One program of a pipeline."""

    words: list[str] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)  # set for this program alone
    inputs: Path | None = None  # < FILE
    output: Path | None = None  # > FILE or >> FILE
    appends: bool = False


@dataclass(frozen=True, slots=True)
class Done:
    """What a program did."""

    code: int
    stdout: str = ""
    stderr: str = ""


Program = Callable[[Call, str], Done]  # the call and its standard input


class NotUnderstood(Exception):
    """The line has something that this shell does not know."""


def pipelines(line: str) -> Iterator[list[Call]]:
    """The pipelines of a line, in their order; each runs only when the one before it went well."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=PUNCTUATION)
    lexer.whitespace_split = True
    lexer.commenters = ""
    calls, target = [Call()], ""
    for token in lexer:
        if set(token) <= set(PUNCTUATION):
            if target:
                raise NotUnderstood(f"nothing to redirect to in: {line}")
            if token == "|":
                calls.append(Call())
            elif token in ("&&", ";"):
                yield calls
                calls = [Call()]
            elif token in ("<", ">", ">>"):
                target = token
            else:
                raise NotUnderstood(f"{token!r} in: {line}")
        elif target:
            path = Path(token).expanduser()
            if target == "<":
                calls[-1].inputs = path
            else:
                calls[-1].output, calls[-1].appends = path, target == ">>"
            target = ""
        elif "$(" in token or "`" in token:
            raise NotUnderstood(f"a command inside a command: {line}")
        else:
            name, equals, value = token.partition("=")
            if equals and name.isidentifier() and not calls[-1].words:
                calls[-1].variables[name] = value
            else:
                calls[-1].words.append(token)
    if target:
        raise NotUnderstood(f"nothing to redirect to in: {line}")
    yield calls


def run(line: str, programs: Mapping[str, Program]) -> Done:
    """Runs a line; the last program's outcome, or the first that failed. NotUnderstood: a program that is not given."""
    done = Done(0)
    for calls in pipelines(line):
        piped = ""
        for call in calls:
            if not call.words:
                raise NotUnderstood(f"no program in: {line}")
            program = programs.get(call.words[0])
            if program is None:
                raise NotUnderstood(f"no stand-in for {call.words[0]}: {line}")
            done = program(call, call.inputs.read_text() if call.inputs else piped)
            if done.code != 0:
                return done
            piped = done.stdout
            if call.output is not None:
                call.output.parent.mkdir(parents=True, exist_ok=True)
                with call.output.open("a" if call.appends else "w") as file:
                    file.write(done.stdout)
    return done
