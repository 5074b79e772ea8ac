"""schemathesis against our own OpenAPI document: no server error, no answer that the document does not describe."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kamado.serve.config import ServeConfig

from .fake import FakeLibrary, FakeWorld
from .running import running

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
EXAMPLES = int(os.environ.get("KAMADO_SCHEMA_EXAMPLES", "20"))  # an operation, besides the coverage phase's own
HOOKS = Path(__file__).with_name("schema_hooks.py")


class _Undying(FakeLibrary):
    """Answers deletes and forgets nothing: later cases need the model."""

    async def delete(self, name: str) -> None:
        await self.get(name)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_no_request_breaks_the_server_or_the_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = Path(sys.executable).with_name("schemathesis")
    found = str(program) if program.exists() else shutil.which("schemathesis")
    if found is None:
        pytest.skip("schemathesis is not installed")
    world = FakeWorld()
    world.library = world.loader.library = _Undying(world.library.infos)
    config = ServeConfig(port=0, body_timeout=5)
    shutil.copy(HOOKS, tmp_path)  # it is imported by its name from the working directory
    with running(world.library, world.loader, config) as server:
        result = subprocess.run(
            [
                found, "run", f"{server.url}/openapi.json", "--checks", CHECKS, "--max-examples", str(EXAMPLES),
                "--seed", "20261122", "--phases", "examples,coverage,fuzzing", "--suppress-health-check", "all",
                "--request-timeout", "30", "--no-color",
            ],
            cwd=tmp_path, capture_output=True, text=True, check=False, timeout=7000,
            env={**os.environ, "SCHEMATHESIS_HOOKS": HOOKS.stem},
        )  # fmt: skip
        assert server.server.service.num_active == 0
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    counted = re.search(r"(\d+) generated, (\d+) passed", result.stdout)
    assert counted is not None, result.stdout[-2000:]
    assert counted[1] == counted[2]
    with capsys.disabled():
        print(f"\nschemathesis: {counted[0]}")
