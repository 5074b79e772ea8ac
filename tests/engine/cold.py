"""A Python of its own, whose files nobody else has mapped: only then can their cached pages be dropped, so that a start
is as cold as after a reboot without emptying the machine's cache."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

# What loading a model and answering imports that is not of the standard library.
_PACKAGES = (
    "numpy",
    "numpy.libs",
    "tokenizers",
    "jinja2",
    "markupsafe",
    "click",
    "platformdirs",
    "llguidance",
    "kamado",
)
_NOT_NEEDED = shutil.ignore_patterns(
    "test", "tests", "site-packages", "idlelib", "tkinter", "lib2to3", "ensurepip", "turtledemo", "config-*"
)


@dataclass(frozen=True, slots=True)
class ColdPython:
    """The copy: an executable, what its environment must have, and where all files lie."""

    root: Path
    executable: Path
    environment: dict[str, str]

    def drop(self) -> None:
        """Drops every cached page of the copy; there are none that are mapped while it does not run."""
        for folder, _, names in os.walk(self.root):
            for name in names:
                fd = os.open(os.path.join(folder, name), os.O_RDONLY)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(fd)


def copy_python(root: Path) -> ColdPython:
    """Copies the interpreter, the standard library and our packages to `root`: 130 MB, about a second."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (root / "bin").mkdir(parents=True)
    executable = root / "bin" / version
    shutil.copy2(os.path.realpath(sys.executable), executable)
    library = sysconfig.get_config_var("INSTSONAME")
    if library and ".so" in library:
        shutil.copy2(Path(sysconfig.get_config_var("LIBDIR")) / library, root / "bin" / library)
    standard = Path(sysconfig.get_path("stdlib"))
    shutil.copytree(standard, root / standard.parent.name / version, ignore=_NOT_NEEDED, symlinks=True)
    packages = root / "packages"
    packages.mkdir()
    for name in _PACKAGES:
        spec = importlib.util.find_spec(name.partition(".")[0])
        if spec is None or spec.origin is None:
            continue
        source = Path(spec.origin).parent
        source = source.with_name(name) if "." in name else source
        if source.is_dir():
            shutil.copytree(source, packages / name, ignore=_NOT_NEEDED)
    os.sync()  # pages that are not on disk yet could not be dropped
    environment = os.environ | {
        "PYTHONHOME": str(root),
        "PYTHONPATH": str(packages),
        "LD_LIBRARY_PATH": str(root / "bin"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return ColdPython(root, executable, environment)
