"""A store as an earlier version left it, byte by byte: this one lists its models, runs and removes them."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from kamado.cli.main import cli

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
from smoke import write_donor

# entry.json as commit 7f1b85e (version 0.1.0) writes it for a model of the catalog.
ENTRY = """{{
 "name": "smollm2:135m",
 "source": {{
  "kind": "pypi",
  "license": "Apache-2.0",
  "sha256": "{pin}"
 }},
 "added": "2026-11-29T10:47:05Z",
 "files": [
  {{
   "path": "SmolLM2-135M-Instruct.Q4_1.gguf",
   "sha256": "{sha256}",
   "nbytes": {nbytes}
  }}
 ]
}}
"""
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHAPE = ("--family", "qwen3", "--layers", "1", "--hidden", "64", "--heads", "2", "--kv-heads", "1", "--head-dim", "32")


def kamado(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture
def store_of_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """models/, blobs/, downloads/ and the lock beside them, with one model: a hard link to its content."""
    home = tmp_path / "home"
    folder, blobs = home / "models" / "smollm2%3A135m", home / "blobs"
    for path in (folder, blobs, home / "downloads"):
        path.mkdir(parents=True)
    write_donor(tmp_path / "donor.gguf")
    made = kamado(
        "synth", tmp_path / "tiny.gguf", "--tokenizer-from", tmp_path / "donor.gguf", *SHAPE, "--ffn", "64",
        "--context", "256", "--layout", "q8_0",
    )  # fmt: skip
    assert made.exit_code == 0, made.output
    content = (tmp_path / "tiny.gguf").read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    (blobs / sha256).write_bytes(content)
    (blobs / sha256).chmod(0o444)
    os.link(blobs / sha256, folder / FILE)
    (folder / "entry.json").write_text(ENTRY.format(pin="0" * 64, sha256=sha256, nbytes=len(content)))
    (home / "downloads" / "smollm2%3A135m.lock").touch()
    (home / ".models.lock").touch()
    monkeypatch.setenv("KAMADO_HOME", str(home))
    return home


def test_a_store_of_version_0_1_is_kept_by_an_upgrade(store_of_before: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in store_of_before.rglob("*") if path.is_file()}
    listed = kamado("list", "--json")
    assert listed.exit_code == 0, listed.output
    (model,) = json.loads(listed.stdout)
    assert (model["name"], model["source"]["license"]) == ("smollm2:135m", "Apache-2.0")
    answer = kamado(
        "run", "smollm2:135m", "hearth", "--raw", "--max-tokens", "3", "--temperature", "0", "--threads", "1"
    )
    assert answer.exit_code == 0, answer.output
    assert answer.stdout.strip()
    assert {path: path.stat().st_mtime_ns for path in before} == before
    removed = kamado("rm", "smollm2:135m")
    assert removed.exit_code == 0, removed.output
    assert list((store_of_before / "blobs").iterdir()) == []
