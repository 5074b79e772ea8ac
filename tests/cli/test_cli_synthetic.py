"""The commands that need a model's real shape, on a tiny synthetic one; the executor is a scripted one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from test_cli_bench import ScriptedExecutor

from kamado.cli import loading
from kamado.cli.main import cli

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
from smoke import write_donor

SHAPE = (
    "--family", "qwen3moe", "--layers", "2", "--hidden", "256", "--heads", "4", "--kv-heads", "2", "--head-dim", "32",
    "--experts", "4", "--top-k", "2", "--expert-width", "256", "--context", "1024",
)  # fmt: skip


def kamado(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic")
    write_donor(folder / "donor.gguf")
    result = kamado("synth", folder / "tiny.gguf", "--tokenizer-from", folder / "donor.gguf", *SHAPE, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["bytes"] == (folder / "tiny.gguf").stat().st_size
    assert report["shape"]["experts"] == 4
    return folder / "tiny.gguf"


def test_synth_overwrites_nothing_unasked(synthetic: Path) -> None:
    before = synthetic.stat().st_mtime_ns
    result = kamado("synth", synthetic, "--tokenizer-from", synthetic.with_name("donor.gguf"), *SHAPE)
    assert result.exit_code == 2
    assert "--force" in result.stderr
    assert synthetic.stat().st_mtime_ns == before


def test_synth_of_a_header_is_enough_for_a_plan(synthetic: Path, tmp_path: Path) -> None:
    path = tmp_path / "large.gguf"
    donor = synthetic.with_name("donor.gguf")
    result = kamado(
        "synth", path, "--family", "step35", "--tokenizer-from", donor, "--part", "0.5", "--header-only", "--json"
    )
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["shape"]["layers"], report["shape"]["vocab"]) == (22, 64408)
    assert report["bytes"] == path.stat().st_size > 50e9
    assert path.stat().st_blocks * 512 < 10e6
    document = json.loads(kamado("plan", path, "--json", "--memory", "8GiB").stdout)
    assert document["fits"] is True


def test_show_program_folds_layers_unless_all(synthetic: Path) -> None:
    folded = kamado("show", synthetic, "--program").stdout
    whole = kamado("show", synthetic, "--program", "--all").stdout
    assert "qwen3moe: 2 layers" in folded
    assert whole.count("attend") == 2 * folded.count("attend")


def test_plan_keeps_its_contract(synthetic: Path) -> None:
    document = json.loads(kamado("plan", synthetic, "--json").stdout)
    assert {"peak_bytes", "prefill_tokens_per_second", "decode_tokens_per_second", "fits"} <= document.keys()
    assert document["fits"] is True
    small = kamado("plan", synthetic, "--memory", "1MiB")
    assert small.exit_code == 0
    assert "does not fit" in small.stdout
    assert "the least budget that works" in small.stdout
    assert kamado("plan", synthetic, "--memory", "lots").exit_code == 2
    assert kamado("plan", synthetic, "--kv", "nonsense").exit_code == 2


def test_plan_for_another_machine(synthetic: Path, tmp_path: Path) -> None:
    """What is printed says whose figures they are and where each is from."""
    page = (Path(__file__).parents[2] / "docs" / "plan-device.md").read_text()
    device = tmp_path / "device.toml"
    device.write_text(page.partition("```toml\n")[2].partition("```")[0])
    shown = kamado("plan", synthetic, "--device", device).stdout
    assert f"figures of A workstation ({device}):" in shown
    assert "80 GB/s  measured with stream, 16 threads" in shown
    assert "3 sizes  measured with fio" in shown
    assert "speed at most: prefill" in shown
    assert "16 threads" in shown
    document = json.loads(kamado("plan", synthetic, "--device", device, "--json").stdout)
    assert document["device"]["name"] == "A workstation"
    assert document["device"]["file"] == str(device)
    assert document["device"]["figures"]["threads"] == {"value": 16, "source": "its data sheet"}
    assert document["memory_bytes"] == 60_000_000_000
    assert document["decode_tokens_per_second"] > 0
    more = json.loads(kamado("plan", synthetic, "--device", device, "--json", "--memory", "1TiB").stdout)
    assert (more["memory_bytes"], more["memory_limited_by"]) == (68_719_476_736, "A workstation")
    here = json.loads(kamado("plan", synthetic, "--json").stdout)["device"]
    assert here["file"] is None
    assert here["figures"]["memory_bytes"]["source"].startswith("this machine")
    device.write_text("name = 'x'")
    wrong = kamado("plan", synthetic, "--device", device)
    assert wrong.exit_code == 2
    assert f"{device}: memory_bytes, threads, memory_bytes_per_second missing" in wrong.stderr
    assert kamado("plan", synthetic, "--device", tmp_path / "none.toml").exit_code == 2


def test_bench_keeps_its_contract(synthetic: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {}

    class Executor(ScriptedExecutor):
        def stats(self) -> dict[str, float]:
            return {"steps": len(self.steps)}

        def close(self) -> None:
            settings["closed"] = True

    def build(_program: object, **given: Any) -> Executor:
        settings.update(given)
        return Executor()

    monkeypatch.setattr(loading, "build_executor", build)
    result = kamado(
        "bench", synthetic, "--prefill", "16,600", "--decode", "4", "--depth", "0,1000", "--batch", "1,3", "--chunk",
        "128", "--repeat", "1", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert {"model", "machine", "peak_bytes", "results"} <= document.keys()
    shown = [(r["kind"], r["depth"], r["tokens"], r["batch"], "kv" in r) for r in document["results"]]
    assert shown == [
        ("prefill", 0, 16, 1, False),
        ("prefill", 0, 600, 1, False),
        ("decode", 0, 4, 1, False),
        ("decode", 0, 4, 3, False),
        ("decode", 1000, 4, 1, True),
        ("decode", 1000, 4, 3, True),
    ]
    assert settings["closed"]
    assert settings["max_kv_tokens"] == 3 * 1024  # 1006 tokens in whole pages, for each of three sequences
    assert settings["max_sequences"] == 3
    table = kamado("bench", synthetic, "--prefill", "16", "--decode", "2", "--depth", "300", "--repeat", "1")
    assert "300*" in table.stdout
    assert "for speed only" in table.stdout


def test_bench_of_a_streamed_model_tells_cold_start_and_steady_state_apart(synthetic: Path, tmp_path: Path) -> None:
    pytest.importorskip("kamado._native", reason="the native module is not built")
    model = tmp_path / "streamed.gguf"
    shape = [*SHAPE[:3], "4", *SHAPE[4:]]
    shape[shape.index("--experts") + 1] = "64"
    assert kamado("synth", model, "--tokenizer-from", synthetic.with_name("donor.gguf"), *shape).exit_code == 0
    words = ("--prefill", "16", "--decode", "4", "--repeat", "3", "--chunk", "32", "--context", "64")
    whole = json.loads(kamado("bench", model, *words, "--memory", "8GiB", "--json").stdout)
    assert [result["kind"] for result in whole["results"]] == ["prefill", "decode"]
    assert whole["ledger"] is None
    budget = whole["planned_peak_bytes"] - (12 << 20)  # of 28 MB of experts
    document = json.loads(kamado("bench", model, *words, "--memory", str(budget), "--json").stdout)
    results = {result["kind"]: result for result in document["results"]}
    assert list(results) == ["prefill_cold", "decode_cold", "prefill", "decode"]
    cold, steady = results["decode_cold"], results["decode"]
    assert {"depth", "tokens", "tokens_per_second", "samples"} <= cold.keys()
    assert len(cold["samples"]) == 1
    assert len(steady["samples"]) == 3
    # Nothing is in memory at first: most of what four tokens pick in four layers, two experts each, is read.
    assert cold["hit_rate"] < 0.5 < 1.5 * steady["hit_rate"]
    assert cold["bytes_read_per_token"] > steady["bytes_read_per_token"] > 0
    assert cold["warm_up_tokens"] == 0
    assert steady["warm_up_tokens"] >= 32
    assert results["prefill_cold"]["hit_rate"] < 0.2
    table = kamado("bench", model, *words, "--memory", str(budget)).stdout
    assert "decode, cold start" in table
    assert "decode, steady state" in table
    assert "read a token" in table.lower()


def test_bench_refuses_what_does_not_fit(synthetic: Path) -> None:
    result = kamado("bench", synthetic, "--memory", "1MiB")
    assert result.exit_code == 7
    assert "the least that works" in result.stderr
