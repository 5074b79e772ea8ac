"""Debian systems in folders, to install into: made by debootstrap as root, entered by chroot in a mount namespace.

A system of another processor is unpacked but not configured, and run by qemu-user through the kernel's binfmt_misc.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from .project import ReleaseError, run

_DEB_NAMES = {"x86_64": "amd64", "aarch64": "arm64"}
# How this machine reaches its package index is how a root on it does.
_NETWORK = ("SSL_CERT_FILE", "PIP_CERT", "PIP_INDEX_URL", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
_BINFMT = Path("/proc/sys/fs/binfmt_misc")
_EMULATOR = Path("/usr/bin/qemu-aarch64-static")
# An ELF header of a little-endian 64-bit program for 183, AArch64; the mask leaves kind and operating system open.
_MAGIC = r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
_MASK = r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"


def make_root(folder: Path, suite: str, packages: Sequence[str], processor: str = "") -> Path:
    """A minimal system of Debian `suite` with `packages`, made once and kept in `folder`. Raises ReleaseError."""
    here = os.uname().machine
    processor = processor or here
    path = folder / f"{suite}-{_DEB_NAMES[processor]}"
    if not path.with_suffix(".done").exists():
        if os.geteuid() != 0 or not shutil.which("debootstrap"):
            raise ReleaseError("a Debian root is made by root with debootstrap: apt-get install debootstrap")
        remove_root(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        run(
            "debootstrap", f"--arch={_DEB_NAMES[processor]}", "--variant=minbase", f"--include={','.join(packages)}",
            *(["--foreign"] if processor != here else []), suite, path,
        )  # fmt: skip
        path.with_suffix(".done").touch()
    if processor != here and not (path / ".unpacked").exists():
        for package in sorted((path / "var" / "cache" / "apt" / "archives").glob("*.deb")):
            run("dpkg-deb", "--extract", package, path)
        (path / ".unpacked").touch()
    _share_network(path)
    return path


def remove_root(root: Path) -> None:
    """Deletes it, unless something of this machine is mounted in it, as a debootstrap that was killed leaves /proc."""
    mounted = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    within = [place for place in mounted if place.startswith(f"{root.absolute()}/")]
    if within:
        raise ReleaseError(f"{within[0]} is mounted: umount it first, so that nothing of this machine is deleted")
    shutil.rmtree(root, ignore_errors=True)


def copy_root(root: Path, to: Path) -> Path:
    """A copy that may be changed."""
    remove_root(to)
    to.parent.mkdir(parents=True, exist_ok=True)
    run("cp", "--archive", "--reflink=auto", root, to)
    return to


def _share_network(root: Path) -> None:
    for path in ("/etc/resolv.conf", "/etc/hosts", os.environ.get("SSL_CERT_FILE", ""), os.environ.get("PIP_CERT", "")):
        if path and Path(path).is_file():
            to = root / path.lstrip("/")
            to.parent.mkdir(parents=True, exist_ok=True)
            to.unlink(missing_ok=True)
            shutil.copy(path, to)


def entered(root: Path, words: Sequence[str], *, user: str = "", env: Mapping[str, str] | None = None) -> list[str]:
    """The command that runs `words` inside: /proc and /dev are there while it runs, nothing else of this machine."""
    inside = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME": "/root", "LANG": "C.UTF-8"}
    inside |= {name: os.environ[name] for name in _NETWORK if name in os.environ} | dict(env or {})
    as_user = [f"--userspec={user}:{user}"] if user else []
    program = ["chroot", *as_user, str(root), "/usr/bin/env", "-i", *(f"{k}={v}" for k, v in inside.items()), *words]
    mounts = f"mount --bind /proc {shlex.quote(str(root))}/proc && mount --rbind /dev {shlex.quote(str(root))}/dev"
    return ["unshare", "--mount", "sh", "-c", f"{mounts} && exec {shlex.join(program)}"]


def inside(root: Path, *words: str, user: str = "", env: Mapping[str, str] | None = None) -> str:
    """Runs a program in a root; returns its stdout. Raises ReleaseError with what it said when it fails."""
    done = subprocess.run(
        entered(root, words, user=user, env=env), capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    if done.returncode != 0:
        said = (done.stdout + done.stderr).strip()[-2000:]
        raise ReleaseError(f"exit code {done.returncode} from {shlex.join(words)} in {root.name}: {said}")
    return done.stdout


@contextlib.contextmanager
def emulation() -> Iterator[None]:
    """AArch64 programs run here while it lasts. Raises ReleaseError where that cannot be."""
    if os.uname().machine == "aarch64":
        yield
        return
    if os.geteuid() != 0 or not _EMULATOR.is_file():
        raise ReleaseError("programs for aarch64 are run by root with qemu: apt-get install qemu-user-static")
    if not (_BINFMT / "register").exists():
        run("mount", "-t", "binfmt_misc", "binfmt_misc", _BINFMT)
    name = _BINFMT / "kamado-aarch64"
    if not name.exists():
        # F: the emulator is opened now, so no root needs a copy of it.
        (_BINFMT / "register").write_text(f":{name.name}:M::{_MAGIC}:{_MASK}:{_EMULATOR}:F")
    try:
        yield
    finally:
        name.write_text("-1")
