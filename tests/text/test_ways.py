"""The ids of small vocabularies are llama.cpp's, for each way of cutting words and for PLaMo's tokenizer.

golden/ways.json has the vocabularies and what llama.cpp, pinned in tests/peer.py, made of every text (record.py). The
merges reach across every cut, so a cut at another place gives other ids.
"""

from __future__ import annotations

import functools
import json
import re
import unicodedata
from pathlib import Path
from typing import Any

import peer
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kamado.files import open_checkpoint
from kamado.text.tokenizer import Tokenizer, load_tokenizer
from kamado.text.tokenizer.pretokenizers import PRE_TOKENIZERS

from . import vocabularies as small
from .models import gguf

_CASES = {"cases", "byte_alphabet", "dotted_case"}
_MARKS = {"marks", "scripts_touching", "thai", "hindi", "decomposed", "stacked_marks"}
# Where llama.cpp differs from the family's own tokenizer.json, whose patterns are ours. It knows no case beyond ASCII
# (issue 21675 there), nor any case in Kimi's words, and takes marks for no letters; blanks beyond ASCII are one;
# Trinity's digits are not cut off from the blanks before them, a half is a digit of them, scripts that touch are one
# word, and Thai begins in its middle.
_DIFFERS = {
    "tekken": _CASES | _MARKS,
    "gpt-4o": _CASES | _MARKS,
    "kimi-k2": _CASES | _MARKS | {"camel_case", "han_and_latin"},
    "deepseek-llm": {"odd_spaces"},
    "deepseek-coder": {"odd_spaces"},
    "afmoe": {"digits_after_blanks", "other_digits", "scripts_touching", "marks", "thai"},
}


@functools.cache
def _golden() -> dict[str, Any]:
    recorded: dict[str, Any] = json.loads((Path(__file__).parent / "golden" / "ways.json").read_text())
    return recorded


@functools.cache
def _tokenizer(way: str) -> Tokenizer:
    if way == "plamo2":
        return gguf(**small.plamo(_golden()["pieces"]))
    if way == "gemma4":
        return gguf(**small.marked_pairs(_golden()["marked"]))
    if way == "llama":
        return gguf(**small.sentence_piece())
    return gguf(**small.byte_level(_golden()["merges"], way))


_WAYS = [*small.ways(), "llama", "plamo2", "gemma4"]


@pytest.mark.parametrize("way", _WAYS)
def test_ids_are_those_of_llama_cpp(way: str) -> None:
    golden = _golden()
    assert golden["sha256"] == peer.SHA256, "llama.cpp is another: python -m tests.text.record ways"
    recorded = golden["ids"][way]
    assert recorded.keys() == small.texts().keys()
    ours = {name: small.compact(_tokenizer(way).encode(text, add_bos=False)) for name, text in small.texts().items()}
    differs = {name for name in ours if ours[name] != recorded[name]}
    assert differs == _DIFFERS.get(way, set())


def test_every_way_is_told_from_every_other() -> None:
    """A wrong rule would show: no two give the same ids. llama.cpp's DBRX differs from Llama 3 by whole words only."""
    seen: dict[str, str] = {}
    for way in small.ways():
        ids = json.dumps(
            [small.compact(_tokenizer(way).encode(text, add_bos=False)) for text in small.texts().values()]
        )
        assert ids not in seen, (way, seen.get(ids))
        seen[ids] = way


@given(
    text=st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("a1 \n'/中ก\u0301"), max_size=60),
    way=st.sampled_from(["seed-coder", "gpt-4o", "kimi-k2", "afmoe", "plamo2", "gemma4", "tekken"]),
)
@settings(deadline=None, max_examples=300)
def test_any_text_survives(text: str, way: str) -> None:
    tokenizer = _tokenizer(way)
    ids = tokenizer.encode(text, add_bos=False)
    if way == "gemma4":
        text = text.replace("\u2581", " ")  # it cannot tell them apart
    assert tokenizer.decode(ids, skip_special=False) == text
    assert not tokenizer.special_ids & set(ids)


@pytest.mark.parametrize("name", small.END_CASES)
def test_ends_of_turns_are_those_of_llama_cpp(name: str) -> None:
    assert gguf(**small.END_CASES[name]).stop_ids == set(_golden()["ends"][name])


def test_glm_ends_where_it_names_the_next_turn_even_if_the_file_does_not_say_so() -> None:
    keys = {key: value for key, value in small.END_CASES["glm"].items() if not key.endswith("_id")}
    tokenizer = gguf(**keys)
    ends = {keys["tokens"][i] for i in tokenizer.stop_ids}
    assert ends == {"<|endoftext|>", "<|user|>", "<|observation|>"}
    phi = gguf(**small.END_CASES["phi mini"])
    assert phi.token_to_id("<|user|>") not in phi.stop_ids


def test_gemma_4_begins_with_bos_whatever_the_file_says() -> None:
    keys = small.marked_pairs(_golden()["marked"]) | {"add_bos_token": False}
    tokenizer = gguf(**keys)
    assert tokenizer.add_bos
    assert tokenizer.encode("a")[0] == tokenizer.bos_id == keys["bos_token_id"]
    assert not {keys["bos_token_id"], keys["eos_token_id"]} & set(tokenizer.encode("<bos><eos>", add_bos=False))


def test_minimax_ends_where_it_says_so_even_if_the_file_does_not() -> None:
    keys = {key: value for key, value in small.END_CASES["minimax"].items() if not key.endswith("_id")}
    tokenizer = gguf(**keys | {"token_type": [1] * len(keys["tokens"])})
    assert tokenizer.stop_ids == {tokenizer.token_to_id("[e~[")}
    assert tokenizer.stop_ids <= tokenizer.special_ids


_RUNS = ("1", "1a", " ", "\n", " \n", "x", "Aa", "中", "A中", "\u0301", "!", "'", "1 ")


@pytest.mark.slow
@pytest.mark.parametrize("way", ["seed-coder", "gpt-4o", "kimi-k2", "afmoe", "plamo2", "gemma4"])
def test_long_runs_do_not_reach_the_limit_of_the_search(way: str) -> None:
    """Longer than what is cut at once: the package gives up after ten million steps back, and a search that takes the
    square of this length would end by the suite's limit of time."""
    for run in _RUNS:
        text = run * (150_000 // len(run))
        assert _tokenizer(way).decode(_tokenizer(way).encode(text, add_bos=False)) == text, run


# --- the sources of llama.cpp, and the vocabularies among them --------------------------------------------------------


@pytest.fixture(scope="module")
def vocabularies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with llama.cpp's real vocabularies, texts and their ids."""
    folder = tmp_path_factory.mktemp("vocabularies")
    for name, raw in peer.files(r"models/ggml-vocab-[\w-]+\.gguf(\.inp|\.out)?").items():
        (folder / name.rpartition("/")[2]).write_bytes(raw)
    return folder


_REAL = ["bert-bge", "command-r", "deepseek-coder", "deepseek-llm", "falcon", "gemma-4", "gpt-2", "llama-bpe"]
_REAL += ["llama-spm", "mpt", "phi-3", "qwen2", "qwen35", "refact", "starcoder"]


@pytest.mark.parity
@pytest.mark.parametrize("name", _REAL)
def test_real_vocabularies_give_llama_cpp_s_own_ids(name: str, vocabularies: Path) -> None:
    path = vocabularies / f"ggml-vocab-{name}.gguf"
    source = open_checkpoint(path).tokenizer
    assert source is not None
    tokenizer = load_tokenizer(source)
    texts = Path(f"{path}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    wanted = [[int(i) for i in line.split()] for line in Path(f"{path}.out").read_text().split("\n")]
    assert len(texts) > 40
    assert wanted[len(texts) :] in ([], [[]])
    differs = [
        text
        for text, ids in zip(texts, wanted, strict=False)
        if tokenizer.encode(text, add_bos=False, add_eos=False) != ids
    ]
    # Qwen's tokenizer composes characters first; llama.cpp does not. Three texts of this file are about that.
    assert all(unicodedata.normalize("NFC", text) != text for text in differs)
    assert len(differs) == (3 if name == "qwen35" else 0)


@pytest.mark.parity
def test_names_that_llama_cpp_takes_for_one_are_one() -> None:
    branches = _branches(peer.sources()["llama-vocab.cpp"])
    assert len(branches) > 40
    found: set[str] = set()
    for names, body in branches:
        known = [name for name in names if name in PRE_TOKENIZERS]
        found.update(known)
        assert len({PRE_TOKENIZERS[name].patterns for name in known}) <= 1, known
        for name in known:
            assert PRE_TOKENIZERS[name].ignore_merges == ("ignore_merges = true" in body), name
            assert PRE_TOKENIZERS[name].add_bos == ("add_bos = true" in body), name
    assert found == PRE_TOKENIZERS.keys()


def _branches(source: str) -> list[tuple[list[str], str]]:
    """(names, what is done for them) of each branch by `tokenizer.ggml.pre`."""
    branches = re.findall(r'if \(\s*((?:tokenizer_pre == "[\w.-]+"\s*(?:\|\|\s*)?)+)\) \{([^}]*)\}', source)
    return [(re.findall(r'"([\w.-]+)"', names), body) for names, body in branches]
