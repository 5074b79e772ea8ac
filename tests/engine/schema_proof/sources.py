"""Real schemas, from the packages of those who make them, fetched at test time with their versions pinned.

What pydantic's and zod's own JSON Schema tests make is recorded while those tests run; the JSON Schema test suite comes
in the source distribution of `jsonschema`. Without an index or npm the test that asks is skipped, with the reason.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

ZOD, ESBUILD, JSONSCHEMA = "4.6.7", "0.28.2", "4.26.0"

_RECORD = """
import json, os
import pydantic.json_schema as made
seen = []
def record(value):
    try:
        seen.append(json.loads(json.dumps(value)))
    except (TypeError, ValueError):
        pass
    return value
for name in ("generate", "generate_definitions"):
    original = getattr(made.GenerateJsonSchema, name)
    def wrapped(self, *args, _original=original, **more):
        out = _original(self, *args, **more)
        record(out[1] if isinstance(out, tuple) else out)
        return out
    setattr(made.GenerateJsonSchema, name, wrapped)
def pytest_sessionfinish():
    with open(os.environ["RECORD_TO"], "w") as file:
        json.dump(seen, file)
"""

_VITEST = """
const chain = () => new Proxy(function () {}, {
  get: (_, name) => (name === "then" ? undefined : chain()), apply: () => chain(), construct: () => ({}),
});
let pending = Promise.resolve();
export const expect = Object.assign((value) => {
  if (typeof value === "function") { try { value(); } catch { /* tests of refusals */ } }
  return chain();
}, { any: chain(), objectContaining: chain() });
const run = (_, body) => { try { const out = body?.(); if (out?.catch) out.catch(() => {}); } catch { /* its own */ } };
export const test = Object.assign(run, { skip() {}, each: () => () => {}, todo() {} });
export const it = test;
export const describe = Object.assign((_, body) => body(), { skip() {}, each: () => () => {} });
export const vi = chain(), beforeEach = () => {}, afterEach = () => {}, expectTypeOf = chain();
"""

_RECORD_ZOD = """
import { appendFileSync } from "node:fs";
export function finalize(...args) {
  const out = finalize_(...args);
  try { appendFileSync(process.env.RECORD_TO, JSON.stringify(out) + "\\n"); } catch { /* cycles */ }
  return out;
}
"""


@cache
def _work() -> Path:
    path = Path(os.environ.get("KAMADO_SCHEMA_SOURCES") or Path(__file__).parent / ".sources")
    path.mkdir(exist_ok=True)
    ignore = path / ".gitignore"
    if not ignore.exists():
        ignore.write_text("*\n")
    return path


def _run(*command: str, where: Path, **env: str) -> None:
    done = subprocess.run(command, cwd=where, env={**os.environ, **env}, capture_output=True, text=True, timeout=300)
    if done.returncode and "RECORD_TO" not in env:
        pytest.skip(f"{' '.join(command[:4])}: {(done.stderr or done.stdout)[-300:]}")


def _sdist(name: str, number: str) -> Path:
    """A source distribution, unpacked."""
    target = _work() / f"{name}-{number}"
    if not target.exists():
        _run(
            *(sys.executable, "-m", "pip", "download", "-q", f"{name}=={number}", "--no-deps", "--no-binary", name),
            where=_work(),
        )
        with tarfile.open(_work() / f"{name}-{number}.tar.gz") as archive:
            archive.extractall(_work(), filter="data")
    return target


def _distinct(schemas: list[Any]) -> list[Any]:
    """Schemas that are objects, each once, in an order that does not depend on how they were made."""
    found = {json.dumps(schema): schema for schema in schemas if isinstance(schema, dict) and schema}
    return [found[text] for text in sorted(found, key=lambda text: hashlib.sha256(text.encode()).digest())]


def pydantic_schemas() -> list[Any]:
    """All that pydantic's tests of its JSON Schemas make."""
    kept = _work() / f"pydantic-{version('pydantic')}.json"
    if not kept.exists():
        source = _sdist("pydantic", version("pydantic"))
        tests = _work() / "pydantic_tests"
        tests.mkdir(exist_ok=True)
        for name in ("__init__.py", "test_json_schema.py", "utils.py"):
            if (source / "tests" / name).exists():
                shutil.copy(source / "tests" / name, tests)
        (tests / "conftest.py").write_text(_RECORD)
        _run(
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", "."),
            *("--import-mode=importlib", "pydantic_tests/test_json_schema.py"),
            where=_work(),
            RECORD_TO=str(kept),
        )
    if not kept.exists():
        pytest.skip("pydantic's tests could not be run")
    return _distinct(json.loads(kept.read_text()))


def zod_schemas() -> list[Any]:
    """All that zod's tests of its JSON Schemas make."""
    kept = _work() / f"zod-{ZOD}.json"
    if not kept.exists():
        if shutil.which("npm") is None:
            pytest.skip("npm is not here")
        _run("npm", "install", "--no-audit", "--no-fund", f"zod@{ZOD}", f"esbuild@{ESBUILD}", where=_work())
        (_work() / "vitest.mjs").write_text(_VITEST)
        (_work() / "validator.mjs").write_text("export class Validator { async validate() { return { valid: true } } }")
        package = _work() / "node_modules" / "zod"
        made = package / "v4" / "core" / "to-json-schema.js"
        text = made.read_text()
        if "finalize_" not in text:
            made.write_text(text.replace("export function finalize(", "function finalize_(") + _RECORD_ZOD)
        lines = _work() / "zod.lines"
        lines.unlink(missing_ok=True)
        for name in ("to-json-schema", "to-json-schema-methods"):
            built = _work() / f"{name}.mjs"
            _run(
                "npx", "--no-install", "esbuild", str(package / f"src/v4/classic/tests/{name}.test.ts"),
                "--bundle", "--platform=node", "--format=esm", f"--outfile={built}",
                f"--alias:vitest={_work() / 'vitest.mjs'}",
                f"--alias:@seriousme/openapi-schema-validator={_work() / 'validator.mjs'}",
                where=_work(),
            )  # fmt: skip
            _run("node", str(built), where=_work(), RECORD_TO=str(lines))
        if not lines.exists():
            pytest.skip("zod's tests could not be run")
        kept.write_text(
            json.dumps([json.loads(line) for line in lines.read_text().splitlines() if line != "undefined"])
        )
    return _distinct(json.loads(kept.read_text()))


def suite_groups() -> list[dict[str, Any]]:
    """Groups of the JSON Schema test suite (draft 2020-12): schema, and values that are and are not valid."""
    folder = _sdist("jsonschema", JSONSCHEMA) / "json" / "tests" / "draft2020-12"
    out = []
    for path in sorted(folder.glob("*.json")):
        for group in json.loads(path.read_text()):
            out.append({**group, "file": path.stem})
    return out
