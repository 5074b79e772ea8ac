"""Claude Code, Codex CLI and opencode, as npm has them, do a small task: read a file, change it, run its test.

The answers are scripted: what is tested is that each program understands the server and the server it, with the
settings that `kamado connect` writes for it. The programs are in the folder that KAMADO_TEST_AGENTS names;
`tools/dev.py agent-tests` installs them there. They talk to loopback only: every proxy is a closed port, and their own
settings switch the rest off.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kamado.cli.clients.programs import Target, programs
from kamado.serve.models.contract import ChatRequest, Event, LoadOptions, ServedModel, ToolCallStart

from .fake import INFO, FakeLibrary, FakeLoader, FakeModel, calls, text
from .running import Running, running

pytestmark = [pytest.mark.agents, pytest.mark.slow]

TASK = "Fix add in calc.py and run its test."
BROKEN = "def add(a, b):\n    return a - b\n"
FIXED = "def add(a, b):\n    return a + b\n"
TEST = """import unittest

from calc import add


class Adding(unittest.TestCase):
    def test_add(self):
        self.assertEqual(add(2, 3), 5)


if __name__ == "__main__":
    unittest.main()
"""
RUN = f"{sys.executable} -m unittest test_calc"
CONTEXT = 200_000
SECONDS = 120
_NOWHERE = "http://127.0.0.1:9"  # discard: nothing listens


class AgentModel(FakeModel):
    """Calls one tool after the other, by how many have been answered, and then says that it is done."""

    def __init__(self, steps: Sequence[tuple[str, dict[str, Any]]]) -> None:
        super().__init__(replace(INFO, context=CONTEXT, max_context=CONTEXT))
        self._steps = steps
        self.results: list[str] = []  # what the tools returned, as the last request has them

    async def chat(self, request: ChatRequest) -> AsyncGenerator[Event, None]:
        results = [message.text for message in request.messages if message.role == "tool"]
        script: Any = text("Done.")
        if request.tools:
            self.results = results
            at = len(results)
            if at < len(self._steps):
                name, arguments = self._steps[at]
                # Ids of their own, as the engine's: an agent takes a second call of one id for the first.
                script = [
                    replace(step, id=f"call_{at}") if isinstance(step, ToolCallStart) else step
                    for step in calls((name, json.dumps(arguments)))
                ]
        self.scripts = {request.messages[-1].text: script}
        async for event in super().chat(request):
            yield event


class AgentLoader(FakeLoader):
    """Loads it."""

    def __init__(self, model: AgentModel) -> None:
        super().__init__(library=FakeLibrary({"fake": model.info}))
        self._model = model

    async def load(self, name: str, options: LoadOptions, memory_bytes: int | None) -> ServedModel:
        return self._model


@pytest.fixture
def installed() -> Path:
    """Where npm put them."""
    folder = os.environ.get("KAMADO_TEST_AGENTS")
    if not folder:
        pytest.skip("KAMADO_TEST_AGENTS names no folder: python3 tools/dev.py agent-tests")
    return Path(folder) / "node_modules"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "calc.py").write_text(BROKEN)
    (folder / "test_calc.py").write_text(TEST)
    return folder


@pytest.fixture
def serve() -> Iterator[Callable[[AgentModel], Running]]:
    from contextlib import ExitStack

    with ExitStack() as stack:

        def start(model: AgentModel) -> Running:
            loader = AgentLoader(model)
            assert loader.library is not None
            return stack.enter_context(running(loader.library, loader))

        yield start


def run(words: Sequence[str | Path], project: Path, home: Path, **environment: str) -> str:
    """What the program printed; it must end with success, in an environment that has nothing of the user's."""
    home.mkdir(exist_ok=True)
    proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), _NOWHERE)
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
        **proxies,
        **environment,
    }
    done = subprocess.run(
        list(map(str, words)), cwd=project, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def connect(name: str, server: Running, home: Path, **environment: str) -> None:
    """Writes what `kamado connect` says of a program into its own place."""
    settings = programs()[name].settings(Target(server.url, "fake", None, CONTEXT), {"HOME": str(home), **environment})
    assert settings.path.is_relative_to(home)
    settings.write()


def check_done(model: AgentModel, project: Path) -> None:
    assert (project / "calc.py").read_text() == FIXED
    assert "return a - b" in model.results[0]
    assert "OK" in model.results[-1]
    assert len(model.results) == 3


def processor() -> str:
    """This machine's, as npm's packages name it."""
    return {"x86_64": "x64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


def test_claude_code_does_a_small_task(
    installed: Path, project: Path, serve: Callable[[AgentModel], Running], tmp_path: Path
) -> None:
    program = installed / "@anthropic-ai" / f"claude-code-{sys.platform}-{processor()}" / "claude"
    if not program.exists():
        pytest.skip(f"{program} is not there")
    path = str(project / "calc.py")
    model = AgentModel(
        [
            ("Read", {"file_path": path}),
            ("Edit", {"file_path": path, "old_string": "a - b", "new_string": "a + b"}),
            ("Bash", {"command": RUN, "description": "Runs the test"}),
        ]
    )
    connect("claude-code", serve(model), tmp_path / "home")
    printed = run(
        [program, "-p", TASK, "--output-format", "json", "--allowedTools", "Read,Edit,Bash"],
        project,
        tmp_path / "home",
        DISABLE_TELEMETRY="1",
        DISABLE_AUTOUPDATER="1",
        DISABLE_ERROR_REPORTING="1",
    )
    result = json.loads(printed)
    assert (result["is_error"], result["result"], result["num_turns"]) == (False, "Done.", 4)
    check_done(model, project)


CODEX_CONFIG = """check_for_update_on_startup = false

[analytics]
enabled = false
"""


def test_codex_does_a_small_task(
    installed: Path, project: Path, serve: Callable[[AgentModel], Running], tmp_path: Path
) -> None:
    program = installed / "@openai" / "codex" / "bin" / "codex.js"
    node = shutil.which("node")
    if not program.exists() or node is None:
        pytest.skip(f"{program} or node is not there")
    model = AgentModel(
        [
            ("exec_command", {"cmd": "cat calc.py"}),
            ("exec_command", {"cmd": "sed -i 's/a - b/a + b/' calc.py"}),
            ("exec_command", {"cmd": RUN}),
        ]
    )
    home = tmp_path / "home"
    home.mkdir()
    (home / "config.toml").write_text(CODEX_CONFIG)
    connect("codex", serve(model), home, CODEX_HOME=str(home))
    printed = run(
        [node, program, "exec", "--profile", "kamado", "--skip-git-repo-check",
         "--sandbox", "danger-full-access", "--json", TASK],
        project,
        home,
        CODEX_HOME=str(home),
    )  # fmt: skip
    events = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    items = [event["item"] for event in events if event["type"] == "item.completed"]
    assert events[-1]["type"] == "turn.completed"
    assert [item["exit_code"] for item in items if item["type"] == "command_execution"] == [0, 0, 0]
    assert [item["text"] for item in items if item["type"] == "agent_message"] == ["Done."]
    check_done(model, project)


def test_opencode_does_a_small_task(
    installed: Path, project: Path, serve: Callable[[AgentModel], Running], tmp_path: Path
) -> None:
    program = installed / f"opencode-{sys.platform}-{processor()}" / "bin" / "opencode"
    if not program.exists():
        pytest.skip(f"{program} is not there")
    path = str(project / "calc.py")
    model = AgentModel(
        [
            ("read", {"filePath": path}),
            ("edit", {"filePath": path, "oldString": "a - b", "newString": "a + b"}),
            ("bash", {"command": RUN, "description": "Runs the test"}),
        ]
    )
    connect("opencode", serve(model), tmp_path / "home")
    config = {"autoupdate": False, "share": "disabled", "model": "kamado/fake", "small_model": "kamado/fake"}
    (project / "opencode.json").write_text(json.dumps(config))
    printed = run(
        [program, "run", "--model", "kamado/fake", "--format", "json", TASK],
        project,
        tmp_path / "home",
        OPENCODE_DISABLE_AUTOUPDATE="1",
        OPENCODE_DISABLE_MODELS_FETCH="1",
    )
    parts = [json.loads(line)["part"] for line in printed.splitlines() if line.startswith("{")]
    assert [part["state"]["status"] for part in parts if part["type"] == "tool"] == ["completed"] * 3
    assert [part["text"] for part in parts if part["type"] == "text"] == ["Done."]
    check_done(model, project)
