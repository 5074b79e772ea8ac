"""Debian and RPM packages: Kamado with all it needs in one folder, run by the system's own Python.

    /usr/lib/kamado/   pyvenv.cfg, bin/python, bin/kamado, lib/pythonX.Y/site-packages/, as in a virtual environment
    /usr/bin/kamado    a link to bin/kamado
    man pages and completions where each family of systems looks for them

The systems' own packages of what we need are older than what we need, so exact versions come from the lock, and a
package is for one version of Python: 3.11 is Debian 12's, 3.12 Ubuntu 24.04's and Red Hat 10's, 3.13 Debian 13's and
Fedora 42's.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from .project import ROOT, WORK, ReleaseError, environment, epoch, read_lock, run, version

Family = Literal["deb", "rpm"]
# Younger than that of our own wheels: llguidance, which the server needs, has none for an older one.
GLIBC = (2, 31)
_MAINTAINER = "The Kamado developers <noreply@kamado.invalid>"
_SUMMARY = "Runs open-weight language models on the machine you own"
_TEXT = (
    "Answers, chats and serves models from GGUF and safetensors files with the processor alone, inside a byte budget"
    " that it names beforehand. Models that are larger than memory stream their experts from the disk."
)
_DEB_NAMES = {"x86_64": "amd64", "aarch64": "arm64"}
_ZSH = {"deb": "usr/share/zsh/vendor-completions", "rpm": "usr/share/zsh/site-functions"}
_SHELLS = {
    "bash": "usr/share/bash-completion/completions/kamado",
    "fish": "usr/share/fish/vendor_completions.d/kamado.fish",
}
# Compiled when it is installed: the folder is root's, and without it every start would read all sources anew.
COMPILE = "/usr/lib/kamado/bin/python -m compileall -q /usr/lib/kamado/lib >/dev/null || true"
_FORGET = "find /usr/lib/kamado -depth -name __pycache__ -exec rm -rf {} +"


def wheel_for(python: str, processor: str, folder: Path) -> Path:
    """The wheel in `folder` that this Python takes. Raises ReleaseError when it is not there."""
    abi = "cp311-cp311" if python == "3.11" else "cp312-abi3"
    found = sorted(folder.glob(f"kamado-{version()}-{abi}-manylinux_*_{processor}.whl"))
    if not found:
        raise ReleaseError(f"{folder} has no {abi} wheel for {processor}: make it with tools/release.py wheel")
    return found[-1]


def make_tree(root: Path, wheel: Path, python: str, processor: str, family: Family) -> None:
    """Everything that is installed, below `root`."""
    shutil.rmtree(root, ignore_errors=True)
    home = root / "usr" / "lib" / "kamado"
    site = home / "lib" / f"python{python}" / "site-packages"
    site.mkdir(parents=True)
    _install_packages(site, python, processor)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (home / "pyvenv.cfg").write_text(f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {python}\n")
    (home / "bin").mkdir()
    (home / "bin" / "python").symlink_to(f"/usr/bin/python{python}")
    program = home / "bin" / "kamado"
    # -I: what a user's environment says of Python (PYTHONPATH) is meant for another one.
    program.write_text(
        "#!/usr/lib/kamado/bin/python -I\nimport sys\n\nfrom kamado.cli.main import main\n\nsys.exit(main())\n"
    )
    program.chmod(0o755)
    (root / "usr" / "bin").mkdir()
    (root / "usr" / "bin" / "kamado").symlink_to("../lib/kamado/bin/kamado")
    _add_pages(root, site, family)
    document = root / "usr" / "share" / "doc" / "kamado"
    document.mkdir(parents=True)
    shutil.copy(ROOT / "LICENSE", document / "copyright")
    for path in root.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path == program else 0o644)
            os.utime(path, (epoch(), epoch()))


def _install_packages(site: Path, python: str, processor: str) -> None:
    """The serve lock's packages for that Python and processor, each checked against its hash."""
    here = environment(python, processor)
    pins = [pin for pin in read_lock("serve") if pin.is_for(here)]
    lock = WORK / f"serve-{python}-{processor}.txt"
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.write_text(
        "".join(f"{p.name}=={p.version} {' '.join(f'--hash=sha256:{h}' for h in p.sha256)}\n" for p in pins)
    )
    abi = f"cp{python.replace('.', '')}"
    tags = [*(f"manylinux_2_{minor}_{processor}" for minor in range(GLIBC[1], 4, -1)), f"manylinux2014_{processor}",
            f"manylinux2010_{processor}", f"manylinux1_{processor}"]  # fmt: skip
    # The lock's markers have chosen for that Python already; pip would ask whether this one fits.
    run(
        sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--require-hashes",
        "--only-binary=:all:", "--ignore-requires-python", "--target", site,
        "--python-version", python, "--implementation", "cp",
        *(word for name in (abi, "abi3", "none") for word in ("--abi", name)),
        *(word for tag in tags for word in ("--platform", tag)), "-r", lock,
    )  # fmt: skip
    shutil.rmtree(site / "bin", ignore_errors=True)  # their programs are not ours to put anywhere


def _add_pages(root: Path, site: Path, family: Family) -> None:
    """Man pages, if there are any, and completions."""
    for page in sorted((ROOT / "docs" / "man").glob("*.[1-8]")):
        target = root / "usr" / "share" / "man" / f"man{page.suffix[1:]}" / f"{page.name}.gz"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(gzip.compress(page.read_bytes(), mtime=0))
    for shell, place in {**_SHELLS, "zsh": f"{_ZSH[family]}/_kamado"}.items():
        path = root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        # Only pure Python is imported for it, so the tree of another Python or processor does.
        words = [sys.executable, "-m", "kamado", "completion", shell]
        surrounding = {**os.environ, "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(words, capture_output=True, text=True, check=False, env=surrounding)
        if done.returncode != 0 or "kamado" not in done.stdout:
            raise ReleaseError(f"kamado completion {shell}: {done.stderr.strip()}")
        path.write_text(done.stdout)


# --- deb --------------------------------------------------------------------------------------------------------------


def deb_control(python: str, processor: str, installed_kib: int) -> str:
    """The control file."""
    return (
        f"Package: kamado\nVersion: {release(python)}\nArchitecture: {_DEB_NAMES[processor]}\n"
        f"Maintainer: {_MAINTAINER}\nInstalled-Size: {installed_kib}\n"
        f"Depends: python{python}, libc6 (>= {GLIBC[0]}.{GLIBC[1]})\nSection: science\nPriority: optional\n"
        f"Description: {_SUMMARY}\n" + "".join(f" {line}\n" for line in _lines(_TEXT, 76))
    )


def release(python: str) -> str:
    """The version of a package: Kamado's, the package's own number, and whose Python it is for."""
    return f"{version()}-1+py{python.replace('.', '')}"


def build_deb(root: Path, python: str, processor: str, out: Path) -> Path:
    """The package of a tree that `make_tree` made."""
    control = root / "DEBIAN"
    control.mkdir()
    size = sum(path.lstat().st_size for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    (control / "control").write_text(deb_control(python, processor, -(-size // 1024)))
    for name, line in {"postinst": COMPILE, "prerm": _FORGET}.items():
        (control / name).write_text(f"#!/bin/sh\nset -e\n{line}\n")
        (control / name).chmod(0o755)
    path = out / f"kamado_{release(python)}_{_DEB_NAMES[processor]}.deb"
    # xz of one thread: two threads give other bytes.
    run(
        "dpkg-deb", "--root-owner-group", "-Zxz", "-z3", "--threads-max=1", "--build", root, path,
        env={"SOURCE_DATE_EPOCH": str(epoch())},
    )  # fmt: skip
    shutil.rmtree(control)
    return path


def _lines(text: str, width: int) -> Iterator[str]:
    import textwrap

    yield from textwrap.wrap(text, width)


# --- rpm --------------------------------------------------------------------------------------------------------------


def rpm_spec(root: Path, python: str) -> str:
    """The spec file: the tree as it is, nothing stripped or looked through for dependencies."""
    number, _, revision = release(python).partition("-")
    places = sorted({_listed(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()})
    return (
        f"Name: kamado\nVersion: {number}\nRelease: {revision}\nSummary: {_SUMMARY}\nLicense: Apache-2.0\n"
        f"AutoReqProv: no\nRequires: /usr/bin/python{python}\nRequires: glibc >= {GLIBC[0]}.{GLIBC[1]}\n"
        "%global __os_install_post %{nil}\n%global _build_id_links none\n%global debug_package %{nil}\n"
        "%global source_date_epoch_from_changelog 0\n%global use_source_date_epoch_as_buildtime 1\n"
        "%global clamp_mtime_to_source_date_epoch 1\n%global _buildhost localhost\n"
        f"%description\n{chr(10).join(_lines(_TEXT, 76))}\n\n"
        f"%install\nmkdir -p %{{buildroot}}\ncp -a {root.absolute()}/. %{{buildroot}}/\n\n"
        # In an upgrade the old package's part runs behind the new one's, whose compiled files must stay.
        f"%post\n{COMPILE}\n\n%preun\nif [ $1 -eq 0 ]; then {_FORGET}; fi\n\n"
        "%files\n" + "".join(f"{place}\n" for place in places)
    )


def _listed(path: Path) -> str:
    """A line of %files: our own folder as one, every other file by itself (their folders are the system's)."""
    if path.parts[:3] == ("usr", "lib", "kamado"):
        return "/usr/lib/kamado"
    # rpmbuild compresses man pages as its macros say; ours are compressed already.
    return re.sub(r"(/man\d/[^/]+)$", r"\1*", f"/{path}")


def build_rpm(root: Path, python: str, processor: str, out: Path) -> Path:
    """The package of a tree that `make_tree` made."""
    top = WORK / "rpm"
    shutil.rmtree(top, ignore_errors=True)
    top.mkdir(parents=True)
    spec = top / "kamado.spec"
    spec.write_text(rpm_spec(root, python))
    run(
        "rpmbuild", "-bb", "--quiet", "--target", f"{processor}-linux", "--define", f"_topdir {top}",
        "--define", "_binary_payload w6.xzdio", spec, env={"SOURCE_DATE_EPOCH": str(epoch())},
    )  # fmt: skip
    (made,) = top.glob("RPMS/*/*.rpm")
    return Path(shutil.move(made, out / made.name))
