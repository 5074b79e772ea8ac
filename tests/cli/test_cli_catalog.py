"""The catalog at the command line: lists, searches, asks, pins; and other programs' models beside our own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from library.others import put_ollama
from library.servers import COMMITS, Hub, Reply, serve
from library.test_catalog import write_user_catalog
from terminals import Terminal
from test_cli_commands import kamado

from kamado.library.store import Store

NAME = "mine:1b"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path) -> Iterator[Hub]:
    """A hub that has a model which runs, known to the user's catalog as mine:1b."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with serve() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        found = Hub(server)
        found.publish({"m-Q4_K_M.gguf": tiny_checkpoint.read_bytes()}, license="mit")
        write_user_catalog(f'[[model]]\nname = "{NAME}"\nlicense = "MIT"\n[model.hub]\nrepo = "owner/repo"\n')
        yield found


def test_the_list_says_what_there_is(hub: Hub) -> None:
    lines = kamado("pull", "--list").stdout.splitlines()
    assert lines[0].split() == ["NAME", "SIZE", "LICENCE", "LANGUAGES", "GOOD", "FOR", "PIN", "HERE"]
    assert "98.4 MB" not in lines[1]
    assert lines[1].split()[:4] == ["smollm2:135m", "93.8", "MiB", "Apache-2.0"]
    assert lines[-1].split()[0] == NAME
    rows = json.loads(kamado("pull", "--list", "japanese", "mit", "--json").stdout)
    assert {row["name"] for row in rows} == {"phi4-mini", "phi4:14b", "sarashina2.2:3b"}
    by_name = {row["name"]: row for row in json.loads(kamado("pull", "--list", "--json").stdout)}
    assert (by_name["smollm2:135m"]["pin"], by_name["smollm2:135m"]["bytes"]) == ("catalog", 98362432)
    assert (by_name["qwen3:8b"]["pin"], by_name["qwen3:8b"]["bytes"]) == ("unpinned", None)
    assert by_name["qwen3:8b"]["digest_from"].startswith("LocalAI")
    assert not any(row["here"] for row in by_name.values())
    nothing = kamado("pull", "--list", "zzz")
    assert (nothing.exit_code, nothing.stdout) == (0, "")
    assert "no model of the catalog fits zzz" in nothing.stderr


def test_an_unpinned_model_takes_a_yes_and_is_pinned(hub: Hub) -> None:
    result = kamado("pull", NAME)
    assert result.exit_code == 2
    assert f"revision  {COMMITS[0]}" in result.stderr
    assert f"kamado pull --yes {NAME}" in result.stderr
    assert Store().list() == []
    assert kamado("run", "--pull", NAME, "hi").exit_code == 2
    result = kamado("pull", "--yes", NAME, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["path"] == str(Store().resolve(NAME))
    (row,) = json.loads(kamado("pull", "--list", "mine", "--json").stdout)
    assert (row["pin"], row["revision"], row["here"]) == ("lock", COMMITS[0], True)
    assert kamado("pull", NAME).exit_code == 0


def test_a_hub_name_shows_what_it_takes_and_does_not_ask(hub: Hub) -> None:
    result = kamado("pull", "hf:owner/repo:m-Q4_K_M.gguf")
    assert result.exit_code == 0
    assert COMMITS[0] in result.stderr
    assert "(mit)" in result.stderr
    assert kamado("pull", "--repin", "hf:owner/repo").exit_code == 2
    assert kamado("pull", "a", "b").exit_code == 2


def test_run_on_a_terminal_offers_to_fetch(hub: Hub) -> None:
    no = Terminal("run", NAME, "hi", "-n", "2", program=("-m", "kamado"))
    no.wait_for("[Y/n]")
    assert f"{NAME} is not here: fetch" in no.output
    assert "(mit)" in no.output
    no.type("n\r")
    assert no.exit_code() == 5
    assert "it was declined" in no.output
    assert Store().list() == []
    yes = Terminal("run", NAME, "hi", "-n", "2", program=("-m", "kamado"))
    yes.wait_for("[Y/n]")
    yes.type("\r")
    assert yes.exit_code() == 0
    assert [model.name for model in Store().list()] == [NAME]


def test_a_name_that_nobody_knows_is_not_asked_about(hub: Hub) -> None:
    child = Terminal("run", "nobody:1b", "hi", program=("-m", "kamado"))
    assert child.exit_code() == 4
    assert "[Y/n]" not in child.output


def test_without_a_network_it_says_what_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    result = kamado("pull", "qwen3:8b")
    assert result.exit_code == 5
    assert "no network: 127.0.0.1:1 cannot be reached" in result.stderr
    assert "smollm2:135m" in result.stderr
    found = kamado("search", "coder", "30b")
    assert (found.exit_code, found.stdout.splitlines()[1].split()[0]) == (0, "qwen3-coder:30b-a3b")
    assert "the hub was not asked: no network" in found.stderr
    document = json.loads(kamado("search", "coder", "30b", "--json").stdout)
    assert (len(document["catalog"]), document["hub"]) == (1, [])
    assert "no network" in document["hub_error"]
    nothing = kamado("search", "zzz")
    assert nothing.exit_code == 5
    assert "nothing in the catalog fits zzz, and the hub was not asked: no network" in nothing.stderr
    assert kamado("search", "zzz", "--catalog").stderr == "nothing fits zzz\n"


def test_search_lists_the_catalog_and_then_the_hub(hub: Hub) -> None:
    hits = [
        {
            "id": "o/Mine-GGUF",
            "downloads": 7,
            "tags": ["license:mit"],
            "gguf": {"architecture": "llama", "total": 10**9},
        },
        {"id": "o/odd\x1b[2J"},
        {"id": "o/New-GGUF", "gated": "auto", "gguf": {"architecture": "unheard\x1b[2J"}},
    ]
    hub.server.replies["/api/models"] = Reply(json.dumps(hits).encode())
    lines = kamado("search", "mine").stdout.splitlines()
    assert [line.split()[0] for line in lines if line] == ["NAME", NAME, "ON", "hf:o/Mine-GGUF", "hf:o/New-GGUF"]
    assert lines[4].split()[1:] == ["7", "1B", "mit", "llama", "yes"]
    assert "asks for agreement" in lines[5]
    assert lines[5].split()[-1] == "no"
    document = json.loads(kamado("search", "mine", "--json").stdout)
    assert [hit["runs"] for hit in document["hub"]] == [True, False]
    hub.server.replies["/api/models"] = Reply(b"<html>log in</html>")
    result = kamado("search", "mine")
    assert result.exit_code == 0
    assert "something that is not JSON" in result.stderr


def test_a_broken_entry_is_named_and_the_rest_works(hub: Hub) -> None:
    path = write_user_catalog('[[model]]\nname = "bad one"\n[[model]]\nname = "good:1"\n[model.hub]\nrepo = "o/r"\n')
    result = kamado("pull", "--list", "good:1")
    assert result.stdout.splitlines()[1].split()[0] == "good:1"
    (warning,) = result.stderr.splitlines()
    assert warning.startswith(f"kamado: warning: {path}: model 1 ('bad one'): it needs one source")


def test_models_of_other_programs_are_listed_used_and_never_removed(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KAMADO_ELSEWHERE")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    blob = put_ollama(tmp_path / "ollama", "registry.ollama.ai/library/llama3.2/1b", tiny_checkpoint.read_bytes())
    listed = json.loads(kamado("list", "--json").stdout)
    assert [(row["name"], row["from"], row["path"]) for row in listed] == [("ollama:llama3.2:1b", "Ollama", str(blob))]
    assert "Ollama" in kamado("list").stdout
    result = kamado("show", "llama3.2:1b")
    assert result.exit_code == 0
    assert f"llama3.2:1b is not fetched; ollama:llama3.2:1b is used, which Ollama keeps in {blob}" in result.stderr
    result = kamado("run", "ollama:llama3.2:1b", "hi", "-n", "1")
    assert (result.exit_code, "is used" in result.stderr) == (0, False)
    result = kamado("rm", "ollama:llama3.2:1b")
    assert result.exit_code == 2
    assert "kamado removes only what it fetched itself; remove it with ollama rm llama3.2:1b" in result.stderr
    assert kamado("rm", "llama3.2:1b").exit_code == 2
    assert blob.exists()


def test_an_alias_is_shown_and_removed(hub: Hub) -> None:
    write_user_catalog(f'[[model]]\nname = "{NAME}"\naliases = ["m1"]\n[model.hub]\nrepo = "owner/repo"\n')
    assert kamado("pull", "--yes", "m1").exit_code == 0
    assert kamado("show", "m1").exit_code == 0
    assert kamado("rm", "m1").stdout == f"removed {NAME}\n"
