#!/usr/bin/env python3
"""Makes a release: source distribution, wheels, .deb and .rpm, and what is said about them, in dist/.

    python3 tools/release.py tag v0.2.0            is the tag the version, and does the changelog have it?
    python3 tools/release.py sdist
    python3 tools/release.py wheel [--processor P] for this Python: 3.11 its own, any later one the stable ABI of 3.12
    python3 tools/release.py check                 every wheel: tags, glibc, exported names, stable ABI
    python3 tools/release.py deb --for 3.11 3.13   packages for these Pythons, from the wheels in dist/
    python3 tools/release.py rpm --for 3.12 3.13
    python3 tools/release.py say [--tag v0.2.0]    bill of materials, provenance, checksums of all that is in dist/

Needs requirements/release.txt (pip install --require-hashes -r requirements/release.txt), and dpkg-deb or rpmbuild for
their packages. Nothing is published: .github/workflows/release.yml does that with what lies in dist/.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from releasing import statements, trees, wheels
from releasing.project import PROCESSORS, ROOT, WORK, ReleaseError, check_tag, commit, epoch, finish, read_lock, version

SAID = ("SHA256SUMS", ".cdx.json", ".intoto.json")


def say(text: str) -> None:
    print(f"[release] {text}", flush=True)


def described(path: Path) -> str:
    return f"{path.name}: {path.stat().st_size / 1e6:.2f} MB"


def step_tag(options: argparse.Namespace) -> None:
    check_tag(options.tag)
    say(f"{options.tag}: version, tag and changelog agree")


def step_sdist(options: argparse.Namespace) -> None:
    say(described(wheels.build_sdist(options.out)))


def step_wheel(options: argparse.Namespace) -> None:
    sdist = options.out / f"kamado-{version()}.tar.gz"
    if not sdist.exists():
        raise ReleaseError(f"{sdist.name} is not in {options.out}: make it with tools/release.py sdist")
    start = time.monotonic()
    wheel = wheels.build_wheel(sdist, options.processor, options.out, zig=options.zig, headers=options.headers)
    say(f"{described(wheel)}, in {time.monotonic() - start:.0f} s")


def step_check(options: argparse.Namespace) -> None:
    found = sorted(options.out.glob("kamado-*.whl"))
    if not found:
        raise ReleaseError(f"there is no wheel in {options.out}")
    for wheel in found:
        say(f"{wheel.name}: {json.dumps(wheels.check_wheel(wheel))}")


def step_package(options: argparse.Namespace) -> None:
    """A .deb or .rpm for each Python."""
    for python in options.pythons:
        root = WORK / f"tree-{options.step}-{python}-{options.processor}"
        wheel = trees.wheel_for(python, options.processor, options.out)
        trees.make_tree(root, wheel, python, options.processor, options.step)
        build = trees.build_deb if options.step == "deb" else trees.build_rpm
        say(described(build(root, python, options.processor, options.out)))


def artefacts(folder: Path) -> list[Path]:
    """What is released, without what is said about it."""
    found = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.endswith(SAID)]
    if not any(path.suffix == ".whl" for path in found):
        raise ReleaseError(f"there is no wheel in {folder}")
    return found


def step_say(options: argparse.Namespace) -> None:
    """Bill of materials, provenance and checksums; the workflow's own variables name repository and run."""
    made = artefacts(options.out)
    compiler = wheels.compiler(options.zig)
    built = [path for path in made if path.suffix == ".whl"]
    bill = statements.bill_of_materials(
        version(), built, read_lock("core"), read_lock("serve"), read_lock("build"), compiler, epoch()
    )
    statements.check_bill(bill)
    server, name = os.environ.get("GITHUB_SERVER_URL", ""), os.environ.get("GITHUB_REPOSITORY", "")
    repository = f"{server}/{name}" if server and name else ""
    job = os.environ.get("GITHUB_RUN_ID", "")
    statement = statements.provenance(
        made,
        commit(),
        repository=repository,
        builder=f"{repository}/.github/workflows/release.yml" if job else "urn:kamado:by-hand",
        run=f"{repository}/actions/runs/{job}" if job else "",
        tag=options.tag or "",
        locks=sorted((ROOT / "requirements").glob("*.txt")),
        compiler=compiler,
        started=int(min(path.stat().st_mtime for path in made)),
        finished=int(time.time()),
    )
    bill_path = options.out / f"kamado-{version()}.cdx.json"
    bill_path.write_text(json.dumps(bill, indent=1) + "\n")
    statement_path = options.out / f"kamado-{version()}.intoto.json"
    statement_path.write_text(json.dumps(statement, indent=1) + "\n")
    (options.out / "SHA256SUMS").write_text(statements.checksums([*made, bill_path, statement_path]))
    say(f"{len(made)} files, {len(bill['components'])} components, commit {commit() or 'unknown'}")


STEPS = {
    "tag": step_tag, "sdist": step_sdist, "wheel": step_wheel, "check": step_check, "deb": step_package,
    "rpm": step_package, "say": step_say,
}  # fmt: skip


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    for name in STEPS:
        step = steps.add_parser(name)
        step.add_argument("--out", type=Path, default=ROOT / "dist", help="folder of the artefacts")
        if name == "tag":
            step.add_argument("tag")
        if name == "say":
            step.add_argument("--tag", help="the release's tag")
        if name in ("wheel", "say"):
            step.add_argument("--zig", type=Path, help="the compiler, if not that of the ziglang package")
        if name in ("wheel", "deb", "rpm"):
            step.add_argument("--processor", choices=PROCESSORS, default=os.uname().machine)
        if name == "wheel":
            step.add_argument("--headers", type=Path, help="folder of Python's headers for another processor")
        if name in ("deb", "rpm"):
            step.add_argument("--for", nargs="+", dest="pythons", required=True, metavar="X.Y")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    options.out.mkdir(parents=True, exist_ok=True)
    return finish("release", lambda: STEPS[options.step](options))


if __name__ == "__main__":
    sys.exit(main())
