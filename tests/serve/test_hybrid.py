"""A model that keeps records behind the server: what the metrics say of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from kamado.files import open_checkpoint
from kamado.synth.synthesize import synthesize

from .processes import started
from .stores import put

pytestmark = pytest.mark.slow

ASKED = [{"role": "system", "content": "Be brief. " * 20}, {"role": "user", "content": "Where do rivers go? " * 10}]


def test_records_and_points_are_told(tmp_path: Path, tiny_checkpoint: Path) -> None:
    sizes = {"layers": 4, "hidden": 256, "heads": 4, "kv_heads": 2, "head_dim": 64, "ffn": 512}
    tokens = open_checkpoint(tiny_checkpoint)
    put(tmp_path, "tiny", synthesize(tmp_path / "lfm2.gguf", "lfm2", tokenizer_from=tokens, context=2048, **sizes).path)
    with started(tmp_path, "tiny") as process:
        body = {"model": "tiny", "messages": ASKED, "max_tokens": 4}
        usages = [process.http.post("/v1/chat/completions", json=body).json()["usage"] for _ in range(2)]
        cached = [usage["prompt_tokens_details"]["cached_tokens"] for usage in usages]
        assert cached[0] == 0 < cached[1]
        lines = process.http.get("/metrics").text.splitlines()
        told = dict(line.rsplit(" ", 1) for line in lines if line.startswith(("kamado_records", "kamado_reuse_points")))
        assert int(told['kamado_records{model="tiny",state="used"}']) >= 2
        assert int(told['kamado_records{model="tiny",state="free"}']) > 0
        assert int(told['kamado_reuse_points{model="tiny",state="held"}']) >= 3
        assert told['kamado_reuse_points{model="tiny",state="given_up"}'] == "0"
