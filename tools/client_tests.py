#!/usr/bin/env python3
"""Runs the API tests of two clients that are not ours, from their source distributions, against a server of this tree.

    .venv/bin/python tools/client_tests.py [--json FILE] [--kept FOLDER]

openai-python and anthropic-python ship tests that send every parameter of every endpoint with made-up values and check
the answers against their own types, strictly. The distributions are fetched by pip with the hashes below; a small
random model answers under the names that the tests ask for. What fails is classed by the reason that the server gave;
docs/clients.md has the table. CI does not run this: it takes a package index and about a minute.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TEST_PACKAGES = (
    "pytest>=9",
    "pytest-asyncio>=1.4",
    "pytest-xdist",
    "inline-snapshot",
    "http-snapshot",
    "respx",
    "rich",
)


@dataclass(frozen=True)
class Client:
    """A client's source distribution and those of its tests that ask for what this server has."""

    name: str
    version: str
    sha256: str
    base: str  # what the client's base URL has after the address
    tests: tuple[str, ...]
    aliases: dict[str, str] = field(default_factory=dict)  # names in the tests -> "chat" or "embed"


CLIENTS = (
    Client(
        "openai",
        "3.54.0",
        "2e393e63f8a38be6452806f9ef0b6534fecd6d41ab3b2165180dfce3599249cd",
        "/v1",
        (
            "tests/api_resources/chat/test_completions.py",
            "tests/api_resources/test_completions.py",
            "tests/api_resources/test_embeddings.py",
            "tests/api_resources/test_models.py",
            "tests/api_resources/test_responses.py",
            "tests/api_resources/responses/test_input_items.py",
            "tests/api_resources/responses/test_input_tokens.py",
        ),
        {
            "gpt-6-astra": "chat",
            "gpt-3.5-turbo-instruct": "chat",
            "text-embedding-3-small": "embed",
            "model": "chat",
        },
    ),
    Client(
        "anthropic",
        "2.12.0",
        "571e6d250bcd6bbaf5fd5f3c764b8e11af9901ad2e44b025f8e773c6cc7a7173",
        "",
        ("tests/api_resources/test_messages.py", "tests/api_resources/test_models.py"),
        {"claude-opus-5-5": "chat", "model_id": "chat"},
    ),
)


@dataclass
class Outcome:
    """What became of one client's tests."""

    passed: int = 0
    skipped: int = 0
    failures: dict[str, str] = field(default_factory=dict)  # test -> reason

    @property
    def failed(self) -> int:
        return len(self.failures)


def run(*command: str | Path, env: dict[str, str] | None = None, cwd: Path = ROOT) -> int:
    return subprocess.run(
        [str(word) for word in command], env={**os.environ, **(env or {})}, cwd=cwd, check=False
    ).returncode


def fetch(client: Client, folder: Path) -> Path:
    """The unpacked source distribution. Its hash is checked before it is opened."""
    pin = folder / f"{client.name}.txt"
    pin.write_text(f"{client.name}=={client.version} --hash=sha256:{client.sha256}\n")
    words = ("-m", "pip", "download", "-q", "--no-deps", "--require-hashes", "--no-binary", client.name)
    if run(sys.executable, *words, "-d", folder, "-r", pin):
        sys.exit(f"{client.name} {client.version} could not be fetched")
    with tarfile.open(folder / f"{client.name}-{client.version}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder / f"{client.name}-{client.version}"


def make_environment(folder: Path) -> Path:
    """The Python of a virtual environment with both clients and what their tests import."""
    venv = folder / "venv"
    python = venv / "bin" / "python"
    if not python.exists():
        packages = [f"{client.name}[aiohttp]=={client.version}" for client in CLIENTS]
        if run(sys.executable, "-m", "venv", venv) or run(
            python, "-m", "pip", "install", "-q", *packages, *TEST_PACKAGES
        ):
            sys.exit("the tests' environment could not be made")
    return python


def make_models(home: Path, folder: Path) -> None:
    """A chat and an embedding model in the store at `home`, tiny and random: the tests look at shapes, not at sense."""
    from conftest import _write_tiny

    from kamado.library.store import Store, StoredFile

    store = Store(home)
    for name, more in (("chat", {}), ("embed", {"pooling_type": 3, "seed": 8})):
        file = _write_tiny(folder / f"{name}.gguf", **more)
        sha256, nbytes = hashlib.sha256(file.read_bytes()).hexdigest(), file.stat().st_size
        store.adopt(file, sha256)
        store.add(name, [StoredFile(file.name, sha256, nbytes)], {"kind": "test"})


def run_client(client: Client, source: Path, python: Path, url: str, folder: Path) -> Outcome:
    report = folder / f"{client.name}.xml"
    tests = [name for name in client.tests if (source / name).exists()]
    # Warnings of the test tools' newer versions are no failures; a server's answer is.
    options = ("-q", "-p", "no:cacheprovider", "-n", "1", "--tb=short", "-W", "ignore", f"--junitxml={report}")
    key = {"TEST_API_BASE_URL": url + client.base, "PYTHONPATH": str(source)}
    run(python, "-m", "pytest", *options, *tests, env=key, cwd=source)
    outcome = Outcome()
    for case in ET.parse(report).iter("testcase"):
        problems = [child for child in case if child.tag in ("failure", "error")]
        if any(child.tag == "skipped" for child in case):
            outcome.skipped += 1
        elif problems:
            name = f"{case.get('classname')}.{case.get('name')}"
            outcome.failures[name] = reason(problems[0].get("message", "") + "\n" + (problems[0].text or ""))
        else:
            outcome.passed += 1
    return outcome


def reason(text: str) -> str:
    """What the server said, else the first line of the failure."""
    match = re.search(r"Error code: (\d+) - .*?'message': (['\"])(.*?)\2[,}]", text)
    if match:
        return f"{match[1]}: {match[3]}"
    first = text.strip().splitlines()[0] if text.strip() else "unknown"
    return re.sub(r"^openai\.\w+: Error code: (\d+) - ", r"\1: ", first)[:200]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="where every failure goes")
    parser.add_argument("--kept", type=Path, help="a folder to keep the environment in for the next time")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests"))
    from serve.processes import started

    with tempfile.TemporaryDirectory() as name:
        folder = Path(options.kept or name).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        python = make_environment(folder)
        home = Path(name) / "home"
        make_models(home, Path(name))
        config = Path(name) / "serve.toml"
        aliases = {alias: kind for client in CLIENTS for alias, kind in client.aliases.items()}
        config.write_text("[aliases]\n" + "".join(f'"{alias}" = "{kind}"\n' for alias, kind in aliases.items()))
        found: dict[str, Outcome] = {}
        with started(home, "chat", "--all", "--config", config) as server:
            url = str(server.http.base_url).rstrip("/")
            for client in CLIENTS:
                source = fetch(client, folder)
                found[client.name] = run_client(client, source, python, url, folder)
    for client in CLIENTS:
        outcome = found[client.name]
        counts = f"{outcome.passed} passed, {outcome.failed} failed, {outcome.skipped} skipped"
        print(f"\n{client.name} {client.version}: {counts}")
        for text, count in Counter(outcome.failures.values()).most_common():
            print(f"  {count:3}  {text}")
    if options.json is not None:
        options.json.write_text(json.dumps({name: vars(outcome) for name, outcome in found.items()}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
