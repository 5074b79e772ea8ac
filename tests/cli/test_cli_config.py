"""What a person sets once: the default model, aliases, defaults of options, templates; what is said of a wrong file."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
from fake_model import FakeModel
from hypothesis import given
from hypothesis import strategies as st
from test_cli_commands import kamado

from kamado.cli.templates import Field, Template, parse
from kamado.cli.user_config import config_path
from kamado.errors import UsageError


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> FakeModel:
    return FakeModel().install(monkeypatch)


def write(text: str) -> Path:
    path = config_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_the_file_lies_below_kamado_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kamado("config", "path").stdout.strip() == str(Path(os.environ["KAMADO_HOME"]) / "config.toml")
    monkeypatch.delenv("KAMADO_HOME")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert kamado("config", "path").stdout.strip() == str(tmp_path / "kamado" / "config.toml")


# --- what settings do -------------------------------------------------------------------------------------------------


def test_the_nearest_default_holds_and_what_is_typed_goes_before_all(model: FakeModel) -> None:
    write(
        '[defaults]\nthreads = 1\ntop-k = 1\nsystem = "all"\nprefix_cache = "off"\n'
        '[commands.run]\ntop_k = 2\nsystem = "run"\nstop = "x"\n'
        '[models."m"]\nsystem = "model"\n[models.other]\nthreads = 9\n'
    )
    assert kamado("run", "m", "hi", "--top-p", "0.5").exit_code == 0
    _, messages, sampling = model.calls[0]
    assert messages[0] == {"role": "system", "content": "model"}
    assert sampling == {"top_k": 2, "top_p": 0.5, "stop": ["x"]}
    assert model.options == {"threads": 1, "prefix_cache": "off"}
    assert kamado("run", "m", "hi", "--system", "typed", "-j", "3", "--top-k", "0").exit_code == 0
    _, messages, sampling = model.calls[1]
    assert (messages[0]["content"], sampling["top_k"], model.options["threads"]) == ("typed", 0, 3)
    assert kamado("chat", "m", stdin="hi\n").exit_code == 0
    assert model.calls[2][2] == {"top_k": 1}, "what is set for run holds for run"


def test_a_system_message_that_is_only_a_default_stops_nothing(
    model: FakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    write('[defaults]\nsystem = "all"\n')
    assert kamado("run", "m", "--raw", "Once").stdout == "raw:Once\n"
    FakeModel(has_chat_template=False).install(monkeypatch)
    assert kamado("run", "m", "Once").stdout == "raw:Once\n"


def test_an_alias_is_what_it_stands_for(model: FakeModel) -> None:
    write('[aliases]\nsmall = "real:1"\n[models."real:1"]\ntop_k = 7\n')
    assert kamado("run", "small", "hi").exit_code == 0
    assert model.path == Path("/models/real:1")
    assert model.calls[0][2] == {"top_k": 7}


def test_ask_uses_the_default_model(model: FakeModel) -> None:
    result = kamado("ask", "hi")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "no model is here yet" in result.stderr
    assert kamado("config", "set", "model", "small").exit_code == 0
    assert kamado("config", "set", "aliases.small", "real:1").exit_code == 0
    assert kamado("ask", "hi").stdout == "echo(hi)#1\n"
    assert model.path == Path("/models/real:1")
    assert kamado("ask", "-m", "other", "hi").exit_code == 0
    assert model.path == Path("/models/other")


def test_ask_takes_the_only_model_and_never_guesses(
    model: FakeModel, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from serve.stores import put

    from kamado.library.store import Store

    put(Store().root, "one:1", tiny_checkpoint)
    assert kamado("ask", "hi").exit_code == 0
    assert model.path == Path("/models/one:1")
    put(Store().root, "two:1", tiny_checkpoint)
    result = kamado("ask", "hi")
    assert result.exit_code == 2
    assert "kamado config set model" in result.stderr
    assert "one:1, two:1" in result.stderr


# --- templates --------------------------------------------------------------------------------------------------------


def test_a_template_takes_prompt_and_fields(model: FakeModel) -> None:
    write(
        '[templates]\nsum = "Say it in {n} words: {input}"\n'
        '[templates.tr]\ntext = "To {to}: {input} {{as is}}"\nsystem = "You translate."\nmodel = "t"\n'
        'fields = { to = "Japanese" }\n'
    )
    assert kamado("run", "m", "-T", "sum", "-p", "n=3", "all", "of it").exit_code == 0
    assert kamado("run", "m", "-T", "tr", stdin="piped {n}\n").exit_code == 0
    assert kamado("ask", "-T", "tr", "-p", "to=French", "x").exit_code == 0
    prompts = [messages for _, messages, _ in model.calls]
    assert prompts[0] == [{"role": "user", "content": "Say it in 3 words: all of it"}]
    assert prompts[1][0] == {"role": "system", "content": "You translate."}
    assert prompts[1][1]["content"] == "To Japanese: piped {n} {as is}", "what is put in is no template"
    assert prompts[2][1]["content"] == "To French: x {as is}"
    assert model.path == Path("/models/t")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["-T", "nope", "x"], "known templates: fixed, sum"),
        (["-T", "sum", "x"], "needs a value for n: -p n=VALUE"),
        (["-T", "sum", "-p", "n=1", "-p", "m=2", "x"], "has no field 'm': n"),
        (["-T", "sum", "-p", "n=1", "-p", "n=2", "x"], "given twice"),
        (["-T", "sum", "-p", "n", "x"], "no FIELD=VALUE"),
        (["-T", "sum", "-p", "input=1", "x"], "the input is the prompt"),
        (["-T", "fixed", "x"], "no place for a prompt"),
        (["-p", "n=1", "x"], "-p goes with --template"),
        (["-T", "sum", "-p", "n=" + "x" * ((1 << 20) + 1), "x"], "1048576 are allowed"),
    ],
)
def test_what_a_template_cannot_do_is_one_sentence(model: FakeModel, words: list[str], says: str) -> None:
    write('[templates]\nsum = "{n}: {input}"\nfixed = "Tell a joke."\n')
    result = kamado("run", "m", *words)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert says in result.stderr
    assert model.calls == []


plain = st.text(st.characters(exclude_characters="{}", exclude_categories=["Cs"]), max_size=10)
fields = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,10}", fullmatch=True)


@given(st.lists(st.one_of(plain, st.sampled_from("{}"), fields.map(Field)), max_size=12), plain)
def test_any_template_says_what_was_written(parts: list[str | Field], value: str) -> None:
    text = "".join(f"{{{p.name}}}" if isinstance(p, Field) else p.replace("{", "{{").replace("}", "}}") for p in parts)
    template = Template("t", parse(text))
    names = {part.name: value + "{x}" for part in parts if isinstance(part, Field)}
    assert set(template.names) == set(names)
    expected = "".join(names[p.name] if isinstance(p, Field) else p for p in parts)
    assert template.prompt(names) == expected


@given(st.text("{}ab_ 1.!", max_size=12))
def test_a_wrong_template_is_refused_and_no_other(text: str) -> None:
    try:
        template = Template("t", parse(text))
    except UsageError:
        assert "{" in text or "}" in text
        return
    expected = text
    for name in sorted(template.names):
        expected = expected.replace(f"{{{name}}}", "#")
    assert template.prompt(dict.fromkeys(template.names, "#")).count("#") >= len(template.names)


def test_bounds_of_a_template() -> None:
    with pytest.raises(UsageError, match="262144 are allowed"):
        parse("x" * ((1 << 18) + 1))
    with pytest.raises(UsageError, match="64 are allowed"):
        parse("".join(f"{{a{i}}}" for i in range(65)))
    many = Template("t", parse("{a}" * 200))
    with pytest.raises(UsageError, match="the prompt would have"):
        many.prompt({"a": "x" * (1 << 20)})


# --- a wrong file -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("model = \n", "line 1"),
        ("model = 3\n", "line 1: model must be a model's name"),
        ("\n\nmodle = 'x'\n", "line 3: modle is no setting"),
        ("log_prompts = 'yes'\n", "line 1: log_prompts must be true or false"),
        ("aliases = 3\n", "line 1: aliases must be a table"),
        ("[aliases]\na = 'a'\n", "line 2: aliases.a stands for itself"),
        ("[aliases]\na = 3\n", "line 2: aliases.a must be a model's name"),
        ("[defaults]\nthreads = 'many'\n", "line 2: defaults.threads: 'many' is not a valid integer"),
        ("[defaults]\nthreads = 2.5\n", "line 2: defaults.threads: '2.5' is not a valid integer"),
        ("[defaults]\nthreads = 0\n", "line 2: defaults.threads: 0 is not in the range"),
        ("[defaults]\nthreads = true\n", "line 2: defaults.threads must be a number or a text"),
        ("[defaults]\nstats = 'yes'\n", "line 2: defaults.stats must be true or false"),
        ("[defaults]\nthread = 2\n", "line 2: defaults.thread is no option that can be set"),
        ("[defaults]\nkv = ['a']\n", "line 2: defaults.kv must be a number or a text"),
        ("[defaults]\nstop = [[1]]\n", "line 2: defaults.stop must be made of texts and numbers"),
        ("[commands.serve]\nthreads = 2\n", "line 1: commands.serve is set in serve.toml"),
        ("[commands.rum]\nthreads = 2\n", "line 1: commands.rum is none of run,"),
        ("[models.m]\ntop_p = 3\n", "line 2: models.m.top_p: 3.0 is not in the range"),
        ("[templates]\na = 'x {'\n", "line 2: the template 'a' has '{' at character 3"),
        ("[templates.a]\ntext = 'x'\nfield = {}\n", "line 1: the template 'a' has no key 'field'"),
        ("[templates.a]\ntext = 'x'\nfields = {y = '1'}\n", "line 1: the template 'a': its text has no place"),
        ("[templates]\na = 1\n", "line 2: the template 'a' must be a text"),
        ("model = '" + "x" * (1 << 20) + "'\n", "larger than 1 MiB"),
        ("\xff", "config.toml"),
    ],
)
def test_a_wrong_file_is_one_sentence_with_file_and_line(model: FakeModel, text: str, says: str) -> None:
    path = config_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode("latin-1"))
    for words in (["config"], ["run", "m", "hi"]):
        result = kamado(*words)
        if words == ["run", "m", "hi"] and result.exit_code == 0:
            assert "commands" in text, "what is wrong elsewhere is found by 'kamado config'"
            continue
        assert result.exit_code == 2, result.output
        assert result.stderr.count("\n") == 1
        assert says.removeprefix("line 1: ").split(":")[0] in result.stderr
        assert str(path) in result.stderr
    assert says in kamado("config").stderr
    assert kamado("config", "path").exit_code == 0
    assert kamado("run", "--help").exit_code == 0
    assert kamado("list").exit_code == 0
    assert kamado().exit_code == 0


def test_a_file_that_cannot_be_read(model: FakeModel) -> None:
    config_path().mkdir(parents=True)
    result = kamado("run", "m", "hi")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert str(config_path()) in result.stderr


def test_doctor_looks_at_it() -> None:
    write("[defaults]\nthreads = 0\n")
    result = kamado("doctor")
    assert result.exit_code == 1
    assert "defaults.threads" in result.stdout


# --- kamado config ----------------------------------------------------------------------------------------------------


def test_each_value_is_shown_with_its_origin() -> None:
    assert kamado("config").exit_code == 0
    assert "not there yet" in kamado("config").stderr
    path = write('# mine\nmodel = "m"\n[models."a:b"]\ntop_k = 3\n[templates]\nt = "x {input}"\n')
    document = json.loads(kamado("config", "--json").stdout)
    assert document["path"] == str(path)
    found = {value["key"]: (value["value"], value["line"]) for value in document["values"]}
    assert found == {
        "log_prompts": (False, None),
        "model": ("m", 2),
        'models."a:b".top_k': (3, 4),
        "templates.t": ("x {input}", 6),
    }
    lines = kamado("config").stdout.splitlines()
    assert lines[0].split() == ["KEY", "VALUE", "FROM"]
    assert any(line.split() == ['models."a:b".top_k', "3", "line", "4"] for line in lines)
    assert any("built in" in line for line in lines)


def test_set_and_unset_keep_what_a_person_wrote() -> None:
    assert kamado("config", "set", "model", "m").exit_code == 0
    path = config_path()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_text("# mine\n" + path.read_text())
    for key, value in [
        ("log_prompts", "true"), ("defaults.threads", "2"), ("defaults.system", "3 words"), ("defaults.stop", '["a"]'),
        ('models."a.b:1".top_p', "0.5"), ("templates.t", "1 {input}"), ("aliases.3", "x"),
    ]:  # fmt: skip
        result = kamado("config", "set", key, value)
        assert result.exit_code == 0, result.output
    assert path.read_text().startswith('# mine\nmodel = "m"\n')
    found = {v["key"]: v["value"] for v in json.loads(kamado("config", "--json").stdout)["values"]}
    assert found["log_prompts"] is True
    assert (found["defaults.threads"], found["defaults.system"], found["defaults.stop"]) == (2, "3 words", ["a"])
    assert (found['models."a.b:1".top_p'], found["templates.t"], found["aliases.3"]) == (0.5, "1 {input}", "x")
    assert kamado("config", "unset", "templates").exit_code == 0
    assert kamado("config", "unset", "model").exit_code == 0
    assert "model" not in {v["key"] for v in json.loads(kamado("config", "--json").stdout)["values"] if v["line"]}


@pytest.mark.parametrize(
    ("key", "value"),
    [("nonsense", "1"), ("defaults.threads", "many"), ("defaults.trace", "x"), ("log_prompts", "perhaps"),
     ("a..b", "1"), ("templates.t", "{"), ("aliases", "x"), ("model", ""), ("defaults.seed", "1\ny = 2")],
)  # fmt: skip
def test_a_wrong_value_is_not_written(key: str, value: str) -> None:
    path = write('model = "m"\n')
    result = kamado("config", "set", key, value)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert path.read_text() == 'model = "m"\n'


def test_a_wrong_key_can_be_taken_out() -> None:
    path = write("modle = 1\nlog_prompts = true\n")
    assert kamado("config").exit_code == 2
    assert kamado("config", "unset", "modle").exit_code == 0
    assert path.read_text() == "log_prompts = true\n"
    path.write_text("model = \n")
    result = kamado("config", "unset", "model")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)


def test_edit_checks_what_was_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    editor = tmp_path / "editor"
    editor.write_text("#!/bin/sh\necho 'modle = 1' >> \"$1\"\n")
    editor.chmod(0o755)
    monkeypatch.setenv("VISUAL", str(editor))
    result = kamado("config", "edit")
    assert result.exit_code == 2
    assert "modle is no setting" in result.stderr
    assert stat.S_IMODE(config_path().stat().st_mode) == 0o600
