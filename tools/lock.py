#!/usr/bin/env python3
"""Writes the hash locks requirements/*.txt from pyproject.toml and requirements/*.in. Needs `uv` (pip install uv)."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# lock -> what it is made from; test agrees with core because it is resolved under core's versions.
LOCKS: dict[str, list[str]] = {
    "core": ["pyproject.toml"],
    "serve": ["pyproject.toml", "--extra", "serve", "-c", "requirements/core.txt"],
    "test": ["pyproject.toml", "--extra", "test", "--extra", "serve", "-c", "requirements/serve.txt"],
    "page": ["requirements/page.in", "-c", "requirements/test.txt"],
    "build": ["requirements/build.in"],
    "build-tools": ["requirements/build-tools.in"],
    "release": ["requirements/release.in", "-c", "requirements/build.txt"],
    "pip": ["requirements/pip.in"],
}
HEADER = """\
# Exact versions and hashes; made by `python3 tools/dev.py lock` from {sources}, not by hand.
# Install with: pip install --require-hashes -r requirements/{name}.txt
"""


def main() -> int:
    uv = shutil.which("uv")
    if uv is None:
        print("uv is missing: pip install uv", file=sys.stderr)
        return 1
    for name, sources in LOCKS.items():
        out = ROOT / "requirements" / f"{name}.txt"
        command = [
            uv, "--quiet", "pip", "compile", "--universal", "--python-version", "3.11", "--generate-hashes",
            "--no-emit-index-url", "--no-header", "--upgrade", *sources, "--output-file", str(out),
        ]  # fmt: skip
        subprocess.run(command, cwd=ROOT, check=True)
        out.write_text(HEADER.format(sources=sources[0], name=name) + out.read_text())
        print(f"wrote {out.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
