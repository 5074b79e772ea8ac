"""Packed experts: what is written is what a slot holds, an interrupted run goes on, and a wrong file is never used."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kamado
from kamado.checkpoint import open_checkpoint, packed
from kamado.checkpoint.gguf_writer import GgufWriter
from kamado.checkpoint.synth import synthesize
from kamado.checkpoint.types import Checkpoint
from kamado.errors import ExpertReadError, ModelChangedError, PackedFileError, PackedFileWarning
from kamado.memory.forecast import plan
from kamado.memory.sizes import expert_records, slot_bytes
from kamado.models import build_program

pytest.importorskip("kamado._native", reason="the native module is not built")

TOKENS = [int(i) for i in np.random.default_rng(4).integers(0, 512, 40)]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 layers of 16 experts, 4 a token, in layouts that differ by layer: two sizes of slots."""
    folder = tmp_path_factory.mktemp("moe")
    writer = GgufWriter("llama")
    writer.add("tokenizer.ggml.model", "gpt2")
    writer.add("tokenizer.ggml.pre", "default")
    writer.add("tokenizer.ggml.tokens", ["a", "b", "ab", *(f"t{i}" for i in range(509))])
    writer.add("tokenizer.ggml.token_type", [1] * 512)
    writer.add("tokenizer.ggml.merges", ["a b"])
    writer.add("tokenizer.ggml.eos_token_id", 511)
    with writer.open(folder / "tokenizer.gguf"):
        pass
    synthesize(
        folder / "moe.gguf", "qwen3moe", tokenizer_from=open_checkpoint(folder / "tokenizer.gguf"), layers=4,
        hidden=256, heads=4, kv_heads=2, head_dim=64, experts=16, top_k=4, expert_width=256, layout="q4_k_m",
    )  # fmt: skip
    return folder / "moe.gguf"


@pytest.fixture
def model(original: Path, tmp_path: Path) -> Path:
    path = tmp_path / "moe.gguf"
    os.link(original, path)
    return path


def opened(path: Path) -> tuple[Checkpoint, list[packed.ExpertRecord]]:
    checkpoint = open_checkpoint(path)
    return checkpoint, expert_records(build_program(checkpoint))


def pack(path: Path, out: Path | None = None, **options: Any) -> packed.PackReport:
    return packed.pack_experts(*opened(path), out, **options)


def budget(path: Path) -> int:
    checkpoint = open_checkpoint(path)
    return plan(checkpoint, build_program(checkpoint), memory=1 << 20).least_bytes + (1 << 20)


def answers(path: Path, **settings: Any) -> tuple[bytes, list[int], kamado.Stats]:
    with kamado.load(path, max_logit_rows=80, context=256, **settings) as loaded:
        logits = loaded.logits(TOKENS).tobytes()
        tokens = [piece.token for piece in loaded.generate(TOKENS, temperature=0, max_tokens=12)]
        return logits, tokens, loaded.stats


def test_packed_experts_give_the_same_bits_by_one_read_each(model: Path) -> None:
    logits, tokens, _ = answers(model)
    report = pack(model)
    records = opened(model)[1]
    assert (report.path, report.num_records, report.num_kept) == (model.with_name("moe.gguf.experts"), 64, 0)
    assert report.nbytes == report.path.stat().st_size
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        packed_logits, packed_tokens, stats = answers(model, memory=budget(model))
        own_logits, own_tokens, own_stats = answers(model, memory=budget(model), packed=False)
    assert packed_logits == own_logits == logits
    assert packed_tokens == own_tokens == tokens
    assert stats.ledger is not None and own_stats.ledger is not None  # noqa: PT018
    assert stats.ledger.is_packed and not own_stats.ledger.is_packed  # noqa: PT018
    total, own = stats.ledger.total, own_stats.ledger.total
    assert total.misses > 64
    assert total.requests <= total.misses + total.lookahead_hits + total.lookahead_wrong < own.requests
    sizes = {slot_bytes(*record) for record in records}
    assert len(sizes) == 2
    assert min(sizes) <= (total.request_bytes or 0) <= max(sizes)


@pytest.mark.parametrize("direct_io", ["auto", "off"])
@pytest.mark.parametrize("look_ahead", ["off", "on"])
def test_slots_hold_what_the_model_file_gives(model: Path, direct_io: Any, look_ahead: Any) -> None:
    """verify_slots packs each expert anew from the model's own file."""
    from kamado.lower import build_executor

    pack(model)
    checkpoint, records = opened(model)
    side_file = packed.find_packed(checkpoint, records)
    program = build_program(checkpoint)
    executor = build_executor(
        program, num_threads=2, max_rows=64, max_logit_rows=1, max_kv_tokens=128, max_sequences=1, kv="f16",
        expert_bytes=4 << 20, packed=side_file, verify_slots=True, direct_io=direct_io, look_ahead=look_ahead,
    )  # fmt: skip
    sequence = executor.create_sequence()
    for part in (TOKENS[:20], *([token] for token in TOKENS[20:])):
        executor.step(
            np.array([sequence], np.int32), np.array([len(part)], np.int32), np.array(part, np.int32),
            np.array([len(part) - 1], np.int32),
        )  # fmt: skip
    ledger = executor.ledger()
    assert ledger["packed"]
    assert sum(layer["misses"] for layer in ledger["layers"]) > 0


def test_a_packed_file_elsewhere_is_used_when_it_is_named(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "fast disk" / "experts"
    out.parent.mkdir()
    assert pack(model, out).path == out
    assert answers(model, memory=budget(model), packed=out)[2].ledger.is_packed  # type: ignore[union-attr]
    assert not answers(model, memory=budget(model))[2].ledger.is_packed  # type: ignore[union-attr]
    with pytest.raises(PackedFileError, match="no such file"):
        kamado.load(model, memory=budget(model), packed=True)


def change_model(path: Path, side_file: Path) -> None:
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)


def cut(path: Path, side_file: Path) -> None:
    os.truncate(side_file, side_file.stat().st_size - 4096)


def flip(at: int) -> Callable[[Path, Path], None]:
    def change(path: Path, side_file: Path) -> None:
        with side_file.open("r+b") as file:
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ 4]))

    return change


def foreign(path: Path, side_file: Path) -> None:
    path.rename(path.with_name("other.gguf"))
    os.link(path.with_name("other.gguf"), path)
    pack(path.with_name("other.gguf"), side_file)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (change_model, "was changed after it was packed"),
        (cut, "has .* bytes where .* were written"),
        (flip(0), "is no file of packed experts"),
        (flip(8), "another version of Kamado"),
        (flip(12), "another version of Kamado"),
        (flip(17), "header is damaged"),
        (flip(40), "header is damaged|not finished"),
        (flip(50), "header is damaged"),
        (flip(600), "header is damaged"),
        (foreign, r"packed from other\.gguf, not from this model"),
        (lambda path, side_file: side_file.write_bytes(b""), "is no file of packed experts"),
        (lambda path, side_file: os.truncate(side_file, 100), "header is damaged"),
    ],
)  # fmt: skip
def test_a_file_that_does_not_belong_is_told_of_and_not_used(
    model: Path, damage: Callable[[Path, Path], None], reason: str
) -> None:
    side_file = pack(model).path
    damage(model, side_file)
    with pytest.warns(PackedFileWarning, match=reason):
        _, tokens, stats = answers(model, memory=budget(model))
    assert stats.ledger is not None
    assert not stats.ledger.is_packed
    assert tokens == answers(model)[1]
    with pytest.raises(PackedFileError, match=reason):
        kamado.load(model, memory=budget(model), packed=side_file)
    assert pack(model).num_records == 64  # packed again over it
    assert answers(model, memory=budget(model))[2].ledger.is_packed  # type: ignore[union-attr]


def test_a_damaged_record_is_an_error_and_no_token(model: Path) -> None:
    side_file = pack(model)
    flip(side_file.nbytes - 5000)(model, side_file.path)
    with kamado.load(model, memory=budget(model), context=256) as loaded:
        with pytest.raises(ExpertReadError, match=r"another checksum.*expert 15 of MoE layer 3"):
            loaded.score(TOKENS * 3)
        with pytest.raises(ExpertReadError, match="another checksum"):
            loaded.score(TOKENS * 3)


def test_a_side_file_that_changes_while_it_is_read_is_an_error(model: Path) -> None:
    side_file = pack(model)
    with kamado.load(model, memory=budget(model), context=256) as loaded:
        loaded.score(TOKENS[:2])
        time.sleep(0.02)  # a tick of the file system's clock
        flip(side_file.nbytes - 5000)(model, side_file.path)
        with pytest.raises(ModelChangedError):
            loaded.score(TOKENS * 3)


class Stop(Exception):
    pass


@pytest.mark.parametrize("share", [0.0, 0.2, 0.4, 0.7, 0.99])
def test_an_interrupted_run_goes_on(model: Path, share: float) -> None:
    whole = pack(model, model.with_name("whole")).path.read_bytes()

    def stop(done: int, total: int) -> None:
        if done >= share * total:
            raise Stop

    with pytest.raises(Stop):
        pack(model, progress=stop)
    assert not model.with_name("moe.gguf.experts").exists()
    partial = model.with_name("moe.gguf.experts.part")
    assert packed.packed_bytes(model) == partial.stat().st_size > 0
    report = pack(model)
    assert report.num_kept >= 60 * min(1.0, 2 * share) - 1
    assert report.path.read_bytes() == whole
    assert not partial.exists()


def test_what_was_damaged_meanwhile_is_written_again(model: Path) -> None:
    whole = pack(model, model.with_name("whole")).path.read_bytes()

    def stop(done: int, total: int) -> None:
        if done >= 0.4 * total:
            raise Stop

    with pytest.raises(Stop):
        pack(model, progress=stop)
    partial = model.with_name("moe.gguf.experts.part")
    flip(20000)(model, partial)
    os.truncate(partial, partial.stat().st_size - 100)
    report = pack(model)
    assert 40 < report.num_kept < 52
    assert report.path.read_bytes() == whole


def test_a_model_that_changed_meanwhile_is_packed_from_the_start(model: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise Stop

    with pytest.raises(Stop):
        pack(model, progress=stop)
    change_model(model, model)
    assert pack(model).num_kept == 0


def test_a_killed_process_leaves_what_it_packed(model: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from kamado.checkpoint import open_checkpoint\n"
        "from kamado.checkpoint.packed import pack_experts; from kamado.memory.sizes import expert_records\n"
        "from kamado.models import build_program\n"
        "c = open_checkpoint(Path(sys.argv[1]))\n"
        "def slow(done, total):\n    print(done, flush=True); time.sleep(0.05)\n"
        "pack_experts(c, expert_records(build_program(c)), progress=slow)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(model)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for _ in range(5):
            assert process.stdout.readline()
        with pytest.raises(PackedFileError, match="another process"):
            pack(model)
        process.send_signal(signal.SIGKILL)
    report = pack(model)
    assert report.num_kept >= 5
    assert answers(model, memory=budget(model))[2].ledger.is_packed  # type: ignore[union-attr]


def test_too_little_room_is_told_before_anything_is_written(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    usage = shutil.disk_usage(model.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=65 << 20))
    with pytest.raises(PackedFileError, match=r"take 0\.0\d GB more and 0\.07 GB are free"):
        pack(model)
    assert packed.packed_bytes(model) == 0
    assert not model.with_name("moe.gguf.experts.part").exists()


def test_a_dense_model_has_nothing_to_pack(tiny_checkpoint: Path) -> None:
    with pytest.raises(PackedFileError, match="has no experts"):
        pack(tiny_checkpoint)


def test_the_commands_know_of_it(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import json

    from kamado.cli.main import cli

    def run(*words: str) -> str:
        with pytest.raises(SystemExit) as caught:
            cli.main(list(words))
        assert caught.value.code == 0
        return capsys.readouterr().out

    assert "kamado pack writes them" in run("show", str(model))
    assert json.loads(run("pack", str(model), "--json"))["records"] == 64
    shown = json.loads(run("show", str(model), "--json"))["packed"]
    assert shown["usable"]
    assert shown["bytes"] == model.with_name("moe.gguf.experts").stat().st_size
    change_model(model, model)
    assert "changed after it was packed" in run("show", str(model))


def test_the_store_lists_and_removes_it(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import hashlib

    from kamado.checkpoint.store import Store, StoredFile
    from kamado.cli.main import cli

    store = Store()
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    copy = model.with_name("copy")
    copy.write_bytes(model.read_bytes())
    store.adopt(copy, digest)
    path = store.add("moe:tiny", [StoredFile("moe.gguf", digest, model.stat().st_size)], {"kind": "test"})
    side_file = pack(path).path
    for words, wanted in ((["list"], "PACKED"), (["rm", "moe:tiny"], "removed")):
        with pytest.raises(SystemExit):
            cli.main(words)
        assert wanted in capsys.readouterr().out
    assert not side_file.exists()
