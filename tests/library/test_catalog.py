"""The catalog: what we ship is whole and runs; a broken file costs a sentence, a broken entry only itself."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import platformdirs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kamado.errors import UsageError
from kamado.library.catalog import catalog, find_entry, shipped, user_catalog
from kamado.library.catalog_file import read_catalog, read_entry
from kamado.library.hub import HubName, choose
from kamado.library.hub_api import RemoteFile
from kamado.models import supported_architectures
from kamado.models.registry import FAMILIES

OURS = tuple(shipped().entries.values())
GOOD = '[[model]]\nname = "{name}"\narchitecture = "llama"\n[model.hub]\nrepo = "o/r"\n'


def test_what_we_ship_is_whole() -> None:
    assert shipped().problems == ()
    assert len(OURS) >= 25
    names = [name for entry in OURS for name in (entry.name, *entry.aliases)]
    assert len(set(names)) == len(names)
    for entry in OURS:
        assert entry.description
        assert entry.facts, "a figure without a source does not belong here"
        assert entry.good_for
        assert not set(entry.good_for) & {"vision", "audio"}, "Kamado runs the text part alone"


@pytest.mark.parametrize("entry", OURS, ids=lambda entry: entry.name)
def test_every_entry_is_of_a_family_that_runs_and_can_be_chosen(entry: Any) -> None:
    assert entry.architecture in supported_architectures()
    assert (entry.format, entry.architecture) in FAMILIES
    if entry.hub is None:
        assert {i for file in entry.files for i, _ in file.members} == set(range(len(entry.wheels)))
        return
    digests = entry.hub.sha256
    assert bool(digests) == bool(entry.hub.sha256_from)
    if entry.hub.file:
        folder, _, last = entry.hub.file.rpartition("/")
        there = [RemoteFile(f"{folder}/{name}".lstrip("/"), 1, digest, None) for name, digest in digests.items()]
        there = there or [RemoteFile(entry.hub.file, 1, "0" * 64, None)]
        assert choose(HubName(entry.hub.repo, None, entry.hub.file), there) == there, "all shards, and each is known"
        assert last in digests


def test_names_and_aliases_are_found() -> None:
    entry = find_entry("qwen3:4b")
    assert entry is not None
    assert entry.name == "qwen3:4b-instruct-2507"
    assert find_entry("nobody:1b") is None
    assert {one.name for one in OURS if one.has(["japanese", "MIT"])} >= {"sarashina2.2:3b", "phi4-mini"}


def write_user_catalog(text: str) -> Path:
    path = platformdirs.user_config_path("kamado", appauthor=False) / "catalog.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_the_users_entries_come_after_ours_and_in_their_place() -> None:
    assert user_catalog() is None
    write_user_catalog(GOOD.format(name="mine:1b") + GOOD.format(name="smollm2:135m"))
    found = catalog()
    assert found.problems == ()
    assert list(found.entries)[-1] == "mine:1b"
    mine = found.entries["smollm2:135m"]
    assert mine.hub is not None
    assert mine.hub.repo == "o/r"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[model", "catalog.toml: is no TOML"),
        ('x = "\udcff"', "is no UTF-8 text"),
        ("model = 3", "holds \\[\\[model\\]\\] tables alone"),
        ("[[model]]\nname = 'a b'\n[model.hub]\nrepo = 'o/r'", r"model 2 \('a b'\): 'a b' is no name for a model"),
        ("[[model]]\nname = 'hf:x'\n[model.hub]\nrepo = 'o/r'", "'hf:x' is no name for a model"),
        ("[[model]]\nname = 'x'", "model 2 .'x'.: it needs one source"),
        ("[[model]]\nname = 'x'\nhub = 3", "hub is no table"),
        ("[[model]]\nname = 'x'\n[model.hub]\nrepo = '../r'", "hub.repo is '../r'"),
        ("[[model]]\nname = 'x'\n[model.hub]\nrepo = 'o/r'\nfile = '../m.gguf'", "is no file name"),
        ("[[model]]\nname = 'x'\n[model.hub]\nrepo = 'o/r'\nquant = 'Q 4'", "hub.quant is 'Q 4'"),
        ("[[model]]\nname = 'x'\n[model.hub]\nrepo = 'o/r'\nsha256 = {m = 'abc'}", "64 hexadecimal digits"),
        ("[[model]]\nname = 'x'\nlicence = 'MIT'\n[model.hub]\nrepo = 'o/r'", "it has a key 'licence'; known are"),
        ("[[model]]\nname = 'x'\nlicense = 3\n[model.hub]\nrepo = 'o/r'", "license is no text of one line"),
        ("[[model]]\nname = 'x'\ntitle = \"\"\"a\nb\"\"\"\n[model.hub]\nrepo = 'o/r'", "title is no text of one line"),
        ("[[model]]\nname = 'x'\ncontext = -1\n[model.hub]\nrepo = 'o/r'", "context is no whole number above 0"),
        ("[[model]]\nname = 'x'\nformat = 'onnx'\n[model.hub]\nrepo = 'o/r'", "it is gguf or safetensors"),
        ("[[model]]\nname = 'x'\naliases = ['good:1']\n[model.hub]\nrepo = 'o/r'", "'good:1' is another model's name"),
        ("[[model]]\nname = 'x'\n[[model.wheel]]\nproject = '-'", "'-' is no project"),
    ],
)  # fmt: skip
def test_a_broken_entry_is_one_sentence_and_the_rest_is_known(text: str, message: str) -> None:
    good = GOOD.format(name="good:1") if text.startswith("[[model]]") else ""
    path = write_user_catalog("")
    path.write_bytes((good + text).encode("utf-8", "surrogateescape"))
    found = catalog()
    (problem,) = found.problems
    assert str(path) in problem
    assert "\n" not in problem
    import re

    assert re.search(message, problem), problem
    assert "smollm2:135m" in found.entries
    assert ("good:1" in found.entries) == bool(good)


def test_a_file_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    assert "is no regular file" in read_catalog(tmp_path).problems[0]
    large = tmp_path / "large.toml"
    with open(large, "wb") as file:
        file.truncate((4 << 20) + 1)
    assert "has more than" in read_catalog(large).problems[0]


LETTERS = "aZ09/._:-@ \n\x1b\u202e"  # few, so that names which nearly fit are tried too
ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(LETTERS, max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(LETTERS, max_size=8), inner, max_size=4),
    max_leaves=10,
)
KEYS = st.sampled_from(["name", "aliases", "license", "context", "good_for", "format", "hub", "wheel", "file"])
TABLE_KEYS = st.sampled_from(["repo", "file", "sha256", "quant", "project", "version", "nbytes", "path", "members"])
TABLES = st.dictionaries(TABLE_KEYS, ANY, max_size=6)


@settings(max_examples=40)
@given(st.dictionaries(KEYS, ANY | TABLES | st.lists(TABLES, max_size=3), max_size=8))
def test_no_table_does_anything_but_give_an_entry_or_say_what_is_wrong(table: dict[str, Any]) -> None:
    try:
        entry = read_entry(table)
    except (ValueError, UsageError):
        return
    assert (entry.hub is None) == bool(entry.files)


@settings(max_examples=40)
@given(data=st.binary(max_size=300) | st.text(alphabet='[]model.hub="\n {}', max_size=200).map(str.encode))
def test_no_file_does_anything_but_give_a_catalog(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_bytes(data)
    found = read_catalog(path)
    assert found.problems or not tomllib.loads(data.decode()).get("model")
