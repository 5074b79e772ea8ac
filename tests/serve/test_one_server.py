"""The command line beside a server: the same answers by it as without it, and a clear word when it cannot be used."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import kamado
from kamado.cli import link, loading
from kamado.cli.connection import opened
from kamado.cli.main import cli
from kamado.cli.same import differences
from kamado.errors import ContextOverflowError, ServerError, UsageError
from kamado.local import documents as d
from kamado.serve.http.keys import KeyRing
from kamado.serve.ops import desk

from .own_server import Asked, beside, scripted, status_of, told_of
from .running import Running, wait_until
from .stores import put

KEY = "a-key-of-this-test"
SAID = ["--seed", "5", "-n", "12", "--prefix-cache", "2GiB"]


def command(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(cli, list(arguments), input=stdin)


def asked(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@pytest.fixture
def tiny(tiny_checkpoint: Path) -> Path:
    """The store's model "tiny"."""
    import os

    put(Path(os.environ["KAMADO_HOME"]), "tiny", tiny_checkpoint)
    return loading.locate("tiny")


@pytest.fixture
def up(tiny: Path) -> Iterator[Running]:
    with beside() as found:
        yield found


@pytest.fixture
def no_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever loads a model in this process fails; the server's loads are not the command line's."""

    def load(path: Path, options: Any) -> Any:
        raise AssertionError("it was loaded here")

    monkeypatch.setattr(loading, "load", load)


@pytest.fixture
def alone(tiny: Path) -> str:
    """What `run` says without a server."""
    result = command("run", "tiny", "hello", *SAID)
    assert result.exit_code == 0, result.output
    return result.stdout


# --- the same ---------------------------------------------------------------------------------------------------------


def test_run_says_the_same_beside_a_server_and_loads_nothing(
    alone: str, up: Running, no_load: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # it has no business between the two
    result = command("run", "tiny", "hello", *SAID)
    assert (result.exit_code, result.stdout, result.stderr) == (0, alone, "")
    assert up.server.service.pool.find("tiny") is not None


OPTIONS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 1.3, "seed": 11, "top_k": 7, "min_p": 0.01, "repetition_penalty": 1.2},
    {"seed": 3, "logprobs": 3, "logit_bias": {65: 5.0, 66: -100.0}},
    {"seed": 4, "stop": ["a", "e"], "presence_penalty": 0.5},
    {"seed": 1, "regex": "[ab]{4}c"},
]


def test_every_piece_is_the_same(tiny: Path) -> None:
    each = [{"max_tokens": 10, **options} for options in OPTIONS]
    with kamado.load(tiny) as model:
        chats = [list(model.chat(asked("what is it?"), **more)) for more in each]
        texts = [list(model.generate("once", **more)) for more in each]
        ids = model.encode_chat(asked("what is it?"))
    with beside(), opened("tiny", {}) as there:
        assert [list(there.chat(asked("what is it?"), **more)) for more in each] == chats
        assert [list(there.generate("once", **more)) for more in each] == texts
        answer = there.chat(asked("what is it?"), **each[0])
        assert list(answer) == chats[0]
        assert answer.usage.num_generated_tokens == len(chats[0])
        assert answer.usage.num_prompt_tokens == len(ids)
        assert there.encode_chat(asked("what is it?")) == ids
        assert (there.name, there.has_chat_template, there.is_encoder) == ("tiny", True, False)
        assert there.stats.tokens["decode"] > 0
        assert type(there).__name__ == "RemoteModel"


def test_faults_are_those_of_a_model_here(up: Running, no_load: None) -> None:
    with opened("tiny", {}) as there:
        with pytest.raises(ContextOverflowError) as caught:
            there.chat(asked("long " * 3000))
        assert caught.value.context_tokens == there.context
        with pytest.raises(UsageError, match="top_p"):
            there.chat(asked("x"), top_p=7)
        with pytest.raises(UsageError):
            there.chat([{"role": "nobody", "content": "x"}])
        with pytest.raises(UsageError, match="colour"):
            there.chat(asked("x"), colour="red")


def test_a_session_goes_on_on_either_side(tiny: Path) -> None:
    first = command("chat", "tiny", "--session", "trip", *SAID, stdin="one\n")
    with beside():
        second = command("chat", "tiny", "--session", "trip", *SAID, stdin="two\n")
    third = command("chat", "tiny", "--session", "trip", *SAID, stdin="three\n")
    assert [result.exit_code for result in (first, second, third)] == [0, 0, 0]
    assert "loading the model here" not in second.stderr
    assert "4 messages" in third.stderr


def test_vectors_are_the_same(tmp_path: Path, write_tiny: Callable[..., Path]) -> None:
    pooled = write_tiny(pooling_type=1)
    texts = ["one", "and a longer one", "three"] * 100
    with kamado.load(pooled, kv="exact") as model:
        here = model.embed_counted(texts, dimensions=8)
    with beside({"pooled": pooled}), opened(str(pooled), {}, for_vectors=True) as there:
        assert type(there).__name__ == "RemoteModel"
        found = there.embed_counted(texts, dimensions=8)
    assert found.num_tokens == here.num_tokens
    assert np.array_equal(found.vectors, here.vectors)


def test_a_model_that_makes_no_vectors_there_is_loaded_here(up: Running) -> None:
    result = command("embed", "tiny", "one", "two", "--json")
    assert result.exit_code == 0, result.output
    assert len(json.loads(result.stdout)["embeddings"]) == 2


def test_leaving_an_answer_ends_its_work(up: Running, no_load: None) -> None:
    with opened("tiny", {}) as there:
        answer = there.chat(asked("hello"), seed=1, logit_bias=dict.fromkeys(range(3), 0.0))
        next(answer)
        assert up.server.service.num_active == 1
        answer.close()
        assert answer.usage.num_generated_tokens == 1
        wait_until(lambda: up.server.service.num_active == 0)


# --- which server -----------------------------------------------------------------------------------------------------


def test_other_settings_are_named_and_the_model_is_loaded_here(up: Running) -> None:
    result = command("run", "tiny", "hello", "--context", "64", "--threads", "1", "--kv", "small", *SAID)
    assert result.exit_code == 0, result.output
    assert "other settings: --context 64 (there " in result.stderr
    assert "--kv small (there auto)" in result.stderr
    assert up.server.service.pool.find("tiny") is None


def test_local_asks_no_server(alone: str, up: Running) -> None:
    result = command("run", "tiny", "hello", "--local", *SAID)
    assert (result.stdout, result.stderr) == (alone, "")
    assert up.server.service.pool.find("tiny") is None


def test_a_model_that_is_not_served_is_loaded_here(tiny: Path, tiny_checkpoint: Path) -> None:
    other = tiny_checkpoint.parent / "other.gguf"
    other.write_bytes(tiny_checkpoint.read_bytes())
    with beside({"other": other}, models=["other"]):
        result = command("run", "tiny", "hello", *SAID)
        assert result.exit_code == 0
        assert "does not serve tiny: loading the model here" in result.stderr
        assert "loading" not in command("run", str(other), "hello", *SAID).stderr


def test_a_server_of_another_version_is_not_used(up: Running, alone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk, "__version__", "9.9")
    result = command("run", "tiny", "hello", *SAID)
    assert result.stdout == alone
    assert "the server here is Kamado 9.9, this is " in result.stderr


def test_a_named_server_answers_with_its_key(tiny: Path, no_load: None, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = KeyRing()
    keys.add(KEY)
    monkeypatch.delenv("KAMADO_API_KEY", raising=False)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with beside(keys=keys) as up:
        where = ["--server", f"{up.url}/v1"]
        refused = command("run", "tiny", "hello", *where, *SAID)
        assert (refused.exit_code, refused.stdout) == (9, "")
        assert "API key" in refused.stderr
        monkeypatch.setenv("KAMADO_API_KEY", KEY)
        answer = command("run", "tiny", "hello", *where, *SAID)
        assert answer.exit_code == 0, answer.output
        assert answer.stdout
        session = command("chat", "tiny", "--session", "trip", *where, *SAID, stdin="one\n")
        assert "sessions are the local user's own" in session.stderr
        assert command("run", "tinny", "hello", *where).exit_code == 4
    gone = command("run", "tiny", "hello", *where)
    assert gone.exit_code == 9
    assert "cannot be reached" in gone.stderr


def test_local_and_server_contradict_each_other() -> None:
    result = command("run", "tiny", "hello", "--local", "--server", "http://127.0.0.1:1")
    assert result.exit_code == 2
    assert "contradict" in result.stderr
    assert command("run", "tiny", "hello", "--server", "ftp://x").exit_code == 2


STATUS = d.Status(d.PROTOCOL, "0", 1, "", d.Settings("auto", memory_bytes=6 << 30, context=4096, threads=2))
STATE = d.ModelState("m", kv="exact", threads=2, context=2048)


@pytest.mark.parametrize(
    ("values", "state", "named"),
    [
        ({}, None, ""),
        ({"context": 4096, "threads": 2, "memory": "6GiB", "kv": "auto"}, None, ""),
        ({"context": 2048, "kv": "exact"}, STATE, ""),
        ({"context": 4096}, STATE, "--context 4096 (there 2048)"),
        ({"memory": "5GiB"}, None, "--memory 5GiB (there 6.00 GiB)"),
        ({"memory": "5GiB"}, replace(STATE, asked={"memory_bytes": str(5 << 30)}), ""),
        ({"kv": "k=4, v=3"}, replace(STATE, asked={"kv": "k=4,v=3"}, kv="k=4,v=3"), ""),
        ({"kv": "small"}, STATE, "--kv small (there auto)"),
        ({"prefix_cache": "off"}, None, ""),
        ({"prefix_cache": "1GiB"}, None, "--prefix-cache 1GiB (there 0 B)"),
        ({"allow_unknown": ("a",)}, None, "--allow-unknown a (there not)"),
        ({}, replace(STATE, overridden=("a",)), "no --allow-unknown a (there left out)"),
        ({"trace": Path("t")}, None, "--trace (there not possible)"),
    ],
)
def test_which_settings_differ(values: dict[str, Any], state: d.ModelState | None, named: str) -> None:
    from kamado.files.atomic import user_folder

    status = replace(STATUS, state_folder=str(user_folder("data", "sessions")))
    assert ", ".join(differences(values, status, state)) == named


# --- servers that fail ------------------------------------------------------------------------------------------------


def nonsense(asked: Asked) -> None:
    asked.wfile.write(b"SSH-2.0-Dropbear\r\n")
    asked.close_connection = True


def a_page(asked: Asked) -> None:
    asked.give(b"<html>hello</html>")


def a_list(asked: Asked) -> None:
    asked.give(b"[" * 100_000)


def an_error(asked: Asked) -> None:
    asked.give(b"no", status=500)


def half(asked: Asked) -> None:
    asked.send_response(200)
    asked.send_header("content-length", "1000")
    asked.end_headers()
    asked.close_connection = True


def old(asked: Asked) -> None:
    asked.give_json({"status": "ok"})


def silent(asked: Asked) -> None:
    asked.close_connection = True
    time.sleep(0.3)


@pytest.mark.parametrize("script", [nonsense, a_page, a_list, an_error, half, old, silent])
def test_a_server_that_answers_nonsense_is_passed_over(
    script: Callable[[Asked], None], alone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "_ASK_SECONDS", 0.1)
    with scripted(script):
        result = command("run", "tiny", "hello", *SAID)
    assert (result.exit_code, result.stdout) == (0, alone)
    assert result.stderr.count("\n") == 1
    assert "loading the model here" in result.stderr


def fitting(path: Path, *rows: Any) -> Callable[[Asked], None]:
    """A server that fits, and whose answer is these rows and then the end of the connection."""

    def script(asked: Asked) -> None:
        if asked.path == d.STATUS_PATH:
            asked.give_json(status_of(path))
            return
        asked.begin()
        for row in [told_of(path)] if asked.path == d.MODEL_PATH else rows:
            asked.line(row)

    return script


STARTED, PIECE = {"started": [9, 512, 1]}, {"piece": ["half", 1, None, [], None]}


@pytest.mark.parametrize("rows", [[], [STARTED], [STARTED, {"progress": ["prefill", 1, 9]}], [{"started": "x"}]])
def test_a_server_that_goes_before_it_answers_is_replaced_by_a_model_here(
    tiny: Path, alone: str, rows: list[Any]
) -> None:
    with scripted(fitting(tiny, *rows)):
        result = command("run", "tiny", "hello", *SAID)
    assert (result.exit_code, result.stdout) == (0, alone)
    assert "loading the model here" in result.stderr


@pytest.mark.parametrize("last", [[], [{"piece": ["x"]}], [{"error": {"kind": "internal", "message": "a fault"}}]])
def test_a_server_that_goes_in_the_middle_of_an_answer_is_an_error(tiny: Path, no_load: None, last: list[Any]) -> None:
    with scripted(fitting(tiny, STARTED, PIECE, *last)):
        result = command("run", "tiny", "hello", *SAID)
    assert result.exit_code == 9
    assert result.stdout.startswith("half")
    assert "the answer above is not whole" in result.stderr


def test_a_chat_goes_on_here_when_its_server_has_gone(tiny: Path) -> None:
    with beside() as up, opened("tiny", {}) as there:
        before = list(there.chat(asked("one"), seed=1, max_tokens=4))
        up.server.drain()
        assert list(there.chat(asked("one"), seed=1, max_tokens=4)) == before
        assert there.context > 0


# --- ps, load, stop, logs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["ps"], ["logs"], ["load", "tiny"], ["stop", "tiny"], ["stop", "--server"]])
def test_without_a_server_one_sentence_says_so(tiny: Path, words: list[str]) -> None:
    result = command(*words)
    assert (result.exit_code, result.stdout) == (9, "")
    assert result.stderr == "" or "kamado serve" in result.stderr


def test_load_ps_and_stop(up: Running) -> None:
    assert json.loads(command("ps", "--json").stdout)["models"] == []
    loaded = command("load", "tiny", "--context", "128")
    assert loaded.exit_code == 0, loaded.output
    assert "context 128" in loaded.stdout
    shown = command("ps")
    assert "tiny" in shown.stdout
    assert "128" in shown.stdout
    (state,) = json.loads(command("ps", "--json").stdout)["models"]
    assert (state["name"], state["context"], state["expires_at"]) == ("tiny", 128, None)
    again = command("load", "tiny", "--context", "128")
    assert again.exit_code == 0
    other = command("load", "tiny", "--context", "256")
    assert other.exit_code == 2
    assert "kamado stop tiny" in other.stderr
    assert "loading" not in command("run", "tiny", "hello", "--context", "128", *SAID).stderr
    assert command("stop", "tinny").exit_code == 4
    assert command("stop", "tiny").stdout == "unloaded tiny\n"
    assert json.loads(command("ps", "--json").stdout)["models"] == []


def test_logs_are_the_latest_lines(up: Running, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "kamado.serve")
    command("load", "tiny")
    lines = command("logs", "-n", "3").stdout.splitlines()
    assert 0 < len(lines) <= 3
    assert any("model loaded" in line or "request" in line for line in lines)
    with link.own_server() as found:
        coming = found.lines("GET", f"{d.LOGS_PATH}?n=1&follow=1")
        assert "line" in next(coming)
        command("stop", "tiny")
        assert "model unloaded" in str([next(coming), next(coming)])
        coming.close()


def test_stop_ends_the_server(up: Running) -> None:
    assert command("stop").exit_code == 2
    assert command("stop", "tiny", "--server").exit_code == 2
    assert command("stop", "--server").exit_code == 0
    wait_until(lambda: up.server.is_draining)


def test_an_unreachable_server_is_an_error_of_its_own() -> None:
    with pytest.raises(ServerError, match="cannot be reached"):
        link.Link.to("http://127.0.0.1:9", None).ask("GET", "/x")
