"""`chat --session`, `sessions`, `--prefix-cache` and `kv` on a fake model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fake_model import FakeModel
from test_cli_commands import kamado

from kamado.engine.cache import prefix_file
from kamado.engine.cache.prefix_store import PrefixStore
from kamado.engine.measure import kv_measure
from kamado.engine.measure.kv_results import KvLayerRow, KvResults, KvRow
from kamado.engine.turns.conversations import ConversationStore, conversation_label


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> FakeModel:
    return FakeModel().install(monkeypatch)


def contents(model: FakeModel) -> list[str]:
    return [message["content"] for message in model.calls[-1][1]]


def test_a_session_goes_on_where_it_stopped(model: FakeModel) -> None:
    assert kamado("chat", "m", "--session", "trip", "--system", "Be brief.", stdin="one\n").exit_code == 0
    result = kamado("chat", "m", "--session", "trip", stdin="two\n")
    assert result.exit_code == 0
    assert "session trip goes on: 2 messages" in result.stderr
    assert contents(model) == ["Be brief.", "one", "echo(one)#2", "two"]
    assert model.calls[-1][2]["session"] == "trip"
    kept = ConversationStore().load("trip")
    assert kept is not None
    assert len(kept.messages) == 5


def test_commands_change_what_is_kept(model: FakeModel) -> None:
    kamado("chat", "m", "--session", "s", stdin="one\ntwo\n/undo\n")
    assert [m["content"] for m in ConversationStore().load("s").messages] == ["one", "echo(one)#1"]
    kamado("chat", "m", "--session", "s", stdin="/clear\n")
    assert ConversationStore().load("s").messages == []


def test_without_a_session_nothing_is_kept(model: FakeModel) -> None:
    kamado("chat", "m", stdin="one\n")
    assert ConversationStore().list() == []
    assert "session" not in model.calls[-1][2]


def test_a_name_that_cannot_be_used_costs_no_load(model: FakeModel) -> None:
    result = kamado("chat", "m", "--session", "../x", stdin="one\n")
    assert result.exit_code == 2
    assert "no name for a session" in result.stderr
    assert model.path is None


def test_sessions_are_listed_and_removed_with_what_was_computed(model: FakeModel) -> None:
    assert "no session was kept yet" in kamado("sessions").stderr
    for name in ("a", "b"):
        kamado("chat", "m", "--session", name, stdin="one\n")
    folder = PrefixStore().folder({"model": "m"})
    folder.write_point(prefix_file.token_bytes([1] * 50), b"x" * 5000, conversation_label("a"))
    table = kamado("sessions", "list")
    assert table.stdout.splitlines()[0].split() == ["NAME", "MODEL", "MESSAGES", "SIZE", "LAST", "USED", "(UTC)"]
    listed = json.loads(kamado("sessions", "list", "--json").stdout)
    assert {entry["name"]: entry["prefix_bytes"] > 5000 for entry in listed} == {"a": True, "b": False}
    result = kamado("sessions", "rm", "a", "c")
    assert result.exit_code == 4
    assert len(ConversationStore().list()) == 2, "nothing is removed when one name is unknown"
    assert kamado("sessions", "rm", "a").stdout == "removed a\n"
    assert [c.name for c in ConversationStore().list()] == ["b"]
    assert not list(PrefixStore().root.rglob("*.kv"))


@pytest.mark.parametrize(("given", "expected"), [((), "2GiB"), (("--prefix-cache", "off"), "off")])
def test_prefixes_are_kept_unless_switched_off(model: FakeModel, given: tuple[str, ...], expected: str) -> None:
    kamado("run", "m", "hello", *given)
    assert model.options["prefix_cache"] == expected
    kamado("chat", "m", *given, stdin="hello\n")
    assert model.options["prefix_cache"] == expected


ROWS = [
    KvRow("exact", 1000.0, 10.0, 0.0, 0.0, 0.0, 0.0, 100.0, 5000),
    KvRow("balanced", 270.0, 10.02, 0.2, 0.1, 0.003, 0.1, 98.0, 5000),
    KvRow("small", 180.0, 10.4, 4.0, 0.2, 0.03, 0.5, 92.0, 5000),
]

LAYERS = [
    KvLayerRow("balanced", i, *((0.1, 5, 0.4) if i == 2 else (0.001, 0, 0.004)), output_error=0.01) for i in range(8)
]


def test_kv_prints_a_table_and_a_recommendation(model: FakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []

    def measure(path: Path, **options: Any) -> KvResults:
        calls.append(options)
        return KvResults("1", "fake", "balanced", "now", "", ROWS, LAYERS)

    monkeypatch.setattr(kv_measure, "measure_kv", measure)
    result = kamado("kv", "m", "--presets", "balanced,small", "--threads", "1")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["exact", "balanced", "small"]
    assert [line.split()[-1] for line in lines[2:4]] == ["yes", "no"]
    assert lines[-1] == "--kv auto now takes balanced for /models/m"
    assert calls[0]["presets"] == ["balanced", "small"]
    assert calls[0]["threads"] == 1
    document = json.loads(kamado("kv", "m", "--presets", "balanced,small", "--json").stdout)
    assert document["recommended"] == "balanced"
    assert [row["is_safe"] for row in document["presets"]] == [True, True, False]
    assert "balanced: keys of layer 2 are delicate: the weights of its head 5 move by 0.400 nats" in result.stderr
    assert "0.0134, 0.400" in lines[2], "mean and worst head"
    attention = document["presets"][1]["attention"]
    assert [row["divergence"] for row in attention] == [0.001] * 2 + [0.1] + [0.001] * 5
    assert document["presets"][1]["delicate_layers"] == [2]
    assert document["presets"][2]["attention"] == []


@pytest.mark.parametrize("presets", ["auto", "q4", "", "k=4"])
def test_kv_refuses_what_is_no_preset(model: FakeModel, presets: str) -> None:
    assert kamado("kv", "m", "--presets", presets).exit_code == 2
