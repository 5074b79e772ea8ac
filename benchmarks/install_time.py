"""How long it takes from a built wheel, or from source, to a first answer: an empty home, no compiler, a real index.

    python3 benchmarks/install_time.py --dist dist                  pip, pipx (if here), uv (if here), pip with [serve]
    python3 benchmarks/install_time.py --dist dist --ways pip --json out.json
    python3 benchmarks/install_time.py --dist dist --ways source    the source distribution, with the machine's compiler
    python3 benchmarks/install_time.py --dist dist --before OLD.whl --ways upgrade

Each way gets a home folder of its own and a PATH of one folder with the Python that runs this (and pipx or uv), so
nothing can be compiled and no cache is warm. Kamado comes from the folder DIST, all else from the package index that
pip is set to use; so does the model. Every step's seconds and bytes on the disk are printed; a step that fails ends it.
`upgrade` installs OLD.whl, fetches, installs the wheel of DIST over it and asks without fetching again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

MODEL, QUESTION = "smollm2:135m", "Why is the sky blue?"
# What a machine may need to be told to reach its index; nothing else of the environment is taken.
NETWORK = ("SSL_CERT_FILE", "PIP_CERT", "PIP_INDEX_URL", "UV_INDEX_URL", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
WAYS = ("pip", "pipx", "uv", "serve", "source", "upgrade")
LIMIT_SECONDS = 600
PORT = 8471


@dataclass(frozen=True, slots=True)
class Step:
    """One step of one way."""

    way: str
    name: str
    seconds: float
    nbytes: int  # that the home folder has more of afterwards, caches left out
    said: str  # the end of what it printed


class Home:
    """An empty user's home, and what was done in it."""

    def __init__(self, way: str, folder: Path, dist: Path, programs: dict[str, str]) -> None:
        self.way, self.folder, self.dist = way, folder, dist
        path = folder / "path"
        path.mkdir()
        for name, real in programs.items():
            (path / name).symlink_to(real)
        self.bin = folder / ".local" / "bin"
        search = f"{self.bin}{os.pathsep}{path}" + (f"{os.pathsep}{os.environ['PATH']}" if way == "source" else "")
        self.env = {name: os.environ[name] for name in NETWORK if name in os.environ}
        self.env |= {"HOME": str(folder), "PATH": search, "LANG": "C.UTF-8", "UV_PYTHON_DOWNLOADS": "never"}
        self.steps: list[Step] = []

    def do(self, name: str, action: Callable[[], str]) -> str:
        """Does a step and notes it."""
        before, start = nbytes(self.folder), time.monotonic()
        said = action()
        seconds = time.monotonic() - start
        self.steps.append(Step(self.way, name, round(seconds, 2), nbytes(self.folder) - before, said.strip()[-200:]))
        print(f"{self.way:8} {name:10} {seconds:7.1f} s {self.steps[-1].nbytes / 1e6:8.1f} MB  {said.strip()[-90:]!r}")
        return said

    def run(self, *words: str | Path) -> str:
        """stdout of a program in this home; ends the benchmark when it fails."""
        done = subprocess.run(
            [str(word) for word in words], env=self.env, cwd=self.folder, capture_output=True, text=True, check=False,
            stdin=subprocess.DEVNULL, timeout=LIMIT_SECONDS,
        )  # fmt: skip
        if done.returncode != 0:
            sys.exit(f"{self.way}: exit code {done.returncode} from {words[0]}: {done.stdout}{done.stderr}"[-3000:])
        return done.stdout

    def kamado(self, *words: str) -> str:
        """stdout of the installed command."""
        return self.run(shutil.which("kamado", path=self.env["PATH"]) or "kamado", *words)


def nbytes(folder: Path) -> int:
    """Of all files below, each once, caches left out."""
    seen = {}
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name != ".cache"]
        for name in files:
            status = os.lstat(os.path.join(root, name))
            seen[status.st_ino] = status.st_size
    return sum(seen.values())


def install(home: Home, way: str, wheel: Path | None = None) -> None:
    """The steps up to an installed command."""
    links = ("--find-links", home.dist)
    if way == "pipx":
        home.do("install", lambda: home.run("pipx", "install", "--pip-args", f"--find-links {home.dist}", "kamado"))
    elif way == "uv":
        home.do(
            "install", lambda: home.run("uv", "tool", "install", "--quiet", "--python", "python3", *links, "kamado")
        )
    else:
        venv = home.folder / "venv"
        if not venv.exists():
            home.do("venv", lambda: home.run("python3", "-m", "venv", venv))
            home.bin.parent.mkdir(exist_ok=True)
            home.bin.symlink_to(venv / "bin")
        extra = {"serve": ["kamado[serve]"], "source": ["--no-binary", "kamado", "kamado"]}.get(way, ["kamado"])
        if wheel is not None:
            extra = [str(wheel)]
        pip = (home.bin / "pip", "install", "--quiet", "--upgrade")
        if way == "upgrade" and wheel is None:
            pip = (*pip, "--force-reinstall", "--no-deps")  # the version may be the same
        home.do("upgrade" if way == "upgrade" and wheel is None else "install", lambda: home.run(*pip, *links, *extra))
    home.do("--version", lambda: home.kamado("--version"))


def ask(home: Home, *, has_model: bool = False) -> None:
    """Fetches the small model and asks it."""
    if not has_model:
        home.do("pull", lambda: home.kamado("pull", MODEL))
    home.do("answer", lambda: home.kamado("run", MODEL, QUESTION, "--max-tokens", "32", "--temperature", "0"))


def ask_server(home: Home) -> None:
    """Starts `kamado serve` and has one chat answered over HTTP."""
    words = [str(home.bin / "kamado"), "serve", MODEL, "--port", str(PORT)]
    with subprocess.Popen(words, env=home.env, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as server:
        try:
            home.do("serve", lambda: wait_for(f"http://127.0.0.1:{PORT}/health", server))
            home.do("chat", chat)
        finally:
            server.send_signal(signal.SIGTERM)


def wait_for(url: str, server: subprocess.Popen[bytes]) -> str:
    """What the address answers as soon as it does."""
    while server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return str(answer.status)
        except OSError:
            time.sleep(0.1)
    sys.exit(f"kamado serve ended with exit code {server.returncode}")


def chat() -> str:
    """One answer of the server."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 32, "temperature": 0}
    request = urllib.request.Request(
        f"http://127.0.0.1:{PORT}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=LIMIT_SECONDS) as answer:
        return str(json.loads(answer.read())["choices"][0]["message"]["content"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dist", type=Path, required=True, help="folder with Kamado's wheels and source distribution")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["pip", "pipx", "uv", "serve"])
    parser.add_argument("--before", type=Path, help="wheel of an earlier version, for upgrade")
    parser.add_argument("--json", type=Path, help="write the steps here")
    options = parser.parse_args()
    if "upgrade" in options.ways and options.before is None:
        parser.error("upgrade needs --before")
    steps: list[Step] = []
    for way in options.ways:
        programs = {"python3": os.path.realpath(sys.executable)}
        if way in ("pipx", "uv"):
            found = shutil.which(way)
            if found is None:
                print(f"{way}: not here, left out")
                continue
            programs[way] = found
        with tempfile.TemporaryDirectory(prefix="kamado-install-") as name:
            home = Home(way, Path(name), options.dist.absolute(), programs)
            install(home, way, options.before.absolute() if way == "upgrade" else None)
            ask(home)
            if way == "serve":
                ask_server(home)
            if way == "upgrade":
                install(home, way)
                ask(home, has_model=True)
        total = sum(step.seconds for step in home.steps)
        print(f"{way:8} in all     {total:7.1f} s {sum(step.nbytes for step in home.steps) / 1e6:8.1f} MB\n")
        steps += home.steps
    if options.json:
        options.json.write_text(json.dumps([asdict(step) for step in steps], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
