#!/usr/bin/env python3
"""Installs what lies in dist/ into Debian systems in folders, and asks it for an answer: by hand, as root.

    python3 tools/try_release.py deb         .deb in Debian 12 and 13: install, answer, serve, remove
    python3 tools/try_release.py rpm         .rpm, unpacked by rpm into a Debian 13 that fulfils its dependencies
    python3 tools/try_release.py container   the steps of packaging/Containerfile, then the server and its health check
    python3 tools/try_release.py aarch64     the .deb for 64-bit ARM, emulated: imports, and answers 8 tokens
    python3 tools/try_release.py old         the wheels' modules, loaded by the C library of Debian 11

The systems are made by debootstrap.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from releasing import container, trees
from releasing.project import ROOT, WORK, ReleaseError, finish, run, version
from releasing.roots import copy_root, emulation, entered, inside, make_root

SUITES = {"3.11": "bookworm", "3.13": "trixie"}  # whose Python this is
BASE = ("python3", "python3-venv", "ca-certificates")
START_SECONDS = 120.0
PROMPT = "Why is the sky blue?"
DEBS = {"x86_64": "amd64", "aarch64": "arm64"}


def say(text: str) -> None:
    print(f"[try] {text}", flush=True)


def timed(what: str, action: Callable[[], str]) -> str:
    """Does it and prints how long it took."""
    start = time.monotonic()
    answer = action()
    say(f"{what}: {time.monotonic() - start:.1f} s: {answer.strip()[-300:]}")
    return answer


def put_tiny_model(root: Path) -> None:
    """smoke.py, which writes a tiny model and runs every command on it, into the root."""
    (root / "opt").mkdir(exist_ok=True)  # a system that was only unpacked has none
    shutil.copy(ROOT / "tools" / "smoke.py", root / "opt" / "smoke.py")
    shutil.copy(ROOT / "tools" / "smoke_serve.py", root / "opt" / "smoke_serve.py")


def try_deb(options: argparse.Namespace) -> None:
    for python, suite in SUITES.items():
        root = copy_root(make_root(options.roots, suite, BASE), options.roots / "work" / f"deb-{suite}")
        package = options.dist / f"kamado_{trees.release(python)}_{DEBS[os.uname().machine]}.deb"
        shutil.copy(package, root / "opt" / "kamado.deb")
        put_tiny_model(root)
        timed(f"{suite}: dpkg --install", lambda: inside(root, "dpkg", "--install", "/opt/kamado.deb"))  # noqa: B023
        use_installed(root, suite)
        inside(root, "dpkg", "--purge", "kamado")
        left = [str(p.relative_to(root)) for p in (root / "usr").rglob("*kamado*") if "smoke" not in p.name]
        if left:
            raise ReleaseError(f"{suite}: dpkg --purge left {left[:5]}")
        say(f"{suite}: purged, nothing left below /usr")


def use_installed(root: Path, name: str) -> None:
    """What an installed package must do, without a compiler and without a network."""
    if (root / "usr" / "bin" / "c++").exists():
        raise ReleaseError(f"{name} has a compiler, so this would show nothing")
    timed(f"{name}: --version", lambda: inside(root, "kamado", "--version"))
    python = "/usr/lib/kamado/bin/python"
    timed(f"{name}: every command on a tiny model", lambda: inside(root, python, "-I", "/opt/smoke.py"))
    timed(f"{name}: server and page", lambda: inside(root, python, "-I", "/opt/smoke_serve.py"))
    for shell, place in {"bash": "bash-completion/completions/kamado", "man": "man/man1/kamado.1.gz"}.items():
        say(f"{name}: {shell}: {'there' if (root / 'usr' / 'share' / place).exists() else 'not there'}")


def try_rpm(options: argparse.Namespace) -> None:
    python = "3.13"
    root = copy_root(make_root(options.roots, SUITES[python], BASE), options.roots / "work" / "rpm")
    number, _, revision = trees.release(python).partition("-")
    package = options.dist / f"kamado-{number}-{revision}.{os.uname().machine}.rpm"
    put_tiny_model(root)
    # Debian's files are in no database of rpm's, so what the package needs is looked up by hand and not by rpm.
    needs = subprocess.run(["rpm", "-qp", "--requires", str(package)], capture_output=True, text=True, check=True)
    say(f"needs: {' '.join(needs.stdout.split())}")
    rpm = ("rpm", "--root", str(root), "--nodeps", "--noscripts", "--nosignature")
    run(*rpm, "--install", package)
    inside(root, "sh", "-c", trees.COMPILE)  # %post; rpm --root would run it by a shell that must be in its database
    use_installed(root, "rpm")
    run(*rpm, "--erase", "kamado")
    say(f"erased, left: {sorted(p.name for p in (root / 'usr' / 'lib').glob('kamado*'))}")


def try_container(options: argparse.Namespace) -> None:
    stages = container.read_stages((ROOT / "packaging" / "Containerfile").read_text())
    context = options.roots / "work" / "context"
    shutil.rmtree(context, ignore_errors=True)
    shutil.copytree(ROOT / "requirements", context / "requirements")
    shutil.copytree(options.dist, context / "dist", ignore=shutil.ignore_patterns("*.deb", "*.rpm"))
    start = time.monotonic()

    def base(name: str) -> Path:
        suite = name.rpartition(":")[2].removesuffix("-slim")
        return make_root(options.roots, suite, ("ca-certificates",))

    image = container.build(stages, context, options.roots / "work" / "container", base)
    size = subprocess.run(["du", "-sm", str(image.root)], capture_output=True, text=True, check=True).stdout.split()[0]
    say(f"steps done in {time.monotonic() - start:.0f} s; the system has {size} MB; runs as {image.user}")
    with subprocess.Popen(image.started(), start_new_session=True, text=True, stderr=subprocess.PIPE) as server:
        try:
            wait_for_health(image)
            with urllib.request.urlopen("http://127.0.0.1:8417/health", timeout=10) as answer:
                say(f"/health: {json.loads(answer.read())['status']}, health check passed")
            say(f"its user id: {Path(f'/proc/{server.pid}').stat().st_uid}")
        finally:
            os.killpg(server.pid, signal.SIGTERM)


def wait_for_health(image: container.Image) -> None:
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            image.ask_health()
            return
        except ReleaseError:
            if time.monotonic() > end:
                raise
            time.sleep(1)


def try_aarch64(options: argparse.Namespace) -> None:
    with emulation():
        for python, suite in SUITES.items():
            package = options.dist / f"kamado_{trees.release(python)}_arm64.deb"
            root = copy_root(make_root(options.roots, suite, BASE, "aarch64"), options.roots / "work" / f"arm-{suite}")
            run("dpkg-deb", "--extract", package, root)
            put_tiny_model(root)
            timed(f"{suite}: --version", lambda: inside(root, "kamado", "--version"))  # noqa: B023
            answer_eight(root, suite, options.model)


def answer_eight(root: Path, name: str, model: Path | None) -> None:
    """Eight tokens of the model file, or of a tiny one with random weights."""
    if model is not None:
        shutil.copy(model, root / "opt" / "model.gguf")
    else:
        script = (
            "import sys; sys.path.insert(0, '/opt')\n"
            "from pathlib import Path\nfrom smoke import kamado, write_donor\n"
            "write_donor(Path('/opt/donor.gguf'))\n"
            "kamado('synth', '/opt/model.gguf', '--family', 'qwen3', '--tokenizer-from', '/opt/donor.gguf',"
            " '--layers', 2, '--hidden', 256, '--heads', 4, '--kv-heads', 2, '--head-dim', 64, '--context', 1024,"
            " '--force')\n"
        )
        inside(root, "/usr/lib/kamado/bin/python", "-I", "-c", script)
    words = ("kamado", "run", "/opt/model.gguf", PROMPT, "--max-tokens", "8", "--temperature", "0", "--stats")
    done = subprocess.run(entered(root, words), capture_output=True, text=True, check=False)
    if done.returncode != 0 or "answer 8 tokens" not in done.stderr:  # random weights may say nothing but blanks
        raise ReleaseError(f"{name}: exit code {done.returncode}: {done.stdout}{done.stderr}")
    say(f"{name}: answers: {done.stdout!r}")
    say(f"{name}: {done.stderr.strip()[-600:]}")


def try_old(options: argparse.Namespace) -> None:
    """It has no Python that is new enough, so its C library alone loads the module: only Python's names may lack."""
    root = copy_root(make_root(options.roots, "bullseye", ("ca-certificates",)), options.roots / "work" / "old")
    say(inside(root, "sh", "-c", "ldd --version | head -n 1").strip())
    for wheel in sorted(options.dist.glob(f"kamado-{version()}-*_{os.uname().machine}.whl")):
        with zipfile.ZipFile(wheel) as archive:
            (name,) = [name for name in archive.namelist() if name.endswith(".so")]
            (root / "opt" / "module.so").write_bytes(archive.read(name))
        said = inside(root, "sh", "-c", "chmod 755 /opt/module.so && ldd -r /opt/module.so 2>&1").splitlines()
        missing = [line for line in said if "not found" in line or re.search(r"undefined symbol: (?!_?Py)", line)]
        if missing:
            raise ReleaseError(f"{wheel.name}: {missing[:5]}")
        say(f"{wheel.name}: all names found but {sum('undefined symbol: ' in line for line in said)} of Python's")


STEPS = {"deb": try_deb, "rpm": try_rpm, "container": try_container, "aarch64": try_aarch64, "old": try_old}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("--dist", type=Path, default=ROOT / "dist", help="folder of the artefacts")
    parser.add_argument("--roots", type=Path, default=WORK / "roots", help="folder for Debian systems")
    parser.add_argument("--model", type=Path, help="model file for aarch64, instead of a tiny random one")
    options = parser.parse_args()
    return finish("try", lambda: STEPS[options.step](options))


if __name__ == "__main__":
    sys.exit(main())
