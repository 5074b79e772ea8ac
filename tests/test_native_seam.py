"""A port to another system writes native/os/ only: no other native source asks for memory or files itself."""

import re
from pathlib import Path

NATIVE = Path(__file__).resolve().parent.parent / "native"
CALLS = re.compile(
    r"#include <(?:sys/mman|sys/stat|fcntl)\.h>"
    r"|\b(?:mmap|munmap|madvise|mlock|mincore|sysconf|pread|pwrite|fstat|posix_fadvise|fallocate)\("
)


def test_only_the_seam_calls_the_system_for_memory_and_files() -> None:
    sources = [p for p in NATIVE.rglob("*") if p.suffix in (".h", ".cpp")]
    others = [p for p in sources if not {"os", "tests"} & set(p.relative_to(NATIVE).parts[:1])]
    found = [f"{p.relative_to(NATIVE)}: {match[0]}" for p in others for match in CALLS.finditer(p.read_text())]
    assert len(others) > 50
    assert found == []


def test_the_seam_has_a_linux_source_for_each_header() -> None:
    headers = {p.stem for p in (NATIVE / "os").glob("*.h")}
    assert headers == {"os_memory", "os_file"}
    assert {p.stem for p in (NATIVE / "os").glob("*.cpp")} == {f"{name}_linux" for name in headers}


def test_the_module_uses_the_stable_abi_only() -> None:
    # From 3.12 on one wheel serves all Pythons, and these macros of CPython's own structures do not compile there.
    sources = [p for p in NATIVE.rglob("*.cpp") if "tests" not in p.parts]
    found = [
        f"{p.name}: {m[0]}"
        for p in sources
        for m in re.finditer(r"Py[A-Z]\w+_(?:[GS]ET_[A-Z]+|AS_\w+)\b", p.read_text())
    ]
    assert found == []
