"""One key of a TOML file is changed; whatever else a person wrote in it stays."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kamado.errors import UsageError
from kamado.files.toml_edit import lines, parse_key, shown_key, toml_value, with_value, without

WRITTEN = """\
# settings of mine
model = "a"  # the small one

[aliases]
small = "a"
"with.dot" = 'b'

[templates.summary]
text = \"\"\"
[not.a.table]
model = "not a key"
\"\"\"
fields = { sentences = "3" }

[defaults]
stop = [
  "x", # one
  "]",
]
threads = 2
"""


def test_a_value_takes_the_place_of_the_old_one_and_comments_stay() -> None:
    changed = with_value(WRITTEN, ("model",), "b")
    assert changed == WRITTEN.replace('model = "a"  # the small one', 'model = "b"  # the small one')
    changed = with_value(WRITTEN, ("defaults", "stop"), ["y"])
    assert tomllib.loads(changed)["defaults"] == {"stop": ["y"], "threads": 2}
    assert changed.endswith('stop = ["y"]\nthreads = 2\n')


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        (("log_prompts",), True, 'model = "a"  # the small one\nlog_prompts = true\n'),
        (("aliases", "other"), "c", '"with.dot" = \'b\'\nother = "c"\n'),
        (("aliases", "with.dot"), "c", '"with.dot" = "c"\n'),
        (("defaults", "top_p"), 0.5, "threads = 2\ntop_p = 0.5\n"),
        (("models", "qwen3:4b", "temperature"), 0, '\n[models."qwen3:4b"]\ntemperature = 0\n'),
        (("templates", "summary", "system"), "Be\nbrief", 'system = "Be\\nbrief"\n'),
    ],
)
def test_a_new_key_goes_where_its_table_is(path: tuple[str, ...], value: Any, line: str) -> None:
    assert line in with_value(WRITTEN, path, value)


def test_an_empty_file_and_one_without_a_line_end() -> None:
    assert with_value("", ("model",), "a") == 'model = "a"\n'
    assert with_value("", ("aliases", "s"), "a") == '[aliases]\ns = "a"\n'
    assert with_value("x = 1", ("y",), 2) == "x = 1\ny = 2\n"
    assert with_value("# mine\n\n[a]\nx = 1\n", ("y",), 2) == "# mine\ny = 2\n\n[a]\nx = 1\n"
    assert with_value("a.b = 1\n", ("a", "c"), 2) == "a.b = 1\na.c = 2\n"
    assert with_value("x = 1\r\n[a]\r\ny = 2\r\n", ("a", "y"), 3) == "x = 1\r\n[a]\r\ny = 3\r\n"


@pytest.mark.parametrize("text", ["a = { b = 1 }\n", "a = 1\n", "[[a]]\nb = 1\n"])
def test_a_form_that_takes_a_person_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="a"):
        with_value(text, ("a", "c"), 2)


def test_keys_and_tables_are_taken_out() -> None:
    assert "model" not in tomllib.loads(without(WRITTEN, ("model",)))
    document = tomllib.loads(without(WRITTEN, ("templates",)))
    assert list(document) == ["model", "aliases", "defaults"]
    with pytest.raises(UsageError, match="is not set"):
        without(WRITTEN, ("aliases", "nobody"))
    with pytest.raises(UsageError, match="by hand"):
        without("a = { b = 1, c = 2 }\n", ("a", "b"))


def test_where_keys_stand() -> None:
    found = lines(WRITTEN)
    assert found["model",] == 2
    assert found["aliases", "with.dot"] == 6
    assert found["templates", "summary", "fields"] == 13
    assert found["defaults", "threads"] == 20
    assert ("not", "a", "table") not in found


def test_keys_as_they_are_typed() -> None:
    assert parse_key('models."qwen2.5-coder:1.5b".top_p') == ("models", "qwen2.5-coder:1.5b", "top_p")
    assert parse_key("aliases.small:1") == ("aliases", "small:1")
    for wrong in ("", ".", "a.", ".a", "a..b", "a b", 'a."b', "a'b", "x" * 2000):
        with pytest.raises(UsageError):
            parse_key(wrong)


names = st.text(min_size=1, max_size=8).filter(lambda text: text.isprintable())
values = st.one_of(
    st.text(max_size=20).filter(lambda text: not any(0xD800 <= ord(c) < 0xE000 for c in text)),
    st.booleans(),
    st.integers(-(1 << 63), (1 << 63) - 1),
    st.floats(allow_nan=False),
    st.lists(st.integers(-9, 9), max_size=3),
)
tables = st.dictionaries(names, values, max_size=4)


def toml_of(document: dict[str, dict[str, Any]], top: dict[str, Any], noise: list[str]) -> str:
    """A text with comments and blank lines in it."""
    parts = [f"{shown_key((name,))} = {toml_value(value)} # {noise[0]}\n" for name, value in top.items()]
    for name, table in document.items():
        parts.append(f"\n# {noise[1]}\n[ {shown_key((name,))} ]{noise[2]}\n")
        parts += [f"  {shown_key((key,))}={toml_value(value)}\n" for key, value in table.items()]
    return "".join(parts)


noises = st.lists(st.sampled_from(["", " #[a]", "#'", '# """', "# = ]", " "]), min_size=3, max_size=3)


@given(st.dictionaries(names, tables, max_size=3), tables, noises, names, names, values)
def test_any_key_of_any_file(
    document: dict[str, Any], top: dict[str, Any], noise: list[str], table: str, name: str, value: Any
) -> None:
    top = {key: inner for key, inner in top.items() if key not in document and key != table}
    text = toml_of(document, top, [noise[0], noise[1], noise[2] if noise[2].lstrip().startswith("#") else ""])
    before = tomllib.loads(text)
    changed = with_value(text, (table, name), value)
    after = tomllib.loads(changed)
    assert after[table][name] == value
    del after[table][name]
    expected = {**before, table: {key: inner for key, inner in before.get(table, {}).items() if key != name}}
    assert after == expected
    for line in text.splitlines():
        assert line in changed or shown_key((name,)) in line
    assert name not in tomllib.loads(without(changed, (table, name))).get(table, {})


@given(st.text(max_size=200))
def test_any_text_that_is_toml_is_walked(text: str) -> None:
    try:
        document = tomllib.loads(text)
    except ValueError:
        return
    assert {path[0] for path in lines(text)} == set(document)
