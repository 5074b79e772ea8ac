"""What each command prints, takes and returns, on a fake model or a tiny hand-made file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from fake_model import FakeModel

from kamado.cli.main import COMMANDS, cli
from kamado.files.gguf_writer import GgufWriter
from kamado.files.types import Layout

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


def kamado(*arguments: str, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(cli, list(arguments), input=stdin)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> FakeModel:
    return FakeModel().install(monkeypatch)


@pytest.fixture
def tiny_gguf(tmp_path: Path) -> Path:
    """A valid file of an architecture nobody knows."""
    writer = GgufWriter("newcomer")
    writer.add("general.name", "Tiny\x1b[31m red")
    writer.add("tokenizer.ggml.model", "gpt2")
    writer.add("tokenizer.ggml.tokens", [f"t{i}" for i in range(100)])
    writer.add("tokenizer.chat_template", TEMPLATE)
    writer.add_tensor("token_embd.weight", (4, 32), Layout.F32)
    path = tmp_path / "tiny.gguf"
    with writer.open(path) as sink:
        sink.write("token_embd.weight", np.ones((4, 32), np.float32))
    return path


def test_help_names_every_command_and_imports_none() -> None:
    result = kamado("--help")
    assert result.exit_code == 0
    for name in COMMANDS:
        assert f"\n  {name} " in result.stdout
        assert kamado(name, "--help").exit_code == 0


def test_version() -> None:
    result = kamado("--version")
    assert result.exit_code == 0
    assert result.stdout.startswith("kamado ")


# --- run --------------------------------------------------------------------------------------------------------------


def test_run_prints_the_answer_and_nothing_else_on_stdout(model: FakeModel) -> None:
    result = kamado("run", "m", "why", "blue?")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "echo(why blue?)#1\n", "")
    assert model.calls == [("chat", [{"role": "user", "content": "why blue?"}], {})]
    assert model.is_closed
    assert model.generations[0].is_closed


@pytest.mark.parametrize(
    ("arguments", "stdin", "prompt"),
    [
        ([], "from stdin\n", "from stdin"),
        (["-"], "from stdin\n", "from stdin"),
        (["Sum", "up:", "-"], "line 1\nline 2\n", "Sum up:\n\nline 1\nline 2"),
        (["--file", "FILE"], "unread", "in the file"),
        (["Sum up:", "--file", "FILE"], "unread", "Sum up:\n\nin the file"),
        (["--file", "MARKED"], "unread", "in the file"),
        (["-"], "\ufefffrom stdin\n", "from stdin"),
        (["日本語 👩‍👩‍👧"], None, "日本語 👩‍👩‍👧"),
    ],
)
def test_run_takes_the_prompt_from_arguments_file_and_stdin(
    model: FakeModel, tmp_path: Path, arguments: list[str], stdin: str | None, prompt: str
) -> None:
    (tmp_path / "prompt.txt").write_text("in the file\n")
    (tmp_path / "marked.txt").write_text("in the file\n", encoding="utf-8-sig")
    files = {"FILE": "prompt.txt", "MARKED": "marked.txt"}
    words = [str(tmp_path / files[word]) if word in files else word for word in arguments]
    assert kamado("run", "m", *words, stdin=stdin).exit_code == 0
    assert model.calls[0][1][-1]["content"] == prompt


def test_run_passes_on_only_what_was_given(model: FakeModel) -> None:
    result = kamado(
        "run", "m", "hi", "--system", "be brief", "-t", "0", "--top-k", "5", "--stop", "a", "--stop", "b",
        "--logit-bias", "7=-1.5", "--seed", "3", "--memory", "2GiB", "-j", "2", "--context", "512", "--kv", "f32",
    )  # fmt: skip
    assert result.exit_code == 0
    _, messages, sampling = model.calls[0]
    assert messages[0] == {"role": "system", "content": "be brief"}
    assert sampling == {"temperature": 0, "top_k": 5, "stop": ["a", "b"], "logit_bias": {7: -1.5}, "seed": 3}
    assert model.options == {"memory": "2GiB", "threads": 2, "context": 512, "kv": "f32", "prefix_cache": "2GiB"}


def test_run_raw_uses_no_template(model: FakeModel) -> None:
    assert kamado("run", "m", "--raw", "Once").stdout == "raw:Once\n"
    assert model.calls[0][0] == "generate"


def test_a_raw_prompt_has_special_tokens_unless_it_is_plain(model: FakeModel) -> None:
    assert kamado("run", "m", "--raw", "<|im_start|>user").exit_code == 0
    assert kamado("run", "m", "--raw", "--plain", "<|im_start|>user").exit_code == 0
    assert [sampling["special"] for _, _, sampling in model.calls] == [True, False]
    result = kamado("run", "m", "--plain", "hi")
    assert result.exit_code == 2
    assert "--raw" in result.stderr


def test_run_says_that_a_base_model_only_continues(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeModel(has_chat_template=False).install(monkeypatch)
    result = kamado("run", "m", "Once")
    assert result.stdout == "raw:Once\n"
    assert "no chat template" in result.stderr
    assert kamado("run", "m", "Once", "--system", "x").exit_code == 2


def test_run_stats_go_to_stderr(model: FakeModel) -> None:
    result = kamado("run", "m", "hi", "--stats")
    assert result.stdout == "echo(hi)#1\n"
    assert "prompt 5 tokens (3 reused)" in result.stderr


def test_run_overflow_is_one_sentence(model: FakeModel) -> None:
    result = kamado("run", "m", "overflow")
    assert result.exit_code == 6
    assert result.stderr.startswith("kamado: error: the prompt has 9000 tokens and the context holds 4096")
    assert "Traceback" not in result.output


# --- chat -------------------------------------------------------------------------------------------------------------


def test_a_full_context_is_no_dead_end(model: FakeModel) -> None:
    result = kamado("chat", "m", stdin="one\ntwo\noverflow\n/trim\nthree\n/trim\n/trim\n/trim\nfour\n")
    assert "(/trim forgets the oldest question and its answer, /undo the last, /clear all of them)" in result.stderr
    assert [len(call[1]) for call in model.calls] == [1, 3, 5, 3, 1]
    assert [m["content"] for m in model.calls[3][1]] == ["two", "echo(two)#3", "three"]


def test_chat_keeps_the_conversation(model: FakeModel) -> None:
    result = kamado("chat", "m", stdin="one\ntwo\n")
    assert (result.exit_code, result.stdout) == (0, "echo(one)#1\necho(two)#3\n")
    assert [m["role"] for m in model.calls[1][1]] == ["user", "assistant", "user"]


def test_chat_reads_several_lines(model: FakeModel) -> None:
    kamado("chat", "m", stdin='"""first\nsecond"""\nthird \\\nfourth\n"""only one"""\n')
    assert [call[1][-1]["content"] for call in model.calls] == ["first\nsecond", "third \nfourth", "only one"]


def test_chat_commands(model: FakeModel, tmp_path: Path) -> None:
    saved = tmp_path / "talk.json"
    lines = [
        "/system be kind", "hello", f"/save {saved}", "/clear", "again", f"/load {saved}", "/undo",
        "/set temperature 0.5", "more", "/retry", "/stats", "/help", "/bye", "never",
    ]  # fmt: skip
    result = kamado("chat", "m", stdin="\n".join(lines) + "\n")
    assert result.exit_code == 0
    assert json.loads(saved.read_text()) == {
        "system": "be kind",
        "messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "echo(hello)#2"}],
    }
    contents = [[m["content"] for m in call[1]] for call in model.calls]
    assert contents == [["be kind", "hello"], ["be kind", "again"], ["be kind", "more"], ["be kind", "more"]]
    assert model.calls[-1][2] == {"temperature": 0.5}
    assert "/system" in result.stdout
    assert "never" not in result.stdout


@pytest.mark.parametrize(
    "line", ["/nonsense", "/set temperature warm", "/load /no/such/file", "/save", "overflow", "/retry"]
)
def test_chat_goes_on_after_a_mistake(model: FakeModel, line: str) -> None:
    result = kamado("chat", "m", stdin=f"{line}\nafter\n")
    assert result.exit_code == 0
    assert result.stdout.endswith("echo(after)#1\n")
    assert result.stderr.count("kamado: error:") == 1


def test_chat_needs_a_template(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeModel(has_chat_template=False).install(monkeypatch)
    result = kamado("chat", "m", stdin="x\n")
    assert result.exit_code == 2
    assert "--raw" in result.stderr


# --- show, list, rm, pull, doctor, completion, perplexity -------------------------------------------------------------


def test_show_describes_a_file_that_cannot_run(tiny_gguf: Path) -> None:
    result = kamado("show", str(tiny_gguf))
    assert result.exit_code == 0
    assert "newcomer" in result.stdout
    assert "no: " in result.stdout
    assert "[100 values]" in result.stdout
    assert "\x1b" not in result.stdout  # neither colours in a pipe nor the file's own escape sequence


def test_show_json(tiny_gguf: Path) -> None:
    document = json.loads(kamado("show", str(tiny_gguf), "--json").stdout)
    assert document["architecture"] == "newcomer"
    assert document["supported"] is False
    assert "newcomer" in document["reason"]
    assert document["parameters"] == 128
    assert document["layouts"] == {"F32": {"tensors": 1, "values": 128, "bytes": 512}}
    tensors = json.loads(kamado("show", str(tiny_gguf), "--tensors", "--json").stdout)
    assert tensors[0] | {"file": "", "offset": 0} == {
        "name": "token_embd.weight", "shape": [4, 32], "nbytes": 512, "layout": "F32", "file": "", "offset": 0,
    }  # fmt: skip


def test_show_lists_tokens_that_are_never_sampled(write_tiny: Callable[..., Path]) -> None:
    model, free = str(write_tiny(suppressed=[5, 3, *range(10, 20)])), str(write_tiny())
    assert "12 tokens: 5, 3, 10, 11, 12, 13, 14, 15, …" in kamado("show", model).stdout
    assert "never sampled" not in kamado("show", free).stdout
    listed = [json.loads(kamado("show", path, "--json").stdout)["suppressed_tokens"] for path in (model, free)]
    assert listed == [[5, 3, *range(10, 20)], []]


def test_show_template_and_program(tiny_gguf: Path) -> None:
    assert kamado("show", str(tiny_gguf), "--template").stdout == TEMPLATE + "\n"
    result = kamado("show", str(tiny_gguf), "--program")
    assert result.exit_code == 3
    assert "newcomer" in result.stderr


def test_a_setting_that_nobody_knows_is_left_out_on_the_users_word_alone(write_tiny: Callable[..., Path]) -> None:
    odd = str(write_tiny(new_scale=2.5))
    text = "llama.new_scale"
    allow = ("--allow-unknown", text, "--allow-unknown", "llama.block_count")
    for command in ("run", "plan", "perplexity", "embed", "kv", "bench", "chat"):
        result = kamado(command, odd, stdin="a text")
        assert result.exit_code == 3, command
        assert f"{text}' is 2.5" in result.stderr
        assert f"--allow-unknown {text}" in result.stderr
    assert f"{text}' is 2.5" in kamado("show", odd).stdout
    for words in (("show", odd), ("plan", odd), ("run", odd, "a", "--raw", "-n", "1", "--context", "64")):
        result = kamado(*words, *allow)
        assert result.exit_code == 0, result.stderr
        assert f"the file's {text} is not applied" in result.stderr
        assert "--allow-unknown llama.block_count does nothing" in result.stderr


def test_show_lists_what_was_overridden(write_tiny: Callable[..., Path]) -> None:
    odd = str(write_tiny(new_scale=2.5))
    allow = ("--allow-unknown", "llama.new_scale")
    assert "not applied" in kamado("show", odd, *allow).stdout
    assert "not applied" not in kamado("show", odd).stdout
    document = json.loads(kamado("show", odd, *allow, "--json").stdout)
    assert (document["supported"], document["overridden"]) == (True, ["llama.new_scale"])
    assert json.loads(kamado("show", odd, "--json").stdout)["overridden"] == []
    assert "llama.new_scale is not applied" in kamado("show", odd, *allow, "--program").stdout
    assert json.loads(kamado("plan", odd, *allow, "--json").stdout)["overridden"] == ["llama.new_scale"]


def test_list_and_rm_on_an_empty_store() -> None:
    assert json.loads(kamado("list", "--json").stdout) == []
    result = kamado("ls")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "kamado pull" in result.stderr
    assert kamado("rm", "nobody:1b").exit_code == 4


def test_list_show_and_rm_of_a_stored_model(tiny_gguf: Path) -> None:
    import hashlib

    from kamado.library.store import Store, StoredFile

    store = Store()
    digest = hashlib.sha256(tiny_gguf.read_bytes()).hexdigest()
    size = tiny_gguf.stat().st_size
    copy = tiny_gguf.with_name("copy")
    copy.write_bytes(tiny_gguf.read_bytes())
    store.adopt(copy, digest)
    store.add("tiny:1", [StoredFile("tiny.gguf", digest, size)], {"kind": "test"})
    listed = json.loads(kamado("list", "--json").stdout)
    assert [(model["name"], model["bytes"]) for model in listed] == [("tiny:1", size)]
    assert "tiny:1" in kamado("list").stdout
    assert kamado("show", "tiny:1").exit_code == 0
    assert kamado("rm", str(tiny_gguf)).exit_code == 2  # a file is never removed
    assert kamado("rm", "tiny:1", "typo:1").exit_code == 4
    assert len(json.loads(kamado("list", "--json").stdout)) == 1  # nothing is removed when one name is wrong
    assert kamado("rm", "tiny:1").exit_code == 0
    assert json.loads(kamado("list", "--json").stdout) == []
    assert tiny_gguf.exists()


def test_pull_list_names_the_catalog() -> None:
    catalog = json.loads(kamado("pull", "--list", "--json").stdout)
    assert "smollm2:135m" in [entry["name"] for entry in catalog]
    assert "smollm2:135m" in kamado("pull", "--list").stdout


def test_a_catalog_name_is_not_fetched_unasked() -> None:
    result = kamado("run", "smollm2:135m", "hi")
    assert result.exit_code == 4
    assert "kamado pull smollm2:135m" in result.stderr


def test_run_pull_fetches_first(monkeypatch: pytest.MonkeyPatch) -> None:
    from kamado.cli import loading

    fetched: list[str] = []

    def fetch(name: str, _store: object, **_: object) -> Path:
        fetched.append(name)
        return Path("/models/fetched")

    fake = FakeModel()
    locate = loading.locate
    fake.install(monkeypatch)
    monkeypatch.setattr(loading, "locate", locate)
    monkeypatch.setattr(loading, "fetch", fetch)
    assert kamado("run", "--pull", "smollm2:135m", "hi").stdout == "echo(hi)#1\n"
    assert fetched == ["smollm2:135m"]
    assert fake.path == Path("/models/fetched")


def test_perplexity(model: FakeModel, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("some text")
    document = json.loads(kamado("perplexity", "m", str(text), "--json").stdout)
    assert document["perplexity"] == 12.5
    assert document["scored_tokens"] == 255
    assert model.options["context"] == 512
    assert "12.5000 ± 0.2500" in kamado("perplexity", "m", stdin="piped").stdout
    assert model.calls[-1] == ("perplexity", "piped", {"window": 512})
    assert kamado("perplexity", "m", stdin=b"\xff\xfe").exit_code == 2


def test_embed_prints_vectors_or_likeness(model: FakeModel, tmp_path: Path) -> None:
    document = json.loads(kamado("embed", "m", "one", "two words", "--json", "--truncate").stdout)
    assert model.calls[-1] == ("embed", ["one", "two words"], {"dimensions": None, "truncate": True})
    assert document["dimensions"] == 2
    assert [entry["tokens"] for entry in document["embeddings"]] == [1, 2]
    assert document["embeddings"][0]["embedding"] == pytest.approx([0.955336, 0.295520], abs=1e-5)
    lines = kamado("embed", "m", "one", "two words", "--dimensions", "2").stdout.splitlines()
    assert lines[0] == "1.0000  +0.9553 +0.2955  one"
    assert lines[1].startswith("0.8253  ")
    file = tmp_path / "lines"
    file.write_text("a\n\nb b\n")
    assert kamado("embed", "m", "--file", str(file)).exit_code == 0
    assert model.calls[-1][1] == ["a", "b b"]
    assert kamado("embed", "m", stdin="piped\n").stdout == "+0.8776 +0.4794  piped\n"
    assert kamado("embed", "m", "x", "--file", str(file)).exit_code == 2
    assert kamado("embed", "m", stdin="\n").exit_code == 2


def test_doctor_says_ok_or_what_is_broken(tiny_gguf: Path) -> None:
    document = json.loads(kamado("doctor", "--json").stdout)
    assert {"processor", "memory", "native", "limits", "store"} <= {finding["name"] for finding in document["findings"]}
    assert document["machine"]["cpus"] >= 1


def test_doctor_finds_a_damaged_model(tiny_gguf: Path) -> None:
    import hashlib

    from kamado.library.store import Store, StoredFile

    store = Store()
    damaged = tiny_gguf.with_name("damaged")
    damaged.write_bytes(tiny_gguf.read_bytes()[:60])
    digest = hashlib.sha256(damaged.read_bytes()).hexdigest()
    store.adopt(damaged, digest)
    store.add("broken:1", [StoredFile("m.gguf", digest, 60)], {"kind": "test"})
    result = kamado("doctor")
    assert result.exit_code == 1
    assert "broken:1" in result.stdout
    assert "pull it again" in result.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str) -> None:
    result = kamado("completion", shell)
    assert result.exit_code == 0
    assert "_KAMADO_COMPLETE" in result.stdout


def test_completion_answers_with_commands_and_model_names() -> None:
    def complete(words: str, number: int) -> list[str]:
        environment = {"_KAMADO_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(number)}
        output = CliRunner().invoke(cli, [], env=environment, prog_name="kamado").stdout
        return [line.removeprefix("plain,") for line in output.splitlines()]

    assert "perplexity" in complete("kamado pe", 1)
    assert complete("kamado run smol", 2) == ["smollm2:135m"]
    assert complete("kamado run ./mod", 2) == ["file,./mod"]
    assert "--temperature" in complete("kamado run --te", 2)


def test_plan_prints_the_forecast(monkeypatch: pytest.MonkeyPatch, tiny_gguf: Path) -> None:
    assert kamado("plan", str(tiny_gguf), "--json").exit_code == 3  # unknown family: no forward pass, no forecast
    assert kamado("plan", str(tiny_gguf), "--memory", "lots").exit_code in (2, 3)
