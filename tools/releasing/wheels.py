"""The source distribution and the wheels: built by zig against an old C library, then looked into.

A wheel is for the Python that runs this: CPython 3.11 its own, any later one the stable ABI of 3.12. The processor may
be another one than this machine's, if the headers of its Python are at hand.
"""

from __future__ import annotations

import filecmp
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

from .project import GLIBC, ROOT, WORK, ReleaseError, commit, epoch, run, version

ABI3 = "cp312"  # as pyproject.toml has it
_TRIPLET = "{}-linux-gnu"
_MACHINES = {"x86_64": "EM_X86_64", "aarch64": "EM_AARCH64"}  # as an ELF header names them


def build_sdist(out: Path) -> Path:
    """The source distribution, made in `out`."""
    run(
        sys.executable, "-c",
        "import sys; from scikit_build_core.build import build_sdist; print(build_sdist(sys.argv[1]))", out.absolute(),
        env=_dated(),
    )  # fmt: skip
    return out / f"kamado-{version()}.tar.gz"


def build_wheel(
    sdist: Path, processor: str, out: Path, *, zig: Path | None = None, headers: Path | None = None
) -> Path:
    """The wheel for this Python and `processor`, made from the source distribution alone.

    `headers`: the folder that has pythonX.Y/ and, from Debian, TRIPLET/pythonX.Y/ of that processor; this Python's own
    when not given. What was compiled before is taken again: also, since most sources know no Python, for another one.
    """
    abi = f"cp{sys.version_info.major}{sys.version_info.minor}"
    work = WORK / processor
    source = _unpacked(sdist, work)
    include = _headers(headers, processor, work / "include")
    objects = work / "objects"
    (objects / "CMakeCache.txt").unlink(missing_ok=True)  # it knows the Python of before
    settings = {
        "build-dir": str(objects),
        "cmake.args": ";".join(
            [f"-DCMAKE_TOOLCHAIN_FILE={ROOT / 'packaging' / 'zig.cmake'}", f"-DPython_INCLUDE_DIR={include}", "-GNinja"]
        ),
        # Debian keeps pyconfig.h beside the other headers, in a folder with the processor's name.
        "cmake.define.CMAKE_CXX_FLAGS": f"-isystem {include.parent}",
    }
    raw = work / "raw"
    shutil.rmtree(raw, ignore_errors=True)
    run(
        sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation",
        "--wheel-dir", raw, *(f"-C{name}={value}" for name, value in settings.items()), source,
        env=_environment(work, processor, zig or _zig(), abi),
    )  # fmt: skip
    (wheel,) = raw.glob("kamado-*.whl")
    out.mkdir(parents=True, exist_ok=True)
    return _renamed(wheel, processor, out)


def _dated() -> dict[str, str]:
    return {"SOURCE_DATE_EPOCH": str(epoch())}


def _zig() -> Path:
    try:
        import ziglang
    except ImportError:
        raise ReleaseError("the compiler is missing: pip install -r requirements/release.txt, or name --zig") from None
    return Path(ziglang.__path__[0]) / "zig"


def _unpacked(sdist: Path, work: Path) -> Path:
    """The sources. A file that is as it was keeps its time, so that what was compiled of it is taken again."""
    new, kept = work / "new", work / "source"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    with tarfile.open(sdist) as archive:
        archive.extractall(new, filter="data")
    (top,) = new.iterdir()
    wanted = {path.relative_to(top) for path in top.rglob("*") if path.is_file()}
    for path in [path for path in kept.rglob("*") if path.is_file() and path.relative_to(kept) not in wanted]:
        path.unlink()
    for name in wanted:
        if not (kept / name).is_file() or not filecmp.cmp(top / name, kept / name, shallow=False):
            (kept / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(top / name, kept / name)  # its time is now
    shutil.rmtree(new)
    return kept


def _headers(given: Path | None, processor: str, to: Path) -> Path:
    """CPython's headers in a folder that has nothing else: beside Debian's lie those of another C library."""
    own = Path(sysconfig.get_path("include"))
    if given is None and os.uname().machine != processor:
        raise ReleaseError(f"--headers is needed: where are the {own.name} headers for {processor}?")
    include = own if given is None else given / own.name
    if not (include / "Python.h").is_file():
        raise ReleaseError(f"{include} has no Python.h: install Python's headers (Debian: python3-dev)")
    beside = include.parent / _TRIPLET.format(processor) / own.name
    for folder, name in ((include, own.name), (beside, f"{beside.parent.name}/{own.name}")):
        if folder.is_dir():
            shutil.rmtree(to / name, ignore_errors=True)
            shutil.copytree(folder, to / name)  # copies keep their times
    return to / own.name


def _environment(work: Path, processor: str, zig: Path, abi: str) -> dict[str, str]:
    """The compiler as programs of one word, and what scikit-build-core takes for another processor's names."""
    programs = work / "bin"
    programs.mkdir(parents=True, exist_ok=True)
    target = f"{_TRIPLET.format(processor)}.{GLIBC[0]}.{GLIBC[1]}"
    for name, words in {"c++": f"c++ -target {target}", "ar": "ar", "ranlib": "ranlib"}.items():
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec "{zig}" {words} "$@"\n')
        program.chmod(0o755)
    environment = {
        **_dated(),
        "KAMADO_BUILD_COMMIT": _short(commit()),
        "KAMADO_PROCESSOR": processor,
        "KAMADO_ZIG_BIN": str(programs),
        "ZIG_GLOBAL_CACHE_DIR": str(WORK / "zig"),
        "ZIG_LOCAL_CACHE_DIR": str(WORK / "zig"),
        "_PYTHON_HOST_PLATFORM": f"linux-{processor}",
    }
    if sys.version_info < (3, 12):
        environment["SETUPTOOLS_EXT_SUFFIX"] = f".cpython-{abi[2:]}-{_TRIPLET.format(processor)}.so"
    return environment


def _short(full: str) -> str:
    head, dash, rest = full.partition("-")
    return head[:12] + dash + rest


def _renamed(wheel: Path, processor: str, out: Path) -> Path:
    """The wheel with the platform's tag, which the checks then hold it to."""
    tag = f"manylinux_{GLIBC[0]}_{GLIBC[1]}_{processor}"
    done = subprocess.run(
        [sys.executable, "-m", "wheel", "tags", "--remove", "--platform-tag", tag, str(wheel)],
        capture_output=True, text=True, check=False, env={**os.environ, **_dated()},
    )  # fmt: skip
    if done.returncode != 0:
        raise ReleaseError(f"wheel tags: {done.stderr.strip()}")
    return Path(shutil.move(wheel.with_name(done.stdout.strip().splitlines()[-1]), out / done.stdout.strip()))


# --- the checks -------------------------------------------------------------------------------------------------------


def check_wheel(wheel: Path) -> dict[str, str]:
    """What a wheel must be, else ReleaseError: its tags true, one module of its processor that shows its one name, no
    library beside the system's own. Returns what was found.
    """
    match = re.fullmatch(
        rf"kamado-{re.escape(version())}-(cp311-cp311|{ABI3}-abi3)-manylinux_2_(\d+)_(\w+)\.whl", wheel.name
    )
    if match is None or int(match[2]) > GLIBC[1]:
        raise ReleaseError(f"{wheel.name}: not the name of a wheel for glibc {GLIBC[0]}.{GLIBC[1]} or older")
    with zipfile.ZipFile(wheel) as archive:
        modules = [name for name in archive.namelist() if name.endswith(".so")]
        if len(modules) != 1 or "kamado/build.json" not in archive.namelist():
            raise ReleaseError(f"{wheel.name}: has {modules or 'no module'}, or no kamado/build.json")
        is_stable = modules[0].endswith(".abi3.so")
        if is_stable != (match[1] != "cp311-cp311"):
            raise ReleaseError(f"{wheel.name}: says {match[1]}, but holds {modules[0]}")
        folder = WORK / "check"
        shutil.rmtree(folder, ignore_errors=True)
        module = Path(archive.extract(modules[0], folder))
    found = {"module": modules[0], **_check_module(module, match[3])}
    said = _output(sys.executable, "-m", "auditwheel", "show", wheel)
    policy = re.search(r"following platform tag:\s+\"manylinux_2_(\d+)_" + match[3], " ".join(said.split()))
    if policy is None or int(policy[1]) > GLIBC[1]:
        raise ReleaseError(f"auditwheel does not find {wheel.name} fit for its tag: {said}")
    found["auditwheel"] = f"manylinux_2_{policy[1]}_{match[3]}"
    if is_stable:
        _output(sys.executable, "-m", "abi3audit", "--strict", wheel)
        found["abi3audit"] = "passed"
    return found


def _check_module(path: Path, processor: str) -> dict[str, str]:
    from elftools.elf.elffile import ELFFile

    with open(path, "rb") as file:
        elf = ELFFile(file)
        machine = elf.header["e_machine"]
        needed = [
            tag.needed for tag in elf.get_section_by_name(".dynamic").iter_tags() if tag.entry.d_tag == "DT_NEEDED"
        ]
        symbols = elf.get_section_by_name(".dynsym").iter_symbols()
        shown = [s.name for s in symbols if s.entry.st_shndx != "SHN_UNDEF" and s.entry.st_info.bind != "STB_LOCAL"]
    if machine != _MACHINES[processor]:
        raise ReleaseError(f"{path.name}: is for {machine}, not for {processor}")
    if shown != ["PyInit__native"]:
        raise ReleaseError(f"{path.name}: shows {shown[:5]}, not PyInit__native alone")
    strange = [name for name in needed if not re.fullmatch(r"(lib(c|m|pthread|dl|rt)|ld-linux-[\w-]+)\.so\.\d+", name)]
    if strange:
        raise ReleaseError(f"{path.name}: needs {', '.join(strange)}, which a machine may not have")
    return {"needs": " ".join(needed)}


def _output(*words: str | Path) -> str:
    command = [str(word) for word in words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ReleaseError(f"{' '.join(command[2:])}: {(done.stderr or done.stdout).strip()[-2000:]}")
    return done.stdout


def compiler(zig: Path | None = None) -> Mapping[str, str]:
    """Name and version of what compiles the wheels."""
    return {"name": "zig", "version": _output(zig or _zig(), "version").strip()}
